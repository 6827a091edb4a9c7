"""The batches: every pass of the plan over the successor, rows and cursor in one commit.

After a cut the successor is at a batch boundary, and the cursor in it says which; so each record
gets each step exactly once, idempotent or not. What the way back of a record needs is written in
the commit that changes it. The author of a step never sees a loop.
"""

from __future__ import annotations

from agent.core.appending import Appender, only_appends
from agent.core.ledger import Ledger
from agent.core.left_behind import Left, record_name
from agent.core.meaning import run_pass
from agent.core.plan import Pass, Plan, has_step
from agent.core.steps import shown
from agent.edges.clock import steady_ms
from agent.edges.database import (
    SQLITE_ERRORS,
    begin,
    commit,
    has_rowid,
    lenient_text,
    quoted,
    refused_by_sqlite,
)
from agent.ground.codec import decode, encode
from agent.ground.errors import ValidationError
from agent.verbs import leaving, moving, rows, schema
from agent.verbs.batches import Batch, Cursor, as_place, next_batch_rows, read_cursor, sought
from agent.verbs.reading import check_grown, read_with_care, why_grown, why_unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.profile import Profile
    from agent.core.stores import Contracts


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
                    moving.move_record(self, a_pass, cursor)
                elif a_pass.kind == "sql":
                    self._sql(a_pass, cursor)
                elif a_pass.kind == "pick":
                    self._pick(a_pass, cursor)
                else:
                    self._walk(a_pass, cursor, on_batch)
            except SQLITE_ERRORS as error:
                doing = f"migrating {a_pass.store}" if a_pass.store else a_pass.describe()
                raise refused_by_sqlite(error, doing) from error
            on_batch(a_pass, cursor)

    def end_of_pass(self, cursor: Cursor) -> None:
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
        self.end_of_pass(cursor)
        commit(self.connection)

    def _pick(self, a_pass: Pass, cursor: Cursor) -> None:
        connection, store = self.connection, quoted(a_pass.store)
        ledger_of = rows.ledger_reader(connection, a_pass.versions()) if a_pass.down else None
        batch = Batch()
        for key in a_pass.keys:
            row = moving.value_of(self, a_pass.store, key)
            if row is not None:
                self._one(a_pass, batch, (key, key, row[0], None), ledger_of)
                cursor.done += 1
        begin(connection)
        self._write(a_pass, batch, f"UPDATE {store} SET value = ? WHERE key = ?")
        self.end_of_pass(cursor)
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
            except SQLITE_ERRORS as error:
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
                self.end_of_pass(cursor)
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
