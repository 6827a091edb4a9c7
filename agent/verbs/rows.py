"""Our own rows inside a pos.db or a successor: the run row, the cursor, triggers put aside."""

from __future__ import annotations

from agent.core.terminal import CREATE_TABLE, TABLE, RunRow
from agent.edges.database import SqliteError
from agent.ground.codec import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any


def read(connection: Connection, kind: str, key: str) -> Any:
    """One value, or None where the table or the row is missing or cannot be read."""
    try:
        row = connection.execute(
            f"SELECT value FROM {TABLE} WHERE kind = ? AND key = ?", (kind, key)
        ).fetchone()
        return None if row is None else decode(row[0])
    except (SqliteError, ValueError, TypeError):
        return None


def write(connection: Connection, kind: str, key: str, value: Any) -> None:
    """Put one value, inside the caller's transaction."""
    connection.execute(
        f"INSERT OR REPLACE INTO {TABLE} (kind, key, value) VALUES (?, ?, ?)",
        (kind, key, encode(value)),
    )


def remove(connection: Connection, kind: str) -> None:
    """Remove every row of one kind, inside the caller's transaction."""
    connection.execute(f"DELETE FROM {TABLE} WHERE kind = ?", (kind,))


def values(connection: Connection, kind: str) -> list[Any]:
    """All values of one kind in the order of their keys."""
    rows = connection.execute(
        f"SELECT value FROM {TABLE} WHERE kind = ? ORDER BY key", (kind,)
    ).fetchall()
    return [decode(row[0]) for row in rows]


def make_table(connection: Connection) -> None:
    """Make our table where it is not there yet, inside the caller's transaction."""
    connection.execute(CREATE_TABLE)


def read_run(connection: Connection) -> RunRow | None:
    """The run row of the file, or None when it has none that this agent can read."""
    return RunRow.from_json(read(connection, "run", "row"))


def write_run(connection: Connection, row: RunRow) -> None:
    """Put the run row, inside the caller's transaction."""
    write(connection, "run", "row", row.as_json())
