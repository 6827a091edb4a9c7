"""A terminal in raw mode for as long as somebody needs it; a pipe stays what it is."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class RawTerminal:
    """`with RawTerminal(fd):` keys arrive one by one, and nothing is echoed or interpreted."""

    __slots__ = ("_fd", "_old", "_was_blocking")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._old: list[Any] | None = None
        self._was_blocking = os.get_blocking(fd)

    def __enter__(self) -> None:
        if os.isatty(self._fd):
            import termios

            self._old = termios.tcgetattr(self._fd)
            raw = termios.tcgetattr(self._fd)
            raw[0] &= ~(termios.ICRNL | termios.IXON | termios.INLCR | termios.ISTRIP)
            raw[1] &= ~termios.OPOST
            raw[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, raw)
        os.set_blocking(self._fd, False)

    def __exit__(self, *_: object) -> None:
        os.set_blocking(self._fd, self._was_blocking)
        if self._old is not None:
            import termios

            try:
                termios.tcsetattr(self._fd, termios.TCSANOW, self._old)
            except termios.error:
                pass  # it has hung up; there is no mode to give back
