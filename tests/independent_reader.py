"""A second reader of pos.db, which judges what a run left behind. It imports nothing of `agent`.

Its own SQL, its own JSON, and by hand the definitions that migrations/stores.json states: if the
agent misreads a record, this reader must not misread it the same way. It never touches the file it
judges. It reads a copy of the file and of its side files, made by `cp`: a file opened and closed in
this process would drop every POSIX lock that this process holds on it. Judge end states, not a file
that somebody is writing: the parts are copied one after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Union

STORES = ("transactions", "balances", "metadata", "sync")
DEPTH_MAX = 200  # records of the gateway nest to depth 5; a thousand is an attack on the reader
PROBLEMS_SHOWN = 20
TARGET_VERSION = 3

# A value as it lies in the file: TEXT (bytes that are no UTF-8 as lone surrogates, so that two
# values are equal exactly when their bytes are), BLOB, or NULL.
Raw = Union[str, bytes, None]
Rows = dict[str, dict[str, Raw]]
AnyPath = Union[str, "os.PathLike[str]"]


class NotJson(ValueError):
    """The value is not one JSON text that every reader understands alike; the message says why."""


class Mismatch(AssertionError):
    """The file is not as it must be; the message lists where."""


class Number(NamedTuple):
    """A number by its literal: 10.50 is not 10.5, -0 is not 0, and no digit is ever lost.

    A parsed value holds no int and no float, so `==` on parsed values never takes true for 1.
    """

    literal: str


class Twice(NamedTuple):
    """An object in which a key stands twice: equal only to the same pairs in the same order."""

    pairs: tuple[tuple[str, Any], ...]


class Terminal(NamedTuple):
    """What pos.db holds: the schema version and, per store that is there, value by key."""

    schema_version: int
    stores: Rows


class Unsettled(NamedTuple):
    """Where an unsettled sale lies; `item` is its place in a record that is a list, else None."""

    store: str
    key: str
    item: int | None


# --- files ---------------------------------------------------------------------------------------


def file_sha256(path: AnyPath) -> str:
    """SHA-256 of a file's bytes, in hex, worked out by another process (see the top)."""
    done = subprocess.run(
        ["sha256sum", "--zero", "--", os.fspath(path)], check=True, stdout=subprocess.PIPE
    )
    return done.stdout[:64].decode("ascii")


@contextmanager
def opened(db_path: AnyPath) -> Iterator[sqlite3.Connection]:
    """A connection to a recovered copy of the file; the original is only read.

    A -wal or a hot -journal beside the original is copied with it, and SQLite recovers the copy.
    The -shm is left out: SQLite builds a new one from the -wal.
    """
    source = Path(db_path).resolve(strict=True)
    with tempfile.TemporaryDirectory(prefix="reader-") as folder:
        parts = [source]
        for tail in ("-wal", "-journal"):
            side = source.with_name(source.name + tail)
            if side.exists():
                parts.append(side)
        subprocess.run(
            ["cp", "--no-preserve=mode", "--", *map(os.fspath, parts), folder], check=True
        )
        db = sqlite3.connect(os.path.join(folder, source.name), isolation_level=None)
        db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        try:
            yield db
        finally:
            db.close()


def read_terminal(db_path: AnyPath) -> Terminal:
    """The schema version and every record of the four stores, values as they lie in the file."""
    with opened(db_path) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        return Terminal(version, {store: dict(_rows(db, store)) for store in _present(db)})


def _present(db: sqlite3.Connection) -> list[str]:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    return [store for store in STORES if store in tables]


def _rows(db: sqlite3.Connection, store: str) -> Iterator[tuple[str, Raw]]:
    yield from db.execute(f'SELECT "key", "value" FROM "{store}"')


def schema_of(db_path: AnyPath) -> list[tuple[str, str, str, str | None]]:
    """Every object of the schema as (type, name, table, sql), in order of type and name."""
    with opened(db_path) as db:
        return db.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()


def other_tables(db_path: AnyPath) -> dict[str, tuple[int, str]]:
    """Per table that is not a store: how many rows, and a digest over their values and types.

    Rows count as a bag: the order in which a table gives them plays no part.
    """
    found = {}
    with opened(db_path) as db:
        names = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if name not in STORES
        ]
        for name in names:
            quoted = name.replace('"', '""')
            rows = sorted(repr(row) for row in db.execute(f'SELECT * FROM "{quoted}"'))
            whole = "\n".join(rows).encode("utf-8", "surrogateescape")
            found[name] = (len(rows), hashlib.sha256(whole).hexdigest())
    return found


def soundness(db_path: AnyPath) -> list[str]:
    """What integrity_check and foreign_key_check find wrong; an empty list is a sound file."""
    with opened(db_path) as db:
        found = [str(line) for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
        found += [f"foreign key: {row}" for row in db.execute("PRAGMA foreign_key_check")]
    return found


# --- values --------------------------------------------------------------------------------------


def parse(raw: Raw) -> Any:
    """The value of a JSON text, numbers as `Number`, an object with a key twice as `Twice`.

    Raises NotJson for NULL, a BLOB, bytes that are no UTF-8, what is no JSON by RFC 8259 (NaN and
    Infinity included), half a surrogate pair, and nesting past DEPTH_MAX.
    """
    if not isinstance(raw, str):
        raise NotJson(f"the value is {'NULL' if raw is None else 'a BLOB'}, not text")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotJson("the text is not UTF-8") from error
    _check_depth(raw)
    try:
        value = json.loads(
            raw,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_no_constant,
            object_pairs_hook=_pairs,
        )
    except NotJson:
        raise
    except ValueError as error:
        raise NotJson(f"the text is not JSON: {error}") from error
    if "\\u" in raw:
        _check_surrogates(value)
    return value


def _no_constant(word: str) -> None:
    raise NotJson(f"{word} is no JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    return value if len(value) == len(pairs) else Twice(tuple(pairs))


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return
    depth, quoted, escaped = 0, False, False
    for char in text:
        if quoted:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise NotJson(f"the text nests deeper than {DEPTH_MAX}")
        elif char in "]}":
            depth -= 1


def _check_surrogates(value: Any) -> None:
    if isinstance(value, Number):
        return
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise NotJson("a string holds half a surrogate pair")
    elif isinstance(value, list):
        for part in value:
            _check_surrogates(part)
    elif isinstance(value, (dict, Twice)):
        for key, part in value.items() if isinstance(value, dict) else value.pairs:
            _check_surrogates(key)
            _check_surrogates(part)


def has_duplicate_key(value: Any) -> bool:
    """Whether any object within a parsed value holds a key twice."""
    if isinstance(value, Twice):
        return True
    if isinstance(value, dict):
        return any(has_duplicate_key(part) for part in value.values())
    return isinstance(value, list) and any(has_duplicate_key(part) for part in value)


def same_value(text_a: Raw, text_b: Raw) -> bool:
    """Whether two texts are the same JSON value.

    White space, the order of an object's keys and the way a character is escaped play no part;
    number literals must be the same, digit for digit. A text with a key twice equals only one with
    the same pairs in the same order. What is no JSON equals only the same bytes.
    """
    if type(text_a) is type(text_b) and text_a == text_b:
        return True
    try:
        return bool(parse(text_a) == parse(text_b))
    except NotJson:
        return False


def integer(value: Any) -> int | None:
    """The int of a Number that is written as one, else None."""
    if not isinstance(value, Number) or any(char in value.literal for char in ".eE"):
        return None
    return int(value.literal)


# --- money ---------------------------------------------------------------------------------------


def odd_records(db_path: AnyPath) -> list[tuple[str, str, str]]:
    """(store, key, why) for each record that has no plain value: no JSON, or a key twice."""
    with opened(db_path) as db:
        return [
            (store, key, odd)
            for store in _present(db)
            for key, raw in _rows(db, store)
            for _, odd in (_read(raw),)
            if odd
        ]


def _read(raw: Raw) -> tuple[Any, str]:
    """(value, "") of a plain record, (None, why) of an odd one."""
    try:
        value = parse(raw)
    except NotJson as error:
        return None, str(error)
    return (None, "a key stands twice") if has_duplicate_key(value) else (value, "")


def unsettled(db_path: AnyPath) -> dict[Unsettled, Any]:
    """Each unsettled sale by where it lies, with its parsed value (an odd record: its raw value).

    In `transactions`: each item of `transaction-queue`, each record whose key begins with failed_
    or retry_, each object whose status is pending or processing. In `sync`: every record.
    """
    with opened(db_path) as db:
        return {
            where: value
            for store in _present(db)
            for key, raw in _rows(db, store)
            for where, value in _unsettled_in(store, key, raw)
        }


def unsettled_of(rows: Mapping[str, Mapping[str, Raw]]) -> dict[Unsettled, Any]:
    """The same as `unsettled`, of rows that were read before."""
    return dict(
        found
        for store in STORES
        for key, raw in rows.get(store, {}).items()
        for found in _unsettled_in(store, key, raw)
    )


def _unsettled_in(store: str, key: str, raw: Raw) -> Iterator[tuple[Unsettled, Any]]:
    if store not in ("transactions", "sync"):
        return
    value, odd = _read(raw)
    if odd:
        value = raw
    if store == "transactions" and key == "transaction-queue":
        items: list[tuple[int | None, Any]] = [(None, value)]
        if isinstance(value, list):
            items = list(enumerate(value))
        for place, item in items:
            yield Unsettled(store, key, place), item
        return
    by_key = store == "sync" or key.startswith(("failed_", "retry_"))
    if by_key or (isinstance(value, dict) and value.get("status") in ("pending", "processing")):
        yield Unsettled(store, key, None), value


def money(db_path: AnyPath, unsettled_only: bool = False) -> dict[str, tuple[int, int]]:
    """Per currency how many sales `transactions` holds, and the sum of their amounts.

    The items of `transaction-queue` count one by one. Odd records and records without an amount
    are left out. Raises Mismatch for an amount that is no integer or that has no currency.
    """
    with opened(db_path) as db:
        return _money_of(_rows(db, "transactions"), unsettled_only)


def money_of(
    rows: Mapping[str, Mapping[str, Raw]], unsettled_only: bool = False
) -> dict[str, tuple[int, int]]:
    """The same as `money`, of rows that were read before."""
    return _money_of(iter(rows["transactions"].items()), unsettled_only)


def _money_of(
    records: Iterator[tuple[str, Raw]], unsettled_only: bool
) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for key, raw in records:
        if unsettled_only or key == "transaction-queue":
            sales = [value for _, value in _unsettled_in("transactions", key, raw)]
        else:
            sales = [_read(raw)[0]]
        for sale in sales:
            if not isinstance(sale, dict) or "amount" not in sale:
                continue
            amount, currency = integer(sale["amount"]), sale.get("currency")
            if amount is None or not isinstance(currency, str):
                raise Mismatch(f"{key}: amount {sale['amount']!r} in currency {currency!r}")
            count, total = sums.get(currency, (0, 0))
            sums[currency] = (count + 1, total + amount)
    return sums


def highest_used(rows: Mapping[str, Mapping[str, Raw]]) -> dict[str, int]:
    """The highest `stan` and `receipt` among the plain records of `transactions`; 0 for none."""
    highest = {"stan": 0, "receipt": 0}
    for raw in rows["transactions"].values():
        value, _ = _read(raw)
        if isinstance(value, dict):
            for name, so_far in highest.items():
                highest[name] = max(so_far, integer(value.get(name)) or 0)
    return highest


# --- the end state of the shipped migrations -----------------------------------------------------


def expect_migrated(
    before_rows: Mapping[str, Mapping[str, Raw]],
    after_rows: Mapping[str, Mapping[str, Raw]],
    device_id: str | None,
) -> int:
    """Check that `after_rows` are `before_rows` at schema 3, and return the run's `updatedAt`.

    Rows are {store: {key: value}} as in `Terminal.stores`. Every object record has gained integer
    `schemaVersion` and `updatedAt`, one `updatedAt` for all and none earlier than the newest
    timestamp that was there; transactions without metadata have gained {migratedAt,
    originalVersion: 1, deviceId}; `metadata/nimipay_preferences` lies under `user_preferences`.
    Everything else is the same by value and literal, and what is no plain object is the same byte
    for byte. Raises Mismatch with the first differences.
    """
    problems: list[str] = []
    stamps: set[int] = set()
    for store in STORES:
        old, new = dict(before_rows.get(store, {})), after_rows.get(store, {})
        if store == "metadata" and "nimipay_preferences" in old:
            if "user_preferences" in old:
                raise ValueError("old and new preferences at once: no end state is defined")
            old["user_preferences"] = old.pop("nimipay_preferences")
        problems += [f"{store}/{key} is gone" for key in old.keys() - new.keys()]
        problems += [f"{store}/{key} came from nowhere" for key in new.keys() - old.keys()]
        for key in old.keys() & new.keys():
            why = _not_migrated(store, key, old[key], new[key], device_id, stamps)
            if why:
                problems.append(f"{store}/{key}: {why}")
    if len(stamps) > 1:
        problems.append(f"one run wrote {len(stamps)} different times: {sorted(stamps)[:3]}")
    newest = newest_timestamp(before_rows)
    if stamps and min(stamps) < newest:
        problems.append(f"updatedAt {min(stamps)} is before the newest known timestamp {newest}")
    if problems:
        shown = "\n".join(sorted(problems)[:PROBLEMS_SHOWN])
        raise Mismatch(f"{len(problems)} differences from schema {TARGET_VERSION}:\n{shown}")
    return stamps.pop() if stamps else 0


def _not_migrated(
    store: str, key: str, old: Raw, new: Raw, device_id: str | None, stamps: set[int]
) -> str:
    """Why the new record is not the migrated old one; "" when it is. Adds its times to `stamps`."""
    before, _ = _read(old)
    if not isinstance(before, dict):
        same = type(old) is type(new) and old == new
        return "" if same else "it is no object and must be untouched, but its bytes changed"
    after, odd = _read(new)
    if not isinstance(after, dict):
        return odd or "it is no object any more"
    version, updated = integer(after.get("schemaVersion")), integer(after.get("updatedAt"))
    wanted = _version_of(store, key)
    if version != wanted:
        return f"schemaVersion is {after.get('schemaVersion')!r}, not {wanted}"
    if updated is None:
        return f"updatedAt is {after.get('updatedAt')!r}, no integer"
    stamps.add(updated)
    expected = {**before, "schemaVersion": Number(str(wanted)), "updatedAt": after["updatedAt"]}
    if store == "transactions" and "metadata" not in before:
        expected["metadata"] = {
            "migratedAt": after["updatedAt"],
            "originalVersion": Number("1"),
            "deviceId": device_id,
        }
    wrong = sorted(
        name
        for name in expected.keys() | after.keys()
        if name not in expected or name not in after or expected[name] != after[name]
    )
    return f"not as expected: {', '.join(wrong)}" if wrong else ""


def _version_of(store: str, key: str) -> int:
    if store == "transactions":
        return 2
    return 3 if (store, key) == ("metadata", "user_preferences") else 1


def newest_timestamp(rows: Mapping[str, Mapping[str, Raw]]) -> int:
    """The newest time in milliseconds that a plain record carries as timestamp or updatedAt."""
    newest = 0
    for store in STORES:
        names = ("updatedAt",) if store == "metadata" else ("timestamp", "updatedAt")
        for raw in rows.get(store, {}).values():
            value, _ = _read(raw)
            if isinstance(value, dict):
                newest = max([newest, *(integer(value.get(name)) or 0 for name in names)])
    return newest
