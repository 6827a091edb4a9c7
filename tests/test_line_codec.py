"""JSON on a line: strict in the same way, to the same words, whichever library reads and writes.

Both libraries run in this process behind the same two functions; that each is chosen where it
should be is seen in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.ground import codec
from agent.ground.codec import (
    LINE_DEPTH_MAX,
    LINE_INT_MAX,
    UnfitForLine,
    decode_line,
    encode_line,
)
from tests.independent_reader import same_value

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"ujson": codec._ujson_for_lines(), "own": codec._own_for_lines()}

ACCEPTED = {
    "0": 0, "-0": 0, "7": 7, "-12": -12, "9007199254740992": 2**53, "-9007199254740992": -(2**53),
    "14.0": 14.0, "1e3": 1000.0, "1E+3": 1000.0, "-1.5e-7": -1.5e-7, "0.1": 0.1, "-0.0": -0.0,
    "1e-400": 0.0, "5e-324": 5e-324, "123456789012345678.5": 1.2345678901234568e17,
    '""': "", '"é"': "é", '"\\u00e9"': "é", '"\\u00E9"': "é", '"\\ud83d\\ude00"': "😀",
    '"😀"': "😀", '"\\u0000"': "\0", '"\\"\\\\\\/\\b\\f\\n\\r\\t"': '"\\/\b\f\n\r\t',
    '"\x7f"': "\x7f", '"a\\\\"': "a\\", '"[{:,"': "[{:,", "true": True, "false": False,
    "null": None,
    " [ ] ": [], "\t{\r}\n": {}, '{"a":1,"b":[{"a":2}]}': {"a": 1, "b": [{"a": 2}]},
    '{"a:b":":"}': {"a:b": ":"}, '{"":{"":0}}': {"": {"": 0}}, "[[[[[[]]]]]]": [[[[[[]]]]]],
    '"\ufdd0"': "\ufdd0",
}  # fmt: skip

# Text -> a word of the reason. Those with "JSON" are found by the library and worded by us.
REFUSED = {
    "": "JSON", " ": "JSON", "nul": "JSON", "nulll": "JSON", "True": "JSON", "truefalse": "JSON",
    "NaN": "JSON", "Infinity": "JSON", "[-Infinity]": "digit", "1e400": "great",
    "[-1e999]": "great",
    "1e309": "great", "01": "zero", "-01": "zero", "00": "zero", "1.": "digit", ".5": "JSON",
    "1e": "digit", "1e+": "digit", "-": "digit", "--1": "digit", "+1": "JSON", "1.e5": "digit",
    "0x10": "JSON", "1_0": "JSON", "\uff11": "JSON", "1 2": "JSON", "[]]": "JSON", "{}x": "JSON",
    "{}{}": "JSON", "[1,]": "JSON", "[,1]": "JSON", "[1 2]": "JSON", '{"a":1,}': "JSON",
    '{"a"}': "JSON", '{"a" 1}': "JSON", "{'a':1}": "JSON", "{1:2}": "JSON", "[": "JSON",
    "]": "JSON",
    '{"a":': "JSON", "[}": "JSON", '"a': "end", '"': "end", '"\\"': "end", '"\\': "end",
    '"\x01"': "control", '"\x00"': "control", '"\n"': "control", '{"a\tb":1}': "control",
    '"\\n\x1f"': "control", '"\\x"': "escape", '"\\u12"': "escape", '"\\u12g4"': "escape",
    '"\\u+123"': "escape", '"\\U0041"': "escape", '"\\ud800"': "surrogate",
    '"\\udc00"': "surrogate", '"\\ud800\\u0041"': "surrogate", '"\\ud800\\n"': "surrogate",
    '"\ud800"': "surrogate", '{"\\udfff":1}': "surrogate", '"\\ud800\\ud800"': "surrogate",
    '"\\udc00\\udc00"': "surrogate",
    "9007199254740993": "2**53", "-9007199254740993": "2**53", "1" * 5000: "2**53",
    "[18446744073709551616]": "2**53", "\ufeff{}": "JSON", "\xa01": "JSON", "\x0b1": "JSON",
    "[1]\x00": "JSON", "\x00": "JSON", "// a\n1": "JSON", "[1]#": "JSON",
}  # fmt: skip
UNFIT = {
    '{"a":1,"a":1}': "twice", '{"a":1,"\\u0061":2}': "twice",
    '[{"o":{"b":1,"c":2,"b":3}}]': "twice",
    '{"k":":","k":":"}': "twice", "[[[[[[[]]]]]]]": "nests", "[" * 4000: "nests",
    '{"a":' * 7 + "1" + "}" * 7: "nests",
}  # fmt: skip


def outcome(library: str, text: str) -> tuple[str, Any]:
    """What one library makes of a text: its value, or the kind and the words of its error."""
    codec._for_lines = LIBRARIES[library]
    try:
        return "value", decode_line(text)
    except ValueError as error:
        return type(error).__name__, str(error)


@pytest.fixture(autouse=True)
def _library_as_it_was() -> Iterator[None]:
    before = codec._for_lines
    yield
    codec._for_lines = before


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_json_allows_on_a_line_is_read_as_it_is(library: str) -> None:
    for text, value in ACCEPTED.items():
        what, read = outcome(library, text)
        assert what == "value", (text, read)
        assert codec.same_value(read, value), text


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_it_does_not_allow_is_refused_for_a_reason_without_the_text(library: str) -> None:
    for text, word in REFUSED.items():
        what, reason = outcome(library, text)
        assert (what, word in reason) == ("ValueError", True), (text[:40], what, reason)
    for text, word in UNFIT.items():
        what, reason = outcome(library, text)
        assert (what, word in reason) == ("UnfitForLine", True), (text[:40], what, reason)
    secret = '{"secret":1,"secret":2,"x":NaN}'
    assert "secret" not in outcome(library, secret)[1]


def test_both_libraries_agree_on_every_row_of_the_tables() -> None:
    for text in [*ACCEPTED, *REFUSED, *UNFIT]:
        assert repr(outcome("ujson", text)) == repr(outcome("own", text)), text[:40]


whole = st.integers(-LINE_INT_MAX, LINE_INT_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | whole | texts | st.sampled_from(["\x7f", "/", "\ufdd0", "#"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
).filter(lambda value: depth(value) <= LINE_DEPTH_MAX)


def depth(value: Any) -> int:
    """How deep lists and objects stand in one another."""
    if not isinstance(value, (list, dict)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((depth(one) for one in inner), default=0)


@given(values)
def test_what_is_written_is_read_back_and_is_the_same_bytes_from_both_libraries(value: Any) -> None:
    written = []
    for library in LIBRARIES.values():
        codec._for_lines = library
        text = encode_line(value)
        written.append(text)
        assert all(" " <= char <= "~" for char in text)
        assert codec.same_value(decode_line(text), value)
        assert same_value(json.loads(text), value)
    assert written[0] == written[1]
    assert written[0] == json.dumps(value, separators=(",", ":"))


PIECES = [
    *'{}[]:," \t\n\\/-+.eE0123456789u',
    *("true", "null", "NaN", '"a"', '"a":', '"b":1', "1.5", "\\u00", "\\ud83d", "\\ude00"),
    *("\\n", "\x00", "\x1f", "\x7f", "é", "😀", "\ud800", "1e400", "9007199254740993"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("1e00000000000000000000000000000000005")
@example("0." + "3" * 400)
def test_both_libraries_agree_on_texts_of_scrambled_pieces(text: str) -> None:
    assert repr(outcome("ujson", text)) == repr(outcome("own", text))


@given(values, st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.data())
def test_the_quick_look_at_a_plain_text_finds_what_the_close_one_finds(
    value: Any, pieces: str, data: st.DataObject
) -> None:
    written = encode_line(value)
    at = data.draw(st.integers(0, len(written)))
    for text in (written, pieces, written[:at] + pieces + written[at:]):
        members = codec._members_of_plain(text)
        assert members in (-1, codec._look_closely(text) if members >= 0 else -1)


@given(values, st.data())
def test_both_libraries_agree_on_texts_with_one_change(value: Any, data: st.DataObject) -> None:
    text = encode_line(value)
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from(["", *PIECES]))
    changed = text[:at] + put + text[at + data.draw(st.integers(0, 2)) :]
    found = outcome("ujson", changed)
    assert repr(found) == repr(outcome("own", changed))
    if found[0] == "value":  # what we take, the strictest settings of another reader take as well
        json.loads(changed, parse_constant=lambda name: pytest.fail(name))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_fractions_are_read_to_the_last_bit_by_both(number: float) -> None:
    for library in LIBRARIES:
        what, read = outcome(library, repr(number))
        assert what == "value" or abs(number) > LINE_INT_MAX
        assert what != "value" or repr(float(read)) == repr(number)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("value", "error", "word"),
    [
        (1.0, TypeError, "whole"),
        ([float("nan")], TypeError, "whole"),
        ((1, 2), TypeError, "tuple"),
        (b"a", TypeError, "bytes"),
        ({1: 2}, TypeError, "keys"),
        ({"a": {None: 1}}, TypeError, "keys"),
        (codec.Number("1.50"), TypeError, "Number"),
        (2**53 + 1, ValueError, "2**53"),
        (-(2**64), ValueError, "2**53"),
        ("\ud800", ValueError, "surrogate"),
        ([[[[[[[]]]]]]], ValueError, "nests"),
    ],
)
def test_what_a_line_has_no_form_for_is_not_written(
    library: str, value: Any, error: type[Exception], word: str
) -> None:
    codec._for_lines = LIBRARIES[library]
    with pytest.raises(error) as raised:
        encode_line(value)
    assert type(raised.value) is error
    assert word in str(raised.value)


def test_duplicates_and_depth_can_be_told_from_bad_json() -> None:
    with pytest.raises(UnfitForLine):
        decode_line('{"a":1,"a":2}')


PROGRAM = """
import sys
{before}
from agent.ground import codec
assert "ujson" not in sys.modules or sys.modules["ujson"] is None, "loaded before the first line"
codec.decode_line('{{"a":[1,"\\\\u00e9"]}}')
print(codec._for_lines[0].__module__, codec.encode_line({{"a":[1,"\\u00e9"]}}))
print("json" in sys.modules, "re" in sys.modules)
"""


@pytest.mark.parametrize(
    ("before", "chosen", "loads_json"),
    [
        ("", "ujson", False),
        ('sys.modules["ujson"] = None', "agent.ground.codec", False),
        ('sys.modules["ujson"] = sys.modules["_json"] = None', "agent.ground.codec", True),
    ],
    ids=["ujson", "without ujson", "without ujson and C scanner"],
)
def test_each_library_is_chosen_at_the_first_line_where_it_is_there(
    before: str, chosen: str, loads_json: bool
) -> None:
    site = next(path for path in sys.path if path.endswith("site-packages"))
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {site!r}]"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", paths + PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
    )
    library, written, json_loaded, _re_loaded = ran.stdout.split()
    assert (library, written) == (chosen, '{"a":[1,"\\u00e9"]}')
    assert json_loaded == str(loads_json)
