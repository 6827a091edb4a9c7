"""Which ports there are and who answers on them.

A port may belong to anything: a payment terminal, a scale, a printer. So it is sent one empty frame
and one hello, which nothing but an agent takes for anything, and never more.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from serial.tools import list_ports

from agent.links import wire
from posctl.faults import HostError, PortError
from posctl.frames import Damaged, Said, SerialEar, Text
from posctl.inventory import Entry
from posctl.lines import Line, open_line, place_of
from posctl.show import BAD, GOOD, QUIET, WARN, Part, Row, Rows, clean
from posctl.show import Line as Sentence

ANSWER_S = 1.0
AT_ONCE_MAX = 16
_HELLO = b'{"jsonrpc":"2.0","id":"posctl-ports","method":"hello","params":{"proto":[1]}}'
_SAID_CHARS_MAX = 40
_TONES = {"posagent": GOOD, "silent": QUIET, "listed": "", "other": WARN, "noise": WARN}


class Port(NamedTuple):
    """A port to be looked at: where it is, and what the system says of its adapter."""

    where: str
    description: str


def known_ports(entries: list[Entry]) -> list[Port]:
    """The machine's serial ports, and those of the inventory that are not among them."""
    found = [
        Port(one.device, one.description if one.description != "n/a" else "")
        for one in sorted(list_ports.comports())
    ]
    devices = {port.where for port in found}
    for entry in entries:
        place = place_of(entry.where)
        if place.kind == "serial" and place.path not in devices:
            found.append(Port(entry.where, ""))
    return found


def look(ports: list[Port], entries: list[Entry], greet: bool) -> dict[str, Any]:
    """Every port with who answers there; all at once, since most of them answer nothing."""
    names = {place_of(entry.where).path: entry.name for entry in entries}
    if not greet:
        rows = [_row(port, names, {"answer": "listed"}) for port in ports]
    else:
        with ThreadPoolExecutor(AT_ONCE_MAX) as pool:
            answers = list(pool.map(lambda port: answer_of(port.where), ports))
        rows = [_row(port, names, answer) for port, answer in zip(ports, answers)]
    return {"ports": rows}


def _row(port: Port, names: dict[str, str], answer: dict[str, Any]) -> dict[str, Any]:
    name = names.get(place_of(port.where).path)
    return {"port": port.where, "description": port.description, "name": name, **answer}


def answer_of(where: str, answer_s: float = ANSWER_S) -> dict[str, Any]:
    """Who answers at one port: `answer` is `posagent` with who it is, `other`, `noise`, `silent`,
    or why it could not be opened."""
    try:
        line = open_line(place_of(where))
    except PortError as error:
        return {"answer": error.why, "says": error.message}
    try:
        line.send(b"\x1e\n" + wire.frame(_HELLO))
        return _heard(line, answer_s)
    except HostError as error:
        return {"answer": "gone", "says": error.message}
    finally:
        line.close()


def _heard(line: Line, answer_s: float) -> dict[str, Any]:
    ear, text, damaged = SerialEar(), b"", 0
    wire_s = 10 * (wire.SERIAL_REPLY_BYTES_MAX + len(_HELLO)) / line.baud if line.baud else 0.0
    due = time.monotonic() + answer_s + wire_s
    while time.monotonic() < due:
        for one in ear.feed(line.receive(max(0.0, due - time.monotonic()))):
            if isinstance(one, Said) and "method" not in one.value:
                return _of_reply(one.value)
            damaged += isinstance(one, Damaged)
            text += one.data if isinstance(one, Text) else b""
    return _of_silence(text, damaged)


def _of_reply(said: dict[str, Any]) -> dict[str, Any]:
    result = said.get("result")
    if isinstance(result, dict) and isinstance(result.get("agent"), str):
        known = {key: result.get(key) for key in ("agent", "proto", "model", "serial", "level")}
        return {"answer": "posagent", **known}
    error = said.get("error")
    data = error.get("data") if isinstance(error, dict) else None
    if isinstance(data, dict) and "kind" in data:
        return {"answer": "posagent", "says": str(error["message"]) if error else ""}
    return {"answer": "other", "says": "it speaks in frames and is no posagent"}


def _of_silence(text: bytes, damaged: int) -> dict[str, Any]:
    odd = sum(byte > 0x7E or (byte < 0x20 and byte not in b"\r\n\t\x1b") for byte in text)
    if damaged or (text and odd * 5 > len(text)):
        return {"answer": "noise", "says": "wrong baud rate, or a bad cable"}
    if text:
        first = text.decode("ascii", "replace").strip().splitlines()
        return {"answer": "other", "says": first[0][:_SAID_CHARS_MAX] if first else ""}
    return {"answer": "silent"}


def parts_of(said: dict[str, Any]) -> list[Part]:
    """The ports as a table."""
    rows = [
        Row(
            (row["port"], clean(row["name"] or ""), clean(row["description"]), _answered(row)),
            "",
            _TONES.get(row["answer"], BAD),
        )
        for row in said["ports"]
    ]
    if not rows:
        return [Sentence("there is no serial port; plug the cable in, and look again")]
    return [Rows(("port", "name", "adapter", "who answers"), rows)]


def _answered(row: dict[str, Any]) -> str:
    if row["answer"] == "posagent" and row.get("agent"):
        who = f"posagent {clean(row['agent'])}, {clean(row.get('model'))}"
        return f"{who}, serial {clean(row.get('serial'))}"
    words = {"silent": "nobody", "listed": "not asked", "other": "something else"}
    word = words.get(row["answer"], row["answer"])
    return f"{word}: {clean(row['says'])}" if row.get("says") else word
