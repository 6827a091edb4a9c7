"""Both watchdogs are fed by a real boot, on marks of progress only, and let go of properly."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminals import Terminal, new_terminal

HANG = '''"""A step that never ends."""
from agent.core.migration import each

VERSION, NAME = 4, "hang"


def up(record, context):
    while True:
        pass


STEPS = [each("balances", up, fields=["x"])]
'''


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal whose watchdog device is a pipe that somebody always reads."""
    terminal = new_terminal(tmp_path / "t")
    terminal.configure(watchdog_device="/dev/watchdog", watchdog_timeout_s=60)
    path = terminal.root / "dev/watchdog"
    path.parent.mkdir()
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)  # a reader that is always there, as the driver is
    yield terminal
    os.close(fd)


def told(terminal: Terminal) -> bytes:
    """Everything written to the device so far."""
    fd = os.open(terminal.root / "dev/watchdog", os.O_RDONLY | os.O_NONBLOCK)
    data = b""
    try:
        while True:
            more = os.read(fd, 65536)
            if not more:
                break
            data += more
    except BlockingIOError:
        pass
    os.close(fd)
    return data


def test_a_boot_feeds_the_hardware_and_disarms_it_at_the_end(
    device: Terminal,
) -> None:
    assert device.boot().code == 0
    data = told(device)
    assert data.endswith(b"V")
    assert len(data) > 6  # every state of the run is a mark
    assert set(data[:-1]) == {0}


class Manager:
    """The service manager's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data = self._socket.recv(65536)
            if data == b"end of test":
                return
            self.messages.append(data.decode())

    def stop(self) -> list[str]:
        """Everything that was heard."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ender:
            ender.connect(self._socket.getsockname())
            ender.send(b"end of test")
        self._thread.join()
        self._socket.close()
        return self.messages


def boot_under_a_manager(terminal: Terminal, where: Path) -> tuple[int, list[str]]:
    """One boot with NOTIFY_SOCKET set: exit code and messages."""
    manager = Manager(where / "notify")
    try:
        answer = terminal.run(
            "boot", "--json", env=dict(os.environ, NOTIFY_SOCKET=str(where / "notify"))
        )
    finally:
        messages = manager.stop()
    return answer.code, messages


def test_ready_is_said_once_and_last_and_each_mark_extends_the_start_timeout(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t")
    code, messages = boot_under_a_manager(terminal, tmp_path)
    assert code == 0
    assert [m for m in messages if "READY=1" in m] == messages[-1:]
    assert all(m.startswith("EXTEND_TIMEOUT_USEC=") for m in messages[:-1])
    states = [m.rpartition("STATUS=")[2].split()[0] for m in messages[:-1]]
    for state in ("checking", "backing_up", "building", "migrating", "proving", "switching"):
        assert state in states


def test_a_worker_that_hangs_is_not_fed_for(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t")
    (terminal.own_migrations() / "0004_hang.py").write_text(HANG)
    terminal.configure(deadline_ms=1000)
    code, messages = boot_under_a_manager(terminal, tmp_path)
    assert code == 7
    # Each mark says where the work is. A timer that fed would repeat the last one.
    statuses = [m.rpartition("STATUS=")[2] for m in messages[:-1]]
    repeated = [a for a, b in zip(statuses, statuses[1:]) if a == b and a.startswith("migrating")]
    assert repeated == []
