"""agent.db: the diary. What was done, what was tried, what was given up.

Written by the supervisor alone, in WAL with FULL flushing: a row is there after a power cut once
the call has returned. It is a diary, not the truth, which lies on the data partition: a damaged or
a newer diary is set aside and begun anew, and never a reason not to boot.
"""

from __future__ import annotations

import os
import stat

from agent.edges.database import SQLITE_ERRORS, DatabaseError, open_diary
from agent.edges.flash import delete, make_folder, refused, sync_folder
from agent.ground.codec import decode, encode
from agent.ground.errors import AgentError, StorageFull
from agent.ground.limits import HISTORY_ROWS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

FORMAT = 1
_TABLES = (
    "CREATE TABLE history (seq INTEGER PRIMARY KEY, run TEXT NOT NULL, kind TEXT NOT NULL,"
    " version INTEGER, name TEXT, state TEXT NOT NULL, from_version INTEGER, to_version INTEGER,"
    " verdict TEXT NOT NULL, code TEXT, message TEXT, at_ms INTEGER NOT NULL,"
    " clock_trusted INTEGER NOT NULL, boot_id TEXT NOT NULL, facts TEXT NOT NULL)",
    "CREATE TABLE attempts (seq INTEGER PRIMARY KEY, plan TEXT NOT NULL, boot_id TEXT NOT NULL,"
    " place INTEGER NOT NULL DEFAULT 0, ended TEXT, message TEXT)",
    "CREATE TABLE given_up (plan TEXT PRIMARY KEY, why TEXT NOT NULL)",
)
_HISTORY = (
    "run",
    "kind",
    "version",
    "name",
    "state",
    "from_version",
    "to_version",
    "verdict",
    "code",
    "message",
    "at_ms",
    "clock_trusted",
    "boot_id",
    "facts",
)
# States of runs that reached their switch.
_SWITCHED = "state IN ('applied', 'rolled_back')"
_COLUMNS = (
    ("history", ", ".join(("seq", *_HISTORY))),
    ("attempts", "seq, plan, boot_id, place, ended, message"),
    ("given_up", "plan, why"),
)


class Diary:
    """An open agent.db. Close it before a fork: two processes must not share a connection."""

    __slots__ = ("_db", "path", "set_aside")

    def __init__(self, path: str) -> None:
        self.path = path
        # Why the diary that was there is not in use, or "".
        self.set_aside = ""
        self._db: Connection | None = None

    def _open(self) -> Connection:
        if self._db is None:
            self._db = self._connect()
        return self._db

    def _connect(self) -> Connection:
        try:
            make_folder(os.path.dirname(self.path))
        except OSError as error:
            raise refused(error, f"preparing the folder of {self.path}") from error
        for _ in range(2):
            try:
                return self._try_connect()
            except SQLITE_ERRORS as error:
                if not self._is_damaged(str(error)):
                    raise _refused(error) from error
                self._put_aside("damaged")
        raise AgentError(f"{self.path} cannot be made; look at the file system")

    def _is_damaged(self, text: str) -> bool:
        """Whether what lies there is no diary, rather than flash or another process refusing."""
        words = ("malformed", "not a database", "no such", "already exists", "no column", "decode")
        if os.path.lexists(self.path) and not os.path.isfile(self.path):
            return True
        return any(word in text for word in words)

    def _is_strange(self) -> bool:
        """Whether a link or something else than a file stands where the diary belongs: through a
        link the diary would be written into somebody's file, pos.db perhaps."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False  # not there, or opening it says why not
        return not stat.S_ISREG(found.st_mode) or found.st_nlink > 1

    def _try_connect(self) -> Connection:
        if self._is_strange():
            self._put_aside("damaged")
        connection = open_diary(self.path)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT:
                connection.close()
                self._put_aside("newer")
                return self._try_connect()
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA cache_size=-64")
            if version == 0:
                connection.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version={FORMAT}")
                connection.execute("COMMIT")
            elif connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise DatabaseError("malformed")
            self._prepare(connection)
            for table, columns in _COLUMNS:
                connection.execute(f"SELECT {columns} FROM {table} LIMIT 0")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        """What a part of the diary needs besides."""

    def _put_aside(self, why: str) -> None:
        """Rename the diary out of the way; a second one of the same kind replaces the first.

        A folder cannot be replaced, so where one stands in the way the next number is taken.
        """
        aside, number = f"{self.path}.{why}", 1
        while os.path.isdir(aside) or (number == 1 and os.path.isdir(self.path)):
            aside, number = f"{self.path}.{why}-{number}", number + 1
        try:
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm", "-journal"):
                delete(self.path + suffix)
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise refused(error, f"setting {self.path} aside") from error
        self.set_aside = why

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> int:
        """Statements as one durable commit; the last row number."""
        try:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            number = 0
            for sql, given in statements:
                number = db.execute(sql, given).lastrowid or number
            db.execute("COMMIT")
            return number
        except OverflowError as error:
            self.close()
            raise AgentError("a number is too large for the diary") from error
        except SQLITE_ERRORS as error:
            self.close()
            if not self._is_damaged(str(error)):
                raise _refused(error) from error
        self._put_aside("damaged")
        return self._write(*statements)

    def _read(self, sql: str, given: tuple[Any, ...] = ()) -> list[Any]:
        if self._db is None and not os.path.exists(self.path):
            return []  # reading makes no file
        try:
            return self._open().execute(sql, given).fetchall()
        except SQLITE_ERRORS as error:
            self.close()
            if not self._is_damaged(str(error)):
                raise _refused(error) from error
        self._put_aside("damaged")
        return []

    # Attempts

    def begin_attempt(self, plan: str, boot_id: str) -> int:
        """Count one attempt, durably, before any of its work."""
        return self._write(
            ("INSERT INTO attempts (plan, boot_id) VALUES (?, ?)", (plan, boot_id)),
            (
                "DELETE FROM attempts WHERE seq <= (SELECT max(seq) FROM attempts) - ?",
                (HISTORY_ROWS_MAX,),
            ),
        )

    def end_attempt(self, seq: int, place: int, ended: str, message: str = "") -> None:
        """Note how far an attempt came and how it ended."""
        self._write(
            (
                "UPDATE attempts SET place = ?, ended = ?, message = ? WHERE seq = ?",
                (place, ended, message, seq),
            )
        )

    def attempts(self, plan: str, boot_id: str) -> list[tuple[str, int, str]]:
        """(boot id, place, end) of the plan's attempts since one of it ended well.

        An attempt without an end was a power cut if it belongs to another boot, else a death.
        Refused ones are left out: they did no work.
        """
        rows = self._read(
            "SELECT boot_id, place, ended FROM attempts WHERE plan = ? AND seq > "
            "(SELECT coalesce(max(seq), 0) FROM attempts WHERE plan = ? AND ended IN"
            " ('done', 'asked')) AND coalesce(ended, '') != 'refused' ORDER BY seq",
            (plan, plan),
        )
        return [
            (boot, place, end or ("died" if boot == boot_id else "cut"))
            for boot, place, end in rows
        ]

    def last_message(self, plan: str) -> str:
        """Why the plan's latest attempt that said anything ended."""
        rows = self._read(
            "SELECT message FROM attempts WHERE plan = ? AND coalesce(message, '') != ''"
            " ORDER BY seq DESC LIMIT 1",
            (plan,),
        )
        return str(rows[0][0]) if rows else "it said nothing"

    def came_as_far_as(self, plan: str, place: int) -> None:
        """Note what the successor on flash says of attempts that could not report themselves."""
        self._write(
            (
                "UPDATE attempts SET place = ? WHERE seq = (SELECT max(seq) FROM attempts"
                " WHERE plan = ? AND ended IS NULL) AND place < ?",
                (place, plan, place),
            )
        )

    def give_up(self, plan: str, why: str) -> None:
        """Remember a plan that is not tried again by itself."""
        self._write(("INSERT OR REPLACE INTO given_up (plan, why) VALUES (?, ?)", (plan, why)))

    def forgive(self, plan: str) -> None:
        """Somebody asked: the plan gets a new count."""
        self._write(
            ("DELETE FROM given_up WHERE plan = ?", (plan,)),
            ("UPDATE attempts SET ended = 'asked' WHERE plan = ?", (plan,)),
        )

    def take_back(self, plan: str) -> None:
        """A plan that was held is pending again."""
        self._write(("DELETE FROM given_up WHERE plan = ?", (plan,)))

    def given_up(self) -> dict[str, str]:
        """Plan digest -> why."""
        return dict(self._read("SELECT plan, why FROM given_up"))

    # History

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Add rows, all of them or none; the oldest beyond the bound go."""
        marks = ", ".join("?" * len(_HISTORY))
        sql = f"INSERT INTO history ({', '.join(_HISTORY)}) VALUES ({marks})"
        inserts = []
        for row in rows:
            given = dict(row, facts=encode(row.get("facts", {})))
            inserts.append((sql, tuple(given.get(name) for name in _HISTORY)))
        trim = "DELETE FROM history WHERE seq <= (SELECT max(seq) FROM history) - ?"
        self._write(*inserts, (trim, (HISTORY_ROWS_MAX,)))

    def knows_run(self, run: str) -> bool:
        """Whether history has the end of this run."""
        sql = f"SELECT 1 FROM history WHERE run = ? AND {_SWITCHED} LIMIT 1"
        return bool(self._read(sql, (run,)))

    def runs(self) -> set[str]:
        """Every run whose switch history knows; one that failed may have been cut after it."""
        sql = f"SELECT DISTINCT run FROM history WHERE {_SWITCHED}"
        return {row[0] for row in self._read(sql)}

    def history(self, limit: int = HISTORY_ROWS_MAX) -> list[dict[str, Any]]:
        """The newest rows, oldest first."""
        rows = self._read(
            f"SELECT seq, {', '.join(_HISTORY)} FROM history ORDER BY seq DESC LIMIT ?", (limit,)
        )
        found = []
        for row in reversed(rows):
            entry = dict(zip(("seq", *_HISTORY), row))
            try:
                entry["facts"] = decode(entry["facts"])
            except (ValueError, TypeError):
                entry["facts"] = {}  # a row that somebody else wrote
            entry["clock_trusted"] = bool(entry["clock_trusted"])
            found.append(entry)
        return found


def _refused(error: Exception) -> AgentError:
    text = str(error)
    if "full" in text or "readonly" in text or "disk I/O" in text or "unable to open" in text:
        return StorageFull(f"the agent's diary cannot be written ({text}); look at the flash")
    return AgentError(f"the agent's diary cannot be used ({text})")
