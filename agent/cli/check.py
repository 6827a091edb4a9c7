"""`check`: every fault of the migrations folder at once, for authors on their machine and in CI.

The authors' files and their steps are run in a child, so that one that hangs or crashes is told
like any other fault. Where a terminal's data is there, it is only read.
"""

from __future__ import annotations

import os

from agent.cli.apart import apart
from agent.cli.check_samples import Found, try_steps
from agent.cli.output import show
from agent.core.migration import Migration
from agent.core.plan import Plan, check_plan
from agent.core.terminal import TABLE
from agent.edges import database
from agent.edges.migration_files import (
    is_migration_name,
    migration_names,
    read_and_execute,
    read_contracts,
)
from agent.edges.quiet import open_quietly
from agent.ground.codec import decode
from agent.ground.errors import AgentError, MigrationsRejected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.apart import Mark
    from agent.cli.arguments import Command
    from agent.core.stores import Contracts
    from agent.edges.config import Config


def check(command: Command, config: Config) -> int:
    """Report every fault of the migrations folder; 11 when there is one."""
    result = apart(config, lambda mark: _checked(config, mark))
    faults, warnings, count = result["faults"], result["warnings"], len(result["files"])
    lines = [f"{fault['file']}: {fault['message']}" for fault in faults]
    lines += [f"warning: {one['file']}: {one['message']}" for one in warnings]
    if not faults:
        lines.append(f"OK: {count} migrations, schema 0 -> {count}")
    show(result, lines, command.json)
    return MigrationsRejected.exit_code if faults else 0


def _checked(config: Config, mark: Mark) -> dict[str, Any]:
    """The verb's answer. Runs the authors' code."""
    found = Found()
    folder = config.migrations_dir
    names = _check_names(folder, found)
    contracts = _contracts(folder, found)
    migrations = _load(folder, names, found, mark)
    if contracts is not None:
        for migration in migrations:
            _check_stores(migration, contracts, found)
            if not migration.steps:
                found.warn(migration.file, "STEPS is empty: it only counts the version up")
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


# What a terminal already had


def _check_applied(config: Config, migrations: list[Migration], found: Found) -> None:
    """Files that pos.db says were applied must be as they were then; without data, nothing."""
    pos = os.path.realpath(config.pos_db)
    if not os.path.exists(pos):
        return
    try:
        header = database.read_header(pos)
        if header is None:
            found.warn("pos.db", "is no SQLite file; applied files were not compared")
            return
        connection = open_quietly(pos, header.wal_mode, lambda text: found.warn("pos.db", text))
        try:
            if connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)
            ).fetchone():
                rows = connection.execute(
                    f"SELECT key, value FROM {TABLE} WHERE kind = 'applied' ORDER BY key"
                ).fetchall()
                _compare(rows, migrations, found)
        finally:
            connection.close()
    except (OSError, ValueError, database.SqliteError) as error:
        found.warn("pos.db", f"applied files were not compared ({type(error).__name__})")


def _compare(rows: list[Any], migrations: list[Migration], found: Found) -> None:
    by_version = {migration.version: migration for migration in migrations}
    for key, value in rows:
        migration = by_version.get(int(key))
        if migration is not None and decode(value) != migration.checksum:
            found.fault(
                migration.file,
                "it was edited after this terminal applied it; put it back and write a new one",
            )
