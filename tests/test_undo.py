"""The way back: `down` after `up` gives back every record by value, and what is newer survives.

Generated records and chains of steps; the judge compares values by itself and knows no step.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.applied import Applied
from agent.core.ledger import Ledger
from agent.core.meaning import run_pass
from agent.core.migration import (
    KEEP,
    NOW,
    UNDO,
    Migration,
    Step,
    each,
    map_value,
    move_record,
    remove_field,
    rename_field,
    set_field,
)
from agent.core.plan import Plan
from agent.core.steps import apply_step
from agent.core.undo import undo_step
from agent.ground.codec import Number, decode, encode
from agent.ground.errors import ValidationError
from tests import chains
from tests.independent_reader import same_value

NOW_MS = 1_800_000_000_000


def migrations_of(steps_by_version: list[list[Step]]) -> list[Migration]:
    return [
        Migration(version, f"m{version}", steps, f"{version:04d}_m.py", str(version))
        for version, steps in enumerate(steps_by_version, 1)
    ]


class Way:
    """A record that goes up and down through a chain of migrations, as flash would hold it."""

    def __init__(self, steps_by_version: list[list[Step]], key: str = "k1") -> None:
        self.key = key
        self.migrations = migrations_of(steps_by_version)
        self.head = len(self.migrations)
        up = Plan(self.migrations, 0, "")
        up.bind(NOW_MS, "device_1", {})
        self.up_plan = up
        self.applied = {
            m.version: Applied(
                m.checksum,
                "run",
                NOW_MS,
                "device_1",
                m.version,
                True,
                {s.number: s.default for s in m.steps if type(s.default).__name__ != "Absent"},
                up.constants[m.version],
            )
            for m in self.migrations
        }

    def up(self, text: str) -> tuple[str, dict[int, str]]:
        """The record at the head, and its ledger rows by version."""
        record, ledger = decode(text), Ledger()
        for a_pass in self.up_plan.passes:
            run_pass(a_pass, self.key, record, self.up_plan.contexts, ledger)
        return encode(record), {v: encode(row) for v, row in ledger.as_rows().items()}

    def down(self, text: str, rows: dict[int, str], to: int) -> tuple[str, Ledger]:
        """The record at an earlier version, and what the ledger reports."""
        plan = Plan(self.migrations[to:], self.head, "", down=True)
        plan.bind(0, "another device", self.applied)
        record, ledger = decode(text), Ledger()
        for version, row in rows.items():
            ledger.take(version, decode(row))
        for a_pass in plan.passes:
            run_pass(a_pass, self.key, record, plan.contexts, ledger)
        return encode(record), ledger


def halfway(steps_by_version: list[list[Step]], text: str, to: int, key: str) -> str:
    """What the first migrations alone make of a record."""
    record = decode(text)
    way = Way(steps_by_version, key)
    for migration in way.migrations[:to]:
        for step in migration.steps:
            apply_step(step, key, record, way.up_plan.contexts[migration.version])
    return encode(record)


def upwards(way: Way, text: str) -> tuple[str, dict[int, str]] | None:
    """`up`, or None where the chain cannot be done to this record."""
    try:
        return way.up(text)
    except ValidationError:
        return None


@settings(max_examples=600)
@given(chains.chains(), chains.records, st.sampled_from(("k1", "k2")), st.data())
def test_down_after_up_gives_back_the_value_of_every_version_on_the_way(
    steps: list[list[Step]], record: Any, key: str, data: st.DataObject
) -> None:
    text = encode(record)
    way = Way(steps, key)
    done = upwards(way, text)
    if done is None:
        return
    to = data.draw(st.integers(0, way.head - 1))
    back, ledger = way.down(*done, to)
    assert same_value(back, halfway(steps, text, to, key))
    assert ledger.reports == []


@settings(max_examples=300)
@given(chains.chains(longest=2), chains.objects, chains.names)
def test_a_field_that_the_new_software_wrote_since_is_never_lost(
    steps: list[list[Step]], record: Any, name: str
) -> None:
    """A value that no step could have made is looked for wherever it may be by then."""
    way = Way(steps)
    done = upwards(way, encode(record))
    if done is None or type(decode(done[0])) is not dict:
        return
    newer = decode(done[0])
    newer[name] = "written by the new software"
    back, ledger = way.down(encode(newer), done[1], 0)
    if "written by the new software" not in back:
        steps_of = {(m.version, s.number): s for m in way.migrations for s in m.steps}
        removed = [report for report in ledger.reports if report[2] == "removed"]
        assert removed
        assert all(steps_of[v, n].on_new == "remove" for v, n, _ in removed)


@settings(max_examples=300)
@given(chains.chains(longest=3), chains.records)
def test_a_record_of_the_new_software_without_a_ledger_goes_down_without_failing(
    steps: list[list[Step]], record: Any
) -> None:
    way = Way(steps)
    back, _ = way.down(encode(record), {}, 0)
    decode(back)


@given(chains.chains(longest=2), st.sampled_from(chains.LITERALS))
def test_a_number_that_no_step_touches_keeps_its_literal_up_and_down(
    steps: list[list[Step]], literal: str
) -> None:
    way = Way(steps)
    done = upwards(way, encode({"untouched": {"deep": [Number(literal)]}, "a": 1}))
    if done is None:
        return
    assert f'{{"deep":[{literal}]}}' in done[0]
    assert f'{{"deep":[{literal}]}}' in way.down(*done, 0)[0]


def undone(step: Step, before: Any, edit: Any = None) -> tuple[Any, list[str]]:
    """One step up, an edit by the application, and down; with what is reported."""
    way = Way([[step]])
    text, rows = way.up(encode(before))
    if edit is not None:
        text = encode(edit(decode(text)))
    back, ledger = way.down(text, rows, 0)
    return decode(back), [what for _, _, what in ledger.reports]


def edited(**fields: Any) -> Any:
    return lambda record: {**record, **fields}


@pytest.mark.parametrize(
    ("step", "before", "edit", "after", "reports"),
    [
        # What up wrote is taken back, what was there is put back.
        (set_field("s", "v", 2), {"v": 1}, None, {"v": 1}, []),
        (set_field("s", "v", 2), {}, None, {}, []),
        (set_field("s", "v", 2), {"v": 2}, None, {"v": 2}, []),
        (set_field("s", "v", 2), {"v": None}, None, {"v": None}, []),
        (set_field("s", "v.w", 2), {"v": {}}, None, {"v": {}}, []),
        (set_field("s", "v.w", 2), {}, None, {}, []),
        (set_field("s", "v.w.x", 2), {"v": {"w": {}}}, None, {"v": {"w": {}}}, []),
        (set_field("s", "v.w", 2), {"v": "text"}, None, {"v": "text"}, []),
        (set_field("s", "v", 2, if_missing=True), {"v": 2}, None, {"v": 2}, []),
        (remove_field("s", "v"), {"v": Number("10.50")}, None, {"v": Number("10.50")}, []),
        (rename_field("s", "v", "w"), {"w": 1}, None, {"w": 1}, []),
        (rename_field("s", "v", "w.x"), {"v": 1, "w": {}}, None, {"v": 1, "w": {}}, []),
        (rename_field("s", "v", "w.x"), {"v": 1}, None, {"v": 1}, []),
        (map_value("s", "v", {1: "x", 2: "x"}), {"v": 2}, None, {"v": 2}, []),
        (map_value("s", "v", {1: "x"}, other="keep"), {"v": "x"}, None, {"v": "x"}, []),
        (map_value("s", "v", {1: 2, 2: 3}), {"v": 1}, None, {"v": 1}, []),
        # What the application wrote since stays.
        (set_field("s", "v", 2), {"v": 1}, edited(v=3), {"v": 3}, ["kept"]),
        (set_field("s", "v", 2), {}, edited(v=3), {"v": 3}, ["kept"]),
        (set_field("s", "v", 2, on_new="remove"), {}, edited(v=3), {}, ["removed"]),
        (set_field("s", "v", 2, on_new="remove"), {"v": 1}, edited(v=3), {"v": 3}, ["kept"]),
        (set_field("s", "v", 2, if_missing=True), {"v": 1}, edited(v=3), {"v": 3}, []),
        (
            set_field("s", "v", 2, if_missing=True, on_new="remove"),
            {"v": 1},
            edited(v=3),
            {"v": 3},
            [],
        ),
        (remove_field("s", "v"), {"v": 1}, edited(v=3), {"v": 3}, ["kept"]),
        (rename_field("s", "v", "w"), {"v": 1}, edited(w=3), {"v": 3}, []),
        (rename_field("s", "v", "w"), {"v": 1}, edited(v=3), {"v": 3, "w": 1}, ["kept"]),
        (map_value("s", "v", {1: "x", 2: "y"}), {"v": 1}, edited(v="y"), {"v": 2}, []),
        (map_value("s", "v", {1: "x", 2: "x"}), {"v": 1}, edited(v="z"), {"v": "z"}, ["kept"]),
        (map_value("s", "v", {1: "x"}), {"v": 1}, edited(v="z"), {"v": "z"}, ["kept"]),
        (
            map_value("s", "v", {1: "x"}, on_new="remove"),
            {"v": 1},
            edited(v="z"),
            {},
            ["removed"],
        ),
        (
            each("s", lambda r, c: {**r, "v": [1]}, UNDO, fields=["v"]),
            {"v": 1},
            edited(v=3),
            {"v": 3},
            ["kept"],
        ),
    ],
)
def test_each_step_takes_back_its_own_and_leaves_what_is_newer(
    step: Step, before: Any, edit: Any, after: Any, reports: list[str]
) -> None:
    found, said = undone(step, before, edit)
    assert same_value(encode(found), encode(after))
    assert said == reports


def test_a_value_that_all_records_have_by_an_earlier_migration_needs_no_row() -> None:
    way = Way([[set_field("s", "v", 1), set_field("s", "t", NOW)], [set_field("s", "v", 2)]])
    text, rows = way.up('{"n":10.50}')
    assert rows == {}
    assert way.down(text, rows, 1)[0] == f'{{"n":10.50,"v":1,"t":{NOW_MS}}}'
    assert way.down(text, rows, 0)[0] == '{"n":10.50}'
    # A record that the new software made reaches the old software with the old software's version.
    assert way.down('{"v":2,"n":1}', {}, 1)[0] == '{"v":1,"n":1}'
    assert way.down('{"v":2,"n":1}', {}, 0)[0] == '{"n":1}'


def test_what_another_step_may_have_changed_in_between_is_no_constant() -> None:
    def second(record: Any, context: Any) -> Any:
        return {**record, "v": record.get("n")}

    way = Way(
        [[set_field("s", "v", 1), each("s", second, UNDO, fields=["v"])], [set_field("s", "v", 2)]]
    )
    text, rows = way.up('{"n":7}')
    assert rows[2]
    assert way.down(text, rows, 1)[0] == '{"n":7,"v":7}'
    assert way.down(text, rows, 0)[0] == '{"n":7}'


def test_an_authors_down_and_its_check_are_held_to_what_the_step_declares() -> None:
    context = migrations_of([[]])[0].context(NOW_MS, "d")

    def run(down: Any, check_down: Any = None) -> Any:
        step = each("s", lambda r, c: KEEP, down, fields=["v"], check_down=check_down)
        record = {"v": 1, "w": 2}
        undo_step(step, "k", record, context, Ledger())
        return record

    assert run(lambda r, c: {**r, "v": 0}) == {"v": 0, "w": 2}
    assert run(lambda r, c: KEEP) == {"v": 1, "w": 2}
    for down, check_down, words in (
        (lambda r, c: {**r, "w": 0}, None, "down.. changed w"),
        (lambda r, c: None, None, "down.. returned NoneType"),
        (lambda r, c: {**r, "v": 0}, lambda r: False, "its check_down.. failed"),
        (lambda r, c: 1 // 0, None, "ZeroDivisionError in test_undo.py"),
    ):
        with pytest.raises(ValidationError, match=words):
            run(down, check_down)


def test_a_step_after_which_nobody_goes_back_keeps_nothing() -> None:
    migrations = migrations_of(
        [[remove_field("s", "v")], [each("s", lambda r, c: KEEP, fields=["w"])], []]
    )
    plan = Plan(migrations, 0, "")
    plan.bind(NOW_MS, "d", {})
    ledger = Ledger()
    for a_pass in plan.passes:
        run_pass(a_pass, "k", {"v": 1}, plan.contexts, ledger)
    assert plan.irreversible == 2
    assert ledger.entries == {}


@pytest.mark.parametrize("word", ["drop", "", None])
def test_what_becomes_of_newer_values_is_keep_or_remove(word: Any) -> None:
    from agent.ground.errors import MigrationsRejected

    with pytest.raises(MigrationsRejected, match="on_new"):
        set_field("s", "v", 1, on_new=word)
    with pytest.raises(MigrationsRejected, match="on_new"):
        map_value("s", "v", {1: 2}, on_new=word)


def test_every_kind_of_step_says_that_it_can_be_undone() -> None:
    assert set_field("s", "v", 1).reversible
    assert move_record("s", "k", to_key="l").reversible
    assert each("s", lambda r, c: r, UNDO, fields=["v"]).reversible
    assert not each("s", lambda r, c: r, fields=["v"]).reversible
    assert remove_field("s", "v").reversible
    assert not remove_field("s", "v", forget=True).reversible


def test_what_is_to_be_forgotten_is_kept_nowhere() -> None:
    way = Way([[remove_field("s", "v", forget=True)]])
    assert way.up('{"v":"4111111111111111"}') == ("{}", {})
