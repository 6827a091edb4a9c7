"""The one reading of pos.db for `plan`: what is there, and what the steps make of some of it.

Records are read as a run would read them. A sample of each store is migrated in memory, which
tells time and growth, and that the steps can be done at all.
"""

from __future__ import annotations

from time import process_time_ns

from agent.core.plan import run_pass
from agent.core.steps import shown
from agent.core.tally import Tally
from agent.edges import clock, database
from agent.ground.codec import decode, encode
from agent.ground.errors import ValidationError
from agent.verbs import survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.cli.apart import Mark
    from agent.core.plan import Pass, Plan
    from agent.core.stores import Contract
    from agent.edges.config import Config

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

    def read(self, connection: Connection, name: str) -> None:
        """Count a store's records and try the steps on some. Raises SqliteError."""
        store = self.contract.stores[name]
        touched = name in self.loaded.stores()
        self.tally.start(name)
        self.bytes[name] = self.unreadable[name] = 0
        self.sampled[name] = self.read_bytes[name] = self.new_bytes[name] = 0
        self.sample_ms[name] = 0.0
        contexts = self.loaded.contexts(clock.wall_ms(), self.config.device_id or "unknown")
        steps = [p for p in self.loaded.passes if p.store == name and p.kind != "move"]
        stride = 0
        for number, (key, value) in enumerate(_rows_in_slices(connection, name)):
            if number % survey.ROWS_PER_MARK == 0:
                self.mark(f"reading {name}")
            reason = survey.why_unreadable(key, value, self.config.profile.record_bytes_max)
            record = None
            if not reason:
                try:
                    record = decode(value, self.config.profile.record_depth_max)
                except ValueError as error:
                    reason = str(error)
            if reason:
                self._unreadable(name, key, reason, touched)
                self.tally.add_unreadable(store)
                continue
            self.bytes[name] += len(value)
            self.tally.add(store, key, record)
            # Every record at first, then ever fewer: the sample is spread over the whole store.
            if touched and number >= stride and self.sampled[name] < SAMPLE_RECORDS:
                stride = number + 1 + number // 16
                self._sample(steps, contexts, name, key, value)

    def _unreadable(self, name: str, key: Any, reason: str, touched: bool) -> None:
        self.unreadable[name] += 1
        if not touched or self.unreadable[name] > UNREADABLE_SHOWN:
            return  # what no step touches is kept as it is; `unreadable` counts it
        error = ValidationError(
            f"{name}/{shown(key)} cannot be migrated: {reason}; correct or settle it, "
            "then start again",
            store=name,
            key=shown(key),
        )
        self.refuse(error, False)

    def _sample(self, steps: list[Pass], contexts: Any, name: str, key: str, value: str) -> None:
        """Migrate a copy of one record: what the steps take, what they make of its size, whether
        they can be done."""
        self.mark(f"trying the steps on {name}")
        started = process_time_ns()
        try:
            record = decode(value)
            for a_pass in steps:
                run_pass(a_pass, key, record, contexts)
            text = encode(record)
        except ValidationError as error:
            self.refuse(error, True)
            return
        self.sample_ms[name] += (process_time_ns() - started) / 1e6
        self.sampled[name] += 1
        self.read_bytes[name] += len(value)
        self.new_bytes[name] += len(text)


def _rows_in_slices(connection: Connection, store: str) -> Iterator[tuple[Any, Any]]:
    """Every (key, value), a slice at a time: between two of them the application may write."""
    by = "rowid" if database.has_rowid(connection, store) else "key"
    select = f"SELECT {by}, key, value FROM {database.quoted(store)}"
    rows = connection.execute(f"{select} ORDER BY {by} LIMIT ?", (SLICE_ROWS,))
    while True:
        seen = 0
        for at, key, value in rows:
            seen, last = seen + 1, at
            yield key, value
        if seen < SLICE_ROWS:
            return
        rows = connection.execute(
            f"{select} WHERE {by} > ? ORDER BY {by} LIMIT ?", (last, SLICE_ROWS)
        )
