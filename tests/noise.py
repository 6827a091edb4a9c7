"""A cable between the daemon's serial line and a program's end of it, with noise on both ways.

The daemon's end is the pty pair of `tests.daemons.Line`; this adds a second pair, which a real
program opens by its name, and carries the bytes between them in a thread of its own. Noise is made
of a seed and one draw per byte, so how the bytes happened to be cut into reads changes nothing.
"""

from __future__ import annotations

import os
import pty
import random
import select
import threading
import time
import tty
from types import TracebackType

PIECE_BYTES = 4096
PACE_S = 0.002  # with a rate, so often what has arrived by then is handed on
_BYTE_BITS = 10  # 8N1: a start bit and a stop bit around eight


class Noise:
    """Spoils each byte with probability `share`: it is lost, has one bit flipped, comes twice, or
    gets a random byte before it, each as likely as the others."""

    def __init__(self, share: float, seed: object) -> None:
        self.share = share
        self.spoilt = 0
        self._random = random.Random(repr(seed))

    def spoil(self, data: bytes) -> bytes:
        """What arrives of these bytes."""
        if not self.share:
            return data
        return b"".join(map(self._one, data))

    def _one(self, byte: int) -> bytes:
        if self._random.random() >= self.share:
            return bytes((byte,))
        self.spoilt += 1
        way, any_byte = self._random.randrange(4), self._random.randrange(256)
        return (
            b"",
            bytes((byte ^ 1 << any_byte % 8,)),
            bytes((byte, byte)),
            bytes((any_byte, byte)),
        )[way]


class _Way:
    """One direction: from one descriptor to another, at the line's rate where it has one."""

    def __init__(self, source: int, target: int, noise: Noise, baud: int) -> None:
        self.source = source
        self.target = target
        self._noise = noise
        self._byte_s = _BYTE_BITS / baud if baud else 0.0
        self._waiting = bytearray()
        self._due_s = 0.0  # when the first byte that waits has arrived
        self.sent = bytearray()

    def take(self) -> None:
        """Read what was sent."""
        data = os.read(self.source, PIECE_BYTES)
        self.sent += data
        data = self._noise.spoil(data)
        if not self._waiting:
            self._due_s = time.monotonic() + self._byte_s
        self._waiting += data

    def hand_on(self) -> None:
        """Write what has arrived by now."""
        count = len(self._waiting)
        if self._byte_s:
            passed = time.monotonic() - self._due_s
            count = min(count, max(0, int(passed / self._byte_s) + 1))
            self._due_s += count * self._byte_s
        while count:
            sent = os.write(self.target, self._waiting[:count])
            del self._waiting[:sent]
            count -= sent

    def is_waiting(self) -> bool:
        return bool(self._waiting)


class Cable:
    """From `master`, the far end of the daemon's line, to the device `name`. A `with` block."""

    def __init__(self, master: int, share: float = 0.0, seed: object = 0, baud: int = 0) -> None:
        near, self._slave = pty.openpty()
        tty.setraw(self._slave)  # kept open: a program that comes and goes hangs up nothing here
        self.name = os.ttyname(self._slave)
        self.noises = (Noise(share, (seed, "to the agent")), Noise(share, (seed, "from it")))
        self._near = near
        self._ways = (
            _Way(near, master, self.noises[0], baud),
            _Way(master, near, self.noises[1], baud),
        )
        self._end, self._end_told = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def __enter__(self) -> Cable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._end_told)
        self._thread.join()
        for fd in (self._end, self._near, self._slave):
            os.close(fd)

    @property
    def typed(self) -> bytes:
        """All that the program sent so far, as it sent it."""
        return bytes(self._ways[0].sent)

    @property
    def spoilt(self) -> int:
        """How many bytes were damaged so far, both ways together."""
        return sum(noise.spoilt for noise in self.noises)

    def _carry(self) -> None:
        sources = [self._end, *(way.source for way in self._ways)]
        while True:
            waits = any(way.is_waiting() for way in self._ways)
            ready, _, _ = select.select(sources, [], [], PACE_S if waits else None)
            if self._end in ready:
                return
            for way in self._ways:
                if way.source in ready:
                    way.take()
                way.hand_on()
