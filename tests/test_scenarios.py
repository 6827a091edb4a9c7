"""Upgrades that went wrong in the field, played through to the end by the real command.

Each test is named by its scenario: A2 a version jump with old bookkeeping, A4 the last check fails,
A5 no number twice, A6 not settled, A7 the clock jumps, A8 flash nearly full. What a scenario needs
of the world is real: another clock for the command, a full file system, a killed process, and an
application that sells before and after.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.edges import database
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import ValidationError
from agent.verbs import moving, rows, survey
from agent.verbs.prove import prove_migration
from tests import filesystems as fs
from tests import independent_reader as reader
from tests import killing
from tests.applications import (
    HEAD,
    MIGRATIONS,
    Application,
    NotReadable,
    install,
    sales_in,
    totals,
)
from tests.terminals import COMMAND, Answer, Gate, Terminal, new_terminal

MIB = fs.MIB
DAY_S = 86_400
LIMITS = (1 << 20, 64)  # the largest record in bytes and its deepest nesting


def terminal_at(root: Path, version: int, **recipe: Any) -> Terminal:
    """A terminal that the software of a version has brought to its schema."""
    recipe = {"records": 60, "unsettled": 12, "extra_tables": True, **recipe}
    terminal = new_terminal(root, **recipe)
    install(terminal, version)
    if version:
        answer = terminal.boot()
        assert answer.code == 0, answer.out
    return terminal


def add_migration(terminal: Terminal, text: str) -> Path:
    """One more file behind the shipped ones, or behind those of an earlier call."""
    folder = terminal.own_migrations()
    version = len(list(folder.glob("[0-9]*.py"))) + 1
    path = folder / f"{version:04d}_of_the_test.py"
    path.write_text(
        "from agent.core.migration import *\n"
        f"{text}\nVERSION, NAME = {version}, 'a migration of the test'\n"
    )
    stores = json.loads((folder / "stores.json").read_text())
    stores["app_reads"] = [0, version]
    (folder / "stores.json").write_text(json.dumps(stores))
    return path


def diary(terminal: Terminal, sql: str, name: str = "agent.db") -> list[tuple[Any, ...]]:
    """Rows of the diary, or of one that was set aside, read from a copy with our own SQL."""
    with reader.opened(terminal.data / "posagent" / name) as db:
        return db.execute(sql).fetchall()


def change(terminal: Terminal, statement: str, *given: Any) -> None:
    """What the application does to its data."""
    with closing(sqlite3.connect(terminal.pos, isolation_level=None)) as db:
        db.execute(statement, given)


def traced(terminal: Terminal, folder: Path, *words: str, **given: Any) -> killing.Traced:
    """The command, seen in all that its worker does that others can see."""
    command = [*COMMAND, "--root", str(terminal.root), *words]
    return killing.trace(command, folder / "seen", **given)


def of_state(moments: list[str], state: str) -> list[dict[str, Any]]:
    """The marks of progress that name a state of the run."""
    marks = [json.loads(text[5:]) for text in moments if text.startswith('mark {"state"')]
    return [mark for mark in marks if mark["state"] == state]


class Untouched:
    """pos.db as it is now: neither changed nor replaced, nor is anything lost that lies there."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.sha256 = terminal.sha256()
        self.inode = terminal.pos.stat().st_ino
        self.names = terminal.listing()
        self.backups = set(os.listdir(terminal.backups)) if terminal.backups.exists() else set()

    def check(self) -> None:
        """As it was, and nothing half-made beside it."""
        assert self.terminal.sha256() == self.sha256
        assert self.terminal.pos.stat().st_ino == self.inode
        assert self.terminal.listing() == self.names
        left = set(os.listdir(self.terminal.backups))
        assert self.backups <= left
        assert all(name.endswith(".posbak") for name in left)


# --- A2: a version jump with old bookkeeping -----------------------------------------------------


class OldDiary(NamedTuple):
    """An agent.db that other software left: its format number, tables, and a row per version."""

    name: str
    format: int
    tables: tuple[str, ...]
    insert: str


OLD_DIARIES = (
    OldDiary(
        "history as the first software wrote it",
        0,
        ("CREATE TABLE history (version INTEGER PRIMARY KEY, name TEXT, at TEXT)",),
        "INSERT INTO history VALUES (:version, 'm', '1970-01-01')",
    ),
    OldDiary(
        "columns missing under the number of today",
        1,
        (
            "CREATE TABLE history (seq INTEGER PRIMARY KEY, run TEXT, kind TEXT, version INTEGER)",
            "CREATE TABLE attempts (seq INTEGER PRIMARY KEY, plan TEXT)",
            "CREATE TABLE given_up (plan TEXT PRIMARY KEY)",
        ),
        "INSERT INTO history VALUES (:version, 'r', 'migrate', :version)",
    ),
    OldDiary(
        "tables of other names",
        1,
        ("CREATE TABLE schema_migrations (version INTEGER, applied_at INTEGER)",),
        "INSERT INTO schema_migrations VALUES (:version, 0)",
    ),
    OldDiary(
        "a format that came later",
        7,
        ("CREATE TABLE history (version INTEGER, body TEXT)",),
        "INSERT INTO history VALUES (:version, '{}')",
    ),
)
RAISES = """
from agent.core.migration import each
def raises(record, context):
    if record.get("receipt") == 1040:
        raise RuntimeError("no")
    return {**record, "touched": True}
STEPS += [each("transactions", raises, fields=["touched"])]
"""
SIXTH = """
from agent.core.migration import set_field
VERSION, NAME = 6, "say who sends"
STEPS = [set_field("sync", "sender", "till")]
"""


def leave_old_diary(terminal: Terminal, old: OldDiary, version: int) -> dict[str, Any]:
    """Put an old diary in place of the one that is there; what it holds, by table."""
    path = terminal.data / "posagent" / "agent.db"
    for side in path.parent.glob("agent.db*"):
        side.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in old.tables:
            db.execute(table)
        for applied in range(1, version + 1):
            db.execute(old.insert, {"version": applied})
        db.execute(f"PRAGMA user_version = {old.format}")
    return reader.other_tables(path)


@pytest.mark.parametrize("old", OLD_DIARIES, ids=lambda old: old.name)
@pytest.mark.parametrize("start", range(1, HEAD + 1))
def test_a2_a_step_that_raises_in_a_version_jump_leaves_old_data_and_its_old_software_sells(
    tmp_path: Path, start: int, old: OldDiary
) -> None:
    terminal = terminal_at(tmp_path / "t", start)
    application = Application(start, terminal.pos)
    application.sell(3)
    shown = application.sales()
    bookkeeping = leave_old_diary(terminal, old, start)
    raising = max(4, start + 1)
    texts = {f"m{version}": text for version, text in {**MIGRATIONS, 6: SIXTH}.items()}
    texts[f"m{raising}"] += RAISES
    install(terminal, 6, **texts)
    untouched = Untouched(terminal)

    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"]) == (10, "ROLLED_BACK"), answer.out + answer.err
    assert answer.json["error"]["code"] == "VALIDATION_ERROR"
    assert f"{raising:04d}_of_the_test.py" in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True
    untouched.check()
    # The old bookkeeping is set aside whole; what is told of this run stands in a new diary.
    aside = list((terminal.data / "posagent").glob("agent.db.*"))
    assert [reader.other_tables(path) for path in aside] == [bookkeeping]
    failed = "SELECT verdict, from_version, to_version FROM history WHERE state = 'failed'"
    assert diary(terminal, failed) == [("ROLLED_BACK", start, 6)]

    assert application.sales() == shown
    application.sell(2)
    assert len(application.sales()) == len(shown) + 2
    with pytest.raises(NotReadable):
        Application(6, terminal.pos)
    # The file is corrected: the same jump, from the data as they have become, succeeds.
    install(terminal, 6, m6=SIXTH)
    shown = application.sales()
    assert terminal.boot().code == 0
    assert Application(6, terminal.pos).sales() == shown
    assert [reader.other_tables(path) for path in aside] == [bookkeeping]


def test_a2_a_restore_that_is_refused_is_told_as_refused_though_the_bookkeeping_is_lost(
    tmp_path: Path,
) -> None:
    terminal = terminal_at(tmp_path / "t", 0)
    assert terminal.run("backup").code == 0
    install(terminal, 2)
    assert terminal.boot().code == 0
    Application(2, terminal.pos).sell(2)
    for side in (terminal.data / "posagent").glob("agent.db*"):
        side.unlink()
    sha256 = terminal.sha256()
    answer = terminal.run("restore", "1", "--json")
    assert (answer.code, answer.json["verdict"]) == (13, "REFUSED"), answer.out
    assert answer.json["error"]["code"] == "UNSETTLED"
    assert terminal.sha256() == sha256
    # What was done before is in history all the same: it was read from the data.
    applied = "SELECT version FROM history WHERE state = 'applied' ORDER BY seq"
    assert diary(terminal, applied) == [(1,), (2,)]


# --- A4: the last check fails --------------------------------------------------------------------


def refused_at_the_proof(terminal: Terminal, folder: Path, says: str) -> None:
    """A boot whose batches are all done and whose proof refuses: the old data in use, and at no
    moment a rename over pos.db."""
    untouched = Untouched(terminal)
    version = terminal.read().schema_version
    seen = traced(terminal, folder, "boot", "--json")
    assert seen.code == 10, seen.out
    assert (seen.json["verdict"], seen.json["error"]["code"]) == ("ROLLED_BACK", "VALIDATION_ERROR")
    assert says in seen.json["error"]["message"]
    assert seen.json["app_may_start"] is True
    last = of_state(seen.moments, "migrating")[-1]
    assert last["done"] >= last["total"] > 0, "all batches were done"
    assert of_state(seen.moments, "proving")
    assert not of_state(seen.moments, "switching")
    renames = [text for text in seen.moments if re.match(r"(rename|link) .*pos\.db$", text)]
    assert renames == [], "the new version was current for a moment"
    untouched.check()
    assert terminal.read().schema_version == version
    assert diary(terminal, "SELECT state, verdict FROM history WHERE from_version = 0") == [
        ("failed", "ROLLED_BACK")
    ]
    assert terminal.run("status", "--json").json["doing"]["version"] == version


def sales_with(terminal: Terminal, status: str) -> list[str]:
    """The keys of the sales that have a status, in the order in which they lie there."""
    rows = terminal.read().stores["transactions"]
    return [k for k, raw in rows.items() if k[:3] == "tx_" and f'"status":"{status}"' in str(raw)]


@pytest.mark.parametrize("status", ["completed", "pending"])
def test_a4_one_cent_more_on_one_sale_is_found_after_all_batches(
    tmp_path: Path, status: str
) -> None:
    terminal = new_terminal(tmp_path / "t", records=320, unsettled=40)
    terminal.configure(batch_rows_max=16)
    key = sales_with(terminal, status)[-1]
    path = add_migration(
        terminal,
        "def up(record, context):\n"
        f"    if record.get('id') == {key!r} and 'stan' in record: record['amount'] += 1\n"
        "    return record\n"
        "STEPS = [each('transactions', up, fields=['amount'])]\n",
    )
    before = terminal.read()
    refused_at_the_proof(terminal, tmp_path, "the money would move")
    path.unlink()
    assert terminal.boot().code == 0
    reader.expect_migrated(before.stores, terminal.read().stores, terminal.device_id)


@pytest.mark.parametrize("store", reader.STORES)
def test_a4_a_store_that_came_out_empty_is_found_by_the_proof(tmp_path: Path, store: str) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=12)
    old = tmp_path / "old.db"
    shutil.copyfile(terminal.pos, old)
    answer = terminal.boot()
    assert answer.code == 0
    files = MigrationFiles(str(Path(__file__).parent.parent / "migrations"))

    def prove() -> int:
        was, is_now = (closing(database.open_source(str(p), 65536)) for p in (old, terminal.pos))
        with was as before, is_now as after:
            plan = files.load(0)
            plan.bind(answer.json["timestamp"], terminal.device_id, rows.read_applied(before))
            found = survey.survey(
                before, files.contracts.at(0), plan.stores(), LIMITS, lambda *_: None
            )
            return prove_migration(
                before,
                after,
                plan,
                found.tally.as_json(),
                files.contracts,
                moving.moves_of(before, plan, after),
                LIMITS,
                lambda *_: None,
            )

    records = {(where.store, where.key) for where in reader.unsettled(old)}
    assert prove() == len(records), "the very file that the command made is proven"
    change(terminal, f"DELETE FROM {store}")
    with pytest.raises(ValidationError):
        prove()


@pytest.mark.parametrize("status", ["completed", "pending"])
def test_a4_a_key_that_another_table_refers_to_and_a_step_moves_is_found_by_the_proof(
    tmp_path: Path, status: str
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=12)
    change(terminal, "CREATE TABLE receipts (no INTEGER, tx TEXT REFERENCES transactions(key))")
    key = sales_with(terminal, status)[0]
    change(terminal, "INSERT INTO receipts VALUES (1, ?), (2, NULL)", key)
    text = f"STEPS = [move_record('transactions', {key!r}, to_key='tx_moved')]\n"
    path = add_migration(terminal, text)
    refused_at_the_proof(terminal, tmp_path, "foreign key")
    # Nobody refers to it any more: the same file is a migration like any other.
    change(terminal, "DELETE FROM receipts")
    assert terminal.boot().code == 0
    assert "tx_moved" in terminal.read().stores["transactions"]
    assert path.exists()


# --- A5: no number twice -------------------------------------------------------------------------

LAST_STAN, LAST_RECEIPT = 999_990, 4703  # what is issued when the backup is taken


def renumber(terminal: Terminal) -> None:
    """Give the sales of a sample terminal the numbers of one that has sold for years."""
    change(
        terminal,
        "UPDATE transactions SET value = json_set(value,"
        " '$.stan', json_extract(value, '$.stan') + ?,"
        " '$.receipt', json_extract(value, '$.receipt') + ?) WHERE key LIKE 'tx_%'",
        LAST_STAN - 60,
        LAST_RECEIPT - 1060,
    )
    text = json.dumps({"stan": LAST_STAN, "receipt": LAST_RECEIPT})
    change(terminal, "UPDATE metadata SET value = ? WHERE key = 'counters'", text)


@pytest.mark.parametrize(
    "cut",
    ["", 'mark {"state":"building"', "create seal.tmp", "rename pos.db.next pos.db"],
    ids=lambda cut: f"restore cut at {cut}" if cut else "restore not cut",
)
@pytest.mark.parametrize(
    ("sold", "next_numbers"),
    [(8, [(999_999, 4712), (1, 4713)]), (11, [(3, 4715), (4, 4716)])],
    ids=["up to 999998", "past the wrap"],
)
def test_a5_numbers_issued_after_the_backup_are_not_issued_again_after_its_restore(
    tmp_path: Path, sold: int, next_numbers: list[tuple[int, int]], cut: str
) -> None:
    terminal = terminal_at(tmp_path / "t", 2)
    renumber(terminal)
    application = Application(2, terminal.pos)
    assert terminal.run("backup").code == 0
    at_backup = application.sales()
    issued = application.sell(sold)
    assert (999_998, 4711) in issued
    used = application.used_numbers()
    # The upgrade loses power, and the technician goes back to the software that was there.
    install(terminal, HEAD)
    died = traced(
        terminal, tmp_path, "boot", "--json", victim="supervisor", at='mark {"state":"migrating"'
    )
    assert died.killed
    install(terminal, 2)
    # By its number: the latest is the one that the upgrade has taken, with all that was sold.
    refused = terminal.run("restore", "2", "--json")
    assert (refused.code, refused.json["error"]["facts"]["newer"]) == (13, sold), refused.out
    words = ("restore", "2", "--discard", f"newer={sold}", "--json")
    if cut:
        died = traced(terminal, tmp_path, *words, victim="supervisor", at=cut)
        assert died.killed, died.out
        assert terminal.boot().code == 0
    if application.sales() != at_backup:
        done = terminal.run(*words)
        assert done.code == 0, done.out
    assert application.sales() == at_backup
    assert application.counters() == {"stan": issued[-1][0], "receipt": issued[-1][1]}
    assert application.sell(2) == next_numbers
    for stan, receipt in next_numbers:
        assert stan not in used["stan"]
        assert receipt not in used["receipt"]


# --- A6: not settled -----------------------------------------------------------------------------

REVERSALS = (
    '[ {"id":"rev_3","type":"reversal","originalId":"tx_3","currency":"EUR","amount":-1250,'
    '"rate":10.50,"timestamp":1735689000003,"status":"pending"},\n'
    '{"id":"rev_1","type":"reversal","originalId":"tx_1","currency":"NIM","amount":-70000,'
    '"rate":1e3,"timestamp":1735689000001,"status":"pending"},'
    '{"status":"pending","id":"rev_2","type":"reversal","originalId":"tx_2","currency":"EUR",'
    '"amount":-5,"note":"\\u00e9","timestamp":1735689000002} ]'
)


@pytest.fixture
def open_batch(tmp_path: Path) -> Terminal:
    """A terminal with 212 unsettled sales and three queued reversals."""
    terminal = new_terminal(tmp_path / "t", records=400, unsettled=212)
    change(terminal, "UPDATE transactions SET value = ? WHERE key = 'transaction-queue'", REVERSALS)
    return terminal


def unsettled_figures(terminal: Terminal) -> dict[str, Any]:
    """Unsettled records, and count and sum by currency, by the independent reader."""
    places = {(where.store, where.key) for where in reader.unsettled(terminal.pos)}
    money = reader.money(terminal.pos, unsettled_only=True)
    named = {name: {"count": count, "sum": total} for name, (count, total) in money.items()}
    return {"records": len(places), "money": named}


def files_of(terminal: Terminal) -> dict[str, tuple[int, bytes]]:
    """Inode and bytes of each file that stays after power goes, the diary and the lock left out."""
    found = {}
    for folder, _, names in os.walk(terminal.root):
        for name in names:
            path = Path(folder, name)
            where = str(path.relative_to(terminal.root))
            if not where.startswith(("run/", "data/posagent/agent.db", "data/posagent/lock")):
                found[where] = (path.stat().st_ino, path.read_bytes())
    return found


def refused_as_unsettled(terminal: Terminal, *words: str) -> None:
    """An answer that changes nothing and says how much money waits."""
    before = files_of(terminal)
    answer = terminal.run(*words, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (13, "UNSETTLED"), answer.out
    assert answer.json["error"]["facts"] == unsettled_figures(terminal)
    assert answer.json["verdict"] == "REFUSED"
    assert answer.json["app_may_start"] is True
    assert files_of(terminal) == before


def migrated_with_the_queue_as_it_was(terminal: Terminal, before: reader.Terminal) -> None:
    """The new schema, and the reversals in their order and their bytes."""
    after = terminal.read()
    reader.expect_migrated(before.stores, after.stores, terminal.device_id)
    assert after.stores["transactions"]["transaction-queue"] == REVERSALS


def test_a6_an_open_batch_is_refused_where_the_profile_says_so_and_nothing_changes(
    open_batch: Terminal,
) -> None:
    open_batch.configure(unsettled_guard="refuse")
    assert unsettled_figures(open_batch)["records"] > 212
    for verb in ("migrate", "boot", "migrate", "boot"):
        refused_as_unsettled(open_batch, verb)
    assert diary(open_batch, "SELECT state, code FROM history") == [("failed", "UNSETTLED")]


def test_a6_where_the_profile_preserves_an_open_batch_the_reversals_keep_order_and_bytes(
    open_batch: Terminal,
) -> None:
    before, figures = open_batch.read(), unsettled_figures(open_batch)
    answer = open_batch.run("migrate", "--json")
    assert answer.code == 0, answer.out
    assert answer.json["unsettled"] == figures["records"]
    migrated_with_the_queue_as_it_was(open_batch, before)


@pytest.mark.parametrize("cut", ["", 'mark {"state":"proving"', "rename pos.db.next pos.db"])
def test_a6_with_consent_an_open_batch_is_migrated_and_history_notes_the_consent(
    open_batch: Terminal, tmp_path: Path, cut: str
) -> None:
    open_batch.configure(unsettled_guard="refuse")
    before, figures = open_batch.read(), unsettled_figures(open_batch)
    refused_as_unsettled(open_batch, "migrate")
    words = ("migrate", "--despite-unsettled", "--json")
    if cut:  # power goes, and the next boot finishes what was consented to
        assert traced(open_batch, tmp_path, *words, victim="supervisor", at=cut).killed
    answer = open_batch.boot() if cut else open_batch.run(*words)
    assert answer.code == 0, answer.out
    assert answer.json["unsettled"] == figures["records"]
    migrated_with_the_queue_as_it_was(open_batch, before)
    rows = open_batch.run("history", "--json").json["history"]
    applied = [row for row in rows if row["state"] == "applied"]
    assert [row["version"] for row in applied] == [1, 2, 3]
    assert [row["facts"]["despite_unsettled"] for row in applied] == [True] * 3


# --- A7: the clock jumps -------------------------------------------------------------------------

LIBRARY = "faketime/libfaketime.so.1"
DEAD_BATTERY = 60  # a minute after the clock began anew at 1970
RIGHT = 1_782_000_000  # an honest day in 2026
FAR_AHEAD = 4_000_000_000  # 2096: no firmware is upgraded after so many years


class Clock:
    """Another wall clock for a command and all it starts, which can be set while they run.

    The clock that only goes forward stays the machine's own, as on a terminal.
    """

    def __init__(self, folder: Path, at_s: int) -> None:
        self._file = folder / "clock"
        self.set(at_s)

    def set(self, at_s: int) -> None:
        """From now on it is `at_s` seconds after 1970."""
        aside = self._file.with_suffix(".new")
        aside.write_text(f"{at_s - int(time.time()):+d}\n")
        aside.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """What a command is to be started with."""
        found = [str(path) for path in Path("/usr/lib").glob(f"*/{LIBRARY}")]
        assert found, "libfaketime is missing: sh tools/setup.sh tests"
        return {
            **os.environ,
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def end(self, run: subprocess.Popen[str]) -> Answer:
        """Wait for a command. Its worker leaves without a farewell, so the library's shared
        memory is removed here."""
        out, err = run.communicate(timeout=100)
        for name in ("faketime_shm", "sem.faketime_sem"):
            Path(f"/dev/shm/{name}_{run.pid}").unlink(missing_ok=True)
        return Answer(subprocess.CompletedProcess(run.args, run.returncode, out, err))

    def run(self, terminal: Terminal, *words: str) -> Answer:
        """A command under this clock."""
        return self.end(terminal.start(*words, env=self.environment))


def test_a7_the_wrong_clock_is_wrong_and_the_steady_one_is_not(tmp_path: Path) -> None:
    code = "import time; print(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))"
    environment = Clock(tmp_path, DEAD_BATTERY).environment
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    done = subprocess.Popen(
        [COMMAND[0], "-I", "-S", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wall, steady = Clock(tmp_path, DEAD_BATTERY).end(done).out.split()
    assert int(wall) // 10**9 < DEAD_BATTERY + 100
    assert before < int(steady) < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_for_a_look(run: subprocess.Popen[str]) -> None:
    """Return once the supervisor has judged its worker, which stands still, after this call began:
    each time it does so it says on standard error that the run still goes on."""
    assert run.stderr is not None
    fd = run.stderr.fileno()
    os.set_blocking(fd, False)
    try:
        while os.read(fd, 65536):
            pass  # what was said before
    except BlockingIOError:
        os.set_blocking(fd, True)
    for _ in range(2):
        assert os.read(fd, 65536), run.communicate()


@pytest.mark.parametrize(
    ("at_start", "in_mid_run", "trusted"),
    [
        (DEAD_BATTERY, DEAD_BATTERY + 20 * DAY_S, False),
        (DEAD_BATTERY, RIGHT, False),
        (RIGHT, RIGHT + 20 * DAY_S, True),
        (RIGHT, DEAD_BATTERY, True),
        (FAR_AHEAD, RIGHT, False),
    ],
    ids=["1970, 20 days on", "1970, set right", "20 days on", "back to 1970", "from 2096 back"],
)
def test_a7_a_clock_that_jumps_in_mid_run_ends_no_run_and_prunes_nothing(
    tmp_path: Path, at_start: int, in_mid_run: int, trusted: bool
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=12)
    terminal.configure(progress_interval_ms=100)
    known = RIGHT - DAY_S
    assert Clock(tmp_path, known).run(terminal, "backup").code == 0
    before = terminal.read()
    gate, clock = Gate(terminal), Clock(tmp_path, at_start)
    run = terminal.start("boot", env=clock.environment)
    gate.wait(run)
    clock.set(in_mid_run)
    wait_for_a_look(run)
    gate.open()
    answer = clock.end(run)
    assert answer.code == 0, answer.out + answer.err
    told = json.loads((terminal.root / "run/posagent/status.json").read_text())
    assert (told["verdict"], told["clock_trusted"]) == ("OK", trusted)
    stamp = reader.expect_migrated(before.stores, terminal.read().stores, terminal.device_id)
    assert stamp == told["timestamp"]
    newest = RIGHT if trusted else known  # a backup is the newest thing that knows the time
    assert newest <= stamp // 1000 < newest + 100
    assert diary(terminal, "SELECT ended FROM attempts") == [("done",)]
    assert len(list(terminal.backups.iterdir())) == 2, "no backup has expired"
    assert terminal.run("verify", "--json").json["damaged"] == []


def test_a7_a_worker_that_stands_still_is_ended_also_when_the_clock_goes_back(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=12)
    terminal.configure(deadline_ms=700)
    before = terminal.read()
    gate, clock = Gate(terminal), Clock(tmp_path, RIGHT)
    run = terminal.start("boot", "--json", env=clock.environment)
    gate.wait(run)
    clock.set(DEAD_BATTERY)
    gate.wait_for_death()  # nobody opens it to this worker; the next one finds none
    answer = clock.end(run)
    assert answer.code == 0, answer.out + answer.err
    attempts = diary(terminal, "SELECT ended, message FROM attempts ORDER BY seq")
    assert [ended for ended, _ in attempts] == ["died", "done"]
    assert "no progress within the deadline" in attempts[0][1]
    reader.expect_migrated(before.stores, terminal.read().stores, terminal.device_id)


def test_a7_history_and_backups_go_by_number_whatever_the_clock_said(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=12)
    terminal.configure(backup_count=3)
    clocks = [RIGHT, DEAD_BATTERY, DEAD_BATTERY + 20 * DAY_S, FAR_AHEAD, DEAD_BATTERY, RIGHT + 60]
    stamps: list[int] = []
    kept: list[int] = []
    for number, at_s in enumerate(clocks):
        if number:
            add_migration(terminal, f"STEPS = [set_field('sync', 'm{number}', NOW)]")
        # The application knew the time when it sold, and lost it with the battery.
        sold_ms = (RIGHT + number) * 1000
        text = json.dumps({"timestamp": sold_ms})
        change(terminal, "INSERT INTO sync VALUES (?, ?)", f"sale_{number}", text)
        keys = {store: set(rows) for store, rows in terminal.read().stores.items()}
        answer = Clock(tmp_path, at_s).run(terminal, "boot", "--json")
        assert answer.code == 0, answer.out
        honest = at_s >= RIGHT and at_s != FAR_AHEAD
        assert answer.json["clock_trusted"] is honest
        stamps.append(answer.json["timestamp"])
        assert stamps[-1] >= sold_ms
        after = {store: set(rows) for store, rows in terminal.read().stores.items()}
        if number:
            assert after == keys, "nothing was pruned"
        kept = [*kept, number + 1][-3:]
        backups = terminal.run("backups", "--json").json["backups"]
        assert [entry["sequence"] for entry in backups] == kept
        assert [entry["made_ms"] for entry in backups] == stamps[-3:]
    rows = terminal.run("history", "--json").json["history"]
    assert [row["version"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["at_ms"] for row in rows] == [stamps[0]] * 2 + stamps
    assert stamps == sorted(stamps)
    # The latest is the one with the highest number, which a dead battery cannot make older.
    change(terminal, "DELETE FROM balances")
    done = terminal.run("restore", "latest", "--json")
    assert done.code == 13, done.out
    assert f"{kept[-1]:06d}" in max(os.listdir(terminal.backups))


# --- A8: flash nearly full -----------------------------------------------------------------------

ERASE_BLOCK_BYTES = 131_072  # of the raw NAND of linux-nand-128: 64 pages of 2 KiB
# The least that a profile may ask for, so that a small file system is ample.
LEAN = {"reserve_bytes": 1 * MIB, "journal_bytes_max": 256 * 1024, "batch_rows_max": 50}


def test_a8_one_erase_block_too_few_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with fs.ext4(tmp_path / "flash", 48 * MIB) as flash:
        terminal = new_terminal(flash / "t", profile="linux-nand-128", records=1500, unsettled=212)
        before = terminal.read()
        filler = flash / "filler"
        fs.fill(filler, 512 * 1024)
        need = terminal.boot().json["error"]["facts"]["total_bytes"]
        fs.fill(filler, need - ERASE_BLOCK_BYTES)
        assert need - 2 * ERASE_BLOCK_BYTES < fs.free_bytes(flash) < need
        untouched, files = Untouched(terminal), files_of(terminal)
        seen = traced(terminal, tmp_path, "boot", "--json")
        assert (seen.code, seen.json["error"]["code"]) == (6, "STORAGE_ERROR"), seen.out
        assert str(need) in seen.json["error"]["message"]
        assert seen.json["app_may_start"] is True
        done = [text for text in seen.moments if not text.startswith(("mark", "fcntl", "flock"))]
        assert set(done) <= {"create pos.db"}, "SQLite says so when it opens what is there"
        untouched.check()
        assert files_of(terminal) == files
        application = Application(0, terminal.pos)
        application.sell(2)
        change(terminal, "DELETE FROM transactions WHERE key LIKE 'tx_v0_%'")
        filler.unlink()
        assert terminal.boot().code == 0
        after = terminal.read().stores
        for store, rows in before.stores.items():
            assert len(after[store]) == len(rows)


STEP = "STEPS = [each('transactions', lambda r, c: {**r, 'note': 'x' * 300}, fields=['note'])]"
SUCCESSOR_WRITES = ("write pos.db.next", "pwrite64 pos.db.next", "pwrite64 pos.db.next-wal")


def ninth_batch(moments: list[str]) -> tuple[int, int]:
    """How many writes to the successor came before the ninth batch of the last walk, and how many
    it has made itself."""
    batches = [n for n, text in enumerate(moments) if text.startswith('mark {"state":"migrating"')]
    others = [n for n in batches if '"store":"transactions"' not in moments[n]]
    walk = [n for n in batches if n > others[-1]]
    first, last = walk[7], walk[8]  # the marks that the eighth and the ninth batch end with
    return (
        sum(text in SUCCESSOR_WRITES for text in moments[:first]),
        sum(text in SUCCESSOR_WRITES for text in moments[first:last]),
    )


@pytest.mark.parametrize("nth", [1, 6])
def test_a8_no_space_for_a_write_of_the_ninth_batch_keeps_the_old_data_and_the_terminal_sells(
    tmp_path: Path, nth: int
) -> None:
    terminal = new_terminal(tmp_path / "t", records=600, unsettled=212)
    terminal.configure(**LEAN)
    add_migration(terminal, STEP)
    shutil.copytree(terminal.root, tmp_path / "like it")
    before, own = ninth_batch(traced(Terminal(tmp_path / "like it"), tmp_path, "boot").moments)
    assert own > 10
    application = Application(0, terminal.pos)
    shown, untouched = application.sales(), Untouched(terminal)
    answer = fs.run_with_faults(
        terminal,
        tmp_path / "calls",
        f"write,pwrite64:error=ENOSPC:when={before + nth}+",
        [terminal.data / "pos.db.next", terminal.data / "pos.db.next-wal"],
        "boot",
        "--json",
    )
    assert "INJECTED" in (tmp_path / "calls").read_text()
    assert (answer.code, answer.json["error"]["code"]) == (6, "STORAGE_ERROR"), answer.out
    assert answer.json["app_may_start"] is True
    came_to = diary(terminal, "SELECT place FROM attempts")[0][0] % 10**12
    walked = sum(len(rows) for rows in terminal.read().stores.values())
    assert walked + 8 * 50 <= came_to < walked + 9 * 50, "eight batches of the last walk were done"
    untouched.check()
    application.sell(5)
    after = application.sales()
    assert {where: after[where] for where in shown} == shown
    assert terminal.boot().code == 0
    assert totals(sales_of_schema_0(terminal)) == totals(after)


def sales_of_schema_0(terminal: Terminal) -> dict[str, Any]:
    """The sales of pos.db, which the shipped migrations leave readable for the first software."""
    stores = terminal.read().stores
    return sales_in(
        0, [(s, key, reader.parse(raw)) for s, rows in stores.items() for key, raw in rows.items()]
    )


FILL = """
import os
seen = [0]
def up(record, context):
    seen[0] += 1
    if seen[0] == {at} and os.path.exists({switch!r}):
        with open({filler!r}, "wb", 0) as file:
            try:
                while file.write(bytes(4096)): pass
            except OSError: pass
    return {{**record, "note": "x" * 300}}
STEPS = [each("transactions", up, fields=["note"])]
"""


def test_a8_on_flash_that_others_filled_in_the_ninth_batch_the_terminal_sells(
    tmp_path: Path,
) -> None:
    with fs.ext4(tmp_path / "flash", 48 * MIB) as flash:
        terminal = new_terminal(flash / "t", records=600, unsettled=212)
        terminal.configure(**LEAN)
        filler, switch = flash / "filler", tmp_path / "switch"
        switch.touch()
        text = FILL.format(at=8 * 50 + 25, switch=str(switch), filler=str(filler))
        add_migration(terminal, text)
        application = Application(0, terminal.pos)
        shown, untouched = application.sales(), Untouched(terminal)
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (6, "STORAGE_ERROR"), answer.out
        assert answer.json["app_may_start"] is True
        untouched.check()
        # The flash is as full as before; only the run's own files are gone from it.
        assert filler.stat().st_size > 8 * MIB
        application.sell(20)
        after = application.sales()
        assert {where: after[where] for where in shown} == shown
        assert len(after) == len(shown) + 20
        filler.unlink()
        switch.unlink()
        assert terminal.boot().code == 0
        assert totals(sales_of_schema_0(terminal)) == totals(after)
