"""Whole texts out of pieces: reports, results and files that a terminal hands out by `read`.

The agent's digest of the whole stands in each piece; what does not belong together is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from binascii import a2b_base64
from typing import Any, Callable

from posctl.faults import AgentRefused, HostError, KeptChanging
from posctl.link import Link

# The agent gives a report two minutes; a little later it has its own reason.
REPORT_S = 150.0
_PAUSE_S = 0.05  # the agent waits for the answer, too, before it says that there is none yet
_TRIES_MAX = 5  # of a text that is another one with each piece
_FAILURES_MAX = 2  # of a report that may succeed later


def ask(
    link: Link,
    method: str,
    params: dict[str, Any] | None = None,
    patience_s: float = REPORT_S,
) -> dict[str, Any]:
    """A call whose answer takes the agent a while: asked again as long as it is being worked out.

    While a run is on there are no reports; that no is raised at once, with the run's number.
    """
    give_up_at = time.monotonic() + patience_s
    failures = 0
    while True:
        try:
            return link.call(method, params)
        except AgentRefused as error:
            if error.retry != "later" or time.monotonic() > give_up_at:
                raise
            failures += error.kind != "BUSY"
            if failures > _FAILURES_MAX:
                raise
            _raise_if_a_run_is_on(link, error)
        time.sleep(_PAUSE_S)


def _raise_if_a_run_is_on(link: Link, error: AgentRefused) -> None:
    run = link.call("status").get("run")
    if run is not None:
        data = {**error.data, "run": run}
        raise AgentRefused(error.code, error.kind, error.message, data) from error


def read_json(link: Link, name: str) -> dict[str, Any]:
    """The one JSON object of a report or a result."""
    return _object(name, read_whole(link, name))


def read_begun(link: Link, name: str) -> dict[str, Any]:
    """The same of a report that was begun before. Raises AgentRefused BUSY until it is there.

    Who asks for its first byte asks for a new one, unless nobody got it before. So that is left
    out: it can only be the brace of an object, and the digest tells whether it was.
    """
    return _object(name, read_whole(link, name, known=b"{", patience_s=0))


def _object(name: str, data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise HostError(f"{name} is no object; report it")
    return value


def read_whole(
    link: Link,
    name: str,
    told: Callable[[int, int], None] = lambda done, total: None,
    known: bytes = b"",
    patience_s: float = REPORT_S,
) -> bytes:
    """All of it, with its digest checked; `known` are its first bytes, which are not asked for.
    `told` gets (bytes so far, bytes in all)."""
    for _ in range(_TRIES_MAX):
        data = _read_once(link, name, told, known, patience_s)
        if data is not None:
            return data
    raise KeptChanging(f"{name} changed with each piece; ask again when the terminal is quieter")


def _read_once(
    link: Link, name: str, told: Callable[[int, int], None], known: bytes, patience_s: float
) -> bytes | None:
    """The same, or None when the pieces did not belong together."""
    data, digest = bytearray(known), ""
    while True:
        piece = ask(link, "read", {"name": name, "off": len(data)}, patience_s)
        digest = digest or piece["sha256"]
        if piece["sha256"] != digest:
            return None
        part = a2b_base64(piece["data"])
        data += part
        told(len(data), piece["len"])
        if len(data) >= piece["len"] or not part:
            break
    return bytes(data) if hashlib.sha256(data).hexdigest() == digest else None


def keep(data: bytes, path: str) -> None:
    """Write a file that is whole or not there."""
    beside = path + ".part"
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
