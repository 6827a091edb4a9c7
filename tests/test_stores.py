"""stores.json: what it says is money, what is refused in it, and how money is counted.

A rule that is read wrongly makes an unsettled sale look settled, so whatever can be meant in two
ways is refused.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.stores import Contract, Contracts, Counter
from agent.core.tally import AMOUNT_MAX, CURRENCIES_MAX, Tally, difference
from agent.ground.codec import decode, encode
from agent.ground.errors import MigrationsRejected

SHIPPED: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parent.parent / "migrations/stores.json").read_text()
)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The shipped document with one value put at a path of keys and numbers; ... removes it."""
    document: Any = copy.deepcopy(SHIPPED)
    inner = document
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in way:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return dict(document)


SALES = "versions/0/stores/transactions"
REFUSED = [
    ("format", 2, "format 2"),
    ("format", ..., "format None"),
    ("app_read", [0, 1], 'did you mean "app_reads"'),
    ("app_reads", ..., "not complete"),
    ("app_reads", [0], "not complete"),
    ("app_reads", [3, 0], "lowest, highest"),
    ("app_reads", ["0", "3"], "whole number"),
    ("versions", [], "begin with 0"),
    ("versions/0/since", 1, "begin with 0"),
    ("versions/0/since", "0", "whole number"),
    ("versions/0/stores", {}, "names no store"),
    ("versions/0/stores", ..., "not complete"),
    (f"{SALES}/unsetled", [], 'did you mean "unsettled"'),
    (f"{SALES}/unsettled", {}, "must be a list"),
    (f"{SALES}/unsettled", None, "must be a list"),
    (f"{SALES}/unsettled/0", {}, "one of field"),
    (f"{SALES}/unsettled/0", "key", "must be an object"),
    (f"{SALES}/unsettled/0", {"key": "a", "field": "b", "values": ["c"]}, "one of field"),
    (f"{SALES}/unsettled/0", {"key": 5}, "must be a text"),
    (f"{SALES}/unsettled/0", {"key_prefix": ""}, "must be a text"),
    (f"{SALES}/unsettled/0", {"every_record": False}, "no record fits"),
    (f"{SALES}/unsettled/0", {"every_record": "yes"}, "true or false"),
    (f"{SALES}/unsettled/0", {"field": "status"}, "together"),
    (f"{SALES}/unsettled/0", {"key": "a", "values": ["b"]}, "together"),
    (f"{SALES}/unsettled/0", {"field": "status", "values": "pending"}, "must be a list"),
    (f"{SALES}/unsettled/0", {"field": "status", "values": []}, "must be texts"),
    (f"{SALES}/unsettled/0", {"field": "status", "values": [1.5]}, "must be texts"),
    (f"{SALES}/unsettled/0", {"field": "", "values": ["a"]}, "must be a text"),
    (f"{SALES}/unsettled/0", {"field": "a..b", "values": ["a"]}, "no path"),
    (f"{SALES}/amount", ["amount"], "must be a text"),
    (f"{SALES}/timestamps", "timestamp", "must be a list"),
    (f"{SALES}/bytes_exact", "false", "true or false"),
    ("versions/0/device_id/store", "metdata", 'did you mean "metadata"'),
    ("versions/0/device_id/key", ..., "not complete"),
    ("versions/0/counters/0/store", "meta", "no store"),
    ("versions/0/counters/0/used_in/store", "sales", "no store"),
    ("versions/0/counters/0/field", None, "must be a text"),
    ("versions/0/counters/0/wraps_after", "999999", "whole number"),
    ("versions/0/counters/0/steps", 1, "did you mean"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "word"), REFUSED)
def test_what_stores_json_may_not_say_is_refused_with_the_place(
    path: str, value: Any, word: str
) -> None:
    with pytest.raises(MigrationsRejected, match=r"stores\.json") as caught:
        Contracts(changed(path, value), "")
    assert word in caught.value.message, caught.value.message


def test_versions_must_rise_and_the_one_in_force_is_the_last_not_above() -> None:
    stores = SHIPPED["versions"][0]["stores"]
    versions = [{"since": since, "stores": stores} for since in (0, 2, 5)]
    contracts = Contracts(changed("versions", versions), "")
    assert [contracts.at(v).since for v in range(7)] == [0, 0, 2, 2, 2, 5, 5]
    assert [contracts.application_reads(v) for v in (0, 3, 4)] == [True, True, False]
    with pytest.raises(MigrationsRejected, match="rise"):
        Contracts(changed("versions", [versions[0], versions[2], versions[1]]), "")


RULES = [
    {"key": "queue", "each_item": True},
    {"key_prefix": "failed_"},
    {"field": "status", "values": ["pending", 1]},
    {"field": "a.b", "values": [True]},
]
UNSETTLED = [
    ("queue", "[]", True),
    ("queue2", "[]", False),
    ("failed_", "7", True),
    ("xfailed_", "7", False),
    ("k", '{"status":"pending"}', True),
    ("k", '{"status":"pending "}', False),
    ("k", '{"status":"p\\u0065nding"}', True),
    ("k", '{"status":1}', True),
    ("k", '{"status":true}', False),
    ("k", '{"status":1.0}', False),
    ("k", '{"status":["pending"]}', False),
    ("k", '{"status":null}', False),
    ("k", "{}", False),
    ("k", '{"status":0,"a":{"b":true}}', True),
    ("k", '{"status":0,"a":{"b":1}}', False),
    ("k", '{"status":0,"a":"b"}', False),
]


@pytest.mark.parametrize(("key", "text", "unsettled"), UNSETTLED)
def test_a_record_is_unsettled_by_the_rules_and_by_nothing_else(
    key: str, text: str, unsettled: bool
) -> None:
    store = contract_of({"unsettled": RULES}).stores["s"]
    assert (store.unsettled_rule(key, decode(text)) is not None) is unsettled
    assert store.may_be_unsettled(key, text) or not unsettled


def test_a_rule_on_null_also_fits_what_has_no_such_field() -> None:
    """Rather one record too many that is held to be unsettled than one too few."""
    rules = [{"field": "settled_at", "values": [None]}]
    store = contract_of({"unsettled": rules}).stores["s"]
    for text in ('{"settled_at":null}', "{}", '"text"', "[]"):
        assert store.unsettled_rule("k", decode(text)) is not None
        assert store.may_be_unsettled("k", text)
    assert store.unsettled_rule("k", decode('{"settled_at":0}')) is None


@given(
    st.sampled_from(["k", "failed_1", "queue"]),
    st.dictionaries(
        st.sampled_from(["status", "a", "é"]),
        st.sampled_from(["pending", "pend", 1, None, {"status": "pending"}, "\\", "é"]),
    ),
    st.booleans(),
)
def test_no_unsettled_record_is_passed_over_by_the_quick_look(
    key: str, record: dict[str, Any], escaped: bool
) -> None:
    rules = [{"key_prefix": "failed_"}, {"field": "status", "values": ["pending", "é"]}]
    store = contract_of({"unsettled": rules}).stores["s"]
    text = json.dumps(record, ensure_ascii=escaped)
    if store.unsettled_rule(key, decode(text)) is not None:
        assert store.may_be_unsettled(key, text)


def contract_of(rules: dict[str, Any], **more: Any) -> Contract:
    """A contract with one store `s` (and `t`, alike)."""
    return Contract({"since": 0, "stores": {"s": rules, "t": rules}, **more})


SALE = {"unsettled": RULES, "amount": "amount", "currency": "currency"}


def counted(records: list[tuple[str, str, str]], rules: dict[str, Any] = SALE) -> dict[str, Any]:
    """The tally, as plain values, of (store, key, text)."""
    contract, tally = contract_of(rules), Tally()
    for name in contract.stores:
        tally.start(name)
    for name, key, text in records:
        tally.add(contract.stores[name], key, decode(text))
    return dict(json.loads(encode(tally.as_json())))


def sale(amount: Any, currency: Any = "EUR", status: Any = "done") -> str:
    return json.dumps({"amount": amount, "currency": currency, "status": status})


def test_money_is_counted_by_currency_in_whole_numbers() -> None:
    found = counted(
        [
            ("s", "1", sale(100)),
            ("s", "2", sale(-30, status="pending")),
            ("s", "3", sale(2**70, "NIM")),
            ("s", "4", sale(5, None)),
            ("s", "5", sale(5, 7)),
            ("s", "queue", f"[{sale(1)},{sale(2, 'NIM')},7]"),
            ("s", "6", '"text"'),
        ]
    )
    assert found["records"] == {"s": 7, "t": 0}
    assert found["unsettled_records"] == {"s": 2, "t": 0}
    assert found["sales"]["s"] == {"EUR": [3, 71], "NIM": [2, 2**70 + 2], "?": [2, 10]}
    assert found["unsettled_sales"]["s"] == {"EUR": [2, -29], "NIM": [1, 2]}
    assert found["odd"] == {"s": 0, "t": 0}


@pytest.mark.parametrize("amount", ["10.50", "1e3", "-0", '"100"', "true", "[]", str(AMOUNT_MAX)])
def test_an_amount_that_is_no_whole_number_of_money_is_counted_as_odd(amount: str) -> None:
    found = counted([("s", "1", f'{{"status":0,"amount":{amount},"currency":"EUR"}}')])
    assert found["odd"]["s"] == 1
    assert found["sales"]["s"] == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("st"),
            st.integers(0, 60).map(lambda n: f"C{n:02d}"),
            st.integers(-1000, 1000),
        ),
        max_size=120,
    ),
    st.randoms(),
)
def test_which_currencies_are_named_depends_on_no_order(sales: Any, random: Any) -> None:
    """Before and after a run records may lie in another order, and a moved one at the end."""
    records = [(s, str(i), sale(a, c, "pending")) for i, (s, c, a) in enumerate(sales)]
    one = counted(records)
    random.shuffle(records)
    assert counted(records) == one
    moved = counted([("t" if key == "0" else s, key, text) for s, key, text in records])
    assert difference(one, moved, {"s": "s+t", "t": "s+t"}) == ""
    names = {c for by in one["sales"].values() for c in by}
    assert len(names - {"other"}) <= CURRENCIES_MAX
    for word in ("sales", "unsettled_sales"):
        entries = [e for by in one[word].values() for e in by.values()]
        assert sum(n for n, _ in entries) == len(sales)
        assert sum(total for _, total in entries) == sum(a for _, _, a in sales)


def test_a_long_word_is_no_currency_of_its_own_and_a_tally_stays_small() -> None:
    """The tally goes into a backup's header, which is limited to 64 KiB."""
    records = [
        ("s", str(n), sale(AMOUNT_MAX - 1, f"{n:04d}\x01\x02\x03\x04", "pending"))
        for n in range(3000)
    ]
    records += [("t", key, text) for _, key, text in records]
    records += [("s", "x", sale(1, "a currency with a long name")), ("s", "y", sale(1, "other"))]
    found = counted(records)
    assert found["sales"]["s"]["other"][0] == 3002 - CURRENCIES_MAX
    assert len(encode(found)) < 20_000


def test_figures_taken_over_equal_figures_counted() -> None:
    contract = contract_of(SALE)
    records = [("s" if n % 2 else "t", str(n), sale(n, f"C{n:02d}")) for n in range(80)]
    before = counted(records)
    kept = copy.deepcopy(before)
    tally = Tally()
    for name in contract.stores:
        tally.start(name)
    for name, key, text in records:
        if name == "s":
            tally.add(contract.stores["s"], key, decode(text))
    tally.take("t", before)
    assert difference(before, tally.as_json()) == ""
    assert before == kept


def test_a_difference_is_named_and_groups_are_judged_together() -> None:
    before = counted([("s", "1", sale(100, status="pending")), ("t", "2", sale(50))])
    moved = counted([("t", "1", sale(100, status="pending")), ("t", "2", sale(50))])
    group = {"s": "s+t", "t": "s+t"}
    assert difference(before, before) == ""
    assert "records of s were 1 and would be 0" in difference(before, moved)
    assert difference(before, moved, group) == ""
    for after, word in (
        (counted([("t", "2", sale(50))]), "records of s+t"),
        (counted([("s", "1", sale(99, status="pending")), ("t", "2", sale(50))]), "sales of s+t"),
        (counted([("s", "1", sale(100)), ("t", "2", sale(50))]), "unsettled records of s+t"),
        (counted([("s", "1", sale(100, "USD", "pending")), ("t", "2", sale(50))]), "sales of s+t"),
        (counted([("s", "1", sale(10.5, status="pending")), ("t", "2", sale(50))]), "sales of s+t"),
        (
            counted([("s", "1", sale(50, status="pending")), ("t", "2", sale(100))]),
            "unsettled sales",
        ),
    ):
        assert word in difference(before, after, group)


@pytest.mark.parametrize(
    ("wraps", "a", "b", "higher"),
    [
        (None, 1, 999_999, 999_999),
        (999_999, 1, 2, 2),
        (999_999, 999_999, 1, 1),  # one turn ahead
        (999_999, 3, 999_998, 3),
        (999_999, 400_000, 600_000, 600_000),
        (999_999, 0, 499_999, 499_999),
        (999_999, 5, 5, 5),
    ],
)
def test_a_counter_that_wraps_knows_which_reading_is_later(
    wraps: int | None, a: int, b: int, higher: int
) -> None:
    counter = Counter(
        {"name": "stan", "store": "s", "key": "k", "field": "stan", "wraps_after": wraps}
    )
    assert counter.higher(a, b) == counter.higher(b, a) == higher
