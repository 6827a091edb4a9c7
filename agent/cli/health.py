"""`health`: the checks around the data, each a row of (name, ok | warn | fail, sentence, value).

A check that fails would stop a run; a warning is for the next visit. Nothing is written, and while
a run is on pos.db is not touched. The checks of storage and system are in
`health_machine`.
"""

from __future__ import annotations

import os

from agent.cli.health_machine import FAIL, MACHINE_CHECKS, OK, WARN
from agent.cli.output import show, wrap
from agent.cli.status_facts import old_file_users
from agent.edges import agentlock, clock, database, flash, quiet
from agent.edges.config import places_of
from agent.edges.holders import holders_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import EXIT_OK, AgentError, BackupCorrupt, MigrationsRejected
from agent.verbs import backup_folder, backup_reader, rows, switch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.cli.arguments import Command
    from agent.cli.health_machine import Said
    from agent.core.terminal import Places, RunRow
    from agent.edges.config import Config
    from agent.edges.state import Diary

EXIT_FAIL = 1
NAMES_SHOWN_MAX = 5


def health(command: Command, config: Config) -> int:
    """Do every check; 1 when one of them fails."""
    places = places_of(config)
    checks: list[dict[str, Any]] = []
    for name, check in (*CHECKS, *MACHINE_CHECKS):
        try:
            level, says, value = check(config, places)
        except (AgentError, OSError) as error:
            level, says, value = FAIL, f"cannot be checked: {error}", None
        checks.append({"name": name, "level": level, "says": says, "value": value})
    levels = [row["level"] for row in checks]
    worst = next(level for level in (FAIL, WARN, OK) if level in levels)
    lines: list[str] = []
    for row in checks:
        lines += wrap(f"{row['level']:5}{row['name']:16}", str(row["says"]))
    lines.append(f"{levels.count(FAIL)} failed, {levels.count(WARN)} warnings")
    show({"worst": worst, "checks": checks}, lines, command.json)
    return EXIT_FAIL if worst == FAIL else EXIT_OK


def _data(config: Config, places: Places) -> Said:
    """Whether pos.db is there and a database."""
    if agentlock.run_is_on(places.lock):
        return OK, "not looked at while a run is on", None
    if not os.path.lexists(places.pos):
        return FAIL, f"{places.pos} is missing", None
    header = database.read_header(places.pos)
    if header is None:
        return FAIL, f"{places.pos} is no SQLite file", None
    waits = database.left_to_recover(places.pos)
    also = "; somebody has it open, or it waits for recovery" if waits else ""
    return OK, f"{places.pos} has schema {header.user_version}{also}", header.user_version


def _migrations(config: Config, places: Places) -> Said:
    """Whether the folder can be read and its names are in order."""
    try:
        files = MigrationFiles(config.migrations_dir)
    except MigrationsRejected as error:
        return FAIL, error.message, None
    return OK, f"{files.head} migrations in {config.migrations_dir}", files.head


def _backups(config: Config, places: Places) -> Said:
    """How many there are, and the newest that reads back whole."""
    paths = [path for _, _, path in backup_folder.backup_files(config.backups_dir)]
    damaged: list[str] = []
    newest = None
    for path in reversed(paths):
        try:
            newest = os.path.basename(backup_reader.verify(path).path)
            break
        except BackupCorrupt:
            damaged.append(os.path.basename(path))
        except AgentError as error:
            return FAIL, error.message, None
    value = {"count": len(paths), "newest_verified": newest, "damaged": damaged}
    if not paths:
        return WARN, "there is none yet", value
    if newest is None:
        return FAIL, f"none of {len(paths)} reads back whole", value
    if damaged:
        return WARN, f"{', '.join(damaged)} damaged; the newest whole one is {newest}", value
    return OK, f"{len(paths)}, the newest is {newest}, read back whole", value


def _diary(config: Config, places: Places) -> Said:
    """Whether agent.db is sound, and whether earlier ones were set aside."""
    path = os.path.join(config.state_dir, "agent.db")

    def sound(diary: Diary) -> int:
        return len(diary.history())

    def quick_check(connection: Connection) -> str:
        return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])

    aside = [name for name in (path + ".damaged", path + ".newer") if os.path.lexists(name)]
    try:
        count = quiet.read_diary(path, sound, 0)
        if os.path.exists(path) and quiet.quietly(path, quick_check) != "ok":
            return WARN, f"{path} is damaged; the next run begins a new one", aside
    except AgentError as error:
        return WARN, error.message, aside
    if aside:
        return WARN, f"sound; set aside: {', '.join(map(os.path.basename, aside))}", aside
    return OK, f"sound, {count} rows of history" if os.path.exists(path) else "none yet", aside


def _seal(config: Config, places: Places) -> Said:
    """Whether what is known of the last switch can be read."""
    if not os.path.lexists(places.seal):
        return OK, "none yet", None
    seal = switch.read_seal(places)
    if seal is None:
        return WARN, f"{places.seal} cannot be read; .prev cannot be used to go back", None
    return OK, f"readable, of run {seal.run}", seal.run


def _beside(config: Config, places: Places) -> Said:
    """What lies beside pos.db: a successor, the file before the switch, and strange things."""
    if agentlock.run_is_on(places.lock):
        return OK, "not looked at while a run is on", None
    found, strange = [], []
    base = os.path.basename(places.pos)
    known = {base + s for s in ("-wal", "-shm", "-journal", ".prev")}
    for name in sorted(os.listdir(places.folder)):
        if not name.startswith((base + ".", base + "-")):
            continue
        found.append(name)
        if name not in known:
            strange.append(name)
    if os.path.lexists(places.prev):
        why = _prev_is_not_ours(places)
        if why:
            return WARN, f"{base}.prev is not used: {why}", found
    if base + ".next" in strange:
        return WARN, "a successor of an interrupted run; the next boot goes on", found
    if strange:
        names = ", ".join(strange[:NAMES_SHOWN_MAX])
        return WARN, f"left beside pos.db, look at them and move them away: {names}", found
    kept = ", the file before the last switch is kept" if base + ".prev" in found else ""
    return OK, "nothing strange" + kept, found


def _prev_is_not_ours(places: Places) -> str:
    """Why `.prev` is no way back, or "" when it is."""
    if switch.same_file(places.pos, places.prev):
        return "it is pos.db itself; the next boot removes the name"
    row: RunRow | None = quiet.quietly(places.pos, rows.read_run)
    if row is None or row.state != "sealed":
        return "pos.db does not say that it came from a run"
    if not os.path.isfile(places.prev) or os.path.getsize(places.prev) != row.source_size:
        return "it is not the file that the last run replaced"
    if flash.digest_file(places.prev) != (row.source_size, row.source_sha256):
        return "it is not the file that the last run replaced, or it was written since"
    late = old_file_users(places)
    return f"it is still open in {', '.join(late)}; stop it" if late else ""


def _clock(config: Config, places: Places) -> Said:
    """Whether the wall clock fits the newest time that is known."""
    newest = 0
    for _, _, path in backup_folder.backup_files(config.backups_dir):
        try:
            newest = max(newest, int(backup_reader.read_info(path).header["made_ms"]))
        except AgentError:
            continue

    def last(diary: Diary) -> int:
        return max([int(row["at_ms"]) for row in diary.history()] or [0])

    try:
        newest = max(newest, quiet.read_diary(os.path.join(config.state_dir, "agent.db"), last, 0))
    except AgentError:
        pass  # the check of the diary says so
    wall = clock.wall_ms()
    frozen, trusted = clock.frozen_now(newest, wall)
    value: dict[str, Any] = {"wall_ms": wall, "newest_known_ms": newest}
    if trusted:
        return OK, "plausible", value
    return WARN, f"not to be trusted; records get {frozen} ms, no data is decided by it", value


def _processes(config: Config, places: Places) -> Said:
    """Whether other processes' open files may be read, so that a holder can be named."""
    found = os.stat(config.path)
    _, complete = holders_of((found.st_dev, found.st_ino), (os.getpid(),))
    if complete:
        return OK, "all open files can be seen", True
    return (
        WARN,
        "the open files of other users cannot be seen; who holds pos.db may stay unnamed",
        False,
    )


CHECKS = (
    ("data", _data),
    ("migrations", _migrations),
    ("backups", _backups),
    ("history", _diary),
    ("seal", _seal),
    ("beside", _beside),
    ("clock", _clock),
    ("processes", _processes),
)
