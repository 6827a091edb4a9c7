"""Every fault of a migrations folder at once: names, stores.json, files, steps, applied files.

It runs the authors' code: call it only where a hang or a crash is survived. Where a terminal's data
is there, it is only read.
"""

from __future__ import annotations

import os

from agent.core.migration import Migration
from agent.core.plan import Plan, check_plan, check_quarantine
from agent.edges import database
from agent.edges.migration_files import (
    is_migration_name,
    migration_names,
    read_and_execute,
    read_contracts,
)
from agent.edges.quiet import open_quietly
from agent.ground.errors import AgentError, MigrationsRejected
from agent.verbs import rows, schema
from agent.verbs.check_samples import Found, try_steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.stores import Contracts
    from agent.edges.config import Config

    Mark = Callable[[str], None]

VERSION_MAX = 9999  # file names have four digits


def checked(config: Config, mark: Mark, last: int = VERSION_MAX) -> dict[str, Any]:
    """What `check` answers; docs/json-output.md names the keys. `mark` is told what is done.

    Files of versions above `last` are left unread.
    """
    found = Found()
    folder = config.migrations_dir
    names = [name for name in _check_names(folder, found) if int(name[:4]) <= last]
    contracts = _contracts(folder, found)
    migrations = _load(folder, names, found, mark)
    if contracts is not None:
        for migration in migrations:
            _check_stores(migration, contracts, found)
            if not migration.steps:
                found.warn(migration.file, "STEPS is empty: it only counts the version up")
            for step in migration.steps:
                if not step.reversible:
                    found.warn(
                        migration.file,
                        f"{step.describe()}: it cannot be undone, and nothing before it can; "
                        "the way back is a restore",
                    )
        _try_statements(migrations, contracts, found)
        try_steps(migrations, contracts, found, mark)
        if migrations and not contracts.application_reads(len(names)):
            found.warn(
                "stores.json",
                f"app_reads ends at {contracts.app_reads[1]}: after the upgrade to {len(names)} "
                "the application must not start",
            )
    _check_applied(config, migrations, found)
    return {
        "migrations_dir": folder,
        "files": names,
        "faults": found.faults,
        "warnings": found.warnings,
    }


def _check_names(folder: str, found: Found) -> list[str]:
    """The files that are named as migrations, faults of naming and numbering told."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        try:
            migration_names(folder)
        except MigrationsRejected as error:
            found.fault(folder, error.message)
        return []
    names = []
    for name in entries:
        if not name.endswith(".py") or name.startswith((".", "__")):
            continue
        if is_migration_name(name):
            names.append(name)
        else:
            found.fault(name, "is no name of a migration (0007_what_it_does.py)")
    numbers = [int(name[:4]) for name in names]
    for name, number in zip(names, numbers):
        if number < 1:
            found.fault(name, "versions begin with 0001")
        elif numbers.count(number) > 1:
            found.fault(name, f"version {number} stands twice among the migrations")
    for number in range(1, max(numbers, default=0)):
        if number not in numbers:
            found.fault(f"{number:04d}_….py", f"version {number} is missing among the migrations")
    return names


def _contracts(folder: str, found: Found) -> Contracts | None:
    try:
        return read_contracts(folder)
    except AgentError as error:
        found.fault("stores.json", error.message)
        return None


def _load(folder: str, names: list[str], found: Found, mark: Mark) -> list[Migration]:
    loaded = []
    for name in names:
        mark(f"loading {name}")
        try:
            loaded.append(read_and_execute(folder, name))
        except AgentError as error:
            found.fault(name, error.message)
    return loaded


def _check_stores(migration: Migration, contracts: Contracts, found: Found) -> None:
    for step in migration.steps:
        alone = Migration(migration.version, migration.name, [step], migration.file, "")
        try:
            check_plan(Plan([alone], migration.version - 1, ""), contracts)
        except MigrationsRejected as error:
            found.fault(migration.file, error.message)
    if migration.quarantine:
        try:
            check_quarantine(migration)
        except MigrationsRejected as error:
            found.fault(migration.file, error.message)


def _try_statements(migrations: list[Migration], contracts: Contracts, found: Found) -> None:
    """Every schema statement on empty stores, upwards and then back. The application's own tables
    are not known here, so a table that is missing is no fault."""
    memory = database.open_memory()
    try:
        for store in contracts.at(0).stores:
            memory.execute(
                f"CREATE TABLE {database.quoted(store)} (key TEXT PRIMARY KEY, value TEXT)"
            )
        steps = [(m, s) for m in migrations for s in m.steps if s.kind == "sql"]
        for down, one in ((False, steps), (True, steps[::-1])):
            for migration, step in one:
                try:
                    schema.run_statement(memory, step, down)
                except AgentError as error:
                    tell = found.warn if "no such table" in error.message else found.fault
                    tell(migration.file, error.message)
    finally:
        memory.close()


# What a terminal already had


def _check_applied(config: Config, migrations: list[Migration], found: Found) -> None:
    """Files that pos.db says were applied must be as they were then; without data, nothing."""
    _, applied = _applied(config, lambda text: found.warn("pos.db", text))
    by_version = {migration.version: migration for migration in migrations}
    for version, checksum in applied.items():
        migration = by_version.get(version)
        if migration is not None and checksum != migration.checksum:
            found.fault(
                migration.file,
                "it was edited after this terminal applied it; put it back and write a new one",
            )


def _applied(config: Config, warn: Callable[[str], None]) -> tuple[int, dict[int, str]]:
    """(schema, version to checksum) of what pos.db says was applied; nothing without data."""
    pos = os.path.realpath(config.pos_db)
    if not os.path.exists(pos):
        return 0, {}
    try:
        header = database.read_header(pos)
        if header is None:
            warn("is no SQLite file; applied files were not compared")
            return 0, {}
        connection = open_quietly(pos, header.wal_mode, warn)
        try:
            applied = rows.read_applied(connection)
            return header.user_version, {v: known.checksum for v, known in applied.items()}
        finally:
            connection.close()
    except (OSError, *database.SQLITE_ERRORS) as error:
        warn(f"applied files were not compared ({type(error).__name__})")
        return 0, {}


# One migration alone


def is_valid(config: Config, version: int, mark: Mark) -> bool:
    """Whether one migration has no fault of its own, and pos.db is as far as it says it was.

    The files before it are executed too: its steps are tried on what those make of the samples.
    """
    told = checked(config, mark, version)
    names = [name for name in told["files"] if int(name[:4]) == version]
    judged = (*names, "stores.json", config.migrations_dir)
    if len(names) != 1 or any(fault["file"] in judged for fault in told["faults"]):
        return False
    schema, applied = _applied(config, lambda text: None)
    return version not in applied or schema >= version
