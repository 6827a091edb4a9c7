"""`new`: write the next migration file from a template. A file that is there is never touched."""

from __future__ import annotations

import os

from agent.cli.output import show
from agent.edges import flash
from agent.edges.migration_files import migration_names, read_contracts
from agent.ground.errors import MigrationsRejected, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command
    from agent.edges.config import Config

NAME_CHARS_MAX = 60

TEMPLATE = '''"""Say here what changes for whom, and what a way back could not bring back."""

# Steps come from agent.core.migration; docs/writing-migrations.md shows each of them:
# from agent.core.migration import set_field

VERSION = {version}
NAME = "{words}"
STEPS = [
    # set_field("{store}", "schemaVersion", {version}),
]
'''


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
