"""The line that a person is typing: keys in; echo, and what came of them, out.

It does no I/O and is told the time. Noise is its daily business: whatever bytes come, in whatever
cutting, a line has at most LINE_CHARS_MAX characters, all of them printable ASCII.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

PROMPT = "agent> "
LINE_CHARS_MAX = 120
LINES_KEPT = 8
IDLE_MS_MAX = 60_000  # nobody comes back to half a command after a minute, but another person may
ESCAPE_MS_MAX = 500  # an arrow's bytes come within 4 ms even at 9600 baud; Escape alone is a key

# A line at another rate makes every other byte one above 0x7E; a stray umlaut does not.
NOISE_BYTES = 8
NOISE_WITHIN_MS = 1_000
NOISE_QUIET_MS = 10_000  # told again only after this long without any

_ERASE = b"\b \b"
_ENTER = b"\r\n"
_INTERRUPT, _TAB, _LF, _CR, _KILL, _WORD, _ESCAPE = 0x03, 0x09, 0x0A, 0x0D, 0x15, 0x17, 0x1B
_BACKSPACES = (0x08, 0x7F)  # minicom sends the one, picocom the other

# Where in an escape sequence the next byte stands.
_NONE, _BEGUN, _CSI_BEGUN, _CSI, _SS3 = range(5)


class Editor:
    """One line with its history; as good for a serial line as for standard input."""

    __slots__ = (
        "_complete",
        "_escape",
        "_high_ms",
        "_kept",
        "_key_ms",
        "_line",
        "_noise_told",
        "_shown",
        "_was_cr",
        "silent",
    )

    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        self._complete = complete
        self._line = ""
        self._kept: list[str] = []
        self._shown = 0  # which of the kept lines is shown; their number: the one being typed
        self._escape = _NONE
        self._was_cr = False
        self._key_ms = 0
        self._high_ms: list[int] = []  # when the last bytes above 0x7E came
        self._noise_told = False
        # Nothing is sent before the first Enter: the link sets this after each hang-up.
        self.silent = False

    def feed(self, keys: bytes, now_ms: int) -> tuple[bytes, list[tuple[str, str]]]:
        """Take keys; answer the bytes to echo and what happened, in order.

        Events are ("line", text) for Enter, ("interrupt", "") for Ctrl-C, and ("noise", "") when
        the line seems to run at another rate.
        """
        self.expire(now_ms)
        if now_ms - self._key_ms > ESCAPE_MS_MAX:
            self._escape = _NONE
        if keys:
            self._key_ms = now_ms
        echo, events = bytearray(), []
        for byte in keys:
            event = self._noise(now_ms) if byte > 0x7F else self._key(byte, echo)
            if event is not None:
                events.append(event)
        return bytes(echo), events

    def is_empty(self) -> bool:
        """Whether no character of a line is typed."""
        return not self._line

    def drop(self) -> None:
        """Forget the half-typed line without a sound; what was entered before stays in reach."""
        self._line = ""
        self._shown = len(self._kept)
        self._escape = _NONE
        self._was_cr = False

    def expire(self, now_ms: int) -> None:
        """Drop a line at which nobody typed for a minute."""
        if self._line and now_ms - self._key_ms >= IDLE_MS_MAX:
            self.drop()

    def _key(self, byte: int, echo: bytearray) -> tuple[str, str] | None:
        was_cr, self._was_cr = self._was_cr, byte == _CR
        if byte < 0x20 and byte != _ESCAPE:
            self._escape = _NONE  # no sequence holds a control byte: noise cut this one off
        elif byte == _ESCAPE or self._escape:
            self._step_escape(byte, echo)
            return None
        if byte in (_CR, _LF):
            return None if was_cr and byte == _LF else self._enter(echo)
        if byte == _INTERRUPT:
            self._replace("", echo)
            self._shown = len(self._kept)
            return ("interrupt", "")
        self._edit(byte, echo)
        return None

    def _edit(self, byte: int, echo: bytearray) -> None:
        if byte in _BACKSPACES:
            self._cut(len(self._line) - 1, echo)
        elif byte == _KILL:
            self._cut(0, echo)
        elif byte == _WORD:
            self._cut(self._line.rstrip(" ").rfind(" ") + 1, echo)
        elif byte == _TAB:
            self._finish_verb(echo)
        elif byte >= 0x20:
            self._put(chr(byte), echo)

    def _enter(self, echo: bytearray) -> tuple[str, str]:
        line = self._line
        self.silent = False
        self._say(_ENTER, echo)
        # Numbers and single letters answer a question, which will not be asked again.
        if len(line) > 1 and line[0].isalpha() and self._kept[-1:] != [line]:
            self._kept = [*self._kept, line][-LINES_KEPT:]
        self._line = ""
        self._shown = len(self._kept)
        return ("line", line)

    def _put(self, text: str, echo: bytearray) -> None:
        text = text[: LINE_CHARS_MAX - len(self._line)]
        self._line += text
        self._say(text.encode("ascii"), echo)

    def _cut(self, length: int, echo: bytearray) -> None:
        length = max(length, 0)
        self._say(_ERASE * (len(self._line) - length), echo)
        self._line = self._line[:length]

    def _replace(self, text: str, echo: bytearray) -> None:
        self._cut(0, echo)
        self._put(text, echo)

    def _say(self, data: bytes, echo: bytearray) -> None:
        if not self.silent:
            echo += data

    def _finish_verb(self, echo: bytearray) -> None:
        """TAB: the rest of the only verb that fits, or all that fit and the line once more."""
        found = self._complete(self._line)
        if len(found) == 1:
            self._put(found[0][len(self._line) :] + " ", echo)
        elif found:
            listed = "  ".join(found) + "\r\n" + PROMPT + self._line
            self._say(_ENTER + listed.encode("ascii"), echo)

    def _step_escape(self, byte: int, echo: bytearray) -> None:
        """Swallow a sequence byte by byte; only the bare arrows up and down do something."""
        at, self._escape = self._escape, _NONE
        if byte == _ESCAPE:
            self._escape = _BEGUN
        elif at == _BEGUN and byte in b"[O":
            self._escape = _CSI_BEGUN if byte == 0x5B else _SS3
        elif at in (_CSI_BEGUN, _CSI) and 0x20 <= byte < 0x40:
            self._escape = _CSI
        elif at in (_CSI_BEGUN, _SS3) and byte in b"AB":
            self._walk(-1 if byte == 0x41 else 1, echo)

    def _walk(self, step: int, echo: bytearray) -> None:
        """Show the line before or after the one shown; behind the newest an empty one."""
        shown = self._shown + step
        if 0 <= shown <= len(self._kept):
            self._shown = shown
            self._replace("" if shown == len(self._kept) else self._kept[shown], echo)

    def _noise(self, now_ms: int) -> tuple[str, str] | None:
        """A byte above 0x7E came; it is no key. Tells of it once when there are many."""
        self._was_cr = False
        if self._high_ms and now_ms - self._high_ms[-1] >= NOISE_QUIET_MS:
            self._noise_told = False
        self._high_ms = [*self._high_ms, now_ms][-NOISE_BYTES:]
        many = len(self._high_ms) == NOISE_BYTES and now_ms - self._high_ms[0] <= NOISE_WITHIN_MS
        if not many or self._noise_told:
            return None
        self._noise_told = True
        return ("noise", "")
