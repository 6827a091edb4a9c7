"""A hardware watchdog as its driver behaves, without the reset of the machine.

A process of its own reads the pipe at `root/dev/watchdog`. Once somebody has opened it, it counts:
each write begins the period anew, a close right behind the letter V disarms it, and when a period
goes by, or the pipe is closed without the V, it bites: whoever has the pipe open is ended by KILL.
It imports nothing of `agent`. In a test use `StandIn`.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

DEVICE = "/dev/watchdog"


class StandIn:
    """The watchdog of a terminal, as a test holds it. `word` waits for what it does next."""

    def __init__(self, root: Path, period_ms: int) -> None:
        path = Path(f"{root}{DEVICE}")
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        words = [sys.executable, "-I", "-S", "-B", __file__, str(path), str(period_ms)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.word() == "listening"

    def word(self) -> str:
        """The next of `listening`, `armed`, `disarmed` and `bitten`."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


# The process itself


def main(path: str, period_ms: int) -> None:
    """Serve one opening after the other."""
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        say("listening")
        serve(fd, path, period_ms)
        os.close(fd)


def serve(fd: int, path: str, period_ms: int) -> None:
    """From the first write to the close, or to the bite."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    last = b""
    while poll.poll(period_ms if last else None):
        data = os.read(fd, 65536)
        if not data:
            say("disarmed" if last == b"V" else "bitten")
            return
        if not last:
            say("armed")
        last = data[-1:]
    bite(path)
    say("bitten")


def bite(path: str) -> None:
    """End whoever has the pipe open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        pid = int(link.parts[2])
        try:
            if pid != os.getpid() and os.readlink(link) == path:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue  # it ended while we looked


def say(word: str) -> None:
    """One word to the test."""
    print(word, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
