"""The proof: the successor against the original, both read from flash, before anything is switched.

Not "looks right" but: every unsettled record is what the plan's plain reading makes of the old one
(verbs/replay); counts and sums have not moved; nothing outside the plan differs.
"""

from __future__ import annotations

from agent.core.left_behind import judged
from agent.core.plan import Plan
from agent.core.stores import Contract, Contracts
from agent.core.tally import Tally, difference
from agent.core.terminal import TABLE
from agent.edges.database import (
    SQLITE_ERRORS,
    has_rowid,
    has_store,
    lenient_text,
    quoted,
    refused_by_sqlite,
    rows_differ,
    schema_of,
)
from agent.ground.codec import decode
from agent.ground.errors import ValidationError
from agent.verbs import applied, rows, schema
from agent.verbs.reading import ROWS_PER_MARK, read_with_care, rows_of
from agent.verbs.replay import Replay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.verbs.schema import Schema

# PRAGMAs that a copy must not change; the application chose them.
KEPT_PRAGMAS = ("application_id", "encoding", "page_size", "auto_vacuum")


class Proof:
    """Two open files, the old and the new, and a way to show that the work goes on."""

    __slots__ = ("mark", "new", "old")

    def __init__(self, old: Connection, new: Connection, mark: Callable[[str, int], None]) -> None:
        self.old = old
        self.new = new
        self.mark = mark

    def same_frame(self, plan_stores: set[str], planned: Schema | None = None) -> None:
        """Settings and every table outside the plan are as they were, and so is the schema but for
        what the plan's statements make of it, which is `planned`."""
        old, new = schema_of(self.old), schema_of(self.new)
        expected = dict(old if planned is None else planned)
        for found in (expected, new):
            found.pop(("table", TABLE), None)
        if expected != new:
            changed = sorted(
                name
                for kind, name in expected.keys() | new.keys()
                if expected.get((kind, name)) != new.get((kind, name))
            )
            raise ValidationError(f"the schema would change: {', '.join(changed)}")
        for pragma in KEPT_PRAGMAS:
            was, is_now = (
                c.execute(f"PRAGMA {pragma}").fetchone()[0] for c in (self.old, self.new)
            )
            if was != is_now:
                raise ValidationError(f"{pragma} would change from {was} to {is_now}")
        for place in sorted(old):
            kind, name = place
            if kind != "table" or name in plan_stores or _of_sqlite(name):
                continue
            if place in new:  # one that is not was dropped by a statement of the plan
                self._same_table(name, old[place] == new[place])
        for kind, name in sorted(new.keys() - old.keys()):
            if kind != "table" or _of_sqlite(name):
                continue
            if self.new.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 1").fetchone():
                raise ValidationError(f"table {name}, which is new, would hold rows")

    def _same_table(self, name: str, same_columns: bool) -> None:
        order = "rowid" if has_rowid(self.old, name) else _primary_key(self.old, name)
        names = "*" if same_columns else _columns(self.old, name)
        columns = f"rowid, {names}" if order == "rowid" else names
        select = f"SELECT {columns} FROM {quoted(name)} ORDER BY {order}"
        usual = self.old.text_factory
        # As bytes, text need not be UTF-8; and of another type than a BLOB, text stays text.
        self.old.text_factory = self.new.text_factory = bytearray
        try:
            self._same_rows(name, select)
        finally:
            self.old.text_factory = self.new.text_factory = usual

    def _same_rows(self, name: str, select: str) -> None:
        new_rows = self.new.execute(select)
        for number, row in enumerate(self.old.execute(select)):
            other = new_rows.fetchone()
            if other is None or rows_differ(row, other):
                raise ValidationError(f"table {name}, which no step names, would change")
            if number % ROWS_PER_MARK == 0:
                self.mark(name, number)
        if new_rows.fetchone() is not None:
            raise ValidationError(f"table {name}, which no step names, would grow")

    def sound(self) -> None:
        """The new file is sound as a file, and its foreign keys are no worse than before."""
        answer = self.new.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise ValidationError(f"the new file is not sound: {answer}")
        was, is_now = (
            len(c.execute("PRAGMA foreign_key_check").fetchall()) for c in (self.old, self.new)
        )
        if is_now > was:
            raise ValidationError(f"{is_now - was} rows would break a foreign key")

    def tally(
        self,
        contract: Contract,
        touched: set[str],
        before: dict[str, Any],
        strict: set[str],
        limits: tuple[int, int],
    ) -> Tally:
        """Counts and sums of the new file, read record by record where the plan may write. Outside
        the stores of `strict`, and where records are left behind, they are read with care."""
        tally = Tally()
        for name, store in contract.stores.items():
            tally.start(name)
            if name not in touched:
                # What was no store before was not counted; its rows were compared as a table's.
                if name in before["records"]:
                    tally.take(name, before)
                continue
            mixed = contract.has_left(name) or name not in strict
            with lenient_text(self.new) if mixed else _as_it_is():
                for number, (key, text) in enumerate(rows_of(self.new, name)):
                    if number % ROWS_PER_MARK == 0:
                        self.mark(name, number)
                    if not mixed:
                        tally.add(store, key, decode(text))
                        continue
                    record, reason = read_with_care(key, text, limits)
                    if reason:
                        tally.add_unreadable(store)
                    else:
                        tally.add(contract.rules_of(store, key, text), key, record)
        for name in before["records"].keys() - contract.stores.keys() - touched:
            tally.start(name)
            tally.take(name, before)
        return tally

    def no_store_dropped(self, contract: Contract) -> None:
        """No table that was a store and holds records is gone."""
        for name in contract.stores:
            if (
                not has_store(self.new, name)
                and self.old.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 1").fetchone()
            ):
                raise ValidationError(f"the store {name}, which holds records, would be dropped")


class _as_it_is:
    """Stands where nothing is to be entered and left."""

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


def _of_sqlite(name: str) -> bool:
    return name == TABLE or name.startswith("sqlite_")


def _columns(connection: Connection, table: str) -> str:
    info = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    return ", ".join(quoted(row[1]) for row in info)


def _primary_key(connection: Connection, table: str) -> str:
    info = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    return ", ".join(quoted(row[1]) for row in sorted(info, key=lambda row: row[5]) if row[5])


def prove_migration(
    old: Connection,
    new: Connection,
    plan: Plan,
    before: dict[str, Any],
    contracts: Contracts,
    moved: set[int],
    limits: tuple[int, int],
    mark: Callable[[str, int], None],
    may_leave_unsettled: bool = False,
) -> int:
    """All of the above for one bound plan, up or down. Answers the number of unsettled records
    proven.

    Raises ValidationError with the first thing that is not as it must be.
    """
    proof = Proof(old, new, mark)
    try:
        was = rows.contract_at(old, contracts, plan.from_version)
        is_now = rows.contract_at(new, contracts, plan.to_version)
        idle: set[tuple[int, int]] = set()
        proof.same_frame(plan.stores(), schema.rehearse(old, plan, idle))
        if not plan.down:
            applied.check_noted(new, plan, moved, idle)
        proof.no_store_dropped(was)
        strict = judged(plan, contracts, may_leave_unsettled)
        replay = Replay(proof, plan, was, moved, limits, may_leave_unsettled, strict)
        proven = replay.all(before)
        replay.listing()
        after = proof.tally(is_now, plan.stores(), before, strict, limits).as_json()
        differs = difference(before, after, plan.store_groups())
        if differs:
            raise ValidationError(f"the money would move: {differs}")
        if proven != sum(before["unsettled_records"].values()):
            raise ValidationError(f"{proven} unsettled records were found again, not all of them")
        proof.sound()
        version = new.execute("PRAGMA user_version").fetchone()[0]
        if version != plan.to_version:
            raise ValidationError(f"the new file says version {version}, not {plan.to_version}")
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "proving the new file") from error
    return proven
