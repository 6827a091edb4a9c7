"""A migration that hangs, crashes or eats memory: killed, counted, given up, tried when asked.

The daemon outlives all of it and the old data stays in use. Deadlines are made short by the
terminal's own configuration; where a test must know that the worker has come to a place, the
migration says so through a FIFO.
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests import killing
from tests.terminals import COMMAND, Terminal, new_terminal

NAME = "0004_misbehaves.py"
WAIT_S = 30  # how long a process may take to be gone; nothing here takes a second
GOOD = """from agent.core.migration import each
def up(record, context):
    record["touched"] = record.get("touched", 0) + 1
    return record
VERSION, NAME = 4, "counts"
STEPS = [each("transactions", up, fields=["touched"])]
"""
# The body of `up`, or of the whole file, and what the technician is told.
DEADLINE, MEMORY, DEATH = "no progress within the deadline", "memory", "exit|signal"
BAD = {
    "hangs in Python": ("    while True: pass", 7, DEADLINE),
    "hangs in C": ("    import re; re.match('(a+)+$', 'a' * 60 + 'b')", 7, DEADLINE),
    "sleeps": ("    import time; time.sleep(10**6)", 7, DEADLINE),
    "stops itself": ("    import os; os.kill(os.getpid(), 19)", 7, DEADLINE),
    "eats memory at once": ("    bytearray(1 << 34)", 7, MEMORY),
    "eats memory bit by bit": ("    kept.extend(bytes(4096) for _ in range(10**4))", 7, MEMORY),
    "kills itself": ("    import os; os.kill(os.getpid(), 9)", 1, "killed by signal 9"),
    "leaves well": ("    import os; os._exit(0)", 1, "exit 0"),
}  # fmt: skip
AT_IMPORT = {
    "hangs when it is read": ("while True: pass\n", 7, DEADLINE),
    "dies when it is read": ("import os; os._exit(1)\n", 1, "exit 1"),
    "eats memory when it is read": ("x = bytearray(1 << 34)\n", 7, MEMORY),
}
# These are told as errors and end the boot at once: three boots until the plan is given up.
RAISING = {
    "recurses for ever": "    return up(record, context)",
    "raises": "    raise ValueError('no')",
    "wants to exit": "    raise SystemExit(0)",
    "pretends to be interrupted": "    raise KeyboardInterrupt",
}


def bad(body: str) -> str:
    """A migration whose `up` is `body`."""
    return GOOD.replace("def up", "kept = []\ndef up").replace(
        '    record["touched"] = record.get("touched", 0) + 1', body
    )


def terminal_with(root: Path, migration: str, **overrides: Any) -> Terminal:
    """A terminal whose fourth migration is this text."""
    terminal = new_terminal(root)
    folder = terminal.own_migrations()
    (folder / NAME).write_text(migration)
    stores = folder / "stores.json"
    stores.write_text(stores.read_text().replace('"app_reads": [0, 3]', '"app_reads": [0, 4]'))
    terminal.configure(batch_rows_max=64, **overrides)
    return terminal


def diary(terminal: Terminal, sql: str) -> list[tuple[Any, ...]]:
    """Rows of agent.db, read from a copy with our own SQL."""
    with reader.opened(terminal.data / "posagent/agent.db") as db:
        return db.execute(sql).fetchall()


def attempts(terminal: Terminal) -> int:
    """How many attempts were ever counted."""
    return int(diary(terminal, "SELECT count(*) FROM attempts")[0][0])


def as_it_was(terminal: Terminal, source: str) -> None:
    """The old data, byte for byte, and nothing of the run but its backup."""
    assert terminal.sha256() == source
    assert terminal.listing() == ["pos.db", "posagent"]
    assert list(terminal.backups.glob("*.tmp")) == []


def not_tried_again(terminal: Terminal, source: str) -> None:
    """The next boot leaves a plan alone that was given up; the application may start."""
    before = attempts(terminal)
    failures = diary(terminal, "SELECT * FROM history")
    answer = terminal.boot()
    assert answer.json["verdict"] == "HELD", answer.out
    assert answer.json["error"]["facts"]["cause"] == "GIVEN_UP"
    assert answer.json["app_may_start"] is True
    assert answer.code not in (0, 12, 70)
    assert attempts(terminal) == before
    assert diary(terminal, "SELECT * FROM history") == failures, "history does not grow by itself"
    as_it_was(terminal, source)


def corrected(terminal: Terminal) -> None:
    """An edited file is another plan: the next boot tries it by itself, and it succeeds."""
    (terminal.root / "migrations" / NAME).write_text(GOOD)
    terminal.configure(deadline_ms=30_000)
    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out
    found = terminal.read()
    assert found.schema_version == 4
    for key, raw in found.stores["transactions"].items():
        value = reader.parse(raw)
        if isinstance(value, dict):
            assert value["touched"] == reader.Number("1"), key


@pytest.mark.parametrize("name", [*BAD, *AT_IMPORT])
def test_the_third_death_at_one_place_gives_the_plan_up_and_the_old_data_stays_in_use(
    tmp_path: Path, name: str
) -> None:
    body, code, why = BAD.get(name) or AT_IMPORT[name]
    text = bad(body) if name in BAD else body + GOOD
    terminal = terminal_with(tmp_path / "t", text, deadline_ms=800)
    source = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == code, answer.out + answer.err
    assert answer.json["verdict"] == "HELD"
    assert answer.json["error"]["facts"]["cause"] == "GIVEN_UP"
    assert why in answer.json["error"]["message"]
    assert "3 attempts in a row" in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True
    assert attempts(terminal) == 3
    as_it_was(terminal, source)
    assert len(diary(terminal, "SELECT 1 FROM history WHERE state = 'failed'")) == 1
    not_tried_again(terminal, source)
    asked = terminal.run("migrate", "--json")
    assert asked.code == code, asked.out
    assert attempts(terminal) == 6, "who asks gets a new count"
    not_tried_again(terminal, source)
    corrected(terminal)


def test_a_worker_that_hangs_in_sql_is_killed_and_its_plan_given_up(tmp_path: Path) -> None:
    """The application's own index is quick to keep up until a record has been touched."""
    terminal = terminal_with(tmp_path / "t", GOOD, deadline_ms=800)
    with closing(sqlite3.connect(terminal.pos)) as db, db:
        db.execute(
            "CREATE INDEX slow ON transactions (key) WHERE CASE json_extract(value, '$.touched')"
            " WHEN 1 THEN instr(printf('%.*c', 2000000, 'a'), printf('%.*c', 1000000, 'a') || 'b')"
            " ELSE 0 END"
        )
    source = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 7, answer.out + answer.err
    assert answer.json["error"]["facts"]["cause"] == "GIVEN_UP"
    assert f"{DEADLINE} of 800 ms while migrating" in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True
    assert attempts(terminal) == 3
    as_it_was(terminal, source)
    not_tried_again(terminal, source)
    with closing(sqlite3.connect(terminal.pos)) as db, db:
        db.execute("DROP INDEX slow")
    asked = terminal.run("migrate", "--json")
    assert (asked.code, asked.json["verdict"]) == (0, "OK"), asked.out


@pytest.mark.parametrize("name", RAISING)
def test_a_migration_that_fails_ends_the_boot_and_the_third_failure_is_the_last(
    tmp_path: Path, name: str
) -> None:
    terminal = terminal_with(tmp_path / "t", bad(RAISING[name]))
    source = terminal.sha256()
    for count in (1, 2, 3):
        answer = terminal.boot()
        assert answer.code == 10, answer.out
        assert answer.json["verdict"] == "ROLLED_BACK"
        assert answer.json["error"]["code"] == "VALIDATION_ERROR"
        assert "transactions/" in answer.json["error"]["message"], "the record is named"
        assert answer.json["app_may_start"] is True
        assert attempts(terminal) == count
        as_it_was(terminal, source)
    not_tried_again(terminal, source)
    assert len(list(terminal.backups.iterdir())) == 1, "one backup served all attempts"
    corrected(terminal)


def test_a_request_can_succeed_where_boots_had_given_up(tmp_path: Path) -> None:
    """What failed was the surroundings, not the file: its digest is the same."""
    flag = tmp_path / "broken"
    flag.touch()
    body = f"    import os\n    if os.path.exists({str(flag)!r}): os._exit(9)"
    terminal = terminal_with(tmp_path / "t", bad(body))
    source = terminal.sha256()
    assert terminal.boot().code == 1
    not_tried_again(terminal, source)
    flag.unlink()
    not_tried_again(terminal, source)
    answer = terminal.run("migrate", "--json")
    assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out
    assert terminal.read().schema_version == 4


def test_a_death_that_came_further_starts_a_new_count(tmp_path: Path) -> None:
    """Each attempt dies one batch later; no three at one place, so the run comes to its end."""
    seen = tmp_path / "seen"
    seen.write_text("0")
    body = (
        "    import os\n"
        "    global kept\n"
        "    kept.append(1)\n"
        f"    if len(kept) == 65:\n"
        f"        deaths = int(open({str(seen)!r}).read())\n"
        "        if deaths < 4:\n"
        f"            open({str(seen)!r}, 'w').write(str(deaths + 1))\n"
        "            os._exit(9)\n"
        '    record["touched"] = record.get("touched", 0) + 1'
    )
    terminal = terminal_with(tmp_path / "t", bad(body))
    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out
    assert seen.read_text() == "4"
    assert attempts(terminal) == 5


# --- cuts of the supervisor ----------------------------------------------------------------------


def cut(terminal: Terminal, at: str) -> None:
    """Worker and supervisor die at this moment of the worker."""
    command = [*COMMAND, "--root", str(terminal.root), "boot", "--json"]
    traced = killing.trace(command, terminal.root / "cut", victim="supervisor", at=at)
    assert traced.killed, traced.out


def write_diary(terminal: Terminal, sql: str) -> None:
    """Change agent.db as another boot would have left it."""
    db = sqlite3.connect(terminal.data / "posagent/agent.db", isolation_level=None)
    db.execute(sql)
    db.close()


def test_an_attempt_is_counted_before_its_first_work(tmp_path: Path) -> None:
    terminal = terminal_with(tmp_path / "t", GOOD)
    cut(terminal, 'mark {"state":"checking"')
    ((boot, ended),) = diary(terminal, "SELECT boot_id, ended FROM attempts")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ended is None


def test_a_boot_loop_without_a_power_cut_stops_at_the_fourth_boot(tmp_path: Path) -> None:
    terminal = terminal_with(tmp_path / "t", GOOD)
    source = terminal.sha256()
    for _ in range(3):
        cut(terminal, "fsync pos.db.next")
    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"]) == (1, "HELD"), answer.out
    assert answer.json["app_may_start"] is True
    assert attempts(terminal) == 3
    as_it_was(terminal, source)


def test_power_cuts_at_one_place_do_not_count_as_being_stuck(tmp_path: Path) -> None:
    terminal = terminal_with(tmp_path / "t", GOOD)
    for number in range(4):
        cut(terminal, "fsync pos.db.next")
        write_diary(terminal, f"UPDATE attempts SET boot_id = 'boot-{number}' WHERE ended IS NULL")
    assert terminal.boot().json["verdict"] == "OK"
    assert attempts(terminal) == 5


@pytest.mark.parametrize("cuts", [19, 20])
def test_the_twentieth_power_cut_ends_a_plan(tmp_path: Path, cuts: int) -> None:
    terminal = terminal_with(tmp_path / "t", GOOD)
    source = terminal.sha256()
    cut(terminal, "fsync pos.db.next")
    for number in range(cuts - 1):
        write_diary(
            terminal,
            f"INSERT INTO attempts (plan, boot_id) SELECT plan, 'boot-{number}' FROM attempts "
            "WHERE seq = 1",
        )
    write_diary(terminal, "UPDATE attempts SET boot_id = 'boot-first' WHERE seq = 1")
    answer = terminal.boot()
    if cuts == 19:
        assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out
        return
    assert (answer.code, answer.json["verdict"]) == (1, "HELD"), answer.out
    assert "20 attempts did not finish" in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True
    as_it_was(terminal, source)
    not_tried_again(terminal, source)


# --- the lifeline, and two at once ---------------------------------------------------------------


def telling(fifo: Path, then: str) -> str:
    """A migration that writes its worker's pid into a FIFO, once, and goes on with `then`."""
    return bad(
        "    import os, re, time\n"
        "    if not kept:\n"
        "        kept.append(1)\n"
        f"        fd = os.open({str(fifo)!r}, os.O_WRONLY)\n"
        "        os.write(fd, b'%d' % os.getpid())\n"
        "        os.close(fd)\n"
        f"        {then}"
    )


@pytest.mark.parametrize(
    "then", ["while True: pass", "re.match('(a+)+$', 'a' * 60 + 'b')", "time.sleep(10**6)"]
)
def test_a_worker_does_not_outlive_its_supervisor(tmp_path: Path, then: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    terminal = terminal_with(tmp_path / "t", telling(fifo, then))
    source = terminal.sha256()
    supervisor = terminal.start("boot", "--json")
    worker = int(fifo.read_text())
    handle = os.pidfd_open(worker)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.communicate()
    gone, _, _ = select.select([handle], [], [], WAIT_S)
    os.close(handle)
    assert gone, f"worker {worker} lives on"
    assert terminal.sha256() == source
    corrected(terminal)


def test_a_worker_stopped_from_outside_is_killed_at_its_deadline(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    terminal = terminal_with(
        tmp_path / "t", telling(fifo, "os.kill(os.getpid(), 19)"), deadline_ms=800
    )
    source = terminal.sha256()
    supervisor = terminal.start("boot", "--json")
    for _ in range(3):
        fifo.read_text()
    out, _ = supervisor.communicate(timeout=WAIT_S)
    assert supervisor.returncode == 7, out
    as_it_was(terminal, source)


@pytest.mark.parametrize("count", range(2, 9))
def test_of_several_started_together_exactly_one_runs(tmp_path: Path, count: int) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    body = f'    kept or kept.append(open({str(fifo)!r}).read())\n    record["touched"] = 1'
    terminal = terminal_with(tmp_path / "t", bad(body))
    running = [terminal.start("boot", "--json") for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        ended = as_completed([pool.submit(lambda p: (p.communicate()[0], p), p) for p in running])
        for _ in range(count - 1):  # the one that runs waits for the FIFO meanwhile
            out, process = next(ended).result()
            assert process.returncode == 5, out
        fifo.write_text("go on")
        out, process = next(ended).result()
    assert process.returncode == 0, out
    assert '"verdict":"OK"' in out
    assert attempts(terminal) == 1
    assert terminal.read().schema_version == 4
    assert len(diary(terminal, "SELECT 1 FROM history WHERE state = 'applied'")) == 4
