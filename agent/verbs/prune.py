"""Pruning: which settled records and old backups may go, and the deletion of records.

A record may go when the contract's rule fits it, no rule says that it is unsettled, enough newer
records that fit are there, and nobody needs it: no other table refers to it, no migration left it
behind, no counter is known from it alone. Newer is what was inserted later, told by rowid, or by
primary key where a table has none; no clock and no time in a record is asked.
"""

from __future__ import annotations

from agent.core.left_behind import record_digest
from agent.core.steps import field, field_reader
from agent.core.stores import Contract, Counter
from agent.core.terminal import TABLE
from agent.edges import database
from agent.edges.database import SQLITE_ERRORS, has_rowid, quoted, refused_by_sqlite
from agent.ground.codec import decode
from agent.ground.errors import SchemaTooNew, ValidationError
from agent.verbs import rows
from agent.verbs.reading import ROWS_PER_MARK, why_unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from sqlite3 import Connection
    from typing import Any, Callable

    Limits = tuple[int, int]
    Mark = Callable[[str, int], None]


def prunable(
    connection: Connection,
    contract: Contract,
    name: str,
    counters: dict[str, int],
    limits: Limits,
    mark: Mark,
) -> Iterator[tuple[Any, str, str, Any]]:
    """(rowid or key, key, text, record) of each record of a store that may go, newest first.

    `counters` are the readings of a survey, `limits` the largest record and its deepest nesting.
    """
    store = contract.stores[name]
    rule = store.prune
    assert rule is not None
    needed = Needed(connection, contract, name, counters)
    newer = 0
    with database.lenient_text(connection):
        found = connection.execute(in_order(connection, name, "DESC"))
        for number, (at, key, value, referred) in enumerate(found):
            if number % ROWS_PER_MARK == 0:
                mark(name, number)
            record = _record(key, value, limits)
            if not rule.fits(record):
                continue
            newer += 1
            if newer <= rule.keep_newest or referred or needed.keeps(key, record):
                continue
            if store.unsettled_rule(key, record) is None:
                yield at, key, value, record


def _record(key: Any, value: Any, limits: Limits) -> Any:
    """The record as it can be read for sure, else None, which fits no rule."""
    if why_unreadable(key, value, limits[0]):
        return None
    try:
        key.encode()
        value.encode()  # a lone surrogate stands for a byte that is no UTF-8
        return decode(value, limits[1])
    except ValueError:
        return None


def in_order(connection: Connection, store: str, order: str) -> str:
    """A store's rows in the order they were inserted, and whether another table refers to one."""
    by = "rowid" if has_rowid(connection, store) else "key"
    referred = " OR ".join(_referrers(connection, store)) or "0"
    return f"SELECT {by}, key, value, {referred} FROM {quoted(store)} ORDER BY {by} {order}"


def _referrers(connection: Connection, store: str) -> list[str]:
    """One condition per foreign key that leads to a store: a row of it is referred to.

    Of a key of several columns the first one is asked: rather a record too many that is kept.
    """
    found = []
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        seen = set()
        keys = connection.execute(f"PRAGMA foreign_key_list({quoted(table)})").fetchall()
        for number, _, parent, column, target, *_ in keys:
            if parent.lower() == store.lower() and number not in seen:
                seen.add(number)
                referring = f"SELECT {quoted(column)} FROM {quoted(table)}"
                found.append(f"({quoted(target or 'key')} IN ({referring}))")
    return found


class Needed:
    """What keeps a settled record of one store however old it is, told by the record itself."""

    __slots__ = ("_keys", "_left_behind", "_numbers", "_store")

    def __init__(
        self, connection: Connection, contract: Contract, store: str, counters: dict[str, int]
    ) -> None:
        self._store = store
        # The records of the counters themselves and of the terminal's name.
        self._keys = {counter.key for counter in contract.counters if counter.store == store}
        if contract.device_id_at is not None and contract.device_id_at[0] == store:
            self._keys.add(contract.device_id_at[1])
        # The one place that asks for records in quarantine. By name alone: one that was changed
        # since stays as well, so that no row is left that speaks of nothing.
        self._left_behind = set(rows.quarantined(connection).names(store))
        # A counter's highest number, where its own record lags behind or says nothing.
        self._numbers = [
            (field_reader(counter.used_field), counters[counter.name])
            for counter in contract.counters
            if counter.used_store == store
            and counter.name in counters
            and counters[counter.name] != _own_number(connection, counter)
        ]

    def keeps(self, key: str, record: Any) -> bool:
        """Whether the record has to stay."""
        if key in self._keys:
            return True
        if self._left_behind and _name_of(self._store, key) in self._left_behind:
            return True
        for read, number in self._numbers:
            value = read(record)
            if type(value) is int and value == number:
                return True
        return False


def _name_of(store: str, key: str) -> str:
    """What a record is known by among those in quarantine."""
    return record_digest(store, key, "").hex()[:32]


def _own_number(connection: Connection, counter: Counter) -> int | None:
    row = connection.execute(
        f"SELECT value FROM {quoted(counter.store)} WHERE key = ?", (counter.key,)
    ).fetchone()
    try:
        value = field(decode(row[0]), counter.field) if row is not None else None
    except (ValueError, TypeError):
        return None
    return value if type(value) is int else None


def figures(
    connection: Connection,
    contract: Contract,
    counters: dict[str, int],
    limits: Limits,
    mark: Mark,
) -> dict[str, dict[str, int]]:
    """Per store that has a rule: how many records may go, and how many bytes their values have."""
    found = {}
    for name in ruled(contract):
        count = size = 0
        for _, _, text, _ in prunable(connection, contract, name, counters, limits, mark):
            count += 1
            size += len(text.encode())
        found[name] = {"records": count, "bytes": size}
    return found


def check_version(version: int, head: int) -> None:
    """Refuse data that newer software wrote: its contract is not known here."""
    if version > head:
        raise SchemaTooNew(
            f"pos.db has schema {version} and the installed migrations end at {head}; install the "
            "software that belongs to this data",
            version=version,
            target=head,
        )
    if version < 0:
        raise ValidationError(f"pos.db says schema {version}, which nothing writes")


def ruled(contract: Contract) -> list[str]:
    """The stores from which the contract gives anything up."""
    return [name for name, store in contract.stores.items() if store.prune is not None]


# The deletion


def delete(
    connection: Connection,
    name: str,
    chosen: Iterable[tuple[Any, str, str, Any]],
    batch: tuple[int, int],
) -> Iterator[int]:
    """Delete the chosen records of a store from a successor, and with each what our own table
    keeps of it; answers after each commit how many it has deleted.

    `batch` holds the most rows of one commit and the most bytes of pages that it may write.
    """
    kinds = _undo_kinds(connection)
    rows_max = _rows_per_batch(connection, name, len(kinds), *batch)
    part: list[tuple[Any, str]] = []
    try:
        for at, key, _, _ in chosen:
            part.append((at, key))
            if len(part) == rows_max:
                _commit(connection, name, part, kinds)
                yield len(part)
                part = []
        if part:
            _commit(connection, name, part, kinds)
            yield len(part)
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, f"pruning {name}") from error


def _rows_per_batch(
    connection: Connection, name: str, kinds: int, rows_max: int, bytes_max: int
) -> int:
    """So many rows that the pages they touch, one in the table, in each index and in our own table
    for each kind, stay within the journal that the quota has set aside."""
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    indexes = len(connection.execute(f"PRAGMA index_list({quoted(name)})").fetchall())
    return max(min(rows_max, bytes_max // (int(page) * (1 + indexes + kinds))), 1)


def _undo_kinds(connection: Connection) -> list[str]:
    sql = f"SELECT DISTINCT kind FROM {TABLE} WHERE kind > 'undo:' AND kind < 'undo;'"
    return [kind for (kind,) in connection.execute(sql)]


def _commit(
    connection: Connection, name: str, part: list[tuple[Any, str]], kinds: list[str]
) -> None:
    by = "rowid" if has_rowid(connection, name) else "key"
    database.begin(connection)
    sql = f"DELETE FROM {quoted(name)} WHERE {by} = ?"
    connection.executemany(sql, [(at,) for at, _ in part])
    has_moved = rows.count(connection, "moved") > 0
    for _, key in part:
        moves, places = rows.names_before(connection, name, key) if has_moved else ([], [])
        for kind in kinds:
            for place in (rows.place_of(name, key), *places):
                rows.remove_one(connection, kind, place)
        for move in moves:
            rows.remove_one(connection, "moved", move)
    database.commit(connection)
