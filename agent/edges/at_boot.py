"""Whether a boot has anything to do, told from a few small reads; nothing is imported for it.

It asks only what cannot mislead: the version in pos.db's header is the installed one, nothing lies
beside pos.db that SQLite or an earlier run left, and no switch waits to be reported.
"""

from __future__ import annotations

import os

from agent.edges.flash import read_file, read_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.edges.config import Config

LEFT_BY_A_CUT = (
    ".next",
    ".next-wal",
    ".next-journal",
    ".next-shm",
    ".prev",
    ".probe",
    ".probe2",
)


def nothing_to_do(config: Config) -> int:
    """The version pos.db is at when a boot has nothing to do, else -1. Only reads."""
    try:
        pos = os.path.realpath(config.pos_db)
        version = schema_in_header(pos)
        if version is None or version != head_from_names(config.migrations_dir) or version < 1:
            return -1
        for left in LEFT_BY_A_CUT:
            if os.path.lexists(pos + left):
                return -1
        if os.path.lexists(config.state_dir + "/seal.tmp"):
            return -1
        if os.path.exists(pos + "-wal") and os.path.getsize(pos + "-wal"):
            return -1
        if os.path.exists(pos + "-journal") and _live_journal(pos + "-journal"):
            return -1
        if _switch_unreported(config.state_dir + "/seal"):
            return -1
        if os.path.isdir(config.backups_dir) and any(
            name.endswith(".tmp") for name in os.listdir(config.backups_dir)
        ):
            return -1  # what a cut backup left takes space until the long way removes it
        return version if application_reads(config.migrations_dir, version) else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # the long way finds out and says why


def schema_in_header(path: str) -> int | None:
    """The schema version that a SQLite file's first bytes tell; None for another file. OSError."""
    header = read_start(path, 100)
    if len(header) < 100 or header[:16] != b"SQLite format 3\0":
        return None
    return int.from_bytes(header[60:64], "big", signed=True)


def _live_journal(path: str) -> bool:
    return bool(read_start(path, 8).strip(b"\0"))


def _switch_unreported(path: str) -> bool:
    """Whether a switch without a kept old file may still lack its history row."""
    from agent.ground.codec import decode

    if not os.path.exists(path):
        return False
    seal = decode(read_file(path, 65536).decode())
    return bool(seal["wal"]) or not seal["reported"]


def head_from_names(folder: str) -> int:
    """The highest version among contiguous file names, or -1 where the long way must look."""
    numbers = sorted(
        int(name[:4]) for name in os.listdir(folder) if name.endswith(".py") and name[:4].isdigit()
    )
    return len(numbers) if numbers == list(range(1, len(numbers) + 1)) else -1


def application_reads(folder: str, version: int) -> bool:
    """Whether stores.json says that the installed application reads `version`."""
    from agent.ground.codec import decode

    low, high = decode(read_file(folder + "/stores.json", 1 << 20).decode())["app_reads"]
    return bool(low <= version <= high)
