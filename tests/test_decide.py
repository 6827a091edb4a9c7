"""What the next boot does, when a plan is given up, which moves a run may make: calls, comparisons.

Deciding opens nothing, so every combination of facts is tried here; the rows made for real on flash
are in test_next_boot.py. docs/boot-table.md and docs/states.md are drawn from the same data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core import decide, states
from agent.core.decide import OnFlash

DOCS = Path(__file__).resolve().parent.parent / "docs"
TARGET = 3
FLAGS = (
    "sealed_here",
    "in_history",
    "wal_owed",
    "written_since",
    "backup_since",
    "given_up",
    "asked",
    "went_back",
)
# What the flash looks like once an action has been done; the actions not named end the looking.
EFFECTS = {
    decide.UNLINK_TWIN: ("prev", "none"),
    decide.WRITE_HISTORY: ("in_history", True),
    decide.WRITE_BACK: ("went_back", False),
    decide.DROP_NEXT: ("next", "none"),
    decide.RETURN_WAL: ("wal_owed", False),
    decide.COMMIT: ("prev", "none"),
}


def every_flash() -> Iterator[OnFlash]:
    """Each combination of facts, possible or not."""
    for version, found, prev, flags in itertools.product(
        (None, 0, TARGET - 1, TARGET, TARGET + 1),
        ("none", "strange", "ours"),
        ("none", "twin", "ours", "foreign"),
        itertools.product((False, True), repeat=len(FLAGS)),
    ):
        yield OnFlash(version, TARGET, next=found, prev=prev, **dict(zip(FLAGS, flags)))


def words(found: OnFlash) -> str:
    return " ".join(f"{name}={getattr(found, name)}" for name in OnFlash.__slots__)


def pending(found: OnFlash) -> bool:
    return found.version is not None and found.version < found.target


def test_every_combination_of_facts_gives_one_row_and_every_row_is_given() -> None:
    given = {decide.decide(found).mark for found in every_flash()}
    assert given == {row.mark for row in decide.ROWS}
    marks = [row.mark for row in decide.ROWS]
    assert marks == [f"NB-{n}" for n in range(1, len(marks) + 1)]


def test_looking_again_comes_to_an_end_from_every_combination() -> None:
    assert set(EFFECTS) == set(decide.LOOK_AGAIN)
    for found in every_flash():
        before = words(found)
        seen: list[str] = []
        while (action := decide.decide(found).action) in decide.LOOK_AGAIN:
            assert action not in seen[-1:], f"{action} did nothing: {before}"
            seen.append(action)
            assert len(seen) <= len(EFFECTS), f"{seen}: {before}"
            name, value = EFFECTS[action]
            setattr(found, name, value)


@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        (decide.HOLD, lambda f: f.version is None),
        (decide.UNLINK_TWIN, lambda f: f.prev == "twin"),
        (decide.WRITE_HISTORY, lambda f: f.sealed_here and not f.in_history),
        (decide.WRITE_BACK, lambda f: f.went_back),
        (decide.RETURN_WAL, lambda f: f.wal_owed),
        (decide.DROP_NEXT, lambda f: f.next == "strange" or (f.next == "ours" and not pending(f))),
        (decide.COMMIT, lambda f: f.prev == "ours" and f.written_since and f.backup_since),
        (decide.TOO_NEW, lambda f: f.version > f.target),
        (decide.GIVEN_UP, lambda f: pending(f) and f.given_up and not f.asked),
        # Nothing begins while an earlier switch is unreported or a link stands in the way.
        (
            decide.RESUME,
            lambda f: pending(f) and f.next == "ours" and (f.asked or not f.given_up),
        ),
        (
            decide.START,
            lambda f: pending(f) and f.next == "none" and (f.asked or not f.given_up),
        ),
        (decide.IDLE, lambda f: f.version == f.target and f.next == "none"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_an_action_is_decided_only_where_it_is_safe(action: str, allowed: object) -> None:
    assert callable(allowed)
    chosen = [found for found in every_flash() if decide.decide(found).action == action]
    assert chosen
    for found in chosen:
        assert allowed(found), f"{action}: {words(found)}"
        if action in (decide.RESUME, decide.START, decide.IDLE):
            assert found.prev != "twin", words(found)
            assert found.in_history or not found.sealed_here, words(found)
            assert not found.wal_owed, words(found)
            assert not found.went_back, words(found)


def test_a_missing_pos_db_is_held_whatever_else_is_there() -> None:
    for found in every_flash():
        if found.version is None:
            assert decide.decide(found).action == decide.HOLD, words(found)


def test_a_foreign_previous_file_changes_no_decision() -> None:
    for found in every_flash():
        if found.prev == "foreign":
            row = decide.decide(found)
            found.prev = "none"
            assert decide.decide(found) is row, words(found)


ATTEMPTS = [
    ("none yet", [], ""),
    ("one death", [("a", 5, "died")], ""),
    ("two deaths at one place", [("a", 5, "died")] * 2, ""),
    ("three at one place", [("a", 5, "died")] * 3, "3 attempts in a row"),
    ("three, each further", [("a", 5, "died"), ("a", 6, "died"), ("a", 7, "died")], ""),
    ("three, then one further", [("a", 5, "died")] * 2 + [("a", 6, "died")], ""),
    (
        "back and forth counts as the same place",
        [("a", 9, "died"), ("a", 5, "died"), ("a", 9, "died")],
        "3 attempts in a row",
    ),
    ("whatever the death", [("a", 5, "died"), ("b", 5, "failed"), ("c", 5, "died")], "3 attempts"),
    ("power cuts never count as stuck", [("a", 5, "cut")] * 19, ""),
    ("power cuts between deaths", [("a", 5, "died"), ("b", 5, "cut")] * 2, ""),
    (
        "power cuts between three deaths",
        [("a", 5, "died"), ("b", 9, "cut")] * 2 + [("a", 5, "died")],
        "3 attempts in a row",
    ),
    ("twenty power cuts", [("a", 5, "cut")] * 20, "20 attempts did not finish"),
    ("twenty that each came further", [("a", n, "died") for n in range(20)], "20 attempts"),
    ("nineteen that each came further", [("a", n, "died") for n in range(19)], ""),
]


@pytest.mark.parametrize(("name", "attempts", "why"), ATTEMPTS, ids=[row[0] for row in ATTEMPTS])
def test_attempts_are_spent(name: str, attempts: list[tuple[str, int, str]], why: str) -> None:
    said = decide.attempts_spent(attempts, 3, 20)
    assert said.startswith(why), said
    assert bool(said) == bool(why), said


# The moves of a run, spelled once more: a line per state with every state that may come next.
LEGAL = {
    "checking": "backing_up building migrating proving switching done failed held",
    "backing_up": "checking building done failed",
    "building": "checking migrating proving failed",
    "migrating": "checking proving failed",
    "proving": "checking switching failed",
    "switching": "checking done failed held",
    "done": "",
    "failed": "",
    "held": "",
}


@pytest.mark.parametrize("before", states.STATES)
@pytest.mark.parametrize("after", states.STATES)
def test_a_move_is_legal_or_refused(before: str, after: str) -> None:
    legal = after in LEGAL[before].split() or before == after
    assert states.may_follow(before, after) == legal


def test_every_state_is_reached_and_every_state_but_the_final_ones_is_left() -> None:
    assert set(LEGAL) == set(states.STATES)
    assert {a for _, a in states.MOVES} == set(states.STATES)
    assert {b for b, _ in states.MOVES} == set(states.STATES) - set(states.FINAL)
    assert all(states.MOVES.values()), "every move has its reason"


def test_the_pages_show_the_tables_that_the_code_runs_on() -> None:
    assert decide.boot_table() in (DOCS / "boot-table.md").read_text()
    assert states.moves_table() in (DOCS / "states.md").read_text()
