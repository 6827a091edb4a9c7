"""The service port from its opening to its unplugging, and opened again, with growing patience."""

from __future__ import annotations

from agent import aio
from agent.edges.serial_port import open_port
from agent.ground.errors import ConfigError
from agent.links.byte_line import ByteLine
from agent.links.peer import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.links.session import Session

RETRY_FIRST_MS = 500
RETRY_LAST_MS = 30_000


async def serve_port(
    path: str,
    baud: int,
    make_session: Callable[[Callable[[str, dict[str, Any]], bool]], Session],
    facts: Any,
    note: Callable[[str], None],
) -> None:
    """Serve the port for ever. One that is missing, busy or unplugged is tried again later; the
    same reason is told once."""
    wait_ms, told = RETRY_FIRST_MS, ""
    while True:
        try:
            port = open_port(path, baud)
        except ConfigError as error:
            if error.message != told:
                told = error.message
                note(f"no serial line: {told}")
            await aio.sleep_ms(wait_ms)
            wait_ms = min(wait_ms * 2, RETRY_LAST_MS)
            continue
        peer = Peer(port.fd)
        started_ms = aio.ticks()
        try:
            if told:
                note(f"serial line {path} is open")
                told = ""
            await ByteLine(peer, make_session, facts, note).serve()
        finally:
            peer.forget()
            port.close()
        # A port that hangs up at once would be opened in a circle.
        lived = aio.ticks() - started_ms > RETRY_LAST_MS
        wait_ms = RETRY_FIRST_MS if lived else min(wait_ms * 2, RETRY_LAST_MS)
        await aio.sleep_ms(wait_ms)
