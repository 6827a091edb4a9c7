"""Who waits for which descriptor, and the bell that ends a wait in poll.
Rules: one reader and one writer per descriptor; a wait that ends, however, is gone from poll.
"""

from __future__ import annotations

import os
import select
from errno import EBADF

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
    from typing import Callable

    from .task import Task

    Events = list[tuple[int, int]]
    PollFunction = Callable[["select.poll", int], Events]
else:
    try:
        import _signal as signals  # the public module pulls in enum: time and memory for names
    except ImportError:
        import signal as signals

__all__ = ["READ", "WRITE", "IOQueue", "IOWait", "kernel_poll", "signals"]

READ, WRITE = 0, 1
_WORDS = ("reader", "writer")
_ASKED = (select.POLLIN | select.POLLPRI, select.POLLOUT)
# Hang-up and error concern both sides, whether asked for or not.
_BOTH = select.POLLHUP | select.POLLERR
WAIT_MS_MAX = 86_400_000  # poll takes a C int of milliseconds; once a day the loop looks up
BELL_BYTES = 512  # one read of the bell; more signals than that just ring once more


def kernel_poll(poller: select.poll, wait_ms: int) -> Events:
    """Wait in the kernel: -1 waits until something happens."""
    return poller.poll(wait_ms)


class IOWait:
    """One task's wait for one side of one descriptor; afterwards its answer: `mask` or `error`."""

    __slots__ = ("error", "fd", "identity", "mask", "side", "task")

    def __init__(self, fd: int, side: int, task: Task) -> None:
        self.fd = fd
        self.side = side
        self.task = task
        self.identity = _identity(fd)
        self.mask = 0
        self.error: OSError | None = None


class IOQueue:
    """The descriptors waited on, and the bell: a pipe that signals and other threads write to."""

    __slots__ = ("bell", "old_wakeup", "poller", "waits")

    def __init__(self) -> None:
        self.poller = select.poll()
        self.waits: dict[int, list[IOWait | None]] = {}
        self.bell: tuple[int, int] | None = None
        self.old_wakeup = -1

    def add(self, wait: IOWait) -> list[IOWait]:
        """Begin to wait. Answers the waits this ends: those of a file closed under this number.

        RuntimeError if somebody waits for this side already: two readers would get half each.
        """
        stale: list[IOWait] = []
        pair = self.waits.get(wait.fd)
        if pair is not None and _other_file(pair, wait.identity):
            stale, pair = self.release(wait.fd), None
        if pair is None:
            pair = self.waits[wait.fd] = [None, None]
        elif pair[wait.side] is not None:
            raise RuntimeError(f"descriptor {wait.fd} has a {_WORDS[wait.side]} already")
        pair[wait.side] = wait
        self.poller.register(wait.fd, _mask_of(pair))
        return stale

    def discard(self, wait: IOWait) -> None:
        """End a wait without an answer; nothing happens if it has ended already."""
        pair = self.waits.get(wait.fd)
        if pair is not None and pair[wait.side] is wait:
            pair[wait.side] = None
            self._settle(wait.fd, pair)

    def release(self, fd: int) -> list[IOWait]:
        """End all waits on `fd` with EBADF and answer them: for the moment before it is closed."""
        ended = [wait for wait in self.waits.get(fd, ()) if wait is not None]
        for wait in ended:
            wait.error = OSError(EBADF, f"descriptor {fd} was closed while waited on")
            self.discard(wait)
        return ended

    def poll(self, wait_ms: int, kernel: PollFunction) -> list[IOWait]:
        """Wait up to `wait_ms` (-1: no limit) and answer the waits that have ended."""
        ended: list[IOWait] = []
        for fd, mask in kernel(self.poller, min(wait_ms, WAIT_MS_MAX)):
            if self.bell and fd == self.bell[0]:
                self._hear_bell(fd, mask)
            elif fd in self.waits:
                ended += self._end(fd, mask)
        return ended

    def _end(self, fd: int, mask: int) -> list[IOWait]:
        pair = self.waits[fd]
        # A closed number reports POLLNVAL for ever; a reused one reports somebody else's events.
        if mask & select.POLLNVAL or _other_file(pair, _identity_or_none(fd)):
            return self.release(fd)
        ended = []
        for wait in pair:
            if wait is not None and mask & (_ASKED[wait.side] | _BOTH):
                wait.mask = mask
                ended.append(wait)
        for wait in ended:
            self.discard(wait)
        return ended

    def _settle(self, fd: int, pair: list[IOWait | None]) -> None:
        mask = _mask_of(pair)
        if mask:
            self.poller.register(fd, mask)
        else:
            del self.waits[fd]
            self.poller.unregister(fd)

    def open_bell(self) -> None:
        """Let signals end a wait in poll; outside the main thread only `ring` does."""
        inner, outer = os.pipe()
        os.set_blocking(inner, False)
        os.set_blocking(outer, False)
        self.poller.register(inner, select.POLLIN)
        self.bell = (inner, outer)
        try:
            # A full bell has rung already, so losing a byte loses nothing.
            self.old_wakeup = signals.set_wakeup_fd(outer, warn_on_full_buffer=False)
        except ValueError:
            self.old_wakeup = -2  # not the main thread: signals are not ours to hear

    def close_bell(self) -> None:
        """Give the wake-up descriptor back to whoever had it and close the pipe."""
        if self.bell:
            if self.old_wakeup != -2:
                signals.set_wakeup_fd(self.old_wakeup)
            inner, outer = self.bell
            self.bell = None  # first: a signal handler in between must not write to a closed number
            self.poller.unregister(inner)
            os.close(inner)
            os.close(outer)

    def ring(self) -> None:
        """End the present or the next wait in poll. Safe in a signal handler."""
        if self.bell:
            try:
                os.write(self.bell[1], b"\0")
            except BlockingIOError:
                pass

    def _hear_bell(self, bell: int, mask: int) -> None:
        if mask & select.POLLNVAL:
            raise OSError(EBADF, "somebody closed the loop's own pipe")
        try:
            while len(os.read(bell, BELL_BYTES)) == BELL_BYTES:
                pass
        except BlockingIOError:
            pass


def _mask_of(pair: list[IOWait | None]) -> int:
    return (_ASKED[READ] if pair[READ] else 0) | (_ASKED[WRITE] if pair[WRITE] else 0)


def _identity(fd: int) -> tuple[int, int]:
    """Tell two files under one number apart; OSError (EBADF) if there is none."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _identity_or_none(fd: int) -> tuple[int, int] | None:
    try:
        return _identity(fd)
    except OSError:
        return None


def _other_file(pair: list[IOWait | None], identity: tuple[int, int] | None) -> bool:
    return any(wait is not None and wait.identity != identity for wait in pair)
