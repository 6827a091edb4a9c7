"""A client for the serial line as docs/spec/wire-protocol.md asks for one, on pyserial.

It shares no code with the agent: this is what a tool of somebody else's would look like. One
request at a time; the same bytes again after a time-out, and at once when a frame came damaged;
replies to other requests and the console's text go nowhere.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import Any

import serial

SENDS_MAX = 8
RS, LF = b"\x1e", b"\n"


class NoAnswer(Exception):
    """None of the sends was answered: nothing is known of what was done."""


class LineClient:
    """The machine's end of a serial line. `timeout_s` is short in tests: a pty has no rate."""

    def __init__(self, device: str, timeout_s: float) -> None:
        self._port = serial.Serial(device, 115_200, timeout=0)
        self._timeout_s = timeout_s
        self._heard = b""
        self._id = 0
        self.sends = 0

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a call that must not be refused."""
        said = self.call(method, **params)
        assert "result" in said, said
        found: dict[str, Any] = said["result"]
        return found

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The reply to one call. Raises NoAnswer after the last send."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        body = json.dumps(request, separators=(",", ":")).encode("ascii")
        frame = b"%s%s#%08x%s" % (RS, body, zlib.crc32(body), LF)
        for _ in range(SENDS_MAX):
            self.sends += 1
            self._port.write(frame)
            said = self._reply()
            if said is not None:
                return said
        raise NoAnswer(f"{method}: {SENDS_MAX} sends")

    def _reply(self) -> dict[str, Any] | None:
        """The reply to the newest request; None when it is time to send again."""
        give_up_at = time.monotonic() + self._timeout_s
        while True:
            line, ended, rest = self._heard.partition(LF)
            if ended:
                self._heard = rest
                said = self._said(line)
                if said is None or said.get("id", 0) == self._id:
                    return said
                continue
            self._port.timeout = max(0.0, give_up_at - time.monotonic())
            data = self._port.read(max(1, self._port.in_waiting))
            if not data:
                return None
            self._heard += data

    def _said(self, line: bytes) -> dict[str, Any] | None:
        """What a line says; {} for text, None for a damaged frame, here or at the other end."""
        _, begun, frame = line.rpartition(RS)
        if not begun:
            return {}
        body, _, check = frame.rpartition(b"#")
        if check != b"%08x" % zlib.crc32(body):
            return None
        said: dict[str, Any] = json.loads(body)
        return None if "error" in said and said["id"] is None else said

    def raw(self, data: bytes) -> None:
        """Bytes that are no frame."""
        self._port.write(data)

    def close(self) -> None:
        self._port.close()
