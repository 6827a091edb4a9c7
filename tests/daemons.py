"""A sample terminal with its daemon running, and the far ends of its lines.

The serial line is a pty pair: the daemon opens one end by the name in its profile, the test holds
the other, with a noise proxy in between where a test wants one. The framing here is written from
docs/spec/wire-protocol.md alone and shares no code with the agent.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sysconfig
import termios
import time
import tty
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.terminals import Terminal, new_terminal

PATIENCE_S = 20.0  # a bound for a hung test, never a measure
LINE = "/dev/ttyS0"


class Line:
    """The technician's end of a pty pair whose other end stands under `root/dev/ttyS0`."""

    def __init__(self, terminal: Terminal) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.name = os.ttyname(slave)
        # Kept open, so that the pair outlives a daemon that is stopped and started again.
        self._slave = slave
        path = Path(f"{terminal.root}{LINE}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.symlink_to(self.name)
        self.seen = b""

    def send(self, data: bytes) -> None:
        """All of it."""
        while data:
            data = data[os.write(self.master, data) :]

    def read(self, wait_s: float = PATIENCE_S) -> bytes:
        """What is there, waited for; b"" when nothing comes in that time."""
        ready, _, _ = select.select([self.master], [], [], wait_s)
        if not ready:
            return b""
        data = os.read(self.master, 65536)
        self.seen += data
        return data

    def until(self, wanted: Callable[[bytes], Any], wait_s: float = PATIENCE_S) -> Any:
        """The first true answer of `wanted` to all that was seen since the last call."""
        give_up_at = time.monotonic() + wait_s
        while True:
            found = wanted(self.seen)
            if found:
                self.seen = b""
                return found
            if time.monotonic() > give_up_at or not self.read(wait_s):
                raise AssertionError(f"it did not come; seen was {self.seen!r}")

    def text_until(self, word: str) -> str:
        """The text up to and with a word."""
        data = self.until(lambda seen: seen if word.encode() in seen else None)
        return str(data.decode("ascii"))

    def type(self, text: str, until: str = "agent> ") -> str:
        """Type a line, Enter behind it, and answer what came up to a word behind its echo."""
        self.seen = b""
        self.send(text.encode() + b"\r")
        return self.text_until(until)

    def call(self, method: str, id: Any = 1, **params: Any) -> dict[str, Any]:
        """One call in a frame, answered in a frame with the same id."""
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        self.send(framed(json.dumps(request).encode()))
        return self.answer(id)

    def answer(self, id: Any = 1) -> dict[str, Any]:
        """The next reply with this id; notifications before it are dropped."""

        def reply(seen: bytes) -> dict[str, Any] | None:
            for said in frames_in(seen):
                if "method" not in said and said.get("id") == id:
                    return said
            return None

        found: dict[str, Any] = self.until(reply)
        return found

    def close(self) -> None:
        """Unplug: the daemon sees a hang-up once its own end is the only one."""
        os.close(self._slave)
        os.close(self.master)


def framed(body: bytes) -> bytes:
    """RS, body, #, CRC-32 in eight small hexadecimal digits, LF."""
    return b"\x1e" + body + b"#%08x\n" % zlib.crc32(body)


def frames_in(data: bytes) -> list[dict[str, Any]]:
    """The whole and sound frames in what came over a line; the rest is a console's text."""
    found = []
    for piece in data.split(b"\x1e")[1:]:
        line, ended, _ = piece.partition(b"\n")
        body, _, crc = line.rpartition(b"#")
        if ended and crc == b"%08x" % zlib.crc32(body):
            found.append(json.loads(body))
    return found


class SocketPeer:
    """One connection to agent.sock, in plain lines."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            self.socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        self._lines = self.socket.makefile("rb")
        self.notifications: list[dict[str, Any]] = []

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line, b"" at the end of the connection."""
        return self._lines.readline()

    def call(self, method: str, id: Any = 1, **params: Any) -> dict[str, Any]:
        """One call and its answer; notifications that come before it are kept."""
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        self.send(json.dumps(request).encode() + b"\n")
        while True:
            line = self.line()
            assert line, "the agent hung up"
            said: dict[str, Any] = json.loads(line)
            if "method" in said:
                self.notifications.append(said)
            else:
                return said

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a call that must not fail."""
        said = self.call(method, **params)
        assert "result" in said, said
        found: dict[str, Any] = said["result"]
        return found

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


class Daemon:
    """`posagent run` on a terminal, ended at the latest with the `with` block."""

    def __init__(self, terminal: Terminal, **given: Any) -> None:
        self.terminal = terminal
        self.socket_path = terminal.root / "run/posagent/agent.sock"
        self._peers: list[SocketPeer] = []
        give_libraries(terminal)
        self.process = terminal.start("run", **given)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers:
            peer.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def peer(self) -> SocketPeer:
        """A connection, as soon as the socket is there. Must not be called before the daemon has
        bound it anew: an old socket file refuses, which is waited through."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                peer = SocketPeer(self.socket_path)
                break
            except OSError:
                assert self.process.poll() is None, self.process.communicate()
                assert time.monotonic() < give_up_at, "the socket does not come"
                select.select([], [], [], 0.01)
        self._peers.append(peer)
        return peer

    def ready(self) -> SocketPeer:
        """A connection to a daemon that has made its boot decision and is at rest."""
        peer = self.peer()
        until(lambda: peer.result("status")["verdict"] is not None and is_idle(peer))
        return peer

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


def is_idle(peer: SocketPeer) -> bool:
    """Whether no run is on."""
    return bool(peer.result("status")["state"] in ("idle", "held"))


def until(true: Callable[[], Any]) -> Any:
    """Ask until the answer is true."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < give_up_at, "it did not come true"
        select.select([], [], [], 0.005)


def give_libraries(terminal: Terminal) -> None:
    """Let the isolated interpreter find ujson and pyserial, as library_dir does on a terminal."""
    link = terminal.root / "lib"
    if not link.is_symlink():
        link.symlink_to(sysconfig.get_path("purelib"))
        terminal.configure(library_dir="/lib")


def terminal_with_line(root: Path, **recipe: Any) -> tuple[Terminal, Line]:
    """A fresh terminal with a serial line and a name of its own."""
    terminal = new_terminal(root, **recipe)
    terminal.configure(serial_device=LINE, device_id=terminal.device_id or "T-0001")
    return terminal, Line(terminal)


def result_of(peer: SocketPeer, run: int) -> dict[str, Any]:
    """The end of a run, waited for."""

    def ended() -> dict[str, Any] | None:
        found = peer.result("result", run=run)
        return found if found["state"] != "running" else None

    found: dict[str, Any] = until(ended)
    return found


def stop_line_discipline(fd: int) -> None:
    """Raw, without echo: for a descriptor that a test opens itself."""
    mode = termios.tcgetattr(fd)
    mode[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(fd, termios.TCSANOW, mode)


def start_tool(words: list[str], **given: Any) -> subprocess.Popen[bytes]:
    """A real program beside the agent, such as picocom or socat."""
    return subprocess.Popen(words, **given)
