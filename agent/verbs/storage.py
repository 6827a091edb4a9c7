"""What the terminal's data takes on its partition, and how much more it may take."""

from __future__ import annotations

import os

from agent.edges import flash
from agent.verbs import quota

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.core.terminal import Places

BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own is


def estimate(places: Places, reserve_bytes: int) -> dict[str, int]:
    """`usage`: what pos.db, all that lies beside it under its name, backups and diary take.
    `quota`: that and what is free above the reserve, on the partition of pos.db.

    Nothing is opened. A file that goes away meanwhile counts as nothing. Raises OSError.
    """
    folder = quota.existing_folder(places.folder)
    device = os.stat(folder).st_dev
    base = os.path.basename(places.pos)
    paths = [os.path.join(folder, name) for name in os.listdir(folder) if _is_of(base, name)]
    for own in (places.state, places.backups):
        paths += [os.path.join(at, name) for at, _, names in os.walk(own) for name in names]
    blocks: dict[int, int] = {}  # by inode: a file may have two names for a moment
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            continue
        if found.st_dev == device:
            blocks[found.st_ino] = found.st_blocks
    usage = sum(blocks.values()) * BLOCK_BYTES
    spare = max(flash.free_bytes(folder) - reserve_bytes, 0)
    return {"usage": usage, "quota": usage + spare, "reserve": reserve_bytes}


def _is_of(base: str, name: str) -> bool:
    return name == base or name.startswith((base + "-", base + "."))
