"""Real file systems for tests, and an outside force that makes system calls fail.

Each is mounted for one `with` block and always unmounted after it, whatever the test did. The
force is strace's fault injection: the program under test is the shipped one, the kernel's answer
is what differs. These need root, mkfs.ext4 and strace; a test that uses them fails without them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.terminals import COMMAND, Answer, Terminal

MIB = 1 << 20


def _do(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
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
    """What root may still write there."""
    found = os.statvfs(point)
    return found.f_bfree * found.f_frsize


def fill(path: Path, leave_bytes: int) -> None:
    """A file of such a size that `leave_bytes` are left, to a block or two."""
    path.touch()
    for _ in range(3):  # a big file needs blocks of its own to be listed in
        surplus = free_bytes(path.parent) - leave_bytes
        size = path.stat().st_size
        if surplus > 0:
            _do("fallocate", "--length", str(size + surplus), str(path))
        elif surplus < 0:
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
