"""The fast ways give what the plain ones give: appending, looking before reading, counting keys.

Each of them stands in for something slower that is still there, so each is held against it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.appending import Appender, only_appends
from agent.core.ledger import Ledger
from agent.core.meaning import run_pass
from agent.core.migration import DEVICE_ID, FROM_VERSION, NOW, Migration, set_field
from agent.core.plan import Pass, Plan
from agent.core.stores import Store
from agent.ground.codec import decode, encode, same_value

NAMES = ("schemaVersion", "updatedAt", "metadata", "amount", "")
PLAN = Plan(
    [
        Migration(
            1, "one", [set_field("s", "schemaVersion", 1), set_field("s", "updatedAt", NOW)], "", ""
        ),
        Migration(
            2,
            "two",
            [
                set_field(
                    "s", "metadata", {"at": NOW, "by": [DEVICE_ID, FROM_VERSION]}, if_missing=True
                ),
                set_field("s", "schemaVersion", 2),
                set_field("s", "updatedAt", "never", if_missing=True),
            ],
            "",
            "",
        ),
    ],
    0,
    "",
)
CONTEXTS = PLAN.bind(1_790_000_000_000, "device_1", {})
STEPS = PLAN.passes[0].steps

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
records = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), values) | values


def plain(text: str) -> tuple[str, Ledger]:
    """What the plain reading of the steps makes of a text, and keeps for its way back."""
    record, ledger = decode(text), Ledger()
    changed = run_pass(Pass("walk", "s", STEPS), "k", record, CONTEXTS, ledger)
    return encode(record) if changed else text, ledger


def appended(text: str) -> str | None:
    """What appending makes of it."""
    return Appender(STEPS, CONTEXTS).appended(text, decode(text))


@given(records, st.booleans(), st.sampled_from(("", " ", "\n")))
def test_appending_gives_the_value_that_the_plain_reading_gives(
    record: Any, escaped: bool, space: str
) -> None:
    text = space + json.dumps(record, ensure_ascii=escaped) + space
    fast = appended(text)
    slow, ledger = plain(text)
    assert fast is None or (same_value(decode(fast), decode(slow)) and not ledger.entries)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"a":10.50}',
            '{"a":10.50,"schemaVersion":2,"updatedAt":1790000000000,'
            '"metadata":{"at":1790000000000,"by":["device_1",1]}}',
        ),
        (
            '{ "metadata" : null }',
            '{ "metadata" : null ,"schemaVersion":2,"updatedAt":1790000000000}',
        ),
        ('{"schemaVersion":1}', None),
        ('{"schema\\u0056ersion":1}', None),
        ("{}", None),
        ('{"a":1} ', None),
        ('"a string"', '"a string"'),
        ("[1,2]", "[1,2]"),
    ],
)
def test_appending_keeps_every_byte_or_leaves_the_record_to_the_plain_reading(
    text: str, expected: str | None
) -> None:
    assert appended(text) == expected


def test_a_pass_with_any_other_step_is_left_to_the_plain_reading() -> None:
    assert only_appends(STEPS)
    assert not only_appends([*STEPS, (2, set_field("s", "a.b", 1))])
    assert not only_appends([*STEPS, (2, set_field("s", "a", 1, key="one record"))])


RULES = {
    "unsettled": [
        {"key": "queue"},
        {"key_prefix": "failed_"},
        {"field": "status", "values": ["pending", "à payer"]},
    ]
}
words = st.sampled_from(("pending", "à payer", "done", "queue", "failed_1", "status"))


@given(
    st.dictionaries(words | st.text(max_size=3), words | values, max_size=4) | values,
    words | st.text(max_size=8),
    st.booleans(),
)
def test_a_record_passed_over_unread_is_never_an_unsettled_one(
    record: Any, key: str, escaped: bool
) -> None:
    store = Store("s", RULES)
    text = json.dumps(record, ensure_ascii=escaped)
    if store.unsettled_rule(key, decode(text)) is not None:
        assert store.may_be_unsettled(key, text)


@pytest.mark.parametrize("value", [1, True, None, 'a"b', "a\\b", "a\nb"])
def test_rules_on_what_could_be_written_in_several_ways_pass_over_no_record(value: Any) -> None:
    store = Store("s", {"unsettled": [{"field": "status", "values": [value]}]})
    assert store.may_be_unsettled("k", "{}")


@given(st.lists(st.tuples(words | st.text(alphabet='a:"{', max_size=3), values), max_size=4))
def test_a_key_that_stands_twice_is_found_whatever_colons_the_texts_hold(
    pairs: list[tuple[str, Any]],
) -> None:
    text = "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in pairs) + "}"
    nested = f'[{{"x":{text}}},":"]'
    if len({key for key, _ in pairs}) == len(pairs):
        assert decode(nested)[0]["x"].keys() == dict(pairs).keys()
    else:
        with pytest.raises(ValueError, match="twice"):
            decode(nested)
