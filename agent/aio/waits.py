"""Waiting for a descriptor: an extension, on which streams, serial lines and children stand.
Rule: answer poll's own mask, because only the caller knows what a hang-up means on its line.
"""

from __future__ import annotations

from .ioqueue import READ, WRITE, IOWait
from .task import Task, current_task, loop, wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator


class _AwaitIO:
    """The await behind `wait_readable` and `wait_writable`."""

    __slots__ = ("wait",)

    def __init__(self, fd: int, side: int) -> None:
        self.wait = IOWait(fd, side, current_task())

    def __await__(self) -> Generator[None, None, int]:
        for stale in loop.io.add(self.wait):
            wake(stale.task)
        self.wait.task.blocker = self
        try:
            yield
        finally:
            loop.io.discard(self.wait)
        if self.wait.error is not None:
            raise self.wait.error
        return self.wait.mask

    def remove(self, task: Task) -> None:
        loop.io.discard(self.wait)


async def wait_readable(fd: int) -> int:
    """Extension: wait until `fd` can be read; answer poll's mask: b"" is an end only with POLLHUP.

    OSError (EBADF) if it is or gets closed, RuntimeError if it has a reader already. Cancelled,
    it is gone from poll.
    """
    return await _AwaitIO(fd, READ)


async def wait_writable(fd: int) -> int:
    """Extension: wait until `fd` takes bytes; all else as in `wait_readable`."""
    return await _AwaitIO(fd, WRITE)


def release_fd(fd: int) -> None:
    """Extension: for the moment before `fd` is closed. Who waits on it gets OSError (EBADF)."""
    for wait in loop.io.release(fd):
        wake(wait.task)
