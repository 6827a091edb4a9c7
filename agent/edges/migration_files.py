"""The migrations folder: which files are there, what they are known by, and executing them.

Names and bytes can be read without running a line of them, so that the supervisor knows a plan by
its digest; they are executed only in the worker, under its deadline and memory limit.
"""

from __future__ import annotations

import os

from agent.core.migration import Migration, migration_from
from agent.core.plan import Plan, check_plan, plan_digest
from agent.core.stores import Contracts
from agent.edges.flash import read_file
from agent.ground.codec import decode
from agent.ground.digest import hex_digest
from agent.ground.errors import AgentError, MigrationsRejected, sentence_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.applied import Applied

FILE_BYTES_MAX = 1 << 20
_NAME_CHARS = "abcdefghijklmnopqrstuvwxyz0123456789_"


def migration_names(folder: str) -> list[str]:
    """File names in order of version, contiguous from 1. Raises MigrationsRejected.

    Only `NNNN_snake_case.py` counts. Another .py file there is a mistake in a name and refused;
    other files are none of our business.
    """
    try:
        entries = os.listdir(folder)
    except OSError as error:
        raise MigrationsRejected(
            f"the migrations folder cannot be read: {sentence_for(error)}; install it again"
        ) from error
    names = []
    for name in sorted(entries):
        if not name.endswith(".py") or name.startswith((".", "__")):
            continue
        if not is_migration_name(name):
            raise MigrationsRejected(f"{name} is no name of a migration (0007_what_it_does.py)")
        names.append(name)
    for expected, name in enumerate(names, 1):
        number = int(name[:4])
        if number != expected:
            what = "stands twice" if number < expected else "is missing"
            version = number if number < expected else expected
            raise MigrationsRejected(f"version {version} {what} among the migrations", at=name)
    return names


def read_contracts(folder: str) -> Contracts:
    """stores.json of the folder, whatever the state of the files beside it.

    Raises MigrationsRejected.
    """
    text = _read(folder, "stores.json")
    try:
        document: Any = decode(text.decode())
    except ValueError as error:
        raise MigrationsRejected(f"stores.json cannot be read: {error}") from error
    return Contracts(document, hex_digest(_normalised(text)))


def _read(folder: str, name: str) -> bytes:
    try:
        return read_file(os.path.join(folder, name), FILE_BYTES_MAX)
    except OSError as error:
        raise MigrationsRejected(f"{name} cannot be read: {sentence_for(error)}") from error
    except AgentError as error:
        raise MigrationsRejected(error.message) from error


class MigrationFiles:
    """The folder as bytes: names, checksums and stores.json, read once, nothing executed."""

    __slots__ = ("checksums", "contracts", "folder", "head", "names", "sources")

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.names = migration_names(folder)
        self.head = len(self.names)
        self.sources = [self._read(name) for name in self.names]
        self.checksums = [hex_digest(_normalised(source)) for source in self.sources]
        self.contracts = read_contracts(folder)

    def _read(self, name: str) -> bytes:
        return _read(self.folder, name)

    def digest(self, from_version: int) -> str:
        """What the plan from `from_version` to the head is known by."""
        return plan_digest(self.checksums[from_version:], self.contracts.checksum, from_version)

    def load(self, from_version: int, left_from: int | None = None) -> Plan:
        """Execute the pending files and make the plan. Raises MigrationsRejected.

        With `left_from` the files from that version on are executed as well: records that were left
        behind there are tried again. Runs the authors' code: call it only where a hang or a crash
        is survived.
        """
        if from_version < 0:
            raise MigrationsRejected(f"pos.db says schema {from_version}, which no migration reads")
        plan = Plan(self._loaded(from_version, self.head), from_version, self.digest(from_version))
        if left_from is not None:
            plan.earlier = self._loaded(left_from, from_version)
        check_plan(plan, self.contracts)
        return plan

    def load_down(self, from_version: int, to_version: int) -> Plan:
        """Execute the files between two versions and make the plan of the way down. As `load`."""
        digest = plan_digest(
            self.checksums[to_version:from_version], self.contracts.checksum, from_version, True
        )
        plan = Plan(self._loaded(to_version, from_version), from_version, digest, down=True)
        check_plan(plan, self.contracts)
        return plan

    def _loaded(self, from_version: int, to_version: int) -> list[Migration]:
        return [
            _executed(
                version,
                self.names[version - 1],
                self.sources[version - 1],
                self.checksums[version - 1],
            )
            for version in range(from_version + 1, to_version + 1)
        ]

    def edited(self, applied: dict[int, Applied]) -> list[str]:
        """The files that are not what pos.db says was applied."""
        return [
            self.names[version - 1]
            for version, known in sorted(applied.items())
            if 0 < version <= self.head and known.checksum != self.checksums[version - 1]
        ]


def read_and_execute(folder: str, name: str) -> Migration:
    """One file by its name, whatever lies beside it. Runs the author's code."""
    source = _read(folder, name)
    return _executed(int(name[:4]), name, source, hex_digest(_normalised(source)))


def is_migration_name(name: str) -> bool:
    """Whether a file is named as a migration must be: 0007_what_it_does.py."""
    stem = name[:-3]
    return (
        name.endswith(".py")
        and stem[:4].isdigit()
        and stem[4:5] == "_"
        and stem[5:] != ""
        and all(c in _NAME_CHARS for c in stem)
    )


def _executed(version: int, name: str, source: bytes, checksum: str) -> Migration:
    namespace: dict[str, Any] = {"__name__": f"migration_{version:04d}", "__file__": name}
    try:
        exec(compile(source, name, "exec", dont_inherit=True), namespace)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise MigrationsRejected(f"{name}{line}: {error.msg}") from error
    except MigrationsRejected as error:
        raise MigrationsRejected(f"{name}: {error.message}") from error
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise MigrationsRejected(f"{name}: {type(error).__name__}: {error}") from error
    return migration_from(namespace, version, name, checksum)


def _normalised(source: bytes) -> bytes:
    """The file without what a checkout changes and Python does not see: the kind of line ends.

    Blanks at a line's end stay: inside a long string they are part of a value.
    """
    return source.replace(b"\r\n", b"\n").strip(b"\n") + b"\n"
