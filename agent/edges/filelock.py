"""The lock that keeps the application out of pos.db while its successor is built.

An open-file-description lock over the bytes SQLite locks. A POSIX lock would be gone as soon as
anything in this process closed any descriptor of the same file: measured, a sale was acknowledged
and then lost. The lock is never released by F_UNLCK, since any process that shares the description
would then release it for all; it ends when the last descriptor of it is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os

from agent.ground.errors import ConfigError
from agent.ground.limits import LOCK_BYTES, LOCK_OFFSET

_flock_format = "hhqqi4x"  # struct flock on Linux with 64-bit offsets


def lock_request(kind: int, start: int = LOCK_OFFSET, length: int = LOCK_BYTES) -> bytes:
    """The kernel's struct flock for a lock of that kind; the bytes that SQLite locks, unless said
    otherwise."""
    from _struct import pack

    return pack(_flock_format, kind, os.SEEK_SET, start, length, 0)


class FileLock:
    """A held lock on one inode. `inode` names it, `fd` keeps it; closing gives it up."""

    __slots__ = ("fd", "inode")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        self.inode = (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Give the lock up, unless another process still shares this description."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def no_such_locks(path: str) -> ConfigError:
    """The error for a kernel or a file system without these locks."""
    return ConfigError(
        f"this system has no open-file-description locks on {path}; the agent cannot keep the "
        "application out and will not run here"
    )


def try_lock(path: str) -> FileLock | None:
    """Lock the file that `path` names now, or None when any SQLite client holds a lock on it.

    After a crash the kernel has released it. Raises ConfigError where the kernel or the file
    system has no open-file-description locks, and OSError when the file cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_request(fcntl.F_WRLCK))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise no_such_locks(path) from error
    return FileLock(fd)


def locks_are_there(path: str) -> bool:
    """Whether the kernel and the file system of `path` have these locks. Takes none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock_request(fcntl.F_RDLCK))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
