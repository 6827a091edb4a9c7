"""Splits the bytes of one serial line into machine frames and human keys.

Both share the line: RS begins a frame at any moment, its LF ends it, and all else are keys. What
may come in between is noise of every sort, so each state has a bound and a deadline after which
the line is a console again. Pure: it is told the bytes and the time.
"""

from __future__ import annotations

from agent.links.editor import LINE_CHARS_MAX
from agent.links.wire import CHECK_BYTES, CR, LF, RS, SERIAL_REQUEST_BYTES_MAX, unframe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    Event = tuple[str, bytes]

# At 9600 baud a byte takes one millisecond: a sender that pauses this long is gone.
SILENCE_MS = 3000
LINE_BYTES_MAX = SERIAL_REQUEST_BYTES_MAX + CHECK_BYTES

_KEYS, _FRAME, _SUSPECT, _DISCARD = range(4)

_BRACE = 0x7B  # "{"
_ERASE = (0x08, 0x7F)  # backspace, as terminal programs send it
_EMPTY_THE_LINE = (0x03, 0x15, CR, LF)  # Ctrl-C, Ctrl-U, Enter
_CHANGE_THE_LINE = (0x09, 0x17, 0x1B)  # TAB, Ctrl-W and ESC do what only the editor knows


class Receiver:
    """One serial line, from bytes to events, the same however the bytes are cut into reads.

    Events, in the order of the line:

    - `frame`: the body of a frame whose checksum holds
    - `bad_crc`: a frame came to its end and was damaged
    - `too_long`: a frame passed its bound; told once, the rest of it goes nowhere
    - `drop_line`: RS came where keys were typed: the half-typed line is to be dropped
    - `keys`: bytes for the editor
    - `stray`: a line that began like a machine's and is none; nothing of it reached the editor
    """

    __slots__ = (
        "_events",
        "_heard_ms",
        "_is_line_empty",
        "_keys",
        "_line",
        "_skip_lf",
        "_state",
        "_typed",
    )

    def __init__(self, is_line_empty: Callable[[], bool]) -> None:
        self._is_line_empty = is_line_empty
        self._state = _KEYS
        self._line = bytearray()
        self._keys = bytearray()
        self._events: list[Event] = []
        self._heard_ms = 0
        self._skip_lf = False
        # Characters in the editor's line, -1 when only the editor can know.
        self._typed = 0

    def feed(self, data: bytes, now_ms: int) -> list[Event]:
        """What these bytes are; the caller hands `keys` to the editor before it feeds again."""
        self._expire(now_ms)
        self._learn_of_idle_line(now_ms)
        if data:
            self._heard_ms = now_ms
        for byte in data:
            self._take(byte)
        self._end_keys()
        events, self._events = self._events, []
        return events

    def due_ms(self) -> int | None:
        """When `tick` must be called at the latest; None while the line is a console."""
        return None if self._state == _KEYS else self._heard_ms + SILENCE_MS

    def tick(self, now_ms: int) -> list[Event]:
        """Lets what was begun and never ended go, without a sound: a person may be typing next."""
        self._expire(now_ms)
        return []

    def _expire(self, now_ms: int) -> None:
        due_ms = self.due_ms()
        if due_ms is not None and now_ms >= due_ms:
            self._begin(_KEYS)

    def _learn_of_idle_line(self, now_ms: int) -> None:
        """The editor drops a line that nobody goes on with; by now it knows the odd keys too."""
        is_sure = self._typed > 0 or now_ms - self._heard_ms >= SILENCE_MS
        if self._typed and is_sure and self._is_line_empty():
            self._typed = 0

    def _begin(self, state: int) -> None:
        self._state = state
        self._line.clear()

    def _take(self, byte: int) -> None:
        # CR LF behind a frame is one end of line, not an end and an Enter.
        skipped = self._skip_lf and byte == LF
        self._skip_lf = False
        if skipped:
            return
        if byte == RS:
            self._frame_begins()
        elif self._state == _KEYS:
            self._key(byte)
        elif byte in (CR, LF):
            self._line_ends()
            self._skip_lf = byte == CR
        elif self._state != _DISCARD:
            self._collect(byte)

    def _frame_begins(self) -> None:
        if self._state == _KEYS:
            self._tell("drop_line")
        self._typed = 0
        self._begin(_FRAME)

    def _key(self, byte: int) -> None:
        if byte == _BRACE and self._line_is_empty():
            self._begin(_SUSPECT)
            self._line.append(byte)
            return
        self._keys.append(byte)
        if byte in _EMPTY_THE_LINE:
            self._typed = 0
        elif self._typed < 0 or byte in _CHANGE_THE_LINE:
            self._typed = -1
        elif byte in _ERASE:
            self._typed = max(0, self._typed - 1)
        elif 0x20 <= byte <= 0x7E:
            self._typed = min(self._typed + 1, LINE_CHARS_MAX)

    def _line_is_empty(self) -> bool:
        """Whether the editor holds nothing; keys that it has not been given yet are reckoned in.

        After a key whose effect only the editor knows it is taken to hold something: else a frame
        would be one or a typed line by how the bytes happened to be cut.
        """
        is_behind = bool(self._keys or self._events)
        return self._typed == 0 and (is_behind or self._is_line_empty())

    def _collect(self, byte: int) -> None:
        if len(self._line) < LINE_BYTES_MAX:
            self._line.append(byte)
            return
        self._tell("too_long" if self._state == _FRAME else "stray")
        self._begin(_DISCARD)

    def _line_ends(self) -> None:
        line, state = bytes(self._line), self._state
        self._begin(_KEYS)
        if state == _DISCARD or not line:
            return  # RS LF: a client that makes sure it is heard from here on
        body = unframe(line)
        if body is not None and body.isascii() and body.decode().isprintable():
            self._tell("frame", body)
        else:
            self._tell("bad_crc" if state == _FRAME else "stray")

    def _tell(self, what: str, data: bytes = b"") -> None:
        self._end_keys()
        self._events.append((what, data))

    def _end_keys(self) -> None:
        if self._keys:
            self._events.append(("keys", bytes(self._keys)))
            self._keys.clear()
