"""Sockets and other lines as streams, and servers that make them: MicroPython's asyncio.stream.
Rules: one reader and one writer at a time; `close` does nothing, `wait_closed` closes.
"""

from __future__ import annotations

import _socket
import os
from errno import EINPROGRESS, ENOBUFS
from select import POLLERR, POLLHUP

from .core import create_task
from .lines import FileLine, SocketLine
from .task import CancelledError, Task, sleep_ms
from .waits import release_fd, wait_readable, wait_writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, Callable, TypeVar, Union

    from .lines import Line

    Got = TypeVar("Got", bytes, int)
    Bytes = Union[bytes, bytearray, memoryview]
    Handler = Callable[["Stream", "Stream"], Coroutine[Any, Any, Any]]

__all__ = ["Server", "Stream", "StreamReader", "StreamWriter", "open_connection", "start_server"]

# A peer that lets so many bytes wait does not read: the next `write` before a `drain` is refused.
OUT_BYTES_MAX = 65_536
LINE_BYTES_MAX = 65_536  # of a line without an end, after which `readline` gives up
READ_BYTES = 4_096  # one read where the caller names no size
ACCEPT_PAUSE_MS = 100  # after an accept that failed for want of descriptors or memory
BACKLOG = 5


class _Turn:
    """One side of a stream, taken by one task at a time: two readers would get half each."""

    __slots__ = ("taken", "word")

    def __init__(self, word: str) -> None:
        self.word = word
        self.taken = False

    def __enter__(self) -> None:
        if self.taken:
            raise RuntimeError(f"the stream has a {self.word} already")
        self.taken = True

    def __exit__(self, *_: object) -> None:
        self.taken = False


class Stream:
    """A line in both directions, without a buffer for reading.

    `s` is a socket, or an object with `fileno` and those of `read`, `readinto`, `write` and `close`
    that are used; it must not block. On a terminal line b"" is "nothing yet", and the end only
    with a hang-up; everywhere else b"" is the end.
    """

    __slots__ = ("_line", "_reader", "_tty", "_writer", "e", "out_buf", "s")

    def __init__(self, s: Any, e: dict[str, Any] | None = None) -> None:
        self.s = s
        self.e = {} if e is None else e
        self.out_buf = bytearray()
        self._reader = _Turn("reader")
        self._writer = _Turn("writer")
        is_socket = isinstance(s, _socket.socket)
        self._line: Line = SocketLine(s) if is_socket else FileLine(s)  # type: ignore[assignment]
        self._tty = not is_socket and hasattr(s, "fileno") and os.isatty(s.fileno())

    def get_extra_info(self, v: str) -> Any:
        """`peername` for what a server accepted. KeyError for what is not known."""
        return self.e[v]

    def close(self) -> None:
        """Nothing; `wait_closed` closes."""

    async def wait_closed(self) -> None:
        """Close; tasks that wait on it get OSError (EBADF), and unsent bytes are dropped."""
        release_fd(self._line.fileno())
        self._line.close()

    aclose = wait_closed

    async def read(self, n: int = -1) -> bytes:
        """What is there, up to `n` bytes, b"" at the end; without `n`, all up to the end."""
        with self._reader:
            if n >= 0:
                return await self._some(self._line.read, n) if n else b""
            found = bytearray()
            while True:
                more = await self._some(self._line.read, READ_BYTES)
                if not more:
                    return bytes(found)
                found += more

    async def readinto(self, buf: bytearray | memoryview) -> int:
        """Fill `buf` with what is there and answer how much that was, 0 at the end."""
        with self._reader:
            return await self._some(self._line.readinto, buf) if len(buf) else 0

    async def readexactly(self, n: int) -> bytes:
        """EOFError if the end comes first; what came before it is lost."""
        with self._reader:
            found = bytearray()
            while len(found) < n:
                more = await self._some(self._line.read, n - len(found))
                if not more:
                    raise EOFError
                found += more
            return bytes(found)

    async def readline(self) -> bytes:
        """A line with its end; without one, what was left at the end. ValueError if too long."""
        with self._reader:
            line = bytearray()
            while True:
                more = await self._some(self._line.readline)
                line += more
                if not more or line.endswith(b"\n"):
                    return bytes(line)
                if len(line) > LINE_BYTES_MAX:
                    raise ValueError(f"no end of line within {LINE_BYTES_MAX} bytes")

    async def _some(self, take: Callable[..., Got | None], *arguments: Any) -> Got:
        """Wait until there is something, or nothing more to come."""
        while True:
            mask = await wait_readable(self._line.fileno())
            found = take(*arguments)
            if found:
                return found
            # A terminal line reads b"" for "nothing yet": only a hang-up makes it the end.
            if found is not None and (not self._tty or mask & (POLLHUP | POLLERR)):
                return found

    def write(self, buf: Bytes | str) -> None:
        """Send at once what the line takes and keep the rest for `drain`.

        OSError (ENOBUFS) if too much was kept already: the peer does not read.
        """
        data: Bytes = buf.encode() if isinstance(buf, str) else buf
        if len(self.out_buf) > OUT_BYTES_MAX:
            raise OSError(ENOBUFS, f"{len(self.out_buf)} bytes wait for a peer that does not read")
        if not self.out_buf:
            sent = self._line.write(data)
            if sent == len(data):
                return
            data = memoryview(data)[sent or 0 :]
        self.out_buf += data

    async def drain(self) -> None:
        """Return when all is sent. It always pauses, so writing in a loop starves nobody."""
        if not self.out_buf:
            await sleep_ms(0)
            return
        with self._writer:
            while self.out_buf:
                await wait_writable(self._line.fileno())
                sent = self._line.write(self.out_buf)
                # What another task writes meanwhile stands behind it and is sent as well.
                del self.out_buf[: sent or 0]

    async def awrite(self, buf: Bytes | str, off: int = 0, sz: int = -1) -> None:
        """For programs written for uasyncio: `write` a part of `buf`, and `drain`."""
        data = memoryview(buf.encode() if isinstance(buf, str) else buf)
        self.write(data[off:] if sz == -1 else data[off : off + sz])
        await self.drain()

    awritestr = awrite


StreamReader = StreamWriter = Stream


async def open_connection(
    host: str,
    port: int | None,
    ssl: None = None,
    server_hostname: str | None = None,
) -> tuple[Stream, Stream]:
    """Connect by TCP; with None as the port, to the Unix socket at the path `host`.

    The name is looked up without letting other tasks run. OSError if nobody accepts.
    """
    _refuse_ssl(ssl)
    family, address = _find(host, port)
    sock = _new_socket(family)
    try:
        await _connect(sock, address)
    except BaseException:
        sock.close()
        raise
    stream = Stream(sock)
    return stream, stream


async def _connect(sock: _socket.socket, address: Any) -> None:
    try:
        sock.connect(address)
    except BlockingIOError as error:
        if error.errno != EINPROGRESS:
            raise  # a Unix socket whose server lets others wait
    await wait_writable(sock.fileno())
    number = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


def _refuse_ssl(ssl: object) -> None:
    if ssl:
        raise NotImplementedError("there is no TLS on the device")


def _find(host: str, port: int | None) -> tuple[int, Any]:
    if port is None:
        return _socket.AF_UNIX, host
    # As bytes: for text the C code would load the codec for international names.
    name = host.encode() if host.isascii() else host
    found = _socket.getaddrinfo(name, port, 0, _socket.SOCK_STREAM)[0]
    return found[0], found[4]


def _new_socket(family: int) -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


class Server:
    """Accepts connections and starts a task for each, until it is closed."""

    __slots__ = ("closing", "task")

    task: Task

    def __init__(self) -> None:
        self.closing = False

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    def close(self) -> None:
        """Stop to accept; the connections that were accepted go on."""
        self.closing = True
        self.task.cancel()

    async def wait_closed(self) -> None:
        """Return once it was closed and its socket is."""
        await self.task

    async def _serve(self, sock: _socket.socket, handler: Handler) -> None:
        try:
            while True:
                await wait_readable(sock.fileno())
                await _accept(sock, handler)
        except CancelledError:
            if not self.closing:
                raise
        finally:
            release_fd(sock.fileno())
            sock.close()


async def _accept(sock: _socket.socket, handler: Handler) -> None:
    try:
        fd, peer = sock._accept()  # type: ignore[attr-defined]
    except (BlockingIOError, ConnectionAbortedError):
        return  # it was there and went away
    except OSError:
        # No descriptor or memory is left. The connection stays in the queue and would wake us
        # again at once: give others the time to close something.
        await sleep_ms(ACCEPT_PAUSE_MS)
        return
    accepted = _socket.socket(fileno=fd)
    try:
        accepted.setblocking(False)
        stream = Stream(accepted, {"peername": peer})
        create_task(handler(stream, stream))
    except BaseException:
        accepted.close()
        raise


async def start_server(
    cb: Handler,
    host: str,
    port: int | None,
    backlog: int = BACKLOG,
    ssl: None = None,
) -> Server:
    """Listen on a TCP port and start `cb(reader, writer)` as a task for each connection.

    With None as the port, on a Unix socket made at the path `host`; its mode, and removing it
    before and afterwards, are the caller's. OSError if the address is taken.
    """
    _refuse_ssl(ssl)
    family, address = _find(host, port)
    sock = _new_socket(family)
    try:
        if port is not None:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    server = Server()
    server.task = create_task(server._serve(sock, cb))
    try:
        await sleep_ms(0)  # so that its task has begun: a cancel before would leave the socket open
    except CancelledError:
        server.task.cancel()
        raise
    return server
