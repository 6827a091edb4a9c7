"""Writes a sample terminal's root folder: config.json, pos.db at schema 0, the empty folders.

The file is built without journal and without syncs, and synced once at the end; what a cut leaves
half-made is thrown away by whoever asked for it. Triggers come after the rows, so that making a
terminal fires none of them.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.termsim.recipe import Recipe, RecipeError
from tools.termsim.records import Terminal
from tools.termsim.shapes import Row

STORES = ("transactions", "balances", "metadata", "sync")
BUILD_CACHE_KIB = 262_144  # random keys touch pages all over the file while it grows
SHIFT_SALES_MAX = 1_000

# Tables of the application that the agent has no business with. The odd spacing and the comment
# are deliberate: a trigger that is put back must be put back word for word.
EXTRA_TABLES = (
    "CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, tx_key TEXT NOT NULL, kind TEXT)",
    "CREATE TABLE shifts (id INTEGER PRIMARY KEY, cashier TEXT NOT NULL, closed INTEGER DEFAULT 0)",
    "CREATE TABLE shift_sales (shift_id INTEGER NOT NULL REFERENCES shifts(id), "
    "tx_key TEXT NOT NULL REFERENCES transactions(key), PRIMARY KEY (shift_id, tx_key))",
    "CREATE INDEX shift_sales_by_key ON shift_sales(tx_key)",
    "CREATE VIEW open_shifts AS SELECT s.id, s.cashier, count(x.tx_key) AS sales FROM shifts s "
    "LEFT JOIN shift_sales x ON x.shift_id = s.id WHERE s.closed = 0 GROUP BY s.id",
)
EXTRA_TRIGGERS = (
    "CREATE TRIGGER   resend_changed_sale AFTER UPDATE ON transactions\n"
    "BEGIN\n"
    "  -- the gateway sends whatever lands here\n"
    "  INSERT INTO outbox (tx_key, kind) VALUES (new.key, 'changed');\n"
    "END",
    "CREATE TRIGGER resend_gone_setting AFTER DELETE ON metadata BEGIN "
    "INSERT INTO outbox (tx_key, kind) VALUES (old.key, 'gone'); END",
)


@dataclass(frozen=True)
class Summary:
    """What was made, and the money truth that a reader of the file must find again."""

    root: Path
    recipe: Recipe
    device_id: str
    records: dict[str, int]
    unsettled: dict[str, int]
    money: dict[str, dict[str, dict[str, int]]]
    counters: dict[str, int]
    bad: dict[str, int]
    transaction_bytes_mean: int
    file_bytes: int
    pages: int
    free_pages: int

    @property
    def db_path(self) -> Path:
        """Where pos.db lies."""
        return self.root / "data" / "pos.db"

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints; sums are integers in minor units.

        `unsettled.sales` are the pending and processing `tx_` records; `queued` counts the items
        of the queue; `all` is every unsettled record or item of the stores. `money` speaks of the
        transactions store, queue items included, bad records left out.
        """
        return {
            "root": str(self.root),
            "profile": self.recipe.profile,
            "seed": self.recipe.seed,
            "schema": 0,
            "device_id": self.device_id,
            "records": self.records,
            "unsettled": self.unsettled,
            "money": self.money,
            "counters": self.counters,
            "bad": self.bad,
            "transaction_bytes_mean": self.transaction_bytes_mean,
            "file_bytes": self.file_bytes,
            "pages": self.pages,
            "free_pages": self.free_pages,
        }


def make_terminal(root: Path, recipe: Recipe) -> Summary:
    """Make the terminal that the recipe describes under `root` and say what is in it.

    Raises RecipeError when the recipe is impossible, or when `root` is there and is not an empty
    folder: nothing of another terminal is ever overwritten.
    """
    terminal = Terminal(recipe)
    claim(root)
    write_folders(root, recipe)
    db_path = root / "data" / "pos.db"
    records, mean = write_database(db_path, terminal)
    pages, free_pages = finish(db_path, recipe.journal)
    unsettled = {"sales": recipe.unsettled, "queued": 3, "failed": 2, "retry": 2}
    unsettled["sync"] = records["sync"]
    unsettled["all"] = sum(unsettled.values())
    return Summary(
        root=root,
        recipe=recipe,
        device_id=terminal.device_id,
        records=records,
        unsettled=unsettled,
        money={"total": terminal.total.as_json(), "unsettled": terminal.unsettled.as_json()},
        counters=terminal.counters,
        bad=terminal.bad,
        transaction_bytes_mean=mean,
        file_bytes=db_path.stat().st_size,
        pages=pages,
        free_pages=free_pages,
    )


def claim(root: Path) -> None:
    """Make the folder, or raise RecipeError when something is there already."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        taken = any(root.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise RecipeError(f"{root} is not a folder; give a new or an empty one") from error
    except OSError as error:
        raise RecipeError(f"{root} cannot be used: {error.strerror}") from error
    if taken:
        raise RecipeError(f"{root} is not empty; give a new or an empty folder")


def write_folders(root: Path, recipe: Recipe) -> None:
    """The config and the folders that an installed terminal has."""
    for folder in ("etc/posagent", "data/posagent/backups", "run/posagent"):
        (root / folder).mkdir(parents=True)
    (root / "run" / "posagent").chmod(0o750)
    config = {"profile": recipe.profile, **recipe.overrides}
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (root / "etc" / "posagent" / "config.json").write_text(text + "\n", encoding="utf-8")


def write_database(db_path: Path, terminal: Terminal) -> tuple[dict[str, int], int]:
    """Fill pos.db. Returns the rows per store and the mean length of a `tx_` value in bytes."""
    recipe = terminal.recipe
    db = sqlite3.connect(db_path, isolation_level=None)
    try:
        db.execute(f"PRAGMA page_size = {recipe.page_size}")
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(f"PRAGMA cache_size = -{BUILD_CACHE_KIB}")
        tail = " WITHOUT ROWID" if recipe.layout == "without-rowid" else ""
        for store in STORES:
            db.execute(f"CREATE TABLE {store} (key TEXT PRIMARY KEY, value TEXT){tail}")
        filler = Filler(db, recipe)
        for rows in terminal.transactions():
            insert(db, "transactions", rows)
            filler.keep_up()
        make_not_utf8(db, terminal.not_utf8)
        insert(db, "balances", terminal.balances())
        insert(db, "metadata", terminal.metadata())
        insert(db, "sync", terminal.sync())
        if recipe.extra_tables:
            write_extra_tables(db, terminal)
        filler.keep_up()
        filler.drop()
        records = {s: db.execute(f"SELECT count(*) FROM {s}").fetchone()[0] for s in STORES}
        mean = db.execute(
            "SELECT avg(length(CAST(value AS BLOB))) FROM transactions WHERE key LIKE 'tx~_%' "
            "ESCAPE '~'"
        ).fetchone()[0]
    finally:
        db.close()
    return records, round(mean or 0)


def insert(db: sqlite3.Connection, store: str, rows: Sequence[Row]) -> None:
    """Add the rows in the given order, in one transaction."""
    db.execute("BEGIN")
    db.executemany(f"INSERT INTO {store} VALUES (?, ?)", rows)
    db.execute("COMMIT")


def make_not_utf8(db: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Turn BLOBs into TEXT of the same bytes: a str with them cannot be bound from Python."""
    db.execute("BEGIN")
    db.executemany(
        "UPDATE transactions SET value = CAST(value AS TEXT) WHERE key = ?", ((k,) for k in keys)
    )
    db.execute("COMMIT")


def write_extra_tables(db: sqlite3.Connection, terminal: Terminal) -> None:
    """The application's own tables with some rows; the triggers last, so that none fires."""
    for statement in EXTRA_TABLES:
        db.execute(statement)
    db.execute("BEGIN")
    cashiers = ("Ana", "Björn", "小林", 'D"Arcy')
    for number, cashier in enumerate(cashiers, 1):
        db.execute("INSERT INTO shifts VALUES (?, ?, ?)", (number, cashier, int(number < 4)))
    some = db.execute(
        "SELECT key FROM transactions WHERE key LIKE 'tx~_%' ESCAPE '~' ORDER BY key LIMIT ?",
        (SHIFT_SALES_MAX,),
    ).fetchall()
    db.executemany(
        "INSERT INTO shift_sales VALUES (?, ?)", ((n % 4 + 1, key) for n, (key,) in enumerate(some))
    )
    db.executemany(
        "INSERT INTO outbox (tx_key, kind) VALUES (?, 'new')", ((s.key,) for s in terminal.first)
    )
    db.execute("COMMIT")
    for statement in EXTRA_TRIGGERS:
        db.execute(statement)


class Filler:
    """Makes free pages: rows written between the records, gone in the end.

    Their bytes are random and stay on the free pages, so a backup that fails to leave those pages
    out shows in its size.
    """

    def __init__(self, db: sqlite3.Connection, recipe: Recipe) -> None:
        self.db = db
        self.share = recipe.free_share
        self.payload = recipe.page_size - 4  # an overflow page begins with the next one's number
        self.rng = Random(f"filler/{recipe.seed}")
        self.pages = 0
        if self.share:
            db.execute("CREATE TABLE filler (bytes BLOB)")

    def keep_up(self) -> None:
        """Write as many filler pages as the records written so far call for."""
        if not self.share:
            return
        others = self._page_count() - self.pages
        wanted = round(others * self.share / (1 - self.share)) - self.pages
        if wanted < 2:
            return
        before = self._page_count()
        # One row per 256 pages keeps a single value small, whatever the file's size.
        for done in range(0, wanted, 256):
            size = min(256, wanted - done) * self.payload
            self.db.execute("INSERT INTO filler VALUES (?)", (self.rng.randbytes(size),))
        self.pages += self._page_count() - before

    def drop(self) -> None:
        """Free every filler page."""
        if self.share:
            self.db.execute("DROP TABLE filler")

    def _page_count(self) -> int:
        return int(self.db.execute("PRAGMA page_count").fetchone()[0])


def finish(db_path: Path, journal: str) -> tuple[int, int]:
    """Set the journal mode the application uses, sync the file; returns pages and free pages."""
    db = sqlite3.connect(db_path, isolation_level=None)
    try:
        db.execute(f"PRAGMA journal_mode = {journal}").fetchone()
        pages = int(db.execute("PRAGMA page_count").fetchone()[0])
        free_pages = int(db.execute("PRAGMA freelist_count").fetchone()[0])
    finally:
        db.close()
    fd = os.open(db_path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return pages, free_pages
