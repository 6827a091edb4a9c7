"""What lies on flash, and what is done about it: the table of the next boot, as data.

Every row is judged on a locked and recovered pos.db, top to bottom; the first that fits is done,
and unless it ends the matter the flash is looked at again. Deciding opens nothing: a test is a call
and a comparison, and docs/boot-table.md is drawn from the same rows.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

# Actions after which the flash is looked at again.
UNLINK_TWIN = "unlink_twin"
WRITE_HISTORY = "write_history"
WRITE_BACK = "write_back"
DROP_NEXT = "drop_next"
RETURN_WAL = "return_wal"
COMMIT = "commit"
# Actions that end the looking.
HOLD = "hold"
TOO_NEW = "too_new"
GIVEN_UP = "given_up"
RESUME = "resume"
START = "start"
IDLE = "idle"

LOOK_AGAIN = (UNLINK_TWIN, WRITE_HISTORY, WRITE_BACK, DROP_NEXT, RETURN_WAL, COMMIT)


class OnFlash:
    """What was found, in words: nothing of it is worked out from a clock or from the diary alone.

    `version` is None when pos.db is missing. `next` is "none", "strange" (no run row, or source or
    plan differ) or "ours". `prev` is "none", "twin" (the same inode as pos.db), "ours" (the seal
    names it) or "foreign". `sealed_here` tells that pos.db carries the sealed row of a run,
    `in_history` that the diary knows that run. `went_back` tells that pos.db is the file that a
    switch back puts in place, and that the diary does not know of it.
    """

    __slots__ = (
        "asked",
        "backup_since",
        "given_up",
        "in_history",
        "next",
        "prev",
        "sealed_here",
        "target",
        "version",
        "wal_owed",
        "went_back",
        "written_since",
    )

    def __init__(
        self,
        version: int | None,
        target: int,
        next: str = "none",
        prev: str = "none",
        sealed_here: bool = False,
        in_history: bool = True,
        wal_owed: bool = False,
        written_since: bool = False,
        backup_since: bool = False,
        given_up: bool = False,
        asked: bool = False,
        went_back: bool = False,
    ) -> None:
        self.version = version
        self.target = target
        self.next = next
        self.prev = prev
        self.sealed_here = sealed_here
        self.in_history = in_history
        self.wal_owed = wal_owed
        self.written_since = written_since
        self.backup_since = backup_since
        self.given_up = given_up
        self.asked = asked
        self.went_back = went_back


class Row:
    """One line of the table: what is found, what is done, why, and the test that says it fits."""

    __slots__ = ("action", "done", "fits", "found", "mark")

    def __init__(
        self, mark: str, found: str, done: str, action: str, fits: Callable[[OnFlash], bool]
    ) -> None:
        self.mark = mark
        self.found = found
        self.done = done
        self.action = action
        self.fits = fits


ROWS = (
    Row(
        "NB-1",
        "`pos.db` missing, `.prev` or `.next` there",
        "held; nothing is ever created in its place",
        HOLD,
        lambda f: f.version is None,
    ),
    Row(
        "NB-2",
        "`.prev` is the same file as `pos.db`",
        "the cut came before the rename: unlink `.prev`, look again",
        UNLINK_TWIN,
        lambda f: f.prev == "twin",
    ),
    Row(
        "NB-3",
        "`pos.db` carries a sealed row, history lacks the run",
        "the cut came after the rename: sync the folder again, write history, verdict OK, look "
        "again",
        WRITE_HISTORY,
        lambda f: f.sealed_here and not f.in_history,
    ),
    Row(
        "NB-4",
        "`pos.db` is the file that a switch back puts in place, history lacks the run",
        "the cut came after the rename: sync the folder again, write history, hold the plan back, "
        "look again",
        WRITE_BACK,
        lambda f: f.went_back,
    ),
    Row(
        "NB-5",
        "the seal says that the WAL mode is still owed",
        "give `pos.db` its WAL mode back, look again",
        RETURN_WAL,
        lambda f: f.wal_owed,
    ),
    Row(
        "NB-6",
        "`.next` without run row, or of another source or plan",
        "delete it (`pos.db` is untouched), look again",
        DROP_NEXT,
        lambda f: f.next == "strange",
    ),
    Row(
        "NB-7",
        "`pos.db` is newer than the installed migrations",
        "nothing is written; the application starts only if it reads that version",
        TOO_NEW,
        lambda f: f.version is not None and f.version > f.target,
    ),
    Row(
        "NB-8",
        "the plan was given up and nobody asks for it",
        "the old data stays in use; tried again when its files change or on request",
        GIVEN_UP,
        lambda f: _pending(f) and f.given_up and not f.asked,
    ),
    Row(
        "NB-9",
        "`.next` open or sealed, source and plan equal",
        "resume behind its last batch",
        RESUME,
        lambda f: _pending(f) and f.next == "ours",
    ),
    Row(
        "NB-10",
        "`pos.db` older than the migrations, nothing else",
        "begin",
        START,
        lambda f: _pending(f),
    ),
    Row(
        "NB-11",
        "nothing pending, `.next` there all the same",
        "delete it, look again",
        DROP_NEXT,
        lambda f: f.next == "ours",
    ),
    Row(
        "NB-12",
        "`.prev` of the last switch, `pos.db` written since, a verified backup",
        "commit: delete `.prev`, look again",
        COMMIT,
        lambda f: f.prev == "ours" and f.written_since and f.backup_since,
    ),
    Row(
        "NB-13",
        "`pos.db` at the target, with or without a sealed row of ours",
        "nothing to do; a version that somebody else wrote is reported, a foreign `.prev` too",
        IDLE,
        lambda f: True,
    ),
)


def _pending(found: OnFlash) -> bool:
    return found.version is not None and found.version < found.target


def decide(found: OnFlash) -> Row:
    """The first row that fits. The last one fits always."""
    for row in ROWS:
        if row.fits(found):
            return row
    raise AssertionError("the last row fits always")


# Attempts. Each is (boot id, place it reached, how it ended); a place is the run's progress as one
# number that only grows. "cut" is a power cut, "done" ended well, all others died or failed.
def attempts_spent(
    attempts: list[tuple[str, int, str]], without_progress_max: int, total_max: int
) -> str:
    """Why a plan is to be given up, or "" while another attempt is due.

    Deaths at the same place count together, whatever the death; one that came further starts a new
    count. Power cuts say nothing about the plan and count toward the total only.
    """
    stuck, furthest = 0, -1
    for _, place, end in attempts:
        if end == "cut":
            continue
        stuck = stuck + 1 if place <= furthest else 1
        furthest = max(furthest, place)
    if stuck >= without_progress_max:
        return f"{stuck} attempts in a row ended at the same place"
    if len(attempts) >= total_max:
        return f"{len(attempts)} attempts did not finish"
    return ""


def boot_table() -> str:
    """The rows as a Markdown table, for docs/boot-table.md."""
    lines = ["| mark | found | done |", "| --- | --- | --- |"]
    lines += [f"| {row.mark} | {row.found} | {row.done} |" for row in ROWS]
    return "\n".join(lines) + "\n"
