"""Bad input: a clear error, the listed exit code, and nothing changed.

One table. Each row spoils a fresh terminal in one way and names what `boot` and `migrate` answer:
`boot` answers 12 exactly when the application must not start; where it does, `migrate` is asked
too, for the plain code. Whatever the row, pos.db keeps its
bytes, nothing half-made is left, no traceback is shown, and a card number planted in the spoilt
record appears in no output and in no file that the agent wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import filesystems as fs
from tests import independent_reader as reader
from tests.terminals import COMMAND, Answer, Terminal, new_terminal

PAN = "4111111111111111"


class Bad(NamedTuple):
    """One way to spoil a terminal, the codes of `boot` and `migrate`, error.code and its words."""

    name: str
    spoil: Callable[[Terminal], object]
    boot: int
    migrate: int
    code: str
    says: str = ""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A small terminal at schema 0 that tests copy."""
    return new_terminal(tmp_path_factory.mktemp("template") / "t", records=40, unsettled=6)


@pytest.fixture
def terminal(template: Terminal, tmp_path: Path) -> Terminal:
    """A copy of the template for a test to spoil."""
    return copy_of(template, tmp_path / "t")


def copy_of(template: Terminal, root: Path) -> Terminal:
    """The same terminal in another place."""
    shutil.copytree(template.root, root)
    copy = Terminal(root)
    copy.device_id = template.device_id
    return copy


def sql(*statements: str, given: tuple[object, ...] = ()) -> Callable[[Terminal], None]:
    """Spoil pos.db as another program could."""

    def spoil(terminal: Terminal) -> None:
        db = sqlite3.connect(terminal.pos, isolation_level=None)
        for statement in statements:
            db.execute(statement, given if "?" in statement else ())
        db.close()

    return spoil


def holds(data: bytes) -> Callable[[Terminal], object]:
    """pos.db is these bytes."""
    return lambda terminal: terminal.pos.write_bytes(data)


def cut_to(part: float) -> Callable[[Terminal], None]:
    """pos.db ends early."""
    return lambda t: os.truncate(t.pos, int(t.pos.stat().st_size * part))


def noise(size: int) -> bytes:
    """Bytes as an encrypted file has them."""
    return random.Random(7).randbytes(size)


def overwrite_page(terminal: Terminal) -> None:
    """A page of the records is noise, as after a worn-out block."""
    db = sqlite3.connect(terminal.pos)
    root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'transactions'").fetchone()
    db.close()
    with open(terminal.pos, "r+b") as file:
        file.seek((root[0] - 1) * 4096)
        file.write(noise(4096))


def as_directory(path: str) -> Callable[[Terminal], None]:
    """A folder stands where a file should."""

    def spoil(terminal: Terminal) -> None:
        target = terminal.root / path
        if target.exists():
            target.unlink()
        (target / "inside").mkdir(parents=True)

    return spoil


DATABASES = (
    Bad("no pos.db", lambda t: t.pos.unlink(), 12, 12, "HELD", "is missing"),
    Bad("no stores", holds(b""), 12, 12, "HELD", "restore a backup"),
    Bad(
        "an SQLite file without the stores",
        lambda t: (
            t.pos.unlink(),
            sql("CREATE TABLE other (a)", f"INSERT INTO other VALUES({PAN})")(t),
        ),
        12,
        12,
        "HELD",
        "none of the application's stores",
    ),
    Bad("a text file", holds(f"card {PAN}\n".encode() * 50), 12, 12, "HELD", "restore a backup"),
    Bad("noise, as if encrypted", holds(noise(16384)), 12, 12, "HELD", "encrypted"),
    Bad("half of the file", cut_to(0.5), 12, 12, "HELD", "restore a backup"),
    Bad("less than a header", lambda t: os.truncate(t.pos, 60), 12, 12, "HELD", "restore a backup"),
    Bad("a page of noise", overwrite_page, 10, 10, "VALIDATION_ERROR", "damaged"),
    Bad("a folder", as_directory("data/pos.db"), 12, 12, "HELD", "is no file"),
    Bad(
        "a link to nowhere",
        lambda t: (t.pos.unlink(), t.pos.symlink_to("elsewhere.db")),
        12,
        12,
        "HELD",
        "is missing",
    ),
    Bad(
        "a newer schema",
        sql("PRAGMA user_version = 4"),
        12,
        8,
        "SCHEMA_TOO_NEW",
        "install the software",
    ),
    Bad(
        "a newer schema that the application reads",
        lambda t: (sql("PRAGMA user_version = 9")(t), edit_stores(t, app_reads=[0, 9])),
        8,
        8,
        "SCHEMA_TOO_NEW",
        "schema 9",
    ),
    Bad("a negative schema", sql("PRAGMA user_version = -1"), 12, 12, "HELD", "schema -1"),
    Bad(
        "a store with other columns",
        sql("DROP TABLE sync", "CREATE TABLE sync (id INTEGER PRIMARY KEY, body TEXT)"),
        10,
        10,
        "VALIDATION_ERROR",
        "sync is a table with the columns (id, body)",
    ),
    Bad(
        "a store with one column more",
        sql("ALTER TABLE balances ADD COLUMN extra"),
        10,
        10,
        "VALIDATION_ERROR",
        "balances is a table",
    ),
    Bad(
        "a store without its key",
        sql("DROP TABLE sync", "CREATE TABLE sync (key TEXT, value TEXT)"),
        10,
        10,
        "VALIDATION_ERROR",
        "sync is a table",
    ),
    Bad(
        "a view named like a store",
        sql("ALTER TABLE sync RENAME TO old", "CREATE VIEW sync AS SELECT key, value FROM old"),
        10,
        10,
        "VALIDATION_ERROR",
        "sync is a view",
    ),
    Bad("a missing store", sql("DROP TABLE metadata"), 10, 10, "VALIDATION_ERROR", "metadata"),
    Bad(
        "an index with a function nobody knows here",
        lambda t: index_with_own_function(t),
        1,
        1,
        "FAILED",
        "balances",
    ),
    Bad(
        "a hard link",
        lambda t: os.link(t.pos, t.root / "second"),
        78,
        78,
        "CONFIG",
        "hard links",
    ),
)


def index_with_own_function(terminal: Terminal) -> None:
    """An application may bring its own SQL functions; elsewhere its table cannot be written."""
    db = sqlite3.connect(terminal.pos)
    db.create_function("till_hash", 1, hash, deterministic=True)
    db.execute("CREATE INDEX by_hash ON balances (till_hash(length(value)))")
    db.commit()
    db.close()


def edit_stores(terminal: Terminal, **keys: object) -> None:
    """Change keys of stores.json in the terminal's own migrations folder."""
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    document.update(keys)
    path.write_text(json.dumps(document))


# --- records -------------------------------------------------------------------------------------

TEXT = "INSERT INTO {store} VALUES ('bad_one', ?)"
RECORD = f'{{"card":"{PAN}","status":"completed"'
VALUES: dict[str, tuple[object, str]] = {
    "no JSON": (f"card {PAN}", "no JSON value"),
    "an empty text": ("", "no JSON value"),
    "JSON cut short": (RECORD, ""),
    "something behind the JSON": (RECORD + "}}", "follows"),
    "NUL and more": (RECORD + "}\0tail", "follows"),
    "a control character": (RECORD + ',"note":"a\nb"}', ""),
    "NaN": (RECORD + ',"rate":NaN}', "NaN"),
    "Infinity": (RECORD + ',"rate":-Infinity}', "Infinity"),
    "a key twice": (RECORD + ',"status":"pending"}', "twice"),
    "half a surrogate pair": (RECORD + ',"note":"\\ud83d"}', "surrogate"),
    "nesting of 1000": (RECORD + ',"nest":' + "[" * 1000 + "]" * 1000 + "}", "nests deeper"),
    "nesting of 200000": ("[" * 200000 + "]" * 200000, "nests deeper"),
    "too large": (RECORD + ',"log":"' + "x" * (1 << 20) + '"}', "larger than"),
    "an integer of 5000 digits": (RECORD + ',"n":' + "9" * 5000 + "}", ""),
    "a BLOB": ((RECORD + "}").encode(), "a BLOB"),
    "NULL": (None, "NULL"),
    "text that is not UTF-8": (RECORD.encode() + b',"note":"\xff\xfe"}', "UTF-8"),
}
KEYS: dict[str, tuple[str, str]] = {
    "a NULL key": ("INSERT INTO {store} VALUES (NULL, '" + RECORD + "}')", "its key is"),
    "a BLOB key": ("INSERT INTO {store} VALUES (x'00ff', '" + RECORD + "}')", "its key is"),
    "a key that is not UTF-8": (
        "INSERT INTO {store} VALUES (CAST(x'ff41' AS TEXT), '" + RECORD + "}')",
        "UTF-8",
    ),
}


def bad_records() -> list[Bad]:
    """Every bad value in the sales, some of them in each other store of the plan."""
    rows = []
    for store in ("transactions", "balances", "metadata", "sync"):
        for what, (value, says) in VALUES.items():
            if store != "transactions" and what not in ("no JSON", "a BLOB", "a key twice"):
                continue
            statement = TEXT
            if what == "text that is not UTF-8":
                statement = TEXT.replace("?", "CAST(? AS TEXT)")
            if what == "an integer of 5000 digits" and not hasattr(sys, "set_int_max_str_digits"):
                continue  # a Python without that bound reads it
            spoil = sql(statement.replace("{store}", store), given=(value,))
            rows.append(Bad(f"{what} in {store}", spoil, 10, 10, "VALIDATION_ERROR", says))
        for what, (statement, says) in KEYS.items():
            if store in ("transactions", "sync"):
                spoil = sql(statement.replace("{store}", store))
                rows.append(Bad(f"{what} in {store}", spoil, 10, 10, "VALIDATION_ERROR", says))
    return rows


# --- migrations and stores.json ------------------------------------------------------------------


def file(name: str, text: str | bytes, remove: str = "") -> Callable[[Terminal], None]:
    """A file in the terminal's own migrations folder."""

    def spoil(terminal: Terminal) -> None:
        folder = terminal.own_migrations()
        if remove:
            (folder / remove).unlink()
        data = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(data)

    return spoil


def fourth(body: str) -> Callable[[Terminal], None]:
    """A fourth migration with this text."""
    return file("0004_bad.py", "from agent.core.migration import *\n" + body)


GOOD = "VERSION, NAME, STEPS = 4, 'good', []\n"
SECOND, THIRD = "0002_add_transaction_metadata.py", "0003_migrate_user_preferences.py"
REJECTED = "MIGRATIONS_REJECTED"
MIGRATIONS = (
    Bad(
        "no migrations folder",
        lambda t: shutil.rmtree(t.own_migrations()),
        12,
        11,
        REJECTED,
        "cannot be read",
    ),
    Bad(
        "a file for a migrations folder",
        lambda t: (shutil.rmtree(t.own_migrations()), (t.root / "migrations").write_text("x")),
        12,
        11,
        REJECTED,
        "cannot be read",
    ),
    Bad("a syntax error", fourth("def broken(:\n"), 11, 11, REJECTED, "0004_bad.py, line 2"),
    Bad("NUL in the source", file("0004_bad.py", b"x = 1\0\n"), 11, 11, REJECTED, "0004_bad.py"),
    Bad("no text at all", file("0004_bad.py", noise(500)), 11, 11, REJECTED, "0004_bad.py"),
    Bad(
        "an import of what is not there",
        fourth("import not_there_at_all\n"),
        11,
        11,
        REJECTED,
        "not_there_at_all",
    ),
    Bad("an error while loading", fourth("1 / 0\n"), 11, 11, REJECTED, "ZeroDivisionError"),
    Bad("an end while loading", fourth("raise SystemExit(0)\n"), 11, 11, REJECTED, "SystemExit"),
    Bad("a recursion while loading", fourth("def f(): f()\nf()\n"), 11, 11, REJECTED, "Recursion"),
    Bad("no VERSION", fourth("NAME, STEPS = 'x', []\n"), 11, 11, REJECTED, "no VERSION"),
    Bad(
        "another VERSION",
        fourth(GOOD.replace("4", "5")),
        11,
        11,
        REJECTED,
        "the file's number is 4",
    ),
    Bad("VERSION a text", fourth(GOOD.replace("4", "'4'")), 11, 11, REJECTED, "VERSION is '4'"),
    Bad("no NAME", fourth("VERSION, STEPS = 4, []\n"), 11, 11, REJECTED, "NAME"),
    Bad("no STEPS", fourth("VERSION, NAME = 4, 'x'\n"), 11, 11, REJECTED, "STEPS"),
    Bad("STEPS not a list", fourth(GOOD.replace("[]", "7")), 11, 11, REJECTED, "STEPS"),
    Bad("STEPS of texts", fourth(GOOD.replace("[]", "['x']")), 11, 11, REJECTED, "STEPS"),
    Bad(
        "a step on no store",
        fourth(GOOD.replace("[]", "[set_field('trans', 'a', 1)]")),
        11,
        11,
        REJECTED,
        "trans is not a store",
    ),
    Bad(
        "a step on no field",
        fourth(GOOD.replace("[]", "[set_field('sync', '', 1)]")),
        11,
        11,
        REJECTED,
        "no path",
    ),
    Bad(
        "each without fields",
        fourth(GOOD.replace("[]", "[each('sync', print, fields=[])]")),
        11,
        11,
        REJECTED,
        "fields",
    ),
    Bad("a gap", lambda t: (t.own_migrations() / SECOND).unlink(), 11, 11, REJECTED, "version 2"),
    Bad("a duplicate", file("0003_again.py", GOOD), 11, 11, REJECTED, "stands twice"),
    Bad("a misspelt name", file("0004-bad.py", GOOD), 11, 11, REJECTED, "0004-bad.py"),
    Bad("a name in capitals", file("0004_Bad.py", GOOD), 11, 11, REJECTED, "0004_Bad.py"),
    Bad(
        "a folder named like a migration",
        lambda t: (t.own_migrations() / "0004_folder.py").mkdir(),
        11,
        11,
        REJECTED,
        "0004_folder.py",
    ),
    Bad(
        "a link to nowhere among the migrations",
        lambda t: (t.own_migrations() / "0004_link.py").symlink_to("nowhere"),
        11,
        11,
        REJECTED,
        "0004_link.py",
    ),
    Bad(
        "a migration of two megabytes",
        file("0004_large.py", "#" * (2 << 20)),
        11,
        11,
        REJECTED,
        "larger than",
    ),
    Bad(
        "no stores.json",
        lambda t: (t.own_migrations() / "stores.json").unlink(),
        12,
        11,
        REJECTED,
        "stores.json cannot be read",
    ),
    Bad("stores.json no JSON", file("stores.json", "{"), 12, 11, REJECTED, "stores.json"),
    Bad("stores.json noise", file("stores.json", noise(99)), 12, 11, REJECTED, "stores.json"),
    Bad("stores.json a list", file("stores.json", "[]"), 12, 11, REJECTED, "must be an object"),
    Bad("stores.json empty", file("stores.json", "{}"), 12, 11, REJECTED, "format"),
    Bad(
        "stores.json deep",
        file("stores.json", "[" * 5000 + "]" * 5000),
        12,
        11,
        REJECTED,
        "nests deeper",
    ),
    Bad(
        "stores.json of another format",
        lambda t: edit_stores(t, format=2),
        12,
        11,
        REJECTED,
        "format 2",
    ),
    Bad(
        "stores.json with an unknown key",
        lambda t: edit_stores(t, app_read=[0, 1]),
        12,
        11,
        REJECTED,
        'did you mean "app_reads"',
    ),
    Bad("app_reads nonsense", lambda t: edit_stores(t, app_reads=3), 12, 11, REJECTED, ""),
    Bad("app_reads of texts", lambda t: edit_stores(t, app_reads=["a", "b"]), 12, 11, REJECTED, ""),
    Bad("versions nonsense", lambda t: edit_stores(t, versions=7), 12, 11, REJECTED, ""),
    Bad(
        "versions that do not rise",
        lambda t: edit_stores(t, versions=[{"since": 1, "stores": {"sync": {}}}]),
        12,
        11,
        REJECTED,
        "begin with 0",
    ),
    Bad(
        "a `since` that is a list",
        lambda t: edit_stores(t, versions=[{"since": [], "stores": {}}]),
        12,
        11,
        REJECTED,
        "stores.json",
    ),
    Bad(
        "a rule that says nothing",
        lambda t: edit_stores(
            t, versions=[{"since": 0, "stores": {"transactions": {"unsettled": [{}]}}}]
        ),
        12,
        11,
        REJECTED,
        "one of field, key",
    ),
)


# --- configuration -------------------------------------------------------------------------------


def config(text: str | bytes) -> Callable[[Terminal], object]:
    """config.json holds exactly this."""
    data = text.encode() if isinstance(text, str) else text
    return lambda t: (t.root / "etc/posagent/config.json").write_bytes(data)


CONFIGS = (
    Bad(
        "no config",
        lambda t: (t.root / "etc/posagent/config.json").unlink(),
        78,
        78,
        "CONFIG",
        "config.json",
    ),
    Bad("a folder for a config", as_directory("etc/posagent/config.json"), 78, 78, "CONFIG"),
    Bad("an empty config", config(""), 78, 78, "CONFIG", "config.json"),
    Bad("a config of noise", config(noise(300)), 78, 78, "CONFIG", "config.json"),
    Bad("a config that is a list", config("[]"), 78, 78, "CONFIG", "object"),
    Bad("a config nested deep", config("[" * 9000), 78, 78, "CONFIG", "config.json"),
    Bad("a config without profile", config("{}"), 78, 78, "CONFIG", "profile"),
    Bad("a config of a megabyte", config(" " * (1 << 20)), 78, 78, "CONFIG", "config.json"),
    Bad(
        "an unknown profile",
        config('{"profile":"linux-nand-218"}'),
        78,
        78,
        "CONFIG",
        "nearest known one is 'linux-nand-",
    ),
    Bad("a profile elsewhere", config('{"profile":"../etc/passwd"}'), 78, 78, "CONFIG", "unknown"),
    Bad(
        "an unknown key",
        config('{"profile":"generic","backup_cuont":3}'),
        78,
        78,
        "CONFIG",
        "backup_count",
    ),
    Bad(
        "a value out of range",
        config('{"profile":"generic","backup_count":0}'),
        78,
        78,
        "CONFIG",
        "backup_count",
    ),
    Bad("a path of the wrong kind", config('{"profile":"generic","pos_db":7}'), 78, 78, "CONFIG"),
    Bad("NUL in a path", config('{"profile":"generic","pos_db":"a\\u0000b"}'), 78, 78, "CONFIG"),
)

# --- backups folder and the agent's own files ----------------------------------------------------

FOLDERS = (
    Bad(
        "a file for a backups folder",
        lambda t: (t.backups.rmdir(), t.backups.write_text("x")),
        1,
        1,
        "FAILED",
        "backups",
    ),
    Bad(
        "a file for a state folder",
        lambda t: (shutil.rmtree(t.data / "posagent"), (t.data / "posagent").write_text("x")),
        1,
        1,
        "FAILED",
        "posagent",
    ),
    Bad(
        "a folder for a lock file",
        lambda t: (t.data / "posagent" / "lock").mkdir(),
        1,
        1,
        "FAILED",
        "lock",
    ),
)

TABLE = (*DATABASES, *bad_records(), *MIGRATIONS, *CONFIGS, *FOLDERS)


def files_of(root: Path) -> dict[str, bytes]:
    """Every regular file under a folder."""
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def has_no_card(answer: Answer) -> None:
    """No card number and no traceback in what a command printed."""
    for text in (answer.out, answer.err):
        assert PAN not in text
        assert "Traceback" not in text


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_bad_input_gets_a_clear_error_and_changes_nothing(terminal: Terminal, bad: Bad) -> None:
    bad.spoil(terminal)
    before = files_of(terminal.root)
    answer = terminal.boot()
    assert answer.code == bad.boot, answer.out + answer.err
    error = answer.json["error"]
    assert error["code"] == bad.code
    assert bad.says in error["message"], error["message"]
    assert answer.json.get("app_may_start", True) is (bad.boot != 12)
    assert answer.err == ""
    has_no_card(answer)
    if bad.migrate != bad.boot:
        asked = terminal.run("migrate")
        assert asked.code == bad.migrate, asked.out + asked.err
        assert error["message"] in asked.out + asked.err
        has_no_card(asked)
    after = files_of(terminal.root)
    for path, data in before.items():
        assert after[path] == data, f"{path} changed"
    for path in after.keys() - before.keys():
        assert not path.startswith("data/") or path.startswith("data/posagent/"), path
        assert not path.endswith(".tmp"), path
        assert PAN.encode() not in after[path], path


# --- what the application left behind ------------------------------------------------------------

SALE = (
    '{{"id":"{key}","type":"sale","currency":"EUR","amount":{amount},"timestamp":1735700000000,'
    '"status":"pending","tip":0.50}}'
)
WRITER = """
import os, sqlite3, sys
path, mode, end = sys.argv[1:4]
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"PRAGMA journal_mode={mode}")
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("PRAGMA cache_size=2")
db.execute("PRAGMA synchronous=FULL")
for n, text in enumerate(sys.argv[4:]):
    db.execute("INSERT INTO transactions VALUES (?, ?)", (f"tx_new_{n}", text))
if end == "open transaction":
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE transactions SET value = replace(value, 'amount', 'amoumt')")
    db.execute("DELETE FROM sync")
if end == "hold":
    db.execute("BEGIN")
    db.execute("SELECT count(*) FROM sync").fetchone()
    print("held", flush=True)
    sys.stdin.read()
os._exit(0)
"""


def application(terminal: Terminal, mode: str, end: str) -> list[str]:
    """The command line of an application that makes two sales and then ends as `end` says."""
    sales = [SALE.format(key=f"tx_new_{n}", amount=700 + n) for n in range(2)]
    return [sys.executable, "-c", WRITER, str(terminal.pos), mode, end, *sales]


@pytest.mark.parametrize(
    ("mode", "end", "side"),
    [
        ("WAL", "power gone", "-wal"),
        ("WAL", "open transaction", "-wal"),
        ("DELETE", "open transaction", "-journal"),
        ("PERSIST", "open transaction", "-journal"),
        ("TRUNCATE", "power gone", ""),
    ],
)
def test_what_the_application_left_is_recovered_and_no_sale_in_it_is_missed(
    terminal: Terminal, mode: str, end: str, side: str
) -> None:
    subprocess.run(application(terminal, mode, end), check=True, timeout=60)
    if side:
        assert os.path.getsize(f"{terminal.pos}{side}") > 512
    before = terminal.read().stores  # by the reader's own recovery of a copy
    assert "tx_new_1" in before["transactions"]
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)


@pytest.mark.parametrize("side", ["-wal", "-journal", "-shm"])
def test_a_side_file_of_noise_is_nobodys_data(terminal: Terminal, side: str) -> None:
    before = terminal.read().stores
    Path(f"{terminal.pos}{side}").write_bytes(noise(5000))
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_an_application_that_holds_the_file_is_named_and_nothing_is_touched(
    terminal: Terminal, mode: str
) -> None:
    terminal.configure(busy_wait_ms=100)
    with subprocess.Popen(
        application(terminal, mode, "hold"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = files_of(terminal.data)
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (5, "BUSY"), answer.out
        assert f"(pid {holder.pid})" in answer.json["error"]["message"]
        assert terminal.run("migrate").code == 5
        after = files_of(terminal.data)
        assert {name: after[name] for name in before} == before
        holder.send_signal(signal.SIGKILL)
    rows = terminal.read().stores
    assert terminal.boot().code == 0
    reader.expect_migrated(rows, terminal.read().stores, terminal.device_id)


def test_of_two_agents_at_once_the_second_says_so_and_touches_nothing(terminal: Terminal) -> None:
    lock = os.open(terminal.data / "posagent" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = files_of(terminal.root)
    for verb in ("boot", "migrate", "backup", "commit"):
        answer = terminal.run(verb, "--json")
        assert (answer.code, answer.json["error"]["code"]) == (5, "BUSY"), answer.out
        assert "another posagent" in answer.json["error"]["message"]
    assert files_of(terminal.root) == before
    os.close(lock)
    assert terminal.boot().code == 0


# --- the agent's own files: never a reason not to boot -------------------------------------------


def spoilt_diary(statements: tuple[str, ...]) -> Callable[[Path], object]:
    """A diary that some other program wrote."""

    def spoil(path: Path) -> None:
        path.unlink()
        db = sqlite3.connect(path)
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.close()

    return spoil


@pytest.mark.parametrize(
    ("name", "spoil", "aside"),
    [
        ("noise", lambda p: p.write_bytes(noise(8192)), "damaged"),
        ("a text", lambda p: p.write_text("a text " * 500), "damaged"),
        ("half of it", lambda p: os.truncate(p, p.stat().st_size // 2 - 100), "damaged"),
        ("a folder", lambda p: (p.unlink(), (p / "inside").mkdir(parents=True)), "damaged"),
        ("a link to itself", lambda p: (p.unlink(), p.symlink_to(p)), "damaged"),
        ("other tables", spoilt_diary(("CREATE TABLE history (a)",)), "damaged"),
        (
            "other columns",
            spoilt_diary(
                ("CREATE TABLE history (seq)", "CREATE TABLE attempts (a)", "PRAGMA user_version=1")
            ),
            "damaged",
        ),
        ("no tables", spoilt_diary(("PRAGMA user_version = 1",)), "damaged"),
        ("a newer one", spoilt_diary(("CREATE TABLE x (y)", "PRAGMA user_version=99")), "newer"),
        ("an empty one", lambda p: p.write_bytes(b""), ""),
    ],
)
def test_a_diary_that_is_none_is_set_aside_and_the_boot_goes_on(
    terminal: Terminal, name: str, spoil: Callable[[Path], object], aside: str
) -> None:
    diary = terminal.data / "posagent" / "agent.db"
    terminal.own_migrations()
    fourth("raise ValueError\n")(terminal)
    assert terminal.boot().code == 11  # makes a diary
    (terminal.root / "migrations" / "0004_bad.py").unlink()
    assert diary.stat().st_size > 4096
    spoil(diary)
    before = terminal.read().stores
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    assert answer.json["diary_set_aside"] == aside
    assert bool(aside) == bool(list(diary.parent.glob("agent.db.*")))
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)
    assert terminal.boot().json["diary_set_aside"] == ""


@pytest.mark.parametrize(
    "data", [b"", noise(700), b"[]", b"{}", b'{"format":1,"run":7}', b"[" * 60000, b"x" * 99999]
)
def test_a_seal_of_rubbish_is_no_seal(terminal: Terminal, data: bytes) -> None:
    seal = terminal.data / "posagent" / "seal"
    seal.write_bytes(data)
    before = terminal.read().stores
    assert terminal.boot().code == 0
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)
    # and once more on the new schema, where .prev can then not be told to be ours to use
    seal.write_bytes(data)
    assert terminal.boot().code == 0
    assert (terminal.data / "pos.db.prev").exists()


# --- folders and file systems --------------------------------------------------------------------


def test_a_missing_backups_folder_is_made(terminal: Terminal) -> None:
    terminal.backups.rmdir()
    assert terminal.boot().code == 0
    assert len(list(terminal.backups.iterdir())) == 1


def test_foreign_files_among_the_backups_stay_as_they_are(terminal: Terminal) -> None:
    folder = terminal.backups
    (folder / "notes.txt").write_text("mine")
    (folder / "000002-v0.posbak.bak").write_text("mine")
    (folder / "000009-v0.posbak").mkdir()
    (folder / "000008-v1.posbak").symlink_to("notes.txt")
    (folder / "1-v0.posbak").write_text("mine")
    (folder / "000001-v0.posbak").write_bytes(noise(3000))
    (folder / "000004-v0.posbak.tmp").write_bytes(b"a cut backup")
    before = files_of(folder)
    assert terminal.boot().code == 0
    after = files_of(folder)
    assert before.pop("000004-v0.posbak.tmp")
    new = after.keys() - before.keys()
    assert {name: after[name] for name in before} == before
    assert len(new) == 1
    assert (folder / "000009-v0.posbak").is_dir()
    assert (folder / "000008-v1.posbak").is_symlink()


def test_a_backups_folder_that_nobody_may_write_stops_the_run(terminal: Terminal) -> None:
    before = terminal.sha256()
    with fs.immutable(terminal.backups):
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (1, "FAILED"), answer.out
        assert "backup" in answer.json["error"]["message"]
        assert terminal.sha256() == before
    assert terminal.listing() == ["pos.db", "posagent"]
    assert terminal.boot().code == 0


def test_a_read_only_or_full_backups_folder_stops_the_run(terminal: Terminal) -> None:
    before = terminal.sha256()
    with fs.tmpfs(terminal.backups, 64 * 1024):
        full = terminal.boot()
        fs.remount(terminal.backups, "ro")
        locked = terminal.boot()
    for answer in (full, locked):
        assert (answer.code, answer.json["error"]["code"]) == (6, "STORAGE_ERROR"), answer.out
    assert terminal.sha256() == before
    assert terminal.listing() == ["pos.db", "posagent"]
    assert terminal.boot().code == 0


def test_a_bind_mounted_pos_db_is_refused(terminal: Terminal) -> None:
    before = terminal.sha256()
    other = terminal.root / "other.db"
    shutil.copyfile(terminal.pos, other)
    with fs.bound(terminal.pos, other):
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (78, "CONFIG"), answer.out
        assert "mount" in answer.json["error"]["message"]
        assert terminal.listing() == ["pos.db", "posagent"]
    assert terminal.sha256() == before == reader.file_sha256(other)


def test_a_file_system_that_is_not_proven_is_refused_until_the_profile_says_otherwise(
    template: Terminal, tmp_path: Path
) -> None:
    with fs.unproven(tmp_path / "flash") as flash:
        terminal = copy_of(template, flash / "t")
        before = terminal.sha256()
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (78, "CONFIG"), answer.out
        assert "unproven_filesystem" in answer.json["error"]["message"]
        assert terminal.sha256() == before
        terminal.configure(unproven_filesystem=True)
        assert terminal.boot().code == 0


def test_a_symlinked_pos_db_is_replaced_where_it_really_lies(terminal: Terminal) -> None:
    real = terminal.root / "flash"
    real.mkdir()
    terminal.pos.rename(real / "till.db")
    terminal.pos.symlink_to("../flash/till.db")
    before = terminal.read().stores
    assert terminal.boot().code == 0
    assert os.readlink(terminal.pos) == "../flash/till.db"
    assert sorted(os.listdir(real)) == ["till.db", "till.db.prev"]
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)


def test_owner_and_mode_of_a_foreign_owned_pos_db_are_kept(terminal: Terminal) -> None:
    os.chown(terminal.pos, 4321, 1234)
    terminal.pos.chmod(0o640)
    assert terminal.boot().code == 0
    found = terminal.pos.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (4321, 1234, 0o640)


@pytest.mark.parametrize(
    ("path", "mode", "boot", "code"),
    [
        ("data/pos.db", 0o600, 12, "FAILED"),
        ("migrations", 0o700, 12, "MIGRATIONS_REJECTED"),
        ("migrations/0002_add_transaction_metadata.py", 0o600, 11, "MIGRATIONS_REJECTED"),
        ("data/posagent", 0o700, 1, "FAILED"),
        ("data/posagent/backups", 0o700, 1, "FAILED"),
        ("etc/posagent/config.json", 0o600, 78, "CONFIG"),
    ],
)
def test_an_agent_without_the_right_to_a_file_says_so_and_changes_nothing(
    terminal: Terminal, path: str, mode: int, boot: int, code: str
) -> None:
    terminal.own_migrations()
    target = terminal.root / path
    os.chown(target, 4321, 4321)
    target.chmod(mode)
    before = files_of(terminal.data)
    # The same user, but without root's power over other people's files.
    rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*rights, *COMMAND, "--root", str(terminal.root), "boot", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = Answer(done)
    assert (answer.code, answer.json["error"]["code"]) == (boot, code), answer.out
    assert answer.err == ""
    after = files_of(terminal.data)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if ".next" in name or ".tmp" in name or "probe" in name]


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bot"], "did you mean boot"),
        (["boot", "--jsno"], "did you mean --json"),
        (["boot", "now"], 'does not take "now"'),
        (["boot", "--exit-code"], "unknown option"),
        (["boot", "--json=yes"], "takes no value"),
        (["restore"], "restore needs BACKUP"),
        (["restore", "latest"], "there is no backup"),
        (["restore", "x", "--discard"], "needs COUNTS"),
        (["status", "--config"], "needs FILE"),
        ([f"{PAN}"], "unknown verb"),
        (["boot", "\udcff"], "does not take"),
        (["x" * 5000], "unknown verb"),
        (["--"], "unknown verb"),
        ([""], "unknown verb"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_usage(
    terminal: Terminal, words: list[str], says: str
) -> None:
    before = files_of(terminal.root)
    answer = terminal.run(*words, "--json") if words != ["--"] else terminal.run("--json", "--")
    assert (answer.code, answer.json["error"]["code"]) == (64, "USAGE"), answer.out + answer.err
    assert says in answer.json["error"]["message"]
    plain = terminal.run(*words)
    assert plain.code == 64
    assert plain.err.startswith("posagent: USAGE: ")
    assert "Traceback" not in plain.err
    assert files_of(terminal.root) == before


def test_no_verb_is_usage_and_shows_the_verbs(terminal: Terminal) -> None:
    answer = terminal.run()
    assert answer.code == 64
    assert "restore" in answer.out


ROOTS = (
    "with space",
    "ünïcode-端末",
    "per%20cent%",
    "why?mode=ro",
    "hash#mark",
    "quote'\"back\\slash",
    "-dash",
    "new\nline",
    "semi;colon&and",
    os.fsdecode(b"not-utf8-\xff\xfe"),
    "x" * 200,
)


@pytest.mark.parametrize("name", ROOTS, ids=lambda name: ascii(name[:20]))
def test_a_terminal_boots_wherever_its_root_lies(
    template: Terminal, tmp_path: Path, name: str
) -> None:
    terminal = copy_of(template, tmp_path / name)
    before = terminal.read().stores
    answer = terminal.boot()
    assert answer.code == 0, answer.out + answer.err
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)
    assert len(list(terminal.backups.iterdir())) == 1
    assert sorted(os.listdir(tmp_path)) == [name]
    terminal.pos.unlink()
    missing = terminal.boot()
    assert (missing.code, missing.json["error"]["code"]) == (12, "HELD"), missing.out
    assert "Traceback" not in missing.err + terminal.run("boot").err


@pytest.mark.parametrize("root", ["t", "./t", "t/", "../{here}/t//", "t/../t"])
def test_a_root_may_be_relative_to_where_the_command_is_typed(
    template: Terminal, tmp_path: Path, root: str
) -> None:
    terminal = copy_of(template, tmp_path / "t")
    before = terminal.read().stores
    words = ["--root", root.format(here=tmp_path.name), "boot", "--json"]
    done = subprocess.run(
        [*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)
    assert os.listdir(tmp_path) == ["t"]


def test_a_root_that_is_not_there_is_a_config_error_and_is_not_made(tmp_path: Path) -> None:
    answer = Terminal(tmp_path / "nowhere").boot()
    assert (answer.code, answer.json["error"]["code"]) == (78, "CONFIG")
    assert os.listdir(tmp_path) == []


# --- odd, but legal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "statement", "value"),
    [
        ("a bare number", TEXT, "7"),
        ("null", TEXT, " null "),
        ("an empty object", TEXT, "{}"),
        ("an empty list", TEXT, "[]"),
        ("an integer column value", "INSERT INTO {store} VALUES (77, ?)", 12),
        ("an empty key", "INSERT INTO {store} VALUES ('', ?)", "{}"),
        ("a long key", "INSERT INTO {store} VALUES ('" + "k" * 9000 + "', ?)", "{}"),
        ("a key with NUL", "INSERT INTO {store} VALUES (CAST(x'410042' AS TEXT), ?)", "{}"),
        ("sixty levels", TEXT, "[" * 60 + "]" * 60),
        ("a long currency", TEXT, '{"status":"pending","amount":5,"currency":"' + PAN + '"}'),
        ("amounts that are none", TEXT, '{"status":"pending","amount":"5","currency":7}'),
        ("a huge amount", TEXT, '{"status":"pending","amount":' + "9" * 400 + ',"currency":"NIM"}'),
        ("a status that is an object", TEXT, '{"status":{},"amount":1,"currency":"NIM"}'),
        ("a future timestamp", TEXT, '{"timestamp":99999999999999999999}'),
        ("a negative timestamp", TEXT, '{"timestamp":-5}'),
    ],
)
def test_odd_but_legal_records_pass_and_keep_their_value(
    terminal: Terminal, name: str, statement: str, value: object
) -> None:
    sql(statement.replace("{store}", "transactions"), given=(value,))(terminal)
    before = terminal.read().stores
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    after = terminal.read().stores
    if "timestamp" not in name:
        reader.expect_migrated(before, after, terminal.device_id)
    assert before["transactions"].keys() == after["transactions"].keys()
    has_no_card(answer)
    for path, data in files_of(terminal.data / "posagent").items():
        assert PAN.encode() not in data, path


@pytest.mark.parametrize("value", ['""', '{"id":"x"}', '"' + "d" * 100_000 + '"', "7"])
def test_a_device_id_that_is_none_does_not_stop_the_terminal(
    terminal: Terminal, value: str
) -> None:
    sql("UPDATE metadata SET value = ? WHERE key = 'device_id'", given=(value,))(terminal)
    before = terminal.read().stores
    assert terminal.boot().code == 0
    reader.expect_migrated(before, terminal.read().stores, "unknown")


def test_empty_stores_are_brought_to_the_new_schema_too(terminal: Terminal) -> None:
    sql(*(f"DELETE FROM {s}" for s in ("transactions", "balances", "metadata", "sync")))(terminal)
    assert terminal.boot().code == 0
    assert terminal.read().schema_version == 3


def test_text_that_is_not_utf8_in_the_applications_own_tables_is_carried_over(
    terminal: Terminal,
) -> None:
    sql(
        "CREATE TABLE receipts (id INTEGER PRIMARY KEY, line TEXT, raw)",
        "INSERT INTO receipts (line, raw) VALUES (CAST(x'4b6166e9' AS TEXT), x'4b6166e9')",
        "INSERT INTO receipts (line, raw) VALUES (x'00', CAST(x'00' AS TEXT))",
    )(terminal)
    tables = reader.other_tables(terminal.pos)
    assert terminal.boot().code == 0
    assert reader.other_tables(terminal.pos)["receipts"] == tables["receipts"]
