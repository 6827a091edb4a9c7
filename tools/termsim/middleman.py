"""The cable between a technician's port and a terminal's: noise, pace, silence, and being pulled.

Both ends are pty pairs, so real programs open them by name. Noise is made of a seed and one draw
per byte, so how bytes happen to be cut into reads changes nothing. Time is handed in; only
`Middleman` asks the loop for it. What a real line would lose is lost here too, and counted: bytes
for a port whose reader is too slow, and all bytes while the terminal is dark or the cable is out.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tools.termsim.port import Port

BYTE_BITS = 10  # 8N1: a start bit and a stop bit around eight
PIECE_BYTES = 4096  # what a sender's driver takes before it makes the sender wait
TICK_S = 0.001  # how exactly an event loop keeps time; bytes that arrive within it come at once


class Noise:
    """Spoils each byte with probability `share`: it is lost, has one bit flipped, comes twice, or
    gets a random byte before it, each as likely as the others."""

    def __init__(self, share: float, seed: object) -> None:
        self.share = share
        self.spoilt = 0
        self._random = random.Random(repr(seed))

    def spoil(self, data: bytes) -> bytes:
        """What arrives of these bytes."""
        return b"".join(map(self._one, data)) if self.share else data

    def garble(self, data: bytes) -> bytes:
        """What a receiver at another speed makes of these bytes."""
        self.spoilt += len(data)
        return self._random.getrandbits(8 * len(data)).to_bytes(len(data), "big") if data else b""

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


class Pace:
    """Bytes on their way, each arriving when the wire has carried it; `baud` 0 takes no time."""

    def __init__(self, baud: int) -> None:
        self.byte_s = BYTE_BITS / baud if baud else 0.0
        self._waiting = deque[int]()
        self._first_s = 0.0  # when the first byte that waits arrives

    @property
    def room(self) -> int:
        """How many bytes it takes now; with a wire, a sender waits for the bytes before his."""
        return PIECE_BYTES - len(self._waiting)

    def send(self, data: bytes, now_s: float) -> None:
        """These bytes were handed to the wire."""
        if not self._waiting:
            self._first_s = max(now_s, self._first_s - self.byte_s) + self.byte_s
        self._waiting.extend(data)

    def arrived(self, now_s: float) -> bytes:
        """What has arrived by now and was not asked for before."""
        count = len(self._waiting)
        if count and self.byte_s:
            passed_s = now_s - self._first_s
            count = 0 if passed_s < 0 else min(count, int(passed_s / self.byte_s) + 1)
        self._first_s += count * self.byte_s
        return bytes(self._waiting.popleft() for _ in range(count))

    def due_s(self) -> float | None:
        """When the next byte arrives, or None when none is on its way."""
        return self._first_s if self._waiting else None

    def drop(self) -> int:
        """Lose what is on its way; how many bytes that was."""
        count = len(self._waiting)
        self._waiting.clear()
        return count


class Way:
    """One direction of the cable."""

    def __init__(self, noise: Noise, pace: Pace) -> None:
        self.noise = noise
        self.pace = pace
        self.sent = 0  # bytes that the sender handed to the wire
        self.lost = 0  # bytes that no noise took, but a dark terminal or a slow reader
        self.delivered = 0

    def listen_to(self, source: Port, now_s: float) -> None:
        """Put on the wire what the sender has ready."""
        data = source.take(self.pace.room) if self.pace.room else b""
        self.sent += len(data)
        self.pace.send(data, now_s)

    def deliver(self, target: Port, now_s: float, garbled: bool, most: int | None) -> None:
        """Hand on what has arrived, `most` bytes of it; the rest is lost."""
        arrived = self.pace.arrived(now_s)
        data = self.noise.garble(arrived) if garbled else self.noise.spoil(arrived)
        lost = target.give(data[:most])
        self.delivered += len(data[:most]) - lost
        self.lost += lost + len(data[len(data[:most]) :])


class Middleman:
    """Carries between `terminal`, the daemon's port, and the technician's, which `link` names.

    At first the terminal is dark and the cable is out. Everything happens in the event loop that is
    running when a method is called; `to_terminal` and `to_technician` count what went which way.
    """

    def __init__(
        self,
        link: Path,
        noise: float = 0.0,
        baud: int = 0,
        seed: object = 0,
        strict_baud: int = 0,
    ) -> None:
        self.link = link
        self.terminal = Port()
        self.to_terminal = Way(Noise(noise, (seed, "to the terminal")), Pace(baud))
        self.to_technician = Way(Noise(noise, (seed, "to the technician")), Pace(baud))
        self.pull_at: int | None = None  # so many bytes delivered to the technician
        self.when_pulled: Callable[[], None] = lambda: None
        self._strict_baud = strict_baud
        self._technician: Port | None = None
        self._closings = -1
        self._dark = True
        self._listening: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    # The cable

    def plug(self) -> None:
        """The technician's device is there, new and under the same name."""
        if self._technician is None:
            self._technician = Port()
            self._closings = self._technician.watch()
            if self._closings >= 0:
                loop = asyncio.get_running_loop()
                loop.add_reader(self._closings, self._technician.let_in)
            beside = self.link.with_name(f".{self.link.name}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(self._technician.name)
            beside.replace(self.link)
            self._turn()

    def pull(self) -> None:
        """The technician's device vanishes, in the middle of whatever is on the wire."""
        technician, self._technician = self._technician, None
        if technician is not None:
            self.link.unlink(missing_ok=True)
            self._ignore(technician.fd)
            if self._closings >= 0:
                asyncio.get_running_loop().remove_reader(self._closings)
            technician.close()
            self._lose()
            self._turn()

    # The terminal's power

    def go_dark(self) -> None:
        """The terminal has no power: what is on the wire, and whatever is sent from now on, is
        lost. The daemon must be dead by now."""
        self._dark = True
        self._lose()
        self.terminal.flush()
        self.terminal.let_in()
        self._turn()

    def light_up(self) -> None:
        """The terminal listens."""
        self._dark = False
        self._turn()

    def end(self) -> None:
        """Take everything away."""
        self.pull()
        self._ignore(self.terminal.fd)
        if self._timer is not None:
            self._timer.cancel()
        self.terminal.close()

    def _lose(self) -> None:
        for way in (self.to_terminal, self.to_technician):
            way.lost += way.pace.drop()

    # Carrying

    def _turn(self) -> None:
        """Carry what is there, then wait for more and for what is on its way."""
        now_s = asyncio.get_running_loop().time()
        technician = self._technician
        if technician is not None and self._dark:
            self.to_terminal.lost += len(technician.take(PIECE_BYTES))
        elif technician is not None:
            self._exchange(technician, now_s)
        elif not self._dark:
            self.to_technician.lost += len(self.terminal.take(PIECE_BYTES))
        self._wait(now_s)

    def _exchange(self, technician: Port, now_s: float) -> None:
        garbled = bool(self._strict_baud) and not technician.is_at(self._strict_baud)
        self.to_terminal.listen_to(technician, now_s)
        self.to_technician.listen_to(self.terminal, now_s)
        self.to_terminal.deliver(self.terminal, now_s, garbled, None)
        left = None if self.pull_at is None else self.pull_at - self.to_technician.delivered
        self.to_technician.deliver(technician, now_s, garbled, left)
        if self.pull_at is not None and self.to_technician.delivered >= self.pull_at:
            self.pull_at = None
            self.pull()
            self.when_pulled()

    def _wait(self, now_s: float) -> None:
        loop = asyncio.get_running_loop()
        sources = set()
        if not self._dark and self.to_technician.pace.room:
            sources.add(self.terminal.fd)
        if self._technician is not None and self.to_terminal.pace.room:
            sources.add(self._technician.fd)
        for fd in tuple(self._listening - sources):
            self._ignore(fd)
        for fd in sources - self._listening:
            loop.add_reader(fd, self._turn)
        self._listening = sources
        if self._timer is not None:
            self._timer.cancel()
        dues = [way.pace.due_s() for way in (self.to_terminal, self.to_technician)]
        due_s = min((due for due in dues if due is not None), default=None)
        self._timer = (
            None if due_s is None else loop.call_at(max(due_s, now_s + TICK_S), self._turn)
        )

    def _ignore(self, fd: int) -> None:
        if fd in self._listening:
            asyncio.get_running_loop().remove_reader(fd)
            self._listening.remove(fd)
