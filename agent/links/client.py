"""A caller of the daemon on the same terminal: blocking, one request at a time, over the socket."""

from __future__ import annotations

import _socket
from binascii import a2b_base64

from agent.edges.local_socket import connect_local
from agent.ground.codec import decode_line, encode_line
from agent.ground.errors import Busy, InternalError
from agent.links.wire import SOCKET_REPLY_BYTES_MAX, RemoteError, remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

ANSWER_S = 10.0
RECV_BYTES = 4096


def connect(path: str) -> Client | None:
    """A client of the daemon that listens at `path`; None when none does."""
    try:
        peer = connect_local(path, ANSWER_S)
    except OSError:
        return None
    return Client(peer)


class Client:
    """One connection. `told` of `call` and of `listen` gets the notifications that come meanwhile.

    Raises Busy when the daemon does not answer in time or hangs up, and RemoteError for what it
    answers.
    """

    __slots__ = ("_id", "_peer", "_rest")

    def __init__(self, peer: Any) -> None:
        self._peer = peer
        self._rest = b""
        self._id = 0

    def call(
        self,
        method: str,
        params: dict[str, Any],
        told: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Do one call and wait for its answer."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        try:
            self._peer.sendall(encode_line(request).encode() + b"\n")
        except OSError:
            pass  # it may have hung up on us with a word, which is to be read
        while True:
            try:
                said = self._next()
            except _socket.timeout:
                raise _silent() from None
            if "method" in said and told is not None:
                told(said["method"], said.get("params", {}))
            if said.get("id") == self._id or ("error" in said and said.get("id") is None):
                return _result_in(said)

    def wait(self, wait_s: float) -> tuple[str, dict[str, Any]] | None:
        """The next notification, or None after so long without one."""
        self._peer.settimeout(wait_s)
        try:
            said = self._next()
        except _socket.timeout:
            return None
        finally:
            self._peer.settimeout(ANSWER_S)
        return (said["method"], said.get("params", {})) if "method" in said else None

    def read(self, name: str) -> bytes:
        """A whole file or report, piece by piece."""
        data = b""
        while True:
            piece = self.call("read", {"name": name, "off": len(data)})
            data += a2b_base64(piece["data"])
            if len(data) >= piece["len"] or not piece["data"]:
                return data

    def hand_over(self) -> int:
        """The descriptor of the connection, which from now on is the caller's."""
        return int(self._peer.detach())

    def close(self) -> None:
        """Hang up."""
        self._peer.close()

    def _next(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            if len(self._rest) > SOCKET_REPLY_BYTES_MAX:
                raise InternalError("the agent's answer makes no sense; report it")
            try:
                data = self._peer.recv(RECV_BYTES)
            except _socket.timeout:
                raise
            except OSError as error:
                raise _silent() from error
            if not data:
                raise _silent()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = decode_line(line.decode("ascii"))
        return said


def _result_in(said: dict[str, Any]) -> dict[str, Any]:
    if "error" in said:
        error = said["error"]
        data = error.get("data", {})
        facts = {key: value for key, value in data.items() if key not in ("kind", "retry")}
        raise remote(data.get("kind", "INTERNAL"), error["message"], **facts)
    result: dict[str, Any] = said["result"]
    return result


def _silent() -> Busy:
    return Busy("the agent of this terminal does not answer; restart it", other_agent=True)


__all__ = ["Client", "RemoteError", "connect"]
