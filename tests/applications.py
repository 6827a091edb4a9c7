"""A small point-of-sale application in each of its versions, and the migrations between them.

An application of version N reads and writes pos.db of schema N and of no other, in that version's
shape. It shares nothing with `agent`: what it reads back is what a till would show. The migrations
use every kind of declared step, each change such that an application of another version stumbles
over it. Shapes are data; what makes or reads a record is a pure function.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.independent_reader import Number, integer, parse
from tests.terminals import Terminal

HEAD = 5
STAN_MAX = 999_999  # after it comes 1, as stores.json declares
SOLD_MS = 1_780_000_000_000
CURRENCIES = ("EUR", "USDC")

MIGRATIONS = {
    1: """
from agent.core.migration import DEVICE_ID, NOW, set_field
VERSION, NAME = 1, "say in every sale which schema it has"
STEPS = [
    set_field("transactions", "schemaVersion", 1),
    set_field("transactions", "channel", "shop", if_missing=True),
    set_field("transactions", "metadata.till", DEVICE_ID, if_missing=True),
    set_field("balances", "checkedAt", NOW),
]
""",
    2: """
from agent.core.migration import rename_field, sql
VERSION, NAME = 2, "the status is a state, a time says of what, the sale to send is a payload"
STEPS = [
    rename_field("transactions", "status", "state"),
    rename_field("transactions", "timestamp", "at.sold"),
    rename_field("sync", "data", "payload"),
    sql("CREATE INDEX sales_by_size ON transactions(length(value))", "DROP INDEX sales_by_size"),
]
""",
    3: """
from agent.core.migration import map_value, remove_field
VERSION, NAME = 3, "states in the words of the new gateway, which counts tries itself"
WORDS = {"pending": "open", "processing": "sending", "completed": "settled", "failed": "declined"}
STEPS = [
    map_value("transactions", "state", WORDS),
    map_value("transactions", "type", {"sale": "payment"}, other="keep"),
    remove_field("transactions", "retries"),
    remove_field("transactions", "metadata.networkStatus"),
]
""",
    4: """
from agent.core.migration import move_record, set_field, sql
VERSION, NAME = 4, "queue, numbers and preferences lie where the new software looks"
STEPS = [
    sql("CREATE TABLE closings (no INTEGER PRIMARY KEY, sales INTEGER)", "DROP TABLE closings"),
    move_record("transactions", "transaction-queue", to_key="queue"),
    move_record("metadata", "counters", to_key="numbers"),
    move_record("metadata", "nimipay_preferences", to_store="balances", to_key="preferences"),
    set_field("metadata", "movedFrom", "counters", key="numbers"),
]
""",
    5: """
from agent.core.migration import KEEP, UNDO, each
VERSION, NAME = 5, "a basket knows how many lines it has, a balance who says so"
def up(record, context):
    if "items" not in record:
        return KEEP
    lines = record.pop("items")
    record["basket"] = {"count": len(lines), "lines": lines}
    return record
def down(record, context):
    if "basket" not in record:
        return KEEP
    record["items"] = record.pop("basket")["lines"]
    return record
def check(record):
    return "basket" not in record or record["basket"]["count"] == len(record["basket"]["lines"])
def said(record, context):
    if "source" not in record.get("metadata", {}):
        return KEEP
    record["said"] = {"by": record["metadata"].pop("source"), "in": context.version}
    return record
STEPS = [
    each("transactions", up, down, check, fields=["items", "basket"]),
    each("balances", said, UNDO, fields=["said", "metadata.source"]),
]
""",
}
# What the schema has from a version on: the object of a table that is no store, or of an index.
SCHEMA = {2: "sales_by_size", 4: "closings"}


class Shape(NamedTuple):
    """Where a version keeps what, in which words."""

    state: str
    words: dict[str, str]
    sold_at: tuple[str, ...]
    kind: str
    to_send: str
    queue: str
    counters: str
    lines: tuple[str, ...]


# What a till shows of a state, whatever the word for it in the data.
OLD_WORDS = {"open": "pending", "sending": "processing", "settled": "completed"}
OLD_WORDS["declined"] = "failed"
NEW_WORDS = {word: word for word in OLD_WORDS}


def shape(version: int) -> Shape:
    """The shape of a version's records."""
    return Shape(
        state="status" if version < 2 else "state",
        words=OLD_WORDS if version < 3 else NEW_WORDS,
        sold_at=("timestamp",) if version < 2 else ("at", "sold"),
        kind="sale" if version < 3 else "payment",
        to_send="data" if version < 2 else "payload",
        queue="transaction-queue" if version < 4 else "queue",
        counters="counters" if version < 4 else "numbers",
        lines=("items",) if version < 5 else ("basket", "lines"),
    )


def stores_json(head: int) -> dict[str, Any]:
    """The contract of the application of version `head`, which can start on all data up to it."""
    return {
        "format": 1,
        "app_reads": [0, head],
        "versions": [_contract(since) for since in (0, 2, 3, 4) if since <= head],
    }


def _contract(since: int) -> dict[str, Any]:
    of = shape(since)
    sold_at = ".".join(of.sold_at)
    counters = [("stan", STAN_MAX), ("receipt", None)]
    return {
        "since": since,
        "device_id": {"store": "metadata", "key": "device_id"},
        "stores": {
            "transactions": {
                "unsettled": [
                    {"key": of.queue, "each_item": True},
                    {"key_prefix": "failed_"},
                    {"key_prefix": "retry_"},
                    {"field": of.state, "values": [of.words["open"], of.words["sending"]]},
                ],
                "amount": "amount",
                "currency": "currency",
                "timestamps": [sold_at],
            },
            "balances": {"timestamps": ["timestamp", "checkedAt"]},
            "metadata": {},
            "sync": {
                "unsettled": [{"every_record": True}],
                "amount": f"{of.to_send}.amount",
                "currency": f"{of.to_send}.currency",
                "timestamps": ["timestamp"],
            },
        },
        "counters": [
            {
                "name": name,
                "store": "metadata",
                "key": of.counters,
                "field": name,
                "used_in": {"store": "transactions", "field": name},
                "wraps_after": wraps,
            }
            for name, wraps in counters
        ],
    }


def install(terminal: Terminal, head: int, **instead: str) -> Path:
    """Put the software of version `head` on a terminal: its migrations and its contract.

    `instead` replaces or adds files: `m4=TEXT` is the fourth migration.
    """
    folder = terminal.root / "migrations"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.py"):
        path.unlink()
    for version in range(1, head + 1):
        text = instead.get(f"m{version}") or MIGRATIONS[version]
        (folder / f"{version:04d}_of_the_test.py").write_text(text)
    (folder / "stores.json").write_text(json.dumps(stores_json(head)))
    terminal.configure(migrations_dir="/migrations")
    return folder


# --- records -------------------------------------------------------------------------------------


class Sale(NamedTuple):
    """What a till shows of one sale, in every version the same."""

    state: str
    currency: str
    amount: int
    sold_ms: int
    lines: tuple[str, ...]
    note: str


class NotReadable(AssertionError):
    """A record that is not as this version of the application wrote it."""


def new_sale(version: int, key: str, stan: int, receipt: int, refunds: str = "") -> dict[str, Any]:
    """An open sale, or the reversal of another one, as a version writes it."""
    of = shape(version)
    sale: dict[str, Any] = {
        "id": key,
        "type": "reversal" if refunds else of.kind,
        "currency": CURRENCIES[receipt % len(CURRENCIES)],
        "amount": -1250 if refunds else 1000 + receipt,
        of.state: of.words["open"],
        "stan": stan,
        "receipt": receipt,
        "schemaVersion": version,
        "metadata": {"networkStatus": "offline", "version": f"app {version}"},
    }
    if version < 3:
        sale["retries"] = receipt % 4
    if refunds:
        sale["originalId"] = refunds
    _put(sale, of.sold_at, SOLD_MS + receipt)
    _put(sale, of.lines, [{"sku": f"A{receipt}", "qty": 1}, {"sku": "B", "qty": 2}])
    if version >= 5:
        sale["basket"]["count"] = 2
    return sale


def _put(record: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        record = record.setdefault(part, {})
    record[path[-1]] = value


def _get(record: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        record = record.get(part) if isinstance(record, dict) else None
    return record


def read_sale(version: int, key: str, record: Any) -> Sale:
    """What the till of a version shows of a parsed record. Raises NotReadable."""
    of = shape(version)
    if not isinstance(record, dict):
        raise NotReadable(f"{key} is no object")
    meanings = {word: meaning for meaning, word in of.words.items()}
    state, amount = record.get(of.state), integer(record.get("amount"))
    sold_ms, lines = integer(_get(record, of.sold_at)), _get(record, of.lines) or []
    if state not in meanings or amount is None or sold_ms is None or not isinstance(lines, list):
        raise NotReadable(f"{key} is no sale of version {version}: {sorted(record)}")
    skus = tuple(line["sku"] for line in lines)
    return Sale(meanings[state], record["currency"], amount, sold_ms, skus, record.get("note", ""))


def sales_in(version: int, rows: Iterable[tuple[str, str, Any]]) -> dict[str, Sale]:
    """Every sale of parsed (store, key, record) rows, as the till of a version shows them.

    The items of the queue and the sales that wait in `sync` have the first shape in all versions:
    one is a list, which no step reaches into, the other a copy inside another record.
    """
    of = shape(version)
    found: dict[str, Sale] = {}
    for store, key, record in rows:
        if (store, key) == ("transactions", of.queue):
            for item in record:
                found[f"queue/{item['id']}"] = read_sale(0, item["id"], item)
        elif store == "transactions":
            found[f"{store}/{key}"] = read_sale(version, key, record)
        elif store == "sync":
            sent = record.get(of.to_send)
            found[f"{store}/{key}"] = read_sale(0, key, sent)
    return found


def totals(sales: dict[str, Sale]) -> dict[tuple[str, bool], tuple[int, int]]:
    """Count and sum by currency and by whether the money is still to be settled."""
    sums: dict[tuple[str, bool], tuple[int, int]] = {}
    for where, sale in sales.items():
        kept = where.startswith(("queue/", "sync/", "transactions/failed_", "transactions/retry_"))
        group = (sale.currency, kept or sale.state in ("open", "sending"))
        count, amount = sums.get(group, (0, 0))
        sums[group] = (count + 1, amount + sale.amount)
    return sums


def next_number(number: int, wraps_after: int | None) -> int:
    """The number that follows."""
    return 1 if number == wraps_after else number + 1


# --- the application on a file -------------------------------------------------------------------


class Application:
    """The application of one version on pos.db: an ordinary client of SQLite that opens the file,
    does one thing and closes it. Where the schema is not its own it does not start."""

    def __init__(self, version: int, pos: Path) -> None:
        self.version = version
        self.pos = pos
        self.shape = shape(version)
        with self._open():
            pass

    def _open(self) -> closing[sqlite3.Connection]:
        db = sqlite3.connect(f"file:{self.pos}?mode=rw", uri=True, isolation_level=None)
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found != self.version:
            db.close()
            raise NotReadable(f"an application of version {self.version} on schema {found}")
        return closing(db)

    def sell(self, count: int = 1) -> list[tuple[int, int]]:
        """Make sales, each with the next numbers, number and sale in one commit. (STAN, receipt)
        of each."""
        issued = []
        with self._open() as db:
            for _ in range(count):
                db.execute("BEGIN IMMEDIATE")
                stan, receipt = self._next_numbers(db)
                key = f"tx_v{self.version}_{receipt}"
                text = json.dumps(new_sale(self.version, key, stan, receipt))
                db.execute("INSERT INTO transactions (key, value) VALUES (?, ?)", (key, text))
                db.execute("COMMIT")
                issued.append((stan, receipt))
        return issued

    def _next_numbers(self, db: sqlite3.Connection) -> tuple[int, int]:
        where = "FROM metadata WHERE key = ?"
        row = db.execute(f"SELECT value {where}", (self.shape.counters,)).fetchone()
        record = json.loads(row[0])
        record["stan"] = next_number(record["stan"], STAN_MAX)
        record["receipt"] = next_number(record["receipt"], None)
        text = json.dumps(record)
        db.execute("UPDATE metadata SET value = ? WHERE key = ?", (text, self.shape.counters))
        return record["stan"], record["receipt"]

    def settle(self, key: str) -> None:
        """The money of a sale has arrived."""
        self._change(key, "$." + self.shape.state, self.shape.words["settled"])

    def annotate(self, key: str, note: str) -> None:
        """Write a note on a sale."""
        self._change(key, "$.note", note)

    def _change(self, key: str, path: str, value: str) -> None:
        with self._open() as db:
            done = db.execute(
                "UPDATE transactions SET value = json_set(value, ?, ?) WHERE key = ?",
                (path, value, key),
            )
            assert done.rowcount == 1, key

    def close_the_day(self) -> None:
        """Write how much was sold, where the version has a table for it."""
        with self._open() as db:
            db.execute("INSERT INTO closings (sales) SELECT count(*) FROM transactions")

    def queue_reversals(self, keys: list[str]) -> None:
        """Queue a reversal of each sale, in this order."""
        items = [new_sale(0, f"rev_{key}", 0, n, refunds=key) for n, key in enumerate(keys)]
        with self._open() as db:
            db.execute(
                "UPDATE transactions SET value = ? WHERE key = ?",
                (json.dumps(items), self.shape.queue),
            )

    def rows(self) -> Iterator[tuple[str, str, Any]]:
        """Every record as (store, key, parsed value), through its own connection."""
        with self._open() as db:
            db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            for store in ("transactions", "balances", "metadata", "sync"):
                for key, value in db.execute(f"SELECT key, value FROM {store}"):
                    yield store, key, parse(value)

    def sales(self) -> dict[str, Sale]:
        """Every sale that it can read; raises NotReadable for one that it cannot."""
        return sales_in(self.version, self.rows())

    def counters(self) -> dict[str, int]:
        """The numbers that it goes on from."""
        for store, key, record in self.rows():
            if (store, key) == ("metadata", self.shape.counters):
                return {name: int(record[name].literal) for name in ("stan", "receipt")}
        raise NotReadable("there are no counters")

    def used_numbers(self) -> dict[str, set[int]]:
        """Every STAN and receipt number that a sale carries."""
        used: dict[str, set[int]] = {"stan": set(), "receipt": set()}
        for store, _, record in self.rows():
            if store == "transactions" and isinstance(record, dict):
                for name, numbers in used.items():
                    if isinstance(record.get(name), Number):
                        numbers.add(int(record[name].literal))
        return used
