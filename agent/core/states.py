"""The states of a run and its legal moves, as data with the reason beside each.

docs/states.md is drawn from the same table.
"""

from __future__ import annotations

CHECKING = "checking"
BACKING_UP = "backing_up"
BUILDING = "building"
MIGRATING = "migrating"
PROVING = "proving"
SWITCHING = "switching"
DONE = "done"
FAILED = "failed"
HELD = "held"

STATES = (
    CHECKING,
    BACKING_UP,
    BUILDING,
    MIGRATING,
    PROVING,
    SWITCHING,
    DONE,
    FAILED,
    HELD,
)
FINAL = (DONE, FAILED, HELD)

MOVES = {
    # Nothing is pending, or what was left behind needed no more than tidying.
    (CHECKING, DONE): "nothing to do",
    (CHECKING, BACKING_UP): "space, file system and migrations are as a run needs them",
    # One backup per plan and source: a later attempt finds it verified and reuses it.
    (CHECKING, BUILDING): "the backup of an earlier attempt still holds",
    (CHECKING, MIGRATING): "a successor of the same source and plan is there: resume",
    (CHECKING, PROVING): "that successor is sealed: prove it again, then switch",
    # Nothing was written since the last switch, so nothing has to be made.
    (CHECKING, SWITCHING): "the file from before the last switch is put back",
    # Backup and copy share one read of the source.
    (BACKING_UP, BUILDING): "the backup was read back from flash",
    (BUILDING, MIGRATING): "the copy was read back and its run row is in",
    (BUILDING, PROVING): "a restore has no batches: the image was read back and its row is in",
    (BACKING_UP, DONE): "a backup was all that was asked for",
    (MIGRATING, PROVING): "the last batch is committed",
    (PROVING, SWITCHING): "the successor equals what the plan makes of the original",
    (SWITCHING, DONE): "the rename is durable",
    # Until the rename every failure ends with the old file as it was.
    (CHECKING, FAILED): "refused, or the data cannot be judged",
    (BACKING_UP, FAILED): "flash refused, or the backup did not read back",
    (BUILDING, FAILED): "flash refused, or the copy did not read back",
    (MIGRATING, FAILED): "a record, a step or a check failed",
    (PROVING, FAILED): "the proof did not hold",
    (SWITCHING, FAILED): "flash refused before the rename",
    (CHECKING, HELD): "a technician is needed before anything may be written",
    (SWITCHING, HELD): "switched, but somebody still holds the old file",
}
# A worker that dies is followed by another, which begins by looking at the flash.
for _state in STATES:
    if _state not in FINAL:
        MOVES[(_state, CHECKING)] = "the worker was killed, or power went: look at the flash again"


def may_follow(before: str, after: str) -> bool:
    """Whether a run in state `before` may report `after` next."""
    return before == after or (before, after) in MOVES


def moves_table() -> str:
    """The moves as a Markdown table, for docs/states.md."""
    lines = ["| from | to | why |", "| --- | --- | --- |"]
    lines += [f"| {a} | {b} | {why} |" for (a, b), why in MOVES.items()]
    return "\n".join(lines) + "\n"
