"""One request at a time over an open line: sent, waited for, and sent again, by the rules of
docs/spec/wire-protocol.md for clients.

A repeat is the rule and not the exception on a bad cable, so it has the same bytes: same id, same
op. Whatever is not the reply to the newest request goes elsewhere: events to a queue, a console's
text to whoever wants it, old replies nowhere.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from agent.links import wire
from posctl.faults import (
    AgentRefused,
    HostError,
    LineLost,
    NoAnswer,
    NotOurAgent,
    OtherTerminal,
    TooNoisy,
    Unheard,
    WrongProtocol,
)
from posctl.frames import Damaged, Heard, Said, SerialEar, SocketEar
from posctl.lines import Line

__all__ = [
    "AgentRefused",
    "Conversation",
    "Counts",
    "HostError",
    "LineLost",
    "NoAnswer",
    "NotOurAgent",
    "Notification",
    "OtherTerminal",
    "TooNoisy",
    "Unheard",
    "WireEvent",
    "WrongProtocol",
]

SENDS_MAX = 8
ANSWER_S = 1.0  # the agent answers within half a second, also while it works
_BITS_PER_BYTE = 10
# A socket loses nothing: a second send there would only be a second piece of work.
SOCKET_SENDS_MAX = 1
SOCKET_ANSWER_S = 10.0
_ECHOES_MAX = 4  # so often nothing but our own frame came back, of somebody not known
_EVENTS_KEPT_MAX = 64
_EXCERPT_BYTES = 200
_EXCERPT_CHARS = 48
# Above this share of bytes that are no text the other end talks at another rate.
_ODD_SHARE = 0.2


class Notification(NamedTuple):
    """What the agent tells unasked, of what was subscribed to."""

    method: str
    params: dict[str, Any]


class WireEvent(NamedTuple):
    """Something that happened on the line. `what`: `again` (a request was sent again), `damaged`
    (a frame was, here or there), `lost`, `waiting`, `reconnected`, `restarted` (the agent was)."""

    what: str
    says: str


@dataclass
class Counts:
    """How good a line is. `sends` over `requests` tells how often something had to be repeated."""

    requests: int = 0
    sends: int = 0
    damaged_here: int = 0
    damaged_there: int = 0
    reconnects: int = 0


class _Call:
    """What was heard while one request waited for its reply."""

    def __init__(self) -> None:
        self.damaged = 0
        self.echoes = 0
        self.objects = 0
        self.text = b""
        self.text_bytes = 0
        self.odd_bytes = 0

    def take_text(self, data: bytes) -> None:
        self.text = (self.text + data)[:_EXCERPT_BYTES]
        self.text_bytes += len(data)
        self.odd_bytes += sum(byte > 0x7E or (byte < 0x20 and byte not in _BLANKS) for byte in data)

    @property
    def only_echoes(self) -> bool:
        return not (self.damaged or self.objects or self.text_bytes)

    @property
    def is_odd(self) -> bool:
        return self.odd_bytes > _ODD_SHARE * self.text_bytes


_BLANKS = b"\t\r\n\x1b"


def _nobody(_: Any) -> None:
    """Told what nobody wants to know."""


class Conversation:
    """`told` gets each WireEvent, `on_text` a console's bytes. `answer_s` replaces the time that an
    agent is given to answer, on top of that of the wire; `now` is the clock."""

    def __init__(
        self,
        line: Line,
        told: Callable[[WireEvent], None] = _nobody,
        on_text: Callable[[bytes], None] = _nobody,
        counts: Counts | None = None,
        answer_s: float | None = None,
        sends_max: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.line = line
        self.counts = counts or Counts()
        self.is_known = False  # it has answered as our agent does
        exact = line.is_exact
        self._sends_max = sends_max or (SOCKET_SENDS_MAX if exact else SENDS_MAX)
        self._answer_s = answer_s or (SOCKET_ANSWER_S if exact else ANSWER_S)
        self._told = told
        self._on_text = on_text
        self._now = now
        self._ear = SocketEar() if exact else SerialEar()
        self._waiting: deque[Heard] = deque()
        self._events: deque[Notification] = deque(maxlen=_EVENTS_KEPT_MAX)
        # Replies to whoever was here before must not be taken for ours.
        self._id = random.randrange(1 << 20, 1 << 30)

    # Asking

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result of one call. Raises AgentRefused for the agent's no; Unheard or NotOurAgent
        when no send was answered; LineLost."""
        self._id += 1
        self.counts.requests += 1
        data = self._request(method, params or {})
        wait_s = self._answer_s + self._wire_s(len(data))
        heard = _Call()
        for send in range(self._sends_max):
            if send:
                self._told(WireEvent("again", f"{method}: send {send + 1} of {self._sends_max}"))
            self.counts.sends += 1
            self.line.send(data)
            reply = self._reply(heard, self._now() + wait_s)
            if reply is not None:
                return self._result(reply)
            if heard.echoes >= _ECHOES_MAX and heard.only_echoes and not self.is_known:
                break
        raise self._unheard(method, heard)

    def tell(self, method: str, params: dict[str, Any] | None = None) -> None:
        """Send a request whose reply nobody waits for: for a courtesy at the end."""
        self._id += 1
        self.line.send(self._request(method, params or {}))

    def _request(self, method: str, params: dict[str, Any]) -> bytes:
        value: dict[str, Any] = {"jsonrpc": "2.0", "id": self._id, "method": method}
        if params:
            value["params"] = params
        body = json.dumps(value, separators=(",", ":")).encode("ascii")
        return body + b"\n" if self.line.is_exact else wire.frame(body)

    def _wire_s(self, request_bytes: int) -> float:
        if not self.line.baud:
            return 0.0
        reply_bytes = wire.SERIAL_REPLY_BYTES_MAX + wire.FRAME_EXTRA_BYTES
        return _BITS_PER_BYTE * (request_bytes + reply_bytes) / self.line.baud

    # Hearing

    def _reply(self, heard: _Call, due: float) -> dict[str, Any] | None:
        """The reply to the newest request; None when it is time to send it again."""
        while True:
            one = self._next(due)
            if one is None:
                return None
            if isinstance(one, Damaged):
                heard.damaged += 1
                return None
            if not isinstance(one, Said):
                heard.take_text(one.data)
                continue
            said = one.value
            if said.get("id") == self._id and "method" in said:
                heard.echoes += 1
                continue
            heard.objects += 1
            if "method" in said or ("result" not in said and "error" not in said):
                continue
            if said.get("id") == self._id:
                return said
            if said.get("id", 0) is None and self._is_nak(said):
                heard.damaged += 1
                return None

    def _is_nak(self, said: dict[str, Any]) -> bool:
        """Whether a frame came damaged there. On a socket nothing does: there it is a refusal, of
        this request or of the connection."""
        if self.line.is_exact:
            raise self._refused(said)
        self.counts.damaged_there += 1
        self._told(WireEvent("damaged", "a frame came damaged at the terminal"))
        return True

    def listen(self, wait_s: float) -> Notification | None:
        """The next event that was subscribed to; None when none comes in that time."""
        due = self._now() + wait_s
        while not self._events:
            if self._next(due) is None:
                return None
        return self._events.popleft()

    def _next(self, due: float) -> Heard | None:
        """The next thing heard, with events put by and text handed on; None when time is up."""
        while not self._waiting:
            left = due - self._now()
            if left <= 0:
                return None
            self._waiting.extend(self._ear.feed(self.line.receive(left)))
        one = self._waiting.popleft()
        if isinstance(one, Damaged):
            self.counts.damaged_here += 1
            self._told(WireEvent("damaged", "a frame came damaged here"))
        elif not isinstance(one, Said):
            self._on_text(one.data)
        elif "method" in one.value and "id" not in one.value:
            self._put_by(one.value)
        return one

    def _put_by(self, said: dict[str, Any]) -> None:
        params = said.get("params")
        if isinstance(said["method"], str) and isinstance(params, dict):
            self._events.append(Notification(said["method"], params))

    # What it means

    def _result(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "error" in reply:
            raise self._refused(reply)
        result = reply["result"]
        if not isinstance(result, dict):
            raise NotOurAgent(f"what answers at {self.line.name} is no posagent")
        self.is_known = True
        return result

    def _refused(self, reply: dict[str, Any]) -> HostError:
        error = reply["error"]
        if not isinstance(error, dict):
            return NotOurAgent(f"what answers at {self.line.name} is no posagent")
        data = error.get("data")
        data = data if isinstance(data, dict) else {}
        kind = str(data.get("kind", "REFUSED"))
        self.is_known = self.is_known or "kind" in data
        return AgentRefused(error.get("code", 0), kind, str(error.get("message", "")), data)

    def _unheard(self, method: str, heard: _Call) -> HostError:
        """Why nobody answered, by what was heard instead."""
        name = self.line.name
        if heard.echoes and heard.only_echoes and not self.is_known:
            return NotOurAgent(
                f"{name} sends back what it is sent: its plug is bridged, or the device echoes"
            )
        if heard.damaged and not (heard.is_odd and not heard.objects):
            return TooNoisy(
                f"{name} is too noisy: {method} was sent {self._sends_max} times and "
                f"{heard.damaged} frames came damaged; shorten or replace the cable, see to ground"
            )
        if heard.text_bytes and heard.is_odd:
            return TooNoisy(
                f"{name} gives no text: wrong baud rate ({self.line.baud} here), or a bad cable",
                is_rate=True,
            )
        if heard.text_bytes and not (self.is_known or heard.objects):
            return NotOurAgent(f"{name} is no posagent's line; it says {_excerpt(heard.text)!r}")
        if self.is_known or heard.objects:
            return NoAnswer(f"the agent at {name} answers no more; the terminal may be starting")
        if self.line.is_exact:
            return NoAnswer(f"the agent behind {name} does not answer; it may be stopped")
        return NoAnswer(
            f"nobody answers at {name}; see that the terminal is on, the cable whole, "
            f"and {self.line.baud} baud right"
        )


def _excerpt(text: bytes) -> str:
    """What a device said, as it may stand in a sentence: the first line that says something."""
    plain = "".join(chr(byte) if 0x20 <= byte <= 0x7E else "\n" for byte in text)
    lines = [line.strip() for line in plain.split("\n") if line.strip()]
    return lines[0][:_EXCERPT_CHARS] if lines else ""
