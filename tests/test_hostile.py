"""What an attack found: files, schemas and surroundings that are meant to mislead the agent."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import zlib
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests.terminals import COMMAND, Answer, Terminal, new_terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """A small terminal of its own."""
    return new_terminal(tmp_path / "t", records=60, unsettled=12)


def sql(terminal: Terminal, *statements: str) -> None:
    """What the application's developers did to the database."""
    with closing(sqlite3.connect(terminal.pos)) as db, db:
        for statement in statements:
            db.execute(statement)


def refused(terminal: Terminal, code: int, *verb: str) -> Answer:
    """The verb fails with this code, says no traceback, and leaves pos.db as it was."""
    before, listing = terminal.sha256(), terminal.listing()
    answer = terminal.run(*(verb or ("migrate",)), "--json")
    assert answer.code == code, answer.out + answer.err
    assert "Traceback" not in answer.out + answer.err
    assert terminal.sha256() == before
    assert [name for name in terminal.listing() if name not in listing] == []
    return answer


def migrated(terminal: Terminal, before: reader.Rows) -> None:
    """One boot ends well, and nothing but what the migrations declare has changed."""
    answer = terminal.boot()
    assert answer.code == 0, answer.out + answer.err
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)


# --- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trigger",
    [
        "CREATE TRIGGER x AFTER UPDATE ON TRANSACTIONS BEGIN"
        " UPDATE balances SET value = json_set(value, '$.hacked', 1); END",
        "CREATE TRIGGER x AFTER UPDATE ON Metadata BEGIN"
        " UPDATE transactions SET value = json_set(value, '$.note', 'lost'); END",
        "CREATE TRIGGER x BEFORE UPDATE ON Balances BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER x BEFORE UPDATE ON tranSactions BEGIN"
        " SELECT RAISE(ABORT, '4111111111111111'); END",
    ],
    ids=["another store", "settled sales", "ignored", "aborted"],
)
def test_a_trigger_in_other_letters_does_nothing_and_stands_there_afterwards(
    terminal: Terminal, trigger: str
) -> None:
    before = terminal.read().stores
    sql(terminal, trigger)
    migrated(terminal, before)
    with reader.opened(terminal.pos) as db:
        found = db.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    assert found == [(trigger,)]


def test_a_generated_column_called_rowid_is_no_store(terminal: Terminal) -> None:
    sql(
        terminal,
        "ALTER TABLE balances ADD COLUMN rowid TEXT GENERATED ALWAYS AS ('x') VIRTUAL",
    )
    assert "rowid" in refused(terminal, 10).json["error"]["message"]


def test_text_that_is_not_utf_8_throughout_is_not_migrated(terminal: Terminal) -> None:
    rows = terminal.read().stores
    terminal.pos.unlink()
    with closing(sqlite3.connect(terminal.pos)) as db, db:
        db.execute("PRAGMA encoding = 'UTF-16le'")
        for store, records in rows.items():
            db.execute(f"CREATE TABLE {store} (key TEXT PRIMARY KEY, value TEXT)")
            db.executemany(f"INSERT INTO {store} VALUES (?, ?)", list(records.items()))
    assert "UTF-16le" in refused(terminal, 10).json["error"]["message"]


def test_a_table_of_the_applications_own_under_our_name_is_refused_in_time(
    terminal: Terminal,
) -> None:
    sql(terminal, "CREATE TABLE Posagent (id INTEGER)")
    refused(terminal, 10)
    assert list(terminal.backups.glob("*")) == []


# --- money that cannot be summed -----------------------------------------------------------------

STEP = """from agent.core.migration import each, map_value, set_field

VERSION, NAME = 4, "an attack"


def up(record, context):
    if type(record.get("amount")) is not int and "amount" in record:
        record["amount"] = float(record["amount"]) * 100
    return record


STEPS = [{step}]
"""


@pytest.mark.parametrize(
    ("step", "record"),
    [
        ('each("transactions", up, fields=["amount"])', '{"amount":10.50,"status":"pending"}'),
        (
            'set_field("transactions", "amount", "0", key="tx_f")',
            '{"amount":10.50,"status":"pending"}',
        ),
        (
            'map_value("transactions", "currency", {"NIM-TESTNET": "BTC-MAINNET"}, other="keep")',
            '{"amount":5,"currency":"NIM-TESTNET","status":"completed"}',
        ),
    ],
    ids=["rescaled", "emptied", "another currency"],
)
def test_an_amount_that_is_no_whole_number_is_conserved_too(
    terminal: Terminal, step: str, record: str
) -> None:
    assert terminal.boot().code == 0
    sql(terminal, f"INSERT INTO transactions VALUES ('tx_f', '{record}')")
    (terminal.own_migrations() / "0004_attack.py").write_text(STEP.replace("{step}", step))
    assert "money would move" in refused(terminal, 10).json["error"]["message"]


def test_a_restore_says_how_many_settled_sales_it_would_forget(terminal: Terminal) -> None:
    assert terminal.run("backup").code == 0
    sql(
        terminal,
        'INSERT INTO transactions VALUES (\'tx_new\', \'{"amount":5000,"currency":"EUR",'
        '"status":"completed"}\')',
    )
    assert refused(terminal, 13, "restore", "1").json["error"]["facts"]["settled"] == 1
    refused(terminal, 13, "restore", "1", "--discard", "settled=2")
    done = terminal.run("restore", "1", "--discard", "settled=1", "--json")
    assert done.code == 0, done.out + done.err
    assert done.json["discarded"]["settled"] == 1


# --- places where a file is expected -------------------------------------------------------------


def test_a_diary_that_is_a_link_to_pos_db_is_set_aside(terminal: Terminal) -> None:
    os.symlink(terminal.pos, terminal.data / "posagent/agent.db")
    migrated(terminal, terminal.read().stores)
    assert not any("attempts" in str(name) for name in reader.schema_of(terminal.pos))


def test_a_diary_that_is_another_name_of_pos_db_is_never_written(terminal: Terminal) -> None:
    os.link(terminal.pos, terminal.data / "posagent/agent.db")
    refused(terminal, 78)
    refused(terminal, 78, "boot")


@pytest.mark.parametrize("name", ["pos.db", "pos.db-journal", "pos.db-wal", "posagent/seal"])
def test_a_pipe_where_a_file_belongs_makes_nobody_wait(terminal: Terminal, name: str) -> None:
    path = terminal.data / name
    if name == "pos.db":
        path.unlink()
    os.mkfifo(path)
    answer = terminal.run("boot", "--json", timeout=20)
    assert answer.code == (0 if name.endswith("seal") else 12), answer.out + answer.err


def test_a_pipe_under_a_backups_name_is_passed_over(terminal: Terminal) -> None:
    os.mkfifo(terminal.backups / "000001-v0.posbak")
    migrated(terminal, terminal.read().stores)
    assert (terminal.backups / "000002-v0.posbak").is_file()


# --- nobody listens ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "redirection", ["2>&-", ">&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", "<&- >&- 2>&-"]
)
def test_a_boot_without_a_listener_does_its_work_and_says_so_by_its_exit_code(
    terminal: Terminal, redirection: str
) -> None:
    before = terminal.read().stores
    command = " ".join([*COMMAND, "--root", str(terminal.root), "boot"])
    done = subprocess.run(["sh", "-c", f"{command} {redirection}"], capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)


# --- forged backups ------------------------------------------------------------------------------


def forged(terminal: Terminal, **changes: Any) -> None:
    """Backup 1 with other values in its header, every check in it made right again
    (docs/spec/backup-format.md)."""
    path = terminal.backups / "000001-v0.posbak"
    data = path.read_bytes()
    size = int.from_bytes(data[16:20], "big")
    header = json.loads(data[28 : 28 + size])
    header.update(changes)
    body = json.dumps(header).encode()
    start = data[12:16] + len(body).to_bytes(4, "big") * 2
    crc = zlib.crc32(body, zlib.crc32(start)).to_bytes(4, "big")
    whole = data[:12] + start + crc + body + data[28 + size : -32]
    path.write_bytes(whole + sha256(whole).digest())


@pytest.mark.parametrize(
    "changes",
    [
        {"made_ms": 10**30},
        {"image_bytes": 10**15, "page_count": 10**15 // 4096},
        {"schema_version": 1},
        {"tally": {}},
        {"tally": {"records": {"transactions": "x"}}},
        {"counters": {"stan": "x"}},
        {"counters": {"stan": 10**4000}},
        {"sequence": 10**12},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_forged_backup_whose_checks_are_right_is_refused(
    terminal: Terminal, changes: dict[str, Any]
) -> None:
    assert terminal.run("backup").code == 0
    forged(terminal, **changes)
    refused(terminal, 9, "restore", "1")
    assert terminal.run("status", timeout=20).code == 0
    migrated(terminal, terminal.read().stores)
    assert terminal.boot().code == 0


def test_a_forger_who_changes_nothing_makes_a_backup_that_is_restored(terminal: Terminal) -> None:
    """The forgeries above are refused for what they say, not for how they were made."""
    assert terminal.run("backup").code == 0
    forged(terminal)
    answer = terminal.run("restore", "1")
    assert answer.code == 0, answer.out + answer.err


def test_one_damaged_byte_in_the_schema_is_a_damaged_file(terminal: Terminal) -> None:
    # Python's module answers SQLite's message about it with another kind of error than SQLite's.
    terminal.pos.write_bytes(terminal.pos.read_bytes().replace(b"CREATE TABLE", b"CR\xb8ATE TABLE"))
    before = terminal.sha256()
    boot = terminal.boot()
    assert (boot.code, boot.json["error"]["facts"]["cause"]) == (12, "UNREADABLE")
    assert not boot.json["app_may_start"]
    assert "damaged" in terminal.run("status", "--json").json["money"]["why_not_counted"]
    assert terminal.run("validate").code == 1
    assert terminal.sha256() == before
