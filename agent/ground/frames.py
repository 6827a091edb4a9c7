"""The backup file's bytes: frames to and from memory, and the order they must come in.

docs/spec/backup-format.md is the promise; this module keeps it and opens no file. Whatever is not
exactly as the text says is BackupCorrupt: a reader never guesses what a damaged part meant.
"""

from __future__ import annotations

import zlib

from agent.ground.codec import decode, encode
from agent.ground.digest import sha256
from agent.ground.errors import BackupCorrupt
from agent.ground.limits import CHUNK_BYTES, TIME_MS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

VERSION = 1
# As in PNG: a byte above 127, the name, CR LF, Ctrl-Z, LF. Text-mode copying breaks one of them.
MAGIC = b"\x89PBK\r\n\x1a\n"
START_BYTES = 12  # the magic, the version and its complement, 2 bytes each

HEAD, UNSETTLED, PAGES, END = b"HEAD", b"USET", b"PAGE", b"ENDS"
FRAME_HEAD_BYTES = 16  # type, stored length, raw length, CRC-32, 4 bytes each
WINDOW_BYTES = CHUNK_BYTES
ENTRY_BYTES = 32
RAW_BYTES_MAX = 4 + 16 + WINDOW_BYTES  # window number, bitmap of 128 pages of 512 bytes, pages
DEFLATE_EXTRA_BYTES_MAX = 64  # what zlib level 0 adds to 64 KiB, rounded up
STORED_BYTES_MAX = RAW_BYTES_MAX + DEFLATE_EXTRA_BYTES_MAX
HEADER_BYTES_MAX = CHUNK_BYTES
IMAGE_BYTES_MAX = 1 << 32  # far above what a profile lets a terminal upgrade
END_BYTES = 512  # padded with spaces, so that it is found from the end of the file
DIGEST_BYTES = 32
TAIL_BYTES = FRAME_HEAD_BYTES + END_BYTES + DIGEST_BYTES

_HEADER_KEYS = (
    ("format", (int,)),
    ("sequence", (int,)),
    ("schema_version", (int,)),
    ("page_bytes", (int,)),
    ("page_count", (int,)),
    ("image_bytes", (int,)),
    ("tally", (dict,)),
    ("unsettled", (dict,)),
    ("device_id", (str, type(None))),
    ("made_ms", (int,)),
    ("clock_trusted", (bool,)),
    ("agent", (str,)),
    ("plan", (str, type(None))),
)
_END_KEYS = (
    ("source", (dict,)),
    ("image_sha256", (str,)),
    ("frames", (int,)),
    ("pages", (int,)),
    ("left_out", (int,)),
    ("unsettled", (int,)),
)


def unsettled_entry(store: str, key: bytes, value: bytes) -> bytes:
    """The 32 bytes that stand for one unsettled record; key and value are their text as UTF-8."""
    name: bytes = sha256(store.encode() + b"\0" + key).digest()[:16]
    content: bytes = sha256(value).digest()[:16]
    return name + content


def start() -> bytes:
    """The first 12 bytes of every backup of this format."""
    return MAGIC + VERSION.to_bytes(2, "big") + (VERSION ^ 0xFFFF).to_bytes(2, "big")


def check_start(data: bytes) -> None:
    """Raise BackupCorrupt unless the first 12 bytes are those of a format that this agent reads."""
    if data[:8] != MAGIC:
        raise BackupCorrupt("it does not begin as a backup does: foreign, or changed by a copy")
    version = int.from_bytes(data[8:10], "big")
    if len(data) < START_BYTES or version ^ int.from_bytes(data[10:12], "big") != 0xFFFF:
        raise BackupCorrupt("its format version is damaged")
    if version > VERSION:
        raise BackupCorrupt(f"it has format {version}; reading it needs a newer agent than this")
    if version != VERSION:
        raise BackupCorrupt(f"it has format {version}, which never was one")


def _framed(kind: bytes, stored: bytes, raw_bytes: int) -> bytes:
    head = kind + len(stored).to_bytes(4, "big") + raw_bytes.to_bytes(4, "big")
    crc = zlib.crc32(stored, zlib.crc32(head))
    return head + crc.to_bytes(4, "big") + stored


def pack_json(kind: bytes, value: dict[str, Any]) -> bytes:
    """A HEAD or ENDS frame. Raises ValueError when the value is larger than such a frame may be."""
    text = encode(value).encode()
    if kind == END:
        text = text.ljust(END_BYTES)
    if len(text) > (END_BYTES if kind == END else HEADER_BYTES_MAX):
        raise ValueError(f"{len(text)} bytes of JSON do not fit into a {kind.decode()} frame")
    return _framed(kind, text, len(text))


def pack_data(kind: bytes, parts: tuple[bytes | memoryview, ...], level: int) -> bytes:
    """A USET or PAGE frame: one zlib stream of its own over the parts, one after the other."""
    raw_bytes = sum(map(len, parts))
    packed = _deflate(parts, level)
    if len(packed) > raw_bytes + DEFLATE_EXTRA_BYTES_MAX:  # some zlibs let noise grow by an eighth
        packed = _deflate(parts, 0)
    return _framed(kind, packed, raw_bytes)


def _deflate(parts: tuple[bytes | memoryview, ...], level: int) -> bytes:
    stream = zlib.compressobj(level)
    packed = [stream.compress(part) for part in parts]
    packed.append(stream.flush())
    return b"".join(packed)


class Head:
    """The first 16 bytes of a frame, with lengths that are within the limits of its type."""

    __slots__ = ("crc", "kind", "raw_bytes", "stored_bytes")

    def __init__(self, data: bytes) -> None:
        if len(data) < FRAME_HEAD_BYTES:
            raise BackupCorrupt("it ends where a frame should begin")
        self.kind = bytes(data[:4])
        self.stored_bytes = int.from_bytes(data[4:8], "big")
        self.raw_bytes = int.from_bytes(data[8:12], "big")
        # The CRC goes over what precedes it and what follows it: type and lengths are covered.
        self.crc = (zlib.crc32(data[:12]), int.from_bytes(data[12:16], "big"))
        if self.kind in (HEAD, END):
            fits = self.stored_bytes == self.raw_bytes <= HEADER_BYTES_MAX
            fits = fits and (self.kind == HEAD or self.raw_bytes == END_BYTES)
        elif self.kind in (UNSETTLED, PAGES):
            fits = self.raw_bytes <= RAW_BYTES_MAX and self.stored_bytes <= STORED_BYTES_MAX
        else:
            raise BackupCorrupt("it holds a frame of unknown type; it is damaged")
        if not fits:
            raise BackupCorrupt(f"the lengths of a {self.kind.decode()} frame are impossible")

    def payload(self, stored: bytes) -> bytes:
        """What the frame holds, unpacked, when CRC and lengths are right."""
        name = self.kind.decode()
        if len(stored) != self.stored_bytes:
            raise BackupCorrupt(f"it ends inside a {name} frame")
        if zlib.crc32(stored, self.crc[0]) != self.crc[1]:
            raise BackupCorrupt(f"the CRC of a {name} frame is wrong")
        if self.kind in (HEAD, END):
            return stored
        stream = zlib.decompressobj()
        try:
            # One byte more than is right, so that a stream that goes on is noticed, not unpacked.
            raw = stream.decompress(stored, self.raw_bytes + 1)
        except zlib.error as error:
            raise BackupCorrupt(f"a {name} frame cannot be unpacked") from error
        if not stream.eof or stream.unused_data or len(raw) != self.raw_bytes:
            raise BackupCorrupt(f"a {name} frame does not hold what its lengths say")
        return raw


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _hex_digest(value: Any) -> bool:
    return type(value) is str and len(value) == 64 and not value.strip("0123456789abcdef")


def _object(data: bytes, keys: tuple[tuple[str, Any], ...], name: str) -> dict[str, Any]:
    try:
        value = decode(data.decode())
    except ValueError as error:
        raise BackupCorrupt(f"its {name} is not valid JSON") from error
    if type(value) is not dict:
        raise BackupCorrupt(f"its {name} is not a JSON object")
    for key, kinds in keys:
        if key not in value or type(value[key]) not in kinds:
            raise BackupCorrupt(f'its {name} says nothing usable under "{key}"')
        if kinds == (int,) and value[key] < 0:
            raise BackupCorrupt(f'its {name} holds a negative "{key}"')
    return value


def check_header(data: bytes) -> dict[str, Any]:
    """The header's object, when everything a reader relies on is there and agrees with itself."""
    header = _object(data, _HEADER_KEYS, "header")
    page, image = header["page_bytes"], header["image_bytes"]
    if page not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        raise BackupCorrupt("its header holds an impossible page size")
    if header["page_count"] != -(-image // page):
        raise BackupCorrupt("page count and size in its header do not agree")
    if header["format"] != VERSION or header["sequence"] < 1:
        raise BackupCorrupt("format or sequence in its header is impossible")
    if not _whole(header["unsettled"].get("records")):
        raise BackupCorrupt("its header does not count the unsettled records")
    if image > IMAGE_BYTES_MAX or header["made_ms"] > TIME_MS_MAX or header["sequence"] >= 10**9:
        raise BackupCorrupt("a figure in its header is beyond what any terminal has")
    return header


def check_end(data: bytes, header: dict[str, Any]) -> dict[str, Any]:
    """The object of the ENDS frame, when it agrees with the header."""
    end = _object(data, _END_KEYS, "end")
    source = end["source"]
    if not _hex_digest(end["image_sha256"]) or not _hex_digest(source.get("sha256")):
        raise BackupCorrupt("a digest in its end is not one")
    if not _whole(source.get("size")) or source["size"] != header["image_bytes"]:
        raise BackupCorrupt("its end names another size than its header")
    if not end["left_out"] and end["image_sha256"] != source["sha256"]:
        raise BackupCorrupt("no page is left out and yet the image is not the source")
    if end["pages"] + end["left_out"] != header["page_count"]:
        raise BackupCorrupt("its end counts other pages than its header")
    if end["unsettled"] != header["unsettled"]["records"]:
        raise BackupCorrupt("its end counts other unsettled records than its header")
    return end


class Windows:
    """How an image is cut: windows of 64 KiB, each of whole pages; the last one may be shorter."""

    __slots__ = ("bitmap_bytes", "count", "image_bytes", "page_bytes", "pages_each")

    def __init__(self, image_bytes: int, page_bytes: int) -> None:
        self.image_bytes = image_bytes
        self.page_bytes = page_bytes
        self.pages_each = WINDOW_BYTES // page_bytes
        self.bitmap_bytes = (self.pages_each + 7) // 8
        self.count = -(-image_bytes // WINDOW_BYTES)

    def size(self, window: int) -> int:
        """Bytes of the image in this window."""
        return min(WINDOW_BYTES, self.image_bytes - window * WINDOW_BYTES)

    def pages(self, window: int) -> int:
        """Pages in this window; the very last page may be a part of one."""
        return -(-self.size(window) // self.page_bytes)

    def stored(self, window: int, left_out: bytes | bytearray | None) -> int:
        """The pages to store as bits (page 0 of the window in bit 0), by a bitmap over the file."""
        pages = self.pages(window)
        every = (1 << pages) - 1
        if not left_out:
            return every
        first = window * self.pages_each
        bits = int.from_bytes(left_out[first >> 3 : (first + pages + 7) >> 3], "little")
        return ~(bits >> (first & 7)) & every

    def runs(self, window: int, stored: int) -> Iterator[tuple[int, int, bool]]:
        """(from, to, whether stored) over the window's bytes, neighbours taken together."""
        size, page, pages = self.size(window), self.page_bytes, self.pages(window)
        first = 0
        for i in range(1, pages + 1):
            is_stored = bool(stored >> first & 1)
            if i == pages or bool(stored >> i & 1) != is_stored:
                yield first * page, min(i * page, size), is_stored
                first = i

    def opened(self, payload: bytes) -> tuple[int, int, int]:
        """(window, stored pages as bits, offset of the first page) of a PAGE frame's payload."""
        offset = 4 + self.bitmap_bytes
        window = int.from_bytes(payload[:4], "big")
        stored = int.from_bytes(payload[4:offset], "little")
        if len(payload) < offset or window >= self.count:
            raise BackupCorrupt("a PAGE frame lies outside the image")
        if not stored or stored >> self.pages(window):
            raise BackupCorrupt("a PAGE frame names pages that cannot be there")
        held = sum(b - a for a, b, is_stored in self.runs(window, stored) if is_stored)
        if held != len(payload) - offset:
            raise BackupCorrupt("a PAGE frame does not hold the pages it names")
        return window, stored, offset


class Order:
    """What a reader has seen so far: refuses frames out of order, and an end that counts others."""

    __slots__ = ("_last_entry", "_next_window", "frames", "header", "pages", "unsettled", "windows")

    def __init__(self, header: dict[str, Any]) -> None:
        self.header = header
        self.windows = Windows(header["image_bytes"], header["page_bytes"])
        self.frames = 1
        self.pages = self.unsettled = 0
        self._next_window = 0
        self._last_entry = b""

    def entries(self, payload: bytes) -> None:
        """Take the payload of a USET frame: whole entries, rising over all such frames."""
        if self._next_window:
            raise BackupCorrupt("unsettled entries come after pages")
        if not payload or len(payload) % ENTRY_BYTES or len(payload) > CHUNK_BYTES:
            raise BackupCorrupt("a USET frame holds no whole number of entries")
        for offset in range(0, len(payload), ENTRY_BYTES):
            entry = payload[offset : offset + ENTRY_BYTES]
            if entry < self._last_entry:
                raise BackupCorrupt("its unsettled entries are not sorted")
            self._last_entry = entry
        self.frames += 1
        self.unsettled += len(payload) // ENTRY_BYTES

    def window(self, payload: bytes) -> tuple[int, int, int]:
        """Take the payload of a PAGE frame; as `Windows.opened`."""
        window, stored, offset = self.windows.opened(payload)
        if window < self._next_window:
            raise BackupCorrupt("its pages are not in order")
        self._next_window = window + 1
        self.frames += 1
        self.pages += bin(stored).count("1")
        return window, stored, offset

    def end(self, payload: bytes) -> dict[str, Any]:
        """Take the payload of the ENDS frame and hold it against what came before."""
        end = check_end(payload, self.header)
        self.frames += 1
        if (end["frames"], end["pages"]) != (self.frames, self.pages):
            raise BackupCorrupt("its end counts other frames or pages than there are")
        if end["unsettled"] != self.unsettled:
            raise BackupCorrupt("its end counts other unsettled records than are listed")
        return end
