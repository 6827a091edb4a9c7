"""What is so at this moment, for `status`: the run that is on, or what the flash says in its place.

Only reads, and while a run is on does not touch pos.db at all. Every fact has a documented key
(docs/json-output.md).
"""

from __future__ import annotations

import os

from agent.core import states
from agent.edges import agentlock, database, holders, process, quiet
from agent.edges.config import places_of
from agent.edges.flash import read_file
from agent.edges.migration_files import MigrationFiles
from agent.ground.codec import decode
from agent.ground.errors import AgentError, MigrationsRejected, sentence_for
from agent.verbs import rows
from agent.verbs.switch import read_seal
from agent.worker.start import missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.state import Diary

STATUS_BYTES_MAX = 262_144
IDLE = "idle"
# Found anew at each look, so that an old word of a run does not outlive a repair.
_SEEN_AGAIN = ("MISSING", "UNREADABLE")


class Facts:
    """The answer to "what is it doing", and what the other answers need besides."""

    __slots__ = ("doing", "files", "may_start", "places", "running", "why_not_start")

    def __init__(self, config: Config) -> None:
        self.places = places_of(config)
        self.running = agentlock.run_is_on(self.places.lock)
        self.files: MigrationFiles | None = None
        self.doing: dict[str, Any] = {
            "state": IDLE,
            "progress": None,
            "version": None,
            "target": None,
            "pending": 0,
            "too_new": False,
            "given_up": None,
            "attempts": 0,
            "interrupted": False,
            "previous_kept": False,
            "held": None,
            "migrations_rejected": None,
            "last": None,
            "diary_not_read": None,
        }
        self.may_start = False
        self.why_not_start = ""
        said = last_words(self.places)
        try:
            self.files = MigrationFiles(config.migrations_dir)
            self.doing["target"] = self.files.head
        except MigrationsRejected as error:
            self.doing["migrations_rejected"] = error.message
        if self.running:
            self._of_the_run(said)
        else:
            self._of_the_flash(said)
        self._of_the_diary(config)
        self._judge_start()

    def _of_the_run(self, said: dict[str, Any]) -> None:
        state = said.get("state")
        fresh = state in states.STATES and state not in states.FINAL
        # Before its first mark a run has not yet replaced the words of the one before.
        self.doing["state"] = state if fresh else states.CHECKING
        self.doing["progress"] = said.get("progress") if fresh else None

    def _of_the_flash(self, said: dict[str, Any]) -> None:
        doing, places = self.doing, self.places
        doing["held"] = held_because(places, said) or None
        doing["previous_kept"] = os.path.lexists(places.prev)
        try:
            header = database.read_header(places.pos)
        except OSError:
            return
        if header is None:
            return
        doing["version"] = version = header.user_version
        if self.files is not None:
            doing["pending"] = max(self.files.head - max(version, 0), 0)
            doing["too_new"] = version > self.files.head
        doing["interrupted"] = doing["pending"] > 0 and os.path.lexists(places.next)

    def _of_the_diary(self, config: Config) -> None:
        doing, plan = self.doing, ""
        if self.files is not None and doing["pending"] and doing["version"] >= 0:
            plan = self.files.digest(doing["version"])

        def read(diary: Diary) -> tuple[dict[str, str], int, list[dict[str, Any]]]:
            tries = len(diary.attempts(plan, holders.boot_id())) if plan else 0
            return diary.given_up(), tries, diary.history(1)

        given_up: dict[str, str] = {}
        rows: list[dict[str, Any]] = []
        path = os.path.join(config.state_dir, "agent.db")
        try:
            given_up, doing["attempts"], rows = quiet.read_diary(path, read, (given_up, 0, rows))
        except AgentError as error:
            doing["diary_not_read"] = error.message
            seal = read_seal(self.places)
            known = seal.given_up if seal is not None else []
            given_up = dict.fromkeys(known, "known from before the diary was damaged")
        doing["given_up"] = given_up.get(plan)
        if rows:
            keys = ("kind", "from_version", "to_version", "verdict", "code", "message")
            doing["last"] = {key: rows[0][key] for key in (*keys, "at_ms", "clock_trusted")}

    def _judge_start(self) -> None:
        doing = self.doing
        if self.running:
            self.why_not_start = "a run is on"
        elif doing["held"]:
            self.why_not_start = doing["held"]
        elif self.files is None:
            self.why_not_start = "which schema the application reads is not known"
        elif not self.files.contracts.application_reads(doing["version"], self._min_reader()):
            low, high = self.files.contracts.app_reads
            self.why_not_start = (
                f"pos.db has schema {doing['version']} and the application reads {low} to {high}"
            )
        self.may_start = not self.why_not_start

    def _min_reader(self) -> int | None:
        """What newer data says of who reads it; not asked of any other."""
        if not self.doing["too_new"]:
            return None
        try:
            return quiet.quietly(self.places.pos, rows.read_min_reader)
        except AgentError:
            return None


def last_words(places: Places) -> dict[str, Any]:
    """What status.json says, or {} when it is not there or cannot be read."""
    try:
        said = decode(read_file(places.status, STATUS_BYTES_MAX).decode())
    except (OSError, ValueError, AgentError):
        return {}
    return said if type(said) is dict else {}


def held_because(places: Places, said: dict[str, Any]) -> str:
    """Why somebody has to come before this terminal can go on, or ""."""
    if not os.path.lexists(places.pos):
        return missing(places).message
    try:
        if database.read_header(places.pos) is None:
            return f"{places.pos} is no SQLite file; restore a backup"
    except OSError as failure:
        return f"pos.db cannot be read: {sentence_for(failure)}"
    late = old_file_users(places)
    if late:
        return f"the old file is still open in {', '.join(late)}; stop it"
    error = said.get("error")
    # A plan that was given up is held back as well, but keeps nobody from working.
    stopped = said.get("state") == states.HELD and said.get("app_may_start") is False
    if stopped and type(error) is dict:
        facts = error.get("facts")
        cause = facts.get("cause") if type(facts) is dict else None
        return "" if cause in _SEEN_AGAIN else str(error.get("message"))
    return ""


def old_file_users(places: Places) -> list[str]:
    """Who still has the file open that the last switch replaced, our own holder left out."""
    try:
        old, new = os.stat(places.prev), os.stat(places.pos)
    except OSError:
        return []
    if os.path.samestat(old, new):
        return []
    found, _ = holders.holders_of((old.st_dev, old.st_ino), (os.getpid(),))
    return sorted({repr(h) for h in found.values() if h.name != process.HOLDER_NAME})
