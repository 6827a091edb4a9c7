"""The batches: every pass of the plan over the successor, rows and cursor in one commit.

After a cut the successor is at a batch boundary, and the cursor in it says which; so each record
gets each step exactly once, idempotent or not. The author of a step never sees a loop.
"""

from __future__ import annotations

from agent.core.appending import Appender, only_appends
from agent.core.plan import Pass, Plan, move_keys, moves_done, run_pass
from agent.core.steps import shown
from agent.edges.clock import steady_ms
from agent.edges.database import SqliteError, begin, commit, has_rowid, quoted, refused_by_sqlite
from agent.ground.codec import decode, encode, nests_deeper
from agent.ground.errors import ValidationError
from agent.verbs import rows
from agent.verbs.survey import why_unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.migration import Context
    from agent.core.profile import Profile

BATCH_ROWS_MIN = 16


class Cursor:
    """How far the passes are: the pass's `number`, its last row done, records done in all."""

    __slots__ = ("after", "done", "number")

    def __init__(self, number: int = 0, after: Any = None, done: int = 0) -> None:
        self.number = number
        self.after = after
        self.done = done

    def as_json(self) -> list[Any]:
        """Plain values for the cursor row."""
        return [self.number, self.after, self.done]


def read_cursor(connection: Connection) -> Cursor:
    """Where a successor stands; the beginning when it has no cursor yet."""
    given = rows.read(connection, "run", "cursor")
    return Cursor(*given) if given is not None else Cursor()


def run_passes(
    connection: Connection,
    plan: Plan,
    contexts: dict[int, Context],
    profile: Profile,
    on_batch: Callable[[Pass, Cursor], None],
) -> None:
    """Run what is left of the plan. `on_batch` is called after each commit.

    Raises ValidationError when a record, a step or a check fails; the successor is then worthless.
    """
    cursor = read_cursor(connection)
    while cursor.number < len(plan.passes):
        a_pass = plan.passes[cursor.number]
        try:
            if a_pass.kind == "move":
                _move(connection, a_pass, cursor)
            elif a_pass.kind == "pick":
                _pick(connection, a_pass, contexts, profile, cursor)
            else:
                _walk(connection, a_pass, contexts, profile, cursor, on_batch)
        except SqliteError as error:
            raise refused_by_sqlite(error, f"migrating {a_pass.store}") from error
        on_batch(a_pass, cursor)


def _end_of_pass(connection: Connection, cursor: Cursor) -> None:
    """Move the cursor behind a pass, inside the transaction that did its last rows."""
    cursor.number += 1
    cursor.after = None
    rows.write(connection, "run", "cursor", cursor.as_json())


def _move(connection: Connection, a_pass: Pass, cursor: Cursor) -> None:
    step = a_pass.steps[0][1]
    target_store, target_key = step.target
    source = connection.execute(
        f"SELECT value FROM {quoted(step.store)} WHERE key = ?", (step.key,)
    ).fetchone()
    begin(connection)
    if source is not None:
        taken = connection.execute(
            f"SELECT 1 FROM {quoted(target_store)} WHERE key = ?", (target_key,)
        ).fetchone()
        if taken is None:
            connection.execute(f"DELETE FROM {quoted(step.store)} WHERE key = ?", (step.key,))
            connection.execute(
                f"INSERT INTO {quoted(target_store)} (key, value) VALUES (?, ?)",
                (target_key, source[0]),
            )
            cursor.done += 1
        elif step.if_exists != "keep":
            connection.execute("ROLLBACK")
            raise ValidationError(
                f"{step.store}/{step.key} cannot move: {target_store}/{target_key} is there"
            )
    _end_of_pass(connection, cursor)
    commit(connection)


def _pick(
    connection: Connection,
    a_pass: Pass,
    contexts: dict[int, Context],
    profile: Profile,
    cursor: Cursor,
) -> None:
    store = quoted(a_pass.store)
    begin(connection)
    for key in a_pass.keys:
        row = connection.execute(f"SELECT value FROM {store} WHERE key = ?", (key,)).fetchone()
        if row is None:
            continue
        record = decode(row[0])
        if run_pass(a_pass, key, record, contexts):
            text = encode(record)
            _check_grown(a_pass.store, key, text, profile)
            connection.execute(f"UPDATE {store} SET value = ? WHERE key = ?", (text, key))
        cursor.done += 1
    _end_of_pass(connection, cursor)
    commit(connection)


def _walk(
    connection: Connection,
    a_pass: Pass,
    contexts: dict[int, Context],
    profile: Profile,
    cursor: Cursor,
    on_batch: Callable[[Pass, Cursor], None],
) -> None:
    by = "rowid" if has_rowid(connection, a_pass.store) else "key"
    store = quoted(a_pass.store)
    first = f"SELECT {by}, key, value FROM {store} ORDER BY {by} LIMIT ?"
    after = f"SELECT {by}, key, value FROM {store} WHERE {by} > ? ORDER BY {by} LIMIT ?"
    update = f"UPDATE {store} SET value = ? WHERE {by} = ?"
    appender = Appender(a_pass.steps, contexts) if only_appends(a_pass.steps) else None
    batch_rows = profile.batch_rows_max
    number = cursor.number
    while cursor.number == number:
        started = steady_ms()
        changed: list[tuple[str, Any]] = []
        size = seen = 0
        select = (
            connection.execute(first, (batch_rows,))
            if cursor.after is None
            else connection.execute(after, (cursor.after, batch_rows))
        )
        for at, key, value in select:
            reason = why_unreadable(key, value, profile.record_bytes_max)
            if reason:
                raise ValidationError(f"{a_pass.store}/{shown(key)}: {reason}")
            record = decode(value, profile.record_depth_max)
            text = appender.appended(value, record) if appender is not None else None
            if text is None:
                text = encode(record) if run_pass(a_pass, key, record, contexts) else value
            if text is not value:
                _check_grown(a_pass.store, key, text, profile)
                changed.append((text, at))
                size += len(text)
            seen += 1
            cursor.after = at
            if size >= profile.batch_bytes_max:
                break
        select.close()
        begin(connection)
        if changed:
            connection.executemany(update, changed)
        cursor.done += seen
        if seen < batch_rows and size < profile.batch_bytes_max:
            _end_of_pass(connection, cursor)
            commit(connection)
            return
        rows.write(connection, "run", "cursor", cursor.as_json())
        commit(connection)
        on_batch(a_pass, cursor)
        batch_rows = next_batch_rows(batch_rows, steady_ms() - started, profile)


def _check_grown(store: str, key: str, text: str, profile: Profile) -> None:
    """Refuse a record that a step made larger or deeper than the next upgrade would read."""
    reason = why_unreadable(key, text, profile.record_bytes_max)
    if not reason and nests_deeper(text, profile.record_depth_max):
        reason = f"it nests deeper than {profile.record_depth_max}"
    if reason:
        raise ValidationError(f"{store}/{shown(key)} after its steps: {reason}", store=store)


def next_batch_rows(batch_rows: int, took_ms: int, profile: Profile) -> int:
    """Rows of the next batch: halved when one took more than an eighth of the deadline, doubled
    back towards the profile's bound when it took less than a thirty-second of it."""
    if took_ms > profile.deadline_ms // 8:
        return max(batch_rows // 2, BATCH_ROWS_MIN)
    if took_ms < profile.deadline_ms // 32:
        return min(batch_rows * 2, profile.batch_rows_max)
    return batch_rows


def moves_of(connection: Connection, plan: Plan) -> set[int]:
    """Which moves of the plan move a record, judged on the data before the run."""
    present = {
        (store, key): connection.execute(
            f"SELECT 1 FROM {quoted(store)} WHERE key = ?", (key,)
        ).fetchone()
        is not None
        for store, key in move_keys(plan)
    }
    try:
        return moves_done(plan, present)
    except ValueError as error:
        raise ValidationError(str(error)) from None
