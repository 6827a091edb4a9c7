"""The lock file: whose terminal this is, and whether a run is on.

Two locks on one file. An agent holds the flock for as long as it lives: it alone writes agent.db.
A run besides holds the file's first byte, by open file description; readers of pos.db look for that
one to be out of a run's way. The kernel gives both back when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os

from agent.edges import flash
from agent.edges.filelock import lock_request, no_such_locks
from agent.ground.errors import Busy

RUN_BYTE = 0


class AgentLock:
    """Both locks of one agent on one terminal."""

    __slots__ = ("_agent", "_path", "_run")

    def __init__(self, path: str) -> None:
        self._path = path
        self._agent = -1
        self._run = -1

    def take(self) -> None:
        """Be the one agent of this terminal. Raises Busy when there is another."""
        if self._agent >= 0:
            return
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise Busy(
                "another posagent is at work on this terminal; `status` tells what",
                other_agent=True,
            ) from None
        self._agent = fd

    def begin_run(self) -> None:
        """From here on readers of pos.db let go of it. Raises Busy when a run is on, ConfigError on
        a system without such locks."""
        fd = self._open()
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_request(fcntl.F_WRLCK, RUN_BYTE, 1))
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise no_such_locks(self._path) from error
            raise Busy("a run is on; ask again when it is done", other_agent=True) from None
        self._run = fd

    def end_run(self) -> None:
        """Readers may come again."""
        if self._run >= 0:
            os.close(self._run)
            self._run = -1

    def release(self) -> None:
        """The next agent may begin."""
        self.end_run()
        if self._agent >= 0:
            os.close(self._agent)
            self._agent = -1

    def _open(self) -> int:
        try:
            flash.make_folder(os.path.dirname(self._path), 0o755)
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            doing = f"preparing {os.path.dirname(self._path)}"
            raise flash.refused(error, doing) from error


def run_is_on(path: str) -> bool:
    """Whether a run is on, on the terminal with this lock file.

    Told from /proc/locks, which needs no right to open the file. Only where the kernel's list names
    another device for it (btrfs and overlays do) is the lock itself asked, which takes none.
    """
    try:
        found = os.stat(path)
    except OSError:
        return False
    wanted = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    doubtful = False
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            for line in locks:
                fields = line.split()
                if len(fields) < 6 or fields[1] != "OFDLCK":
                    continue
                major, minor, inode = fields[5].split(":")
                if (int(major, 16), int(minor, 16), int(inode)) == wanted:
                    return True
                doubtful = doubtful or int(inode) == found.st_ino
    except (OSError, ValueError):
        doubtful = True
    return doubtful and _is_locked(path)


def _is_locked(path: str) -> bool:
    from _struct import unpack_from

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        request = lock_request(fcntl.F_RDLCK, RUN_BYTE, 1)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(unpack_from("h", answer)[0] != fcntl.F_UNLCK)
