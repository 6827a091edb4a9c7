"""A real terminal program under a pseudo-terminal of its own: what a person would type and see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType

PATIENCE_S = 20.0  # a bound for a hung test, never a measure
ROWS, COLUMNS = 25, 80
# What moves a cursor, changes a colour or a character set, or sets a mode.
_CONTROLS = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78DMEHc])|[\x00\x07\x0e\x0f]")
_ERASED = re.compile(r"[^\n\x08]\x08 \x08")


class Screen:
    """One program that was started on a terminal of 25 lines; ended with the `with` block.

    `setsid --ctty` makes the pseudo-terminal the program's controlling one, as getty would: closing
    its far end is a hang-up.
    """

    def __init__(self, *words: str, **environment: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.modes = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *words],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "vt100", "LC_ALL": "C", **environment},
        )
        self._seen = b""
        self._told = 0  # so much of it was answered by `until` already
        self._open = True

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Unplug the keyboard and the screen."""
        if self._open:
            self._open = False
            os.close(self.slave)
            os.close(self.master)

    @property
    def text(self) -> str:
        """All that was shown so far, without what only moved the cursor."""
        return _CONTROLS.sub(b"", self._seen).replace(b"\r", b"").decode("ascii", "replace")

    def keys(self, keys: str) -> None:
        """Press keys."""
        data = keys.encode()
        while data:
            data = data[os.write(self.master, data) :]

    def until(self, *words: str) -> str:
        """What was shown since the last call, up to and with the first of these words, less what
        was erased again."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            text = self.text
            places = [(text.find(word, self._told), len(word)) for word in words]
            places = sorted(place for place in places if place[0] >= 0)
            if places:
                begin, self._told = self._told, sum(places[0])
                return _without_erased(text[begin : self._told])
            left = give_up_at - time.monotonic()
            if left < 0 or not self._read(left):
                raise AssertionError(f"{words} did not come; seen was {text[self._told :]!r}")

    def type(self, line: str, until: str = "agent> ") -> str:
        """Type a line and Enter; what is shown up to a word behind its echo."""
        self.keys(line + "\r")
        return self.until(line + "\n") + self.until(until)

    def ends(self) -> int:
        """The exit code, waited for; what the program still says is read meanwhile."""
        give_up_at = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < give_up_at, self.text
            self._read(0.01)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, wait_s: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], wait_s)
        if not ready:
            return False
        self._seen += os.read(self.master, 65536)
        return True


def _without_erased(text: str) -> str:
    while _ERASED.search(text):
        text = _ERASED.sub("", text)
    return text.replace("\x08 \x08", "")  # these erased what was there before


def shows(seen: str, *lines: str) -> None:
    """Assert that these lines stand in what was seen, in this order; `*` is anything in a line
    and `?` any one character."""
    rest = seen.splitlines()
    for wanted in lines:
        pattern = re.compile(re.escape(wanted).replace(r"\*", ".*").replace(r"\?", "."))
        for at, line in enumerate(rest):
            if pattern.fullmatch(line.rstrip()):
                rest = rest[at + 1 :]
                break
        else:
            raise AssertionError(f"{wanted!r} is not in its place in\n{seen}")
