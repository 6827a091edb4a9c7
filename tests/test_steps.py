"""What each step does to one record, as one table of rows; odd records beside the plain ones.

The readings decide about money: the proof replays them. Texts are compared by the independent
reader, so a literal that is written another way counts as a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from agent.core.meaning import run_pass
from agent.core.migration import (
    DEVICE_ID,
    FROM_VERSION,
    KEEP,
    NOW,
    TO_VERSION,
    Context,
    Step,
    each,
    map_value,
    move_record,
    remove_field,
    rename_field,
    set_field,
)
from agent.core.plan import Pass
from agent.core.steps import apply_step, changed_paths, undeclared_change
from agent.ground.codec import decode, encode
from agent.ground.errors import MigrationsRejected, ValidationError
from tests.independent_reader import same_value

CONTEXT = Context(now=1_800_000_000_000, device_id="device-1", from_version=3, version=4)
SHARED: dict[str, Any] = {"of": ["the author"]}


class Row(NamedTuple):
    """One step on one record: what it becomes, or part of why it cannot be."""

    name: str
    step: Step
    before: str
    after: str = ""
    refused: str = ""


def put(name: str, value: Any) -> Any:
    """An up() that sets one field."""

    def up(record: Any, context: Any) -> Any:
        record[name] = value
        return record

    return up


def mutate_and_keep(record: Any, context: Any) -> Any:
    record["amount"] = 0
    record.setdefault("nested", {})["lost"] = True
    return KEEP


def tells_what_it_read(record: Any, context: Any) -> Any:
    raise ValueError(f"cannot use {record}")


def reads_a_card_number(record: Any, context: Any) -> Any:
    return int(record["pan"])


def from_context(record: Any, context: Context) -> Any:
    record["said"] = [context.now, context.device_id, context.from_version, context.version]
    return record


def ends_the_process(record: Any, context: Any) -> Any:
    raise SystemExit(0)


def circular(record: Any, context: Any) -> Any:
    record["a"] = record
    return record


S = "transactions"
ROWS = [
    # set_field
    Row("sets", set_field(S, "v", 1), '{"a":10.50}', '{"a":10.50,"v":1}'),
    Row("sets again", set_field(S, "v", 1), '{"v":1}', '{"v":1}'),
    Row("replaces whatever was there", set_field(S, "v", 1), '{"v":{"a":[1]}}', '{"v":1}'),
    Row("bare string", set_field(S, "v", 1), '"device_1"', '"device_1"'),
    Row("list", set_field(S, "v", 1), '[{"v":0}]', '[{"v":0}]'),
    Row("null", set_field(S, "v", 1), "null", "null"),
    Row("number", set_field(S, "v", 1), "10.50", "10.50"),
    Row("empty object", set_field(S, "v", 1), "{}", '{"v":1}'),
    Row("makes parents", set_field(S, "a.b.c", None), "{}", '{"a":{"b":{"c":null}}}'),
    Row(
        "keeps what parents hold",
        set_field(S, "a.b", 2),
        '{"a":{"c":1e3}}',
        '{"a":{"c":1e3,"b":2}}',
    ),
    Row("parent is text", set_field(S, "a.b", 2), '{"a":"x"}', '{"a":"x"}'),
    Row("parent is null", set_field(S, "a.b", 2), '{"a":null}', '{"a":null}'),
    Row("parent is a list", set_field(S, "a.0", 2), '{"a":[1]}', '{"a":[1]}'),
    Row("deep and barred", set_field(S, "a.b.c", 2), '{"a":{"b":7}}', '{"a":{"b":7}}'),
    Row("only missing: there", set_field(S, "v", 1, if_missing=True), '{"v":5}', '{"v":5}'),
    Row("only missing: null", set_field(S, "v", 1, if_missing=True), '{"v":null}', '{"v":null}'),
    Row("only missing: gone", set_field(S, "v", 1, if_missing=True), "{}", '{"v":1}'),
    Row("a dot in a name", set_field(S, ["a.b"], 1), "{}", '{"a.b":1}'),
    Row("true stays true", set_field(S, "v", True), "{}", '{"v":true}'),
    Row("now", set_field(S, "v", NOW), "{}", '{"v":1800000000000}'),
    Row(
        "nested run values",
        set_field(S, "m", {"at": [NOW, {"d": DEVICE_ID}], "v": (FROM_VERSION, TO_VERSION)}),
        "{}",
        '{"m":{"at":[1800000000000,{"d":"device-1"}],"v":[3,4]}}',
    ),
    Row("another key", set_field(S, "v", 1, key="other"), "{}", "{}"),
    Row("its key", set_field(S, "v", 1, key="tx_1"), "{}", '{"v":1}'),
    # remove_field
    Row("removes", remove_field(S, "a"), '{"a":1,"b":-0}', '{"b":-0}'),
    Row("removes null", remove_field(S, "a"), '{"a":null}', "{}"),
    Row("nothing to remove", remove_field(S, "a"), '{"b":1}', '{"b":1}'),
    Row("removes deep", remove_field(S, "a.b"), '{"a":{"b":1}}', '{"a":{}}'),
    Row("removes through text", remove_field(S, "a.b"), '{"a":"b"}', '{"a":"b"}'),
    Row("removes from a list", remove_field(S, "a"), '["a"]', '["a"]'),
    # rename_field
    Row("renames, literal kept", rename_field(S, "a", "b"), '{"a":10.50}', '{"b":10.50}'),
    Row("renames true", rename_field(S, "a", "b"), '{"a":true}', '{"b":true}'),
    Row("renames null", rename_field(S, "a", "b"), '{"a":null}', '{"b":null}'),
    Row("nothing to rename", rename_field(S, "a", "b"), '{"b":1}', '{"b":1}'),
    Row("both are there", rename_field(S, "a", "b"), '{"a":1,"b":1}', refused="both a and b"),
    Row("target is null", rename_field(S, "a", "b"), '{"a":1,"b":null}', refused="both a and b"),
    Row("to another place", rename_field(S, "a.b", "c.d"), '{"a":{"b":1}}', '{"a":{},"c":{"d":1}}'),
    Row("way is barred", rename_field(S, "a", "b.c"), '{"a":1,"b":"x"}', refused="no object"),
    Row("rename in a string", rename_field(S, "a", "b"), '"a"', '"a"'),
    # map_value
    Row("maps", map_value(S, "s", {"open": "pending"}), '{"s":"open"}', '{"s":"pending"}'),
    Row("unknown stops", map_value(S, "s", {"a": 1}), '{"s":"4111"}', refused="does not know"),
    Row("unknown stays", map_value(S, "s", {"a": 1}, other="keep"), '{"s":"b"}', '{"s":"b"}'),
    Row("no field", map_value(S, "s", {"a": 1}), "{}", "{}"),
    Row("true is not 1", map_value(S, "s", {True: "y"}, other="keep"), '{"s":1}', '{"s":1}'),
    Row("1 is not true", map_value(S, "s", {1: "y"}, other="keep"), '{"s":true}', '{"s":true}'),
    Row("1 is not 1.0", map_value(S, "s", {1: "y"}, other="keep"), '{"s":1.0}', '{"s":1.0}'),
    Row("null maps", map_value(S, "s", {None: 0}), '{"s":null}', '{"s":0}'),
    Row("to a run value", map_value(S, "s", {0: NOW}), '{"s":0}', '{"s":1800000000000}'),
    Row("both ways at once", map_value(S, "s", {"a": "b", "b": "a"}), '{"s":"a"}', '{"s":"b"}'),
    # each
    Row("each sets", each(S, put("a", 1), fields=["a"]), '{"b":10.50}', '{"b":10.50,"a":1}'),
    Row("each sees no list", each(S, put("a", 1), fields=["a"]), "[]", "[]"),
    Row(
        "context",
        each(S, from_context, fields=["said"]),
        "{}",
        '{"said":[1800000000000,"device-1",3,4]}',
    ),
    Row("keep", each(S, lambda r, c: KEEP, fields=["a"]), '{"a":1e3}', '{"a":1e3}'),
    Row(
        "mutates and keeps",
        each(S, mutate_and_keep, fields=["a"]),
        '{"amount":10.50,"nested":{}}',
        '{"amount":10.50,"nested":{}}',
    ),
    Row("returns None", each(S, lambda r, c: None, fields=["a"]), "{}", refused="NoneType"),
    Row("returns a list", each(S, lambda r, c: [r], fields=["a"]), "{}", refused="list"),
    Row("undeclared", each(S, put("b", 1), fields=["a"]), "{}", refused="changed b"),
    Row(
        "undeclared, inside",
        each(S, put("m", {"x": 1, "y": 2}), fields=["m.x"]),
        "{}",
        refused="m.y",
    ),
    Row("declared, inside", each(S, put("m", {"x": 1}), fields=["m.x"]), "{}", '{"m":{"x":1}}'),
    Row(
        "drops a field",
        each(S, lambda r, c: {}, fields=["a"]),
        '{"a":1,"b":1}',
        refused="changed b",
    ),
    Row(
        "literal rewritten",
        each(S, put("b", 10.5), fields=["a"]),
        '{"b":10.50}',
        refused="changed b",
    ),
    Row("minus zero", each(S, put("b", 0.0), fields=["a"]), '{"b":-0.0}', refused="changed b"),
    Row("true for 1", each(S, put("b", True), fields=["a"]), '{"b":1}', refused="changed b"),
    Row(
        "check false",
        each(S, put("a", 1), check=lambda r: False, fields=["a"]),
        "{}",
        refused="check",
    ),
    Row("check none", each(S, put("a", 1), check=lambda r: None, fields=["a"]), "{}", '{"a":1}'),
    Row(
        "check mutates",
        each(S, put("a", 1), check=lambda r: r.clear(), fields=["a"]),
        "{}",
        '{"a":1}',
    ),
    Row(
        "check raises",
        each(S, put("a", 1), check=lambda r: r["no"], fields=["a"]),
        "{}",
        refused="Key",
    ),
    Row("tuple", each(S, put("a", (1, (2,))), fields=["a"]), "{}", '{"a":[1,[2]]}'),
    Row("set", each(S, put("a", {1}), fields=["a"]), "{}", refused="no JSON"),
    Row("not a number", each(S, put("a", float("nan")), fields=["a"]), "{}", refused="no JSON"),
    Row("half a pair", each(S, put("a", "\ud800"), fields=["a"]), "{}", refused="no JSON"),
    Row("two keys alike", each(S, put("a", {1: 0, "1": 0}), fields=["a"]), "{}", refused="no JSON"),
    Row("itself", each(S, circular, fields=["a"]), "{}", refused="no JSON"),
    Row("ends the process", each(S, ends_the_process, fields=["a"]), "{}", refused="SystemExit"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.step.kind}: {row.name}")
def test_each_step_does_to_a_record_what_the_table_says(row: Row) -> None:
    record = decode(row.before)
    if row.refused:
        with pytest.raises(ValidationError, match="transactions/tx_1: ") as caught:
            apply_step(row.step, "tx_1", record, CONTEXT)
        assert row.refused in caught.value.message
        return
    changed = apply_step(row.step, "tx_1", record, CONTEXT)
    assert same_value(encode(record), row.after), encode(record)
    # A step that says "not changed" is not written: then nothing may differ.
    assert changed or same_value(row.before, row.after)


@pytest.mark.parametrize("up", [tells_what_it_read, reads_a_card_number])
def test_what_an_author_raises_never_shows_the_record(up: Any) -> None:
    record = {"pan": "4111 1111 1111 1111"}
    with pytest.raises(ValidationError) as caught:
        apply_step(each(S, up, fields=["pan"]), "tx_1", record, CONTEXT)
    assert "4111" not in str(caught.value.as_json())
    assert "ValueError" in caught.value.message


def test_the_next_step_sees_the_record_as_flash_holds_it() -> None:
    """A tuple is a list and a number as key is text for the next step of the pass too, or fused
    steps would give another result than the same steps one by one."""

    def second(record: Any, context: Any) -> Any:
        record["seen"] = [type(record["pair"]).__name__, list(record["by"])]
        return record

    steps = [
        each(S, lambda r, c: {**r, "pair": (1, 2), "by": {7: 1}}, fields=["pair", "by"]),
        each(S, second, fields=["seen"]),
    ]
    record: dict[str, Any] = {}
    run_pass(Pass("walk", S, [(4, s) for s in steps]), "k", record, {4: CONTEXT})
    assert record["seen"] == ["list", ["7"]]


def test_nothing_of_the_authors_own_objects_becomes_part_of_a_record() -> None:
    steps = [each(S, put("meta", SHARED), fields=["meta"]), set_field(S, "meta.at", NOW)]
    a_pass = Pass("walk", S, [(4, s) for s in steps])
    first: dict[str, Any] = {}
    run_pass(a_pass, "k", first, {4: CONTEXT})
    assert first["meta"]["at"] == CONTEXT.now
    assert SHARED == {"of": ["the author"]}


def test_a_value_that_is_set_is_a_copy_for_every_record() -> None:
    step = set_field(S, "m", {"list": []})
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    apply_step(step, "1", one, CONTEXT)
    one["m"]["list"].append(1)
    apply_step(step, "2", two, CONTEXT)
    assert two == {"m": {"list": []}}


REFUSED: Sequence[tuple[str, Any]] = [
    ("empty path", lambda: set_field(S, "", 1)),
    ("two dots", lambda: set_field(S, "a..b", 1)),
    ("path of numbers", lambda: set_field(S, [1], 1)),  # type: ignore[list-item]
    ("a path without end", lambda: set_field(S, ".".join("a" * 40), 1)),
    ("NaN", lambda: set_field(S, "a", float("nan"))),
    ("infinite", lambda: set_field(S, "a", [float("inf")])),
    ("a set", lambda: set_field(S, "a", {1})),
    ("bytes", lambda: set_field(S, "a", b"x")),
    ("a number as key", lambda: set_field(S, "a", {1: 2})),
    ("half a surrogate pair", lambda: set_field(S, "a", "\ud800")),
    ("half a pair in a path", lambda: set_field(S, "\udfff", 1)),
    ("store is no text", lambda: set_field(7, "a", 1)),  # type: ignore[arg-type]
    ("key is no text", lambda: set_field(S, "a", 1, key=7)),  # type: ignore[arg-type]
    ("no fields", lambda: each(S, lambda r, c: r, fields=[])),
    ("up is no function", lambda: each(S, None, fields=["a"])),  # type: ignore[arg-type]
    ("check is no function", lambda: each(S, lambda r, c: r, check=1, fields=["a"])),  # type: ignore[arg-type]
    ("other", lambda: map_value(S, "a", {}, other="drop")),
    ("maps to NaN", lambda: map_value(S, "a", {1: float("nan")})),
    ("if_exists", lambda: move_record(S, "a", to_key="b", if_exists="replace")),
    ("moves to itself", lambda: move_record(S, "a", to_key="a")),
    ("moves to no key", lambda: move_record(S, "a", to_key="")),
    ("renames to itself", lambda: rename_field(S, "a", "a")),
    # The field would be put into itself and be gone.
    ("renames into itself", lambda: rename_field(S, "a", "a.b")),
    ("renames over its own parent", lambda: rename_field(S, "a.b", "a")),
]


@pytest.mark.parametrize("make", [make for _, make in REFUSED], ids=[name for name, _ in REFUSED])
def test_a_step_that_cannot_be_meant_is_refused_where_it_is_written(make: Any) -> None:
    with pytest.raises(MigrationsRejected):
        make()


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ('{"a":1}', '{"a":1}', []),
        ('{"a":{"b":1,"c":2}}', '{"a":{"b":1,"c":3}}', ["a.c"]),
        ('{"a":{"b":1}}', "{}", ["a.b"]),
        ("{}", '{"a":{"b":{"c":1}}}', ["a.b.c"]),
        ("{}", '{"a":{}}', ["a"]),
        ('{"a":{"b":1}}', '{"a":5}', ["a"]),
        ('{"a":[1,2]}', '{"a":[1,3]}', ["a"]),
        ('{"a":1}', '{"a":1.0}', ["a"]),
        ('{"a":null}', "{}", ["a"]),
        ('{"a":1e3}', '{"a":1000.0}', ["a"]),
    ],
)
def test_changed_paths_are_named_to_the_last_part(
    before: str, after: str, paths: list[str]
) -> None:
    found = changed_paths(decode(before), decode(after))
    assert sorted(".".join(path) for path in found) == paths
    declared = tuple(tuple(path.split(".")) for path in paths)
    assert undeclared_change(decode(before), decode(after), declared) is None
