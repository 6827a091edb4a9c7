"""A second reader of backups, written from docs/spec/backup-format.md alone, nothing of `agent`.

It holds the whole file in memory and says only whether it is right and what it holds: where the
agent misreads its own format, this reader must not misread it the same way.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from typing import Any, NamedTuple

WINDOW = 65536
HEAD_KEYS: dict[str, Any] = {
    "format": int,
    "sequence": int,
    "schema_version": int,
    "page_bytes": int,
    "page_count": int,
    "image_bytes": int,
    "tally": dict,
    "unsettled": dict,
    "device_id": (str, type(None)),
    "made_ms": int,
    "clock_trusted": bool,
    "agent": str,
    "plan": (str, type(None)),
}


class Refused(ValueError):
    """The file is not a backup of format 1 as the specification describes it."""


class NewerFormat(Refused):
    """The file is a backup of a format that came later."""


class Backup(NamedTuple):
    """Everything that a backup holds."""

    header: dict[str, Any]
    entries: list[bytes]
    image: bytes
    stored_pages: list[int]
    end: dict[str, Any]
    digest: str


def need(condition: object, why: str) -> None:
    """Refuse the file unless the condition holds."""
    if not condition:
        raise Refused(why)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice."""
    need(len(dict(pairs)) == len(pairs), "a key stands twice")
    return dict(pairs)


def no_constant(text: str) -> None:
    """NaN and Infinity are not JSON."""
    raise Refused(text)


def read_object(text: bytes) -> dict[str, Any]:
    """The JSON object of a HEAD or ENDS frame."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("not JSON") from error
    need(isinstance(value, dict), "not an object")
    return dict(value)


def split(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, raw payload) of each frame; the last one ends 32 bytes before the file does."""
    need(data[:8] == b"\x89PBK\r\n\x1a\n", "magic")
    need(len(data) >= 12 + 16 + 560, "too short")
    version, complement = struct.unpack(">HH", data[8:12])
    need(version ^ complement == 0xFFFF, "version is damaged")
    if version > 1:
        raise NewerFormat(f"format {version}")
    need(version == 1, "version 0 never was")
    need(hashlib.sha256(data[:-32]).digest() == data[-32:], "SHA-256")
    at, end, frames = 12, len(data) - 32, []
    while at < end:
        need(at + 16 <= end, "half a frame")
        kind, stored, raw, crc = struct.unpack(">4sIII", data[at : at + 16])
        payload = data[at + 16 : at + 16 + stored]
        need(at + 16 + stored <= end, "half a payload")
        need(zlib.crc32(data[at : at + 12] + payload) == crc, "CRC")
        if kind in (b"HEAD", b"ENDS"):
            need(stored == raw, "lengths of JSON differ")
            need(raw == 512 if kind == b"ENDS" else raw <= WINDOW, "length of JSON")
        else:
            need(kind in (b"USET", b"PAGE"), "unknown type")
            need(raw <= 65556 and stored <= 65620, "too long")
            stream = zlib.decompressobj()
            try:
                payload = stream.decompress(payload)
            except zlib.error as error:
                raise Refused("zlib") from error
            need(stream.eof and not stream.unused_data and len(payload) == raw, "zlib stream")
        frames.append((kind, payload))
        at += 16 + stored
    return frames


def read(data: bytes) -> Backup:
    """All of a backup, or Refused."""
    frames = split(data)
    kinds = [kind for kind, _ in frames]
    need(kinds == sorted(kinds, key=[b"HEAD", b"USET", b"PAGE", b"ENDS"].index), "order")
    need(kinds.count(b"HEAD") == kinds.count(b"ENDS") == 1, "one HEAD and one ENDS")
    header, end = read_object(frames[0][1]), read_object(frames[-1][1])

    for key, kind in HEAD_KEYS.items():
        need(key in header and isinstance(header[key], kind), f"HEAD: {key}")
        need(kind is not int or (type(header[key]) is int and header[key] >= 0), f"HEAD: {key}")
    page_bytes, image_bytes = header["page_bytes"], header["image_bytes"]
    need(page_bytes in [512 << i for i in range(8)], "page size")
    need(header["page_count"] == (image_bytes + page_bytes - 1) // page_bytes, "page count")
    need(header["format"] == 1 and header["sequence"] >= 1, "format, sequence")

    entries = []
    for kind, payload in frames:
        if kind == b"USET":
            need(payload and len(payload) % 32 == 0 and len(payload) <= WINDOW, "entries")
            entries += [payload[i : i + 32] for i in range(0, len(payload), 32)]
    need(entries == sorted(entries), "entries rise")
    need(header["unsettled"].get("records") == end.get("unsettled") == len(entries), "entry count")

    image = bytearray(image_bytes)
    stored_pages: list[int] = []
    pages_of_window = WINDOW // page_bytes
    bitmap_bytes = (pages_of_window + 7) // 8
    last_window = -1
    for kind, payload in frames:
        if kind != b"PAGE":
            continue
        need(len(payload) > 4 + bitmap_bytes, "payload of a PAGE")
        window = struct.unpack(">I", payload[:4])[0]
        need(window > last_window, "windows rise")
        last_window = window
        at, first = 4 + bitmap_bytes, len(stored_pages)
        for i in range(bitmap_bytes * 8):
            if payload[4 + i // 8] >> (i % 8) & 1:
                page = window * pages_of_window + i
                need(i < pages_of_window and page < header["page_count"], "page outside")
                length = min(page_bytes, image_bytes - page * page_bytes)
                need(at + length <= len(payload), "page cut off")
                image[page * page_bytes : page * page_bytes + length] = payload[at : at + length]
                at += length
                stored_pages.append(page + 1)
        need(at == len(payload) and len(stored_pages) > first, "payload of a PAGE")
    need(end.get("frames") == len(frames), "frame count")
    need(end.get("pages") == len(stored_pages), "stored pages")
    need(end.get("left_out") == header["page_count"] - len(stored_pages), "left-out pages")
    need(hashlib.sha256(image).hexdigest() == end.get("image_sha256"), "digest of the image")
    source: Any = end.get("source")
    need(isinstance(source, dict) and source.get("size") == image_bytes, "size of the source")
    need(re.fullmatch("[0-9a-f]{64}", str(source.get("sha256"))), "digest of the source")
    if not end["left_out"]:
        need(source["sha256"] == end["image_sha256"], "digest of the source")
    return Backup(header, entries, bytes(image), stored_pages, end, data[-32:].hex())
