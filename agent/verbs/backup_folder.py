"""The folder of backups: what lies there, told by names alone.

A name holds sequence number and schema version; order is by the number, never by a time. What is
neither a backup nor what a cut one left is not ours and is left alone.
"""

from __future__ import annotations

import os

from agent.edges import flash

SUFFIX = ".posbak"
UNFINISHED = ".tmp"


def backup_name(sequence: int, version: int) -> str:
    """The file name of a backup."""
    return f"{sequence:06d}-v{version}{SUFFIX}"


def _numbers(name: str) -> tuple[int, int] | None:
    sequence, _, version = name[: -len(SUFFIX)].partition("-v")
    if not (sequence + version).isascii() or not (sequence.isdigit() and version.isdigit()):
        return None
    found = int(sequence), int(version)
    return found if found[0] and backup_name(*found) == name else None


def _is_unfinished(name: str) -> bool:
    return name.endswith(UNFINISHED) and _numbers(name[: -len(UNFINISHED)]) is not None


def _names(folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a regular file) of all that lies there; an absent folder is empty."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise flash.refused(error, "listing the backups") from error


def backup_files(folder: str) -> list[tuple[int, int, str]]:
    """(sequence, schema version, path) by file name, oldest first; the header has the last word."""
    found = []
    for name, regular in _names(folder):
        numbers = _numbers(name) if regular else None
        if numbers is not None:
            found.append((*numbers, os.path.join(folder, name)))
    return sorted(found)


def foreign_files(folder: str) -> list[str]:
    """Paths there that are neither backups nor unfinished ones; the agent leaves them alone."""
    return [
        os.path.join(folder, name)
        for name, regular in _names(folder)
        if not regular or (_numbers(name) is None and not _is_unfinished(name))
    ]


def remove_unfinished(folder: str) -> int:
    """Delete what a cut backup left; how many files. Only while nobody writes one."""
    count = 0
    for name, regular in _names(folder):
        if regular and _is_unfinished(name):
            count += delete(os.path.join(folder, name))
    return count


def next_sequence(folder: str) -> int:
    """One more than the highest sequence number among the names there."""
    numbers = [_numbers(name) for name, _ in _names(folder)]
    return max((found[0] for found in numbers if found is not None), default=0) + 1


def delete(path: str) -> bool:
    """Delete an unfinished backup; whether it was there."""
    try:
        return flash.delete(path)
    except OSError as error:
        raise flash.refused(error, "deleting an unfinished backup") from error
