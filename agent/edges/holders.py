"""Who else has a file open: whether anybody has, asked of the kernel, and who, read from /proc."""

from __future__ import annotations

import errno
import fcntl
import os

_SIGURG = 23  # the same number on every Linux port but three; `_signal` is not worth its import


class Holder:
    """One process that has the file open. `since` is its start, which tells a reused pid apart."""

    __slots__ = ("name", "pid", "since")

    def __init__(self, pid: int, since: str, name: str) -> None:
        self.pid = pid
        self.since = since
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def _kernel() -> tuple[int, int]:
    """The running kernel's version, (0, 0) where it cannot be read."""
    numbers = os.uname().release.split("-")[0].split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (IndexError, ValueError):
        return 0, 0


def open_elsewhere(fd: int) -> bool | None:
    """Whether any other open of the file exists on this machine, or None where that cannot be told.

    The kernel grants a write lease only to the file's sole opener (fcntl(2), Leases), whoever else
    may be hidden from us by users or namespaces; it is asked for and given back at once.
    Descriptors that share `fd`'s open file description, as after a fork, are no other opens. Before
    Linux 5.3 a file's second name could look like a second open, so only a grant says anything.
    """
    try:
        # Whoever opens the file in between has us told by a signal that is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, _SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        refused = error.errno == errno.EAGAIN and _kernel() >= (5, 3)
        return True if refused else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def open_here(inode: tuple[int, int]) -> bool:
    """Whether this very process has the file open, told without opening it: to close a second
    descriptor would drop the locks that SQLite holds for the first one."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            status = os.stat(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue  # the one that listed the folder
        if (status.st_dev, status.st_ino) == inode:
            return True
    return False


def holders_of(
    inode: tuple[int, int], ours: tuple[int, ...]
) -> tuple[dict[tuple[int, int], Holder], bool]:
    """Descriptors of `inode` (device, number) in other processes than `ours`, and whether all
    processes could be looked at.

    Keys are (pid, descriptor). Without the right to read another user's /proc the second answer is
    False: holders are then unknown, not absent.
    """
    found: dict[tuple[int, int], Holder] = {}
    complete = True
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in ours:
            continue
        pid = int(entry)
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:
            complete = complete and not _may_hide_holders(pid)
            continue
        except OSError:
            continue  # it ended while we looked
        for descriptor in descriptors:
            try:
                status = os.stat(f"/proc/{pid}/fd/{descriptor}")
            except PermissionError:
                # Root without its powers may list another root's descriptors, not follow them.
                complete = complete and not _may_hide_holders(pid)
                break
            except OSError:
                continue
            if (status.st_dev, status.st_ino) == inode:
                found[(pid, int(descriptor))] = Holder(pid, _started(pid), _name(pid))
    return found, complete


def _may_hide_holders(pid: int) -> bool:
    """Whether a process whose descriptors may not be read could have files open at all."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return bool(file.read(1))  # kernel threads have no command line
    except OSError:
        return False


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a process that has ended"


def _started(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def memory_of(pid: int) -> tuple[int, int]:
    """(resident bytes, resident bytes that are shared with files or other processes) of a process.

    Zeros when it has ended.
    """
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            fields = file.read().split()
        page = os.sysconf("SC_PAGE_SIZE")
        return int(fields[1]) * page, int(fields[2]) * page
    except (OSError, IndexError, ValueError):
        return 0, 0


def boot_id() -> str:
    """The kernel's name of this boot: differs after every power cut, equal after a mere crash."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
