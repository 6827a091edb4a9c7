"""Who else has a file open, read from /proc; used to name the application and to wait for it."""

from __future__ import annotations

import os


class Holder:
    """One process that has the file open. `since` is its start, which tells a reused pid apart."""

    __slots__ = ("name", "pid", "since")

    def __init__(self, pid: int, since: str, name: str) -> None:
        self.pid = pid
        self.since = since
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name} (pid {self.pid})"


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
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
