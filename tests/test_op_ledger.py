"""Calls that change something: durable before the reply, done once, and with an end that is true.

A client that lost a reply asks again with the same op, after a cut of power as well, and must never
get a second run. Needs root, strace and mkfs.ext4.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.edges.ledger import Ledger
from agent.ground.limits import OPS_KEPT_MAX
from tests import filesystems as fs
from tests import killing
from tests.client import sale
from tests.daemons import Daemon, SocketPeer, give_libraries, result_of, until
from tests.terminals import COMMAND, Gate, Terminal, new_terminal
from tests.test_daemon import pid_of_daemon
from tests.test_kills import contents, history_of

OP, OTHER = "op-000001", "op-000002"
KEEP = 20  # settled records that a prune leaves
SWITCH = "rename pos.db.next pos.db"
BEFORE = "create seal.tmp"


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """One at the newest schema, on which a boot has nothing to do and a prune something."""
    return at_head(tmp_path / "t")


def at_head(root: Path) -> Terminal:
    terminal = new_terminal(root, records=120, unsettled=8)
    terminal.configure(batch_rows_max=16)
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    document["versions"][0]["stores"]["transactions"]["prune"]["keep_newest"] = KEEP
    path.write_text(json.dumps(document))
    give_libraries(terminal)
    assert terminal.boot().code == 0
    assert terminal.run("commit", "--json").code == 0
    assert terminal.run("backup", "--json").json["backup"]["sequence"] == 2
    return terminal


def kind_of(said: dict[str, Any]) -> str:
    """The kind of an error reply."""
    found: str = said["error"]["data"]["kind"]
    return found


def sell(terminal: Terminal, key: str = "tx_9999_newer") -> None:
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES (?, ?)", (key, sale(key)))
    db.close()


# Durable before the reply


def test_a_call_is_on_flash_before_it_is_answered_and_answered_before_its_work(
    terminal: Terminal, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    calls = "fsync,fdatasync,write,sendto,fork,vfork,clone,clone3"
    words = ["strace", "-D", "-f", "-y", "-qq", "-s", "200", "-o", str(log)]
    words += ["-e", f"trace={calls}"]
    command = [*words, *COMMAND, "--root", str(terminal.root), "run", "--json"]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peer = until(lambda: connected(terminal))
    peer.result("ping")
    run = peer.result("backup", op=OP)["run"]
    assert result_of(peer, run)["state"] == "done"
    peer.close()
    daemon.terminate()
    daemon.communicate()
    lines = log.read_text().splitlines()
    pong = place_of(lines, r'"result\\":\{\}')
    reply = place_of(lines, r'replayed\\":false')
    work = place_of(lines[pong:], r"(clone|fork)\(") + pong
    assert pong < reply < work
    synced = [line for line in lines[pong:reply] if "sync(" in line]
    assert re.search(r"fdatasync\(\d+<.*/agent\.db>\) += 0", synced[-1]), synced


def connected(terminal: Terminal) -> SocketPeer | None:
    try:
        return SocketPeer(terminal.root / "run/posagent/agent.sock")
    except OSError:
        return None


def place_of(lines: list[str], pattern: str) -> int:
    """The first line that fits."""
    return next(n for n, line in enumerate(lines) if re.search(pattern, line))


def test_a_repeat_gets_the_same_run_while_it_is_on_and_after_its_end(terminal: Terminal) -> None:
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        gate = Gate(terminal)
        first = peer.result("migrate", op=OP, to=4)
        assert (first["replayed"], first["state"]) == (False, "running")
        gate.wait(daemon.process)
        again = daemon.peer().result("migrate", op=OP, to=4)
        assert again == {"run": first["run"], "replayed": True, "state": "running"}
        assert kind_of(peer.call("migrate", op=OTHER, to=4)) == "BUSY"
        gate.open()
        assert result_of(peer, first["run"])["state"] == "done"
        again = peer.result("migrate", op=OP, to=4)
        assert again == {"run": first["run"], "replayed": True, "state": "done"}
        assert peer.result("result", op=OP) == peer.result("result", run=first["run"])
        assert peer.result("migrate", op=OTHER, to=4) == {"noop": True}
        assert daemon.stop() == 0
    assert len({row["run"] for row in history_of(terminal)}) == 2, "the first boot's and this one"


def test_a_repeat_after_kill_and_restart_gets_the_same_run(terminal: Terminal) -> None:
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        run = peer.result("backup", op=OP)["run"]
        ended = result_of(peer, run)
        daemon.process.kill()
        daemon.process.communicate()
    before = sorted(os.listdir(terminal.backups))
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        again = peer.result("backup", op=OP)
        assert again == {"run": run, "replayed": True, "state": "done"}
        assert peer.result("result", op=OP) == ended
        assert daemon.stop() == 0
    assert sorted(os.listdir(terminal.backups)) == before


def test_a_call_that_was_answered_is_known_after_the_power_was_cut(
    terminal: Terminal, tmp_path: Path
) -> None:
    """The file system loses all that was not synced, at the moment of the reply."""
    image = tmp_path / "image"
    fs.Partition.make(image, 32 * fs.MIB, terminal.data)
    partition = fs.Partition(image, terminal.data, "commit=600")
    partition.mount()
    try:
        with Daemon(terminal) as daemon:
            peer = daemon.ready()
            run = peer.result("backup", op=OP)["run"]
            killing.shut_down(terminal.data)
            daemon.process.kill()
            daemon.process.communicate()
        until(lambda: unmounted(partition))
        partition.mount()
        with Daemon(terminal) as daemon:
            peer = daemon.ready()
            found = peer.result("result", op=OP)
            assert (found["run"], found["method"]) == (run, "backup")
            assert found["state"] in ("interrupted", "done")
            again = peer.result("backup", op=OP)
            assert (again["run"], again["replayed"]) == (run, True)
            assert daemon.stop() == 0
    finally:
        partition.unmount()


def unmounted(partition: fs.Partition) -> bool:
    """Whether the last of those who were killed is gone."""
    try:
        partition.unmount()
    except AssertionError:
        return False
    return True


def test_a_copy_of_the_flash_as_it_is_at_the_reply_knows_the_call(
    terminal: Terminal, tmp_path: Path
) -> None:
    """What a cut leaves whose writes all came through."""
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        gate = Gate(terminal)
        run = peer.result("migrate", op=OP, to=4)["run"]
        gate.wait(daemon.process)
        leave = shutil.ignore_patterns("agent.sock")
        shutil.copytree(terminal.root, tmp_path / "copy", symlinks=True, ignore=leave)
        gate.open()
        expected = result_of(peer, run)
        assert daemon.stop() == 0
    copy = Terminal(tmp_path / "copy")
    with Daemon(copy) as daemon:
        peer = daemon.ready()
        assert peer.result("migrate", op=OP, to=4) == {
            "run": run,
            "replayed": True,
            "state": "done",
        }
        found = peer.result("result", op=OP)
        assert found["outcome"]["verdict"] == expected["outcome"]["verdict"] == "OK"
        assert daemon.stop() == 0
    assert contents(copy.pos) == contents(terminal.pos)


# The same op for something else


def test_an_op_for_another_call_is_refused_and_names_the_first(terminal: Terminal) -> None:
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        run = peer.result("commit", op=OP)["run"]
        result_of(peer, run)
        for method, params in (
            ("backup", {}),
            ("migrate", {"to": 3}),
            ("rollback", {"to": 2}),
            ("restore", {"backup": 1}),
            ("prune", {}),
        ):
            error = peer.call(method, op=OP, **params)["error"]
            assert error["code"] == -32007
            assert (
                error["data"] | {"kind": "OP_REUSED", "method": "commit", "run": run}
                == (error["data"])
            )
            assert error["data"]["changed"] is False
        assert peer.result("result", op=OP)["method"] == "commit"
        assert daemon.stop() == 0


def test_an_op_with_another_parameter_is_refused_also_after_a_restart(terminal: Terminal) -> None:
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        run = peer.result("rollback", op=OP, to=2)["run"]
        result_of(peer, run)
        assert kind_of(peer.call("rollback", op=OP, to=1)) == "OP_REUSED"
        daemon.process.kill()
        daemon.process.communicate()
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert kind_of(peer.call("rollback", op=OP, to=1)) == "OP_REUSED"
        assert peer.result("rollback", op=OP, to=2)["run"] == run
        assert daemon.stop() == 0


@pytest.mark.parametrize("op", [None, "short", "x" * 37, "with blank", "ünsafe-op", 12345678])
def test_a_call_without_a_proper_op_is_refused_and_leaves_no_row(
    terminal: Terminal, op: Any
) -> None:
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        given = {} if op is None else {"op": op}
        kind = kind_of(peer.call("commit", **given))
        assert kind in ("OP_MISSING", "PARAMS")
        assert result_of(peer, peer.result("commit", op=OP)["run"])["run"] == 1
        assert daemon.stop() == 0


# An end for every op


def test_a_migrate_that_was_cut_is_done_by_the_next_boot(terminal: Terminal) -> None:
    gate = Gate(terminal)
    (terminal.root / "migrations/0004_waits_at_the_gate.py").rename(terminal.root / "aside.py")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        (terminal.root / "aside.py").rename(terminal.root / "migrations/0004_waits_at_the_gate.py")
        run = peer.result("migrate", op=OP, to=4)["run"]
        gate.wait(daemon.process)
        daemon.process.kill()
        gate.wait_for_death()
    os.mkfifo(gate.path)
    gate._way_in = -1  # it is shut again
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        peer = daemon.peer()
        again = peer.result("migrate", op=OP, to=4)
        assert again == {"run": run, "replayed": True, "state": "running"}
        assert peer.result("result", op=OP)["state"] == "running"
        gate.open()
        until(lambda: peer.result("status")["state"] == "idle")
        found = peer.result("result", op=OP)
        assert (found["run"], found["state"], found["outcome"]["to_version"]) == (run, "done", 4)
        assert daemon.stop() == 0


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("rollback", {"to": 2}),
    ("restore", {"backup": 2, "discard": "newer=1"}),
    ("prune", {}),
]


@pytest.mark.parametrize("at", [BEFORE, SWITCH])
@pytest.mark.parametrize(("method", "params"), WAYS)
def test_a_way_back_that_was_cut_is_interrupted_before_its_switch_and_done_behind_it(
    terminal: Terminal, method: str, params: dict[str, Any], at: str
) -> None:
    sell(terminal)
    before = contents(terminal.pos)
    with ThreadPoolExecutor(1) as pool:
        command = [*COMMAND, "--root", str(terminal.root), "run", "--json"]
        traced = pool.submit(
            killing.trace, command, terminal.root / "seen", victim="supervisor", at=at
        )
        peer = until(lambda: connected(terminal))
        said = peer.call(method, op=OP, **params)
        if "error" in said:
            os.kill(pid_of_daemon(terminal), signal.SIGKILL)
        assert traced.result().killed, said
        peer.close()
    accepted = said["result"]
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        found = peer.result("result", op=OP)
        again = peer.result(method, op=OP, **params)
        assert (again["run"], again["replayed"]) == (accepted["run"], True)
        assert again["state"] == found["state"]
        assert daemon.stop() == 0
    if at == BEFORE:
        assert (found["state"], found["outcome"]["code"]) == ("interrupted", "INTERRUPTED")
        assert contents(terminal.pos) == before
    else:
        assert (found["state"], found["outcome"]["verdict"]) == ("done", "OK")
        assert contents(terminal.pos) != before


def test_a_migrate_that_was_cut_and_then_told_to_stop_is_still_done_by_the_next_boot(
    terminal: Terminal,
) -> None:
    gate = Gate(terminal)
    path = terminal.root / "migrations/0004_waits_at_the_gate.py"
    path.rename(terminal.root / "aside.py")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        (terminal.root / "aside.py").rename(path)
        run = peer.result("migrate", op=OP, to=4)["run"]
        gate.wait(daemon.process)
        daemon.process.kill()
        gate.wait_for_death()
    os.mkfifo(gate.path)
    gate._way_in = -1  # it is shut again
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        peer = daemon.peer()
        assert kind_of(peer.call("commit", op=OTHER)) == "BUSY"  # counted, and written at the end
        daemon.process.terminate()
        gate.open()
        daemon.process.communicate()
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        found = peer.result("result", op=OP)
        assert (found["run"], found["state"]) == (run, "done"), found
        assert daemon.stop() == 0


def test_a_call_that_was_told_to_stop_ends_as_interrupted_and_stays_so(terminal: Terminal) -> None:
    gate = Gate(terminal)
    path = terminal.root / "migrations/0004_waits_at_the_gate.py"
    path.rename(terminal.root / "aside.py")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        (terminal.root / "aside.py").rename(path)
        run = peer.result("migrate", op=OP, to=4)["run"]
        gate.wait(daemon.process)
        assert kind_of(peer.call("cancel", op=OTHER, run=run + 1)) == "NO_SUCH"
        assert peer.result("cancel", op=OTHER, run=run)["state"] == "stopping"
        gate.open()
        found = result_of(peer, run)
        assert (found["state"], found["outcome"]["code"]) == ("interrupted", "INTERRUPTED")
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.communicate()
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert peer.result("result", op=OP) == found
        assert peer.result("status")["schema"] == 4
        assert daemon.stop() == 0


# How many are kept


def an_audit_row() -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("at_ms", "count"), 1)
    return row | dict.fromkeys(("boot_id", "link", "level", "method", "outcome"), "x")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(gaps=st.lists(st.booleans(), min_size=80, max_size=100))
def test_the_newest_64_that_ended_are_kept_by_count_and_none_that_did_not_end_goes(
    gaps: list[bool],
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # where a flush costs nothing
        ledger = Ledger(f"{folder}/agent.db")
        open_ones: list[int] = []
        for n, ends in enumerate(gaps, 1):
            call = ledger.accept(f"op-{n:06d}", "digest", "commit", "commit", an_audit_row())
            assert call.run == n
            if ends or n == len(gaps):
                ledger.end(n, "done", {"verdict": "OK"})
            else:
                open_ones.append(n)
        known = [n for n in range(1, len(gaps) + 1) if ledger.find(op=f"op-{n:06d}") is not None]
        newest = range(len(gaps) - OPS_KEPT_MAX + 1, len(gaps) + 1)
        assert known == sorted({*open_ones, *newest})
        assert [call.run for call in ledger.without_end()] == open_ones


def test_an_op_that_was_pushed_out_cannot_repeat_a_migrate(terminal: Terminal) -> None:
    """Nothing is known of it any more; at the target there is nothing to do."""
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        for n in range(OPS_KEPT_MAX + 1):
            run = peer.result("commit", op=f"op-commit-{n}")["run"]
            result_of(peer, run)
        assert kind_of(peer.call("result", op="op-commit-0")) == "NO_SUCH"
        assert peer.result("commit", op="op-commit-1")["replayed"] is True
        assert peer.result("migrate", op="op-commit-0", to=3) == {"noop": True}
        assert daemon.stop() == 0


# The plan as a precondition


def add_migration(terminal: Terminal, text: str = "a") -> None:
    """One that is pending from now on; another text is another file with the same effect."""
    folder = terminal.own_migrations()
    (folder / "0004_one_more.py").write_text(
        f'"""{text}"""\nfrom agent.core.migration import set_field\n'
        'VERSION, NAME = 4, "one more"\nSTEPS = [set_field("balances", "more", 1)]\n'
    )
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, 4]
    (folder / "stores.json").write_text(json.dumps(document))


def plan_of(peer: SocketPeer) -> str:
    """The name of the plan, waited for."""

    def said() -> str | None:
        answer = peer.call("plan")
        return answer["result"]["plan"] if "result" in answer else None

    found: str = until(said)
    return found


def other_file(terminal: Terminal) -> None:
    add_migration(terminal, "b")


def other_schema(terminal: Terminal) -> None:
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("PRAGMA user_version = 2")
    db.close()


@pytest.mark.parametrize("change", [other_file, other_schema])
def test_a_plan_that_is_another_by_now_is_refused_with_the_new_one(
    terminal: Terminal, change: Any
) -> None:
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        add_migration(terminal)
        plan = plan_of(peer)
        change(terminal)
        before = terminal.sha256()
        error = peer.call("migrate", op=OP, to=4, plan=plan)["error"]
        assert (error["code"], error["data"]["kind"]) == (-32008, "PLAN_CHANGED")
        assert kind_of(peer.call("result", op=OP)) == "NO_SUCH", "it was not accepted"
        assert terminal.sha256() == before
        assert error["data"]["plan"] == plan_of(peer) != plan
        if change is other_file:
            run = peer.result("migrate", op=OP, to=4, plan=error["data"]["plan"])["run"]
            assert result_of(peer, run)["state"] == "done"
        assert daemon.stop() == 0


def test_a_plan_made_under_another_profile_is_refused(terminal: Terminal) -> None:
    plans = []
    for rows in (16, 8):
        terminal.configure(batch_rows_max=rows)
        (terminal.root / "migrations/0004_one_more.py").unlink(missing_ok=True)
        with Daemon(terminal) as daemon:
            peer = daemon.ready()
            add_migration(terminal)
            plans.append(plan_of(peer))
            if len(plans) == 2:
                said = peer.call("migrate", op=OP, to=4, plan=plans[0])
                assert kind_of(said) == "PLAN_CHANGED"
                assert said["error"]["data"]["plan"] == plans[1]
            assert daemon.stop() == 0
    assert plans[0] != plans[1]


# Flash that refuses the row


def test_a_call_that_flash_has_no_room_for_is_refused_and_not_begun(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.configure(state_dir="/state", backups_dir="/data/posagent/backups")
    point = terminal.root / "state"
    with fs.tmpfs(point, fs.MIB), Daemon(terminal) as daemon:
        peer = daemon.ready()
        result_of(peer, peer.result("commit", op=OP)["run"])
        fs.fill(point / "ballast", 0)
        error = peer.call("backup", op=OTHER)["error"]
        assert (error["code"], error["data"]["kind"]) == (-32021, "STORAGE_ERROR")
        assert error["data"]["changed"] is False
        assert peer.result("status")["state"] == "idle"
        before = sorted(os.listdir(terminal.backups))
        (point / "ballast").unlink()
        run = peer.result("backup", op=OTHER)["run"]
        assert result_of(peer, run)["state"] == "done"
        assert len(os.listdir(terminal.backups)) >= len(before)
        assert daemon.stop() == 0
