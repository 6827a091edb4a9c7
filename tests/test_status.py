"""`status` tells the truth about a terminal in every state, and leaves not a trace of itself.

Each test that asks compares the whole root folder, names and bytes, before and after.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.edges.agentlock import RUN_BYTE
from agent.edges.filelock import lock_request
from tests.client import Client, sale
from tests.terminals import COMMAND, Answer, Terminal, new_terminal

FAILS = """
from agent.core.migration import each
VERSION, NAME = 1, "fails"
def up(record, context):
    raise ValueError("no")
STEPS = [each("transactions", up, fields=["x"])]
"""

# Waits in the middle of a run until the test lets go of the named pipe that it reads.
WAITS = """
import os
from agent.core.migration import each
VERSION, NAME = 1, "waits"
def up(record, context):
    if record.get("id") == "the one that waits" and os.path.exists({gate!r}):
        open({gate!r}).read()
    record["x"] = 1
    return record
STEPS = [each("transactions", up, fields=["x"])]
"""


def snapshot(root: Path) -> dict[str, str]:
    """Every name below the root with its mode, size, owner, times of writing and digest."""
    found = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = f"{seen.st_mode:o} {seen.st_size} {seen.st_mtime_ns} {digest}"
    return found


@contextmanager
def untouched(terminal: Terminal) -> Iterator[None]:
    """Holds that nothing below the root changes meanwhile."""
    before = snapshot(terminal.root)
    yield
    assert snapshot(terminal.root) == before


def ask(terminal: Terminal, *words: str) -> dict[str, Any]:
    """The JSON of `status`, which leaves no trace, and neither does the form for people."""
    with untouched(terminal):
        people = terminal.run("status")
        answer = terminal.run("status", "--json", *words)
    assert people.code == 0, people.err
    assert people.err == answer.err == ""
    heads = [line.split(":")[0] for line in people.out.splitlines() if not line.startswith(" ")]
    order = [head for head in heads if head != "start"]
    assert order == ["doing", "money", "unplug", "to do"]
    assert max(map(len, people.out.splitlines())) <= 80 or "/" in people.out
    return answer.json


def insert(terminal: Terminal, *keys: str) -> None:
    """The application makes sales and ends."""
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    for key in keys:
        db.execute("INSERT INTO transactions VALUES (?, ?)", (key, sale(key)))
    db.close()


def own_migration(terminal: Terminal, text: str) -> None:
    """Put one migration in the place of the shipped ones."""
    folder = terminal.own_migrations()
    for path in folder.glob("0*.py"):
        path.unlink()
    (folder / "0001_own.py").write_text(text)


# Fresh, upgraded, sold since


def test_a_fresh_terminal_is_pending_and_its_money_is_counted(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    found = ask(terminal)
    doing = found["doing"]
    assert (doing["state"], doing["version"], doing["target"], doing["pending"]) == (
        "idle",
        0,
        3,
        3,
    )
    assert found["money"]["counted"] is True
    assert found["money"]["backup"] is None
    assert found["advice"]["word"] == "migrate"
    assert found["unplug"]["safe"] is True
    assert found["app_may_start"] is True
    assert terminal.run("status", "--exit-code").code == 3


def test_the_money_is_what_an_independent_reader_counts(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", records=500, unsettled=120)
    money = ask(terminal)["money"]
    counted = {c: (e["count"], e["sum"]) for c, e in money["money"].items()}
    assert counted == independent_money(terminal)


def independent_money(terminal: Terminal) -> dict[str, tuple[int, int]]:
    """Currency to count and sum of unsettled sales, by SQL and JSON of its own."""
    totals: dict[str, tuple[int, int]] = {}
    db = sqlite3.connect(f"file:{terminal.pos}?mode=ro", uri=True)
    for key, value in db.execute("SELECT key, value FROM transactions"):
        record = json.loads(value)
        items = record if key == "transaction-queue" else [record]
        named = key == "transaction-queue" or key.startswith(("failed_", "retry_"))
        for item in items:
            if not isinstance(item, dict) or not isinstance(item.get("amount"), int):
                continue
            if named or item.get("status") in ("pending", "processing"):
                count, amount = totals.get(item["currency"], (0, 0))
                totals[item["currency"]] = (count + 1, amount + item["amount"])
    db.close()
    return totals


def test_after_the_upgrade_the_money_is_in_the_backup_as_it_was(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.boot().code == 0
    found = ask(terminal)
    known = found["money"]["backup"]
    assert known["verified"] is True
    assert known["exact"] is False  # the migrations wrote into the records
    assert (known["newer"], known["gone"]) == (0, 0)
    assert found["doing"]["pending"] == 0
    assert found["doing"]["last"]["verdict"] == "OK"
    assert found["advice"]["word"] == "commit"
    assert "as they were at schema 0" in " ".join(terminal.run("status").out.split())
    assert terminal.run("status", "--exit-code").code == 0


def test_the_newest_backup_with_exactly_these_sales_is_named(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.boot().code == 0
    assert terminal.run("commit").code == 0
    assert terminal.run("backup").code == 0
    found = ask(terminal)
    assert found["money"]["backup"]["name"] == "000002-v3.posbak"
    assert found["money"]["backup"]["exact"] is True
    assert found["advice"]["word"] == "nothing"
    insert(terminal, "tx_since_1", "tx_since_2")
    known = ask(terminal)["money"]["backup"]
    assert (known["exact"], known["newer"], known["changed"], known["gone"]) == (False, 2, 0, 0)
    assert ask(terminal)["advice"]["word"] == "backup"
    db = sqlite3.connect(terminal.pos)
    db.execute("DELETE FROM transactions WHERE key LIKE 'tx_since_%'")
    db.commit()
    db.close()
    assert ask(terminal)["money"]["backup"]["exact"] is True


def test_a_damaged_backup_is_no_safety_and_is_named(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    for _ in range(2):
        assert terminal.run("backup").code == 0
    first, second = sorted(terminal.backups.iterdir())
    data = bytearray(second.read_bytes())
    data[-1000] ^= 1  # among the pages: header, entries and end are whole
    second.write_bytes(data)
    money = ask(terminal)["money"]
    assert money["backup"]["name"] == first.name
    assert money["backup"]["exact"] is True
    assert money["damaged_backups"] == [second.name]


# Beside a living application


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sales_of_a_running_application_are_seen(journal: str, tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", journal=journal)
    before = ask(terminal)["money"]["records"]
    with Client(terminal.pos) as application:
        assert application.ask("open 1") == "ok"
        assert application.ask("sale tx_live_1") == "ok"
        assert ask(terminal)["money"]["records"] == before + 1
        assert application.ask("sql BEGIN IMMEDIATE") == "ok"
        assert application.ask("sale tx_live_2") == "ok"
        # Not committed: it is nobody's sale yet, and its writer is not disturbed.
        assert ask(terminal)["money"]["records"] == before + 1
        assert application.ask("sql COMMIT") == "ok"
        assert ask(terminal)["money"]["records"] == before + 2


def test_a_file_under_an_exclusive_lock_is_not_counted_and_not_waited_for_long(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "root")
    with Client(terminal.pos) as application:
        assert application.ask("open 1") == "ok"
        assert application.ask("sql BEGIN EXCLUSIVE") == "ok"
        money = ask(terminal)["money"]
    assert money["counted"] is False
    assert "locked" in money["why_not_counted"]


def test_a_wal_that_a_power_cut_left_is_read_but_not_recovered(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", journal="wal")
    before = ask(terminal)["money"]["records"]
    with Client(terminal.pos) as application:
        assert application.ask("open 1") == "ok"
        assert application.ask("sale tx_last") == "ok"
        application.send("die")
    assert terminal.pos.with_name("pos.db-wal").stat().st_size > 0
    assert ask(terminal)["money"]["records"] == before + 1
    # After a real cut the index may be gone; then only a recovery could tell, and none is made.
    terminal.pos.with_name("pos.db-shm").unlink()
    money = ask(terminal)["money"]
    assert (money["counted"], money["records"]) == (False, None)
    assert "wait for recovery" in money["why_not_counted"]


def test_a_hot_journal_is_left_for_recovery(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    with Client(terminal.pos) as application:
        assert application.ask("open 1") == "ok"
        assert application.ask("sql PRAGMA cache_size=2") == "ok"
        assert application.ask("sql BEGIN IMMEDIATE") == "ok"
        spill = "UPDATE transactions SET value = replace(value, 'E', 'F')"
        assert application.ask(f"sql {spill}") == "ok"
        application.send("die")
    assert terminal.pos.with_name("pos.db-journal").read_bytes()[:8].strip(b"\0")
    money = ask(terminal)["money"]
    assert money["counted"] is False
    assert "wait for recovery" in money["why_not_counted"]


# Given up, interrupted, held


def test_a_plan_that_was_given_up_says_why_and_what_to_do(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    own_migration(terminal, FAILS)
    for _ in range(3):
        assert terminal.boot().code == 10
    terminal.boot()
    found = ask(terminal)
    assert "3 attempts" in found["doing"]["given_up"]
    assert found["doing"]["held"] is None
    assert found["doing"]["last"]["code"] == "VALIDATION_ERROR"
    assert found["advice"]["word"] == "correct_cause"
    assert found["app_may_start"] is True
    assert found["money"]["backup"]["exact"] is True
    # Known from the seal or not at all: a damaged diary is told, not repaired.
    (terminal.data / "posagent/agent.db").write_bytes(b"rubbish" * 999)
    assert ask(terminal)["doing"]["diary_not_read"]


def test_a_diary_that_a_crash_left_with_its_wal_is_read(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.boot().code == 0
    diary = terminal.data / "posagent/agent.db"
    with Client(diary) as writer:
        assert writer.ask("open 1") == "ok"
        assert writer.ask("sql UPDATE history SET verdict = 'PARTIAL'") == "ok"
        writer.send("die")
    assert diary.with_name("agent.db-wal").exists()
    assert ask(terminal)["doing"]["last"]["verdict"] == "PARTIAL"


def test_a_left_over_successor_is_an_interrupted_run(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    terminal.pos.with_name("pos.db.next").write_bytes(b"half of a copy")
    found = ask(terminal)
    assert found["doing"]["interrupted"] is True
    assert "continues" in found["unplug"]["then"]


@pytest.mark.parametrize("content", [None, b"", b"not a database " * 99])
def test_without_data_a_technician_is_called(content: bytes | None, tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    terminal.pos.unlink()
    if content is not None:
        terminal.pos.write_bytes(content)
    found = ask(terminal)
    assert found["doing"]["held"]
    assert found["money"]["counted"] is False
    assert found["advice"]["word"] == "technician"
    assert found["app_may_start"] is False
    assert terminal.boot().code == 12
    assert ask(terminal)["advice"]["word"] == "technician"


def test_a_repair_is_seen_although_the_last_run_said_held(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    away = tmp_path / "away"
    terminal.pos.rename(away)
    assert terminal.boot().code == 12
    away.rename(terminal.pos)
    found = ask(terminal)
    assert found["doing"]["held"] is None
    assert found["app_may_start"] is True


def test_data_that_is_too_new_and_migrations_that_are_rejected(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    db = sqlite3.connect(terminal.pos)
    db.execute("PRAGMA user_version = 9")
    db.close()
    found = ask(terminal)
    assert found["doing"]["too_new"] is True
    assert found["advice"]["word"] == "install_software"
    assert found["app_may_start"] is False
    (terminal.own_migrations() / "0002_add_transaction_metadata.py").unlink()
    found = ask(terminal)
    assert "missing" in found["doing"]["migrations_rejected"]
    assert found["advice"]["word"] == "correct_migrations"


# While a run is on


def test_during_a_run_its_state_is_told_and_pos_db_is_not_opened(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", records=50)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    own_migration(terminal, WAITS.format(gate=str(gate)))
    insert(terminal, "the one that waits")
    running = terminal.start("migrate", "--json")
    # Opening the pipe for writing returns once the migration has it open: it is in the middle.
    with open(gate, "w"):
        trace = tmp_path / "trace"
        found = traced_status(terminal, trace)
        gate.unlink()  # the proof replays the step and must not wait again
    out, _ = running.communicate(timeout=60)
    assert found["doing"]["state"] != "idle"
    assert found["advice"]["word"] == "wait"
    assert found["money"]["counted"] is False
    assert found["app_may_start"] is False
    assert "run continues" in found["unplug"]["then"]
    opened = [line for line in trace.read_text().splitlines() if "open" in line]
    assert opened
    assert [line for line in opened if "pos.db" in line] == []
    assert json.loads(out)["verdict"] == "OK"
    assert ask(terminal)["doing"]["state"] == "idle"


def traced_status(terminal: Terminal, trace: Path) -> dict[str, Any]:
    """`status --json` with every file that it opens noted by strace."""
    words = ["strace", "-f", "-e", "trace=open,openat", "-o", str(trace), *COMMAND]
    words += ["--root", str(terminal.root), "status", "--json"]
    return Answer(subprocess.run(words, capture_output=True, text=True, check=True)).json


def test_the_lock_of_a_run_is_seen_without_taking_it(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    folder = terminal.data / "posagent"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    assert ask(terminal)["doing"]["state"] == "idle"
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert ask(terminal)["doing"]["state"] == "idle", "an agent that waits for work is no run"
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, lock_request(fcntl.F_WRLCK, RUN_BYTE, 1))
    assert ask(terminal)["doing"]["state"] == "checking"
    assert terminal.run("status", "--exit-code").code == 3
    assert terminal.run("validate").code == 5
    os.close(lock)
    assert ask(terminal)["doing"]["state"] == "idle"


def test_no_body_of_a_record_appears(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    pan = "4111111111111111"
    value = json.dumps({"status": "pending", "amount": 7, "currency": "EUR", "card": pan})
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES ('tx_card', ?)", (value,))
    db.execute("INSERT INTO transactions VALUES ('tx_odd', ?)", (value[:-1],))
    db.close()
    terminal.boot()
    for verb in ("status", "validate", "history", "backups", "health"):
        for words in ((verb,), (verb, "--json")):
            answer = terminal.run(*words)
            assert pan not in answer.out + answer.err
