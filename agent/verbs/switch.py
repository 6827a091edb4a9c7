"""The one door: seal, rename, and what keeps the old file harmless afterwards.

pos.db is only ever replaced, by one rename. Before it the old file is whole and in force, after it
the new one. Read the order of the lines as the order on flash (docs/architecture.md, The switch).
"""

from __future__ import annotations

import os

from agent.core.terminal import Places, has_counts
from agent.edges.database import left_to_recover, side_files_of
from agent.edges.filelock import FileLock, try_lock
from agent.edges.flash import delete, read_file, replace_file, sync_folder
from agent.ground.codec import decode, encode
from agent.ground.errors import AgentError, Busy, NeedsTechnician

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SEAL_BYTES_MAX = 65536


class Seal:
    """What is known of the last successor from outside it: a file cannot hold its own digest.

    `wal` tells that its WAL mode is still to be given back, `given_up` holds the plans that are not
    tried again by themselves. `reported` is False while only the seal tells that a switch may still
    lack its history row; where `.prev` is kept, that tells it. `back` says of a switch back that
    was begun which file it puts in place and what history is to say of it; that file has no row.
    """

    __slots__ = (
        "attempts",
        "back",
        "given_up",
        "reported",
        "run",
        "sha256",
        "size",
        "wal",
    )

    def __init__(
        self,
        run: str,
        size: int,
        sha256: str,
        wal: bool,
        attempts: int,
        given_up: list[str],
        reported: bool,
        back: dict[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.size = size
        self.sha256 = sha256
        self.wal = wal
        self.attempts = attempts
        self.given_up = given_up
        self.reported = reported
        self.back = back


def write_seal(places: Places, seal: Seal) -> None:
    """Make the seal durable. Cut before: the old seal; after: the new one; never half of one."""
    values: dict[str, Any] = {"format": 1}
    values.update((name, getattr(seal, name)) for name in Seal.__slots__)
    replace_file(places.seal, encode(values).encode(), 0o600)


def read_seal(places: Places) -> Seal | None:
    """The seal, or None when there is none that can be read; then no .prev is ever used."""
    try:
        given = decode(read_file(places.seal, SEAL_BYTES_MAX).decode())
        if not _has_types(given, _SEAL_TYPES) or not _are_texts(given["given_up"]):
            return None
        back = given.get("back")  # an earlier agent's seal has none
        if back is not None and not _is_back(back):
            back = None
        return Seal(**{name: given[name] for name in _SEAL_TYPES}, back=back)
    except (OSError, ValueError, AgentError):
        return None


# What a seal holds, and what it holds of a switch back: all that history is told, and the file.
_SEAL_TYPES = {
    "attempts": int,
    "given_up": list,
    "reported": bool,
    "run": str,
    "sha256": str,
    "size": int,
    "wal": bool,
}
_BACK_TYPES = {
    "at_ms": int,
    "before": dict,
    "clock_trusted": bool,
    "despite_unsettled": bool,
    "from_version": int,
    "hold": str,
    "kind": str,
    "left": int,
    "names": list,
    "plan": str,
    "run": str,
    "sha256": str,
    "size": int,
    "to_version": int,
    "verdict": str,
}


def _has_types(given: Any, types: dict[str, type]) -> bool:
    return type(given) is dict and all(
        type(given.get(name)) is kind for name, kind in types.items()
    )


def _is_back(given: Any) -> bool:
    return (
        _has_types(given, _BACK_TYPES)
        and has_counts(given["before"])
        and _are_texts(given["names"])
        and all(name[:4].isascii() and name[:4].isdigit() for name in given["names"])
    )


def _are_texts(given: list[Any]) -> bool:
    return all(type(item) is str for item in given)


def switch(places: Places, links: bool) -> FileLock:
    """Put the sealed successor in the place of pos.db. Answers the lock on the new file, which
    keeps every client out of it until the caller gives it up.

    The caller holds the old file's lock and has written the seal. Cut before the rename: pos.db is
    the old file, perhaps with a second name `.prev`, which the next boot unlinks. Cut after it: the
    new file, whole, which carries its run row as evidence.
    """
    lock = try_lock(places.next)
    if lock is None:
        raise Busy(f"another program has locked {places.next}")
    try:
        left = side_files_of(places.next) + side_files_of(places.pos)
        if left:
            raise AgentError(f"{', '.join(left)} must not be there at the switch")
        if links:
            delete(places.prev)
            os.link(places.pos, places.prev)
            sync_folder(places.folder)
        _rename(places, places.next)
    except BaseException:
        lock.close()
        raise
    return lock


def switch_back(places: Places) -> FileLock:
    """Put `.prev` back in the place of pos.db, which is given up. Answers the lock on it.

    The caller holds the lock of pos.db, has proven both files and has written the seal. Cut before
    the rename: pos.db is the newer file and `.prev` is there. Cut after it: the older file, whole,
    and the seal tells how it came there.
    """
    lock = try_lock(places.prev)
    if lock is None:
        raise Busy(f"another program has locked {places.prev}")
    try:
        left = side_files_of(places.prev) + side_files_of(places.pos)
        if left:
            raise AgentError(f"{', '.join(left)} must not be there at the switch")
        _rename(places, places.prev)
    except BaseException:
        lock.close()
        raise
    return lock


def _rename(places: Places, source: str) -> None:
    os.rename(source, places.pos)
    try:
        sync_folder(places.folder)
    except OSError as error:
        # Which of the two files a next boot finds is not known; sales must not be made in one
        # that may not be there.
        raise NeedsTechnician(
            f"flash did not confirm the switch ({error.strerror}); restart the terminal, which "
            "goes on with whichever file is there, both are whole",
            cause="SWITCH_UNCONFIRMED",
        ) from error


def drop_next(places: Places) -> None:
    """Delete a successor: the file first, then what lies beside it, then durably.

    Cut in between: side files without a file, which the next build removes before it creates one.
    """
    gone = delete(places.next)
    for suffix in ("-wal", "-shm", "-journal"):
        gone = delete(places.next + suffix) or gone
    if gone:
        sync_folder(places.folder)


def drop_prev(places: Places) -> None:
    """Give up the way back: from here on only `down` or a restore leads to the old version."""
    if delete(places.prev):
        sync_folder(places.folder)


def same_file(a: str, b: str) -> bool:
    """Whether two names lead to one inode; False where one is missing."""
    try:
        return os.path.samestat(os.lstat(a), os.lstat(b))
    except FileNotFoundError:
        return False


def written_since(places: Places, seal: Seal) -> bool | None:
    """Whether the application has written pos.db since the switch, told from sizes and the side
    files alone: True is certain, None means that only its digest can tell."""
    if left_to_recover(places.pos):
        return True
    return True if os.stat(places.pos).st_size != seal.size else None
