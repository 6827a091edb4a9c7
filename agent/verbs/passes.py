"""The batches: every pass of the plan over the successor, rows and cursor in one commit.

After a cut the successor is at a batch boundary, and the cursor in it says which; so each record
gets each step exactly once, idempotent or not. What the way back of a record needs is written in
the commit that changes it. The author of a step never sees a loop.
"""

from __future__ import annotations

from agent.core.appending import Appender, only_appends
from agent.core.ledger import Ledger
from agent.core.left_behind import Left, Stopped, record_name
from agent.core.plan import Move, Pass, Plan, has_step, move_keys, moves_done, run_pass
from agent.core.steps import shown
from agent.edges.clock import steady_ms
from agent.edges.database import (
    SqliteError,
    begin,
    commit,
    has_rowid,
    lenient_text,
    quoted,
    refused_by_sqlite,
)
from agent.ground.codec import decode, encode, nests_deeper
from agent.ground.errors import ValidationError
from agent.verbs import leaving, rows, schema
from agent.verbs.survey import read_with_care, why_unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.profile import Profile
    from agent.core.step import Step
    from agent.core.stores import Contracts

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


class Batch:
    """What one commit will write: texts of records, their ledgers, who is left behind."""

    __slots__ = ("back", "changed", "ledgers", "left", "seen", "size")

    def __init__(self) -> None:
        self.changed: list[tuple[str, Any]] = []
        self.ledgers: list[tuple[str, str, str]] = []
        self.left: list[tuple[Stopped, tuple[str, Any, Any]]] = []
        self.back: list[str] = []  # names of records that are left behind no longer
        self.size = self.seen = 0

    def note(self, store: str, key: str, ledger: Ledger) -> None:
        """Add what a record's way back needs."""
        if ledger.entries:
            made = rows.ledger_rows(store, key, ledger)
            self.ledgers += made
            self.size += sum(len(row[1]) + len(row[2]) for row in made)


class Passes:
    """The passes of a bound plan over one successor."""

    def __init__(
        self, connection: Connection, plan: Plan, profile: Profile, contracts: Contracts
    ) -> None:
        self.connection = connection
        self.plan = plan
        self.profile = profile
        self.contracts = contracts
        self.limits = (profile.record_bytes_max, profile.record_depth_max)
        self.left = rows.quarantined(connection)
        # Whether texts are read with bytes that are no UTF-8 kept apart.
        self.lenient = False
        self.number = 0  # of the pass that is on

    def run(self, on_batch: Callable[[Pass, Cursor], None]) -> None:
        """Run what is left of the plan. `on_batch` is called after each commit.

        Raises ValidationError when a record, a step or a check fails; the successor is then
        worthless.
        """
        cursor = read_cursor(self.connection)
        plan = self.plan
        if not plan.down and len(self.left) and rows.read(self.connection, "run", "cursor") is None:
            leaving.try_again(self, cursor, lambda: on_batch(plan.passes[0], cursor))
        while cursor.number < len(plan.passes):
            a_pass = plan.passes[cursor.number]
            self.left = rows.quarantined(self.connection)
            self.number = cursor.number
            try:
                if a_pass.kind == "move":
                    self._move(a_pass, cursor)
                elif a_pass.kind == "sql":
                    self._sql(a_pass, cursor)
                elif a_pass.kind == "pick":
                    self._pick(a_pass, cursor)
                else:
                    self._walk(a_pass, cursor, on_batch)
            except SqliteError as error:
                doing = f"migrating {a_pass.store}" if a_pass.store else a_pass.describe()
                raise refused_by_sqlite(error, doing) from error
            on_batch(a_pass, cursor)

    def _end_of_pass(self, cursor: Cursor) -> None:
        """Move the cursor behind a pass, inside the transaction that did its last rows."""
        cursor.number += 1
        cursor.after = None
        rows.write(self.connection, "run", "cursor", cursor.as_json())

    def _sql(self, a_pass: Pass, cursor: Cursor) -> None:
        version, step = a_pass.steps[0]
        begin(self.connection)
        if not a_pass.down:
            nothing_to_do = schema.run_statement(self.connection, step, False)
            if nothing_to_do and step.keeps:
                rows.write_there(self.connection, version, step.number)
        elif (version, step.number) not in rows.read_there(self.connection):
            schema.run_statement(self.connection, step, True)
        self._end_of_pass(cursor)
        commit(self.connection)

    def _move(self, a_pass: Pass, cursor: Cursor) -> None:
        move = Move(a_pass)
        found = self._row(*move.source)
        moves, stopped = False, None
        if found is not None:
            moves, stopped = self._judged(a_pass, move, found[0])
        begin(self.connection)
        if found is not None and stopped is not None:
            leaving.note(self, stopped, *move.source, found[0])
        if found is not None and moves:
            self._carry(a_pass, move, found[0])
            cursor.done += 1
        self._end_of_pass(cursor)
        commit(self.connection)

    def _judged(self, a_pass: Pass, move: Move, value: Any) -> tuple[bool, Stopped | None]:
        """Whether a record is to be moved, and how far it came where it is left behind instead."""
        version, step = a_pass.steps[0]
        left = self.left.of(*move.source, value)
        taken = self._row(*move.target) is not None
        if a_pass.down:
            # What was left behind before the move has not been moved.
            had = left is None or left.version >= version
            noted = (version, step.number) in rows.read_moved(self.connection)
            return had and noted and not taken, None
        if left is not None:
            return False, None
        if taken and step.if_exists != "keep":
            raise ValidationError(
                f"{'/'.join(move.source)} cannot move: {'/'.join(move.target)} is there"
            )
        stopped = leaving.stopped_at_move(self, self.number, value, taken)
        return stopped is None and not taken, stopped

    def _carry(self, a_pass: Pass, move: Move, value: Any) -> None:
        """Move a record, inside the caller's transaction. SQLite does it by itself, so that the
        value keeps its bytes and its type, whatever they are."""
        version, step = a_pass.steps[0]
        (store, key), (target, to_key) = move.source, move.target
        self.connection.execute(
            f"INSERT INTO {quoted(target)} (key, value) "
            f"SELECT ?, value FROM {quoted(store)} WHERE key = ?",
            (to_key, key),
        )
        self.connection.execute(f"DELETE FROM {quoted(store)} WHERE key = ?", (key,))
        if not a_pass.down and step.keeps:
            rows.write_moved(self.connection, version, step.number, move.source, move.target)
        left = self.left.of(store, key, value)
        if left is not None:
            leaving.rename(self.connection, left, move)

    def _row(self, store: str, key: str) -> tuple[Any] | None:
        """A record's value as it lies, in a tuple, since NULL is one; None for no record."""
        with lenient_text(self.connection):
            found: tuple[Any] | None = self.connection.execute(
                f"SELECT value FROM {quoted(store)} WHERE key = ?", (key,)
            ).fetchone()
        return found

    def _pick(self, a_pass: Pass, cursor: Cursor) -> None:
        connection, store = self.connection, quoted(a_pass.store)
        ledger_of = rows.ledger_reader(connection, a_pass.versions()) if a_pass.down else None
        batch = Batch()
        for key in a_pass.keys:
            row = self._row(a_pass.store, key)
            if row is not None:
                self._one(a_pass, batch, (key, key, row[0], None), ledger_of)
                cursor.done += 1
        begin(connection)
        self._write(a_pass, batch, f"UPDATE {store} SET value = ? WHERE key = ?")
        self._end_of_pass(cursor)
        commit(connection)

    def _walk(self, a_pass: Pass, cursor: Cursor, on_batch: Callable[[Pass, Cursor], None]) -> None:
        connection, profile = self.connection, self.profile
        by = "rowid" if has_rowid(connection, a_pass.store) else "key"
        store = quoted(a_pass.store)
        first = f"SELECT {by}, key, value FROM {store} ORDER BY {by} LIMIT ?"
        update = f"UPDATE {store} SET value = ? WHERE {by} = ?"
        fast = not a_pass.down and only_appends(a_pass.steps)
        appender = Appender(a_pass.steps, self.plan.contexts) if fast else None
        if appender is not None and appender.nests_deeper(self.limits[1]):
            appender = None
        ledger_of = rows.ledger_reader(connection, a_pass.versions()) if a_pass.down else None
        batch_rows = profile.batch_rows_max
        number = cursor.number
        while cursor.number == number:
            started = steady_ms()
            select: tuple[str, tuple[Any, ...]] = (first, (batch_rows,))
            if cursor.after is not None:
                known, place = sought(cursor.after)
                after = f"SELECT {by}, key, value FROM {store} WHERE {by} > {known}"
                select = (f"{after} ORDER BY {by} LIMIT ?", (place, batch_rows))
            try:
                batch, last = self._read_batch(a_pass, select, appender, ledger_of)
            except SqliteError as error:
                if "decode" not in str(error) or not self._leaves(a_pass):
                    raise
                # A text that is not UTF-8 is among them: one by one, with the bytes kept apart.
                self.lenient = True
                with lenient_text(connection):
                    batch, last = self._read_batch(a_pass, select, appender, ledger_of)
                self.lenient = False
            begin(connection)
            self._write(a_pass, batch, update)
            cursor.done += batch.seen
            if batch.seen < batch_rows and batch.size < profile.batch_bytes_max:
                self._end_of_pass(cursor)
                commit(connection)
                return
            cursor.after = as_place(last)
            rows.write(connection, "run", "cursor", cursor.as_json())
            commit(connection)
            on_batch(a_pass, cursor)
            batch_rows = next_batch_rows(batch_rows, steady_ms() - started, profile)

    def _leaves(self, a_pass: Pass) -> bool:
        """Whether a record of the pass may be left, or was."""
        return self.plan.quarantines(a_pass.steps[0][0]) or self.left.in_store(a_pass.store)

    def _read_batch(
        self,
        a_pass: Pass,
        select: tuple[str, tuple[Any, ...]],
        appender: Appender | None,
        ledger_of: Callable[[str, str], Ledger] | None,
    ) -> tuple[Batch, Any]:
        """The next rows with the pass done to them, and the last one's place."""
        batch, last = Batch(), None
        bytes_max, (record_max, depth_max) = self.profile.batch_bytes_max, self.limits
        slow = self.lenient or self.left.in_store(a_pass.store)
        rows_found = self.connection.execute(*select)
        for at, key, value in rows_found:
            batch.seen += 1
            last = at
            record = text = None
            # The quick way, which most records of most plans can go.
            if not slow and not why_unreadable(key, value, record_max):
                try:
                    record = decode(value, depth_max)
                except ValueError:
                    pass  # judged below
                else:
                    text = appender.appended(value, record) if appender is not None else None
            # Its depth was judged, and that of what is added.
            grown = text is not value and text is not None and len(text) * 4 > record_max
            if text is None or (grown and why_grown(key, text, self.limits)):
                self._one(a_pass, batch, (at, key, value, record), ledger_of)
            elif text is not value:
                batch.changed.append((text, at))
                batch.size += len(text)
            if batch.size >= bytes_max:
                break
        rows_found.close()
        return batch, last

    def _one(
        self,
        a_pass: Pass,
        batch: Batch,
        row: tuple[Any, Any, Any, Any],
        ledger_of: Callable[[str, str], Ledger] | None,
    ) -> None:
        """Do the pass to one record, or leave it behind where its migration says so. `row` is
        (place, key, value, the decoded record or None)."""
        at, key, value, record = row
        store = a_pass.store
        left = self.left.of(store, key, value)
        if left is not None and not a_pass.down:
            return
        ledger = ledger_of(store, key) if ledger_of is not None else Ledger()
        text = value
        try:
            if record is None:
                record = self.decoded(store, key, value)
            version = left.version if left is not None else None
            if run_pass(a_pass, key, record, self.plan.contexts, ledger, version):
                text = encode(record)
                self.check_grown(store, key, text)
        except ValidationError as error:
            if left is not None and isinstance(error, leaving.Unreadable):
                return  # it could not be read then, and still cannot
            stopped = leaving.stopped(self, a_pass, key, value, error)
            batch.left.append((stopped, (store, key, value)))
            text, ledger = stopped.text, stopped.ledger
        if text != value:
            batch.changed.append((text, at))
            batch.size += len(text)
        if not a_pass.down:
            batch.note(store, key, ledger)
        elif left is not None and (text != value or self._is_done(store, key, left)):
            batch.back.append(record_name(store, key).hex())

    def _is_done(self, store: str, key: str, left: Left) -> bool:
        """Whether a way down has come to the version at which a record was left behind, and no
        later pass has anything to undo of it: it is an ordinary one from here on."""
        if left.version < self.plan.to_version:
            return False
        return not has_step(self.plan.passes[self.number + 1 :], store, key)

    def decoded(self, store: str, key: Any, value: Any) -> Any:
        """The record, read strictly. Raises leaving.Unreadable."""
        record, reason = read_with_care(key, value, self.limits)
        if reason:
            raise leaving.Unreadable(f"{store}/{shown(key)}: {reason}", store=store, key=shown(key))
        return record

    def _write(self, a_pass: Pass, batch: Batch, update: str) -> None:
        """Put a batch's rows, inside the caller's transaction."""
        if batch.changed:
            self.connection.executemany(update, batch.changed)
        ledgers = batch.ledgers
        if a_pass.split:
            ledgers = [self._joined(row) for row in ledgers]
        if ledgers:
            rows.put_ledgers(self.connection, ledgers)
        for stopped, record in batch.left:
            leaving.note(self, stopped, *record)
        for name in batch.back:
            rows.remove_one(self.connection, "quarantine", name)

    def _joined(self, row: tuple[str, str, str]) -> tuple[str, str, str]:
        """A ledger row with what an earlier pass of its version has noted for the record."""
        kind, key, value = row
        known = rows.read(self.connection, kind, key, 1 << 62)  # this run has written it
        if known is None:
            return row
        rows.remove_one(self.connection, kind, key)
        return kind, key, encode(known + decode(value))

    def check_grown(self, store: str, key: str, text: str) -> None:
        """See `check_grown`."""
        check_grown(store, key, text, self.limits)


def check_grown(store: str, key: str, text: str, limits: tuple[int, int]) -> None:
    """Refuse a record that a step made larger or deeper than the next upgrade would read."""
    reason = why_grown(key, text, limits)
    if reason:
        raise ValidationError(f"{store}/{shown(key)} after its steps: {reason}", store=store)


def why_grown(key: str, text: str, limits: tuple[int, int]) -> str:
    """Why the next upgrade would not read a record that a step has changed, or ""."""
    bytes_max, depth_max = limits
    reason = why_unreadable(key, text, bytes_max)
    if not reason and nests_deeper(text, depth_max):
        reason = f"it nests deeper than {depth_max}"
    return reason


def as_place(at: Any) -> Any:
    """A row's rowid or key as the cursor row holds it: JSON has no word for a key that is a BLOB,
    or that holds bytes which are no UTF-8."""
    if type(at) is bytes:
        return {"blob": at.hex()}
    if type(at) is str:
        data = at.encode("utf-8", "surrogateescape")
        return at if data.decode("utf-8", "replace") == at else {"text": data.hex()}
    return at


def sought(place: Any) -> tuple[str, Any]:
    """What stands in SQL for a place, and what is bound to it."""
    if type(place) is not dict:
        return "?", place
    if "blob" in place:
        return "?", bytes.fromhex(place["blob"])
    return "CAST(? AS TEXT)", bytes.fromhex(place["text"])


def next_batch_rows(batch_rows: int, took_ms: int, profile: Profile) -> int:
    """Rows of the next batch: halved when one took more than an eighth of the deadline, doubled
    back towards the profile's bound when it took less than a thirty-second of it."""
    if took_ms > profile.deadline_ms // 8:
        return max(batch_rows // 2, BATCH_ROWS_MIN)
    if took_ms < profile.deadline_ms // 32:
        return min(batch_rows * 2, profile.batch_rows_max)
    return batch_rows


def moves_of(connection: Connection, plan: Plan, new: Connection | None = None) -> set[int]:
    """Which moves of the plan move a record, judged on the data before the run. A record that was
    left behind stays where it is; `new` tells of those that this run left."""
    present = {}
    for store, key in move_keys(plan):
        row = connection.execute(f"SELECT 1 FROM {quoted(store)} WHERE key = ?", (key,)).fetchone()
        present[store, key] = row is not None
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
        sql = f"SELECT 1 FROM {quoted(store)} WHERE key = ?"
        if connection.execute(sql, (key,)).fetchone() is not None:
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
            select = f"SELECT value FROM {quoted(store)} WHERE key = ?"
            value = new.execute(select, (key,)).fetchone()
            row = left.of(store, key, value[0]) if value is not None else None
            if row is not None and row.version < a_pass.steps[0][0]:
                found.add(number)
    return found
