"""Programs that serve, to be measured: the daemon on a sample terminal and the comparisons.

Each is told where to send its READY, as by a service manager, and is ended with its `with` block.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import tty
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from agent.edges.local_socket import connect_local
from tools.bench import reference_lines
from tools.bench.measure import Cost, Failed, posagent, run
from tools.bench.samples import Sample

PATIENCE_S = 60.0  # a bound for a hung program, never a measure
LINE = "/dev/ttyS0"
# What a terminal with a service port and the device's two libraries has in its config.
OVERRIDES: dict[str, object] = {
    "serial_device": LINE,
    "device_id": "VX-210-0012345",
    "library_dir": "/lib",
}


class SerialLine:
    """A pty pair; whoever serves opens the end under `name`."""

    def __init__(self) -> None:
        self.master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.name = os.ttyname(self._slave)

    def call(self, method: str) -> tuple[int, int]:
        """One call in frames; the bytes of the request's frame and of the reply's."""
        body = request(method)
        sent = b"\x1e" + body + b"#%08x\n" % zlib.crc32(body)
        os.write(self.master, sent)
        reply = b""
        while not reply.endswith(b"\n"):
            reply += os.read(self.master, 65536)
        return len(sent), len(reply)

    def close(self) -> None:
        """Unplug it."""
        os.close(self._slave)
        os.close(self.master)


def request(method: str, **params: object) -> bytes:
    """The JSON text of one call, as short as it gets."""
    value: dict[str, object] = {"jsonrpc": "2.0", "id": 7, "method": method}
    if params:
        value["params"] = params
    return json.dumps(value, separators=(",", ":")).encode()


STATUS = request("status") + b"\n"


class Caller:
    """One connection to a socket, one call at a time."""

    def __init__(self, path: Path) -> None:
        self._peer = connect_local(str(path), PATIENCE_S)

    def exchange(self, line: bytes) -> bytes:
        """Send one line and wait for the line that comes back."""
        self._peer.send(line)
        reply: bytes = self._peer.recv(65536)
        while not reply.endswith(b"\n"):
            more = self._peer.recv(65536)
            if not more:
                raise Failed("the server hung up")
            reply += more
        return reply

    def result(self, method: str, **params: object) -> dict[str, Any]:
        """The result of a call that must not fail."""
        said = json.loads(self.exchange(request(method, **params) + b"\n"))
        if "result" not in said:
            raise Failed(f"{method} was refused: {said}")
        found: dict[str, Any] = said["result"]
        return found

    def close(self) -> None:
        """Hang up."""
        self._peer.close()


class Service:
    """A program from its start to its end; `start` is what it cost until it said READY."""

    def __init__(self, command: Sequence[str], socket_path: Path | None = None) -> None:
        # A socket's address is short, so none of them lies in the folder that is measured on.
        self.folder = Path(tempfile.mkdtemp(prefix="posagent-lines-"))
        self.socket_path = socket_path or self.folder / "socket"
        self._command = [word.replace("SOCKET", str(self.socket_path)) for word in command]

    def __enter__(self) -> Service:
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(self.folder / "notify"))
        notify.settimeout(0.1)
        environment = dict(os.environ, NOTIFY_SOCKET=str(self.folder / "notify"))
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, env=environment)
        self._notify = notify
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._notify.close()
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ready(self) -> Cost:
        """Wait until it says READY; what it cost until then."""
        while time.perf_counter() - self._begun < PATIENCE_S:
            if self._process.poll() is not None:
                break
            try:
                said = self._notify.recv(4096)
            except TimeoutError:
                continue
            if said.startswith(b"READY=1"):
                return Cost(self.cpu_s(), time.perf_counter() - self._begun)
        raise Failed(f"{' '.join(self._command)} did not become ready")

    def cpu_s(self) -> float:
        """User and system time of this one process so far, by its own clock in the kernel."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def caller(self) -> Caller:
        """A connection, as soon as there is a socket."""
        give_up_at = time.perf_counter() + PATIENCE_S
        while True:
            try:
                return Caller(self.socket_path)
            except OSError:
                if self._process.poll() is not None or time.perf_counter() > give_up_at:
                    raise
                time.sleep(0.001)


def daemon(root: Path) -> Service:
    """`posagent run` on a terminal."""
    return Service(posagent(root, "run"), root / "run" / "posagent" / "agent.sock")


def reference(way: str, *words: str) -> Service:
    """One of the comparison programs."""
    program = [sys.executable, "-I", "-S", str(Path(reference_lines.__file__))]
    return Service([*program, way, "SOCKET", *words])


class Terminal:
    """A copy of a sample terminal with a service port and the libraries; `with` removes it."""

    def __init__(self, folder: Path, records: int, installed: int) -> None:
        self.sample = Sample(folder, records, installed)
        self.sample.overrides = dict(OVERRIDES)
        self.line = SerialLine()
        self.root = self.fresh()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.line.close()
        self.sample.done_with()

    def fresh(self) -> Path:
        """The terminal anew, at schema 0."""
        root = self.sample.fresh()
        (root / "dev").mkdir()
        (root / LINE[1:]).symlink_to(self.line.name)
        (root / "lib").symlink_to(sysconfig.get_path("purelib"))
        return root

    def bring_up_to_date(self) -> None:
        """After this a boot has nothing to do."""
        run(posagent(self.root, "boot"))
        run(posagent(self.root, "commit"))


def until(true: Callable[[], Any]) -> Any:
    """Ask until the answer is true."""
    give_up_at = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < give_up_at:
        found = true()
        if found:
            return found
        time.sleep(0.005)
    raise Failed("it did not come true")
