"""Reading pos.db and the diary without recovering them and without making a file beside them.

What an application left in a -wal is not seen then; whoever asks is told so.
"""

from __future__ import annotations

import os

from agent.edges import database
from agent.edges.holders import holders_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection
    from typing import Any, Callable

SLICE_ROWS = 1000  # read at once: the application waits for no longer than that takes
CACHE_BYTES = 1 << 20


def open_quietly(pos: str, wal_mode: bool, note: Callable[[str], None]) -> Connection:
    """A way to read pos.db that neither recovers it nor makes a file beside it."""
    found = os.stat(pos)
    holders, complete = holders_of((found.st_dev, found.st_ino), (os.getpid(),))
    left = database.left_to_recover(pos)
    if holders:
        names = ", ".join(sorted({holder.name for holder in holders.values()}))
        note(f"pos.db is open in {names}; a run needs it closed")
    if wal_mode and not complete:
        note("not every process may be looked at: who has pos.db open is not known")
    shared = os.path.exists(pos + "-shm") and os.path.exists(pos + "-wal")
    # A -journal beside an open file is as a rule a sale being written; SQLite tells that by locks.
    if (not left or holders) if not wal_mode else (holders and shared):
        return database.open_shared(pos)
    if "-wal" in left:
        note(f"{left}: all figures are without the application's last writes")
    elif left:
        note(f"{left}: it is halfway through a write that a run undoes first; figures may differ")
    # In WAL mode a reader would make -wal and -shm, and a live journal would be rolled back.
    return database.open_source(pos, CACHE_BYTES)


def rows_in_slices(connection: Connection, store: str) -> Iterator[tuple[Any, Any]]:
    """Every (key, value), a slice at a time: between two of them the application may write."""
    by = "rowid" if database.has_rowid(connection, store) else "key"
    select = f"SELECT {by}, key, value FROM {database.quoted(store)}"
    rows = connection.execute(f"{select} ORDER BY {by} LIMIT ?", (SLICE_ROWS,))
    while True:
        seen = 0
        for at, key, value in rows:
            seen, last = seen + 1, at
            yield key, value
        if seen < SLICE_ROWS:
            return
        rows = connection.execute(
            f"{select} WHERE {by} > ? ORDER BY {by} LIMIT ?", (last, SLICE_ROWS)
        )


def given_up_in(diary: str, digest: str) -> str:
    """Why the diary says that a plan was given up, or ""; a diary that cannot be read says nothing.

    A diary left in WAL mode is read as the plain file it is: opening it otherwise makes files.
    """
    try:
        live = os.path.exists(diary + "-shm") and os.path.exists(diary + "-wal")
        connection = database.open_shared(diary) if live else database.open_source(diary, 65536)
        try:
            found = connection.execute(
                "SELECT why FROM given_up WHERE plan = ?", (digest,)
            ).fetchone()
        finally:
            connection.close()
    except (database.SqliteError, OSError):
        return ""
    return str(found[0]) if found is not None else ""
