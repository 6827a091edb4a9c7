"""One walk over every store of a file: counts, money, unsettled digests, the newest time, oddities.

It is the measure that the proof compares with, so it reads each record strictly: a record that
cannot be read for sure is never guessed at. Memory stays bounded whatever the file's size.
"""

from __future__ import annotations

from agent.core.left_behind import record_digest
from agent.core.steps import field, field_reader, shown
from agent.core.stores import Contract, Counter
from agent.core.tally import Tally
from agent.core.terminal import TABLE
from agent.edges.database import SQLITE_ERRORS, quoted
from agent.ground.codec import decode
from agent.ground.errors import NeedsTechnician, ValidationError
from agent.ground.limits import TIME_MS_MAX, UNSETTLED_DIGESTS_MAX
from agent.verbs.reading import ROWS_PER_MARK, cannot_be_read, records_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection
    from typing import Any, Callable

ODD_RECORDS_MAX = 20
# No counter gets this far by counting: the record that says so is spoilt. A reading from here on,
# or below zero, is none, in a survey as in the header of a backup that is to be restored.
COUNTER_MAX = 10**30


class Survey:
    """What one walk found. `digests` is None where there were too many to hold."""

    __slots__ = (
        "_own",
        "bytes_by_store",
        "counters",
        "digests",
        "newest_ms",
        "odd",
        "odd_count",
        "tally",
    )

    def __init__(self) -> None:
        self.tally = Tally()
        self.digests: list[bytes] | None = []
        self.newest_ms = 0
        self.bytes_by_store: dict[str, int] = {}
        # Records nobody judges that could not be read: how many, and the first of them as
        # (store, key, reason).
        self.odd_count = 0
        self.odd: list[tuple[str, str, str]] = []
        self.counters: dict[str, int] = {}
        # What a counter's own record said when the walk began.
        self._own: dict[str, int] = {}

    def add_digest(self, digest: bytes) -> None:
        """Keep a digest while they fit; beyond that they are made again range by range."""
        if self.digests is not None:
            self.digests.append(digest)
            if len(self.digests) > UNSETTLED_DIGESTS_MAX:
                self.digests = None

    def watch(self, counter: Counter, value: Any) -> None:
        """Take one reading of a counter; what is none is passed over.

        Numbers used by a counter that wraps have no highest among themselves. Each is measured
        from the counter's own record, and the one furthest ahead of that counts.
        """
        if not is_reading(value):
            return
        name = counter.name
        start = self._own.get(name)
        if start is None:
            known = self.counters.get(name)
            self.counters[name] = value if known is None else counter.higher(known, value)
        elif counter.ahead(start, value) > counter.ahead(start, self.counters[name]):
            self.counters[name] = value


def is_reading(value: Any) -> bool:
    """Whether a value can be a counter's number."""
    return type(value) is int and 0 <= value < COUNTER_MAX


def check_stores(connection: Connection, contract: Contract) -> None:
    """Refuse a file whose tables are not the stores that stores.json speaks of.

    Raises NeedsTechnician when none is there and ValidationError when one is missing or different.
    """
    kinds = dict(
        connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table','view')")
    )
    missing = [name for name in contract.stores if name not in kinds]
    if len(missing) == len(contract.stores):
        raise NeedsTechnician(
            "pos.db holds none of the application's stores "
            f"({', '.join(contract.stores)}): it is empty or another file; restore a backup",
            cause="NO_STORES",
        )
    if missing:
        raise ValidationError(f"pos.db has no store {missing[0]}", store=missing[0])
    encoding = connection.execute("PRAGMA encoding").fetchone()[0]
    if encoding != "UTF-8":
        # SQLite mends unsound UTF-16 while it converts it, so no reader sees what is there.
        raise ValidationError(f"pos.db keeps its text as {encoding}; only UTF-8 can be migrated")
    _check_own_table(connection)
    for name in contract.stores:
        columns = _columns(connection, name)
        if kinds[name] != "table" or columns != [("key", "TEXT", True), ("value", "TEXT", False)]:
            found = ", ".join(column[0] for column in columns)
            raise ValidationError(
                f"{name} is a {kinds[name]} with the columns ({found}), not a store "
                "(key TEXT PRIMARY KEY, value TEXT)",
                store=name,
            )


def _columns(connection: Connection, table: str) -> list[tuple[str, str, bool]]:
    """(name, type, whether in the primary key) of every column, generated and hidden ones too."""
    rows = connection.execute(f"PRAGMA table_xinfo({quoted(table)})").fetchall()
    if not rows:  # SQLite before 3.26, which has no generated columns either
        rows = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    return [(row[1], str(row[2]).upper(), bool(row[5])) for row in rows]


def _check_own_table(connection: Connection) -> None:
    """Our table's name must not be in use for something else."""
    found = connection.execute(
        "SELECT type FROM sqlite_master WHERE lower(name) = ?", (TABLE,)
    ).fetchone()
    if found is None:
        return
    names = [column[0] for column in _columns(connection, TABLE)]
    if found[0] != "table" or names != ["kind", "key", "value"]:
        raise ValidationError(f"pos.db has a {found[0]} of its own named {TABLE}; rename it")


def survey(
    connection: Connection,
    contract: Contract,
    judged: set[str],
    limits: tuple[int, int],
    mark: Callable[[str, int], None],
) -> Survey:
    """Walk every store once. `mark(store, records so far)` is called as it goes.

    A record that cannot be read stops the walk with ValidationError in the stores of `judged`,
    unless it was left behind before. Elsewhere it is counted in `odd`, and as unsettled where the
    store holds unsettled records at all: what cannot be read must not be lost.
    """
    found = Survey()
    for counter in contract.counters:
        own = _own_reading(connection, counter)
        if own is not None:
            found._own[counter.name] = found.counters[counter.name] = own
    done = 0
    for name, store in contract.stores.items():
        found.tally.start(name)
        times = [field_reader(path) for path in store.timestamps]
        counters = _counters_in(contract, name)
        mixed = contract.has_left(name)
        size = 0
        strict = name in judged
        rows = records_of(connection, name, strict and not mixed, limits)
        for key, value, record, reason in rows:
            done += 1
            if done % ROWS_PER_MARK == 0:
                mark(name, done)
            if reason:
                known = mixed and contract.is_left(name, key, value)
                if strict and not known:
                    raise cannot_be_read(name, key, reason)
                found.tally.add_unreadable(store)
                if not known:
                    if len(found.odd) < ODD_RECORDS_MAX:
                        found.odd.append((name, shown(key), reason))
                    found.odd_count += 1
                if store.rules:
                    found.add_digest(record_digest(name, key, value))
                continue
            size += len(value)
            rules = contract.rules_of(store, key, value) if mixed else store
            if found.tally.add(rules, key, record):
                found.add_digest(record_digest(name, key, value))
            for read in times:
                time = read(record)
                if type(time) is int and found.newest_ms < time <= TIME_MS_MAX:
                    found.newest_ms = time
            for counter, only_key, read in counters:
                if only_key is None or only_key == key:
                    found.watch(counter, read(record))
        found.bytes_by_store[name] = size
    if found.digests is not None:
        found.digests.sort()
    return found


def _own_reading(connection: Connection, counter: Counter) -> int | None:
    """What a counter's own record says, or None where it says nothing that can be read."""
    try:
        row = connection.execute(
            f"SELECT value FROM {quoted(counter.store)} WHERE key = ?", (counter.key,)
        ).fetchone()
        value = field(decode(row[0]), counter.field) if row is not None else None
    except (*SQLITE_ERRORS, ValueError, TypeError):
        return None
    return value if is_reading(value) else None


def _counters_in(
    contract: Contract, store: str
) -> list[tuple[Counter, str | None, Callable[[Any], Any]]]:
    """Where a store's records tell of a counter: (counter, its own record or None for any, how)."""
    found: list[tuple[Counter, str | None, Callable[[Any], Any]]] = []
    for counter in contract.counters:
        if counter.store == store:
            found.append((counter, counter.key, field_reader(counter.field)))
        if counter.used_store == store:
            found.append((counter, None, field_reader(counter.used_field)))
    return found


def digest_ranges(unsettled: int) -> list[tuple[bytes, bytes]]:
    """Ranges of the first byte pair that split the unsettled digests into parts that fit memory."""
    parts = max(1, -(-unsettled * 2 // UNSETTLED_DIGESTS_MAX))
    edges = [65536 * i // parts for i in range(parts + 1)]
    return [
        (low.to_bytes(2, "big"), high.to_bytes(2, "big") if high < 65536 else b"\xff\xff\xff")
        for low, high in zip(edges, edges[1:])
    ]


def unsettled_digests(
    connection: Connection,
    contract: Contract,
    found: Survey,
    limits: tuple[int, int],
    mark: Callable[[str, int], None],
) -> Iterator[bytes]:
    """All unsettled digests of a surveyed file, sorted, a bounded part of them in memory."""
    if found.digests is not None:
        yield from found.digests
        return
    total = sum(found.tally.unsettled_records.values())
    for low, high in digest_ranges(total):
        part: list[bytes] = []
        for name, store in contract.stores.items():
            if not store.rules:
                continue
            mixed = contract.has_left(name)
            rows = records_of(connection, name, False, limits)
            for number, (key, value, record, reason) in enumerate(rows):
                rules = contract.rules_of(store, key, value) if mixed else store
                if reason or rules.unsettled_rule(key, record) is not None:
                    digest = record_digest(name, key, value)
                    if low <= digest[:2] and digest < high:
                        part.append(digest)
                if number % ROWS_PER_MARK == 0:
                    mark(name, number)
        part.sort()
        yield from part
