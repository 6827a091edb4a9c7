"""Writing a backup: one streamed file per copy of pos.db, which counts only once it was read back.

One window of 64 KiB is in memory at a time, whatever the file's size. A backup has its name only
after it was read back from the device and every digest in it was right; until then it is `.tmp`.
The format is docs/spec/backup-format.md; how its frames look is in ground/frames.
"""

from __future__ import annotations

import os

from agent.edges import flash
from agent.ground import frames
from agent.ground.digest import sha256
from agent.ground.errors import AgentError, BackupCorrupt, InternalError, StorageFull
from agent.verbs.backup_folder import UNFINISHED, delete
from agent.verbs.backup_reader import verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.verbs.backup_reader import BackupInfo, Mark

_ZEROS = bytes(frames.WINDOW_BYTES)


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
        delete(self._temporary)


def keep(path: str, mark: Mark | None = None) -> BackupInfo:
    """Read `path`.tmp back from the device and, if all of it is right, give it its name, durably.

    Power gone before the rename: a `.tmp`, which is no backup. Between rename and folder sync:
    either. After the return: the backup. One that reads back wrong is deleted, BackupCorrupt.
    """
    temporary = path + UNFINISHED
    try:
        info = verify(temporary, mark)
    except BackupCorrupt:
        delete(temporary)
        raise
    try:
        os.rename(temporary, path)
        flash.sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise flash.refused(error, "naming the backup") from error
    info.path = path
    return info
