"""What a prune would delete and what it would keep, told without leaving a trace.

pos.db is read as it lies, or, where the application has it open, as any other client reads it.
Where only a recovery could tell what it holds, that is the answer.
"""

from __future__ import annotations

import os

from agent.edges import agentlock, quiet
from agent.edges.config import places_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import Busy
from agent.service.validation import header_of
from agent.verbs import backup_folder, backup_list, prune, rows, survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.edges.config import Config


def foreseen(config: Config, tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """What `prune --dry-run` answers; docs/json-output.md names the keys. `tell` is told that it
    goes on. Raises AgentError where nobody can tell."""
    places = places_of(config)
    if agentlock.run_is_on(places.lock):
        raise Busy("a run is on; `posagent status` tells how far it is")
    header_of(places)
    files = MigrationFiles(config.migrations_dir)
    ask = quiet.until_a_run(places.lock)

    def mark(*_: Any) -> None:
        ask()
        if tell is not None:
            tell("reading the records")

    found: dict[str, Any] = quiet.quietly(
        places.pos, lambda connection: _foreseen(connection, config, files, mark)
    )
    surplus = _old_backups(config, any(f["records"] for f in found["pruned"].values()), mark)
    return {"dry_run": True, **found, "backups_deleted": surplus}


def _foreseen(
    connection: Connection, config: Config, files: MigrationFiles, mark: Callable[..., None]
) -> dict[str, Any]:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    rows.check_format(connection)
    prune.check_version(version, files.head)
    contract = rows.contract_at(connection, files.contracts, version)
    survey.check_stores(connection, contract)
    limits = (config.profile.record_bytes_max, config.profile.record_depth_max)
    found = survey.survey(connection, contract, set(), limits, mark)
    figures = prune.figures(connection, contract, found.counters, limits, mark)
    records = found.tally.records
    return {
        "version": version,
        "pruned": figures,
        "kept": {name: records[name] - figure["records"] for name, figure in figures.items()},
        "unsettled": found.tally.unsettled_summary(),
    }


def _old_backups(config: Config, is_run: bool, mark: Callable[..., None]) -> list[str]:
    """Names of the backups that would go; a run takes one more, which counts among the newest."""
    folder, count = config.backups_dir, config.profile.backup_count
    old, _ = backup_list.old_backups(folder, count, mark)
    if is_run:
        files = [path for _, _, path in backup_folder.backup_files(folder)]
        old = files[: len(files) + 1 - count] if len(files) >= count else []
    return [os.path.basename(path) for path in old]
