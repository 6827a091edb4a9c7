"""Durable files on flash: the one way this program makes, replaces and deletes them.

Order is everything here: bytes before names, names before claims. An fsync that failed is never
repeated on the same file, since the kernel may have dropped the pages it could not write and would
answer the second call with success; such a file is thrown away (docs/architecture.md, Flash).
"""

from __future__ import annotations

import errno
import os
import stat

from agent.ground.errors import AgentError, StorageFull, sentence_for
from agent.ground.limits import CHUNK_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

_FULL = (errno.ENOSPC, errno.EDQUOT)


def refused(error: OSError, doing: str) -> AgentError:
    """Our error for a foreign OSError: STORAGE_ERROR where flash is full or will not be written."""
    if error.errno in _FULL:
        return StorageFull(f"flash is full while {doing}; free space, then start again")
    if error.errno == errno.EROFS:
        return StorageFull(f"the file system is read-only while {doing}; check it and start again")
    if error.errno == errno.EIO:
        return StorageFull(f"flash refused a read or write while {doing}; check it, start again")
    return AgentError(f"{sentence_for(error)} while {doing}")


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; os.write may stop short on a full disk or at a signal."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Make `path` hold exactly `data`, durably.

    Power gone before the rename: the old file, whole, and a left-over `.tmp` that the next call
    deletes. Between rename and folder sync: the old or the new file, whole. After the return:
    the new one.
    """
    temporary = path + ".tmp"
    delete(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        delete(temporary)  # a file whose fsync failed is never synced again
        raise
    finally:
        os.close(fd)
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def publish_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step for its readers, promising nothing after a power cut.

    For /run, which is memory: no flush is spent on it.
    """
    temporary = path + ".tmp"
    try:
        os.unlink(temporary)  # a link there would lead the writing into somebody's file
    except FileNotFoundError:
        pass
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)
    os.replace(temporary, path)


def open_regular(path: str) -> int:
    """Open a file for reading, and nothing else: a pipe or a device in its place would make the
    reader wait for ever. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def read_start(path: str, count: int) -> bytes:
    """The first `count` bytes of a regular file, fewer where it is shorter. Raises OSError."""
    fd = open_regular(path)
    try:
        return os.read(fd, count)
    finally:
        os.close(fd)


def read_file(path: str, bytes_max: int) -> bytes:
    """The whole of a small file. Raises OSError, and AgentError when it is larger than expected."""
    fd = open_regular(path)
    try:
        data = b""
        while len(data) <= bytes_max:
            more = os.read(fd, bytes_max + 1 - len(data))
            if not more:
                break
            data += more
    finally:
        os.close(fd)
    if len(data) > bytes_max:
        raise AgentError(f"{path} is larger than {bytes_max} bytes")
    return data


def read_at(path: str, off: int, count: int) -> bytes:
    """Up to `count` bytes from `off` on; fewer at the end. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, count, off)
    finally:
        os.close(fd)


def delete(path: str) -> bool:
    """Unlink `path`; whether it was there. The folder is not synced."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def drop_cache(fd: int) -> None:
    """Make the next read of `fd` come from the device, so that what is judged is what flash holds.

    Only clean pages can be dropped: sync first. Where the advice is not taken (tmpfs) the read is
    one of memory, which is then all there is.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_chunks(fd: int) -> Iterator[bytes]:
    """The file from its start in chunks of CHUNK_BYTES; the last one may be shorter."""
    offset = 0
    while True:
        chunk = os.pread(fd, CHUNK_BYTES, offset)
        if not chunk:
            return
        yield chunk
        offset += len(chunk)


def digest_file(path: str, mark: Callable[[int], None] | None = None) -> tuple[int, str]:
    """(size, SHA-256 in hex) of what the device holds under `path`.

    `mark` is called with the bytes read so far, so that a long read shows that it lives.
    """
    from agent.ground.digest import sha256

    digest = sha256()
    size = 0
    fd = open_regular(path)
    try:
        drop_cache(fd)
        for chunk in read_chunks(fd):
            digest.update(chunk)
            size += len(chunk)
            if mark is not None:
                mark(size)
    finally:
        os.close(fd)
    return size, digest.hexdigest()


def free_bytes(path: str) -> int:
    """Bytes that may still be written on the file system of `path`.

    Blocks that are free but set aside count for nobody: ext4 keeps some that even root is refused.
    """
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def total_bytes(path: str) -> int:
    """Size of the file system of `path`."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def make_folder(path: str, mode: int = 0o755) -> None:
    """Make `path` and the folders above it; every new name is durable."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync_folder(parent)


def file_system_of(path: str) -> tuple[str, str, bool]:
    """(file system type, mount point, whether `path` itself is the mount point), from the kernel.

    Of several mounts on one point the last one counts, as in the kernel.
    """
    path = os.path.realpath(path)
    best = ("unknown", "/")
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            _, point, kind = line.split(" ", 3)[:3]
            point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[1]):
                best = (kind, point)
    return best[0], best[1], best[1] == path
