"""Reading a store's records strictly: what cannot be read for sure is never guessed at."""

from __future__ import annotations

from agent.core.steps import shown
from agent.edges.database import SQLITE_ERRORS, has_rowid, lenient_text, quoted, refused_by_sqlite
from agent.ground.codec import decode, nests_deeper
from agent.ground.errors import ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection
    from typing import Any

ROWS_PER_MARK = 2000


def rows_of(connection: Connection, store: str) -> Iterator[tuple[Any, Any]]:
    """Every (key, value) of a store in the order it lies on flash."""
    order = "rowid" if has_rowid(connection, store) else "key"
    key: Any = None
    try:
        for key, value in connection.execute(
            f"SELECT key, value FROM {quoted(store)} ORDER BY {order}"
        ):
            yield key, value
    except SQLITE_ERRORS as error:
        if "UTF-8" in str(error):
            where = f"the record after {store}/{shown(key)}" if key else f"{store}'s first record"
            raise ValidationError(f"{where} is text that is not UTF-8", store=store) from error
        raise refused_by_sqlite(error, f"reading {store}") from error


def records_of(
    connection: Connection, store: str, strict: bool, limits: tuple[int, int]
) -> Iterator[tuple[Any, Any, Any, str]]:
    """Every (key, value, decoded record, why it cannot be read or "") of a store.

    `limits` are the largest record in bytes and its deepest nesting. With `strict` the first
    record that cannot be read raises ValidationError; without, it comes with its reason.
    """
    lenient = lenient_text(connection)
    if not strict:
        lenient.__enter__()
    try:
        for key, value in rows_of(connection, store):
            record, reason = read_with_care(key, value, limits, not strict)
            if reason and strict:
                raise cannot_be_read(store, key, reason)
            yield key, value, record, reason
    finally:
        lenient.__exit__()


def cannot_be_read(store: str, key: Any, reason: str) -> ValidationError:
    """The error for a record that nobody can read for sure."""
    return ValidationError(
        f"{store}/{shown(key)} cannot be migrated: {reason}; correct or settle it, "
        "then start again",
        store=store,
        key=shown(key),
    )


def read_with_care(
    key: Any, value: Any, limits: tuple[int, int], lenient: bool = True
) -> tuple[Any, str]:
    """(the decoded record, "") or (None, why nobody can read it for sure). `lenient` tells that the
    texts may hold bytes that are no UTF-8, as `lenient_text` reads them."""
    reason = why_unreadable(key, value, limits[0])
    if reason:
        return None, reason
    try:
        if lenient:
            key.encode()
            value.encode()
        return decode(value, limits[1]), ""
    except UnicodeEncodeError:
        return None, "it is text that is not UTF-8"
    except ValueError as error:
        return None, str(error)


def why_unreadable(key: Any, value: Any, record_bytes_max: int) -> str:
    """Why a row is no record that can be judged, or "" when its text may be decoded."""
    if type(key) is not str:
        return f"its key is {type(key).__name__}, not text"
    if type(value) is not str:
        return f"its value is {_kind_of(value)}, not text"
    # A character is at most 4 bytes, so most records need no exact count.
    if (
        len(value) * 4 > record_bytes_max
        and len(value.encode("utf-8", "replace")) > record_bytes_max
    ):
        return f"its value is larger than {record_bytes_max} bytes"
    return ""


def _kind_of(value: Any) -> str:
    names = {"bytes": "a BLOB", "NoneType": "NULL", "int": "an integer", "float": "a real number"}
    return names.get(type(value).__name__, type(value).__name__)


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
