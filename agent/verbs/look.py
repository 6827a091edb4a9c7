"""Looking at the flash: the facts for core/decide, gathered on a locked and recovered pos.db."""

from __future__ import annotations

import os

from agent.core.decide import OnFlash
from agent.core.terminal import Places, RunRow
from agent.edges import database, flash
from agent.edges.database import SQLITE_ERRORS, Header
from agent.edges.holders import holders_of
from agent.ground.errors import AgentError, NeedsTechnician
from agent.verbs import backup_folder, backup_reader, rows, switch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from agent.core.profile import Profile
    from agent.edges.migration_files import MigrationFiles
    from agent.verbs.switch import Seal

    Mark = Callable[[int], None]


class Looked:
    """The facts for the table, and what they were made from."""

    __slots__ = (
        "edited",
        "facts",
        "header",
        "min_reader",
        "next_row",
        "plan",
        "row",
        "seal",
        "source",
    )

    facts: OnFlash
    header: Header
    edited: list[str]  # migration files that are not what pos.db says was applied
    min_reader: int | None  # the lowest version of an application that reads the file
    row: RunRow | None
    next_row: RunRow | None
    seal: Seal | None
    plan: str
    source: tuple[int, str] | None

    def identity(self, places: Places, mark: Mark) -> tuple[int, str]:
        """Size and SHA-256 of pos.db, worked out once per look."""
        if self.source is None:
            self.source = flash.digest_file(places.pos, mark)
        return self.source


def look(
    places: Places,
    files: MigrationFiles,
    profile: Profile,
    known_runs: set[str],
    given_up: dict[str, str],
    asked: bool,
    mark: Mark,
) -> Looked:
    """Gather the facts. pos.db must be locked and recovered; it is only read."""
    looked = Looked()
    looked.source = None
    header = database.read_header(places.pos)
    assert header is not None  # recover() has seen to it
    looked.header = header
    if header.user_version < 0:
        raise NeedsTechnician(
            f"pos.db says schema {header.user_version}, which nothing writes; look at what wrote "
            "it, or restore a backup",
            cause="VERSION",
        )
    looked.seal = switch.read_seal(places)
    _take_own_rows(looked, places.pos, files)
    version = header.user_version
    looked.plan = files.digest(version) if version <= files.head else ""
    looked.next_row = None
    facts = looked.facts = OnFlash(version, files.head)
    facts.given_up = looked.plan in given_up
    facts.asked = asked
    row, seal = looked.row, looked.seal
    facts.sealed_here = row is not None and row.state == "sealed" and row.to_version == version
    facts.in_history = row is None or row.run in known_runs
    facts.went_back = _went_back(places, looked, known_runs, mark)
    facts.prev = _prev(places, looked, mark)
    facts.wal_owed = _owes_wal(places, looked)
    facts.next = _next(places, looked, profile, known_runs, mark)
    if facts.prev == "ours" and row is not None and seal is not None:
        facts.written_since = switch.written_since(places, seal) is True or (
            looked.identity(places, mark) != (seal.size, seal.sha256)
        )
        facts.backup_since = facts.written_since and _has_backup(places, mark)
    return looked


def _take_own_rows(looked: Looked, path: str, files: MigrationFiles) -> None:
    """What our own table says. Raises SchemaTooNew for rows of a newer agent, which this one might
    misread."""
    connection = database.open_source(path, 65536)
    try:
        rows.check_format(connection)
        looked.row = rows.read_run(connection)
        looked.edited = files.edited(rows.read_applied(connection))
        looked.min_reader = rows.read_min_reader(connection)
    finally:
        connection.close()


def run_row_of(path: str) -> RunRow | None:
    """The run row inside a recovered file, or None."""
    connection = database.open_source(path, 65536)
    try:
        return rows.read_run(connection)
    finally:
        connection.close()


def _went_back(places: Places, looked: Looked, known_runs: set[str], mark: Mark) -> bool:
    """Whether a switch back was cut behind its rename: only the seal knows of it."""
    back = looked.seal.back if looked.seal is not None else None
    if back is None or back["run"] in known_runs or back["to_version"] != looked.facts.version:
        return False
    return looked.identity(places, mark) == (back["size"], back["sha256"])


def _prev(places: Places, looked: Looked, mark: Mark) -> str:
    """Whether the old file is ours to use: the sealed row inside pos.db must name its digest."""
    if not os.path.lexists(places.prev):
        return "none"
    if switch.same_file(places.pos, places.prev):
        return "twin"
    row = looked.row
    if row is None or not looked.facts.sealed_here or not os.path.isfile(places.prev):
        return "foreign"
    if os.stat(places.prev).st_size != row.source_size:
        return "foreign"
    same = flash.digest_file(places.prev, mark) == (row.source_size, row.source_sha256)
    return "ours" if same else "foreign"


def _owes_wal(places: Places, looked: Looked) -> bool:
    seal, row = looked.seal, looked.row
    if seal is None or row is None or not seal.wal or seal.run != row.run:
        return False
    if looked.facts.prev not in ("ours", "none"):
        return False
    if looked.facts.prev == "none":
        return True
    old = os.stat(places.prev)
    return not holders_of((old.st_dev, old.st_ino), (os.getpid(), os.getppid()))[0]


def _next(
    places: Places, looked: Looked, profile: Profile, known_runs: set[str], mark: Mark
) -> str:
    if not any(os.path.lexists(places.next + s) for s in ("", *database.SIDE_FILES)):
        return "none"
    row = looked.next_row = _row_of_next(places, profile)
    if (
        row is None
        or row.kind != "migrate"
        # What a restore wrote out of a backup carries the row of a run that has long ended.
        or row.run in known_runs
        or row.plan != looked.plan
        or row.from_version != looked.facts.version
        or row.source_size != os.stat(places.pos).st_size
    ):
        return "strange"
    # Size and header may be equal although sales were added: only the whole file tells.
    source = looked.identity(places, mark)
    return "ours" if source == (row.source_size, row.source_sha256) else "strange"


def _row_of_next(places: Places, profile: Profile) -> RunRow | None:
    """The run row of a successor that an earlier attempt left, or None when it is of no use."""
    try:
        if not os.path.isfile(places.next) or os.path.getsize(places.next) == 0:
            return None
        connection = database.open_successor(
            places.next, profile.page_cache_bytes, profile.journal_bytes_max, 1 << 46
        )
        try:
            return rows.read_run(connection)
        finally:
            connection.close()
    except (*SQLITE_ERRORS, OSError, AgentError):
        return None


def _has_backup(places: Places, mark: Mark) -> bool:
    """Whether a backup that reads back whole is there, so that the old file may go."""
    for _, _, path in reversed(backup_folder.backup_files(places.backups)):
        try:
            backup_reader.verify(path, mark)
            return True
        except AgentError:
            continue
    return False
