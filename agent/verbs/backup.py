"""Backups: one streamed file per copy of pos.db, which counts only once flash has given it back.

One window of 64 KiB is in memory at a time, whatever the file's size. A backup has its name only
after it was read back from the device and every digest in it was right; until then it is `.tmp`.
The format is docs/spec/backup-format.md; how its frames look is in ground/frames.
"""

from __future__ import annotations

import os

from agent.edges import flash
from agent.edges.database import read_header
from agent.ground import frames
from agent.ground.digest import sha256
from agent.ground.errors import (
    AgentError,
    BackupCorrupt,
    InternalError,
    StorageFull,
    ValidationError,
    sentence_for,
)
from agent.ground.limits import LOCK_OFFSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Mark = Callable[[int], None]

SUFFIX = ".posbak"
UNFINISHED = ".tmp"
SAMPLE_WINDOWS = 64  # 4 MiB read and packed at most, to bound a backup's size beforehand
_ZEROS = bytes(frames.WINDOW_BYTES)
_KIND_OF_FILE, _REGULAR_FILE = 0o170000, 0o100000  # inode(7); the module stat costs memory


class BackupWriter:
    """Writes one backup beside its final name, in the order header, entries, file, end.

    Power gone at any point leaves a `.tmp`, which no reader takes for a backup and which the next
    writer of that name, or `remove_unfinished`, deletes. After an error the caller calls `abort`.
    """

    __slots__ = (
        "_buffer",
        "_bytes_max",
        "_digest",
        "_entries",
        "_fd",
        "_filled",
        "_frames",
        "_image",
        "_left_out",
        "_level",
        "_order",
        "_pages",
        "_size",
        "_temporary",
        "_window",
    )

    def __init__(
        self,
        path: str,
        header: dict[str, Any],
        level: int,
        bytes_max: int,
        left_out: bytes | bytearray | None,
    ) -> None:
        """`header` as in the format's table; `format` and `page_count` are filled in here.

        `left_out` has a bit per page (page 1 in bit 0 of byte 0) for pages that a restore writes
        as zeros. Raises InternalError for a header that cannot be, StorageFull and AgentError.
        """
        first = self._header_frame(header)
        if os.path.lexists(path):
            raise InternalError(f"{path} is there already; a backup is never written over")
        self._temporary = path + UNFINISHED
        self._level = level
        self._bytes_max = bytes_max
        self._left_out = left_out if left_out and any(left_out) else None
        self._image = None if self._left_out is None else sha256()
        self._digest = sha256()
        self._size = 0
        self._entries = bytearray()
        self._buffer = bytearray(frames.WINDOW_BYTES)
        self._filled = 0
        self._window = 0
        self._frames = 1
        self._pages = 0
        self._fd = -1
        try:
            flash.delete(self._temporary)
            self._fd = os.open(
                self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise flash.refused(error, "creating the backup") from error
        try:
            self._write(frames.start() + first)
        except BaseException:
            self.abort()
            raise

    def _header_frame(self, given: dict[str, Any]) -> bytes:
        try:
            pages = -(-given["image_bytes"] // given["page_bytes"])
            header = dict(given, format=frames.VERSION, page_count=pages)
            frame = frames.pack_json(frames.HEAD, header)
            checked = frames.check_header(frame[frames.FRAME_HEAD_BYTES :])
        except (KeyError, ValueError, TypeError, BackupCorrupt) as error:
            raise InternalError(f"the backup's header cannot be written: {error}") from error
        self._order = frames.Order(checked)
        return frame

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > self._bytes_max:
            raise StorageFull(
                f"the backup would pass its bound of {self._bytes_max} bytes; "
                "free space, then start again",
                bound=self._bytes_max,
            )
        try:
            flash.write_all(self._fd, data)
        except OSError as error:
            raise flash.refused(error, "writing the backup") from error
        self._digest.update(data)
        self._size += len(data)

    def add_unsettled(self, entries: bytes) -> None:
        """Take whole `frames.unsettled_entry` values, rising over all calls, before any page."""
        self._entries += entries
        while len(self._entries) >= frames.WINDOW_BYTES:
            self._put_entries(frames.WINDOW_BYTES)

    def _put_entries(self, count: int) -> None:
        payload = bytes(self._entries[:count])
        del self._entries[:count]
        if payload:
            try:
                self._order.entries(payload)
            except BackupCorrupt as error:
                raise InternalError(f"the unsettled entries are wrong: {error}") from error
            self._write(frames.pack_data(frames.UNSETTLED, (payload,), self._level))
            self._frames += 1

    def add_chunk(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the source file, any number of them."""
        if self._entries:
            self._put_entries(len(self._entries))
        view = memoryview(data)
        while view:
            if not self._filled and len(view) >= frames.WINDOW_BYTES:
                self._put_window(view[: frames.WINDOW_BYTES])
                view = view[frames.WINDOW_BYTES :]
                continue
            count = min(frames.WINDOW_BYTES - self._filled, len(view))
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == frames.WINDOW_BYTES:
                self._put_window(memoryview(self._buffer))
                self._filled = 0

    def _put_window(self, view: memoryview) -> None:
        windows, window = self._order.windows, self._window
        if window >= windows.count or len(view) != windows.size(window):
            raise AgentError("the database changed its size while it was backed up")
        stored = windows.stored(window, self._left_out)
        prefix = window.to_bytes(4, "big") + stored.to_bytes(windows.bitmap_bytes, "little")
        pieces: list[bytes | memoryview] = [prefix]
        for begin, end, is_stored in windows.runs(window, stored):
            if is_stored:
                pieces.append(view[begin:end])
            if self._image is not None:
                self._image.update(view[begin:end] if is_stored else _ZEROS[: end - begin])
        if stored:
            self._write(frames.pack_data(frames.PAGES, tuple(pieces), self._level))
            self._frames += 1
            self._pages += bin(stored).count("1")
        self._window += 1

    def finish(self, source_size: int, source_sha256: str) -> int:
        """Write the end, flush to flash and close; the size of the backup in bytes.

        Size and digest are those of the whole source file as the caller read it. Nothing counts
        yet: `keep` reads it back and gives it its name.
        """
        if self._entries:
            self._put_entries(len(self._entries))
        if self._filled:
            self._put_window(memoryview(self._buffer)[: self._filled])
            self._filled = 0
        header, count = self._order.header, self._order.windows.count
        if self._window != count or source_size != header["image_bytes"]:
            raise AgentError("the database changed its size while it was backed up")
        end = {
            "source": {"size": source_size, "sha256": source_sha256},
            "image_sha256": source_sha256 if self._image is None else self._image.hexdigest(),
            "frames": self._frames + 1,
            "pages": self._pages,
            "left_out": header["page_count"] - self._pages,
            "unsettled": self._order.unsettled,
        }
        frame = frames.pack_json(frames.END, end)
        try:
            frames.check_end(frame[frames.FRAME_HEAD_BYTES :], header)
        except BackupCorrupt as error:
            raise InternalError(f"the backup does not agree with itself: {error}") from error
        self._write(frame)
        self._write(self._digest.digest())
        fd, self._fd = self._fd, -1
        try:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise flash.refused(error, "flushing the backup") from error
        return self._size

    def abort(self) -> None:
        """Close and delete what was written; nothing is left. May be called at any time, twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        _delete(self._temporary)


def _delete(path: str) -> bool:
    try:
        return flash.delete(path)
    except OSError as error:
        raise flash.refused(error, "deleting an unfinished backup") from error


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


def keep(path: str, mark: Mark | None = None) -> BackupInfo:
    """Read `path`.tmp back from the device and, if all of it is right, give it its name, durably.

    Power gone before the rename: a `.tmp`, which is no backup. Between rename and folder sync:
    either. After the return: the backup. One that reads back wrong is deleted, BackupCorrupt.
    """
    temporary = path + UNFINISHED
    try:
        info = verify(temporary, mark)
    except BackupCorrupt:
        _delete(temporary)
        raise
    try:
        os.rename(temporary, path)
        flash.sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise flash.refused(error, "naming the backup") from error
    info.path = path
    return info


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


def backup_name(sequence: int, version: int) -> str:
    """The file name of a backup."""
    return f"{sequence:06d}-v{version}{SUFFIX}"


def _numbers(name: str) -> tuple[int, int] | None:
    sequence, _, version = name[: -len(SUFFIX)].partition("-v")
    if not (sequence + version).isascii() or not (sequence.isdigit() and version.isdigit()):
        return None
    found = int(sequence), int(version)
    return found if found[0] and backup_name(*found) == name else None


def _is_unfinished(name: str) -> bool:
    return name.endswith(UNFINISHED) and _numbers(name[: -len(UNFINISHED)]) is not None


def _names(folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a regular file) of all that lies there; an absent folder is empty."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise flash.refused(error, "listing the backups") from error


def backup_files(folder: str) -> list[tuple[int, int, str]]:
    """(sequence, schema version, path) by file name, oldest first; the header has the last word."""
    found = []
    for name, regular in _names(folder):
        numbers = _numbers(name) if regular else None
        if numbers is not None:
            found.append((*numbers, os.path.join(folder, name)))
    return sorted(found)


def foreign_files(folder: str) -> list[str]:
    """Paths there that are neither backups nor unfinished ones; the agent leaves them alone."""
    return [
        os.path.join(folder, name)
        for name, regular in _names(folder)
        if not regular or (_numbers(name) is None and not _is_unfinished(name))
    ]


def remove_unfinished(folder: str) -> int:
    """Delete what a cut backup left; how many files. Only while nobody writes one."""
    count = 0
    for name, regular in _names(folder):
        if regular and _is_unfinished(name):
            count += _delete(os.path.join(folder, name))
    return count


def next_sequence(folder: str) -> int:
    """One more than the highest sequence number among the names there."""
    files = backup_files(folder)
    return files[-1][0] + 1 if files else 1


def free_leaf_pages(db_path: str) -> bytearray:
    """A bit per page (page 1 in bit 0 of byte 0) for pages that hold nothing.

    These are the leaves of SQLite's freelist and the page of its lock bytes; trunk pages hold the
    list itself and stay. The file must be recovered and locked. Raises ValidationError when the
    list is damaged: a page twice or outside the file, or another count than the header has.
    """
    try:
        page = _windows_of(db_path).page_bytes
        fd = os.open(db_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _free_leaves(fd, page)
        finally:
            os.close(fd)
    except OSError as error:
        raise flash.refused(error, "reading the list of free pages") from error


def _free_leaves(fd: int, page: int) -> bytearray:
    data = os.pread(fd, 100, 0)
    pages = os.fstat(fd).st_size // page
    leaves, seen = bytearray((pages + 7) // 8), bytearray((pages + 7) // 8)
    expected, count = int.from_bytes(data[36:40], "big"), 0

    def see(number: int) -> None:
        i = number - 1
        if not 1 < number <= pages or seen[i >> 3] >> (i & 7) & 1:
            raise ValidationError("the database's list of free pages is damaged")
        seen[i >> 3] |= 1 << (i & 7)

    trunk = int.from_bytes(data[32:36], "big")
    while trunk:  # each page is seen once, so this ends
        see(trunk)
        held = os.pread(fd, page, (trunk - 1) * page)
        trunk, used = int.from_bytes(held[:4], "big"), int.from_bytes(held[4:8], "big")
        if used > page // 4 - 2:
            raise ValidationError("the database's list of free pages is damaged")
        for offset in range(8, 8 + 4 * used, 4):
            leaf = int.from_bytes(held[offset : offset + 4], "big")
            see(leaf)
            leaves[leaf - 1 >> 3] |= 1 << (leaf - 1 & 7)
        count += 1 + used
    if count != expected:
        raise ValidationError("the database's list of free pages has another length than it says")
    lock = LOCK_OFFSET // page
    if lock < pages:
        leaves[lock >> 3] |= 1 << (lock & 7)
    return leaves


def sample_ratio(db_path: str, level: int, left_out: bytes | bytearray | None) -> float:
    """Packed bytes per stored byte to reckon with, from at most SAMPLE_WINDOWS windows.

    They are spread evenly. With fewer windows in the file it is exact, else the mean plus four
    standard errors plus a sixteenth; never more than 1. Raises OSError.
    """
    windows = _windows_of(db_path)
    count = min(windows.count, SAMPLE_WINDOWS)
    kept = packed = 0
    ratios = []
    fd = os.open(db_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for i in range(count):
            window = i * windows.count // count
            data = memoryview(os.pread(fd, frames.WINDOW_BYTES, window * frames.WINDOW_BYTES))
            runs = windows.runs(window, windows.stored(window, left_out))
            parts = tuple(data[a:b] for a, b, is_stored in runs if is_stored)
            raw = sum(map(len, parts))
            if raw:
                size = len(frames.pack_data(frames.PAGES, parts, level))
                kept, packed = kept + raw, packed + size
                ratios.append(size / raw)
    finally:
        os.close(fd)
    if not kept:
        return 1.0
    mean = packed / kept
    if count < windows.count:
        spread = sum((ratio - mean) ** 2 for ratio in ratios) / len(ratios)
        mean += 4 * (spread / len(ratios)) ** 0.5 + mean / 16
    return min(mean, 1.0)


def bound_bytes(
    db_path: str, level: int, left_out: bytes | bytearray | None, unsettled: int
) -> int:
    """Bytes that a backup of the file will need, reckoned from a sample before anything is written.

    Not a certainty: a file whose sampled parts are unlike the rest may pass it, and the writer then
    stops. It is never more than storing every page as it is, plus what surrounds them.
    """
    try:
        windows = _windows_of(db_path)
        ratio = sample_ratio(db_path, level, left_out)
    except OSError as error:
        raise flash.refused(error, "sampling the database") from error
    out = sum(bin(byte).count("1") for byte in left_out or b"")
    kept = max(windows.image_bytes - out * windows.page_bytes, 0)
    around = frames.FRAME_HEAD_BYTES + 20 + frames.DEFLATE_EXTRA_BYTES_MAX
    entry_frames = -(-unsettled * frames.ENTRY_BYTES // frames.WINDOW_BYTES)
    return (
        frames.START_BYTES
        + frames.FRAME_HEAD_BYTES
        + frames.HEADER_BYTES_MAX
        + unsettled * frames.ENTRY_BYTES
        + (entry_frames + windows.count) * around
        + int(kept * ratio)
        + frames.TAIL_BYTES
    )


def _windows_of(db_path: str) -> frames.Windows:
    header = read_header(db_path)
    if header is None:
        raise ValidationError("the file is not an SQLite file")
    return frames.Windows(os.stat(db_path).st_size, header.page_bytes)
