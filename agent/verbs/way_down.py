"""Whether `down` leads back from one version to another, and what it would have to keep.

Asked before anything is built: a step that cannot be undone, a file that is not what was applied,
a `down` or its check that fails on one record, all of it is known by then and says the reason.
"""

from __future__ import annotations

import os

from agent.core import left_behind
from agent.core.ledger import Ledger
from agent.core.meaning import replay
from agent.core.plan import Plan
from agent.core.steps import shown
from agent.ground.errors import AgentError, ValidationError
from agent.verbs import backup_reader, moving, rows, schema
from agent.verbs.reading import ROWS_PER_MARK, records_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.applied import Applied
    from agent.core.step import Step
    from agent.core.terminal import Places, RunRow
    from agent.verbs.backup_reader import BackupInfo

KEYS_SHOWN_MAX = 5


class NoWayDown(AgentError):
    """`down` does not lead there; the data is as it was."""


def check_reversible(plan: Plan, applied: dict[int, Applied]) -> None:
    """Refuse a way down over a version that cannot be undone. Raises NoWayDown."""
    for migration in reversed(plan.migrations):
        known = applied.get(migration.version)
        stuck = [step.describe() for step in migration.steps if not step.reversible]
        if stuck:
            raise NoWayDown(f"{migration.file} cannot be undone: {stuck[0]}")
        if known is None or not known.run:
            raise NoWayDown(
                f"{migration.file}: pos.db does not say that an agent which keeps what undoing "
                "needs has applied it"
            )
        if known.checksum != migration.checksum:
            raise NoWayDown(
                f"{migration.file} was edited after it was applied; put it back as it was"
            )
        if not known.keeps_undo:
            raise NoWayDown(
                f"{migration.file}: what its undoing needs was not kept, since a migration above "
                "it could not be undone"
            )


def backup_of(places: Places, row: RunRow, mark: Callable[[int], None]) -> BackupInfo | None:
    """The whole backup that a run took of the very file it replaced, or None."""
    if row.backup is None:
        return None
    path = os.path.join(places.backups, str(row.backup.get("name")))
    try:
        info = backup_reader.verify(path, mark)
    except AgentError:
        return None
    source = info.end["source"]
    same = (source["size"], source["sha256"]) == (row.source_size, row.source_sha256)
    return info if same and info.sha256 == row.backup.get("sha256") else None


class Kept:
    """What a way down leaves as the new software wrote it, by step."""

    __slots__ = ("_counts", "_keys", "_plan", "moves", "tables")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts: dict[tuple[int, int, str], int] = {}
        self._keys: dict[tuple[int, int, str], list[str]] = {}
        self.tables: list[tuple[str, str, int]] = []
        self.moves: list[tuple[int, Step, str]] = []

    def add(self, store: str, key: str, ledger: Ledger) -> None:
        """Take what the ledger of one record reports."""
        for report in ledger.reports:
            self._counts[report] = self._counts.get(report, 0) + 1
            keys = self._keys.setdefault(report, [])
            if len(keys) < KEYS_SHOWN_MAX:
                keys.append(f"{store}/{shown(key)}")

    def as_json(self) -> list[dict[str, Any]]:
        """One entry per step and per what became of the newer values, with the first keys."""
        steps = {(m.version, step.number): step for m in self._plan.migrations for step in m.steps}
        found = [
            _entry(version, steps[version, number].describe(), what, count, self._keys[report])
            for report, count in sorted(self._counts.items(), reverse=True)
            for version, number, what in (report,)
        ]
        for version, step, place in self.moves:
            found.append(_entry(version, step.describe(), "kept", 1, [place]))
        for name, what, count in self.tables:
            found.append(_entry(None, f"table {name}", what, count, []))
        return found


def _entry(
    version: int | None, step: str, what: str, records: int, first: list[str]
) -> dict[str, Any]:
    return {"version": version, "step": step, "what": what, "records": records, "first": first}


def try_down(
    connection: Connection,
    plan: Plan,
    limits: tuple[int, int],
    mark: Callable[[str, int], None],
) -> Kept:
    """Do the whole way down in memory, record by record, on the data as it is.

    The plan is bound. Answers what would be kept of newer values; raises ValidationError with the
    first record that stands in the way.
    """
    kept = Kept(plan)
    moving.check_strangers(connection, plan)
    moved = moving.moves_of(connection, plan)
    left = rows.quarantined(connection)
    ledger_of = rows.ledger_reader(connection, [m.version for m in plan.migrations])
    used: list[tuple[str, str, Ledger]] = []

    def ledger(store: str, key: str) -> Ledger:
        found = ledger_of(store, key) if ledger_of is not None else Ledger()
        used.append((store, key, found))
        return found

    done = 0
    for store in sorted(plan.stores()):
        others_stay = left_behind.others_stay(plan, store)
        mixed = left.in_store(store)
        strict = not mixed and not others_stay
        for key, value, record, reason in records_of(connection, store, strict, limits):
            done += 1
            if done % ROWS_PER_MARK == 0:
                mark(store, done)
            row = left.of(store, key, value) if mixed else None
            if reason:
                named = not others_stay or left_behind.first_naming(plan, store, key) is not None
                if row is None and named:
                    raise ValidationError(f"{store}/{shown(key)} cannot be read: {reason}")
                continue
            at = row.version if row is not None else None
            used.clear()
            replay(plan, store, key, record, plan.contexts, moved, ledger, at)
            for place in used:
                kept.add(*place)
    kept.tables = schema.tables_with_rows(connection, plan)
    kept.moves = moving.moves_left(connection, plan, moved)
    schema.rehearse(connection, plan)
    return kept
