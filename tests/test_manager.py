"""MigrationManager: every call of the browser gateway's guide, on real terminals.

The calls run in this process, as in any program that embeds the agent: what they fork, lock and
leave behind is theirs to tidy. An independent reader judges, and each code block of
docs/from-the-browser-guide.md is executed as it stands.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import inspect
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import aio
from agent.ground.errors import (
    AgentError,
    Busy,
    ConfigError,
    NeedsTechnician,
    StorageFull,
    TimedOut,
    Unsettled,
    UsageError,
    ValidationError,
)
from agent.manager import MigrationManager
from agent.service.embedded import Answer
from tests import filesystems as fs
from tests import independent_reader as reader
from tests import second_reader
from tests.terminals import COMMAND, ROOT, Gate, Terminal, new_terminal, start_at_gate
from tests.test_docs import Block, blocks_in

PAGE = ROOT / "docs" / "from-the-browser-guide.md"
FOURTH = """from agent.core.migration import *
{code}
VERSION, NAME = 4, "the fourth"
STEPS = [{steps}]
"""
EACH = "each('transactions', up, fields=['note'])"
CHECKED = "each('transactions', up, check=check, fields=['note'])"
FAILING_CHECK = "def up(r, c): return {**r, 'note': 1}\ndef check(r): return r['note'] == 2"


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """One call to its end, in a program that does nothing else."""
    try:
        return aio.run(coroutine)
    finally:
        aio.shutdown()


def error_of(coroutine: Coroutine[Any, Any, Any]) -> AgentError:
    """What a call raises."""
    with pytest.raises(AgentError) as caught:
        done(coroutine)
    return caught.value


def manager_of(terminal: Terminal) -> MigrationManager:
    """The manager of a terminal."""
    return MigrationManager(str(terminal.root))


def everything(root: Path) -> dict[str, str]:
    """Every file below a folder by name and digest."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def add_fourth(terminal: Terminal, steps: str, code: str = "", reads: int = 4) -> Path:
    """A fourth migration behind the shipped three; the application reads up to `reads`."""
    folder = terminal.own_migrations()
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, reads]
    (folder / "stores.json").write_text(json.dumps(document))
    path = folder / "0004_the_fourth.py"
    path.write_text(FOURTH.format(steps=steps, code=code))
    return path


def change(terminal: Terminal, sql: str, *given: Any) -> None:
    """What the application does to its data."""
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute(sql, given)
    db.close()


def attempts(terminal: Terminal) -> int:
    """How many attempts the diary counts, read by SQLite alone."""
    with reader.opened(terminal.data / "posagent/agent.db") as db:
        return int(db.execute("SELECT count(*) FROM attempts").fetchone()[0])


def is_as_it_was(terminal: Terminal, sha256: str) -> None:
    """The old data byte for byte, and nothing half-made."""
    assert terminal.sha256() == sha256
    assert terminal.listing() == ["pos.db", "posagent"]
    assert list(terminal.backups.glob("*.tmp")) == []


def is_migrated(terminal: Terminal, before: dict[str, Any]) -> None:
    """The shipped migrations' work on what was there, and a sound file."""
    now = terminal.read()
    assert now.schema_version == 3
    reader.expect_migrated(before, now.stores, terminal.device_id)
    assert reader.soundness(terminal.pos) == []


def children() -> set[int]:
    """The children of this process, those that have ended and were not waited for included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended meanwhile
        if int(parent) == os.getpid():
            found.add(int(path.parent.name))
    return found


EARLIER: set[int] = set()


@pytest.fixture(autouse=True)
def earlier_children() -> None:
    """What other tests have left is not counted."""
    EARLIER.clear()
    EARLIER.update(children())


def no_child_is_left() -> None:
    """Every worker was waited for: a program that goes on collects no zombies."""
    assert children() - EARLIER == set()


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """A small terminal at schema 0."""
    return new_terminal(tmp_path / "t", records=120)


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """One after its upgrade, for tests that only ask."""
    terminal = new_terminal(tmp_path_factory.mktemp("upgraded") / "t", records=120)
    assert done(manager_of(terminal).migrate()).success
    return terminal


# --- migrate -------------------------------------------------------------------------------------


def test_migrate_answers_what_the_guide_promises_and_the_data_is_migrated(
    terminal: Terminal,
) -> None:
    before = terminal.read().stores
    manager = manager_of(terminal)
    assert done(manager.get_current_version()) == 0
    result = done(manager.migrate())
    assert (result.success, result.from_version, result.to_version) == (True, 0, 3)
    assert result.verdict == "OK"
    assert result.app_may_start is True
    assert result["timestamp"] == result.timestamp
    stamped = terminal.read().stores["balances"]
    value = next(reader.parse(raw) for raw in stamped.values())
    assert value["updatedAt"] == reader.Number(str(result.timestamp))
    is_migrated(terminal, before)
    assert done(manager.get_current_version()) == 3
    no_child_is_left()


def test_with_nothing_pending_migrate_succeeds_and_carries_no_time(upgraded: Terminal) -> None:
    before = everything(upgraded.data)
    result = done(manager_of(upgraded).migrate())
    assert (result.success, result.verdict) == (True, "NOT_REQUIRED")
    assert (result.from_version, result.to_version, result.timestamp) == (3, 3, None)
    assert {k: v for k, v in everything(upgraded.data).items() if "agent.db" not in k} == {
        k: v for k, v in before.items() if "agent.db" not in k
    }


def test_an_answer_is_json_and_a_wrong_name_is_an_attribute_error() -> None:
    answer = Answer(success=True)
    assert json.loads(json.dumps(answer)) == {"success": True}
    assert not hasattr(answer, "fromVersion")


def test_a_request_by_migrate_tries_a_plan_again_that_was_given_up(terminal: Terminal) -> None:
    flag = terminal.root / "broken"
    flag.touch()
    add_fourth(terminal, EACH, f"import os\ndef up(r, c):\n    os.path.exists({str(flag)!r}) and "
               "os._exit(9)\n    return {**r, 'note': 1}")  # fmt: skip
    first = error_of(manager_of(terminal).migrate())
    assert first.facts["cause"] == "GIVEN_UP"
    assert terminal.boot().json["error"]["facts"]["cause"] == "GIVEN_UP"
    flag.unlink()
    assert done(manager_of(terminal).migrate()).to_version == 4


def test_progress_is_told_to_whoever_asks(terminal: Terminal) -> None:
    told: list[tuple[str, str, int, int]] = []
    done(manager_of(terminal).migrate(progress=lambda *mark: told.append(mark)))
    states = list(dict.fromkeys(state for state, _, _, _ in told))
    assert states == [
        *("checking", "backing_up", "building", "migrating", "proving", "switching"),
        "done",
    ]
    assert max(done_ for state, _, done_, _ in told if state == "migrating") > 100


def test_progress_that_raises_ends_the_run_with_its_own_error(terminal: Terminal) -> None:
    sha256 = terminal.sha256()

    def tell(state: str, store: str, done_: int, total: int) -> None:
        if state == "proving":
            raise KeyError("the caller's own mistake")

    with pytest.raises(KeyError):
        done(manager_of(terminal).migrate(progress=tell))
    no_child_is_left()
    assert terminal.sha256() == sha256
    assert done(manager_of(terminal).migrate()).to_version == 3


def test_nothing_is_printed(terminal: Terminal, capfd: pytest.CaptureFixture[str]) -> None:
    done(manager_of(terminal).migrate())
    done(manager_of(terminal).create_backup())
    assert capfd.readouterr() == ("", "")


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "profile", "most"), [(7, 2000, 7), (5000, 30, 30)])
def test_batch_size_caps_the_rows_of_a_batch_and_never_lifts_the_profiles(
    terminal: Terminal, batch_size: int, profile: int, most: int
) -> None:
    terminal.configure(batch_rows_max=profile)
    counts: dict[str, list[int]] = {}

    def tell(state: str, store: str, done_: int, total: int) -> None:
        if state == "migrating" and store:
            counts.setdefault(store, []).append(done_)

    assert done(manager_of(terminal).migrate(batch_size=batch_size, progress=tell)).success
    marks = sorted(mark for store in counts.values() for mark in store)
    steps = [b - a for a, b in zip([0, *marks], marks)]
    assert max(steps) == most
    assert min(steps) >= 0


def dies(terminal: Terminal) -> None:
    """A fourth migration whose worker ends at the first sale."""
    add_fourth(terminal, EACH, "import os\ndef up(r, c): os._exit(9)")


@pytest.mark.parametrize("retry_attempts", [1, 3, 5])
def test_retry_attempts_is_how_often_a_plan_may_die_at_one_place(
    terminal: Terminal, retry_attempts: int
) -> None:
    dies(terminal)
    sha256 = terminal.sha256()
    error = error_of(manager_of(terminal).migrate(retry_attempts=retry_attempts))
    assert (error.code, error.facts["cause"]) == ("FAILED", "GIVEN_UP")
    assert f"{retry_attempts} attempts in a row" in error.message
    assert attempts(terminal) == retry_attempts
    is_as_it_was(terminal, sha256)
    # A boot does not try again what was given up, however few the attempts were.
    assert terminal.boot().json["error"]["facts"]["cause"] == "GIVEN_UP"
    assert attempts(terminal) == retry_attempts
    no_child_is_left()


def test_without_the_option_a_plan_has_three_attempts(terminal: Terminal) -> None:
    dies(terminal)
    error_of(manager_of(terminal).migrate())
    assert attempts(terminal) == 3


def test_a_plan_that_comes_further_each_time_is_not_given_up(terminal: Terminal) -> None:
    seen = terminal.root / "seen"
    seen.write_text("0")
    code = (
        "import os\nkept = []\n"
        "def up(r, c):\n    kept.append(1)\n"
        "    if len(kept) == 25:\n"
        f"        deaths = int(open({str(seen)!r}).read())\n"
        "        if deaths < 3:\n"
        f"            open({str(seen)!r}, 'w').write(str(deaths + 1))\n"
        "            os._exit(9)\n"
        "    return {**r, 'note': 1}"
    )
    add_fourth(terminal, EACH, code)
    result = done(manager_of(terminal).migrate(batch_size=20, retry_attempts=2))
    assert (result.success, result.to_version) == (True, 4)
    assert attempts(terminal) == 4


def test_timeout_is_the_time_without_a_mark_and_not_the_time_of_the_run(
    terminal: Terminal,
) -> None:
    fifo = terminal.root / "hangs"
    os.mkfifo(fifo)
    add_fourth(terminal, EACH, f"def up(r, c): open({str(fifo)!r}).read()")
    sha256 = terminal.sha256()
    error = error_of(manager_of(terminal).migrate(timeout=800, retry_attempts=1))
    assert isinstance(error, TimedOut)
    assert error.code == "TIMEOUT"
    assert "no progress within the deadline of 800 ms while migrating" in error.message
    assert attempts(terminal) == 1
    is_as_it_was(terminal, sha256)
    no_child_is_left()
    # The whole takes longer than that, but each batch shows that it goes on.
    add_fourth(
        terminal,
        EACH,
        "import time\ndef up(r, c):\n    time.sleep(0.02)\n    return {**r, 'note': 1}",
    )
    assert done(manager_of(terminal).migrate(batch_size=1, timeout=1000)).to_version == 4


def test_timeout_stays_below_the_watchdog_whatever_is_asked_for(terminal: Terminal) -> None:
    device = terminal.root / "dev/watchdog"
    device.parent.mkdir(exist_ok=True)
    device.touch()
    terminal.configure(watchdog_device="/dev/watchdog", watchdog_timeout_s=2, deadline_ms=600)
    fifo = terminal.root / "hangs"
    os.mkfifo(fifo)
    add_fourth(terminal, EACH, f"def up(r, c): open({str(fifo)!r}).read()")
    error = error_of(manager_of(terminal).migrate(timeout=600_000, retry_attempts=1))
    assert "deadline of 1333 ms" in error.message


def test_a_run_without_a_backup_is_refused_where_the_profile_requires_one(
    terminal: Terminal,
) -> None:
    before = everything(terminal.root)
    error = error_of(manager_of(terminal).migrate(backup_enabled=False))
    assert isinstance(error, ConfigError)
    assert "permits no run without a backup" in error.message
    assert everything(terminal.root) == before


def test_a_run_without_a_backup_is_done_where_the_profile_permits_it(terminal: Terminal) -> None:
    terminal.configure(backup_enabled_required=False)
    before = terminal.read().stores
    manager = manager_of(terminal)
    result = done(manager.migrate(backup_enabled=False))
    assert (result.success, result.backup) == (True, None)
    assert done(manager.get_available_backups()) == []
    is_migrated(terminal, before)


def test_without_validate_data_the_authors_checks_are_left_out(terminal: Terminal) -> None:
    add_fourth(terminal, CHECKED, FAILING_CHECK)
    assert error_of(manager_of(terminal).migrate()).code == "VALIDATION_ERROR"
    result = done(manager_of(terminal).migrate(validate_data=False))
    assert (result.success, result.to_version) == (True, 4)


def test_without_validate_data_the_proof_is_made_all_the_same(terminal: Terminal) -> None:
    add_fourth(
        terminal,
        "each('transactions', up, fields=['amount'])",
        "def up(r, c):\n    if type(r.get('amount')) is int: r['amount'] += 1\n    return r",
    )
    sha256 = terminal.sha256()
    error = error_of(manager_of(terminal).migrate(validate_data=False))
    assert (error.code, "money" in error.message) == ("VALIDATION_ERROR", True)
    is_as_it_was(terminal, sha256)


NUMBERS = ("batch_size", "retry_attempts", "timeout")
FLAGS = ("backup_enabled", "validate_data", "despite_unsettled")
BAD_NUMBERS = (0, -1, True, False, "100", 100.0, float("nan"), float("inf"), None, [1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, bad) for name in NUMBERS for bad in BAD_NUMBERS),
        *(("retry_attempts", bad) for bad in (21, 10**400)),
        *(("timeout", bad) for bad in (99, 600_001)),
        *((name, bad) for name in FLAGS for bad in (0, 1, "no", None)),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_touched(
    upgraded: Terminal, name: str, value: Any
) -> None:
    before = everything(upgraded.root)
    error = error_of(manager_of(upgraded).migrate(**{name: value}))
    assert isinstance(error, UsageError)
    assert error.message.startswith(f"{name} must be")
    assert len(error.message) < 200
    assert everything(upgraded.root) == before


# --- errors --------------------------------------------------------------------------------------


def test_a_failing_check_is_a_validation_error_with_the_data_as_it_was(terminal: Terminal) -> None:
    add_fourth(terminal, CHECKED, FAILING_CHECK)
    sha256 = terminal.sha256()
    error = error_of(manager_of(terminal).migrate())
    assert isinstance(error, ValidationError)
    assert error.code == "VALIDATION_ERROR"
    assert "check() failed" in error.message
    result = error.result
    assert isinstance(result, Answer)
    assert (result.success, result.verdict, result.app_may_start) == (False, "ROLLED_BACK", True)
    assert result.error == error.as_json()
    is_as_it_was(terminal, sha256)
    assert done(manager_of(terminal).get_current_version()) == 0
    no_child_is_left()


def test_flash_that_is_full_is_a_storage_error_before_anything_is_written(tmp_path: Path) -> None:
    with fs.tmpfs(tmp_path / "flash", 3 * fs.MIB) as flash:
        terminal = new_terminal(flash / "t", records=600)
        sha256 = terminal.sha256()
        error = error_of(manager_of(terminal).migrate())
        assert isinstance(error, StorageFull)
        assert error.code == "STORAGE_ERROR"
        assert error.facts["needed_bytes"] > error.facts["free_bytes"]
        assert error.result is not None
        assert error.result["verdict"] == "REFUSED"
        is_as_it_was(terminal, sha256)
        assert list(terminal.backups.iterdir()) == []


def test_data_that_is_newer_than_the_software_is_refused(terminal: Terminal) -> None:
    change(terminal, "PRAGMA user_version = 9")
    error = error_of(manager_of(terminal).migrate())
    assert (error.code, error.facts["version"]) == ("SCHEMA_TOO_NEW", 9)
    assert done(manager_of(terminal).get_current_version()) == 9


def test_a_missing_configuration_is_told_by_the_call_and_not_by_the_constructor(
    tmp_path: Path,
) -> None:
    manager = MigrationManager(tmp_path)
    assert error_of(manager.migrate()).code == "CONFIG"


def test_another_configuration_can_be_named(terminal: Terminal, tmp_path: Path) -> None:
    usual = terminal.root / "etc/posagent/config.json"
    usual.rename(tmp_path / "elsewhere.json")
    manager = MigrationManager(terminal.root, tmp_path / "elsewhere.json")
    assert done(manager.migrate()).to_version == 3


def test_missing_data_is_never_made(terminal: Terminal) -> None:
    terminal.pos.unlink()
    manager = manager_of(terminal)
    assert isinstance(error_of(manager.migrate()), NeedsTechnician)
    assert isinstance(error_of(manager.get_current_version()), NeedsTechnician)
    assert not terminal.pos.exists()


# --- in a program with other tasks ---------------------------------------------------------------


def at_gate(gate: Gate) -> int:
    """The way into the gate once a worker stands there, else -1."""
    try:
        return os.open(gate.path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads at the other end yet
        return -1


async def until_at_gate(gate: Gate) -> int:
    """Wait for the worker, as a task of the loop."""
    while (way_in := at_gate(gate)) < 0:
        await aio.sleep_ms(1)
    os.unlink(gate.path)
    return way_in


def test_other_tasks_have_their_turns_while_the_worker_works(terminal: Terminal) -> None:
    """The worker stands still until another task of the same loop has had a hundred turns."""
    gate = Gate(terminal)
    turns: list[str] = []

    async def other() -> None:
        way_in = await until_at_gate(gate)
        for _ in range(100):
            await aio.sleep_ms(0)
            turns.append("a turn")
        assert await manager_of(terminal).get_current_version() == 0
        os.close(way_in)

    async def program() -> Any:
        task = aio.create_task(other())
        result = await manager_of(terminal).migrate()
        await task
        return result

    assert done(program()).to_version == 4
    assert len(turns) == 100


def test_of_two_managers_at_once_the_second_is_refused_as_busy(terminal: Terminal) -> None:
    gate = Gate(terminal)

    async def second() -> list[str]:
        way_in = await until_at_gate(gate)
        codes = []
        for call in ("migrate", "create_backup", "validate_local_state"):
            try:
                await getattr(manager_of(terminal), call)()
            except Busy as error:
                codes.append(error.code)
        os.close(way_in)
        return codes

    async def program() -> Any:
        task = aio.create_task(second())
        result = await manager_of(terminal).migrate()
        return result, await task

    result, codes = done(program())
    assert (result.success, codes) == (True, ["BUSY"] * 3)


def test_beside_a_run_of_the_command_a_manager_is_refused_as_busy(terminal: Terminal) -> None:
    run, gate = start_at_gate(terminal, "boot", "--json")
    assert error_of(manager_of(terminal).migrate()).code == "BUSY"
    assert error_of(manager_of(terminal).validate_local_state()).code == "BUSY"
    assert done(manager_of(terminal).get_current_version()) == 0
    gate.open()
    out, _ = run.communicate()
    assert json.loads(out)["to_version"] == 4


def test_a_cancelled_migration_is_a_cut_and_the_next_one_finishes(terminal: Terminal) -> None:
    gate = Gate(terminal)
    sha256 = terminal.sha256()

    async def program() -> bool:
        task = aio.create_task(manager_of(terminal).migrate())
        way_in = await until_at_gate(gate)
        task.cancel()
        with pytest.raises(aio.CancelledError):
            await task
        no_child_is_left()
        os.close(way_in)
        assert terminal.sha256() == sha256
        # The same program goes on: no lock and no worker of the first call is left.
        return bool((await manager_of(terminal).migrate()).success)

    assert done(program())
    assert terminal.read().schema_version == 4
    assert attempts(terminal) == 2


def test_cut_behind_the_rename_the_old_file_stays_locked_while_others_have_it_open(
    terminal: Terminal,
) -> None:
    """A client that came too late would otherwise write into a file of another shape."""
    before = terminal.read().stores
    late: list[subprocess.Popen[bytes]] = []

    def tell(state: str, store: str, done_: int, total: int) -> None:
        if state == "migrating" and not late:
            with open(terminal.pos, "rb") as opened:
                late.append(
                    subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[opened.fileno()])
                )
        if store == "renamed":
            raise KeyError("the program fails at this very moment")

    with pytest.raises(KeyError):
        done(manager_of(terminal).migrate(progress=tell))
    assert terminal.read().schema_version == 3
    db = sqlite3.connect(terminal.data / "pos.db.prev", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        db.execute("BEGIN IMMEDIATE")
    db.close()
    late[0].communicate()
    (holder,) = children() - EARLIER
    os.waitpid(holder, 0)  # it goes by itself when the last one has gone
    assert done(manager_of(terminal).migrate()).to_version == 3
    is_migrated(terminal, before)
    entries = done(manager_of(terminal).get_migration_history())
    assert [entry.version for entry in entries if entry.status == "applied"] == [1, 2, 3]


def test_a_limit_around_a_call_ends_it_like_a_cut(terminal: Terminal) -> None:
    fifo = terminal.root / "hangs"
    os.mkfifo(fifo)
    path = add_fourth(terminal, EACH, f"def up(r, c): open({str(fifo)!r}).read()")
    sha256 = terminal.sha256()
    with pytest.raises(aio.TimeoutError):
        done(aio.wait_for_ms(manager_of(terminal).migrate(), 700))
    assert terminal.sha256() == sha256
    no_child_is_left()
    path.unlink()
    assert done(manager_of(terminal).migrate()).to_version == 3


def test_a_program_that_has_the_data_open_itself_is_refused_and_keeps_its_lock(
    terminal: Terminal,
) -> None:
    """To open and close the file a second time would drop the locks that SQLite has in between."""
    manager = manager_of(terminal)
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    for call in (manager.migrate, manager.get_current_version, manager.validate_local_state):
        error = error_of(call())
        assert isinstance(error, Busy)
        assert "open in this very program" in error.message
    other = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    )
    locked_out = subprocess.run(
        [sys.executable, "-c", other, str(terminal.pos)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "database is locked" in locked_out.stderr
    db.execute("COMMIT")
    db.close()
    assert done(manager.migrate()).success


def test_a_program_larger_than_the_profiles_memory_can_migrate(terminal: Terminal) -> None:
    terminal.configure(ram_budget_bytes=20 * fs.MIB)
    ballast = bytearray(os.urandom(1)) * (96 * fs.MIB)
    assert done(manager_of(terminal).validate_local_state()) is True
    assert done(manager_of(terminal).migrate()).success
    assert len(ballast) == 96 * fs.MIB


def test_a_worker_that_outgrows_the_memory_is_stopped_all_the_same(terminal: Terminal) -> None:
    terminal.configure(ram_budget_bytes=20 * fs.MIB)
    add_fourth(terminal, EACH, "kept = []\ndef up(r, c): return kept.append(bytes(8 << 20)) or r")
    error = error_of(manager_of(terminal).migrate(retry_attempts=1))
    assert (error.code, "memory" in error.message) == ("TIMEOUT", True)


def test_the_service_manager_hears_nothing_from_a_program_that_embeds_the_agent(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert done(manager_of(terminal).migrate()).success
        with pytest.raises(BlockingIOError):
            listening.recv(4096)


# --- on CPython's asyncio ------------------------------------------------------------------------

CALLS = {
    "migrate": (),
    "create_backup": (),
    "restore_from_backup": (),
    "get_current_version": (),
    "get_migration_history": (),
    "get_available_backups": (),
    "validate_local_state": (),
    "validate_migration": (1,),
    "storage_estimate": (),
    "prune_old_data": (),
    "rollback": (0,),
    "quarantined": (),
}


def test_every_public_call_is_in_the_list_of_calls() -> None:
    public = {
        name
        for name, member in inspect.getmembers(MigrationManager, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert public == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_awaited_on_asyncio_each_call_says_what_to_do_instead(
    upgraded: Terminal, call: str
) -> None:
    before = everything(upgraded.root)

    async def program() -> None:
        await getattr(manager_of(upgraded), call)(*CALLS[call])

    with pytest.raises(UsageError) as caught:
        asyncio.run(program())
    message = caught.value.message
    assert "asyncio.create_subprocess_exec" in message
    assert "agent.aio.run" in message
    verb = re.search(r"`posagent (\w+) --json`", message)
    assert verb is not None
    assert upgraded.run(verb[1], "--help").code == 0
    assert everything(upgraded.root) == before


def test_a_loop_of_ours_inside_asyncio_is_refused_too(upgraded: Terminal) -> None:
    """It would stop every task of the asyncio program until the run is over."""

    async def program() -> None:
        done(manager_of(upgraded).migrate())

    with pytest.raises(UsageError):
        asyncio.run(program())


def test_what_is_advised_to_a_program_on_asyncio_works(terminal: Terminal) -> None:
    async def program() -> dict[str, Any]:
        run = await asyncio.create_subprocess_exec(
            *COMMAND, "--root", str(terminal.root), "migrate", "--json", stdout=subprocess.PIPE
        )
        out, _ = await run.communicate()
        found: dict[str, Any] = json.loads(out)
        return found

    assert asyncio.run(program())["verdict"] == "OK"
    assert done(manager_of(terminal).get_current_version()) == 3


def test_a_call_driven_by_no_loop_at_all_is_refused(upgraded: Terminal) -> None:
    with pytest.raises(UsageError):
        manager_of(upgraded).migrate().send(None)


# --- history and backups -------------------------------------------------------------------------


def test_history_has_a_row_for_each_migration_and_failure_newest_last(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    assert done(manager.get_migration_history()) == []
    path = add_fourth(terminal, CHECKED, FAILING_CHECK)
    error = error_of(manager.migrate())
    path.unlink()
    result = done(manager.migrate())
    entries = done(manager.get_migration_history())
    assert [entry.status for entry in entries] == ["failed", "applied", "applied", "applied"]
    failed, *applied = entries
    assert (failed.code, failed.message) == (error.code, error.message)
    assert (failed.from_version, failed.to_version, failed.version) == (0, 4, None)
    assert [entry.version for entry in applied] == [1, 2, 3]
    assert applied[1].name == "0002_add_transaction_metadata"
    assert {entry.timestamp for entry in applied} == {result.timestamp}
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]


def test_a_backup_is_the_newest_of_the_list_and_holds_the_data_as_it_is(
    terminal: Terminal,
) -> None:
    manager = manager_of(terminal)
    assert done(manager.get_available_backups()) == []
    before = terminal.pos.read_bytes()
    first = done(manager.create_backup())
    done(manager.migrate())
    last = done(manager.create_backup())
    listed = done(manager.get_available_backups())
    assert listed == sorted(listed, key=lambda row: row.sequence)
    assert listed[0] == first
    assert listed[-1] == last
    assert (first.version, last.version) == (0, 3)
    assert second_reader.read((terminal.backups / first.name).read_bytes()).image == before


def test_a_damaged_backup_is_listed_as_one(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    name = done(manager.create_backup()).name
    path = terminal.backups / name
    path.write_bytes(path.read_bytes()[:50])
    (row,) = done(manager.get_available_backups())
    assert row.name == name
    assert "not a usable backup" in row.damaged


def test_without_a_name_the_newest_backup_is_restored(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    done(manager.create_backup())
    change(terminal, "UPDATE metadata SET value = '{\"a\":1}' WHERE key = 'user_preferences'")
    change(terminal, "INSERT OR REPLACE INTO metadata VALUES ('mine', '{\"a\":2}')")
    newest = done(manager.create_backup())
    change(terminal, "DELETE FROM metadata WHERE key = 'mine'")
    result = done(manager.restore_from_backup())
    assert (result.success, result.verdict) == (True, "OK")
    assert result.restored["name"] == newest.name
    assert terminal.read().stores["metadata"]["mine"] == '{"a":2}'


SALE = json.dumps({"id": "tx_new", "currency": "EUR", "amount": 5, "status": "pending", "stan": 50})


def test_a_restore_that_loses_a_sale_needs_consent_to_exactly_the_counts(
    terminal: Terminal,
) -> None:
    manager = manager_of(terminal)
    name = done(manager.create_backup()).name
    change(terminal, "INSERT INTO transactions VALUES ('tx_new', ?)", SALE)
    sha256 = terminal.sha256()
    error = error_of(manager.restore_from_backup(name))
    assert isinstance(error, Unsettled)
    assert error.facts == {"newer": 1, "changed": 0, "gone": 0, "settled": 0}
    for wrong in ({"newer": 2}, {"changed": 1}, "newer=1,gone=1"):
        assert error_of(manager.restore_from_backup(name, wrong)).code == "UNSETTLED"
    assert terminal.sha256() == sha256
    consents: tuple[Any, ...] = (error.facts, {"newer": 1}, "newer=1")
    for consent in consents:
        result = done(manager.restore_from_backup(name, discard=consent))
        assert result.discarded["newer"] == 1
        assert "tx_new" not in terminal.read().stores["transactions"]
        change(terminal, "INSERT INTO transactions VALUES ('tx_new', ?)", SALE)


@pytest.mark.parametrize(
    "given",
    [
        {"name": 1},
        {"name": b"000001-v0.posbak"},
        {"name": "no-such-backup"},
        {"name": ""},
        {"discard": {}},
        {"discard": {"newest": 1}},
        {"discard": {"newer": -1}},
        {"discard": {"newer": True}},
        {"discard": {"newer": 1.0}},
        {"discard": {"newer": None}},
        {"discard": 1},
        {"discard": True},
        {"discard": ["newer"]},
        {"discard": "everything"},
    ],
)
def test_a_wrong_word_to_restore_is_a_usage_error(upgraded: Terminal, given: Any) -> None:
    before = everything(upgraded.data)
    assert error_of(manager_of(upgraded).restore_from_backup(**given)).code == "USAGE"
    assert everything(upgraded.data) == before


def test_without_any_backup_there_is_nothing_to_restore(terminal: Terminal) -> None:
    error = error_of(manager_of(terminal).restore_from_backup())
    assert (error.code, "there is no backup" in error.message) == ("USAGE", True)


def test_over_damaged_data_a_restore_needs_the_word_unknown(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    done(manager.create_backup())
    before = terminal.read().stores
    terminal.pos.write_bytes(b"this is no database")
    assert error_of(manager.restore_from_backup()).code == "HELD"
    result = done(manager.restore_from_backup(discard="unknown"))
    assert result.success
    assert terminal.read().stores == before
    assert Path(result.damaged_file).read_bytes() == b"this is no database"


# --- beyond the guide: the way back, pruning, records left behind --------------------------------


def test_rolled_back_at_once_the_old_file_is_there_again(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    sha256 = terminal.sha256()
    done(manager.migrate())
    result = done(manager.rollback(0))
    assert (result.success, result.from_version, result.to_version) == (True, 3, 0)
    assert terminal.sha256() == sha256
    states = [entry.status for entry in done(manager.get_migration_history())]
    assert states == ["applied"] * 3 + ["rolled_back"] * 3
    # What was taken back on request is migrated again on request only.
    assert terminal.boot().json["verdict"] == "HELD"
    assert done(manager.migrate()).to_version == 3


def test_rolling_back_keeps_a_sale_made_since(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    before = terminal.read().stores
    done(manager.migrate())
    change(terminal, "INSERT INTO transactions VALUES ('tx_new', ?)", SALE)
    result = done(manager.rollback(0))
    assert (result.success, done(manager.get_current_version())) == (True, 0)
    after = terminal.read().stores
    sale = reader.parse(after["transactions"].pop("tx_new"))
    assert (sale["amount"], sale["status"]) == (reader.Number("5"), "pending")
    for store, rows in before.items():
        assert {k: reader.parse(v) for k, v in after[store].items()} == {
            k: reader.parse(v) for k, v in rows.items()
        }
    no_child_is_left()


@pytest.mark.parametrize("to", [-1, True, 1.0, "1", None, 10_000])
def test_a_version_that_is_none_is_no_way_back(upgraded: Terminal, to: Any) -> None:
    before = everything(upgraded.root)
    error = error_of(manager_of(upgraded).rollback(to))
    assert (error.code, error.message.startswith("to must be")) == ("USAGE", True)
    assert everything(upgraded.root) == before


def keep_newest(terminal: Terminal, count: int) -> None:
    """Let stores.json give up settled sales beyond the newest."""
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    document["versions"][0]["stores"]["transactions"]["prune"]["keep_newest"] = count
    path.write_text(json.dumps(document))


def test_old_data_is_pruned_as_the_dry_run_foretold_and_the_unsettled_stays(
    terminal: Terminal,
) -> None:
    keep_newest(terminal, 20)
    manager = manager_of(terminal)
    unsettled = reader.unsettled(terminal.pos)
    count = len(terminal.read().stores["transactions"])
    before = everything(terminal.root)
    foretold = done(manager.prune_old_data(dry_run=True))
    assert everything(terminal.root) == before
    result = done(manager.prune_old_data())
    assert (result.success, result.verdict) == (True, "OK")
    gone = result.pruned["transactions"]["records"]
    assert gone > 0
    assert (result.pruned, result.kept) == (foretold.pruned, foretold.kept)
    assert len(terminal.read().stores["transactions"]) == count - gone
    assert reader.unsettled(terminal.pos) == unsettled
    assert done(manager.prune_old_data()).verdict == "NOT_REQUIRED"
    assert done(manager.prune_old_data(dry_run=True)).pruned["transactions"]["records"] == 0
    assert done(manager.migrate()).to_version == 3, "pending migrations stay pending"
    no_child_is_left()


@pytest.mark.parametrize("name", ["dry_run", "despite_unsettled"])
def test_a_wrong_option_of_prune_is_named(upgraded: Terminal, name: str) -> None:
    given: dict[str, Any] = {name: "yes"}
    error = error_of(manager_of(upgraded).prune_old_data(**given))
    assert error.message.startswith(f"{name} must be True or False")


def test_a_profile_that_refuses_unsettled_sales_is_overruled_by_consent_only(
    terminal: Terminal,
) -> None:
    terminal.configure(unsettled_guard="refuse")
    keep_newest(terminal, 20)
    manager = manager_of(terminal)
    sha256 = terminal.sha256()
    error = error_of(manager.migrate())
    assert isinstance(error, Unsettled)
    known = {(where.store, where.key) for where in reader.unsettled(terminal.pos)}
    assert error.facts["records"] == len(known)
    assert error_of(manager.prune_old_data()).code == "UNSETTLED"
    assert terminal.sha256() == sha256
    assert done(manager.prune_old_data(despite_unsettled=True)).success
    assert done(manager.migrate(despite_unsettled=True)).success
    change(terminal, "INSERT INTO transactions VALUES ('tx_new', ?)", SALE)
    assert error_of(manager.rollback(0)).code == "UNSETTLED"
    assert done(manager.rollback(0, despite_unsettled=True)).success


def test_records_left_behind_are_listed_without_their_bodies(terminal: Terminal) -> None:
    manager = manager_of(terminal)
    assert done(manager.quarantined()) == []
    change(terminal, "INSERT INTO balances VALUES ('odd', '{\"a\":1,\"a\":4111111111111111}')")
    path = add_fourth(terminal, "set_field('balances', 'seen', True)", "QUARANTINE = True")
    for version in (1, 2, 3):
        (file,) = path.parent.glob(f"000{version}_*.py")
        file.write_text(file.read_text() + "\nQUARANTINE = True\n")
    result = done(manager.migrate())
    assert (result.success, result.verdict, result.to_version) == (True, "PARTIAL", 4)
    (row,) = done(manager.quarantined())
    assert (row.store, row.key, row.now) == ("balances", "odd", "left")
    assert row.reason
    assert "4111111111111111" not in json.dumps(row)
    change(terminal, "DELETE FROM balances WHERE key = 'odd'")
    assert [entry.now for entry in done(manager.quarantined())] == ["gone"]


# --- validation ----------------------------------------------------------------------------------


def test_sound_data_is_valid_before_and_after_and_no_file_is_touched(terminal: Terminal) -> None:
    before = everything(terminal.root)
    assert done(manager_of(terminal).validate_local_state()) is True
    assert everything(terminal.root) == before
    done(manager_of(terminal).migrate())
    assert done(manager_of(terminal).validate_local_state()) is True
    no_child_is_left()


def spoil_page(terminal: Terminal) -> None:
    """Overwrite the middle of the file."""
    data = bytearray(terminal.pos.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = b"\xa5" * 4096
    terminal.pos.write_bytes(bytes(data))


def spoil_schema(terminal: Terminal) -> None:
    """Overwrite the page with the tables' names; the header stays."""
    data = bytearray(terminal.pos.read_bytes())
    data[100:4096] = b"\xa5" * (4096 - 100)
    terminal.pos.write_bytes(bytes(data))


INVALID: dict[str, Callable[[Terminal], object]] = {
    "a sale that is no JSON": lambda t: change(
        t, "INSERT INTO transactions VALUES ('tx_bad', '{\"id\":')"
    ),
    "a balance that the plan touches": lambda t: change(
        t, "INSERT INTO balances VALUES ('bad', '{\"a\":1,\"a\":2}')"
    ),
    "a store that is missing": lambda t: change(t, "DROP TABLE sync"),
    "a damaged page": spoil_page,
    "a damaged schema": spoil_schema,
    "no database": lambda t: t.pos.write_bytes(b"no database"),
    "an empty file": lambda t: t.pos.write_bytes(b""),
    "no file": lambda t: t.pos.unlink(),
}


@pytest.mark.parametrize("name", INVALID)
def test_data_that_a_run_would_stop_at_is_invalid(terminal: Terminal, name: str) -> None:
    INVALID[name](terminal)
    before = everything(terminal.root)
    assert done(manager_of(terminal).validate_local_state()) is False
    assert everything(terminal.root) == before


def test_migrations_that_hang_leave_the_data_to_be_judged_by_its_money(terminal: Terminal) -> None:
    terminal.configure(deadline_ms=1500)
    add_fourth(terminal, EACH, "while True: pass")
    assert done(manager_of(terminal).validate_local_state()) is True
    INVALID["a sale that is no JSON"](terminal)
    assert done(manager_of(terminal).validate_local_state()) is False


def test_a_file_that_is_being_written_is_neither_valid_nor_invalid(terminal: Terminal) -> None:
    """What lies in a -wal that nobody has open needs a recovery, which asking never does."""
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("INSERT INTO metadata VALUES ('mine', '{}')")
    shutil.copytree(terminal.root, terminal.root.with_name("cut"))
    db.close()
    cut = Terminal(terminal.root.with_name("cut"))
    (cut.data / "pos.db-shm").unlink()
    error = error_of(manager_of(cut).validate_local_state())
    assert "wait for recovery" in error.message


def test_every_shipped_migration_is_valid_before_and_after_it_was_applied(
    terminal: Terminal, upgraded: Terminal
) -> None:
    for at in (terminal, upgraded):
        for version in (1, 2, 3):
            assert done(manager_of(at).validate_migration(version)) is True


def test_a_migration_can_be_named_by_anything_that_has_its_version(upgraded: Terminal) -> None:
    manager = manager_of(upgraded)

    class Migration(NamedTuple):
        version: int

    for entry in done(manager.get_migration_history()):
        assert done(manager.validate_migration(entry)) is True
    assert done(manager.validate_migration(Migration(2))) is True
    assert done(manager.validate_migration({"version": 2})) is True


@pytest.mark.parametrize(
    "migration", [0, -1, 4, 10**9, True, 1.0, "1", None, {}, {"version": "1"}, [], object()]
)
def test_what_is_no_installed_migration_is_not_valid(upgraded: Terminal, migration: Any) -> None:
    assert done(manager_of(upgraded).validate_migration(migration)) is False


BAD_FILES = {
    "a fault of syntax": "def up(:",
    "an unknown store": "VERSION, NAME, STEPS = 4, 'x', [set_field('nowhere', 'a', 1)]",
    "the wrong number": "VERSION, NAME, STEPS = 5, 'x', []",
    "an undeclared change": "def up(r, c): return {**r, 'amount': 0}\n"
    "VERSION, NAME, STEPS = 4, 'x', [each('transactions', up, fields=['note'])]",
    "a hang": "while True: pass",
    "a hang in a step": "def up(r, c):\n    while True: pass\n"
    "VERSION, NAME, STEPS = 4, 'x', [each('transactions', up, fields=['note'])]",
    "an end of the process": "import os; os._exit(0)",
    "hunger": "x = bytearray(1 << 34)",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_migration_is_not_valid_and_spoils_no_other(terminal: Terminal, name: str) -> None:
    terminal.configure(deadline_ms=1500)
    path = add_fourth(terminal, "")
    path.write_text("from agent.core.migration import *\n" + BAD_FILES[name])
    manager = manager_of(terminal)
    assert done(manager.validate_migration(4)) is False
    assert done(manager.validate_migration(3)) is True
    no_child_is_left()


def test_a_version_that_stands_twice_is_not_valid(terminal: Terminal) -> None:
    folder = terminal.own_migrations()
    shutil.copy(folder / "0002_add_transaction_metadata.py", folder / "0002_once_more.py")
    assert done(manager_of(terminal).validate_migration(2)) is False
    assert done(manager_of(terminal).validate_migration(1)) is True


def test_with_a_bad_stores_json_no_migration_is_valid(terminal: Terminal) -> None:
    (terminal.own_migrations() / "stores.json").write_text("{}")
    assert done(manager_of(terminal).validate_migration(1)) is False


def test_a_file_edited_after_it_was_applied_is_not_valid_any_more(terminal: Terminal) -> None:
    path = terminal.own_migrations() / "0002_add_transaction_metadata.py"
    manager = manager_of(terminal)
    done(manager.migrate())
    path.write_text(path.read_text() + "# a word more\n")
    assert done(manager.validate_migration(2)) is False
    assert done(manager.validate_migration(1)) is True
    assert done(manager.validate_migration(3)) is True


def test_data_that_says_less_than_was_applied_makes_that_migration_invalid(
    terminal: Terminal,
) -> None:
    manager = manager_of(terminal)
    done(manager.migrate())
    change(terminal, "PRAGMA user_version = 2")
    assert done(manager.validate_migration(3)) is False
    assert done(manager.validate_migration(2)) is True


# --- storage -------------------------------------------------------------------------------------


def test_storage_is_what_our_files_take_and_what_is_free_above_the_reserve(
    tmp_path: Path,
) -> None:
    with fs.tmpfs(tmp_path / "flash", 64 * fs.MIB) as flash:
        terminal = new_terminal(flash / "t", records=600)
        (terminal.data / "foreign").write_bytes(bytes(fs.MIB))
        manager = manager_of(terminal)
        first = done(manager.storage_estimate())
        assert first.usage == terminal.pos.stat().st_blocks * 512
        assert first.quota == first.usage + fs.free_bytes(flash) - first.reserve
        done(manager.migrate())
        second = done(manager.storage_estimate())
        ours = [terminal.pos, terminal.data / "pos.db.prev"]
        ours += [path for path in (terminal.data / "posagent").rglob("*") if path.is_file()]
        assert second.usage == sum(path.stat().st_blocks * 512 for path in ours)
        assert second.usage > first.usage
        # What we write comes out of what was free: the quota stays what it was, to some folders.
        assert abs(second.quota - first.quota) < 64 * 1024
        fs.fill(flash / "filler", first.reserve // 2)
        full = done(manager.storage_estimate())
        assert full.quota == full.usage == second.usage


def test_a_terminal_without_any_data_uses_nothing(terminal: Terminal) -> None:
    terminal.pos.unlink()
    estimate = done(manager_of(terminal).storage_estimate())
    assert estimate.usage == 0
    assert estimate.quota > 0


# --- the page and the import ---------------------------------------------------------------------


def sections() -> Iterator[tuple[str, list[Block]]]:
    """Title and python blocks of each section of the page; what stands before the first has "" ."""
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE):
        title = part.splitlines()[0] if not part.startswith("# ") else ""
        yield title, [block for block in blocks_in(part) if block.language == "python"]


SECTIONS = dict(sections())


def test_every_fenced_block_of_the_page_is_python_or_a_console() -> None:
    languages = {block.language for block in blocks_in(PAGE.read_text("utf-8"))}
    assert languages <= {"python", "console", "terminal"}


def test_the_page_has_a_row_for_every_call_and_option() -> None:
    text = PAGE.read_text("utf-8")
    for name in CALLS:
        assert re.search(rf"^\| .*`(await )?{name}\(", text, re.MULTILINE), name
    for option in inspect.signature(MigrationManager.migrate).parameters:
        if option != "self":
            assert re.search(rf"^\| .*`{option}`", text, re.MULTILINE), option


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if blocks and title])
def test_every_block_of_the_page_runs_on_a_sample_terminal(
    title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each section has a terminal and a namespace of its own; the page's first block, which stands
    before any section, comes first in each. A block that begins with a file's name is that file."""
    terminal = new_terminal(tmp_path / "t", records=120)
    blocks = [*SECTIONS[""], *SECTIONS[title]]
    assert len(SECTIONS[""]) == 1
    files = [re.match(r"# migrations/(\w+\.py)\n", block.text) for block in blocks]
    if any(files):
        for path in terminal.own_migrations().glob("*.py"):
            path.unlink()
    names: dict[str, Any] = {"ROOT": str(terminal.root), "__name__": "page"}
    for block, file in zip(blocks, files):
        if file is not None:
            (terminal.root / "migrations" / file[1]).write_text(block.text + "\n")
        exec(builtins.compile(block.text, f"{title}, line {block.line}", "exec"), names)
    aio.shutdown()
    printed = capsys.readouterr().out
    for line in re.findall(r"# prints: (.*)", "\n".join(block.text for block in blocks)):
        assert line in printed
    no_child_is_left()


def test_importing_the_manager_brings_neither_verbs_nor_sqlite() -> None:
    """A program imports it at its start; what a run needs is loaded when there is one."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import agent.manager; print(*sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", f"{program}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(ran.stdout.split())
    assert not {name for name in loaded if name.startswith(("agent.cli", "agent.verbs"))}
    assert not loaded & {"_sqlite3", "asyncio", "enum", "collections", "agent.worker.start"}
