"""The settings table, its JSON Schema, its document and the shipped profiles say the same thing.

`python -m tests.test_profiles` writes the schema and the document's table anew from the table in
agent/core/settings.py, which is the one to change. Marks such as DP-4 are those of
docs/spec/device-profile.md.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.profile import (
    BASES,
    FORMAT,
    TEXT_CHARS_MAX,
    Profile,
    explain,
    profile_from,
)
from agent.core.settings import NAMES, PATH_CHARS_MAX, SETTINGS, Setting
from agent.ground.errors import ConfigError
from agent.ground.words import edit_distance, nearest

CHECKOUT = Path(__file__).parent.parent
PROFILES = CHECKOUT / "device_profiles"
SPEC = CHECKOUT / "docs" / "spec" / "device-profile.md"
TABLE = re.compile(r"(<!-- settings:[^\n]*-->\n)(.*?)(<!-- end of settings -->)", re.DOTALL)
SHIPPED = (
    "generic",
    "linux-cm4-emmc",
    "linux-iotbox-sd",
    "linux-module-256",
    "linux-nand-128",
    "linux-nand-512",
    "linux-nand-64",
)


def shipped(id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((PROFILES / f"{id}.json").read_text("utf-8"))
    return document


def small(**values: Any) -> dict[str, Any]:
    """A profile that names only the given settings."""
    entries = {
        key: {"value": value, "basis": "estimate", "source": "a test"}
        for key, value in values.items()
    }
    return {"format": 1, "id": "small", "title": "A small one", "settings": entries}


def refusal(document: dict[str, Any], **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        profile_from(document, overrides)
    assert (caught.value.code, caught.value.exit_code) == ("CONFIG", 78)
    return str(caught.value)


# One table, three forms


def value_schema(setting: Setting) -> dict[str, Any]:
    if setting.kind == "boolean":
        return {"type": "boolean"}
    if setting.kind == "path":
        schema: dict[str, Any] = {
            "type": "string",
            "maxLength": PATH_CHARS_MAX,
            "pattern": r"^(?!.*/\.\.(/|$))/",
        }
    elif setting.choices:
        return {"enum": list(setting.choices)}
    else:
        schema = {"type": "integer", "minimum": setting.low, "maximum": setting.high}
    if setting.nullable:
        schema["type"] = [schema["type"], "null"]
    return schema


def expected_schema() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": TEXT_CHARS_MAX}
    settings = {
        setting.name: {
            "type": "object",
            "description": setting.sentence,
            "default": {"value": setting.default},
            "properties": {
                "value": value_schema(setting),
                "basis": {"$ref": "#/$defs/basis"},
                "source": {"$ref": "#/$defs/text"},
            },
            "required": ["value", "basis", "source"],
            "additionalProperties": False,
        }
        for setting in SETTINGS
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "posagent device profile",
        "type": "object",
        "properties": {
            "format": {"const": FORMAT},
            "id": {"type": "string", "pattern": "^[a-z0-9-]{1,64}$"},
            "title": {"$ref": "#/$defs/text"},
            "settings": {
                "type": "object",
                "properties": settings,
                "additionalProperties": False,
            },
        },
        "required": ["format", "id", "title", "settings"],
        "additionalProperties": False,
        "$defs": {"basis": {"enum": list(BASES)}, "text": text},
    }


def expected_table() -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = json.dumps(setting.default).strip('"')
        lines.append(
            f"| {setting.name} | {setting.bounds()} | {default} | {setting.sentence} |",
        )
    return "\n".join(lines) + "\n"


def test_the_json_schema_is_the_settings_table() -> None:
    assert json.loads((PROFILES / "schema.json").read_text("utf-8")) == expected_schema(), (
        "write it anew with `python -m tests.test_profiles`"
    )


def test_the_documents_table_is_the_settings_table() -> None:
    found = TABLE.search(SPEC.read_text("utf-8"))
    assert found, "the marks around the table are gone"
    assert found[2] == expected_table(), "write it anew with `python -m tests.test_profiles`"


def test_a_profile_object_is_declared_with_exactly_the_settings_and_its_id() -> None:
    assert Profile.__slots__ == ("id", *NAMES)
    assert tuple(Profile.__annotations__) == ("id", *NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_every_default_is_allowed_and_every_sentence_is_one(setting: Setting) -> None:
    assert setting.accepts(setting.default)
    assert setting.sentence.endswith(".")
    assert setting.sentence.count(". ") == 0


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_the_unit_of_a_setting_stands_in_its_key(setting: Setting) -> None:
    words = {"levels": "depth", "files": "count"}
    if setting.unit:
        assert words.get(setting.unit, setting.unit) in setting.name.split("_")


# The shipped profiles


def test_the_shipped_profiles_are_the_six_linux_classes_and_generic() -> None:
    assert sorted(p.stem for p in PROFILES.glob("*.json") if p.stem != "schema") == list(SHIPPED)


@pytest.mark.parametrize("id", SHIPPED)
def test_a_shipped_profile_is_accepted_and_leaves_no_setting_to_a_default(id: str) -> None:
    document = shipped(id)
    profile = profile_from(document, {})
    assert profile.id == id == document["id"]
    assert tuple(document["settings"]) == NAMES
    for name in NAMES:
        assert getattr(profile, name) == document["settings"][name]["value"]


@pytest.mark.parametrize("id", SHIPPED)
def test_the_largest_pos_db_follows_from_the_arithmetic_in_its_source(id: str) -> None:
    profile = profile_from(shipped(id), {})
    source = shipped(id)["settings"]["pos_db_bytes_max"]["source"]
    said = re.match(r"(\d+) bytes of data partition \(estimate", source)
    assert said, source
    partition = int(said[1])
    fixed = profile.reserve_bytes + 2 * profile.journal_bytes_max
    halves = 2 * (1 + 2 + 1) + profile.backup_count + 1
    room = partition - fixed
    assert profile.pos_db_bytes_max == room * 2 // halves // 65536 * 65536
    assert f"{profile.reserve_bytes} reserve" in source
    assert f"2 x {profile.journal_bytes_max} journal = {room};" in source
    assert f"/ {halves / 2:g} (file 1" in source


@pytest.mark.parametrize("id", SHIPPED)
def test_a_terminal_full_to_its_default_limit_fits_every_class(id: str) -> None:
    # 3112 records were measured at 1490944 bytes; terminals stop selling at 1500 records.
    assert profile_from(shipped(id), {}).pos_db_bytes_max >= 2 * 1490944


@pytest.mark.parametrize("id", SHIPPED)
def test_a_figure_that_rests_on_an_estimate_does_not_call_itself_sourced(id: str) -> None:
    for name, entry in shipped(id)["settings"].items():
        if re.search(r"estimate|assumption|not verified|from memory|a choice", entry["source"]):
            assert entry["basis"] == "estimate", name


# What is refused


@pytest.mark.parametrize("number", [0, 2, "1", 1.0, True, None], ids=repr)
def test_an_unknown_format_number_is_refused_before_anything_else_DP_1(number: object) -> None:
    document = {"format": number, "colour": "of a later format"}
    said = refusal(document)
    assert "'format'" in said
    assert "format 1 only" in said


def test_an_unknown_setting_is_refused_with_the_nearest_known_one_DP_2() -> None:
    assert "'batch_rows_max'" in refusal(small(batch_row_max=5))
    assert "'deadline_ms'" in refusal(small(), dead_line_ms=5)
    assert "'backup_count'" in refusal(small(), **{"Backup-Count": 5})


@pytest.mark.parametrize("part", ["format", "id", "title", "settings"])
def test_a_profile_that_lacks_a_part_is_refused(part: str) -> None:
    document = small()
    del document[part]
    assert f"'{part}'" in refusal(document)


def test_an_unknown_part_is_refused_with_the_nearest_known_one_DP_2() -> None:
    assert "'settings'" in refusal({**small(), "setings": {}})
    entry = {"value": 9, "basis": "estimate", "source": "x", "sauce": "y"}
    assert "'source'" in refusal({**small(), "settings": {"backup_level": entry}})


BROKEN_PARTS = [
    ("id", 5),
    ("title", ""),
    ("title", " "),
    ("title", "x" * (TEXT_CHARS_MAX + 1)),
    ("settings", []),
    ("settings", {"backup_level": 3}),
    ("settings", {"backup_level": {"value": 3, "basis": "estimate"}}),
    ("settings", {"backup_level": {"value": 3, "basis": "rumour", "source": "x"}}),
    ("settings", {"backup_level": {"value": 3, "basis": [], "source": "x"}}),
    ("settings", {"backup_level": {"value": 3, "basis": "estimate", "source": ""}}),
]


@pytest.mark.parametrize(("part", "value"), BROKEN_PARTS, ids=lambda v: str(v)[:60])
def test_a_broken_part_of_a_profile_is_refused(part: str, value: object) -> None:
    refusal({**small(), part: value})


def outside(setting: Setting) -> list[Any]:
    """Values that this setting must refuse."""
    wrong: list[Any] = [[], {}, 1.5, "text"] + ([] if setting.nullable else [None])
    if setting.kind == "integer":
        wrong += [True, False, "5", 1e4, -1, 10**400]
        wrong += [] if setting.choices else [setting.low - 1, setting.high + 1]
    elif setting.kind == "boolean":
        wrong += [0, 1, "true"]
    elif setting.kind == "word":
        wrong += [True, 0, "", setting.choices[0].upper()]
    else:
        wrong += [0, "", "dev/tty", "/dev/../tty", "/dev/\0", "/" * 256, "/\udc80", "/a\nb"]
    return wrong


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_a_wrong_type_or_a_value_out_of_range_is_refused_with_the_range_DP_4(
    setting: Setting,
) -> None:
    for wrong in outside(setting):
        for said in (
            refusal(small(**{setting.name: wrong})),
            refusal(small(), **{setting.name: wrong}),
        ):
            assert setting.name in said
            assert setting.bounds() in said
            assert len(said) < 400


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_both_ends_of_a_range_are_allowed(setting: Setting) -> None:
    ends: tuple[Any, ...] = setting.choices or (setting.low, setting.high)
    if setting.kind == "boolean":
        ends = (True, False)
    elif setting.kind == "path":
        ends = ("/dev/x",)
    for value in ends:
        assert getattr(profile_from(small(), {setting.name: value}), setting.name) == value


def test_a_deadline_beyond_two_thirds_of_the_watchdog_is_refused_DP_5() -> None:
    watched = small(watchdog_device="/dev/watchdog", watchdog_timeout_s=15)
    assert "at most 10000 ms" in refusal(watched)
    assert profile_from(watched, {"deadline_ms": 10_000}).deadline_ms == 10_000
    assert profile_from(watched, {"watchdog_device": None}).deadline_ms == 30_000
    assert profile_from(watched, {"watchdog_timeout_s": 45}).deadline_ms == 30_000


# What is accepted


def test_an_override_wins_over_the_profile_and_the_profile_over_the_default() -> None:
    document = small(batch_rows_max=500, backup_count=5)
    before = copy.deepcopy(document)
    profile = profile_from(document, {"batch_rows_max": 7})
    assert (profile.batch_rows_max, profile.backup_count, profile.backup_level) == (7, 5, 1)
    assert document == before


def test_every_figure_in_force_is_explained_with_where_it_came_from() -> None:
    rows = explain(small(batch_rows_max=500, backup_count=5), {"batch_rows_max": 7})
    assert tuple(rows) == NAMES
    assert rows["batch_rows_max"]["basis"] == "override"
    assert rows["backup_count"] == {"value": 5, "basis": "estimate", "source": "a test"}
    assert rows["backup_level"]["basis"] == "default"


# Nearest words


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edits_are_counted_the_same_both_ways(left: str, right: str, edits: int) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == edits


@given(st.sampled_from(NAMES), st.integers(0, 30), st.sampled_from(["", "q"]))
def test_one_wrong_letter_never_leads_to_another_setting(name: str, at: int, put: str) -> None:
    at = min(at, len(name) - 1)
    assert nearest(name[:at] + put + name[at + 1 :], NAMES) == name


def test_no_words_have_no_nearest_one_and_a_huge_word_is_cut() -> None:
    assert nearest("x", ()) == ""
    assert nearest("q" * 1_000_000, ("a", "b")) == "a"


def write() -> None:
    schema = json.dumps(expected_schema(), indent=2) + "\n"
    (PROFILES / "schema.json").write_text(schema, "utf-8")
    text = TABLE.sub(lambda m: m[1] + expected_table() + m[3], SPEC.read_text("utf-8"))
    SPEC.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
    sys.stdout.write(f"written: {PROFILES / 'schema.json'}, {SPEC}\n")
