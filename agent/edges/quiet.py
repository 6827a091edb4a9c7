"""Looking at a terminal without leaving a trace: is a run on, and what do its databases hold.

Nothing is written, created, recovered or waited for, and no lock is tried that a run starting at
this moment could stumble over. What cannot be read in that way is not read, and says why.
"""

from __future__ import annotations

import os

from agent.edges.agentlock import run_is_on
from agent.edges.database import (
    DAMAGED,
    SQLITE_ERRORS,
    left_to_recover,
    open_shared,
    open_source,
    read_header,
    words_of,
)
from agent.edges.holders import holders_of
from agent.edges.state import FORMAT, Diary
from agent.ground.errors import AgentError, sentence_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable, TypeVar

    Found = TypeVar("Found")

TRIES_MAX = 3
BUSY_WAIT_S = 0.5  # a commit of the application takes less; whoever asks can ask again
CACHE_BYTES = 262_144  # each page is read once; what the walk needs is a path down the tree
_WAITS = (
    "the application's last writes wait for recovery; start the application, or let "
    "`posagent boot` do it"
)


class NotNow(AgentError):
    """The file cannot be read at this moment without a trace; nothing is wrong with it."""


def until_a_run(lock_path: str) -> Callable[..., None]:
    """A mark for walks and reads that gives up, by NotNow, as soon as a run begins."""

    def mark(*_: Any) -> None:
        if run_is_on(lock_path):
            raise NotNow("a run has begun; ask again when it is done")

    return mark


def quietly(path: str, read: Callable[[Connection], Found]) -> Found:
    """What `read` answers for a connection to the SQLite file; not a byte beside it changes.

    A file that an application has open is read under SQLite's own locks, its -wal included. One
    that nobody has open is read as it lies, and read again when it changed meanwhile. Raises
    NotNow when only a recovery could tell what it holds, or when somebody is writing all the time,
    and what `read` raises.
    """
    for _ in range(TRIES_MAX):
        before = _look(path)
        shared = _is_shared(path)
        try:
            answer = _read(path, shared, read)
        except (*SQLITE_ERRORS, AgentError) as error:
            if not shared and _look(path) != before:
                continue
            if isinstance(error, AgentError):
                raise
            raise NotNow(_words_for(path, error)) from error
        if shared or _look(path) == before:
            return answer
    raise NotNow(f"{path} is being written all the time; ask again")


def _read(path: str, shared: bool, read: Callable[[Connection], Found]) -> Found:
    connection = open_shared(path, BUSY_WAIT_S) if shared else open_source(path, CACHE_BYTES)
    try:
        return read(connection)
    finally:
        connection.close()


def _is_shared(path: str) -> bool:
    """Whether to go through SQLite's locks. Raises NotNow where that would need a recovery.

    In WAL mode whoever has the file open keeps a -shm beside it, and a client that finds none
    would make one.
    """
    try:
        header = read_header(path)
        if header is None:
            raise NotNow(f"{path} is no SQLite file")
        if not header.wal_mode:
            return True
        if _wal_is_shared(path):
            return True
        if left_to_recover(path):
            raise NotNow(_WAITS)
    except OSError as error:
        raise NotNow(sentence_for(error)) from error
    return False


def _wal_is_shared(path: str) -> bool:
    return os.path.exists(path + "-wal") and os.path.exists(path + "-shm")


def open_quietly(path: str, wal_mode: bool, note: Callable[[str], None]) -> Connection:
    """A connection for a long reading that leaves no trace either, and that reads on at once.

    Where `quietly` would say NotNow, the file is read as the plain file it is, and `note` is told
    what that leaves out; so it is who has the file open. Raises OSError and SqliteError.
    """
    found = os.stat(path)
    holders, complete = holders_of((found.st_dev, found.st_ino), (os.getpid(),))
    left = left_to_recover(path)
    if holders:
        names = ", ".join(sorted({holder.name for holder in holders.values()}))
        note(f"pos.db is open in {names}; a run needs it closed")
    if wal_mode and not complete:
        note("not every process may be looked at: who has pos.db open is not known")
    # A -journal beside an open file is as a rule a sale being written; SQLite tells that by locks.
    if (not left or holders) if not wal_mode else (holders and _wal_is_shared(path)):
        return open_shared(path)
    if "-wal" in left:
        note(f"{left}: all figures are without the application's last writes")
    elif left:
        note(f"{left}: it is halfway through a write that a run undoes first; figures may differ")
    # In WAL mode a reader would make -wal and -shm, and a live journal would be rolled back.
    return open_source(path, CACHE_BYTES)


def _look(path: str) -> tuple[tuple[int, ...], ...]:
    """What changes whenever somebody writes the file or opens it for writing in WAL mode."""
    found: list[tuple[int, ...]] = []
    for name in (path, path + "-wal"):
        try:
            seen = os.stat(name)
        except OSError:
            found.append((-1,))
        else:
            found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(found)


def _words_for(path: str, error: Exception) -> str:
    text = words_of(error)
    name = os.path.basename(path)
    if "locked" in text or "busy" in text:
        return f"{name} is locked by somebody who writes; ask again"
    if "readonly" in text or "unable to open" in text:
        return _WAITS
    if any(word in text for word in DAMAGED):
        return f"{name} is damaged ({text})"
    return f"{name} cannot be read ({text})"


class DiaryReader(Diary):
    """A diary on a connection that is open already; it can be read and nothing else."""

    __slots__ = ()

    def __init__(self, path: str, connection: Connection) -> None:
        super().__init__(path)
        self._db = connection

    def _read(self, sql: str, given: tuple[Any, ...] = ()) -> list[Any]:
        assert self._db is not None
        return self._db.execute(sql, given).fetchall()


def read_diary(path: str, read: Callable[[Diary], Found], empty: Found) -> Found:
    """What `read` answers for the diary as it lies; `empty` where there is none yet.

    Raises AgentError when it is damaged, newer than this agent or cannot be read quietly.
    """

    def look(connection: Connection) -> Found:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise AgentError(f"the diary has format {version}; this agent reads format {FORMAT}")
        return read(DiaryReader(path, connection)) if version else empty

    if not os.path.exists(path) or not os.path.getsize(path):
        return empty
    return quietly(path, look)
