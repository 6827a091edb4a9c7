"""What a stream stands on: a socket or a raw file, with the calls of MicroPython's streams.
Rule: nothing here waits. Where nothing can be done now, a call answers None.
"""

from __future__ import annotations

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Line(Protocol):
        """What a stream stands on. Where nothing can be done now, its calls answer None."""

        def fileno(self) -> int: ...
        def read(self, n: int) -> bytes | None: ...
        def readinto(self, buf: Any) -> int | None: ...
        def readline(self) -> bytes | None: ...
        def write(self, buf: Any) -> int | None: ...
        def close(self) -> object: ...


__all__ = ["FileLine", "SocketLine"]

LOOK_BYTES = 512  # how far one look ahead goes for the end of a line


class SocketLine:
    """A socket that does not block, with the calls of MicroPython's streams."""

    __slots__ = ("fileno", "sock")

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.fileno = sock.fileno

    def read(self, n: int) -> bytes | None:
        """As MicroPython does, try until `n` bytes are there or no more are.

        So a reset is told at once, and what came just before it is lost.
        """
        found = b""
        while True:
            try:
                more = self.sock.recv(n - len(found))
            except BlockingIOError:
                return found or None
            found += more
            if not more or len(found) == n:
                return found

    def readinto(self, buf: Any) -> int | None:
        try:
            return self.sock.recv_into(buf)
        except BlockingIOError:
            return None

    def readline(self) -> bytes | None:
        """Take no byte beyond the end of the line: another task may read it otherwise."""
        try:
            ahead = self.sock.recv(LOOK_BYTES, _socket.MSG_PEEK)
            return self.sock.recv(ahead.find(b"\n") + 1 or len(ahead))
        except BlockingIOError:
            return None

    def write(self, buf: Any) -> int | None:
        try:
            return self.sock.send(buf)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self.sock.close()


class FileLine:
    """Whatever else is read and written without blocking: a raw file, a pyserial port."""

    __slots__ = ("close", "fileno", "read", "readinto", "write")

    def __init__(self, file: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(file, name, None))  # a stream may go one way only

    def readline(self) -> bytes | None:
        # Byte by byte, because a file's own `readline` loses what it has when no more is there.
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < LOOK_BYTES:
            byte: bytes | None = self.read(1)  # type: ignore[attr-defined]
            if not byte:
                return bytes(line) or byte
            line += byte
        return bytes(line)
