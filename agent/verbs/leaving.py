"""Leaving a record behind: whether that may be, its row, and trying it again in a later plan."""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.left_behind import (
    LEFT_BEHIND_MAX,
    Left,
    Stopped,
    as_far_as,
    brought_up,
    fails_behind,
    first_version,
    record_digest,
    record_name,
)
from agent.core.meaning import Move
from agent.core.steps import shown
from agent.edges.database import begin, commit, lenient_text, quoted
from agent.ground.codec import decode, encode
from agent.ground.errors import ValidationError
from agent.verbs import rows
from agent.verbs.reading import ROWS_PER_MARK, read_with_care, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.plan import Pass
    from agent.verbs.batches import Cursor
    from agent.verbs.passes import Passes


class Unreadable(ValidationError):
    """A row whose value is no record that can be judged."""


def stopped(passes: Passes, a_pass: Pass, key: Any, value: Any, error: ValidationError) -> Stopped:
    """How far a record comes that the pass could not do. Raises `error`, or the error of the
    migration that stops it, where that one does not leave it behind or this terminal may not."""
    plan = passes.plan
    if a_pass.down:
        raise error
    record = None
    if isinstance(error, Unreadable):
        version = first_version(a_pass, key)
        if not plan.quarantines(version):
            raise error
        found = Stopped(value, version - 1, Ledger(), error.message)
    else:
        found = as_far_as(
            plan,
            a_pass,
            key,
            value,
            lambda text: passes.check_grown(a_pass.store, key, text),
            passes.limits[1],
        )
        record = decode(found.text, passes.limits[1])
    return _allowed(passes, a_pass.store, key, record, found, error)


def stopped_at_move(passes: Passes, number: int, value: Any, taken: bool) -> Stopped | None:
    """How far a record comes that move pass `number` names, if no further: its migration cannot
    read it, or cannot do it behind the move. None where nothing is in the way; `taken` tells that
    the record stays where it is anyway. Raises as `stopped` does."""
    a_pass = passes.plan.passes[number]
    version, (store, key) = a_pass.steps[0][0], Move(a_pass).source
    record = None
    try:
        record = passes.decoded(store, key, value)
        why = ""
        if not taken:
            why = fails_behind(
                passes.plan,
                number,
                value,
                lambda text: passes.check_grown(store, key, text),
                passes.limits[1],
            )
        if not why:
            return None
        raise ValidationError(why, store=store, key=shown(key))
    except ValidationError as error:
        if not passes.plan.quarantines(version):
            raise
        found = Stopped(value, version - 1, Ledger(), error.message)
        return _allowed(passes, store, key, record, found, error)


def _allowed(
    passes: Passes, store: str, key: Any, record: Any, found: Stopped, error: ValidationError
) -> Stopped:
    """`found`, unless it is unsettled and this terminal leaves no such record behind."""
    if not passes.profile.quarantine_unsettled and is_unsettled(
        passes, store, key, record, found.version
    ):
        raise ValidationError(
            f"{error.message}; it is unsettled, and this terminal's profile does not leave such "
            "records behind",
            **error.facts,
        ) from error
    return found


def is_unsettled(passes: Passes, store: str, key: Any, record: Any, version: int) -> bool:
    """Whether a record counts as unsettled; one that cannot be read does where any may be."""
    rules = passes.contracts.at(version).stores.get(store)
    if rules is None or not rules.rules:
        return False
    return record is None or rules.unsettled_rule(key, record) is not None


def note(passes: Passes, stopped: Stopped, store: str, key: Any, value: Any) -> None:
    """Write the row of a record left behind, inside the caller's transaction."""
    text = stopped.text if type(value) is str else value
    digest = record_digest(store, key, text).hex()
    left = Left(store, shown(key), stopped.version, digest[32:], _without_key(stopped.reason))
    rows.write_quarantined(passes.connection, digest[:32], left)
    if rows.count(passes.connection, "quarantine") > LEFT_BEHIND_MAX:
        raise ValidationError(
            f"more than {LEFT_BEHIND_MAX} records cannot be migrated, the last of them is "
            f"{store}/{shown(key)}: {left.reason}; look at the migration, or at where the data "
            "comes from"
        )


def _without_key(message: str) -> str:
    """A reason as the list shows it behind the record's name."""
    return message.partition(": ")[2] or message


def rename(connection: Connection, left: Left, move: Move) -> None:
    """Carry the row of a record left behind along with it, inside the caller's transaction."""
    rows.remove_one(connection, "quarantine", record_name(*move.source).hex())
    store, key = move.target
    carried = Left(store, shown(key), left.version, left.digest, left.reason)
    rows.write_quarantined(connection, record_name(store, key).hex(), carried)


def try_again(passes: Passes, cursor: Cursor, mark: Callable[[], None]) -> None:
    """Bring what earlier plans left behind to the version this plan starts at, where it can be done
    now; in one commit with the cursor, so that a cut repeats nothing.

    A record that the application has changed since is an ordinary one again.
    """
    begin(passes.connection)
    for store in sorted(passes.plan.stores()):
        if passes.left.in_store(store):
            _try_store(passes, store, mark)
    rows.write(passes.connection, "run", "cursor", cursor.as_json())
    commit(passes.connection)


def _try_store(passes: Passes, store: str, mark: Callable[[], None]) -> None:
    connection, plan = passes.connection, passes.plan
    still, readable = set(), []
    # Their values are not gathered: a thousand of the largest would not fit into memory.
    with lenient_text(connection):
        for number, (key, value) in enumerate(rows_of(connection, store)):
            if number % ROWS_PER_MARK == 0:
                mark()
            left = passes.left.of(store, key, value)
            if left is None:
                continue
            if read_with_care(key, value, passes.limits)[1]:
                still.add(record_name(store, key).hex())
            else:
                readable.append((key, left.version))
    for key, version in readable:
        select = f"SELECT value FROM {quoted(store)} WHERE key = ?"
        value = connection.execute(select, (key,)).fetchone()[0]
        ledger = Ledger()
        try:
            record = passes.decoded(store, key, value)
            changed = brought_up(plan, store, key, record, version, ledger)
            text = encode(record) if changed else value
            passes.check_grown(store, key, text)
        except ValidationError:
            still.add(record_name(store, key).hex())
            continue
        if changed:
            connection.execute(f"UPDATE {quoted(store)} SET value = ? WHERE key = ?", (text, key))
        for row in rows.ledger_rows(store, key, ledger):
            rows.remove_one(connection, row[0], row[1])
            rows.put_ledgers(connection, [row])
    for name in passes.left.names(store):
        if name not in still:
            rows.remove_one(connection, "quarantine", name)
