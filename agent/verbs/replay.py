"""The proof's heart: each unsettled record of the old file, put through the plan's plain reading,
must equal the record in the new file, wherever the plan puts it, on the way up as on the way down.

What a way back will need is compared as well, so that a rollback can be promised; and so is what
was left behind.
"""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.left_behind import brought_up, first_naming, replay_left
from agent.core.meaning import Move, replay
from agent.core.plan import Plan
from agent.core.steps import shown, shown_path, undeclared_change
from agent.core.terminal import TABLE
from agent.edges.database import lenient_text, quoted
from agent.ground.codec import decode, encode, same_value
from agent.ground.errors import ValidationError
from agent.verbs import rows
from agent.verbs.reading import ROWS_PER_MARK, check_grown, read_with_care, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.stores import Contract, Store
    from agent.verbs.prove import Proof


class Replay:
    """A bound plan over the old file's unsettled records, held against the new file."""

    def __init__(
        self,
        proof: Proof,
        plan: Plan,
        contract: Contract,
        moved: set[int],
        limits: tuple[int, int],
        may_leave_unsettled: bool,
        strict: set[str],
    ) -> None:
        """`contract` are the old file's rules, with what was left behind in it. In the stores of
        `strict` every other record could be read before the run."""
        self.proof = proof
        self.old: Connection = proof.old
        self.new: Connection = proof.new
        self.plan = plan
        self.contract = contract
        self.moved = moved
        self.limits = limits
        self.may_leave = may_leave_unsettled
        self.strict = strict
        self.left_before = rows.quarantined(self.old)
        self.left = rows.quarantined(self.new)
        self.versions = [m.version for m in plan.migrations]
        self.ledger_of = rows.ledger_reader(self.old, self.versions) if plan.down else None

    def all(self, before: dict[str, Any]) -> int:
        """Every unsettled record, chosen in the old file by the old rules. Answers how many there
        were; stores outside the plan are equal row by row already."""
        proven = 0
        touched = self.plan.stores()
        for name, store in self.contract.stores.items():
            if not store.rules:
                continue
            if name not in touched:
                proven += before["unsettled_records"][name]
            elif self._needs_care(name):
                with lenient_text(self.old), lenient_text(self.new):
                    proven += self._mixed_store(name, store)
            else:
                proven += self._store(name, store)
        return proven

    def listing(self) -> None:
        """Upwards every record that the new file lists as left is there just so, a settled one
        too: it has not been changed after it was listed, nor has a row been left of none."""
        for name in self.plan.stores() if not self.plan.down else ():
            if not self.left.in_store(name):
                continue
            found = 0
            with lenient_text(self.new):
                for number, (key, value) in enumerate(rows_of(self.new, name)):
                    if number % ROWS_PER_MARK == 0:
                        self.proof.mark(name, number)
                    found += self.left.of(name, key, value) is not None
            if found != len(self.left.names(name)):
                raise ValidationError(f"{name} would hold other records than were left behind")

    def _needs_care(self, name: str) -> bool:
        if name not in self.strict:
            return True
        return self.left.in_store(name) or self.left_before.in_store(name)

    def _store(self, name: str, store: Store) -> int:
        proven = 0
        for number, (key, text) in enumerate(rows_of(self.old, name)):
            if number % ROWS_PER_MARK == 0:
                self.proof.mark(name, number)
            if not store.may_be_unsettled(key, text):
                continue
            record = decode(text)
            if store.unsettled_rule(key, record) is not None:
                self._one(name, key, text, record, None)
                proven += 1
        return proven

    def _mixed_store(self, name: str, store: Store) -> int:
        """A store with records that were left behind, before or now, or that nobody judged: each is
        read with care."""
        proven = 0
        for number, (key, text) in enumerate(rows_of(self.old, name)):
            if number % ROWS_PER_MARK == 0:
                self.proof.mark(name, number)
            record, reason = read_with_care(key, text, self.limits)
            if reason:
                self._stays(name, key, text)
                proven += 1
                continue
            rules = self.contract.rules_of(store, key, text)
            if rules.unsettled_rule(key, record) is None:
                continue
            left = self.left_before.of(name, key, text)
            if left is None or self.plan.down:
                self._one(name, key, text, record, left.version if left is not None else None)
            else:
                self._left_one(name, key, text, record, left.version)
            proven += 1
        return proven

    def _left_one(self, name: str, key: str, text: str, record: Any, version: int) -> None:
        """A record that was left behind: brought up to the plan now, or left again."""
        ledger = Ledger()
        try:
            if brought_up(self.plan, name, key, record, version, ledger):
                after = encode(record)
                check_grown(name, key, after, self.limits)
                text = after
        except ValidationError:
            self._stays(name, key, text)
            return
        self._same_ledgers({(name, key): ledger})
        self._one(name, key, text, decode(text), None)

    def _one(self, name: str, key: str, text: str, record: Any, at: int | None) -> None:
        ledgers: dict[tuple[str, str], Ledger] = {}

        def made(store: str, key: str) -> Ledger:
            return ledgers.setdefault((store, key), Ledger())

        plan = self.plan
        try:
            new_store, new_key, changed, fields = replay(
                plan, name, key, record, plan.contexts, self.moved, self.ledger_of or made, at
            )
            if changed:
                check_grown(name, key, encode(record), self.limits)
        except ValidationError:
            if plan.down or not self.may_leave:
                raise
            self._may_be_left(name, key, text)
            return
        place = (new_store, new_key)
        if not plan.down and self._version_left(*place, self._value(*place)) is not None:
            self._may_be_left(name, key, text)
            return
        self._found_as(name, key, place, encode(record) if changed else text)
        # On the way down a record stays listed until it has come to the version it was left at.
        below = plan.down and at is not None and at < plan.to_version
        self._is_listed_at(name, key, place, self._value(*place), at if below else None)
        if not plan.down:
            self._same_ledgers(ledgers)
        if not changed:
            return
        row = self._value(*place)
        outside = undeclared_change(decode(text), decode(row), fields)
        if outside is not None:
            raise ValidationError(
                f"unsettled record {name}/{shown(key)} would change in {shown_path(outside)}, "
                "which no step declares"
            )

    def _may_be_left(self, name: str, key: str, text: str) -> None:
        def check(grown: str) -> None:
            check_grown(name, key, grown, self.limits)

        ledgers: dict[tuple[str, str], Ledger] = {}
        store, new_key, expected, version = replay_left(
            self.plan, name, key, text, self.moved, check, self.limits[1], self.left.of, ledgers
        )
        self._found_as(name, key, (store, new_key), expected)
        value = self._value(store, new_key)
        if expected == text and value != text:
            raise ValidationError(f"{name}/{shown(key)}, which was left behind, would change")
        self._is_listed_at(name, key, (store, new_key), value, version)
        self._same_ledgers(ledgers)

    def _stays(self, name: str, key: Any, text: Any) -> None:
        """A record that nobody can bring up or down is byte for byte as it was, and listed where
        the plan has to do with it."""
        place = (name, key)
        for number, a_pass in enumerate(self.plan.passes):
            if number in self.moved and Move(a_pass).source == place:
                place = Move(a_pass).target
        # As bytes, a key may be one that is no text, or none that is UTF-8.
        known, given = "?", place[1]
        if type(given) is str:
            known, given = "CAST(? AS TEXT)", given.encode("utf-8", "surrogateescape")
        found = self.new.execute(
            f"SELECT value FROM {quoted(place[0])} WHERE key IS {known}", (given,)
        ).fetchone()
        if found is None or found[0] != text or type(found[0]) is not type(text):
            raise ValidationError(f"{name}/{shown(key)}, which was left behind, would change")
        left = self.left_before.of(name, key, text)
        version = left.version if left is not None else None
        if self.plan.down and version is not None:
            version = min(version, self.plan.to_version)
        elif left is None and not self.plan.down:
            named_by = first_naming(self.plan, name, key)
            version = named_by - 1 if named_by is not None else None
        self._is_listed_at(name, key, place, text, version)

    def _is_listed_at(
        self, name: str, key: Any, place: tuple[str, Any], value: Any, version: int | None
    ) -> None:
        """The new file lists the record as left at this version, or with None not at all."""
        listed = self._version_left(*place, value)
        if listed != version:
            was = "was not left behind and is listed as that"
            if version is not None:
                was = f"was left behind at schema {version} and is not listed as that"
            raise ValidationError(f"{name}/{shown(key)} {was}")

    def _version_left(self, store: str, key: Any, value: Any) -> int | None:
        row = self.left.of(store, key, value)
        return row.version if row is not None else None

    def _value(self, store: str, key: str) -> Any:
        row = self.new.execute(
            f"SELECT value FROM {quoted(store)} WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else row[0]

    def _found_as(self, name: str, key: str, place: tuple[str, str], expected: str) -> None:
        value = self._value(*place)
        if value is None:
            raise ValidationError(f"unsettled record {name}/{shown(key)} would be lost")
        # Another way of running the same steps may write the same value in other bytes.
        if value != expected and (
            type(value) is not str or not same_value(decode(value), decode(expected))
        ):
            raise ValidationError(
                f"unsettled record {name}/{shown(key)} is not what the plan makes of it"
            )

    def _same_ledgers(self, ledgers: dict[tuple[str, str], Ledger]) -> None:
        """What the way back of a record needs is in the new file, word for word."""
        for (store, key), ledger in ledgers.items():
            for kind, place, value in rows.ledger_rows(store, key, ledger):
                row = self.new.execute(
                    f"SELECT value FROM {TABLE} WHERE kind = ? AND key = ?", (kind, place)
                ).fetchone()
                if row is None or row[0] != value:
                    raise ValidationError(
                        f"what a way back of {store}/{shown(key)} needs would be lost"
                    )
