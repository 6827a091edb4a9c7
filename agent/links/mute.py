"""Silence on a line that says nothing we know: an echo of ourselves, or a second console.

Two agents back to back, or one that hears itself, would answer each other's errors for ever.
"""

from __future__ import annotations

UNKNOWN_MAX = 3  # an echo never says anything else; a person soon does
SILENCE_MS = 1_000  # a loop has no pause as long as this, and a person is hardly kept waiting


class Mute:
    """Whether the line is deaf and dumb: after three unknown lines until a second of silence."""

    __slots__ = ("_heard_ms", "_is_on", "_unknown", "times")

    def __init__(self) -> None:
        self._unknown = 0
        self._is_on = False
        self._heard_ms = 0
        self.times = 0  # how often it came to that: the link logs a change

    def feed(self, now_ms: int) -> None:
        """Bytes came, whatever they are."""
        if self.is_on(now_ms):
            self._heard_ms = now_ms

    def is_on(self, now_ms: int) -> bool:
        """Whether what comes now is to be dropped without echo and answer."""
        if self._is_on and now_ms - self._heard_ms >= SILENCE_MS:
            self._is_on, self._unknown = False, 0
        return self._is_on

    def unknown(self, now_ms: int) -> None:
        """A line came that is no command."""
        self._unknown += 1
        self._heard_ms = now_ms
        if self._unknown >= UNKNOWN_MAX and not self._is_on:
            self._is_on = True
            self.times += 1

    def known(self) -> None:
        """A line came that is one."""
        self._unknown = 0
