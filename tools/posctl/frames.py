"""Splits what comes from a terminal into the agent's objects and a console's text.

Pure: told the bytes, in whatever pieces they were read. The agent's own module does the frames.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Union

from agent.links import wire

FRAME_BYTES_MAX = wire.SOCKET_REPLY_BYTES_MAX + wire.FRAME_EXTRA_BYTES
_RS, _LF = b"\x1e", b"\n"


class Said(NamedTuple):
    """One object of the agent."""

    value: dict[str, Any]


class Damaged(NamedTuple):
    """A frame that did not come whole."""

    data: bytes


class Text(NamedTuple):
    """Bytes outside frames, as they came."""

    data: bytes


Heard = Union[Said, Damaged, Text]


class SerialEar:
    """A serial line: RS begins a frame wherever it stands, LF ends it, all else is text."""

    def __init__(self) -> None:
        self._frame: bytearray | None = None  # None outside of frames

    def feed(self, data: bytes) -> list[Heard]:
        """What these bytes bring to an end."""
        found: list[Heard] = []
        while data:
            if self._frame is None:
                text, begun, data = data.partition(_RS)
                if text:
                    found.append(Text(text))
                if begun:
                    self._frame = bytearray()
            else:
                data = self._in_frame(data, found)
        return found

    def _in_frame(self, data: bytes, found: list[Heard]) -> bytes:
        """Collect up to LF or the next RS; answers the rest."""
        assert self._frame is not None
        ends = [at for at in (data.find(_RS), data.find(_LF)) if at >= 0]
        if not ends:
            self._frame += data
            if len(self._frame) > FRAME_BYTES_MAX:  # its LF was lost long ago
                found.append(Damaged(bytes(self._frame)))
                self._frame = None
            return b""
        end = min(ends)
        line = bytes(self._frame + data[:end])
        if line:  # RS RS and RS LF say nothing
            body = wire.unframe(line)
            found.append(Damaged(line) if body is None else _said(body, line))
        self._frame = None
        return data[end:] if data[end:][:1] == _RS else data[end + 1 :]


class SocketEar:
    """A socket: each line is an object, with or without a frame around it."""

    def __init__(self) -> None:
        self._line = b""

    def feed(self, data: bytes) -> list[Heard]:
        """What these bytes bring to an end."""
        *lines, self._line = (self._line + data).split(_LF)
        found = [_of_socket(line) for line in lines if line.strip()]
        if len(self._line) > FRAME_BYTES_MAX:
            found.append(Text(self._line))
            self._line = b""
        return found


def _of_socket(line: bytes) -> Heard:
    try:
        said = _said(wire.socket_line(line), line)
    except wire.RemoteError:
        return Damaged(line)
    return Text(line + _LF) if isinstance(said, Damaged) else said


def _said(body: bytes, line: bytes) -> Heard:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return Damaged(line)
    return Said(value) if isinstance(value, dict) else Damaged(line)
