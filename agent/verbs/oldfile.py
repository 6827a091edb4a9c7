"""What keeps the old file harmless after the switch: its lock, until nobody else has it open.

A client that had called open() on the old name, or waits in its busy time-out, would otherwise
write its -wal frames into the new file, or delete the new file's live journal. After the rename
nobody can open the old inode by name, so the set of its holders only shrinks.
"""

from __future__ import annotations

import os
import time

from agent.edges import clock
from agent.edges.holders import holders_of, open_elsewhere
from agent.ground.limits import RETRY_INTERVAL_MS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.edges.filelock import FileLock
    from agent.verbs.desk import Desk

UNKNOWN = "a process whose open files may not be read"


def late_holders(lock: FileLock) -> list[str]:
    """Names of the other processes that still have the old file open.

    The kernel's word that nobody has is enough. Otherwise /proc says who, as far as it may be read.
    """
    elsewhere = open_elsewhere(lock.fd)
    if elsewhere is False:
        return []
    found, complete = holders_of(lock.inode, (os.getpid(), os.getppid()))
    names = sorted({repr(holder) for holder in found.values()})
    # Somebody whom /proc does not show: of another user, or of another namespace.
    hidden = not names if elsewhere else not complete
    return [*names, UNKNOWN] if hidden else names


def settle_old_file(lock: FileLock | None, deadline_ms: int, desk: Desk) -> list[str]:
    """Wait until nobody else has the old file open; after the deadline, who still has.

    The lock stays held either way; whoever ends first among those that share it ends nothing.
    """
    if lock is None:
        return []
    give_up_at = clock.steady_ms() + deadline_ms
    told: list[str] = []
    while True:
        names = late_holders(lock)
        if not names or clock.steady_ms() >= give_up_at:
            return names
        if names != told:
            desk.tell(waiting_for=names, allow_ms=deadline_ms)
            told = names
        time.sleep(RETRY_INTERVAL_MS / 1000)


def hold_old_file(lock: FileLock, desk: Desk) -> None:
    """Stay behind with the lock until nobody else has the old file open, or until the reboot.

    Holders that may not be seen never go away as far as anybody can tell.
    """
    desk.close()
    while late_holders(lock):
        time.sleep(1)
