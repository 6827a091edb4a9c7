"""The bytes of one peer: reads wait, replies are never dropped, notifications are dropped first.

What is written and not yet taken by the kernel is bounded: a reply waits until it has gone before
the next request is read, and a notification is offered only to a line on which nothing waits.
"""

from __future__ import annotations

import os

from agent import aio

READ_BYTES = 4096
POLLHUP = 0x010
POLLERR = 0x008


class HungUp(Exception):
    """The peer is gone, or its port is."""


class Peer:
    """One descriptor that does not block, or two: a terminal's input and output."""

    __slots__ = ("_flushing", "_gone", "_pending", "fd", "out")

    def __init__(self, fd: int, out: int | None = None) -> None:
        self.fd = fd
        self.out = fd if out is None else out
        self._pending = bytearray()
        self._flushing: aio.Task | None = None
        self._gone = False

    async def read(self, wait_ms: int | None = None) -> bytes:
        """The next bytes; b"" after `wait_ms` without any. Raises HungUp."""
        while True:
            mask = 0
            try:
                if wait_ms is None:
                    mask = await aio.wait_readable(self.fd)
                else:
                    mask = await aio.wait_for_ms(aio.wait_readable(self.fd), max(wait_ms, 1))
                data = os.read(self.fd, READ_BYTES)
            except aio.TimeoutError:
                return b""
            except BlockingIOError:
                continue
            except OSError as error:
                raise HungUp(error.strerror or "gone") from error
            if data:
                return data
            # A terminal without a byte answers b"" as well; only a hang-up is its end.
            if mask & (POLLHUP | POLLERR) or not os.isatty(self.fd):
                raise HungUp("hang-up")

    def write(self, data: bytes) -> None:
        """Send, now or as the line takes it. Nothing is raised: the reader learns of a hang-up."""
        if self._gone:
            return
        self._pending += data
        if self._flushing is None:
            self._push()
            if self._pending:
                self._flushing = aio.create_task(self._flush())

    def is_clear(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._pending

    def offer(self, data: bytes) -> bool:
        """Send if the line takes it at once and nothing waits; whether it did."""
        if self._pending or self._gone:
            return False
        self.write(data)
        return True

    async def drained(self, limit_ms: int | None = None) -> None:
        """Until everything has gone. Raises HungUp, also when that takes longer than the limit."""
        task = self._flushing
        if task is None:
            if self._gone:
                raise HungUp("gone")
            return
        waited = 0
        while self._flushing is not None:
            await aio.sleep_ms(DRAIN_LOOK_MS)
            waited += DRAIN_LOOK_MS
            if limit_ms is not None and waited >= limit_ms:
                raise HungUp("it does not read")
        if self._gone:
            raise HungUp("gone")

    def _push(self) -> None:
        try:
            sent = os.write(self.out, self._pending)
            del self._pending[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._gone = True
            self._pending.clear()

    async def _flush(self) -> None:
        try:
            while self._pending:
                await aio.wait_writable(self.out)
                self._push()
        except (OSError, RuntimeError):
            self._gone = True
            self._pending.clear()
        finally:
            self._flushing = None

    def forget(self) -> None:
        """Before the descriptor is closed: nobody waits on it any more."""
        self._gone = True
        self._pending.clear()
        if self._flushing is not None:
            self._flushing.cancel()
        aio.release_fd(self.fd)
        if self.out != self.fd:
            aio.release_fd(self.out)


DRAIN_LOOK_MS = 10
