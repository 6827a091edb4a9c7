"""Whether a run can be done here at all: space, file system, ownership. Asked before any work.

Everything is known before the first byte of a backup or a successor is written; what is refused
here leaves the terminal exactly as it was (P5).
"""

from __future__ import annotations

import errno
import os

from agent.core.terminal import Places
from agent.edges.flash import delete, file_system_of, free_bytes, refused, sync_folder
from agent.ground.errors import AgentError, ConfigError, StorageFull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.core.profile import Profile

# Rename, hard link and folder fsync behave as the switch needs on these.
PROVEN_FILE_SYSTEMS = ("ext4", "f2fs", "ubifs", "xfs", "btrfs", "tmpfs")

# A page that was full and whose rows grow splits; twice the file covers every page splitting once.
GROWTH_FACTOR = 2
GROWTH_BYTES_MIN = 1 << 20


class Need:
    """Bytes that a run may need at its peak, part by part."""

    __slots__ = ("backup", "journal", "reserve", "successor")

    def __init__(self, successor: int, journal: int, backup: int, reserve: int) -> None:
        self.successor = successor
        self.journal = journal
        self.backup = backup
        self.reserve = reserve

    @property
    def total(self) -> int:
        """All parts together."""
        return self.successor + self.journal + self.backup + self.reserve

    def as_json(self) -> dict[str, int]:
        """The parts by name, in bytes."""
        return {
            "successor_bytes": self.successor,
            "journal_bytes": self.journal,
            "backup_bytes": self.backup,
            "reserve_bytes": self.reserve,
            "total_bytes": self.total,
        }


def need_for(source_bytes: int, backup_bound: int, profile: Profile) -> Need:
    """The bound of each part for a source of this size. The successor is held to it while built."""
    return Need(
        successor=source_bytes * GROWTH_FACTOR + GROWTH_BYTES_MIN,
        # A batch joins the journal before it is checkpointed.
        journal=profile.journal_bytes_max + 2 * profile.batch_bytes_max,
        backup=backup_bound,
        reserve=profile.reserve_bytes,
    )


def existing_folder(folder: str) -> str:
    """The folder, or the nearest one above it that is there already: it has the same space."""
    while not os.path.isdir(folder) and folder not in ("/", ""):
        folder = os.path.dirname(folder)
    return folder


def check_size(source_bytes: int, profile: Profile) -> None:
    """Refuse a file larger than the profile says this class of terminal can upgrade."""
    if source_bytes > profile.pos_db_bytes_max:
        raise StorageFull(
            f"pos.db has {source_bytes} bytes and profile {profile.id} upgrades at most "
            f"{profile.pos_db_bytes_max}; settle and prune first",
            size_bytes=source_bytes,
            pos_db_bytes_max=profile.pos_db_bytes_max,
        )


def shortage(places: Places, need: Need) -> tuple[int, int]:
    """(bytes needed, bytes free) where they do not suffice, else (0, 0).

    Backups may lie on another file system; then each is asked for its own part.
    """
    same = os.stat(places.folder).st_dev == os.stat(places.backups).st_dev
    parts = (
        ((places.folder, need.total),)
        if same
        else (
            (places.folder, need.total - need.backup),
            (places.backups, need.backup + need.reserve),
        )
    )
    for folder, needed in parts:
        free = free_bytes(folder)
        if free < needed:
            return needed, free
    return 0, 0


def check_space(places: Places, need: Need) -> None:
    """Raise StorageFull with both figures when the run might not fit."""
    needed, free = shortage(places, need)
    if needed:
        raise StorageFull(
            f"the upgrade may need {needed} bytes and {free} are free; settle sales, remove old "
            "backups or free space, then start again",
            needed_bytes=needed,
            free_bytes=free,
            **need.as_json(),
        )


def check_backup_space(places: Places, bound: int, reserve: int) -> None:
    """Raise StorageFull when a backup alone, and the reserve, might not fit."""
    free = free_bytes(places.backups)
    if free < bound + reserve:
        raise StorageFull(
            f"the backup may need {bound} bytes beside a reserve of {reserve} and {free} are free; "
            "remove old backups, then start again",
            needed_bytes=bound + reserve,
            free_bytes=free,
        )


def check_place(places: Places, unproven_allowed: bool) -> None:
    """Refuse a file that cannot be replaced by a rename: hard-linked, mounted, on an unknown
    file system. Nothing is written."""
    found = os.stat(places.pos)
    if found.st_nlink > 1:
        raise ConfigError(
            f"{places.pos} has {found.st_nlink} names (hard links); a switch would leave the "
            "others on the old data; remove them"
        )
    kind, _, mounted = file_system_of(places.pos)
    if mounted:
        raise ConfigError(f"{places.pos} is a mount point and cannot be replaced; mount its folder")
    if kind not in PROVEN_FILE_SYSTEMS and not unproven_allowed:
        raise ConfigError(
            f"{places.pos} lies on {kind}, where the switch is not proven "
            f'({", ".join(PROVEN_FILE_SYSTEMS)}); set "unproven_filesystem" to use it all the same'
        )


def copy_ownership(source: str, fd: int) -> None:
    """Give an open file the owner, mode and every extended attribute of `source`.

    Without it the application's next sale would fail as read-only. Of a folder, where there is no
    file to be like, only owner and the rights to read and write are taken.
    """
    like = os.stat(source)
    os.fchown(fd, like.st_uid, like.st_gid)
    if os.path.isdir(source):
        os.fchmod(fd, like.st_mode & 0o666)
        return
    os.fchmod(fd, like.st_mode & 0o7777)
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS):
            raise
        names = []
    for name in names:
        os.setxattr(fd, name, os.getxattr(source, name))


def probe(places: Places) -> bool:
    """Try on an empty file what the switch will do: own, link, rename. Whether links work.

    Called once the space is known. Raises AgentError or StorageFull with what is not possible;
    leaves nothing behind, and the next probe removes what a cut left.
    """
    names = [places.pos + ".probe", places.pos + ".probe2"]
    links = True
    try:
        for name in names:
            delete(name)
        fd = os.open(names[0], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_ownership(places.pos, fd)
        except OSError as error:
            raise AgentError(
                f"the new file could not get the owner, mode and attributes of {places.pos} "
                f"({error.strerror}); start the agent as root or as the file's owner"
            ) from error
        finally:
            os.close(fd)
        try:
            os.link(names[0], names[1])
            os.unlink(names[1])
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            links = False
        os.rename(names[0], names[1])
        sync_folder(places.folder)
    except OSError as error:
        raise refused(error, f"trying out {places.folder}") from error
    finally:
        for name in names:
            try:
                delete(name)
            except OSError:
                pass  # a read-only folder: nothing was made there either
    return links
