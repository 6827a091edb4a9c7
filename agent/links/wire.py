"""Requests in, results, errors and notifications out: JSON-RPC 2.0, one object per line.

Pure: bytes to values and back, by docs/spec/wire-protocol.md. On a serial line a frame carries a
CRC-32, since one lost byte turns most JSON texts into other valid ones; on a socket it may.
"""

from __future__ import annotations

import binascii

from agent.ground.codec import LINE_INT_MAX, UnfitForLine, decode_line, encode_line
from agent.ground.errors import printable
from agent.ground.words import nearest, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Union

    from agent.ground.errors import AgentError

    Id = Union[int, str, None]

RS = 0x1E  # ASCII "record separator": no key of a terminal program sends it, no text holds it
LF = 0x0A
CR = 0x0D

# Bytes of the JSON text itself; a frame has FRAME_EXTRA_BYTES more.
SERIAL_REQUEST_BYTES_MAX = 1024  # over a second at 9600 baud, in which nobody else is heard
SERIAL_REPLY_BYTES_MAX = 1024
SOCKET_REQUEST_BYTES_MAX = 4096
SOCKET_REPLY_BYTES_MAX = 8192
CHECK_BYTES = 9  # "#" and eight hexadecimal digits
FRAME_EXTRA_BYTES = 11  # RS, those nine, LF

ID_CHARS_MAX = 36  # a UUID as text
MESSAGE_CHARS_MAX = 200
# A character beyond ASCII takes six or twelve bytes. The sentence and what travels beside it leave
# room for the longest id and the frame of a reply on a serial line.
MESSAGE_BYTES_MAX = 400
FACTS_BYTES_MAX = 340
FACT_CHARS_MAX = 64

# Kind -> code on the line, and what a client that repeats the request may hope for: "same-op" the
# very same request heals it, "later" it may once something else has ended, "never" it will not.
ERRORS = {
    "PARSE": (-32700, "never"),
    "REQUEST": (-32600, "never"),
    "METHOD": (-32601, "never"),
    "PARAMS": (-32602, "never"),
    "INTERNAL": (-32603, "later"),
    "BAD_CRC": (-32001, "same-op"),
    "TOO_LONG": (-32002, "never"),
    "BUSY": (-32003, "later"),
    "NOT_ALLOWED": (-32004, "never"),
    "CODE_WRONG": (-32005, "never"),
    "LOCKED": (-32006, "later"),
    "OP_REUSED": (-32007, "never"),
    "OP_MISSING": (-32007, "never"),
    "PLAN_CHANGED": (-32008, "never"),
    "NO_SUCH": (-32009, "never"),
    "UNSETTLED": (-32010, "never"),
    "VALIDATION_ERROR": (-32020, "never"),
    "STORAGE_ERROR": (-32021, "later"),
    "TIMEOUT": (-32022, "later"),
    "BACKUP_CORRUPT": (-32023, "never"),
    "SCHEMA_TOO_NEW": (-32024, "never"),
    # All other ends of a run or a command; data.word is the agent's own code word.
    "REFUSED": (-32025, "never"),
}

# The agent's own words that are kinds on the line under the same or another name.
_KINDS = {
    "BUSY": "BUSY",
    "STORAGE_ERROR": "STORAGE_ERROR",
    "TIMEOUT": "TIMEOUT",
    "SCHEMA_TOO_NEW": "SCHEMA_TOO_NEW",
    "BACKUP_CORRUPT": "BACKUP_CORRUPT",
    "VALIDATION_ERROR": "VALIDATION_ERROR",
    "UNSETTLED": "UNSETTLED",
    "USAGE": "PARAMS",
    "INTERNAL": "INTERNAL",
}

_REQUEST_MEMBERS = ("jsonrpc", "id", "method", "params")
# The longest id as it is written: each of its characters may need a backslash.
_LONGEST_ID = "\\" * ID_CHARS_MAX


class RemoteError(Exception):
    """What a peer is told when its call fails: a code, a sentence, and facts under `data`.

    `id` names the request that failed as far as it could be read, for the answer to carry.
    """

    __slots__ = ("code", "data", "id", "kind", "message")

    def __init__(self, kind: str, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.code, retry = ERRORS[kind]
        self.kind = kind
        self.message = bounded(message, MESSAGE_CHARS_MAX, MESSAGE_BYTES_MAX)
        self.data: dict[str, Any] = {"kind": kind, "changed": False, "retry": retry, **facts}
        self.id: Id = None

    def as_json(self) -> dict[str, Any]:
        """The object that stands under `error` in the answer."""
        return {"code": self.code, "message": self.message, "data": self.data}


def remote(kind: str, message: str, **facts: Any) -> RemoteError:
    """An error of a kind of ERRORS; `facts` stand in its data and may replace `retry`."""
    return RemoteError(kind, message, facts)


def from_agent_error(error: AgentError) -> RemoteError:
    """The same failure for a peer: what kind it is there, and those of its facts that fit.

    Whole numbers, short texts and truths go along while there is room; lists, nested objects and
    fractions stay behind. An error of the agent leaves all as it was, so `changed` stays false.
    """
    kind = _KINDS.get(error.code, "REFUSED")
    facts: dict[str, Any] = {"word": error.code} if kind == "REFUSED" else {}
    kept = {"kind", "changed", "retry", "word"}
    room = FACTS_BYTES_MAX
    for name, value in error.facts.items():
        if name in kept or not _is_short(name) or not _is_plain(value):
            continue
        room -= len(encode_line({name: value}))
        if room < 0:
            break
        facts[name] = value
    return RemoteError(kind, error.message, facts)


def _is_short(text: str) -> bool:
    return len(text) <= FACT_CHARS_MAX


def _is_plain(value: Any) -> bool:
    if type(value) is str:
        return _is_short(value)
    return type(value) is bool or (type(value) is int and abs(value) <= LINE_INT_MAX)


def bounded(text: str, chars_max: int, bytes_max: int) -> str:
    """`text` cut, with dots at its end, to both bounds; bytes are counted as they are written."""
    text = printable(text)
    if len(text) <= chars_max and _written_bytes(text) <= bytes_max:
        return text
    text = text[: max(0, chars_max - 3)]
    while text and _written_bytes(text) > bytes_max - 3:
        text = text[: len(text) * 9 // 10]
    return text + "..."


def _written_bytes(text: str) -> int:
    return len(encode_line(text)) - 2


# ---- Frames


def frame(body: bytes) -> bytes:
    """The frame of a serial line: RS, the JSON text, its checksum, LF."""
    return b"\x1e%b#%08x\n" % (body, binascii.crc32(body))


def unframe(line: bytes) -> bytes | None:
    """The body of a line without RS and LF; None where its checksum is absent or wrong."""
    body = line[:-CHECK_BYTES]
    return body if line[-CHECK_BYTES:] == b"#%08x" % binascii.crc32(body) else None


def socket_line(line: bytes) -> bytes:
    """The body of a socket's line, without its LF: RS and checksum may be there or not.

    Raises RemoteError BAD_CRC for a checksum that is there and wrong.
    """
    line = line.rstrip(b"\r")
    if line[:1] == b"\x1e":
        line = line[1:]
    # A JSON object ends with "}" and a checksum never does, so an object whose last text happens
    # to have a "#" there is not taken for one.
    if line[-CHECK_BYTES : 1 - CHECK_BYTES] != b"#" or line.endswith(b"}"):
        return line
    body = unframe(line)
    if body is None:
        raise remote("BAD_CRC", "the line was damaged on its way; send it again")
    return body


# ---- Requests


class Request:
    """One call: who waits for the answer (`id`), the method's name and its parameters."""

    __slots__ = ("id", "method", "params")

    def __init__(self, id: Id, method: str, params: dict[str, Any]) -> None:
        self.id = id
        self.method = method
        self.params = params


def parse_request(body: bytes, ascii_only: bool) -> Request | None:
    """The request that a line holds; None for an object without `method`: nothing to answer.

    Such an object is somebody's reply, most often our own in an echo; answering it would make two
    agents on one line talk for ever. Raises RemoteError PARSE for what is not JSON and REQUEST for
    what is no request, with the request's id where it could be read.
    """
    value = _decoded(body, ascii_only)
    if type(value) is not dict:
        what = "batches are not served" if type(value) is list else "a request is an object"
        raise remote("REQUEST", f"{what}; send one object per line")
    if "method" not in value:
        return None
    try:
        return _request(value)
    except RemoteError as error:
        error.id = value["id"] if _is_id(value.get("id")) else None
        raise


def _decoded(body: bytes, ascii_only: bool) -> Any:
    try:
        text = body.decode("ascii" if ascii_only else "utf-8")
    except UnicodeDecodeError:
        wanted = "ASCII, with \\u escapes for all else" if ascii_only else "UTF-8"
        raise remote("PARSE", f"the line is not {wanted}") from None
    try:
        return decode_line(text)
    except UnfitForLine as error:
        raise remote("REQUEST", f"the line holds what no request may: {error}") from None
    except ValueError as error:
        raise remote("PARSE", f"the line cannot be read: {error}") from None


def _request(value: dict[str, Any]) -> Request:
    if value.get("jsonrpc") != "2.0":
        raise remote("REQUEST", 'member jsonrpc must be the text "2.0"')
    if not _is_id(value.get("id")):
        raise remote(
            "REQUEST",
            "member id must be a whole number within +-2**53 or a text of"
            f" 1 to {ID_CHARS_MAX} printable ASCII characters",
        )
    if type(value["method"]) is not str:
        raise remote("REQUEST", "member method must be a text")
    if type(value.get("params", {})) is not dict:
        raise remote("REQUEST", "member params must be an object: parameters have names here")
    for name in value:
        if name not in _REQUEST_MEMBERS:
            known = nearest(name, _REQUEST_MEMBERS)
            raise remote("REQUEST", f"a request has no member {shown(name)}; nearest: {known}")
    return Request(value["id"], value["method"], value.get("params", {}))


def _is_id(value: Any) -> bool:
    """Whether it can name a request; whole numbers are bounded by the decoder already."""
    if type(value) is str:
        return 1 <= len(value) <= ID_CHARS_MAX and value.isascii() and value.isprintable()
    return type(value) is int


# ---- Answers


def result_body(id: Id, result: Any) -> bytes:
    """The JSON text that answers request `id`."""
    return _body({"jsonrpc": "2.0", "id": id, "result": result})


def error_body(id: Id, error: RemoteError) -> bytes:
    """The JSON text that tells why request `id`, or one that could not be read (None), failed."""
    return _body({"jsonrpc": "2.0", "id": id, "error": error.as_json()})


def notification_body(method: str, params: dict[str, Any]) -> bytes:
    """The JSON text of an event, which nobody answers."""
    return _body({"jsonrpc": "2.0", "method": method, "params": params})


def _body(value: dict[str, Any]) -> bytes:
    return encode_line(value).encode("ascii")


# ---- Pages


def page(name: str, rows: list[Any], start: int, bytes_max: int, **more: Any) -> dict[str, Any]:
    """A result with those of `rows` from `start` on that fit, and `next`: where to go on, or null.

    Whoever asks with `next` as cursor until it is null sees every row once: the first row is
    always there, if need be with its texts cut. The answer fits `bytes_max` with the longest id.
    """
    # Four digits at least: `null` is as long.
    empty = {name: [], "next": max(len(rows), 1000), **more}
    room = bytes_max - len(result_body(_LONGEST_ID, empty)) + 1  # the last row has no comma
    end = start
    while end < len(rows):
        room -= len(encode_line(rows[end])) + 1
        if room < 0:
            break
        end += 1
    here = rows[start:end]
    if start < len(rows) and not here:
        here = [_cut_to_fit(rows[start], room + len(encode_line(rows[start])))]
        end = start + 1
    return {name: here, "next": end if end < len(rows) else None, **more}


def _cut_to_fit(row: Any, bytes_max: int) -> Any:
    """The row with its texts cut ever shorter, then without its last members, until it fits."""
    for chars_max in (200, 100, 50, 25, 12, 6, 3):
        shorter = _with_texts_cut(row, chars_max)
        if len(encode_line(shorter)) <= bytes_max:
            return shorter
    while isinstance(shorter, (dict, list)) and shorter and len(encode_line(shorter)) > bytes_max:
        shorter.popitem() if isinstance(shorter, dict) else shorter.pop()
    return shorter


def _with_texts_cut(value: Any, chars_max: int) -> Any:
    if type(value) is str:
        return bounded(value, chars_max, 2 * chars_max)
    if type(value) is list:
        return [_with_texts_cut(inner, chars_max) for inner in value]
    if type(value) is dict:
        return {name: _with_texts_cut(inner, chars_max) for name, inner in value.items()}
    return value
