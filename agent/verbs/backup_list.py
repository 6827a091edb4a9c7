"""Which backups there are, and which of them are old.

Nothing is locked: a run may take and delete backups meanwhile.
"""

from __future__ import annotations

import os

from agent.ground.errors import AgentError
from agent.verbs import backup_folder, backup_reader
from agent.verbs.restore import summary_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def listed(folder: str) -> list[dict[str, Any]]:
    """The backups by sequence, oldest first; `damaged` says why one cannot be used, or None."""
    rows: list[dict[str, Any]] = []
    for sequence, version, path in backup_folder.backup_files(folder):
        try:
            rows.append(dict(summary_of(backup_reader.read_info(path)), damaged=None))
        except AgentError as error:
            row = _unread(path, sequence, version)
            if row is not None:
                rows.append(dict(row, damaged=error.message))
    return rows


def _unread(path: str, sequence: int, version: int) -> dict[str, Any] | None:
    """What name and size tell of a backup that says nothing itself; None when it is gone."""
    try:
        size = os.stat(path).st_size
    except OSError:
        return None
    known = {"sequence": sequence, "version": version, "size_bytes": size}
    empty = dict.fromkeys(("image_bytes", "sha256", "made_ms", "clock_trusted", "unsettled"))
    return {"name": os.path.basename(path), **known, **empty}


def old_backups(
    folder: str, count: int, mark: Callable[[int], None] | None = None
) -> tuple[list[str], str]:
    """(paths beyond the newest `count`, oldest first, and the newest backup that reads back whole).

    That one is never among the first: where the newest are damaged, an older one is what there is.
    With no whole one at all nothing is old.
    """
    files = [path for _, _, path in backup_folder.backup_files(folder)]
    if len(files) <= count:
        return [], ""
    for path in reversed(files):
        try:
            backup_reader.verify(path, mark or _no_mark)
        except AgentError:
            continue
        return [old for old in files[:-count] if old != path], path
    return [], ""


def _no_mark(done: int) -> None:
    pass
