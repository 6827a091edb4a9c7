"""Sockets of this machine: requests in lines, one at a time, from a few peers at once.

Whoever does not speak the protocol is told so once and cut off, before a line hidden in what it
sends (the body of a web page's request, say) could be taken for a call.
"""

from __future__ import annotations

from agent import aio
from agent.edges import local_socket
from agent.links import wire
from agent.links.byte_line import ByteLine
from agent.links.peer import HungUp, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.links.session import Session

    Told = Callable[[str, dict[str, Any]], bool]
    Make = Callable[[Told, str], Session]

CONNECTIONS_MAX = 4
CONNECTIONS_SPARE = 2  # for admins alone: four who say nothing must not keep them out
REPLY_MS_MAX = 10_000  # a peer that does not read its own reply for this long is cut off
TOKEN_MS_MAX = 2000
_CUTTING = ("PARSE", "TOO_LONG", "BAD_CRC")


class SocketLink:
    """One listening socket. `level_of` judges a peer; a `token` is asked for where there is none
    that the kernel knows."""

    def __init__(
        self,
        listener: Any,
        make_session: Make,
        make_console: Make,
        level_of: Callable[[Any], str],
        facts: Any,
        note: Callable[[str], None],
        token: str = "",
    ) -> None:
        self._listener = listener
        self._make_session = make_session
        self._make_console = make_console
        self._level_of = level_of
        self._facts = facts
        self._note = note
        self._token = token
        self._open = 0

    async def serve(self) -> None:
        """Accept for ever."""
        fd = self._listener.fileno()
        try:
            while True:
                await aio.wait_readable(fd)
                connection = local_socket.accept(self._listener)
                if connection is None:
                    await aio.sleep_ms(ACCEPT_PAUSE_MS)  # no descriptor left, or gone again
                elif self._open >= self._room_for(connection):
                    _turn_away(connection)
                else:
                    self._open += 1
                    aio.create_task(self._one(connection))
        finally:
            aio.release_fd(fd)
            self._listener.close()

    def _room_for(self, connection: Any) -> int:
        spare = CONNECTIONS_SPARE if self._level_of(connection) == "admin" else 0
        return CONNECTIONS_MAX + spare

    async def _one(self, connection: Any) -> None:
        peer = Peer(connection.fileno())
        talk = _Talk(self, peer, connection)
        try:
            await talk.serve()
        except HungUp:
            pass
        finally:
            self._open -= 1
            talk.session.unsubscribe()
            peer.forget()
            connection.close()


class _Talk:
    """One connection."""

    def __init__(self, link: SocketLink, peer: Peer, connection: Any) -> None:
        self._link = link
        self._peer = peer
        self.session = link._make_session(self._told, link._level_of(connection))
        self._known = not link._token
        self._due_ms = self.session.service.now_ms() + TOKEN_MS_MAX
        self._waiting = bytearray()

    async def serve(self) -> None:
        """Answer line by line until the peer goes, or has to."""
        waiting = self._waiting
        limit = self.session.request_bytes_max + 10  # RS, # and the checksum may be there
        while True:
            cut = waiting.find(b"\n")
            if cut < 0 and len(waiting) > limit:
                return await self._refuse("TOO_LONG", f"a request has at most {limit - 10} bytes")
            if cut < 0:
                data = await self._peer.read(self._wait_ms())
                if not data:
                    return await self._refuse("PARSE", "no hello with a token came")
                waiting += data
                continue
            line = bytes(waiting[:cut]).rstrip(b"\r")
            del waiting[: cut + 1]
            if len(line) > limit:
                return await self._refuse("TOO_LONG", f"a request has at most {limit - 10} bytes")
            if line.strip(b"\x1e") and not await self._line(line):
                return None

    def _wait_ms(self) -> int | None:
        """For the token there is one deadline, however slowly its bytes come."""
        return None if self._known else max(self._due_ms - self.session.service.now_ms(), 1)

    async def _refuse(self, kind: str, message: str) -> None:
        self._send(wire.error_body(None, wire.remote("PARSE", f"{kind}: {message}")))
        await self._peer.drained(REPLY_MS_MAX)

    async def _line(self, line: bytes) -> bool:
        """Answer one line; whether the peer may go on."""
        try:
            request = wire.parse_request(wire.socket_line(line), ascii_only=False)
        except wire.RemoteError as error:
            self._send(wire.error_body(error.id, error))
            await self._peer.drained(REPLY_MS_MAX)
            return error.kind not in _CUTTING
        if not self._known and not self._knows_token(request):
            refusal = wire.remote("NOT_ALLOWED", "the first line must be hello with the token")
            self._send(wire.error_body(None, refusal))
            await self._peer.drained(REPLY_MS_MAX)
            return False
        if request is not None and request.method == "console":
            return await self._become_console(request)
        if request is not None:
            self._send(await self.session.reply_to(request))
            await self._peer.drained(REPLY_MS_MAX)
        return True

    def _knows_token(self, request: Any) -> bool:
        if request is None or request.method != "hello":
            return False
        given = request.params.get("token")
        self._known = type(given) is str and _same(given, self._link._token)
        return self._known

    async def _become_console(self, request: Any) -> bool:
        """From here on the connection is a byte line like a serial port, with a port's rights."""
        try:
            await self.session.call("console", request.params)
        except wire.RemoteError as error:
            self._send(wire.error_body(request.id, error))
            return True
        self._send(wire.result_body(request.id, {}))
        link, level = self._link, self.session.level

        def make(told: Told) -> Session:
            return link._make_console(told, level)

        await ByteLine(self._peer, make, link._facts, link._note).serve(bytes(self._waiting))
        return False

    def _send(self, body: bytes) -> None:
        self._peer.write(body + b"\n")

    def _told(self, method: str, params: dict[str, Any]) -> bool:
        return self._peer.offer(wire.notification_body(method, params) + b"\n")


def _turn_away(connection: Any) -> None:
    error = wire.remote("BUSY", f"at most {CONNECTIONS_MAX} connections at once")
    try:
        connection.send(wire.error_body(None, error) + b"\n")
    except OSError:
        pass
    connection.close()


def _same(given: str, token: str) -> bool:
    """Compare without telling by the time how much of it was right."""
    left, right = given.encode(), token.encode()
    if len(left) != len(right):
        return False
    different = 0
    for a, b in zip(left, right):
        different |= a ^ b
    return different == 0


ACCEPT_PAUSE_MS = 50
