"""Moving one record to another key or store, and back: whether it is done, and how."""

from __future__ import annotations

from agent.core.meaning import Move, move_keys, moves_done
from agent.core.steps import shown
from agent.edges.database import begin, commit, lenient_text, quoted
from agent.ground.errors import ValidationError
from agent.verbs import leaving, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.left_behind import Stopped
    from agent.core.plan import Pass, Plan
    from agent.core.step import Step
    from agent.verbs.batches import Cursor
    from agent.verbs.passes import Passes

# A step that names a key means that key to the letter; a store may compare keys more loosely. The
# first condition finds the row by its index, the second says whether it is the one.
THIS_KEY = "key = ? AND key = ? COLLATE BINARY"


def move_record(passes: Passes, a_pass: Pass, cursor: Cursor) -> None:
    """Do one move pass, in one commit with the cursor."""
    move = Move(a_pass)
    found = value_of(passes, *move.source)
    moves, stopped = False, None
    if found is not None:
        moves, stopped = _judged(passes, a_pass, move, found[0])
    begin(passes.connection)
    if found is None and a_pass.down:
        _bury(passes, a_pass, move)
    if found is not None and stopped is not None:
        leaving.note(passes, stopped, *move.source, found[0])
    if found is not None and moves:
        _carry(passes, a_pass, move, found[0])
        cursor.done += 1
    passes.end_of_pass(cursor)
    commit(passes.connection)


def _judged(passes: Passes, a_pass: Pass, move: Move, value: Any) -> tuple[bool, Stopped | None]:
    """Whether a record is to be moved, and how far it came where it is left behind instead."""
    version, step = a_pass.steps[0]
    left = passes.left.of(*move.source, value)
    taken = is_taken(passes.connection, *move.target)
    if a_pass.down:
        # What was left behind before the move has not been moved.
        had = left is None or left.version >= version
        noted = (version, step.number) in rows.read_moved(passes.connection)
        return had and noted and not taken, None
    if left is not None:
        return False, None
    if taken and step.if_exists != "keep":
        raise ValidationError(
            f"{'/'.join(move.source)} cannot move: {'/'.join(move.target)} is there"
        )
    stopped = leaving.stopped_at_move(passes, passes.number, value, taken)
    return stopped is None and not taken, stopped


def _bury(passes: Passes, a_pass: Pass, move: Move) -> None:
    """Nobody is under the new key any more: what is kept under the old one is nobody's."""
    version, step = a_pass.steps[0]
    taken = value_of(passes, *move.target) is not None
    if (version, step.number) in rows.read_moved(passes.connection) and not taken:
        rows.forget_dead(passes.connection, move.target, version)


def _carry(passes: Passes, a_pass: Pass, move: Move, value: Any) -> None:
    """Move a record, inside the caller's transaction. SQLite does it by itself, so that the
    value keeps its bytes and its type, whatever they are."""
    version, step = a_pass.steps[0]
    (store, key), (target, to_key) = move.source, move.target
    passes.connection.execute(
        f"INSERT INTO {quoted(target)} (key, value) "
        f"SELECT ?, value FROM {quoted(store)} WHERE key = ?",
        (to_key, key),
    )
    passes.connection.execute(f"DELETE FROM {quoted(store)} WHERE key = ?", (key,))
    if not a_pass.down and step.keeps:
        rows.write_moved(passes.connection, version, step.number, move.source, move.target)
    left = passes.left.of(store, key, value)
    if left is not None:
        leaving.rename(passes.connection, left, move)


def value_of(passes: Passes, store: str, key: str) -> tuple[Any] | None:
    """A record's value as it lies, in a tuple, since NULL is one; None for no record."""
    with lenient_text(passes.connection):
        found: tuple[Any] | None = passes.connection.execute(
            f"SELECT value FROM {quoted(store)} WHERE {THIS_KEY}", (key, key)
        ).fetchone()
    return found


def is_taken(connection: Connection, store: str, key: str) -> bool:
    """Whether a record is under the key, as the table itself compares keys."""
    sql = f"SELECT 1 FROM {quoted(store)} WHERE key = ?"
    return connection.execute(sql, (key,)).fetchone() is not None


def check_strangers(connection: Connection, plan: Plan) -> None:
    """Refuse a way down on which another record is by now where a moved one came from, while
    something is kept under that name: it would be given to the wrong one.

    Raises ValidationError.
    """
    noted = rows.read_moved(connection) if plan.down else set()
    present = {place: _is_there(connection, *place) for place in move_keys(plan)}
    for a_pass in plan.passes:
        version, step = a_pass.steps[0]
        if a_pass.kind != "move" or (version, step.number) not in noted:
            continue
        move = Move(a_pass)
        if not present[move.target]:
            present[move.target], present[move.source] = present[move.source], False
        elif rows.kept_under(connection, move.target, (version, step.number)):
            old, new = (f"{store}/{shown(key)}" for store, key in (move.target, move.source))
            raise ValidationError(
                f"{old} is another record than the one that was moved from there to {new}, and "
                "what is kept under that name is not for it; the application has to remove it, or "
                "to give it another key"
            )


def _is_there(connection: Connection, store: str, key: str) -> bool:
    sql = f"SELECT 1 FROM {quoted(store)} WHERE {THIS_KEY}"
    return connection.execute(sql, (key, key)).fetchone() is not None


def moves_of(connection: Connection, plan: Plan, new: Connection | None = None) -> set[int]:
    """Which moves of the plan move a record, judged on the data before the run. A record that was
    left behind stays where it is; `new` tells of those that this run left."""
    present = {place: _is_there(connection, *place) for place in move_keys(plan)}
    stay = _not_moved(new, plan) if new is not None else set()
    try:
        done = moves_done(plan, present, rows.read_moved(connection) if plan.down else None, stay)
    except ValueError as error:
        raise ValidationError(str(error)) from None
    return done


def moves_left(connection: Connection, plan: Plan, done: set[int]) -> list[tuple[int, Step, str]]:
    """The moves that a way down does not undo although a record is under the new key: (version,
    step, where it stays)."""
    found = []
    for number, a_pass in enumerate(plan.passes):
        if a_pass.kind != "move" or number in done:
            continue
        store, key = Move(a_pass).source
        if _is_there(connection, store, key):
            version, step = a_pass.steps[0]
            found.append((version, step, f"{store}/{shown(key)}"))
    return found


def _not_moved(new: Connection, plan: Plan) -> set[int]:
    """Numbers of the move passes whose record the new file says was left behind before them."""
    left = rows.quarantined(new)
    found = set()
    with lenient_text(new):
        for number, a_pass in enumerate(plan.passes) if len(left) else ():
            if a_pass.kind != "move":
                continue
            store, key = Move(a_pass).source
            select = f"SELECT value FROM {quoted(store)} WHERE {THIS_KEY}"
            value = new.execute(select, (key, key)).fetchone()
            row = left.of(store, key, value[0]) if value is not None else None
            if row is not None and row.version < a_pass.steps[0][0]:
                found.add(number)
    return found
