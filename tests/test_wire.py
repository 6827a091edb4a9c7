"""Frames, requests, answers, pages and the table of methods, by docs/spec/wire-protocol.md.

`tests/data/wire-vectors.json` serves both directions: what is sent gives these bytes, and these
bytes give what was sent. The table of methods and that of errors are held equal to the document.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.ground import errors
from agent.ground.codec import LINE_INT_MAX, decode_line, encode_line
from agent.ground.errors import AgentError
from agent.links import wire
from agent.links.methods import METHODS, Method, Param, check_params, method_named
from agent.links.wire import (
    ERRORS,
    ID_CHARS_MAX,
    SERIAL_REPLY_BYTES_MAX,
    SERIAL_REQUEST_BYTES_MAX,
    SOCKET_REPLY_BYTES_MAX,
    RemoteError,
    error_body,
    frame,
    from_agent_error,
    notification_body,
    page,
    parse_request,
    remote,
    result_body,
    socket_line,
    unframe,
)

TESTS = Path(__file__).parent
VECTORS = json.loads((TESTS / "data" / "wire-vectors.json").read_text("utf-8"))
SPEC = (TESTS.parent / "docs" / "spec" / "wire-protocol.md").read_text("utf-8")
LONGEST_ID = '"' * ID_CHARS_MAX

bodies = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80).map(str.encode)


def latin(text: str) -> bytes:
    return text.encode("latin-1")


def named(case: dict[str, Any]) -> str:
    return str(case.get("name") or case.get("line") or case.get("body"))[:60]


def error_of(call: Callable[[], Any]) -> RemoteError | None:
    """Returns what a call raises for the peer, or None; anything else that it raises fails."""
    try:
        call()
    except RemoteError as error:
        return error
    return None


# ---- Frames


@pytest.mark.parametrize("case", VECTORS["frames"], ids=named)
def test_a_body_gives_the_frame_and_the_frame_the_body_wp_1(case: dict[str, Any]) -> None:
    assert frame(latin(case["body"])) == latin(case["frame"])
    assert unframe(latin(case["frame"])[1:-1]) == latin(case["body"])


@pytest.mark.parametrize("case", VECTORS["damaged"], ids=named)
def test_a_damaged_line_has_no_body_wp_1(case: dict[str, Any]) -> None:
    assert unframe(latin(case["line"])) is None


@given(bodies)
def test_a_frame_is_seven_bit_has_one_end_and_comes_apart_again_wp_1(body: bytes) -> None:
    framed = frame(body)
    assert framed == b"\x1e" + body + b"#%08x\n" % zlib.crc32(body)
    assert len(framed) == len(body) + wire.FRAME_EXTRA_BYTES
    assert all(0x20 <= byte <= 0x7E for byte in framed[1:-1])
    assert unframe(framed[1:-1]) == body


@given(bodies, st.data())
def test_a_flipped_lost_or_doubled_byte_never_gives_another_body_wp_1(
    body: bytes, data: st.DataObject
) -> None:
    line = frame(body)[1:-1]
    at = data.draw(st.integers(0, len(line) - 1))
    flipped = line[at] ^ (1 << data.draw(st.integers(0, 7)))
    for changed in (
        line[:at] + bytes([flipped]) + line[at + 1 :],
        line[:at] + line[at + 1 :],
        line[:at] + line[at : at + 1] + line[at:],
        line[:at],
        line[at:],
    ):
        assert unframe(changed) in (None, body)
        assert changed == line or unframe(changed) is None


@pytest.mark.parametrize("case", VECTORS["socket_lines"], ids=named)
def test_rs_and_checksum_are_optional_on_a_socket_and_checked_wp_7(case: dict[str, Any]) -> None:
    if case["body"] is not None:
        assert socket_line(latin(case["line"])) == latin(case["body"])
        return
    with pytest.raises(RemoteError) as raised:
        socket_line(latin(case["line"]))
    assert raised.value.kind == "BAD_CRC"


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3))
@example({"a": "#123456"})
@example({"a": "#bd2b7617"})
def test_every_object_is_taken_from_a_socket_with_and_without_its_checksum_wp_7(
    value: dict[str, str],
) -> None:
    body = json.dumps(value).encode()
    for line in (body, frame(body)[:-1], frame(body)[1:-1], body + b"\r"):
        assert socket_line(line) == body


# ---- Requests


@pytest.mark.parametrize("case", VECTORS["requests"], ids=named)
def test_a_line_is_a_request_an_error_or_nothing_to_answer_wp_8(case: dict[str, Any]) -> None:
    for ascii_only in [case["ascii_only"]] if "ascii_only" in case else [True, False]:
        line = latin(case["line"])
        if "error" in case:
            with pytest.raises(RemoteError) as raised:
                parse_request(line, ascii_only)
            assert raised.value.kind == case["error"]
            assert raised.value.id == case["id"]
            continue
        request = parse_request(line, ascii_only)
        if case.get("ignored"):
            assert request is None
            continue
        assert request is not None
        assert [request.id, request.method, request.params] == [
            case["id"],
            case["method"],
            case["params"],
        ]


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), st.booleans())
def test_whatever_comes_is_a_request_an_error_or_nothing_wp_8(line: bytes, ascii: bool) -> None:
    error = error_of(lambda: parse_request(line, ascii))
    if error is not None:
        assert error.kind in ("PARSE", "REQUEST")
        assert len(error_body(error.id, error)) <= SERIAL_REPLY_BYTES_MAX


def test_what_we_send_is_never_answered_when_it_comes_back_wp_8() -> None:
    for body in (result_body(7, {}), error_body(None, remote("BAD_CRC", "damaged"))):
        assert parse_request(body, ascii_only=True) is None
    with pytest.raises(RemoteError) as raised:  # an echoed event is answered once, see above
        parse_request(notification_body("alarm", {}), ascii_only=True)
    assert raised.value.id is None


# ---- Answers


@pytest.mark.parametrize("case", VECTORS["answers"], ids=named)
def test_answers_are_these_bytes_in_this_order_wp_9(case: dict[str, Any]) -> None:
    if case["what"] == "result":
        body = result_body(case["id"], case["value"])
    elif case["what"] == "error":
        error = remote(case["kind"], case["message"], **case.get("facts", {}))
        body = error_body(case["id"], error)
    else:
        body = notification_body(case["method"], case["value"])
    assert body == latin(case["body"])
    assert json.loads(body)["jsonrpc"] == "2.0"


def test_an_agent_error_keeps_its_kind_and_the_facts_that_fit_wp_10() -> None:
    error = from_agent_error(
        errors.StorageFull(
            "it needs more", need_kib=1630, fits=False, name="a", rate=0.5, rows=[1], at={"a": 1},
            path="x" * 65, huge=1 << 60, kind="other", retry="never",
        )
    )  # fmt: skip
    assert error.as_json() == {
        "code": -32021,
        "message": "it needs more",
        "data": {
            "kind": "STORAGE_ERROR",
            "changed": False,
            "retry": "later",
            "need_kib": 1630,
            "fits": False,
            "name": "a",
        },
    }


@pytest.mark.parametrize("kind", errors._FAMILY, ids=lambda kind: str(kind.code))
def test_every_error_of_the_agent_has_a_code_on_the_line_wp_10(kind: type[AgentError]) -> None:
    error = from_agent_error(kind("it went wrong"))
    assert error.code == ERRORS[error.kind][0]
    word = error.data.get("word")
    same_word = {"USAGE": "PARAMS"}.get(kind.code, kind.code)
    assert (error.kind, word) in ((same_word, None), ("REFUSED", kind.code))


facts = st.dictionaries(
    st.text("abcdefgh_", min_size=1, max_size=70),
    st.text(max_size=70) | st.integers() | st.booleans() | st.floats() | st.lists(st.integers()),
    max_size=20,
)


@given(st.text(max_size=600), facts)
@example("é" * 300, {f"name{i}": "\\" * 64 for i in range(9)})
@example("😀" * 200 + "\ud800", {"a": "😀" * 64, "b": "\ud800" * 9})
def test_any_error_fits_a_serial_reply_with_the_longest_id_wp_6(
    message: str, facts: dict[str, Any]
) -> None:
    for kind in errors._FAMILY:
        error = kind(message)
        error.facts = kind("", **{f"x{name}": value for name, value in facts.items()}).facts
        assert len(error_body(LONGEST_ID, from_agent_error(error))) <= SERIAL_REPLY_BYTES_MAX


# ---- Pages

rows = st.lists(
    st.fixed_dictionaries({"name": st.text(max_size=60), "size": st.integers(0, LINE_INT_MAX)}),
    max_size=40,
)


def read_to_the_end(rows: list[Any], bytes_max: int, **more: Any) -> list[Any]:
    """Returns what a client has that asks with `next` until there is none."""
    read: list[Any] = []
    cursor: int | None = 0
    while cursor is not None:
        result = page("rows", rows, cursor, bytes_max, **more)
        assert len(result_body(LONGEST_ID, result)) <= bytes_max
        assert result["next"] is None or result["next"] > cursor
        read += result["rows"]
        cursor = result["next"]
    return read


@given(rows, st.sampled_from([SERIAL_REPLY_BYTES_MAX, SOCKET_REPLY_BYTES_MAX]), st.text(max_size=9))
def test_pages_hold_every_row_once_in_order_and_fit_wp_6(
    rows: list[Any], bytes_max: int, more: str
) -> None:
    assert read_to_the_end(rows, bytes_max, total=len(rows), more=more) == rows


@pytest.mark.parametrize(
    "row",
    [
        {"seq": 1, "message": "x" * 5000},
        {"seq": 1, "message": "é" * 5000, "why": "\\" * 900},
        {"seq": 1, **{f"n{i}": 1 << 52 for i in range(99)}},
        ["y" * 700, "z" * 700],
        "w" * 2000,
        {"seq": 1, "inner": {"texts": ["u" * 900, "v" * 900]}},
    ],
    ids=lambda row: str(row)[:20],
)
def test_a_row_too_long_for_a_page_comes_cut_and_the_client_gets_on_wp_6(row: Any) -> None:
    read = read_to_the_end([{"a": 1}, row, {"a": 2}], SERIAL_REPLY_BYTES_MAX)
    assert len(read) == 3
    assert [read[0], read[2]] == [{"a": 1}, {"a": 2}]
    assert type(read[1]) is type(row)
    if isinstance(row, dict):
        assert read[1]["seq"] == 1


@pytest.mark.parametrize("length", range(780, 960))
def test_a_page_is_filled_to_its_last_byte_and_no_further_wp_6(length: int) -> None:
    rows = [{"a": "x" * length}, {"a": "b"}, {"a": "c"}]
    assert read_to_the_end(rows, SERIAL_REPLY_BYTES_MAX)[1:] == rows[1:]
    first = page("rows", rows, 0, SERIAL_REPLY_BYTES_MAX)
    if first["next"] is not None:  # then one row more would not have fitted, but for `next` itself
        more = {"rows": rows[: first["next"] + 1], "next": 1000}
        assert len(result_body(LONGEST_ID, more)) > SERIAL_REPLY_BYTES_MAX


def test_a_page_from_beyond_the_end_is_empty() -> None:
    assert page("rows", [1, 2], 2, 1024) == {"rows": [], "next": None}
    assert page("rows", [], 0, 1024, worst="ok") == {"rows": [], "next": None, "worst": "ok"}


# ---- Methods and their parameters

OP = "2026-11-27-a"
RIGHT: dict[str, list[dict[str, Any]]] = {
    "hello": [{"proto": [1]}, {"proto": [1, 2], "client": "fleet/2.3", "token": "x" * 64}],
    "describe": [{}, {"method": "status"}],
    "ping": [{}],
    "status": [{}],
    "plan": [{}, {"cursor": 0}],
    "history": [{}, {"cursor": LINE_INT_MAX - 1}],
    "backups": [{}],
    "log": [{}],
    "quarantine": [{}],
    "health": [{}],
    "profile": [{}],
    "result": [{"op": OP}, {"run": 17}],
    "subscribe": [{"events": ["state"]}, {"events": ["alarm", "progress"], "min_ms": 0}],
    "unsubscribe": [{}],
    "console": [{}],
    "validate": [{}],
    "verify": [{}, {"backup": 41}, {"backup": "000041-v2.posbak"}],
    "backup": [{"op": OP}],
    "migrate": [{"op": OP, "to": 14}, {"op": OP, "to": 0, "plan": "9f3c21aa"},
                {"op": OP, "to": 9999, "despite_unsettled": True}],
    "cancel": [{"op": OP, "run": 1}],
    "read": [{"name": "bundle", "off": 0}],
    "challenge": [{"command": "restore b0041 discard 37"}],
    "code": [{"code": "D49P-C2W2"}],
    "commit": [{"op": OP}],
    "restore": [{"op": OP, "backup": "000041-v2.posbak",
                 "discard": "newer=1,changed=0,gone=0,settled=0"}],
    "rollback": [{"op": OP, "to": 12}],
    "prune": [{"op": "a_-45678", "despite_unsettled": False}],
}  # fmt: skip


def refusal(method: str, params: dict[str, Any]) -> RemoteError:
    """Returns the error that these parameters get; it fits a serial line, whatever they are."""
    with pytest.raises(RemoteError) as raised:
        check_params(METHODS[method], params)
    assert len(error_body(LONGEST_ID, raised.value)) <= SERIAL_REPLY_BYTES_MAX
    return raised.value


def test_every_method_takes_its_parameters_as_they_are_wp_11() -> None:
    assert RIGHT.keys() == METHODS.keys()
    for name, calls in RIGHT.items():
        for params in calls:
            taken = check_params(METHODS[name], params)
            assert taken == params
            assert taken is not params


@pytest.mark.parametrize("to", ["14", 14.0, -1, 10000, True, None, [14], {"to": 14}, LINE_INT_MAX])
@pytest.mark.parametrize("method", ["migrate", "rollback"])
def test_a_version_that_is_no_small_whole_number_is_named_with_what_may_be_wp_11(
    method: str, to: Any
) -> None:
    error = refusal(method, {"op": OP, "to": to})
    assert error.kind == "PARAMS"
    assert error.message.startswith("to must be a whole number from 0 to 9999, not ")
    assert error.data["param"] == "to"
    assert error.data["allowed"] == "a whole number from 0 to 9999"


def test_a_number_that_json_has_no_word_for_is_refused_before_it_is_a_parameter_wp_8() -> None:
    for to in (b"1e400", b"NaN", b"-Infinity", b"014", b"+14"):
        line = b'{"jsonrpc":"2.0","id":7,"method":"migrate","params":{"op":"%b","to":%b}}'
        with pytest.raises(RemoteError) as raised:
            parse_request(line % (OP.encode(), to), ascii_only=True)
        assert raised.value.kind == "PARSE"


@pytest.mark.parametrize(
    ("method", "params", "kind", "word"),
    [
        ("migrate", {"op": OP, "to": 14, "forse": True}, "PARAMS", "'forse'"),
        ("migrate", {"op": OP, "to": 14, "Plan": "9f3c21aa"}, "PARAMS", "nearest: plan"),
        ("ping", {"x": 1}, "PARAMS", "takes no parameters"),
        ("migrate", {"to": 14}, "OP_MISSING", "migrate needs op: a text of 8 to 36"),
        ("migrate", {"op": OP}, "PARAMS", "migrate needs to"),
        ("backup", {"op": "short"}, "PARAMS", "op must be a text of 8 to 36"),
        ("backup", {"op": "x" * 37}, "PARAMS", "op must be"),
        ("backup", {"op": "with blank"}, "PARAMS", "op must be"),
        ("backup", {"op": "umlautäöü"}, "PARAMS", "op must be"),
        ("backup", {"op": 12345678}, "PARAMS", "not 12345678"),
        ("result", {}, "PARAMS", "exactly one of op or run"),
        ("result", {"op": OP, "run": 1}, "PARAMS", "exactly one of op or run"),
        ("result", {"run": 0}, "PARAMS", "from 1 on, not 0"),
        ("history", {"cursor": -1}, "PARAMS", "from 0 on"),
        ("subscribe", {"events": []}, "PARAMS", "progress, state, alarm"),
        ("subscribe", {"events": ["state", "state"]}, "PARAMS", "each once"),
        ("subscribe", {"events": ["states"]}, "PARAMS", "progress, state, alarm"),
        ("subscribe", {"events": [["state"]]}, "PARAMS", "progress, state, alarm"),
        ("subscribe", {"events": "state"}, "PARAMS", "progress, state, alarm"),
        ("hello", {"proto": []}, "PARAMS", "a list of 1 to 8"),
        ("hello", {"proto": ["1"]}, "PARAMS", "a list of 1 to 8"),
        ("hello", {"proto": 1}, "PARAMS", "a list of 1 to 8"),
        ("verify", {"backup": 0}, "PARAMS", "or a text"),
        ("restore", {"op": OP, "backup": "a\x00b"}, "PARAMS", "printable"),
        ("restore", {"op": OP, "backup": ""}, "PARAMS", "a text of 1 to 64"),
        ("prune", {"op": OP, "despite_unsettled": 1}, "PARAMS", "true or false, not 1"),
        ("read", {"name": "bundle"}, "PARAMS", "read needs off"),
        ("describe", {"method": "x" * 900}, "PARAMS", "'..."),
    ],
)
def test_wrong_parameters_are_told_by_name_wp_11(
    method: str, params: dict[str, Any], kind: str, word: str
) -> None:
    error = refusal(method, params)
    assert (error.kind, word in error.message) == (kind, True), error.message


def test_what_is_secret_is_not_told_back_wp_12() -> None:
    for method, name in (("code", "code"), ("hello", "token")):
        params: dict[str, Any] = {**RIGHT[method][0], name: "SECRET\x01" * 40}
        assert "SECRET" not in json.dumps(refusal(method, params).as_json())


@given(
    st.sampled_from(sorted(METHODS)),
    st.dictionaries(
        st.sampled_from(sorted({name for method in METHODS.values() for name in method.params}))
        | st.text(max_size=90),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200)
        | st.lists(st.integers() | st.text(max_size=9), max_size=3),
        max_size=4,
    ),
)  # fmt: skip
def test_any_parameters_are_taken_or_refused_in_a_reply_that_fits_wp_11(
    method: str, params: dict[str, Any]
) -> None:
    error = error_of(lambda: check_params(METHODS[method], params))
    if error is not None:
        assert error.kind in ("PARAMS", "OP_MISSING")
        assert len(error_body(LONGEST_ID, error)) <= SERIAL_REPLY_BYTES_MAX


def test_an_unknown_method_is_told_the_nearest_one_wp_11() -> None:
    assert method_named("status") is METHODS["status"]
    with pytest.raises(RemoteError) as raised:
        method_named("stauts")
    assert (raised.value.kind, raised.value.data["nearest"]) == ("METHOD", "status")
    with pytest.raises(RemoteError) as raised:
        method_named("\x00" * 900)
    assert len(error_body(LONGEST_ID, raised.value)) <= SERIAL_REPLY_BYTES_MAX


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: str(method.name))
def test_a_method_describes_itself_in_one_serial_reply_wp_6(method: Method) -> None:
    body = result_body(LONGEST_ID, method.as_json())
    assert len(body) <= SERIAL_REPLY_BYTES_MAX
    told = decode_line(body.decode())["result"]
    assert list(told["params"]) == list(method.params)
    assert method.level in ("read", "tech", "admin")
    assert method.says.endswith(".")


def test_what_changes_something_needs_an_op_and_more_than_reading_wp_13() -> None:
    for method in METHODS.values():
        assert method.changes == (method.params.get("op", Param("flag")).required and
                                  "op" in method.params)  # fmt: skip
        assert not method.changes or method.level != "read"
    changing = [name for name, method in METHODS.items() if method.changes]
    assert changing == ["backup", "migrate", "cancel", "commit", "restore", "rollback", "prune"]


def test_the_longest_request_of_each_method_fits_a_serial_line_wp_6() -> None:
    for method in METHODS.values():
        params = {name: longest(param) for name, param in method.params.items()}
        call = {"jsonrpc": "2.0", "id": LONGEST_ID, "method": method.name, "params": params}
        assert len(encode_line(call)) <= SERIAL_REQUEST_BYTES_MAX


def longest(param: Param) -> Any:
    """Returns a value of the parameter that takes the most bytes."""
    if param.kind == "op":
        return "x" * 36
    if param.kind == "text":
        return '"' * param.chars_max
    if param.kind == "ints":
        return [param.high] * 8
    if param.kind == "words":
        return list(param.choices)
    if param.kind == "any_of":
        return longest(param.alternatives[-1])
    return False if param.kind == "flag" else param.high


# ---- The document


def table_rows(heading: str) -> list[list[str]]:
    """Returns the cells of the tables below a heading of the document."""
    section = SPEC.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ") for line in section.splitlines() if line.startswith("|")]
    return [re.split(r" *\| *", line) for line in lines if not set(line) <= set("-| ")]


def test_the_document_lists_the_errors_as_they_are() -> None:
    told = {row[0]: (int(row[1]), row[2]) for row in table_rows("Errors") if row[1][:1] == "-"}
    assert told == ERRORS


def test_the_document_lists_the_methods_as_they_are() -> None:
    told = {}
    table = [row for row in table_rows("Methods") if len(row) == 5]
    for name, level, params, changes, _says in table[1:]:
        names = [] if params == "-" else params.replace(" or", ",").split(", ")
        told[name] = (level, names, changes == "yes")
    expected = {}
    for name, method in METHODS.items():
        names = [
            key + ("" if param.required or method.one_of else "?")
            for key, param in method.params.items()
        ]
        expected[name] = (method.level, names, method.changes)
    assert told == expected
    explained = [row[0] for row in table_rows("Methods") if len(row) == 2][1:]
    names_taken = {key for method in METHODS.values() for key in method.params}
    assert explained == sorted(names_taken - {"op", "run", "method"})


def test_each_promise_of_the_document_is_held_by_a_test_that_says_so() -> None:
    promised = set(re.findall(r"\*\*(WP-\d+)\*\*", SPEC))
    sources = [path.read_text("utf-8") for path in TESTS.glob("test_*.py")]
    held = {f"WP-{n}" for source in sources for n in re.findall(r"_wp_(\d+)\b", source)}
    assert promised == held
