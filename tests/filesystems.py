"""Real file systems for tests, and an outside force that makes system calls fail.

Each is mounted for one `with` block and always unmounted after it, whatever the test did. The
force is strace's fault injection: the program under test is the shipped one, the kernel's answer
is what differs. These need root, mkfs.ext4 and strace; a test that uses them fails without them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.terminals import COMMAND, Answer, Terminal

MIB = 1 << 20
_CLONE_NEWNS = 0x20000


def _do(*words: str) -> str:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where mkfs lives
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def _mounted(point: Path, *words: str) -> Iterator[Path]:
    point.mkdir(parents=True, exist_ok=True)
    _do("mount", *words, str(point))
    try:
        yield point
    finally:
        # A process that a failed test left there must not keep the mount: lazily as a last resort.
        if subprocess.run(["umount", str(point)], check=False, capture_output=True).returncode:
            _do("umount", "--lazy", str(point))


@contextmanager
def tmpfs(point: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in memory that ends after `size_bytes`."""
    with _mounted(point, "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "posagent-test"):
        yield point


@contextmanager
def ext4(point: Path, size_bytes: int) -> Iterator[Path]:
    """A loop-mounted ext4 that turns read-only at its first error, as terminals mount theirs."""
    image = point.with_name(point.name + ".img")
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    _do("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", str(image))
    try:
        with _mounted(point, "-o", "loop,errors=remount-ro", str(image)):
            yield point
    finally:
        image.unlink()


@contextmanager
def unproven(point: Path) -> Iterator[Path]:
    """A small file system of a kind that no rule of the switch was tried on: ext2."""
    image = point.with_name(point.name + ".img")
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    _do("mkfs.ext4", "-q", "-t", "ext2", str(image))
    with _mounted(point, "-t", "ext2", "-o", "loop", str(image)):
        yield point


@contextmanager
def bound(point: Path, other: Path) -> Iterator[None]:
    """A file under which another one lies by a bind mount."""
    _do("mount", "--bind", str(other), str(point))
    try:
        yield
    finally:
        _do("umount", str(point))


@contextmanager
def repaired_ext4(point: Path, image: Path) -> Iterator[Path]:
    """The file system of an image, checked and repaired as a technician would."""
    _do("sh", "-c", 'fsck.ext4 -fy "$0" >&2 || test $? -le 2', str(image))
    with _mounted(point, "-o", "loop", str(image)):
        yield point


def own_mounts() -> None:
    """Give this process mounts of its own: what it mounts nobody else sees, and all of it is gone
    when it ends, however it ends. No other program can keep one of them busy."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    _do("mount", "--make-rprivate", "/")


class Partition:
    """An ext4 in an image file that is mounted, cut off and mounted again. Needs `own_mounts`."""

    def __init__(self, image: Path, point: Path, options: str) -> None:
        self.image = image
        self.point = point
        self.options = ",".join(["loop", *filter(None, [options])])

    @staticmethod
    def make(image: Path, size_bytes: int, like: Path) -> None:
        """An image that holds what the folder `like` holds."""
        with open(image, "wb") as file:
            file.truncate(size_bytes)
        words = ("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard")
        _do(*words, "-d", str(like), str(image))

    def mount(self) -> None:
        """Mount it; the kernel replays the log."""
        self.point.mkdir(exist_ok=True)
        _do("mount", "-o", self.options, str(self.image), str(self.point))

    def unmount(self) -> None:
        """Unmount it; fails while anybody has a file open there."""
        _do("umount", str(self.point))


def sync(point: Path) -> None:
    """Bring everything written there to the device."""
    _do("sync", "--file-system", str(point))


def error_trigger(point: Path) -> Path:
    """The file into which a line written makes ext4 find an error and turn read-only."""
    device = _do("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(point))
    return Path("/sys/fs/ext4", os.path.basename(device), "trigger_fs_error")


def remount(point: Path, mode: str) -> None:
    """Mount again "ro" or "rw"."""
    _do("mount", "-o", f"remount,{mode}", str(point))


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """A file or folder that nobody may change, root included."""
    _do("chattr", "+i", str(path))
    try:
        yield
    finally:
        _do("chattr", "-i", str(path))


def free_bytes(point: Path) -> int:
    """What may still be written there, by root too: ext4 sets some blocks aside for itself."""
    found = os.statvfs(point)
    return found.f_bavail * found.f_frsize


def fill(path: Path, leave_bytes: int) -> None:
    """A file of such a size that `leave_bytes` are left, to some blocks."""
    path.touch()
    for spare in (256 * 1024, 32 * 1024, 0):  # a big file needs blocks of its own to be listed in
        surplus = free_bytes(path.parent) - leave_bytes - spare
        size = path.stat().st_size
        if surplus > 0:
            _do("fallocate", "--length", str(size + surplus), str(path))
        elif surplus < 0 and not spare:
            os.truncate(path, max(size + surplus, 0))


def run_with_faults(
    terminal: Terminal, log: Path, fault: str, paths: list[Path], *words: str
) -> Answer:
    """The real command while `fault` (strace's inject= expression) hits its calls on `paths`.

    `log` gets each such call, with the path of every descriptor. Occurrences are counted in each
    process by itself.
    """
    calls = fault.partition(":")[0]
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", f"trace={calls},unlink,openat"]
    command += ["-e", "signal=none", "-e", f"inject={fault}"]
    for path in paths:
        command += ["-P", str(path)]
    command += [*COMMAND, "--root", str(terminal.root), *words]
    return Answer(subprocess.run(command, capture_output=True, text=True, timeout=120))
