"""What stands at the other end of a line in tests of posctl: a terminal with its daemon behind a
cable that can be pulled, or something that is no agent of ours.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from posctl.client import Run
from posctl.client import Terminal as Connected
from tests.daemons import Daemon, framed, frames_in, terminal_with_line
from tests.noise import Cable
from tests.terminals import Gate

SOON_S = 0.6  # for an answer in tests: a pty has no rate, and the agent's own patience is 0.4 s
AT_ONCE_S = 0.05  # where no answer is to come
RATE = 4_000_000  # a pty has none; so a time-out is what the agent is given and no more
PENDING = 4  # the migration that a gate adds


class Bench:
    """A terminal with its daemon, reached over a cable that can be pulled, and over its socket."""

    def __init__(self, root: Path, **recipe: Any) -> None:
        self.terminal, self.line = terminal_with_line(root, **recipe)
        self.terminal.own_migrations()
        self.port = root / "port"
        self.cable: Cable | None = None
        self.daemons = [Daemon(self.terminal)]

    def __enter__(self) -> Bench:
        self.daemon.ready()
        self.plug_in()
        return self

    def __exit__(self, *_: object) -> None:
        self.pull()
        for daemon in self.daemons:
            daemon.__exit__()

    @property
    def daemon(self) -> Daemon:
        return self.daemons[-1]

    def plug_in(self, share: float = 0.0, seed: object = 0, baud: int = 0) -> None:
        """A new cable; the port has its old name, and is another device."""
        self.cable = Cable(self.line.master, share, seed, baud)
        beside = self.port.with_name("new-port")
        beside.symlink_to(self.cable.name)
        beside.rename(self.port)

    def pull(self) -> None:
        """The port vanishes, and with it its name."""
        if self.cable is not None:
            self.cable.__exit__(None, None, None)
            self.port.unlink()
            self.cable = None

    def where(self, way: str) -> str:
        return f"{self.port}@{RATE}" if way == "pty" else f"socket:{self.daemon.socket_path}"

    def stop_in_mid_run(self, terminal: Connected) -> tuple[Run, Gate]:
        """A migrate that stands at its gate. There is no look at the plan before: to estimate a
        step it is tried, and would wait at the gate as well."""
        gate = Gate(self.terminal)
        run = terminal.migrate(to=PENDING)
        gate.wait(self.daemon.process)  # type: ignore[arg-type]
        return run, gate

    def restart(self, signal_number: int = signal.SIGKILL) -> None:
        """The power is cut and comes back."""
        self.daemon.process.send_signal(signal_number)
        self.daemon.process.communicate()
        self.daemons.append(Daemon(self.terminal))

    def history(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.terminal.run("history", "--json").json["history"]
        return rows


class Device:
    """Something at the other end of a pty pair, in a thread: `answers` makes bytes of bytes."""

    def __init__(self, answers: Callable[[bytes], bytes], greeting: bytes = b"") -> None:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.name = os.ttyname(self._slave)
        self.where = f"{self.name}@{RATE}"
        self._answers = answers
        self._greeting = greeting
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Device:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.write(self._slave, b"\x04")
        self._thread.join()
        os.close(self._slave)
        os.close(self._master)

    def _serve(self) -> None:
        while True:
            data = os.read(self._master, 4096)
            if b"\x04" in data:
                return
            os.write(self._master, self._greeting + self._answers(data))


def replying(answer: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], bytes]:
    """A device that speaks frames: the members of its reply to a method and its parameters."""

    def answers(data: bytes) -> bytes:
        replies = b""
        for asked in frames_in(data):
            said = {"jsonrpc": "2.0", "id": asked["id"]}
            said.update(answer(asked["method"], asked.get("params", {})))
            replies += framed(json.dumps(said).encode())
        return replies

    return answers


HELLO = {"proto": 1, "agent": "9.9", "model": "m", "serial": "s", "boot": "b", "level": "tech"}
