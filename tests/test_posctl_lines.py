"""Opening a port or a socket: what cannot be opened says why and what to do, and harms nobody."""

from __future__ import annotations

import grp
import os
import pty
import pwd
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from posctl.faults import LineLost, PortError
from posctl.lines import Place, SerialLine, SocketLine, place_of

NOBODY = 65534


class Pair:
    """A pty pair; `name` is the end that is opened as a port."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.name = os.ttyname(self.slave)

    def unplug(self) -> None:
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for fd in (made.slave, made.master):
        try:
            os.close(fd)
        except OSError:
            pass


def why_not(path: str, opened: Callable[[str], object] = SerialLine) -> PortError:
    with pytest.raises(PortError) as caught:
        opened(path)
    return caught.value


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may open everything; without root the mode alone does it."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("/dev/ttyUSB0", Place("serial", "/dev/ttyUSB0", 115_200)),
        ("/dev/ttyUSB0@9600", Place("serial", "/dev/ttyUSB0", 9600)),
        ("COM3@57600", Place("serial", "COM3", 57_600)),
        ("socket:/run/posagent/agent.sock", Place("socket", "/run/posagent/agent.sock")),
    ],
)
def test_a_place_is_a_port_with_its_rate_or_a_socket(where: str, place: Place) -> None:
    assert place_of(where) == place


@pytest.mark.parametrize("baud", ["fast", "", "-1", "0", "9600.0", "99999999", "٣"])
def test_a_baud_rate_that_is_none_is_named(baud: str) -> None:
    with pytest.raises(PortError, match="is no baud rate") as caught:
        place_of(f"/dev/ttyUSB0@{baud}")
    assert caught.value.why == "baud"


def test_a_file_with_an_at_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "by@id"
    path.touch()
    assert place_of(str(path)).path == str(path)


def test_bytes_go_both_ways_and_nothing_is_waited_for_once_there_is_something(pair: Pair) -> None:
    line = SerialLine(pair.name)
    line.send(b"\x1e\x00\xff\r\n\x11\x13")
    assert os.read(pair.master, 100) == b"\x1e\x00\xff\r\n\x11\x13"
    os.write(pair.master, b"\x03\x11\x13\xff\r\n")
    assert line.receive(20.0) == b"\x03\x11\x13\xff\r\n"
    assert line.receive(0.0) == b""
    line.close()


def test_no_such_port_sends_to_the_list_of_ports(tmp_path: Path) -> None:
    error = why_not(str(tmp_path / "ttyUSB9"))
    assert error.why == "missing"
    assert error.exit_code == 23
    assert "`posctl ports`" in error.message


def test_a_link_to_a_port_that_is_gone_says_where_it_leads(tmp_path: Path) -> None:
    link = tmp_path / "line"
    link.symlink_to("/dev/pts/99999")
    assert "it leads to /dev/pts/99999, which is gone" in why_not(str(link)).message


def test_a_port_that_another_program_has_names_it_and_disturbs_it_not(pair: Pair) -> None:
    program = (
        "import sys; from posctl.lines import SerialLine; line = SerialLine(sys.argv[1], 9600);"
        "print('open', flush=True); sys.stdin.read(1); print(line.receive(20))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, pair.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    os.write(pair.master, b"not yet read")
    error = why_not(pair.name)
    out, _ = other.communicate("x")
    assert error.why == "busy"
    assert f"(pid {other.pid}) has it open; close that first" in error.message
    assert out == "b'not yet read'\n"


def test_a_port_given_back_can_be_opened_again(pair: Pair) -> None:
    SerialLine(pair.name).close()
    SerialLine(pair.name).close()


def test_a_port_that_is_not_for_this_user_names_the_group_and_the_way_into_it(pair: Pair) -> None:
    if os.geteuid() == 0:
        group, user = grp.getgrnam("tty"), pwd.getpwuid(NOBODY).pw_name
        os.chown(pair.name, 0, group.gr_gid)
        os.chmod(pair.name, 0o660)
        with as_nobody():
            error = why_not(pair.name)
        assert f"is for group {group.gr_name} and {user} is not in it" in error.message
        assert f"`sudo usermod -aG {group.gr_name} {user}`" in error.message
    else:
        os.chmod(pair.name, 0)
        error = why_not(pair.name)
        assert "its mode is 0000" in error.message
    assert error.why == "denied"


@pytest.mark.parametrize("path", ["/dev/null", "/tmp", "/etc/passwd"])
def test_a_device_of_another_kind_is_no_port(path: str) -> None:
    error = why_not(path)
    assert error.why == "kind"
    assert "is no serial port" in error.message


def test_a_socket_given_as_a_port_is_sent_to_the_other_option(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert f"`posctl -s {path}`" in why_not(path).message


def test_a_pulled_cable_is_told_once_from_whatever_is_tried(pair: Pair) -> None:
    line = SerialLine(pair.name)
    pair.unplug()
    with pytest.raises(LineLost, match="the cable was pulled"):
        line.receive(20.0)
    with pytest.raises(LineLost):
        line.send(b"x")
    line.close()
    line.close()


def test_a_device_that_takes_nothing_does_not_hold_the_program(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posctl.lines._WRITE_S", 0.05)
    line = SerialLine(pair.name)
    for _ in range(40):  # more than a pty keeps
        line.send(b"x" * 1000)
    line.close()


# Sockets


def test_a_socket_that_is_not_there_or_deserted_says_what_to_start(tmp_path: Path) -> None:
    missing = why_not(str(tmp_path / "agent.sock"), SocketLine)
    assert "there is no socket" in missing.message
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.close()
    deserted = why_not(path, SocketLine)
    assert "nobody listens" in deserted.message
    assert {missing.why, deserted.why} == {"missing"}
    assert all("start `posagent run`" in one.message for one in (missing, deserted))


def test_a_file_or_a_port_given_as_a_socket_is_none(tmp_path: Path, pair: Pair) -> None:
    for path in (__file__, pair.name):
        error = why_not(path, SocketLine)
        assert error.why == "kind"
        assert "is no socket" in error.message


def test_a_socket_deeper_than_an_address_is_long_is_reached_and_its_end_is_told(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    at = os.open(folder, os.O_RDONLY)
    listener.bind(f"/proc/self/fd/{at}/s")
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        peer.sendall(peer.recv(100))
        peer.close()

    server = threading.Thread(target=serve)
    server.start()
    line = SocketLine(str(folder / "s"))
    line.send(b"back")
    assert line.receive(20.0) == b"back"
    with pytest.raises(LineLost, match="hung up"):
        line.receive(20.0)
    server.join()
    line.close()
    listener.close()
    os.close(at)
