"""The proof: the successor against the original, both read from flash, before anything is switched.

Not "looks right" but: every unsettled record is what the plan's plain reading makes of the old one,
wherever the plan puts it; counts and sums have not moved; nothing outside the plan differs.
"""

from __future__ import annotations

from agent.core.plan import Plan, replay
from agent.core.steps import shown, undeclared_change
from agent.core.stores import Contract
from agent.core.tally import Tally, difference
from agent.core.terminal import TABLE
from agent.edges.database import (
    SqliteError,
    has_rowid,
    quoted,
    refused_by_sqlite,
    rows_differ,
    schema_of,
)
from agent.ground.codec import decode, encode, same_value
from agent.ground.errors import ValidationError
from agent.verbs.survey import ROWS_PER_MARK, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.migration import Context

# PRAGMAs that a copy must not change; the application chose them.
KEPT_PRAGMAS = ("application_id", "encoding", "page_size", "auto_vacuum")


class Proof:
    """Two open files, the old and the new, and a way to show that the work goes on."""

    __slots__ = ("mark", "new", "old")

    def __init__(self, old: Connection, new: Connection, mark: Callable[[str, int], None]) -> None:
        self.old = old
        self.new = new
        self.mark = mark

    def same_frame(self, plan_stores: set[str]) -> None:
        """Schema, settings and every table outside the plan are as they were."""
        old, new = schema_of(self.old), schema_of(self.new)
        for schema in (old, new):
            schema.pop(("table", TABLE), None)
        if old != new:
            changed = sorted(
                name
                for kind, name in old.keys() | new.keys()
                if old.get((kind, name)) != new.get((kind, name))
            )
            raise ValidationError(f"the schema would change: {', '.join(changed)}")
        for pragma in KEPT_PRAGMAS:
            was, is_now = (
                c.execute(f"PRAGMA {pragma}").fetchone()[0] for c in (self.old, self.new)
            )
            if was != is_now:
                raise ValidationError(f"{pragma} would change from {was} to {is_now}")
        for kind, name in sorted(old):
            if kind == "table" and name not in plan_stores and not _of_sqlite(name):
                self._same_table(name)

    def _same_table(self, name: str) -> None:
        order = "rowid" if has_rowid(self.old, name) else _primary_key(self.old, name)
        columns = "rowid, *" if order == "rowid" else "*"
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

    def replayed(
        self,
        plan: Plan,
        contract: Contract,
        before: dict[str, Any],
        contexts: dict[int, Context],
        moved: set[int],
    ) -> int:
        """Every unsettled record, chosen in the old file, has exactly its planned form in the new
        one. Answers how many there were; stores outside the plan are equal row by row already."""
        proven = 0
        touched = plan.stores()
        for name, store in contract.stores.items():
            if not store.rules:
                continue
            if name not in touched:
                proven += before["unsettled_records"][name]
                continue
            for number, (key, text) in enumerate(rows_of(self.old, name)):
                if number % ROWS_PER_MARK == 0:
                    self.mark(name, number)
                if not store.may_be_unsettled(key, text):
                    continue
                record = decode(text)
                if store.unsettled_rule(key, record) is None:
                    continue
                self._replayed_one(plan, name, key, text, record, contexts, moved)
                proven += 1
        return proven

    def _replayed_one(
        self,
        plan: Plan,
        name: str,
        key: str,
        text: str,
        record: Any,
        contexts: dict[int, Context],
        moved: set[int],
    ) -> None:
        new_store, new_key, changed, fields = replay(plan, name, key, record, contexts, moved)
        expected = encode(record) if changed else text
        row = self.new.execute(
            f"SELECT value FROM {quoted(new_store)} WHERE key = ?", (new_key,)
        ).fetchone()
        if row is None:
            raise ValidationError(f"unsettled record {name}/{shown(key)} would be lost")
        # Another way of running the same steps may write the same value in other bytes.
        if row[0] != expected and (
            type(row[0]) is not str or not same_value(decode(row[0]), decode(expected))
        ):
            raise ValidationError(
                f"unsettled record {name}/{shown(key)} is not what the plan makes of it"
            )
        outside = undeclared_change(decode(text), decode(row[0]), fields) if changed else None
        if outside is not None:
            raise ValidationError(
                f"unsettled record {name}/{shown(key)} would change in {'.'.join(outside)}, "
                "which no step declares"
            )

    def tally(self, contract: Contract, touched: set[str], before: dict[str, Any]) -> Tally:
        """Counts and sums of the new file, read record by record where the plan may write."""
        tally = Tally()
        for name, store in contract.stores.items():
            tally.start(name)
            if name not in touched:
                tally.take(name, before)
                continue
            for number, (key, text) in enumerate(rows_of(self.new, name)):
                tally.add(store, key, decode(text))
                if number % ROWS_PER_MARK == 0:
                    self.mark(name, number)
        return tally


def _of_sqlite(name: str) -> bool:
    return name == TABLE or name.startswith("sqlite_")


def _primary_key(connection: Connection, table: str) -> str:
    info = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    return ", ".join(quoted(row[1]) for row in sorted(info, key=lambda row: row[5]) if row[5])


def prove_migration(
    old: Connection,
    new: Connection,
    plan: Plan,
    before: dict[str, Any],
    contracts_at: tuple[Contract, Contract],
    contexts: dict[int, Context],
    moved: set[int],
    mark: Callable[[str, int], None],
) -> int:
    """All of the above for one migration. Answers the number of unsettled records proven.

    Raises ValidationError with the first thing that is not as it must be.
    """
    proof = Proof(old, new, mark)
    try:
        proof.same_frame(plan.stores())
        proven = proof.replayed(plan, contracts_at[0], before, contexts, moved)
        after = proof.tally(contracts_at[1], plan.stores(), before).as_json()
        differs = difference(before, after, plan.store_groups())
        if differs:
            raise ValidationError(f"the money would move: {differs}")
        if proven != sum(before["unsettled_records"].values()):
            raise ValidationError(f"{proven} unsettled records were found again, not all of them")
        proof.sound()
        version = new.execute("PRAGMA user_version").fetchone()[0]
        if version != plan.to_version:
            raise ValidationError(f"the new file says version {version}, not {plan.to_version}")
    except SqliteError as error:
        raise refused_by_sqlite(error, "proving the new file") from error
    return proven
