"""`check` and `new`: for those who write migrations, on their machine and in CI.

`check` collects every fault it can find instead of stopping at the first. It runs the authors'
files and their steps on sample records of its own; where a terminal's data is there, it is only
read. `new` never writes over a file.
"""

from __future__ import annotations

import os

from agent.cli.output import show
from agent.cli.quiet import open_quietly
from agent.core.migration import Migration
from agent.core.plan import Plan, check_plan
from agent.core.steps import StepFault, apply_step, undeclared_change
from agent.core.terminal import TABLE
from agent.edges import database, flash
from agent.edges.migration_files import (
    is_migration_name,
    migration_names,
    read_and_execute,
    read_contracts,
)
from agent.ground.codec import decode, encode, same_value
from agent.ground.errors import AgentError, MigrationsRejected, UsageError, ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.core.migration import Step
    from agent.core.stores import Contract, Contracts
    from agent.edges.config import Config

NAME_CHARS_MAX = 60
SAMPLE_NOW_MS = 1_767_225_600_000

TEMPLATE = '''"""Say here what changes for whom, and what a way back could not bring back."""

# Steps come from agent.core.migration; docs/writing-migrations.md shows each of them:
# from agent.core.migration import set_field

VERSION = {version}
NAME = "{words}"
STEPS = [
    # set_field("{store}", "schemaVersion", {version}),
]
'''


def check(command: Command, config: Config) -> int:
    """Report every fault of the migrations folder; 11 when there is one."""
    found = _Found()
    folder = config.migrations_dir
    names = _check_names(folder, found)
    contracts = _contracts(folder, found)
    migrations = _load(folder, names, found)
    if contracts is not None:
        for migration in migrations:
            _check_stores(migration, contracts, found)
            if not migration.steps:
                found.warn(migration.file, "STEPS is empty: it only counts the version up")
        _try_steps(migrations, contracts, found)
        if migrations and not contracts.application_reads(len(names)):
            found.warn(
                "stores.json",
                f"app_reads ends at {contracts.app_reads[1]}: after the upgrade to {len(names)} "
                "the application must not start",
            )
    _check_applied(config, migrations, found)
    result = {
        "migrations_dir": folder,
        "files": names,
        "faults": found.faults,
        "warnings": found.warnings,
    }
    lines = [f"{fault['file']}: {fault['message']}" for fault in found.faults]
    lines += [f"warning: {one['file']}: {one['message']}" for one in found.warnings]
    if not found.faults:
        lines.append(f"OK: {len(names)} migrations, schema 0 -> {len(names)}")
    show(result, lines, command.json)
    return MigrationsRejected.exit_code if found.faults else 0


class _Found:
    """Faults refuse the files; warnings say what an author should know. Each is told once."""

    def __init__(self) -> None:
        self.faults: list[dict[str, str]] = []
        self.warnings: list[dict[str, str]] = []
        self.stopped: set[Step] = set()  # steps of which a run's stop was told already

    def fault(self, file: str, message: str) -> None:
        _once(self.faults, file, message)

    def warn(self, file: str, message: str) -> None:
        _once(self.warnings, file, message)


def _once(told: list[dict[str, str]], file: str, message: str) -> None:
    message = message[len(file) + 2 :] if message.startswith(f"{file}: ") else message
    if not any(one["file"] == file and one["message"] == message for one in told):
        told.append({"file": file, "message": message})


# Names and files


def _check_names(folder: str, found: _Found) -> list[str]:
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


def _contracts(folder: str, found: _Found) -> Contracts | None:
    try:
        return read_contracts(folder)
    except AgentError as error:
        found.fault("stores.json", error.message)
        return None


def _load(folder: str, names: list[str], found: _Found) -> list[Migration]:
    loaded = []
    for name in names:
        try:
            loaded.append(read_and_execute(folder, name))
        except AgentError as error:
            found.fault(name, error.message)
    return loaded


def _check_stores(migration: Migration, contracts: Contracts, found: _Found) -> None:
    for step in migration.steps:
        alone = Migration(migration.version, migration.name, [step], migration.file, "")
        try:
            check_plan(Plan([alone], migration.version - 1, ""), contracts)
        except MigrationsRejected as error:
            found.fault(migration.file, error.message)


# Steps on sample records


def samples_of(contract: Contract, store: str, steps: list[Step]) -> list[Any]:
    """Small records as a store may hold them: what is no object, an empty object, one with the
    fields of stores.json, and those with every field the steps name as number, text, list, object.
    """
    rules = contract.stores[store]
    plain: dict[str, Any] = {"nested": {"deep": {"list": [1, {"a": None}]}}, "größe": "10,50 €"}
    for path in rules.timestamps:
        _put(plain, path, SAMPLE_NOW_MS)
    for path, value in ((rules.amount, 1050), (rules.currency, "EUR")):
        if path:
            _put(plain, path, value)
    for kind, path, values, _ in rules.rules:
        if kind == "field":
            _put(plain, path, values[0])
    found: list[Any] = ["a bare string", [1, "two"], 7, None, {}, plain]
    kinds: tuple[Any, ...] = (1050, "text", [1, 2], {"a": 1}, None)
    for value in kinds:
        record = _copy(plain)
        for step in steps:
            for path in (step.path, *(step.fields if step.kind == "each" else ())):
                if path:
                    _put(record, path, value)
        found.append(record)
    for step in steps:
        if step.kind == "map_value":
            for old, _ in step.mapping:
                record = _copy(plain)
                _put(record, step.path, list(old) if type(old) is tuple else old)
                found.append(record)
    return found


def _put(record: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        inner = record.get(part)
        if type(inner) is not dict:
            inner = record[part] = {}
        record = inner
    record.setdefault(path[-1], value)


def _copy(record: Any) -> Any:
    return decode(encode(record))


def _try_steps(migrations: list[Migration], contracts: Contracts, found: _Found) -> None:
    """Every step on every sample, in order; then all of them again on what came out."""
    by_store: dict[str, list[tuple[Migration, Step]]] = {}
    for migration in migrations:
        for step in migration.steps:
            if step.kind != "move_record":
                by_store.setdefault(step.store, []).append((migration, step))
    for store, steps in by_store.items():
        contract = contracts.at(steps[0][0].version - 1)
        if store not in contract.stores:
            continue
        records = samples_of(contract, store, [step for _, step in steps])
        for again in (False, True):
            for migration, step in steps:
                records = _try_step(migration, step, records, again, found)


def _try_step(
    migration: Migration, step: Step, records: list[Any], again: bool, found: _Found
) -> list[Any]:
    """The records after one step; one that the step cannot be done to stays as it was."""
    context = migration.context(SAMPLE_NOW_MS, "device")
    after, stopped, objects = [], [], 0
    for record in records:
        before, changed = _copy(record), _copy(record)
        objects += type(record) is dict
        try:
            said = apply_step(step, step.key or "a-key", changed, context)
            changed = _copy(changed)
        except ValidationError as error:
            if _is_always_wrong(error, step):
                found.fault(migration.file, _reason(error))
            elif _is_unexpected(error, step):
                stopped.append(_reason(error))
            after.append(before)
            continue
        except (ValueError, TypeError) as error:
            found.fault(migration.file, f"{step.describe()}: its result is no JSON ({error})")
            after.append(before)
            continue
        outside = undeclared_change(before, changed, step.fields)
        if outside is not None or (not said and not same_value(before, changed)):
            found.fault(migration.file, f"{step.describe()}: it changes more than it declares")
        after.append(changed)
    if stopped and step not in found.stopped:
        found.stopped.add(step)
        which = "already migrated sample records" if again else "sample records"
        text = f"{stopped[0]}; a run stops at such a record ({len(stopped)} of {objects} {which})"
        if len(stopped) == objects and not again:
            found.fault(migration.file, text)
        else:
            found.warn(migration.file, text)
    return after


def _is_always_wrong(error: ValidationError, step: Step) -> bool:
    """Whether it says something of the step itself and not of a record that does not fit."""
    cause = error.__cause__
    return (
        step.kind == "each" and isinstance(cause, StepFault) and not str(cause).startswith("its ")
    )


def _is_unexpected(error: ValidationError, step: Step) -> bool:
    """A mapping that does not know a value, or a name taken already, is what was asked for."""
    return step.kind == "each" or not isinstance(error.__cause__, StepFault)


def _reason(error: ValidationError) -> str:
    return error.message.partition(": ")[2]


# What a terminal already had


def _check_applied(config: Config, migrations: list[Migration], found: _Found) -> None:
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


def _compare(rows: list[Any], migrations: list[Migration], found: _Found) -> None:
    by_version = {migration.version: migration for migration in migrations}
    for key, value in rows:
        migration = by_version.get(int(key))
        if migration is not None and decode(value) != migration.checksum:
            found.fault(
                migration.file,
                "it was edited after this terminal applied it; put it back and write a new one",
            )


# A new file


def new(command: Command, config: Config) -> int:
    """Write the next migration file from a template and print its path."""
    name, folder = command.words[0], config.migrations_dir
    suggested = snake_case(name)
    if name != suggested or not name:
        hint = f'; did you mean "{suggested}"?' if suggested else ""
        raise UsageError(f"a migration's name is a few words in snake_case{hint}")
    taken = migration_names(folder)
    for other in taken:
        if other[5:-3] == name:
            raise UsageError(f"{other} has that name already")
    version = len(taken) + 1
    if version > 9999:
        raise MigrationsRejected("there are 9999 migrations; no number is left")
    path = os.path.join(folder, f"{version:04d}_{name}.py")
    store = next(iter(read_contracts(folder).at(version - 1).stores))
    text = TEMPLATE.format(version=version, words=name.replace("_", " "), store=store)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            flash.write_all(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise flash.refused(error, f"writing {path}") from error
    show({"path": path, "version": version}, [path], command.json)
    return 0


def snake_case(text: str) -> str:
    """The nearest name that a migration may have, or "" where nothing of it can be used."""
    made = ""
    for char in text:
        if char.isascii() and char.isalnum():
            if char.isupper() and made[-1:].islower():
                made += "_"
            made += char.lower()
        elif made[-1:] != "_":
            made += "_"
    return made.strip("_")[:NAME_CHARS_MAX].strip("_")
