"""SQLite files: recovering one under our lock, reading a source, building a successor.

pos.db is opened for writing here only to let SQLite recover what the application left, and, after
the switch, to give a file back the journal mode it came with. Every connection is made under the
lock of `filelock`, so it uses the VFS without locks: a normal one would be BUSY against ourselves.
"""

from __future__ import annotations

import os

from agent.edges.flash import read_start, sync_folder
from agent.ground.errors import AgentError, NeedsTechnician, StorageFull, ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import _sqlite3 as sqlite  # the package around it brings datetime and collections.abc
except ImportError:
    import sqlite3 as sqlite  # type: ignore[no-redef]

if TYPE_CHECKING:
    from sqlite3 import Connection

SqliteError = sqlite.Error
# Python's module answers a message of SQLite that quotes damaged bytes with UnicodeDecodeError.
SQLITE_ERRORS = (sqlite.Error, UnicodeDecodeError)
DatabaseError = sqlite.DatabaseError
SQLITE_VERSION: str = sqlite.sqlite_version
OLDEST_SQLITE = (3, 8, 3)  # WITHOUT ROWID from 3.8.2, common table expressions from 3.8.3

SIDE_FILES = ("-wal", "-shm", "-journal")
# A source is read from its first row to its last, and no page is wanted twice.
SOURCE_CACHE_BYTES_MAX = 262_144
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\x00"


class Header:
    """What the first 100 bytes of an SQLite file say (sqlite.org, Database File Format, 1.3)."""

    __slots__ = ("page_bytes", "user_version", "wal_mode")

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[16:18], "big")
        self.page_bytes = 65536 if size == 1 else size
        self.wal_mode = data[18] == 2 or data[19] == 2
        self.user_version = int.from_bytes(data[60:64], "big", signed=True)


def read_header(path: str) -> Header | None:
    """The header of the file, or None when it is not an SQLite file. Raises OSError."""
    data = read_start(path, _HEADER_BYTES)
    if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        return None
    return Header(data)


def left_to_recover(path: str) -> str:
    """Why SQLite would have to recover `path` before it may be read, or "" when it would not.

    A -wal with content or a -journal whose header is not zeroed is live until SQLite has said
    otherwise; a -shm alone means nothing.
    """
    try:
        if os.stat(path + "-wal").st_size > 0:
            return "its -wal holds content"
    except FileNotFoundError:
        pass
    try:
        start = read_start(path + "-journal", 8)
    except FileNotFoundError:
        return ""
    return "its -journal holds content" if start.strip(b"\0") else ""


def open_diary(path: str) -> Connection:
    """An ordinary connection with SQLite's own locks, for agent.db."""
    connection: Connection = sqlite.connect(path, isolation_level=None, timeout=2.0)
    return connection


def _uri(path: str, query: str) -> str:
    quoted = "".join(
        c if c.isalnum() or c in "/-_.~" else "".join(f"%{b:02X}" for b in os.fsencode(c))
        for c in path
    )
    return f"file:{quoted}?{query}"


def _connect(path: str, query: str) -> Connection:
    connection: Connection = sqlite.connect(_uri(path, query), uri=True, isolation_level=None)
    return connection


def words_of(error: Exception) -> str:
    """SQLite's words for an error, whichever of the two it came as."""
    if isinstance(error, UnicodeDecodeError):
        return "malformed: its schema holds damaged bytes"
    return str(error)


def refused_by_sqlite(error: Exception, doing: str) -> AgentError:
    """Our error for a foreign SQLite error, by its words (codes are visible only from 3.11 on)."""
    text = words_of(error)
    if "full" in text:
        return StorageFull(f"flash is full, or the file outgrew its bound, while {doing}")
    if "disk I/O error" in text or "readonly" in text or "read-only" in text:
        return StorageFull(f"flash refused a read or write while {doing} ({text})")
    if "malformed JSON" in text:
        return ValidationError(f"a value that is no JSON is in the way, while {doing}")
    if "malformed" in text or "not a database" in text:
        return ValidationError(f"the file is damaged: {text}, while {doing}")
    if "out of memory" in text:
        raise MemoryError(doing) from error
    if "decode" in text:  # its words quote the value, which may be a record
        return ValidationError(f"the file holds a text that is not UTF-8, while {doing}")
    return AgentError(f"SQLite says: {text}, while {doing}")


DAMAGED = ("not a database", "malformed", "unsupported file format")


def recover(path: str) -> Header:
    """Let SQLite finish or undo what the application left, under our lock; answer the header.

    After it the file alone is the whole truth: no -wal, no -shm, no live -journal. This is
    SQLite's own recovery, safe to cut at any point and to repeat. Raises NeedsTechnician when the
    file is no database, or when something is left that could not be brought in.
    """
    try:
        connection = _connect(path, "vfs=unix-none")
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            answer = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
    except SQLITE_ERRORS as error:
        text = words_of(error)
        if any(word in text for word in DAMAGED):
            raise NeedsTechnician(
                f"{path} cannot be read as an SQLite file ({text}): it is damaged, encrypted or "
                "something else; restore a backup",
                cause="UNREADABLE",
            ) from error
        raise refused_by_sqlite(error, f"recovering {path}") from error
    if answer not in ((0, 0, 0), (0, -1, -1)):
        raise NeedsTechnician(
            f"{path}-wal could not be brought into the file (checkpoint answered {answer})",
            cause="RECOVERY",
        )
    remove_shm(path)
    left = left_to_recover(path)
    if left:
        raise NeedsTechnician(f"{path}: {left} after its recovery", cause="RECOVERY")
    header = read_header(path)
    if header is None:
        raise NeedsTechnician(f"{path} is not an SQLite file; restore a backup", cause="UNREADABLE")
    return header


def remove_shm(path: str) -> None:
    """Remove the shared-memory index, which is rebuilt from the -wal by whoever needs it."""
    try:
        os.unlink(path + "-shm")
    except FileNotFoundError:
        pass


def remove_side_files(path: str) -> None:
    """Remove what may lie beside a name before a file is created under it, durably.

    A left-over -wal beside a fresh copy makes it malformed.
    """
    removed = False
    for suffix in SIDE_FILES:
        try:
            os.unlink(path + suffix)
            removed = True
        except FileNotFoundError:
            pass
    if removed:
        sync_folder(os.path.dirname(path))


def side_files_of(path: str) -> list[str]:
    """Names that must not be there at a rename: any -wal or -shm, a -journal that is not zeroed."""
    found = [path + s for s in ("-wal", "-shm") if os.path.exists(path + s)]
    if left_to_recover(path) and path + "-wal" not in found:
        found.append(path + "-journal")
    return found


def open_source(path: str, cache_bytes: int) -> Connection:
    """Read a recovered, locked file. It cannot change, so nothing beside it is looked at."""
    connection = _connect(path, "mode=ro&immutable=1")
    cache_bytes = min(cache_bytes, SOURCE_CACHE_BYTES_MAX)
    return _set_up(connection, f"cache_size=-{max(cache_bytes // 1024, 16)}", "temp_store=MEMORY")


def _set_up(connection: Connection, *pragmas: str) -> Connection:
    """The connection, set up. One that refuses is closed at once: a descriptor left open on a
    damaged pos.db would look like a late holder of the old file, for ever."""
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def open_shared(path: str, timeout_s: float = 2.0) -> Connection:
    """Read pos.db as any other client would, under SQLite's own locks, without writing to it.

    Without readonly_shm a reader would move marks in the -shm, or make one. Go through
    `edges/quiet`, which knows when not even this leaves no trace.
    """
    connection: Connection = sqlite.connect(
        _uri(path, "mode=ro&readonly_shm=1"), uri=True, isolation_level=None, timeout=timeout_s
    )
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def open_successor(
    path: str, cache_bytes: int, journal_bytes: int, file_bytes_max: int
) -> Connection:
    """Write a successor in WAL mode with NORMAL flushing, which commits whole batches or none.

    After a power cut it is at a batch boundary; a batch reported may be gone, which is why nothing
    is promised before the seal. Growing past `file_bytes_max` is refused as STORAGE_ERROR.
    """
    connection = _connect(path, "mode=rw&vfs=unix-none")
    _set_up(connection, "locking_mode=EXCLUSIVE", "journal_mode=WAL")
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    return _set_up(
        connection,
        "synchronous=NORMAL",
        "temp_store=MEMORY",
        "foreign_keys=OFF",  # the proof checks them; a cascade must not touch a record meanwhile
        "recursive_triggers=OFF",
        f"cache_size=-{max(cache_bytes // 1024, 16)}",
        f"wal_autocheckpoint={max(journal_bytes // (page + 24), 16)}",
        f"max_page_count={max(file_bytes_max // page, 1)}",
    )


def leave_wal(connection: Connection, path: str) -> None:
    """Bring everything into the file itself and close it; no side file may be left."""
    connection.execute("PRAGMA synchronous=FULL")
    mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    connection.close()
    remove_shm(path)
    left = side_files_of(path)
    if mode != "delete" or left:
        raise AgentError(f"the successor could not be closed cleanly: {mode}, {', '.join(left)}")


def set_wal_mode(path: str) -> None:
    """Give a file its WAL mode back, under our lock. Two header bytes change, no record does."""
    connection = _connect(path, "mode=rw&vfs=unix-none")
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        connection.close()
    remove_shm(path)


def open_memory() -> Connection:
    """An empty database in memory, for trying out a schema."""
    connection: Connection = sqlite.connect(":memory:", isolation_level=None)
    return connection


# What one schema statement may do. Reading and functions are needed by indexes over expressions.
_HARMLESS = frozenset(
    (sqlite.SQLITE_READ, sqlite.SQLITE_SELECT, sqlite.SQLITE_FUNCTION, sqlite.SQLITE_REINDEX)
)
_OF_OBJECTS = frozenset(
    (
        sqlite.SQLITE_CREATE_INDEX,
        sqlite.SQLITE_CREATE_TABLE,
        sqlite.SQLITE_CREATE_VIEW,
        sqlite.SQLITE_DROP_INDEX,
        sqlite.SQLITE_DROP_TABLE,
        sqlite.SQLITE_DROP_VIEW,
    )
)
_OF_ROWS = frozenset((sqlite.SQLITE_INSERT, sqlite.SQLITE_UPDATE, sqlite.SQLITE_DELETE))


def guard(connection: Connection, name: str) -> None:
    """From here on a statement may make, change or drop the object `name` and nothing else.

    SQLite asks for each thing that a statement would do while it compiles it (sqlite.org,
    sqlite3_set_authorizer). Its own tables are written for any schema change, and a table that is
    dropped is emptied.
    """
    name = name.lower()

    def allowed(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        one = (first or "").lower()
        if action in _HARMLESS:
            return int(sqlite.SQLITE_OK)
        if action in _OF_OBJECTS:
            # An automatic index of a table, by its constraints, carries the table's name.
            fits = one == name or one.startswith(f"sqlite_autoindex_{name}_")
        elif action == sqlite.SQLITE_ALTER_TABLE:
            fits = (second or "").lower() == name
        else:
            fits = action in _OF_ROWS and (one.startswith("sqlite_") or one == name)
        return int(sqlite.SQLITE_OK if fits else sqlite.SQLITE_DENY)

    connection.set_authorizer(allowed)


def unguard(connection: Connection) -> None:
    """End what `guard` began."""
    # None is taken from Python 3.11 on only.
    connection.set_authorizer(lambda *_: int(sqlite.SQLITE_OK))


class lenient_text:
    """While it lasts, text that is not UTF-8 is read as well, its odd bytes as lone surrogates."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.text_factory = _any_text

    def __exit__(self, *_: object) -> None:
        self._connection.text_factory = str


def _any_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def schema_of(connection: Connection) -> dict[tuple[str, str], tuple[str, str | None]]:
    """(type, name) -> (table, SQL) of everything the file declares."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return {(kind, name): (table, sql) for kind, name, table, sql in rows}


def quoted(name: str) -> str:
    """An identifier as SQL text."""
    return '"' + name.replace('"', '""') + '"'


def has_store(connection: Connection, name: str) -> bool:
    """Whether there is a table with the columns of a store."""
    try:
        connection.execute(f"SELECT key, value FROM {quoted(name)} LIMIT 0")
    except SQLITE_ERRORS:
        return False
    return True


def has_rowid(connection: Connection, table: str) -> bool:
    """Whether the table is walked by rowid; WITHOUT ROWID tables go by primary key."""
    try:
        connection.execute(f"SELECT rowid FROM {quoted(table)} LIMIT 0")
    except SQLITE_ERRORS:
        return False
    return True


def begin(connection: Connection) -> None:
    """Start one transaction for a batch."""
    connection.execute("BEGIN IMMEDIATE")


def commit(connection: Connection) -> None:
    """Make the batch one: all of it or nothing after a cut."""
    connection.execute("COMMIT")


def rows_differ(a: Any, b: Any) -> bool:
    """Whether two rows differ by value or by type (1, 1.0 and '1' are three things)."""
    return bool(a != b) or [type(x) for x in a] != [type(x) for x in b]
