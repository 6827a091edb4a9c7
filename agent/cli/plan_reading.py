"""The one reading of pos.db for `plan`: what is there, and what the steps make of some of it.

Records are read as a run would read them. A sample of each store is migrated in memory, which
tells time and growth, and that the steps can be done at all.
"""

from __future__ import annotations

from time import process_time_ns

from agent.core import left_behind
from agent.core.ledger import Ledger
from agent.core.meaning import run_pass
from agent.core.tally import Tally
from agent.edges import database
from agent.ground.codec import decode, encode
from agent.ground.errors import ValidationError
from agent.verbs import reading, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.plan import Pass, Plan
    from agent.core.stores import Contract, Contracts
    from agent.edges.config import Config
    from agent.service.apart import Mark

SAMPLE_RECORDS = 200  # per store, decoded, migrated and encoded to measure and to try the steps
SLICE_ROWS = 1000  # read at once: the application waits for no longer than that takes
UNREADABLE_SHOWN = 5


class Reading:
    """What was found, store by store.

    `refuse` is told what a run would be refused for, and whether once is enough.
    """

    def __init__(
        self,
        config: Config,
        loaded: Plan,
        contract: Contract,
        contracts: Contracts,
        refuse: Callable[[ValidationError, bool], None],
        mark: Mark,
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.contract = contract
        self.refuse = refuse
        self.mark = mark
        self.tally = Tally()
        self.bytes: dict[str, int] = {}
        self.unreadable: dict[str, int] = {}
        self.sampled: dict[str, int] = {}
        self.read_bytes: dict[str, int] = {}  # of the sampled records before
        self.new_bytes: dict[str, int] = {}  # and after the plan
        self.sample_ms: dict[str, float] = {}
        # What the way back of the sampled records would need: rows and their bytes; and how many of
        # the sampled would be left behind.
        self.undo_rows: dict[str, int] = {}
        self.undo_bytes: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.judged = left_behind.judged(loaded, contracts, config.profile.quarantine_unsettled)

    def read(self, connection: Connection, name: str) -> None:
        """Count a store's records and try the steps on some. Raises SqliteError."""
        with database.lenient_text(connection):
            self._read(connection, name)

    def _read(self, connection: Connection, name: str) -> None:
        store = self.contract.stores[name]
        touched = name in self.loaded.stores()
        self.tally.start(name)
        self.bytes[name] = self.unreadable[name] = 0
        self.sampled[name] = self.read_bytes[name] = self.new_bytes[name] = 0
        self.sample_ms[name] = 0.0
        self.undo_rows[name] = self.undo_bytes[name] = self.left[name] = 0
        steps = [p for p in self.loaded.passes if p.store == name and p.kind != "move"]
        mixed = self.contract.has_left(name)
        stride = 0
        limits = (self.config.profile.record_bytes_max, self.config.profile.record_depth_max)
        for number, (key, value) in enumerate(_rows_in_slices(connection, name)):
            if number % reading.ROWS_PER_MARK == 0:
                self.mark(f"reading {name}")
            record, reason = reading.read_with_care(key, value, limits)
            if reason:
                self._unreadable(name, key, value, reason)
                self.tally.add_unreadable(store)
                continue
            self.bytes[name] += len(value)
            rules = self.contract.rules_of(store, key, value) if mixed else store
            self.tally.add(rules, key, record)
            if mixed and self.contract.is_left(name, key, value):
                continue
            # Every record at first, then ever fewer: the sample is spread over the whole store.
            if touched and number >= stride and self.sampled[name] < SAMPLE_RECORDS:
                stride = number + 1 + number // 16
                self._sample(steps, name, key, value)

    def _unreadable(self, name: str, key: Any, value: Any, reason: str) -> None:
        self.unreadable[name] += 1
        if name not in self.judged or self.unreadable[name] > UNREADABLE_SHOWN:
            return  # it is kept as it is; `unreadable` counts it
        if not self.contract.is_left(name, key, value):
            self.refuse(reading.cannot_be_read(name, key, reason), False)

    def _sample(self, steps: list[Pass], name: str, key: str, value: str) -> None:
        """Migrate a copy of one record: what the steps take, what they make of its size, what its
        way back needs, whether they can be done."""
        self.mark(f"trying the steps on {name}")
        started = process_time_ns()
        ledger = Ledger()
        try:
            record = decode(value)
            for a_pass in steps:
                run_pass(a_pass, key, record, self.loaded.contexts, ledger)
            text = encode(record)
        except ValidationError as error:
            self._failed(name, key, value, error)
            return
        self.sample_ms[name] += (process_time_ns() - started) / 1e6
        for row in rows.ledger_rows(name, key, ledger):
            self.undo_rows[name] += 1
            self.undo_bytes[name] += sum(map(len, row))
        self.sampled[name] += 1
        self.read_bytes[name] += len(value)
        self.new_bytes[name] += len(text)

    def _failed(self, name: str, key: str, value: str, error: ValidationError) -> None:
        """A step cannot do the record: a run stops there, or leaves it behind."""
        limits = (self.config.profile.record_bytes_max, self.config.profile.record_depth_max)
        try:
            left_behind.replay_left(
                self.loaded, name, key, value, set(), lambda text: None, limits[1]
            )
        except ValidationError:
            self.refuse(error, True)
            return
        rules = self.contract.stores[name]
        unsettled = rules.unsettled_rule(key, decode(value)) is not None
        if unsettled and not self.config.profile.quarantine_unsettled:
            self.refuse(error, True)
        else:
            self.left[name] += 1


def _rows_in_slices(connection: Connection, store: str) -> Iterator[tuple[Any, Any]]:
    """Every (key, value), a slice at a time: between two of them the application may write."""
    by = "rowid" if database.has_rowid(connection, store) else "key"
    select = f"SELECT {by}, key, value FROM {database.quoted(store)}"
    found = connection.execute(f"{select} ORDER BY {by} LIMIT ?", (SLICE_ROWS,))
    while True:
        seen = 0
        for at, key, value in found:
            seen, last = seen + 1, at
            yield key, value
        if seen < SLICE_ROWS:
            return
        found = connection.execute(
            f"{select} WHERE {by} > ? ORDER BY {by} LIMIT ?", (last, SLICE_ROWS)
        )
