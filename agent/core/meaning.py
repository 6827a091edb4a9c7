"""What a plan means for one record: a pass, the moves, and all of it as the proof replays it."""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.steps import apply_step
from agent.core.undo import undo_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.plan import Pass, Plan
    from agent.core.step import Context

    # What a record's ledger is when a pass begins: an empty one on the way up.
    LedgerOf = Callable[[str, str], Ledger]


def run_pass(
    a_pass: Pass,
    key: str,
    record: Any,
    contexts: dict[int, Context],
    ledger: Ledger | None = None,
    at: int | None = None,
) -> bool:
    """All steps of one pass on one decoded record in place; whether it changed.

    On the way up the ledger takes what a way back needs, on the way down it gives it. `at` is the
    version of a record that was left behind: what it never had is not undone.
    """
    changed = False
    noted = ledger if ledger is not None else Ledger()
    do = undo_step if a_pass.down else apply_step
    for version, step in a_pass.steps:
        if (at is None or version <= at) and do(step, key, record, contexts[version], noted):
            changed = True
    return changed


class Move:
    """A move pass as it was judged: from where to where, and why it is not done, or ""."""

    __slots__ = ("source", "target")

    def __init__(self, a_pass: Pass) -> None:
        step = a_pass.steps[0][1]
        old, new = (step.store, str(step.key)), (step.target[0], step.target[1])
        self.source, self.target = (new, old) if a_pass.down else (old, new)


def moves_done(
    plan: Plan,
    present: dict[tuple[str, str], bool],
    noted: set[tuple[int, int]] | None = None,
    stay: set[int] | None = None,
) -> set[int]:
    """Numbers of the move passes that do move a record, given which of their keys exist before.

    On the way down only what `noted`, (version, step's number), says was moved goes back, and stays
    where its old place is taken by now. The moves in `stay` are not done, since their record was
    left behind. Raises ValueError where a move would put one record over another.
    """
    present = dict(present)
    done: set[int] = set()
    for number, a_pass in enumerate(plan.passes):
        if a_pass.kind != "move":
            continue
        version, step = a_pass.steps[0]
        move = Move(a_pass)
        if not present.get(move.source) or (stay and number in stay):
            continue
        if a_pass.down and (version, step.number) not in (noted or ()):
            continue
        if present.get(move.target):
            if step.if_exists == "keep" or a_pass.down:
                continue
            raise ValueError(
                f"{'/'.join(move.source)} cannot move: {'/'.join(move.target)} is there"
            )
        present[move.source], present[move.target] = False, True
        done.add(number)
    return done


def move_keys(plan: Plan) -> list[tuple[str, str]]:
    """Every (store, key) that a move of the plan names."""
    moves = [Move(a_pass) for a_pass in plan.passes if a_pass.kind == "move"]
    return [place for move in moves for place in (move.source, move.target)]


def replay(
    plan: Plan,
    store: str,
    key: str,
    record: Any,
    contexts: dict[int, Context],
    moved: set[int],
    ledger_of: LedgerOf | None = None,
    at: int | None = None,
) -> tuple[str, str, bool, tuple[tuple[str, ...], ...]]:
    """The plan's meaning for one old record: (store, key, changed, declared fields), the record
    changed in place. `moved` comes from `moves_done` on the old data; `ledger_of` is asked for the
    record's ledger under the name it has when a pass begins.
    """
    changed = False
    fields: list[tuple[str, ...]] = []
    for number, a_pass in enumerate(plan.passes):
        if a_pass.kind == "move":
            move = Move(a_pass)
            if number in moved and move.source == (store, key):
                store, key = move.target
            continue
        if a_pass.store != store or a_pass.kind == "sql":
            continue
        ledger = ledger_of(store, key) if ledger_of is not None else None
        if run_pass(a_pass, key, record, contexts, ledger, at):
            changed = True
        fields += [f for _, step in a_pass.steps for f in step.fields]
    return store, key, changed, tuple(fields)
