"""One batch: what a commit will write, how far the passes are, how large the next one is."""

from __future__ import annotations

from agent.verbs import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.ledger import Ledger
    from agent.core.left_behind import Stopped
    from agent.core.profile import Profile

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
