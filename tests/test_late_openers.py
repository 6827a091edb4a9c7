"""Whoever opens pos.db while it is replaced: no acknowledged sale is lost, no file is torn.

Three applications open, sell and close without a pause while the file under them is switched again
and again; then single late openers, stopped where they do the most harm. Nothing sleeps here:
a run that must not go on yet waits at a gate, and a run that is refused is started again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import independent_reader as reader
from tests.client import NAME, Client, sale, start_hammer
from tests.terminals import Answer, Gate, Terminal, new_terminal, start_at_gate

MODES = ("delete", "wal")
SWITCHES = 20  # of each mode
HAMMERS = 3
PATIENCE_S = 80  # for all switches of one mode; they need a quarter of it on two slow cores

ONE_STEP = """from agent.core.migration import set_field
VERSION, NAME = {version}, "step {version}"
STEPS = [set_field("balances", "step_{version}", {version})]
"""


def upgraded(terminal: Terminal, until: float) -> Answer:
    """`migrate`, again and again while the applications hold the file as they happen to do."""
    while True:
        answer = terminal.run("migrate", "--json")
        if answer.code != 5 or time.monotonic() > until:
            return answer


def sold(logs: list[Path], more_than: int, until: float) -> int:
    """How many sales are acknowledged, once there are more than that."""
    while True:
        count = sum(len(log.read_bytes().split()) for log in logs if log.exists())
        if count > more_than or time.monotonic() > until:
            return count
        time.sleep(0.005)  # the clients need the processor, too


@pytest.mark.parametrize("mode", MODES)
def test_no_acknowledged_sale_is_lost_over_twenty_switches_under_hammering_clients(
    tmp_path: Path, mode: str
) -> None:
    terminal = new_terminal(tmp_path / "t", journal=mode, records=40, unsettled=5)
    terminal.configure(busy_wait_ms=5000)
    steps = terminal.own_migrations()
    for file in steps.glob("0*.py"):
        file.unlink()
    document = json.loads((steps / "stores.json").read_text())
    document["app_reads"] = [0, SWITCHES]
    (steps / "stores.json").write_text(json.dumps(document))
    before = terminal.read()
    stop = tmp_path / "stop"
    logs = [tmp_path / f"acknowledged-{number}" for number in range(HAMMERS)]
    hammers = [start_hammer(terminal.pos, log, stop, log.name[-1]) for log in logs]
    inode = os.stat(terminal.pos).st_ino
    sold_before = [0]
    try:
        until = time.monotonic() + PATIENCE_S
        for version in range(1, SWITCHES + 1):
            path = steps / f"{version:04d}_step.py"
            path.write_text(ONE_STEP.format(version=version))
            sold_before.append(sold(logs, sold_before[-1], until))
            answer = upgraded(terminal, until)
            assert answer.code == 0, answer.out + answer.err
            assert answer.json["verdict"] == "OK"
            old, inode = inode, os.stat(terminal.pos).st_ino
            assert old != inode
    finally:
        stop.touch()
        codes = [hammer.wait() for hammer in hammers]
    assert codes == [0] * HAMMERS, "a client met something other than a busy file"
    acknowledged = [key for log in logs for key in log.read_text().split()]
    assert len(acknowledged) == len(set(acknowledged))
    assert sold_before == sorted(set(sold_before)), "sales were made between any two switches"
    after = terminal.read()
    assert after.schema_version == SWITCHES
    assert reader.soundness(terminal.pos) == []
    sales = after.stores["transactions"]
    lost = [key for key in acknowledged if sales.get(key) != sale(key)]
    assert lost == [], f"{len(lost)} of {len(acknowledged)} acknowledged sales are lost"
    # Sold in the very last moment and not logged any more, at most one for each client.
    unknown = set(sales) - set(before.stores["transactions"]) - set(acknowledged)
    assert len(unknown) <= HAMMERS


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_opened_the_old_file_is_busy_until_it_lets_go_and_never_writes(
    tmp_path: Path, mode: str
) -> None:
    terminal, run, gate = at_the_gate(tmp_path, "migrate", mode)
    old = os.stat(terminal.pos).st_ino
    with Client(terminal.pos) as late:
        late.ask("open 2")
        late.send("sale tx_late")  # waits in its busy time-out over the rename
        gate.open()
        assert late.answer() == "busy"
        assert os.stat(terminal.pos).st_ino != old, "the rename came while it waited"
        late.ask("sql PRAGMA busy_timeout = 0")
        assert late.ask("sale tx_later") == "busy"
        late.ask("close")
        out, _ = run.communicate()
        assert run.returncode == 0, out
        assert json.loads(out)["app_may_start"] is True
        assert "tx_late" not in terminal.read().stores["transactions"]
        late.ask("open 0")
        assert late.ask("sale tx_late") == "ok"
    assert reader.soundness(terminal.pos) == []
    assert terminal.read().stores["transactions"]["tx_late"] == sale("tx_late")


@pytest.mark.parametrize("mode", MODES)
def test_nobody_can_use_the_new_file_before_the_run_is_over(tmp_path: Path, mode: str) -> None:
    # A sale acknowledged in it between the rename and the folder's fsync is gone after a cut.
    terminal, run, gate = at_the_gate(tmp_path, "migrate", mode)
    old = os.stat(terminal.pos).st_ino
    with Client(terminal.pos) as late, Client(terminal.pos) as early:
        late.ask("open 0")  # keeps the run waiting after its rename
        gate.open()
        wait_for_switch(run, terminal, old)
        early.ask("open 0")
        assert early.ask("sale tx_early") == "busy"
        assert run.poll() is None
        early.ask("close")
        late.ask("close")
        out, _ = run.communicate()
        assert run.returncode == 0, out
        early.ask("open 0")
        assert early.ask("sale tx_early") == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_a_boot_with_a_late_holder_says_12_and_keeps_the_old_file_locked_behind_itself(
    tmp_path: Path, mode: str
) -> None:
    terminal, run, gate = at_the_gate(tmp_path, "boot", mode, deadline_ms=1500)
    with Client(terminal.pos) as late:
        late.ask("open 0")
        gate.open()
        out, _ = run.communicate()
        said = json.loads(out)
        assert run.returncode == 12, out
        assert said["app_may_start"] is False
        named = f"{NAME} (pid {late.pid})"
        assert named in said["app_must_not_start_because"]
        assert said["late_holders"] == [named]
        holder = holder_of(terminal)
        assert late.ask("sale tx_late") == "busy", "the old file must stay locked"
        again = terminal.boot()
        assert again.code == 12
        assert named in again.json["app_must_not_start_because"]
        assert holder_of(terminal) == holder
    wait_until_gone(holder)
    over = terminal.boot()
    assert over.code == 0, over.out + over.err
    assert over.json["app_may_start"] is True
    with Client(terminal.pos) as client:
        client.ask("open 0")
        assert client.ask("sale tx_next") == "ok"
        journal = client.ask("sql PRAGMA journal_mode")
    assert journal == f'ok [["{mode}"]]', "the WAL mode is given back once the old file is free"
    assert reader.soundness(terminal.pos) == []
    assert "tx_late" not in terminal.read().stores["transactions"]


@pytest.mark.parametrize("mode", MODES)
def test_the_old_file_stays_locked_when_the_worker_dies_behind_its_rename(
    tmp_path: Path, mode: str
) -> None:
    terminal, run, gate = at_the_gate(tmp_path, "boot", mode, deadline_ms=1500)
    old = os.stat(terminal.pos).st_ino
    with Client(terminal.pos) as late:
        late.ask("open 0")
        gate.open()
        wait_for_switch(run, terminal, old)
        os.kill(worker_of(run), signal.SIGKILL)
        out, _ = run.communicate()
        assert run.returncode == 12, out
        assert f"{NAME} (pid {late.pid})" in json.loads(out)["app_must_not_start_because"]
        holder = holder_of(terminal)
        assert late.ask("sale tx_late") == "busy"
    wait_until_gone(holder)
    over = terminal.boot()
    assert over.code == 0, over.out
    with Client(terminal.pos) as client:
        client.ask("open 0")
        assert client.ask("sql PRAGMA journal_mode") == f'ok [["{mode}"]]'
    assert reader.soundness(terminal.pos) == []


@pytest.mark.parametrize("mode", MODES)
def test_the_next_worker_waits_for_a_late_opener_as_the_dead_one_did(
    tmp_path: Path, mode: str
) -> None:
    terminal, run, gate = at_the_gate(tmp_path, "boot", mode)
    old = os.stat(terminal.pos).st_ino
    with Client(terminal.pos) as late:
        late.ask("open 0")
        gate.open()
        wait_for_switch(run, terminal, old)
        os.kill(worker_of(run), signal.SIGKILL)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(1)  # it has 30 s for it; a run that does not wait ends at once
        late.ask("close")
        out, _ = run.communicate()
        assert run.returncode == 0, out
        late.ask("open 0")
        assert late.ask("sql PRAGMA journal_mode") == f'ok [["{mode}"]]'
        assert late.ask("sale tx_late") == "ok"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("late_stays", [False, True], ids=["late one leaves", "late one stays"])
def test_an_application_that_got_in_when_the_worker_died_is_not_recovered_under_its_hands(
    tmp_path: Path, mode: str, late_stays: bool
) -> None:
    # The journal of a sale that is being made looks like one that a cut has left behind.
    terminal, run, gate = at_the_gate(tmp_path, "boot", mode, records=600, busy_wait_ms=300)
    old = os.stat(terminal.pos).st_ino
    with Client(terminal.pos) as late, Client(terminal.pos) as early:
        late.ask("open 0")
        gate.open()
        wait_for_switch(run, terminal, old)
        worker = worker_of(run)
        run.send_signal(signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        early.ask("open 5")
        early.ask("sql PRAGMA cache_size = 2")
        assert early.ask("sql BEGIN IMMEDIATE") == "ok"
        assert early.ask("sql UPDATE transactions SET value = value || ' '") == "ok"
        if not late_stays:
            late.ask("close")
        run.send_signal(signal.SIGCONT)
        out, _ = run.communicate()
        # 5 where the worker died before it could tell of its switch: the next boot tells.
        assert run.returncode in ((12,) if late_stays else (0, 5)), out
        assert json.loads(out)["app_may_start"] is not late_stays
        assert early.ask("sql COMMIT") == "ok", out
        early.ask("close")
        holder = holder_of(terminal) if late_stays else 0
        assert late.ask("sale tx_late") == "busy" or not late_stays
    if late_stays:
        wait_until_gone(holder)
    assert reader.soundness(terminal.pos) == []
    values = terminal.read().stores["transactions"].values()
    assert all(str(value).endswith(" ") for value in values), "the commit was undone"
    assert terminal.boot().code == 0


def at_the_gate(
    tmp_path: Path, verb: str, mode: str, records: int = 40, **settings: int
) -> tuple[Terminal, subprocess.Popen[str], Gate]:
    """A terminal whose run of `verb` stands at its gate, between two records."""
    terminal = new_terminal(tmp_path / "t", journal=mode, records=records, unsettled=5)
    terminal.configure(**settings)
    return (terminal, *start_at_gate(terminal, verb, "--json"))


def wait_for_switch(run: subprocess.Popen[str], terminal: Terminal, old: int) -> None:
    """Return once pos.db is another file than the one with that inode number."""
    while os.stat(terminal.pos).st_ino == old:
        assert run.poll() is None


def worker_of(run: subprocess.Popen[str]) -> int:
    """The one child of a running command."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def holder_of(terminal: Terminal) -> int:
    """The process that stays behind with the old file's lock: there must be one."""
    old = os.stat(f"{terminal.pos}.prev")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_holder = (entry / "comm").read_text().strip() == "posagent-hold"
            descriptors = list((entry / "fd").iterdir()) if is_holder else []
        except OSError:
            continue  # it ended while we looked
        if any(is_same_file(descriptor, old) for descriptor in descriptors):
            found.append(int(entry.name))
    assert len(found) == 1
    return found[0]


def is_same_file(path: Path, status: os.stat_result) -> bool:
    """A holder looks through /proc itself: a descriptor of its may be closed while we look."""
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    """Return once a process that is no child of ours has ended."""
    descriptor = os.open(f"/proc/{pid}", os.O_RDONLY)
    try:
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                return
            if state == "Z":
                return
            os.sched_yield()
    finally:
        os.close(descriptor)
