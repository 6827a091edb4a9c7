"""From what happened to what is said: verdict, exit code, and whether the application may start."""

from __future__ import annotations

import errno
import os

from agent.edges import database, holders, process
from agent.edges.filelock import try_lock
from agent.edges.migration_files import read_contracts
from agent.ground.errors import AgentError, ConfigError, InternalError, revive
from agent.verbs.switch import same_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.terminal import Places

# Refusals: nothing was done, so they say nothing about the plan and are not counted.
REFUSALS = ("BUSY", "STORAGE_ERROR", "CONFIG", "SCHEMA_TOO_NEW", "HELD", "UNSETTLED", "USAGE")


def failed(error: AgentError) -> dict[str, Any]:
    """The result of a job that ended with an error; pos.db is as it was."""
    verdict = "HELD" if error.code == "HELD" else "REFUSED"
    if error.code == "INTERRUPTED":
        verdict = "INTERRUPTED"
    if error.code in ("VALIDATION_ERROR", "TIMEOUT", "INTERNAL", "FAILED", "BACKUP_CORRUPT"):
        verdict = "ROLLED_BACK"
    if error.facts.get("cause") in ("GIVEN_UP", "NO_WAY_BACK"):
        verdict = "HELD"
    return {"verdict": verdict, "error": error.as_json()}


def fault(error: Exception, where: str) -> dict[str, Any]:
    """The result of a job that a fault of ours ended. Whether the application may start is not
    known then, so it must not."""
    text = f"a fault of the agent: {type(error).__name__} in {where}; report it"
    return {
        "verdict": "REFUSED",
        "error": InternalError(text).as_json(),
        "app_may_start": False,
        "app_must_not_start_because": text,
    }


def exit_code(result: dict[str, Any], boot: bool) -> int:
    """The process's exit code for a result. `boot` answers 12 exactly when the application must
    not start, but for a second agent, which leaves that to the first and answers 5."""
    other = "error" in result and result["error"].get("facts", {}).get("other_agent")
    if boot and not result["app_may_start"] and not other:
        return 12
    if "error" in result:
        return revive(result["error"]).exit_code
    return {"PARTIAL": 14, "INTERRUPTED": 3}.get(result["verdict"], 0)


def may_start(
    result: dict[str, Any], places: Places, migrations_dir: str, held_lock: bool
) -> tuple[bool, str]:
    """Whether the application may start, and why not.

    It may when pos.db is at one whole version that it reads and a fresh descriptor gets the lock;
    `held_lock` tells that the agent had it.
    """
    late = result.get("late_holders") or _old_file_users(places)
    if late:
        return False, f"the old file is still open in {', '.join(late)}"
    error = result.get("error") or {}
    if error.get("facts", {}).get("other_agent"):
        return False, "another posagent is at work; it says when the application may start"
    if error.get("code") == "HELD":
        return False, str(error["message"])
    try:
        header = database.read_header(places.pos)
    except OSError as failure:
        return False, f"pos.db cannot be read: {failure.strerror}"
    if header is None:
        return False, "pos.db is no SQLite file"
    try:
        contracts = read_contracts(migrations_dir)
    except AgentError as failure:
        return False, f"which schema the application reads is not known: {failure.message}"
    min_reader = (error.get("facts") or {}).get("min_reader")
    if not contracts.application_reads(header.user_version, min_reader):
        low, high = contracts.app_reads
        return False, (
            f"pos.db has schema {header.user_version} and the application reads {low} to {high}"
        )
    if held_lock and error.get("code") != "BUSY":
        try:
            fresh = try_lock(places.pos)
        except OSError as failure:
            if failure.errno == errno.EROFS:
                return True, ""  # whoever can only read needs no lock
            fresh = None
        except ConfigError:
            fresh = None
        if fresh is None:
            return False, "pos.db is still locked"
        fresh.close()
    return True, ""


def _old_file_users(places: Places) -> list[str]:
    """Who still has the file open that an earlier switch replaced, our own holder left out."""
    try:
        old = os.stat(places.prev)
    except OSError:
        return []
    if same_file(places.pos, places.prev):
        return []  # cut before the rename: the file in use, which nothing has replaced yet
    found, _ = holders.holders_of((old.st_dev, old.st_ino), (os.getpid(),))
    return sorted({repr(h) for h in found.values() if h.name != process.HOLDER_NAME})
