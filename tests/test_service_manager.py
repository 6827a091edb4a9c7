"""What the daemon tells whoever restarts it or resets the terminal when nothing moves.

The service manager hears READY after the boot decision, marks while a run is on, and a sign of life
only from a daemon that works or has nothing to do. The hardware watchdog is a stand-in that bites.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests.daemons import Daemon, SocketPeer, result_of, until
from tests.terminals import Gate, Terminal, new_terminal
from tests.test_kills import contents
from tests.test_watchdog import HANG, Manager
from tests.watchdog_stand_in import DEVICE, StandIn

HEAD = 3
SLOW = '''"""A step that takes some milliseconds for each record."""
from agent.core.migration import KEEP, each

VERSION, NAME = 4, "slow"


def up(record, context):
    sum(range(200_000))
    return KEEP


STEPS = [each("transactions", up, fields=["x"])]
'''
OP = "op-000001"


class Watched:
    """A daemon under a service manager; `messages` is what the manager has heard so far."""

    def __init__(self, daemon: Daemon, manager: Manager) -> None:
        self.daemon = daemon
        self.messages = manager.messages

    def heard(self, word: str) -> int:
        """The place of the first message with a word in it, waited for."""

        def place() -> int:
            found = [n for n, m in enumerate(list(self.messages), 1) if word in m]
            assert found or self.daemon.process.poll() is None, self.daemon.process.communicate()
            return found[0] if found else 0

        found: int = until(place)
        return found - 1

    def signs_of_life(self) -> int:
        return sum("WATCHDOG=1" in m for m in list(self.messages))


@contextmanager
def watched(terminal: Terminal, period_ms: int | None = None) -> Iterator[Watched]:
    """`posagent run` with a notification socket, and a period in which to give a sign of life."""
    path = terminal.root / "notify"
    path.unlink(missing_ok=True)
    manager = Manager(path)
    given = dict(os.environ, NOTIFY_SOCKET=str(path))
    if period_ms is not None:
        given["WATCHDOG_USEC"] = str(period_ms * 1000)
    try:
        with Daemon(terminal, env=given) as daemon:
            yield Watched(daemon, manager)
    finally:
        manager.stop()


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """A small terminal at schema 0."""
    return new_terminal(tmp_path / "t", records=120, unsettled=8)


def hanging(terminal: Terminal, deadline_ms: int) -> None:
    """A migration whose step never ends, from version 3 on."""
    (terminal.own_migrations() / "0004_hang.py").write_text(HANG)
    terminal.configure(deadline_ms=deadline_ms)


def after_upgrade(terminal: Terminal) -> None:
    assert terminal.boot().code == 0


# READY


def test_ready_comes_once_after_the_boot_decision_and_stopping_at_the_end(
    terminal: Terminal,
) -> None:
    with watched(terminal) as it:
        ready = it.heard("READY=1")
        assert reader.read_terminal(terminal.pos).schema_version == HEAD
        assert it.daemon.stop() == 0
    messages = it.messages
    assert messages[ready] == "READY=1\nSTATUS=OK"
    assert sum("READY=1" in m for m in messages) == 1
    assert messages[-1] == "STOPPING=1"
    marks = messages[:ready]
    assert all(m.startswith("EXTEND_TIMEOUT_USEC=") for m in marks)
    states = [m.rpartition("STATUS=")[2].split()[0] for m in marks if "STATUS=" in m]
    for state in ("checking", "backing_up", "building", "migrating", "proving", "switching"):
        assert state in states
    assert not any("WATCHDOG" in m for m in messages), "nobody asked for signs of life"


def test_the_socket_answers_before_the_first_step_and_ready_waits_for_the_last(
    terminal: Terminal,
) -> None:
    gate = Gate(terminal)
    with watched(terminal) as it:
        gate.wait(it.daemon.process)
        peer = it.daemon.peer()
        status = peer.result("subscribe", events=["state"])
        assert (status["state"], status["app_may_start"]) == ("migrating", False)
        assert not any("READY=1" in m for m in it.messages)
        gate.open()
        ready = it.heard("READY=1")
        assert it.messages[ready] == "READY=1\nSTATUS=OK"
        assert peer.result("status")["app_may_start"] is True


def held(terminal: Terminal) -> None:
    terminal.pos.unlink()


def failed(terminal: Terminal) -> None:
    hanging(terminal, 100)


def busy(terminal: Terminal) -> None:
    terminal.configure(busy_wait_ms=0)


@pytest.mark.parametrize(
    ("spoil", "verdict"), [(held, "HELD"), (failed, "HELD"), (busy, "REFUSED")]
)
def test_ready_comes_also_when_the_boot_was_held_or_failed(
    terminal: Terminal, spoil: Any, verdict: str
) -> None:
    spoil(terminal)
    holder = os.open(terminal.pos, os.O_RDONLY) if spoil is busy else -1
    with watched(terminal) as it:
        ready = it.heard("READY=1")
        assert it.messages[ready] == f"READY=1\nSTATUS={verdict}"
        status = it.daemon.ready().result("status")
        assert status["verdict"] == verdict
        assert status["last_error"]["message"]
        assert status["state"] == ("held" if spoil is held else "idle")
        assert status["app_may_start"] is (spoil is not held)
        assert it.daemon.stop() == 0
    if holder >= 0:
        os.close(holder)


# Signs of life


def test_an_idle_daemon_gives_signs_of_life_within_the_period(terminal: Terminal) -> None:
    after_upgrade(terminal)
    with watched(terminal, 300) as it:
        it.heard("READY=1")
        until(lambda: it.signs_of_life() >= 8)
        assert it.daemon.stop() == 0


def signs_while_a_run_is_on(messages: list[str]) -> list[str]:
    """What came from the first migrating mark to the verdict: marks, and signs of life."""
    first = next(n for n, m in enumerate(messages) if "STATUS=migrating" in m)
    ready = next(n for n, m in enumerate(messages) if "READY=1" in m)
    return ["life" if "WATCHDOG=1" in m else "mark" for m in messages[first:ready]]


def test_a_run_gives_signs_of_life_by_its_marks(terminal: Terminal) -> None:
    after_upgrade(terminal)
    (terminal.own_migrations() / "0004_slow.py").write_text(SLOW)
    terminal.configure(batch_rows_max=16)
    with watched(terminal, 300) as it:
        it.heard("READY=1")
    seen = signs_while_a_run_is_on(it.messages)
    assert seen.count("life") >= 2
    assert ("life", "life") not in zip(seen, seen[1:])


def test_a_worker_that_hangs_is_not_vouched_for(terminal: Terminal) -> None:
    """A sign of life comes with a mark only: a timer would give ten in a row in each attempt."""
    after_upgrade(terminal)
    hanging(terminal, 1000)
    with watched(terminal, 300) as it:
        ready = it.heard("READY=1")
        until(lambda: any("WATCHDOG=1" in m for m in it.messages[ready:]))
        assert it.daemon.stop() == 0
    seen = signs_while_a_run_is_on(it.messages)
    assert ("life", "life") not in zip(seen, seen[1:])


def test_a_period_that_is_meant_for_another_process_is_none_of_ours(terminal: Terminal) -> None:
    after_upgrade(terminal)
    path = terminal.root / "notify"
    manager = Manager(path)
    given = dict(os.environ, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="30000", WATCHDOG_PID="1")
    with Daemon(terminal, env=given) as daemon:
        daemon.ready()
        assert daemon.stop() == 0
    assert not any("WATCHDOG=1" in m for m in manager.stop())


# The hardware


def with_hardware(terminal: Terminal, period_ms: int, deadline_ms: int) -> StandIn:
    terminal.configure(
        watchdog_device=DEVICE, watchdog_timeout_s=period_ms // 1000, deadline_ms=deadline_ms
    )
    return StandIn(terminal.root, period_ms)


def test_the_hardware_is_fed_through_a_run_and_disarmed_at_the_end(terminal: Terminal) -> None:
    with with_hardware(terminal, 3000, 2000) as hardware, Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert hardware.word() == "armed"
        assert daemon.stop() == 0
        assert hardware.word() == "disarmed"
        peer.close()
    assert reader.read_terminal(terminal.pos).schema_version == HEAD


def test_an_idle_daemon_feeds_it_for_longer_than_a_period(terminal: Terminal) -> None:
    after_upgrade(terminal)
    with with_hardware(terminal, 1000, 600) as hardware, watched(terminal, 300) as it:
        it.heard("READY=1")
        until(lambda: it.signs_of_life() >= 16)  # at least one in a third of 300 ms
        assert it.daemon.stop() == 0
        assert [hardware.word(), hardware.word()] == ["armed", "disarmed"]


def test_a_worker_that_hangs_is_killed_before_it_bites(terminal: Terminal) -> None:
    after_upgrade(terminal)
    hanging(terminal, 1300)
    with with_hardware(terminal, 2000, 1300) as hardware, Daemon(terminal) as daemon:
        status = daemon.ready().result("status")
        assert status["verdict"] == "HELD"
        assert "deadline" in status["last_error"]["message"]
        assert daemon.stop() == 0
        assert [hardware.word(), hardware.word()] == ["armed", "disarmed"]
    assert reader.read_terminal(terminal.pos).schema_version == HEAD


def test_an_agent_that_hangs_is_bitten_and_the_next_start_goes_on(
    terminal: Terminal, tmp_path: Path
) -> None:
    other = new_terminal(tmp_path / "whole", records=120, unsettled=8)
    Gate(other).path.unlink()
    after_upgrade(other)
    gate = Gate(terminal)
    with with_hardware(terminal, 2000, 1300) as hardware:
        with Daemon(terminal) as daemon:
            gate.wait(daemon.process)
            daemon.process.send_signal(signal.SIGSTOP)
            assert [hardware.word(), hardware.word()] == ["armed", "bitten"]
            daemon.process.communicate()
            assert daemon.process.returncode == -signal.SIGKILL
        gate.wait_for_death()
        assert hardware.word() == "listening"
        with Daemon(terminal) as daemon:
            assert daemon.ready().result("status")["verdict"] == "OK"
            assert daemon.stop() == 0
    assert contents(terminal.pos) == contents(other.pos)


def test_a_second_agent_leaves_the_hardware_alone(terminal: Terminal) -> None:
    """Its V would disarm the first one's, and its end without one would reset the terminal."""
    after_upgrade(terminal)
    with with_hardware(terminal, 3000, 2000) as hardware, Daemon(terminal) as daemon:
        daemon.ready()
        path = Path(f"{terminal.root}{DEVICE}")
        path.rename(path.with_name("first"))
        with StandIn(terminal.root, 3000) as second:
            assert terminal.run("run", "--json").code == 5
            assert terminal.run("boot", "--json").code == 5, "it leaves a run to the daemon"
            path.write_bytes(b"V")
            assert [second.word(), second.word()] == ["armed", "disarmed"]
        assert daemon.stop() == 0
        assert [hardware.word(), hardware.word()] == ["armed", "disarmed"]


def asked(peer: SocketPeer, method: str, **params: Any) -> dict[str, Any]:
    """A call that changes something, and its end."""
    return result_of(peer, peer.result(method, op=OP, **params)["run"])


def test_a_run_that_a_peer_asked_for_feeds_by_its_marks_and_says_ready_only_once(
    terminal: Terminal,
) -> None:
    with (
        with_hardware(terminal, 3000, 2000) as hardware,
        watched(terminal, 300) as it,
    ):
        peer = it.daemon.ready()
        assert asked(peer, "backup")["state"] == "done"
        assert it.daemon.stop() == 0
        assert [hardware.word(), hardware.word()] == ["armed", "disarmed"]
    assert sum("READY=1" in m for m in it.messages) == 1
