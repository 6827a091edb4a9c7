"""The daemon's part of agent.db: calls that change something, who asked for what, tries of codes.

A call is durable before it is answered, so that its repeat finds it, also after a power cut. No
connection stays open between two calls: a worker may be forked at any moment.
"""

from __future__ import annotations

from agent.edges.state import Diary
from agent.ground.codec import decode, encode
from agent.ground.limits import AUDIT_ROWS_MAX, OPS_KEPT_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

STARTED, DONE, FAILED, INTERRUPTED = "started", "done", "failed", "interrupted"

_TABLES = (
    # AUTOINCREMENT: the number of a run is never given to another one.
    "CREATE TABLE IF NOT EXISTS calls (run INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT UNIQUE,"
    " digest TEXT NOT NULL, method TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,"
    " outcome TEXT NOT NULL, history_before INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS audit (seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL,"
    " boot_id TEXT NOT NULL, link TEXT NOT NULL, level TEXT NOT NULL, method TEXT NOT NULL,"
    " outcome TEXT NOT NULL, count INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS access (one INTEGER PRIMARY KEY CHECK (one = 1),"
    " counter INTEGER NOT NULL, fails INTEGER NOT NULL, locked INTEGER NOT NULL)",
)
_CALL = "run, op, digest, method, kind, state, outcome, history_before"
_AUDIT = ("at_ms", "boot_id", "link", "level", "method", "outcome", "count")


class Call:
    """One row: a call that was accepted under the number `run`, and what became of it."""

    __slots__ = ("digest", "history_before", "kind", "method", "op", "outcome", "run", "state")

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.run: int = row[0]
        self.op: str | None = row[1]
        self.digest: str = row[2]
        self.method: str = row[3]
        self.kind: str = row[4]
        self.state: str = row[5]
        self.outcome: dict[str, Any] = _object(row[6])
        # SQLite keeps whatever a damaged page says, a text where a number belongs.
        self.history_before: int = row[7] if type(row[7]) is int else 0


def _object(text: str) -> dict[str, Any]:
    try:
        value = decode(text)
    except (ValueError, TypeError):
        return {}  # a row that somebody else wrote
    return value if type(value) is dict else {}


class Ledger(Diary):
    """The same file as the diary, opened for one call at a time."""

    __slots__ = ()

    def _prepare(self, connection: Connection) -> None:
        for table in _TABLES:
            connection.execute(table)
        for table, columns in (
            ("calls", _CALL),
            ("audit", ", ".join(_AUDIT)),
            ("access", "counter, fails, locked"),
        ):
            connection.execute(f"SELECT {columns} FROM {table} LIMIT 0")

    def accept(
        self,
        op: str | None,
        digest: str,
        method: str,
        kind: str,
        audit: dict[str, Any],
        to_version: int | None = None,
    ) -> Call:
        """Make a call durable and give it its number, before it is answered and before any of its
        work. Power gone before the commit: nobody was answered; behind it: the repeat finds it."""
        try:
            last = self._read("SELECT coalesce(max(seq), 0) FROM history")
            self._write(
                (
                    "INSERT INTO calls (op, digest, method, kind, state, outcome, history_before)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        op,
                        digest,
                        method,
                        kind,
                        STARTED,
                        "{}" if to_version is None else encode({"to_version": to_version}),
                        last[0][0] if last else 0,
                    ),
                ),
                _audit_insert(audit),
            )
            return self._calls("run = (SELECT max(run) FROM calls WHERE ? = 0)", 0)[0]
        finally:
            self.close()

    def end(self, run: int, state: str, outcome: dict[str, Any]) -> None:
        """What became of a call; the oldest beyond the bound go, by count and not by clock."""
        try:
            self._write(
                (
                    "UPDATE calls SET state = ?, outcome = ? WHERE run = ?",
                    (state, encode(outcome), run),
                ),
                (
                    "DELETE FROM calls WHERE state != ?"
                    " AND run <= (SELECT max(run) FROM calls) - ?",
                    (STARTED, OPS_KEPT_MAX),
                ),
            )
        finally:
            self.close()

    def find(self, op: str = "", run: int = 0) -> Call | None:
        """A call by its key or by its number."""
        try:
            found = self._calls("op = ?", op) if op else self._calls("run = ?", run)
            return found[0] if found else None
        finally:
            self.close()

    def newest(self) -> Call | None:
        """The last call that was accepted."""
        try:
            found = self._calls("run = (SELECT max(run) FROM calls WHERE ? = 0)", 0)
            return found[0] if found else None
        finally:
            self.close()

    def without_end(self) -> list[Call]:
        """Calls whose end nobody wrote: the daemon died meanwhile."""
        try:
            return self._calls("state = ?", STARTED)
        finally:
            self.close()

    def history_behind(self, call: Call) -> dict[str, Any] | None:
        """The last row of history since a call that is of its kind and leads where it leads."""
        to_version = call.outcome.get("to_version")
        try:
            rows = [
                row
                for row in self.history()
                if row["seq"] > call.history_before
                and row["kind"] == call.kind
                and to_version in (None, row["to_version"])
            ]
            return rows[-1] if rows else None
        finally:
            self.close()

    def _calls(self, where: str, given: Any) -> list[Call]:
        rows = self._read(f"SELECT {_CALL} FROM calls WHERE {where} ORDER BY run", (given,))
        return [Call(row) for row in rows]

    def note(self, rows: list[dict[str, Any]]) -> None:
        """Add audit rows in one commit; the oldest beyond the bound go."""
        trim = "DELETE FROM audit WHERE seq <= (SELECT max(seq) FROM audit) - ?"
        try:
            self._write(
                *map(_audit_insert, rows),
                (trim, (AUDIT_ROWS_MAX,)),
            )
        finally:
            self.close()

    def load_access(self) -> dict[str, int]:
        """Counter of challenges, wrong tries so far, and whether codes are locked."""
        try:
            rows = self._read("SELECT counter, fails, locked FROM access")
            return dict(zip(("counter", "fails", "locked"), rows[0] if rows else (0, 0, 0)))
        finally:
            self.close()

    def save_access(self, counter: int, fails: int, locked: int) -> None:
        """Durable when it returns, so that no cut of power gives a try back."""
        sql = "INSERT OR REPLACE INTO access (one, counter, fails, locked) VALUES (1, ?, ?, ?)"
        try:
            self._write((sql, (counter, fails, locked)))
        finally:
            self.close()


def _audit_insert(row: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    marks = ", ".join("?" * len(_AUDIT))
    sql = f"INSERT INTO audit ({', '.join(_AUDIT)}) VALUES ({marks})"
    return sql, tuple(row[name] for name in _AUDIT)


def read_audit(connection: Connection) -> list[dict[str, Any]]:
    """The audit rows of a diary that is open already, oldest first."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'audit'").fetchone()
    if known is None:
        return []
    rows = connection.execute(f"SELECT seq, {', '.join(_AUDIT)} FROM audit ORDER BY seq").fetchall()
    return [dict(zip(("seq", *_AUDIT), row)) for row in rows]
