"""JSON in and out: nothing that a step does not touch may change, and nothing is guessed.

The same rows go through the C scanner, the package `json`, and the package's scanner in Python, as
another interpreter would use it. The judge of equality is the independent reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from json.scanner import py_make_scanner
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ground import codec
from agent.ground.codec import DEPTH_MAX, Number, decode, encode
from tests.independent_reader import same_value

# Each takes a text; what comes back must be the same value, digit for digit.
KEPT = [
    "0", "-0", "-0.0", "10.50", "1e3", "1E3", "1e+3", "1.0", "-1.5e-7", "0.1", "1e400", "-1e400",
    "123456789012345678901234567890", "-9223372036854775809", "1e-400", "3.141592653589793238",
    '""', '"é €"', '"\\u00e9"', '"\\ud83d\\ude00"', '"😀"', '"\\u0000"', '"\\"\\\\\\/\\n"',
    "null", "true", "false", "[]", "{}", '[[],{"":[]}]', ' \n{"a" : 1 }\t',
    '{"a":"b:c","d":{"a":"x"}}', '{"\\u0061":1,"b":":"}', '{"b":1,"a":10.50,"c":[-0,1e3]}',
    '"\ufdd0"', '["\ufdd0",10.50,"\ufdd1",-0]', '{"\ufdd0":10.50}',
]  # fmt: skip
REFUSED = [
    "", " ", "nul", "NaN", "Infinity", "-Infinity", "[NaN]", "+1", "01", "1.", ".5", "1e", "--1",
    "{", "[1,]", '{"a":1,}', '{"a"}', "{'a':1}", '{"a":1}}', "1 2", '"\x01"', '"\\x"', "\ufeff{}",
    '{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '{"o":{"b":1,"c":2,"b":3}}', '[{"k":":","k":":"}]',
    '"\\ud800"', '"\\uDFFF"', '{"\\ud800":1}', '"\\ud800\\u0041"', "undefined", "{1:2}",
]  # fmt: skip


def python_readers() -> tuple[Any, Any]:
    """The package with its scanner and encoder in Python, as where there is no C code at all."""

    def scanner(context: Any) -> Any:
        class Decoder(json.JSONDecoder):
            pass

        decoder = Decoder(
            object_hook=context.object_hook,
            object_pairs_hook=context.object_pairs_hook,
            parse_float=context.parse_float,
            parse_int=context.parse_int,
            parse_constant=context.parse_constant,
        )
        decoder.parse_object = json.decoder.JSONObject
        decoder.parse_string = json.decoder.py_scanstring
        return py_make_scanner(decoder)

    return scanner, codec._package_readers()[1]


@pytest.fixture(params=["c", "package", "python"], autouse=True)
def readers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test below with each of the readers that `codec` may stand on."""
    made = {
        "c": codec._c_readers,
        "package": codec._package_readers,
        "python": python_readers,
    }[request.param]()
    names = ("_scanner", "_writer", "_scan", "_scan_minus_zero", "_scan_strictly")
    before = {name: getattr(codec, name) for name in (*names, "_write", "_literals")}
    scanner, codec._writer = made
    codec._scanner = scanner
    codec._scan_minus_zero = scanner(codec._Context)
    codec._scan = scanner(codec._ContextWithoutMinusZero)
    codec._scan_strictly = scanner(codec._StrictContext)
    codec._write, codec._literals = codec._literal_writer(codec._MARKS[0])
    yield
    for name, value in before.items():
        setattr(codec, name, value)


@pytest.mark.parametrize("text", KEPT)
def test_a_text_that_is_read_and_written_keeps_its_value(text: str) -> None:
    assert same_value(encode(decode(text)), text)


@pytest.mark.parametrize("text", REFUSED)
def test_what_two_readers_could_take_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words differ by reader, the kind must not
        decode(text)


def test_an_error_holds_no_part_of_the_text() -> None:
    for text in ('{"pan":"4111111111111111"', '{"pan":4111111111111111 x}', '"4111\\q"'):
        with pytest.raises(ValueError, match=r"^[^4]*") as caught:
            decode(text)
        assert "4111" not in str(caught.value)
        assert not hasattr(caught.value, "doc")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_bounded_and_brackets_in_strings_do_not_count(opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    text = opening * 20 + "1" + closing * 20
    assert same_value(encode(decode(text, 20)), text)
    with pytest.raises(ValueError, match="deeper than 19"):
        decode(text, 19)
    assert decode('["' + "[{" * 500 + '\\"[["]', 1)
    with pytest.raises(ValueError, match=f"deeper than {DEPTH_MAX}"):
        decode("[" * 100_000 + "]" * 100_000)


def test_integers_have_every_digit_and_no_float_comes_between() -> None:
    for number in (2**63, -(2**64) - 1, 10**300 + 7):
        assert decode(str(number)) == number
        assert encode({"n": number}) == f'{{"n":{number}}}'


def test_a_literal_survives_beside_changed_fields() -> None:
    record = decode('{"a":10.50,"b":[1e3,-0,{"c":1.10}],"d":1}')
    record["d"] = 2
    assert encode(record) == '{"a":10.50,"b":[1e3,-0,{"c":1.10}],"d":2}'


def test_a_number_literal_computes_like_a_number() -> None:
    price = decode("10.50")
    assert isinstance(price, Number)
    assert (price * 2, 2 * price, price + 1, 1 - price, price / 2) == (21.0, 21.0, 11.5, -9.5, 5.25)
    assert price == 10.5
    assert round(price) == 10
    assert price > 10
    assert -price < 0
    assert bool(decode("-0")) is False


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]])
def test_what_is_no_json_number_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each reader has its own words
        encode(value)


@pytest.mark.parametrize("value", [b"x", {1, 2}, object()])
def test_what_json_has_no_word_for_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value)
    assert encode([Number("1.0"), "ok"]) == '[1.0,"ok"]'  # and leaves nothing behind


def test_a_value_that_holds_every_mark_is_refused_and_all_but_one_is_not() -> None:
    marks = list(codec._MARKS)
    assert decode(encode([*marks[1:], Number("1.50")]))[-1] == 1.5
    with pytest.raises(ValueError, match="every mark"):
        encode([*marks, Number("1.50")])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1", "1", True),
        ("1", "true", False),
        ("0", "false", False),
        ("1", "1.0", False),
        ("10.50", "10.50", True),
        ("10.50", "10.5", False),
        ("0.0", "-0.0", False),
        ("0", "-0", False),
        ('{"a":1,"b":2}', '{"b":2,"a":1}', True),
        ('{"a":null}', "{}", False),
        ("[1,2]", "[2,1]", False),
        ("[1]", "[1,1]", False),
        ('"1"', "1", False),
    ],
)
def test_values_are_the_same_only_literal_by_literal(a: str, b: str, same: bool) -> None:
    assert codec.same_value(decode(a), decode(b)) is same
    assert codec.same_value(decode(b), decode(a)) is same


NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?\Z"),
)
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def dump(value: Any, escape: bool) -> str:
    """Our own writer of random texts: literals as drawn, strings escaped or not."""
    if isinstance(value, tuple):
        return str(value[0])
    if isinstance(value, list):
        return f"[{' ,'.join(dump(v, escape) for v in value)}]"
    if isinstance(value, dict):
        pairs = (
            f"{json.dumps(k, ensure_ascii=escape)} :{dump(v, escape)}" for k, v in value.items()
        )
        return "{" + ",".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=escape)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), STRINGS, NUMBERS.map(lambda text: (text,))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=15,
)


@pytest.mark.parametrize("escape", [True, False])
def test_any_text_is_read_and_written_without_changing_its_value(escape: bool) -> None:
    @given(VALUES)
    def holds(value: Any) -> None:
        text = dump(value, escape)
        assert same_value(encode(decode(text)), text)
        assert codec.same_value(decode(encode(decode(text))), decode(text))

    holds()


def test_a_text_with_a_bite_taken_out_is_refused_or_another_value() -> None:
    """Never a crash of another kind: the run reads records that a dying application wrote."""

    @given(VALUES, st.data())
    def holds(value: Any, data: st.DataObject) -> None:
        text = dump(value, False)
        at = data.draw(st.integers(0, len(text)))
        try:
            encode(decode(text[:at] + text[at + 1 :]))
        except ValueError:
            pass

    holds()
