"""One peer: its level, one call at a time, and what it asked to be told.

What a peer is told unasked is only what it subscribed to, no faster than its line carries it, and
nothing that it does not read is kept for it.
"""

from __future__ import annotations

from agent.links import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Service(Protocol):
        """Whoever does the calls."""

        async def call(
            self, session: Session, method: str, params: dict[str, Any]
        ) -> dict[str, Any]: ...

        def listen(self, told: Callable[[str, dict[str, Any]], None]) -> None: ...

        def leave(self, told: Callable[[str, dict[str, Any]], None]) -> None: ...

        def now_ms(self) -> int: ...


SUBSCRIPTION_MS = 600_000  # without a request for this long nobody reads any more
PROGRESS_INTERVAL_MS = 1000
NOTIFICATION_BYTES = 160  # what a progress line takes, for reckoning its time on the wire


class Session:
    """`told` sends one notification and answers whether the line took it."""

    def __init__(
        self,
        service: Service,
        link: str,
        level: str,
        told: Callable[[str, dict[str, Any]], bool],
        patience_ms: int,
        request_bytes_max: int = wire.SERIAL_REQUEST_BYTES_MAX,
        reply_bytes_max: int = wire.SERIAL_REPLY_BYTES_MAX,
        baud: int = 0,
    ) -> None:
        self.service = service
        self.link = link
        self.level = level
        self.patience_ms = patience_ms
        self.request_bytes_max = request_bytes_max
        self.reply_bytes_max = reply_bytes_max
        self.baud = baud
        self._told = told
        wire_ms = NOTIFICATION_BYTES * 10 * 1000 // baud if baud else 0
        self._interval_min_ms = max(PROGRESS_INTERVAL_MS, 10 * wire_ms) if baud else 0
        self._interval_ms = 0
        self._events: tuple[str, ...] = ()
        self._asked_ms = 0
        self._sent_ms = 0

    async def answer(self, body: bytes, ascii_only: bool) -> bytes | None:
        """The reply to one line, or None for what is no request. Never raises for what a peer
        says."""
        self._asked_ms = self.service.now_ms()
        try:
            request = wire.parse_request(body, ascii_only)
        except wire.RemoteError as error:
            return wire.error_body(error.id, error)
        except Exception as error:
            return _fault(None, error)
        return None if request is None else await self.reply_to(request)

    async def reply_to(self, request: wire.Request) -> bytes:
        """The reply to a request that was read before; never raises either."""
        try:
            result = await self.call(request.method, request.params)
            reply = wire.result_body(request.id, result)
            if len(reply) > self.reply_bytes_max:
                raise wire.remote("TOO_LONG", "the answer is too long for this line; use read")
            return reply
        except wire.RemoteError as error:
            return wire.error_body(request.id, error)
        except Exception as error:
            return _fault(request.id, error)

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """One call, as the console makes it, too. Raises RemoteError."""
        self._asked_ms = self.service.now_ms()
        return await self.service.call(self, method, params)

    def subscribe(self, events: list[str], min_ms: int) -> None:
        """Tell of these from now on, in the place of what was asked for before."""
        self.unsubscribe()
        self._events = tuple(events)
        self._interval_ms = max(min_ms, self._interval_min_ms)
        self._sent_ms = self.service.now_ms() - self._interval_ms
        self.service.listen(self._tell)

    def unsubscribe(self) -> None:
        """Tell nothing any more; also for the end of the line."""
        if self._events:
            self._events = ()
            self.service.leave(self._tell)

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        now = self.service.now_ms()
        if now - self._asked_ms > SUBSCRIPTION_MS:
            self.unsubscribe()
        if method not in self._events:
            return
        if method == "progress":
            if now - self._sent_ms < self._interval_ms:
                return  # the next mark is newer
            self._sent_ms = now
        self._told(method, params)


def _fault(id: wire.Id, error: Exception) -> bytes:
    fault = wire.remote("INTERNAL", f"a fault of the agent: {type(error).__name__}")
    return wire.error_body(id, fault)
