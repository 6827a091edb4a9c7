"""Reading a backup: all of it against its own digests, or only what it says of itself.

Whatever is not as docs/spec/backup-format.md has it is BackupCorrupt with a sentence; nothing of
such a file is used. One frame is in memory at a time.
"""

from __future__ import annotations

import os

from agent.edges import flash
from agent.ground import frames
from agent.ground.digest import sha256
from agent.ground.errors import BackupCorrupt, sentence_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Mark = Callable[[int], None]

_ZEROS = bytes(frames.WINDOW_BYTES)
_KIND_OF_FILE, _REGULAR_FILE = 0o170000, 0o100000  # inode(7); the module stat costs memory


class BackupInfo:
    """What a backup says of itself. `sha256` is the digest it ends with, its identity."""

    __slots__ = ("end", "header", "path", "schema_version", "sequence", "sha256", "size")

    def __init__(
        self, path: str, size: int, header: dict[str, Any], end: dict[str, Any], digest: bytes
    ) -> None:
        self.path = path
        self.size = size
        self.header = header
        self.end = end
        self.sha256 = digest.hex()
        self.sequence: int = header["sequence"]
        self.schema_version: int = header["schema_version"]


def verify(path: str, mark: Mark | None = None) -> BackupInfo:
    """Read all of a backup from the device and hold it against itself.

    Raises BackupCorrupt with a sentence for whatever is not as the format says, and AgentError
    when there is no such file. `mark` is called with the bytes of the image checked so far.
    """
    return _read_whole(path, None, mark)[0]


def write_image(path: str, fd: int, mark: Mark | None = None) -> str:
    """Write the file that the backup holds to `fd`, from its start and of its exact length.

    Left-out pages are written as zeros, not as holes: a later sale must not find flash full where
    its own free page was. Answers the SHA-256 of what was written, which equals the one in the
    backup; raises BackupCorrupt otherwise, when what `fd` holds is worth nothing. Not flushed.
    """
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        os.ftruncate(fd, 0)
    except OSError as error:
        raise flash.refused(error, "writing the image of a backup") from error
    return _read_whole(path, fd, mark)[1]


class _File:
    """A backup being read from its start: each part once, and into the digest."""

    __slots__ = ("digest", "fd", "offset", "path", "size")

    def __init__(self, path: str) -> None:
        self.path = path
        self.digest = sha256()
        self.offset = 0
        try:
            # Without O_NONBLOCK a pipe of that name would be waited on for ever.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise flash.refused(error, "opening a backup") from error
        found = os.fstat(self.fd)
        self.size = found.st_size
        if found.st_mode & _KIND_OF_FILE != _REGULAR_FILE:
            self.close()
            raise _named(BackupCorrupt("it is not a regular file"), path)

    def close(self) -> None:
        os.close(self.fd)

    def take(self, count: int) -> bytes:
        """Up to `count` bytes, fewer only at the end of the file."""
        try:
            data = os.pread(self.fd, count, self.offset)
        except OSError as error:
            raise BackupCorrupt(f"flash does not give it back ({sentence_for(error)})") from error
        self.digest.update(data)
        self.offset += len(data)
        return data

    def frame(self) -> tuple[bytes, bytes]:
        """(type, payload) of the next frame."""
        head = frames.Head(self.take(frames.FRAME_HEAD_BYTES))
        return head.kind, head.payload(self.take(head.stored_bytes))

    def begin(self) -> frames.Order:
        """Read start and header."""
        frames.check_start(self.take(frames.START_BYTES))
        kind, payload = self.frame()
        if kind != frames.HEAD:
            raise BackupCorrupt("it does not begin with a header")
        return frames.Order(frames.check_header(payload))


def _named(error: BackupCorrupt, path: str) -> BackupCorrupt:
    name = os.path.basename(path)
    return BackupCorrupt(f"{name} is not a usable backup: {error.message}", file=name)


def _read_whole(path: str, fd: int | None, mark: Mark | None) -> tuple[BackupInfo, str]:
    """The one full reader: (info, digest of the image); writes the image to `fd` if not None."""
    file = _File(path)
    try:
        flash.drop_cache(file.fd)
        order = file.begin()
        end, image = _read_image(file, order, fd, mark)
        expected: bytes = file.digest.digest()
        trailer = file.take(frames.DIGEST_BYTES + 1)
        if trailer != expected:
            longer = len(trailer) > frames.DIGEST_BYTES and trailer.startswith(expected)
            raise BackupCorrupt(
                "something follows its end" if longer else "its SHA-256 is wrong or cut off"
            )
        if image != end["image_sha256"]:
            raise BackupCorrupt("its pages do not give the file that its end names")
        return BackupInfo(path, file.size, order.header, end, expected), image
    except BackupCorrupt as error:
        raise _named(error, path) from error
    finally:
        file.close()


def _read_image(
    file: _File, order: frames.Order, fd: int | None, mark: Mark | None
) -> tuple[dict[str, Any], str]:
    windows = order.windows
    digest = sha256()
    done = 0

    def put(data: bytes | bytearray | memoryview) -> None:
        nonlocal done
        digest.update(data)
        if fd is not None:
            try:
                flash.write_all(fd, memoryview(data))
            except OSError as error:
                raise flash.refused(error, "writing the image of a backup") from error
        done += len(data)
        if mark is not None:
            mark(done)

    def put_zeros_up_to(window: int) -> None:
        while done < min(window * frames.WINDOW_BYTES, windows.image_bytes):
            put(memoryview(_ZEROS)[: windows.size(done // frames.WINDOW_BYTES)])

    while True:
        kind, payload = file.frame()
        if kind == frames.UNSETTLED:
            order.entries(payload)
            if mark is not None:
                mark(0)
        elif kind == frames.PAGES:
            window, stored, offset = order.window(payload)
            put_zeros_up_to(window)
            put(_window_bytes(windows, window, stored, memoryview(payload)[offset:]))
        elif kind == frames.END:
            end = order.end(payload)
            put_zeros_up_to(windows.count)
            return end, digest.hexdigest()
        else:
            raise BackupCorrupt("it holds a second header")


def _window_bytes(
    windows: frames.Windows, window: int, stored: int, pages: memoryview
) -> bytearray | memoryview:
    if len(pages) == windows.size(window):
        return pages
    whole = bytearray(windows.size(window))
    used = 0
    for begin, end, is_stored in windows.runs(window, stored):
        if is_stored:
            whole[begin:end] = pages[used : used + end - begin]
            used += end - begin
    return whole


def read_info(path: str) -> BackupInfo:
    """Header and end of a backup, two small reads; says nothing on whether the rest is whole."""
    file = _File(path)
    try:
        order = file.begin()
        if file.size < file.offset + frames.TAIL_BYTES:
            raise BackupCorrupt("it is cut off")
        file.offset = file.size - frames.TAIL_BYTES
        kind, payload = file.frame()
        if kind != frames.END:
            raise BackupCorrupt("it has no end")
        end = frames.check_end(payload, order.header)
        return BackupInfo(path, file.size, order.header, end, file.take(frames.DIGEST_BYTES))
    except BackupCorrupt as error:
        raise _named(error, path) from error
    finally:
        file.close()


def unsettled_entries(path: str) -> Iterator[bytes]:
    """The entries of the unsettled records, 32 bytes each, rising; verify the backup first."""
    file = _File(path)
    try:
        order = file.begin()
        kind, payload = file.frame()
        while kind == frames.UNSETTLED:
            order.entries(payload)
            for offset in range(0, len(payload), frames.ENTRY_BYTES):
                yield payload[offset : offset + frames.ENTRY_BYTES]
            kind, payload = file.frame()
        if order.unsettled != order.header["unsettled"]["records"]:
            raise BackupCorrupt("its header counts other unsettled records than are listed")
    except BackupCorrupt as error:
        raise _named(error, path) from error
    finally:
        file.close()
