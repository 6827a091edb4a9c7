"""Processes that do not outlive the server, however that ends, and that die together.

Started as `python -I -S -B tethered.py PID COMMAND...`: it has the kernel kill it when PID ends and
becomes COMMAND, with the same number. Nothing runs between fork and exec in the server this way.
Each leads a group of its own: Ctrl-C at the server's terminal is for the server, and a power cut
takes the whole group at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
STOP_S = 8.0  # a daemon with a run on stops within 3 s
# As an init script starts the agent: isolated and without site.
PYTHON = (sys.executable, "-I", "-S", "-B")


class Tethered:
    """A running command and its group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        return await self._process.wait()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def signal(self, number: int) -> None:
        """Tell the command itself."""
        if self.is_alive():
            self._process.send_signal(number)

    async def cut(self) -> None:
        """Kill it and all that it started, and wait for its end."""
        self.kill()
        await self._process.wait()
        self.kill()  # whatever it started while it was killed

    async def stop(self) -> None:
        """Ask it to end, with patience; then kill what is left."""
        self.signal(signal.SIGCONT)
        await end(self._process)
        self.kill()

    def kill(self) -> None:
        """Kill it and all that it started, at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


async def end(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end; one that does not is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        try:
            process.send_signal(number)
            await asyncio.wait_for(process.wait(), STOP_S)
        except (asyncio.TimeoutError, ProcessLookupError):
            pass


async def start(words: list[str], said: Path, **more: str) -> Tethered:
    """Start a command; what it says goes behind what is in `said`, `more` to its environment."""
    lead = [*PYTHON, __file__, str(os.getpid())]
    with said.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *lead,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(os.environ, **more),
            start_new_session=True,
        )
    return Tethered(process)


async def start_beside(words: list[str]) -> asyncio.subprocess.Process:
    """Start a command that a person sees and types to: it stays in our group, at our terminal."""
    return await asyncio.create_subprocess_exec(*PYTHON, __file__, str(os.getpid()), *words)


def main(words: list[str]) -> None:
    """Become the command, unless who started us is gone already."""
    server, command = int(words[0]), words[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == server:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
