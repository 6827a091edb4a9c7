"""Our own rows inside a pos.db or a successor, by kind and key (docs/spec/own-table.md).

They travel with the data they speak of. A row that this agent cannot read counts as absent, and a
table of a newer format is refused before any row of it is believed.
"""

from __future__ import annotations

from agent.core.applied import Applied
from agent.core.ledger import Ledger
from agent.core.left_behind import Left, LeftBehind
from agent.core.steps import shown
from agent.core.terminal import CREATE_TABLE, FORMAT, TABLE, RunRow
from agent.edges.database import SQLITE_ERRORS
from agent.ground.codec import decode, encode
from agent.ground.errors import SchemaTooNew, ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.stores import Contract, Contracts


# What one of our rows may take, ledgers apart; no agent writes more, and it is read into memory.
ROW_BYTES_MAX = 1 << 20
ROWS_MAX = 20_000
NUMBER_CHARS_MAX = 9


def read(connection: Connection, kind: str, key: str, bytes_max: int = ROW_BYTES_MAX) -> Any:
    """One value, or None where the table or the row is missing or cannot be read."""
    try:
        row = connection.execute(
            f"SELECT value FROM {TABLE} WHERE kind = ? AND key = ? AND length(value) <= ?",
            (kind, key, bytes_max),
        ).fetchone()
        return None if row is None else decode(row[0])
    except (*SQLITE_ERRORS, ValueError, TypeError):
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


def remove_one(connection: Connection, kind: str, key: str) -> None:
    """Remove one row, inside the caller's transaction."""
    connection.execute(f"DELETE FROM {TABLE} WHERE kind = ? AND key = ?", (kind, key))


def count(connection: Connection, kind: str) -> int:
    """How many rows of one kind there are."""
    sql = f"SELECT count(*) FROM {TABLE} WHERE kind = ?"
    return int(connection.execute(sql, (kind,)).fetchone()[0])


def count_quarantined(connection: Connection) -> int:
    """How many records earlier runs left as they were; 0 where no agent was here yet."""
    return len(quarantined(connection))


def values(connection: Connection, kind: str) -> list[Any]:
    """All values of one kind in the order of their keys."""
    rows = connection.execute(
        f"SELECT value FROM {TABLE} WHERE kind = ? ORDER BY key", (kind,)
    ).fetchall()
    return [decode(row[0]) for row in rows]


def make_table(connection: Connection) -> None:
    """Make our table where it is not there yet, inside the caller's transaction."""
    connection.execute(CREATE_TABLE)
    write(connection, "format", "", FORMAT)


def check_format(connection: Connection) -> None:
    """Refuse a file in which a newer agent has left rows that this one might misread.

    Raises SchemaTooNew.
    """
    found = read(connection, "format", "")
    if found is not None and (type(found) is not int or found > FORMAT):
        raise SchemaTooNew(
            f"a newer posagent has written its own rows into pos.db (format {found}, this one "
            f"reads up to {FORMAT}); install that posagent again",
            format=found,
        )


def has_table(connection: Connection) -> bool:
    """Whether any agent has left its table here."""
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(sql, (TABLE,)).fetchone() is not None


# What was applied, and the ledgers of the records


def read_applied(connection: Connection) -> dict[int, Applied]:
    """The applied migrations that the file tells of, by version."""
    found: dict[int, Applied] = {}
    for key, value in _rows(connection, "applied"):
        if key.isascii() and key.isdigit():
            applied = Applied.from_json(value, int(key))
            if applied is not None:
                found[int(key)] = applied
    return found


def write_applied(connection: Connection, version: int, applied: Applied) -> None:
    """Note one applied version, inside the caller's transaction."""
    write(connection, "applied", f"{version:04d}", applied.as_json())


def read_min_reader(connection: Connection) -> int | None:
    """The lowest schema version of an application that can read the file, where it says so."""
    found = read(connection, "min_reader", "")
    return found if type(found) is int else None


def forget_above(connection: Connection, version: int) -> None:
    """Drop what is known of the versions above one, inside the caller's transaction."""
    for kind, key in _kinds(connection):
        if number_in(key[:4]) > version:
            connection.execute(f"DELETE FROM {TABLE} WHERE kind = ? AND key = ?", (kind, key))
    forget_undo(connection, lambda found: found > version)


def forget_undo(connection: Connection, wanted: Callable[[int], bool]) -> None:
    """Drop the ledgers of the versions for which `wanted` says so, in the caller's transaction."""
    for (kind,) in connection.execute(
        f"SELECT DISTINCT kind FROM {TABLE} WHERE kind LIKE 'undo:%'"
    ).fetchall():
        if number_in(kind[5:]) >= 0 and wanted(number_in(kind[5:])):
            remove(connection, kind)


def _kinds(connection: Connection) -> list[tuple[str, str]]:
    sql = f"SELECT kind, key FROM {TABLE} WHERE kind IN ('applied', 'moved', 'there')"
    return connection.execute(sql).fetchall()


def place_of(store: str, key: str) -> str:
    """A record's name as the key of its ledger rows."""
    return encode([store, key])


def undo_kind(version: int) -> str:
    """The kind of a version's ledger rows."""
    return f"undo:{version:04d}"


def ledger_rows(store: str, key: str, ledger: Ledger) -> list[tuple[str, str, str]]:
    """A ledger as rows of our table: (kind, key, value)."""
    place = place_of(store, key)
    return [(undo_kind(version), place, encode(row)) for version, row in ledger.as_rows().items()]


def put_ledgers(connection: Connection, rows: Iterable[tuple[str, str, str]]) -> None:
    """Add ledger rows, inside the caller's transaction."""
    connection.executemany(f"INSERT INTO {TABLE} (kind, key, value) VALUES (?, ?, ?)", rows)


def ledger_reader(
    connection: Connection, versions: Iterable[int]
) -> Callable[[str, str], Ledger] | None:
    """How to get the ledger of a record for these versions; None where none of them has any."""
    kinds = []
    if has_table(connection):
        for version in versions:
            kind = undo_kind(version)
            sql = f"SELECT 1 FROM {TABLE} WHERE kind = ? LIMIT 1"
            if connection.execute(sql, (kind,)).fetchone() is not None:
                kinds.append(kind)
    if not kinds:
        return None
    marks = ", ".join("?" * len(kinds))
    select = f"SELECT kind, value FROM {TABLE} WHERE kind IN ({marks}) AND key = ?"

    def ledger_of(store: str, key: str) -> Ledger:
        ledger = Ledger()
        for kind, value in connection.execute(select, (*kinds, place_of(store, key))):
            try:
                ledger.take(int(kind[5:]), decode(value))
            except (ValueError, TypeError) as error:
                raise ValidationError(
                    f"what the way back of {store}/{shown(key)} needs cannot be read any more",
                    store=store,
                    key=shown(key),
                ) from error
        return ledger

    return ledger_of


def write_moved(
    connection: Connection,
    version: int,
    number: int,
    source: tuple[str, str],
    target: tuple[str, str],
) -> None:
    """Note that a move step has moved its record, inside the caller's transaction."""
    write(connection, "moved", f"{version:04d}/{number}", [list(source), list(target)])


def moved_to(connection: Connection) -> list[tuple[str, str]]:
    """Where moved records are by now, as far as that was noted."""
    return [(target[0], target[1]) for _, target in _moves(connection).values()]


def names_before(connection: Connection, store: str, key: str) -> tuple[list[str], list[str]]:
    """What else our table knows of a record that moved: the keys of its `moved` rows, and its
    earlier places as its ledgers have them."""
    place, moves, places = [store, key], [], []
    for (version, number), (source, target) in sorted(_moves(connection).items(), reverse=True):
        if target == place:
            place = source
            moves.append(f"{version:04d}/{number}")
            places.append(encode(place))
    return moves, places


def _moves(connection: Connection) -> dict[tuple[int, int], tuple[list[str], list[str]]]:
    """From where to where each noted move led, by version and number of its step."""
    found = {}
    for key, value in _rows(connection, "moved"):
        version, _, number = key.partition("/")
        if number_in(version) >= 0 and number_in(number) >= 0 and _are_places(value):
            found[number_in(version), number_in(number)] = (value[0], value[1])
    return found


def _are_places(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) == 2
        and all(type(place) is list and len(place) == 2 for place in value)
        and all(type(part) is str for place in value for part in place)
    )


def kept_under(connection: Connection, place: tuple[str, str], at: tuple[int, int]) -> bool:
    """Whether anything is kept under a name for the record that the move step `at`, (version,
    number), took away from there: a ledger, or an earlier move that had brought it there."""
    if any(step < at and target == list(place) for step, (_, target) in _moves(connection).items()):
        return True
    found = connection.execute(
        f"SELECT kind FROM {TABLE} WHERE kind LIKE 'undo:%' AND key = ?", (place_of(*place),)
    ).fetchall()
    return any(0 <= number_in(kind[5:]) <= at[0] for (kind,) in found)


def forget_dead(connection: Connection, place: tuple[str, str], version: int) -> None:
    """Drop what is kept for a record that is gone and that a move of this version had taken from
    `place`: whoever gets the name later is another. Inside the caller's transaction."""
    moves, earlier = names_before(connection, *place)
    for key in moves:
        remove_one(connection, "moved", key)
    kinds = connection.execute(f"SELECT DISTINCT kind FROM {TABLE} WHERE kind LIKE 'undo:%'")
    for (kind,) in kinds.fetchall():
        if 0 <= number_in(kind[5:]) <= version:
            for name in (place_of(*place), *earlier):
                remove_one(connection, kind, name)


def read_moved(connection: Connection) -> set[tuple[int, int]]:
    """(version, step's number) of the moves that did move a record."""
    return _steps_of(connection, "moved")


def write_there(connection: Connection, version: int, number: int) -> None:
    """Note that a schema statement had nothing to do, inside the caller's transaction: what was
    there before it, or was not, is not for its way back to change."""
    write(connection, "there", f"{version:04d}/{number}", True)


def read_there(connection: Connection) -> set[tuple[int, int]]:
    """(version, step's number) of the schema statements that had nothing to do."""
    return _steps_of(connection, "there")


def _steps_of(connection: Connection, kind: str) -> set[tuple[int, int]]:
    """Steps named by the keys of a kind; the rows' values say nothing more."""
    if not has_table(connection):
        return set()
    found = set()
    for (key,) in connection.execute(f"SELECT key FROM {TABLE} WHERE kind = ?", (kind,)):
        version, _, number = str(key).partition("/")
        if number_in(version) >= 0 and number_in(number) >= 0:
            found.add((number_in(version), number_in(number)))
    return found


def number_in(text: str) -> int:
    """The number that a part of a key says, or -1 for what no agent has written."""
    fits = text.isascii() and text.isdigit() and len(text) <= NUMBER_CHARS_MAX
    return int(text) if fits else -1


# Records left behind


def quarantined(connection: Connection) -> LeftBehind:
    """The records that earlier runs left as they were."""
    found = {}
    for name, value in _rows(connection, "quarantine"):
        left = Left.from_json(value)
        if left is not None:
            found[name] = left
    return LeftBehind(found)


def contract_at(connection: Connection, contracts: Contracts, version: int) -> Contract:
    """The rules in force at a version, for a file with whatever was left behind in it."""
    contract = contracts.at(version)
    left = quarantined(connection)
    return contract.with_left(left, contracts) if len(left) else contract


def lower_quarantined(connection: Connection, version: int) -> None:
    """After a way down no record is above the file's version, in the caller's transaction."""
    for name, value in _rows(connection, "quarantine"):
        left = Left.from_json(value)
        if left is not None and left.version > version:
            left.version = version
            write_quarantined(connection, name, left)


def write_quarantined(connection: Connection, name: str, left: Left) -> None:
    """Note a record left behind, inside the caller's transaction."""
    write(connection, "quarantine", name, left.as_json())


def _rows(connection: Connection, kind: str) -> list[tuple[str, Any]]:
    """(key, value) of every row of a kind that can be read."""
    try:
        rows = connection.execute(
            f"SELECT key, value FROM {TABLE} WHERE kind = ? AND length(key) + length(value) <= ? "
            "ORDER BY key LIMIT ?",
            (kind, ROW_BYTES_MAX, ROWS_MAX),
        )
        return [(str(key), value) for key, text in rows for value in _readable(text)]
    except SQLITE_ERRORS:
        return []  # no agent was here yet, or somebody else's table has that name


def _readable(text: Any) -> list[Any]:
    """The value of a row in a list, or an empty one for what cannot be read."""
    try:
        return [decode(text)]
    except (ValueError, TypeError):
        return []


def read_run(connection: Connection) -> RunRow | None:
    """The run row of the file, or None when it has none that this agent can read."""
    return RunRow.from_json(read(connection, "run", "row"))


def write_run(connection: Connection, row: RunRow) -> None:
    """Put the run row, inside the caller's transaction."""
    write(connection, "run", "row", row.as_json())
