"""Before a backup is written: which pages it may leave out, and how large it can get.

Both are read from pos.db itself, which must be recovered and locked, or be left alone meanwhile.
"""

from __future__ import annotations

import os

from agent.edges import flash
from agent.edges.database import read_header
from agent.ground import frames
from agent.ground.errors import ValidationError
from agent.ground.limits import LOCK_OFFSET

SAMPLE_WINDOWS = 64  # 4 MiB read and packed at most, to bound a backup's size beforehand


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
