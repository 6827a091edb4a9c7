"""The backup file against docs/spec/backup-format.md: two readers, damage, broken rules, samples.

Each test names the promises (BF-n) that it holds. `python -m tests.test_backup_format FILE` writes
a sample as the one in tests/data was written; that one itself is never written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import sqlite3
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.stores import Contracts
from agent.core.tally import Tally
from agent.ground import codec, frames
from agent.ground.errors import (
    AgentError,
    BackupCorrupt,
    InternalError,
    StorageFull,
    ValidationError,
)
from agent.verbs import backup, backup_bound, backup_folder, backup_reader
from tests import second_reader
from tools.termsim.recipe import Recipe
from tools.termsim.terminal import make_terminal

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tests" / "data" / "backup-format-1.posbak"
SAMPLE_IMAGE_SHA256 = "6cb602a737141e48f19607f2565f6380912c805b84af3b1d24bb7d278698c50b"
SAMPLE_SHA256 = "e6639fcb01ed97d8efca8b220938b671c4962d28ca168d0c0bd5cd3c334f7af3"
SAMPLE_LEFT_OUT = 17
SAMPLE_COUNTS = [("transactions", 117), ("balances", 8), ("metadata", 7), ("sync", 5)]
SAMPLE_UNSETTLED = {
    "records": 17,
    "money": {
        "BTC": {"count": 3, "sum": 169893},
        "EUR": {"count": 3, "sum": 20035},
        "NIM": {"count": 7, "sum": 274361373},
        "USDC": {"count": 1, "sum": -88751726},
    },
}
PAGE_SIZES = [512 << i for i in range(8)]
HEADER = {
    "sequence": 7,
    "schema_version": 2,
    "tally": {"records": {"transactions": 3}},
    "unsettled": {"records": 0, "money": {"EUR": {"count": 0, "sum": 10**30}}},
    "device_id": "kässe-7",
    "made_ms": 12345,
    "clock_trusted": False,
    "agent": "0.0.0",
    "plan": None,
}


def write(
    path: Path,
    source: bytes,
    *,
    page_bytes: int = 4096,
    entries: list[bytes] | None = None,
    left_out: bytearray | None = None,
    chunk: int = 65536,
    bytes_max: int = 1 << 40,
    **header: Any,
) -> backup_reader.BackupInfo:
    """Writes and keeps a backup of `source`; on an error nothing of it may be left."""
    entries = entries or []
    given = {
        **HEADER,
        "unsettled": {"records": len(entries)},
        "page_bytes": page_bytes,
        "image_bytes": len(source),
        **header,
    }
    writer = backup.BackupWriter(str(path), given, 1, bytes_max, left_out)
    try:
        for i in range(0, len(entries), 100):
            writer.add_unsettled(b"".join(entries[i : i + 100]))
        for i in range(0, len(source), chunk):
            writer.add_chunk(source[i : i + chunk])
        size = writer.finish(len(source), hashlib.sha256(source).hexdigest())
    except AgentError:
        writer.abort()
        raise
    info = backup.keep(str(path))
    assert info.size == size == path.stat().st_size
    return info


def restored(path: Path) -> bytes:
    """The image as `write_image` writes it over a file that held something longer before."""
    info = backup_reader.read_info(str(path))
    with tempfile.TemporaryFile() as file:
        file.write(b"older" * 50_000)
        marks: list[int] = []
        digest = backup_reader.write_image(str(path), file.fileno(), marks.append)
        file.seek(0)
        image = file.read()
    assert digest == hashlib.sha256(image).hexdigest() == info.end["image_sha256"]
    assert marks == sorted(marks)
    assert marks[-1:] == ([len(image)] if marks else [])
    return image


def bitmap(pages: set[int], page_count: int) -> bytearray:
    """The bits of these pages, counted from 1."""
    bits = bytearray((page_count + 7) // 8)
    for page in pages:
        bits[(page - 1) // 8] |= 1 << (page - 1) % 8
    return bits


def agree(path: Path) -> second_reader.Backup:
    """What the second reader reads, after everything the agent reads was held against it."""
    ours, theirs = backup_reader.verify(str(path)), second_reader.read(path.read_bytes())
    cheap = backup_reader.read_info(str(path))
    for info in (ours, cheap):
        assert (info.header, info.end, info.sha256) == (theirs.header, theirs.end, theirs.digest)
        assert (info.sequence, info.size) == (theirs.header["sequence"], path.stat().st_size)
    assert list(backup_reader.unsettled_entries(str(path))) == theirs.entries
    assert restored(path) == theirs.image
    return theirs


@settings(max_examples=80, deadline=None)
@given(
    page_bytes=st.sampled_from(PAGE_SIZES),
    size=st.one_of(st.integers(0, 3000), st.integers(0, 200_000), st.sampled_from([65536, 131072])),
    chunk=st.sampled_from([65536, 4096, 65537, 1000]),
    free_share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    entry_count=st.sampled_from([0, 1, 100, 2048, 5000]),
    seed=st.integers(0, 2**32),
)
def test_both_readers_get_back_the_file_and_the_entries_that_were_written(
    page_bytes: int, size: int, chunk: int, free_share: float, entry_count: int, seed: int
) -> None:
    """BF-1, BF-5, BF-9."""
    rng = random.Random(seed)
    source = rng.choice([rng.randbytes(size), (b'{"amount":1}' * (size // 12 + 1))[:size]])
    page_count = -(-size // page_bytes)
    free = {page for page in range(1, page_count + 1) if rng.random() < free_share}
    entries = sorted(rng.randbytes(32) for _ in range(entry_count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "000007-v2.posbak"
        write(
            path,
            source,
            page_bytes=page_bytes,
            entries=entries,
            left_out=bitmap(free, page_count),
            chunk=chunk,
        )
        read = agree(path)
    expected = bytearray(source)
    for page in free:
        begin, end = (page - 1) * page_bytes, min(page * page_bytes, size)
        expected[begin:end] = bytes(end - begin)
    assert read.image == expected
    assert read.entries == entries
    assert set(read.stored_pages) == set(range(1, page_count + 1)) - free
    assert read.end["source"] == {"size": size, "sha256": hashlib.sha256(source).hexdigest()}


def test_noise_grows_by_no_more_than_the_limit(tmp_path: Path) -> None:
    """BF-3. What zlib cannot pack is stored as it is."""
    noise = random.Random(1).randbytes(65536 * 3)
    info = write(tmp_path / "000001-v0.posbak", noise, page_bytes=512)
    assert info.size < len(noise) + 2000
    agree(tmp_path / "000001-v0.posbak")


def sample_of(tmp_path: Path) -> tuple[Path, bytes]:
    """A copy of the kept sample, to be damaged."""
    path = tmp_path / "sample.posbak"
    path.write_bytes(SAMPLE.read_bytes())
    return path, SAMPLE.read_bytes()


def refused_by_both(path: Path, data: bytes) -> str:
    """Holds that both readers refuse these bytes; the agent's sentence."""
    path.write_bytes(data)
    with pytest.raises(second_reader.Refused):
        second_reader.read(data)
    with pytest.raises(BackupCorrupt) as caught:
        backup_reader.verify(str(path))
    return caught.value.message


def test_each_of_2000_flipped_bits_is_found_by_both_readers(tmp_path: Path) -> None:
    """BF-2."""
    path, whole = sample_of(tmp_path)
    rng = random.Random(20_000)
    for _ in range(2000):
        data = bytearray(whole)
        bit = rng.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        try:
            refused_by_both(path, bytes(data))
        except BaseException:
            print(f"bit {bit % 8} of byte {bit // 8}")
            raise


def test_a_backup_cut_off_anywhere_or_with_bytes_behind_it_is_refused(tmp_path: Path) -> None:
    """BF-2."""
    path, whole = sample_of(tmp_path)
    rng = random.Random(5)
    lengths = {*range(700), *range(len(whole) - 700, len(whole))}
    lengths |= {rng.randrange(len(whole)) for _ in range(500)}
    for length in lengths:
        refused_by_both(path, whole[:length])
    for tail in (b"\0", b"\n", whole[-32:], whole):
        assert "follows" in refused_by_both(path, whole + tail)


def test_an_image_that_cannot_be_had_whole_is_refused_while_it_is_written(tmp_path: Path) -> None:
    """BF-2. A restore reads what verify read, and believes it as little."""
    path, whole = sample_of(tmp_path)
    for data in (whole[:-600], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0"):
        path.write_bytes(data)
        with tempfile.TemporaryFile() as file, pytest.raises(BackupCorrupt):
            backup_reader.write_image(str(path), file.fileno())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SQLite format 3\0" + bytes(4096),
        SAMPLE.read_bytes().replace(b"\r\n", b"\n"),
        SAMPLE.read_bytes().replace(b"\n", b"\r\n"),
        bytes(b & 0x7F for b in SAMPLE.read_bytes()),
        bytes(100_000),
    ],
    ids=["empty", "SQLite file", "CR LF to LF", "LF to CR LF", "7 bits", "zeros"],
)
def test_a_foreign_file_is_refused_at_its_magic(tmp_path: Path, data: bytes) -> None:
    """BF-4."""
    assert "begin as a backup does" in refused_by_both(tmp_path / "x.posbak", data)
    with pytest.raises(BackupCorrupt):
        backup_reader.read_info(str(tmp_path / "x.posbak"))


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(BackupCorrupt, match="regular file"):
            backup_reader.verify(str(tmp_path / name))
    with pytest.raises(AgentError, match="No such file"):
        backup_reader.verify(str(tmp_path / "absent"))


def build(parts: list[tuple[bytes, bytes]], version: int = 1, complement: int = 0xFFFF) -> bytes:
    """A file with right CRCs, lengths and digest around whatever the payloads say."""
    data = b"\x89PBK\r\n\x1a\n" + struct.pack(">HH", version, version ^ complement)
    for kind, payload in parts:
        stored = payload if kind in (b"HEAD", b"ENDS") else zlib.compress(payload)
        head = struct.pack(">4sII", kind, len(stored), len(payload))
        data += head + struct.pack(">I", zlib.crc32(head + stored)) + stored
    return data + hashlib.sha256(data).digest()


def test_a_newer_format_is_refused_with_words_that_say_so(tmp_path: Path) -> None:
    """BF-4."""
    path = tmp_path / "x.posbak"
    parts = second_reader.split(SAMPLE.read_bytes())
    assert "newer agent" in refused_by_both(path, build(parts, 2))
    with pytest.raises(second_reader.NewerFormat):
        second_reader.read(path.read_bytes())
    with pytest.raises(BackupCorrupt, match="newer agent"):
        backup_reader.read_info(str(path))
    assert "damaged" in refused_by_both(path, build(parts, 3, 0xFFFE))
    assert "never" in refused_by_both(path, build(parts, 0))


class Parts:
    """A small right backup as its parts, to be made wrong in one place."""

    def __init__(self) -> None:
        self.source = b"".join(bytes([i]) * 4096 for i in range(48))  # three windows
        self.entries = [bytes([i]) * 32 for i in range(4)]
        digest = hashlib.sha256(self.source).hexdigest()
        self.header: dict[str, Any] = {
            **HEADER,
            "format": 1,
            "unsettled": {"records": 4},
            "page_bytes": 4096,
            "page_count": 48,
            "image_bytes": len(self.source),
        }
        self.end: dict[str, Any] = {
            "source": {"size": len(self.source), "sha256": digest},
            "image_sha256": digest,
            "frames": 6,
            "pages": 48,
            "left_out": 0,
            "unsettled": 4,
        }
        self.body: list[tuple[bytes, bytes]] = [(b"USET", b"".join(self.entries))]
        for i in range(3):
            self.body.append(self.page(i, 0xFFFF, self.source[i << 16 : (i + 1) << 16]))

    @staticmethod
    def page(window: int, stored: int, pages: bytes) -> tuple[bytes, bytes]:
        """A PAGE frame."""
        return b"PAGE", struct.pack(">I", window) + stored.to_bytes(2, "little") + pages

    def data(self) -> bytes:
        """The file."""
        end = json.dumps(self.end).encode().ljust(512)
        return build([(b"HEAD", json.dumps(self.header).encode()), *self.body, (b"ENDS", end)])


Wrong = Callable[[Parts], object]
WRONG: dict[str, Wrong] = {
    "windows in another order": lambda p: p.body.append(p.body.pop(1)),
    "a window twice": lambda p: (p.body.append(p.body[3]), p.end.update(frames=7, pages=64)),
    "a window missing": lambda p: (p.body.pop(), p.end.update(frames=5)),
    "a missing window called left out": lambda p: (
        p.body.pop(),
        p.end.update(frames=5, pages=32, left_out=16),
    ),
    "entries after pages": lambda p: p.body.append(p.body.pop(0)),
    "entries not sorted": lambda p: p.body.__setitem__(
        0, (b"USET", b"".join([p.entries[1], p.entries[0], *p.entries[2:]]))
    ),
    "entries not sorted over frames": lambda p: (
        p.body.insert(1, (b"USET", bytes(32))),
        p.header.update(unsettled={"records": 5}),
        p.end.update(frames=7, unsettled=5),
    ),
    "half an entry": lambda p: p.body.__setitem__(0, (b"USET", bytes(48))),
    "an entry missing": lambda p: p.body.__setitem__(0, (b"USET", bytes(96))),
    "no entry in a frame": lambda p: (p.body.insert(0, (b"USET", b"")), p.end.update(frames=7)),
    "a second header": lambda p: (
        p.body.insert(0, (b"HEAD", json.dumps(p.header).encode())),
        p.end.update(frames=7),
    ),
    "an end before the end": lambda p: (
        p.body.append((b"ENDS", json.dumps(p.end).encode().ljust(512))),
    ),
    "an unknown frame": lambda p: (p.body.append((b"MORE", b"x")), p.end.update(frames=7)),
    "a window outside the image": lambda p: p.body.__setitem__(
        3, p.page(3, 0xFFFF, p.source[2 << 16 :])
    ),
    "a page too few in a window": lambda p: p.body.__setitem__(
        3, p.page(2, 0xFFFF, p.source[2 << 16 : -4096])
    ),
    "a byte too many in a window": lambda p: p.body.__setitem__(
        3, p.page(2, 0xFFFF, p.source[2 << 16 :] + b"x")
    ),
    "a window without pages": lambda p: p.body.__setitem__(3, p.page(2, 0, b"")),
    "a PAGE of three bytes": lambda p: p.body.__setitem__(3, (b"PAGE", b"abc")),
    "a bit beyond the image": lambda p: (
        p.header.update(image_bytes=len(p.source) - 4096, page_count=47),
        p.end.update(pages=47, source={"size": len(p.source) - 4096, "sha256": "0" * 64}),
    ),
    "other bytes in a page": lambda p: p.body.__setitem__(
        3, p.page(2, 0xFFFF, b"y" + p.source[(2 << 16) + 1 :])
    ),
    "another image digest": lambda p: p.end.update(image_sha256="0" * 64),
    "another source digest": lambda p: p.end.update(source={"size": 48 * 4096, "sha256": "0" * 64}),
    "no source digest": lambda p: p.end.update(source={"size": 48 * 4096}),
    "a digest in capitals": lambda p: p.end["source"].update(sha256="A" * 64),
    "another source size": lambda p: p.end["source"].update(size=1),
    "another page count": lambda p: p.header.update(page_count=49),
    "another page size": lambda p: p.header.update(page_bytes=4095),
    "another entry count in the header": lambda p: p.header.update(unsettled={"records": 3}),
    "no entry count in the header": lambda p: p.header.update(unsettled={}),
    "another entry count in the end": lambda p: p.end.update(unsettled=3),
    "another frame count": lambda p: p.end.update(frames=5),
    "format 2 in the header": lambda p: p.header.update(format=2),
    "sequence 0": lambda p: p.header.update(sequence=0),
    "a negative version": lambda p: p.header.update(schema_version=-1),
    "true for a number": lambda p: p.header.update(sequence=True),
    "a float for a number": lambda p: p.header.update(sequence=1.0),
    "NaN in the header": lambda p: p.header.update(more=float("nan")),
    "no plan": lambda p: p.header.pop("plan"),
    "no image digest": lambda p: p.end.pop("image_sha256"),
}


def test_the_parts_make_a_backup_that_both_readers_read(tmp_path: Path) -> None:
    path = tmp_path / "x.posbak"
    parts = Parts()
    parts.header["unknown"] = parts.end["unknown"] = {"a reader": "ignores it"}
    path.write_bytes(parts.data())
    assert agree(path).image == parts.source


# What the agent must say to some of them: it noticed the rule, not only what followed from it.
SAID = {
    "windows in another order": "pages are not in order",
    "a window twice": "pages are not in order",
    "a window missing": "other frames or pages",
    "entries after pages": "entries come after pages",
    "entries not sorted over frames": "not sorted",
    "half an entry": "no whole number",
    "an entry missing": "other unsettled records than are listed",
    "a second header": "second header",
    "an unknown frame": "unknown type",
    "a window outside the image": "outside the image",
    "a window without pages": "pages that cannot be there",
    "a bit beyond the image": "pages that cannot be there",
    "other bytes in a page": "do not give the file",
    "another source digest": "the image is not the source",
    "another page count": "page count and size",
    "another entry count in the header": "other unsettled records than its header",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_with_right_checksums_that_breaks_a_rule_is_refused(
    tmp_path: Path, name: str
) -> None:
    """BF-3."""
    parts = Parts()
    WRONG[name](parts)
    assert SAID.get(name, "not a usable backup") in refused_by_both(
        tmp_path / "x.posbak", parts.data()
    )


def test_every_expected_sentence_belongs_to_a_case() -> None:
    assert SAID.keys() <= WRONG.keys()


def test_a_file_without_a_header_in_front_is_refused(tmp_path: Path) -> None:
    """BF-3."""
    path = tmp_path / "x.posbak"
    parts = second_reader.split(Parts().data())
    assert "begin with a header" in refused_by_both(path, build(parts[1:]))
    for data in (build([parts[0], parts[1]]), Parts().data()[:-600], Parts().data()[:400]):
        path.write_bytes(data)
        with pytest.raises(BackupCorrupt):
            backup_reader.read_info(str(path))


def test_entries_are_not_given_out_of_a_damaged_backup(tmp_path: Path) -> None:
    """BF-3, BF-9."""
    path = tmp_path / "x.posbak"
    parts = Parts()
    parts.header["unsettled"] = {"records": 5}
    whole = Parts().data()
    for data in (parts.data(), whole[: whole.index(b"USET") + 20], b""):
        path.write_bytes(data)
        with pytest.raises(BackupCorrupt, match=re.escape("x.posbak is not a usable backup")):
            list(backup_reader.unsettled_entries(str(path)))


def reframed(kind: bytes, stored: bytes, raw_bytes: int) -> bytes:
    """The parts' file with one frame's stored bytes and raw length as given."""
    parts = Parts()
    whole = parts.data()
    at = whole.index(kind)
    old = struct.unpack(">I", whole[at + 4 : at + 8])[0]
    head = struct.pack(">4sII", kind, len(stored), raw_bytes)
    frame = head + struct.pack(">I", zlib.crc32(head + stored)) + stored
    data = whole[:at] + frame + whole[at + 16 + old : -32]
    return data + hashlib.sha256(data).digest()


ENTRIES = b"".join(Parts().entries)
FRAMES = {
    "a stream that unpacks to more than it says": (b"USET", zlib.compress(bytes(10**7)), 128),
    "a stream that unpacks to less": (b"USET", zlib.compress(ENTRIES), 160),
    "bytes behind the stream": (b"USET", zlib.compress(ENTRIES) + b"x", 128),
    "a stream without its end": (b"USET", zlib.compress(ENTRIES)[:-1], 128),
    "a wrong Adler-32": (b"USET", zlib.compress(ENTRIES)[:-1] + b"x", 128),
    "no stream": (b"USET", ENTRIES, 128),
    "raw length beyond the limit": (b"USET", zlib.compress(bytes(65600)), 65600),
    "stored length beyond the limit": (b"USET", bytes(70000), 128),
    "a header that is no JSON": (b"HEAD", b"{", 1),
    "a header that is a list": (b"HEAD", b"[]", 2),
    "a header that is not UTF-8": (b"HEAD", b"\xff\xfe", 2),
    "a header nested a thousand deep": (b"HEAD", b"[" * 1000 + b"]" * 1000, 2000),
    "a header with a key twice": (b"HEAD", b'{"plan":null,"plan":null}', 25),
    "a header whose lengths differ": (b"HEAD", b"{}", 3),
    "an end of another length": (b"ENDS", b"{}".ljust(511), 511),
    "an end that is empty": (b"ENDS", b"".ljust(512), 512),
}


@pytest.mark.parametrize(("kind", "stored", "raw_bytes"), FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_that_breaks_a_rule_is_refused(
    tmp_path: Path, kind: bytes, stored: bytes, raw_bytes: int
) -> None:
    """BF-3."""
    refused_by_both(tmp_path / "x.posbak", reframed(kind, stored, raw_bytes))


def test_a_wrong_crc_is_refused_where_the_digest_is_right(tmp_path: Path) -> None:
    """BF-3. So a file is refused at the damaged frame, before anything in it is unpacked."""
    path, whole = tmp_path / "x.posbak", Parts().data()
    path.write_bytes(reframed(b"USET", zlib.compress(ENTRIES, 9), 128))
    agree(path)
    for kind in (b"HEAD", b"USET", b"PAGE", b"ENDS"):
        data = bytearray(whole[:-32])
        data[data.index(kind) + 12] ^= 1
        assert "CRC" in refused_by_both(path, bytes(data) + hashlib.sha256(data).digest())


def test_a_window_is_unpacked_without_the_one_before_it() -> None:
    """BF-10. In any order; the second reader takes a fresh decompressor for each frame, too."""
    data = SAMPLE.read_bytes()
    starts = [found.start() for found in re.finditer(b"PAGE", data)]
    whole = [payload for kind, payload in second_reader.split(data) if kind == b"PAGE"]
    assert len(starts) == len(whole) >= 2
    for start, payload in reversed(list(zip(starts, whole))):
        head = frames.Head(data[start : start + 16])
        assert head.payload(data[start + 16 : start + 16 + head.stored_bytes]) == payload


def test_a_writer_that_reaches_its_bound_leaves_nothing(tmp_path: Path) -> None:
    """BF-7. The bound wanders over the whole backup; one byte less than it needs is too few."""
    source = random.Random(3).randbytes(150_000)
    path = tmp_path / "000007-v2.posbak"
    entries = [bytes([i]) * 32 for i in range(10)]
    size = write(path, source, entries=entries).size
    path.unlink()
    for bound in [*range(0, size, size // 50), size - 600, size - 33, size - 1]:
        with pytest.raises(StorageFull) as caught:
            write(path, source, entries=entries, bytes_max=bound)
        assert caught.value.facts == {"bound": bound}
        assert list(tmp_path.iterdir()) == []
    assert write(path, source, entries=entries, bytes_max=size).size == size


def test_a_source_that_changes_its_size_is_no_backup(tmp_path: Path) -> None:
    """BF-1."""
    path = tmp_path / "000007-v2.posbak"
    for size in (99_999, 100_001, 65536, 0, 300_000):
        with pytest.raises(AgentError, match="size"):
            write(path, bytes(size), image_bytes=100_000)
    assert list(tmp_path.iterdir()) == []


def test_entries_that_do_not_rise_or_are_not_counted_are_never_written(tmp_path: Path) -> None:
    """BF-3, BF-9."""
    path = tmp_path / "000007-v2.posbak"
    with pytest.raises(InternalError, match="not sorted"):
        write(path, bytes(10), entries=[b"b" * 32, b"a" * 32])
    with pytest.raises(InternalError, match="do not fit"):
        write(path, bytes(10), tally={"records": {"x" * 70_000: 1}})
    with pytest.raises(InternalError):
        write(path, bytes(10), entries=[b"b" * 32], unsettled={"records": 2})
    with pytest.raises(InternalError):
        write(path, bytes(10), page_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_what_a_power_cut_leaves_is_no_backup_and_the_next_writer_takes_its_place(
    tmp_path: Path,
) -> None:
    """BF-8. Whatever part of the bytes is there, whole backup included, the name is not."""
    path = tmp_path / "000007-v2.posbak"
    temporary = tmp_path / "000007-v2.posbak.tmp"
    write(path, b"a" * 70_000)
    whole = path.read_bytes()
    path.unlink()
    for length in (0, 5, 12, 300, len(whole) - 560, len(whole) - 1):
        temporary.write_bytes(whole[:length])
        assert (
            backup_folder.backup_files(str(tmp_path))
            == backup_folder.foreign_files(str(tmp_path))
            == []
        )
        with pytest.raises(BackupCorrupt):
            backup.keep(str(path))
        assert list(tmp_path.iterdir()) == []
    temporary.write_bytes(b"left by a cut, longer than what follows" * 1000)
    write(path, b"b" * 70_000)
    assert restored(path) == b"b" * 70_000
    temporary.write_bytes(whole)
    assert backup_folder.remove_unfinished(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "000007-v2.posbak"
    write(path, b"first")
    with pytest.raises(InternalError, match="never written over"):
        write(path, b"second")
    assert restored(path) == b"first"


def test_a_folder_that_cannot_be_written_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="creating the backup"):
        write(tmp_path / "absent" / "000007-v2.posbak", b"x")


def test_flash_that_refuses_a_write_is_named_and_the_backup_is_gone(tmp_path: Path) -> None:
    """BF-7. The kernel's own limit on a file's size refuses it here, as full flash would."""
    path = tmp_path / "000007-v2.posbak"
    noise = random.Random(4).randbytes(200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(AgentError, match="while writing the backup"):
            write(path, noise)
        assert list(tmp_path.iterdir()) == []
        write(path, b"a" * 200_000)
        refused = pytest.raises(AgentError, match="while writing the image")
        with tempfile.TemporaryFile() as file, refused:
            backup_reader.write_image(str(path), file.fileno())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_flash_that_does_not_give_a_backup_back_is_named() -> None:
    """BF-2. A process's memory is a regular file whose first page answers with EIO."""
    with pytest.raises(BackupCorrupt, match="flash does not give it back"):
        backup_reader.verify("/proc/self/mem")


def test_what_stands_in_the_way_of_a_backup_is_named(tmp_path: Path) -> None:
    path = tmp_path / "000007-v2.posbak"
    write(path, b"x")
    path.rename(tmp_path / "000007-v2.posbak.tmp")
    path.mkdir()
    with pytest.raises(AgentError, match="while naming the backup"):
        backup.keep(str(path))
    with pytest.raises(AgentError, match="while listing the backups"):
        backup_folder.backup_files(str(tmp_path / "000007-v2.posbak.tmp"))
    with pytest.raises(AgentError, match="while reading the list of free pages"):
        backup_bound.free_leaf_pages(str(tmp_path / "absent"))
    with pytest.raises(AgentError, match="while sampling the database"):
        backup_bound.bound_bytes(str(tmp_path / "absent"), 1, None, 0)


def test_backups_are_listed_by_sequence_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    backups = ["000002-v3.posbak", "000010-v0.posbak", "1000000-v12.posbak"]
    foreign = [
        "00002-v3.posbak",
        "000000-v1.posbak",
        "000003-v03.posbak",
        "000003-v.posbak",
        "000003.posbak",
        "000003-v1.POSBAK",
        "000003-v1.posbak.old",
        "٠٠٠٠٠٣-v1.posbak",  # digits, but not those that a writer uses
        "notes.txt",
    ]
    for name in [*backups, *foreign, "000011-v0.posbak.tmp"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "000004-v1.posbak").mkdir()
    (tmp_path / "000005-v1.posbak").symlink_to(tmp_path / backups[0])
    folder = str(tmp_path)
    assert [os.path.basename(path) for _, _, path in backup_folder.backup_files(folder)] == backups
    assert [(s, v) for s, v, _ in backup_folder.backup_files(folder)] == [
        (2, 3),
        (10, 0),
        (1000000, 12),
    ]
    assert sorted(map(os.path.basename, backup_folder.foreign_files(folder))) == sorted(
        [*foreign, "000004-v1.posbak", "000005-v1.posbak"]
    )
    assert backup_folder.next_sequence(folder) == 1000001
    absent = str(tmp_path / "absent")
    assert (backup_folder.backup_files(absent), backup_folder.next_sequence(absent)) == ([], 1)
    assert backup_folder.backup_name(3, 1) == "000003-v1.posbak"


def with_free_pages(path: Path, page_bytes: int, auto_vacuum: int = 0) -> list[Any]:
    """A database with free pages between used ones; its rows."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={page_bytes}")
    db.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
    db.execute("PRAGMA secure_delete=OFF")  # what was deleted stays in its free page
    db.execute("CREATE TABLE transactions (key TEXT PRIMARY KEY, value TEXT)")
    rng = random.Random(page_bytes)
    count = max(400, 100 * page_bytes // 512)
    db.execute("BEGIN")
    for i in range(count):
        row = f"tx_{rng.getrandbits(64):x}", f"{i}:" + rng.randbytes(120).hex()
        db.execute("INSERT INTO transactions VALUES (?, ?)", row)
    db.execute("COMMIT")
    db.execute(f"DELETE FROM transactions WHERE rowid BETWEEN {count // 4} AND {count // 2}")
    assert db.execute("PRAGMA freelist_count").fetchone()[0] > 3
    rows = db.execute("SELECT rowid, * FROM transactions ORDER BY rowid").fetchall()
    db.close()
    return rows


@pytest.mark.parametrize(
    ("page_bytes", "auto_vacuum"), [(512, 0), (1024, 2), (4096, 0), (4096, 2), (65536, 0)]
)
def test_a_database_comes_back_sound_without_its_free_pages(
    tmp_path: Path, page_bytes: int, auto_vacuum: int
) -> None:
    """BF-1, BF-6."""
    source, path = tmp_path / "pos.db", tmp_path / "000001-v0.posbak"
    rows = with_free_pages(source, page_bytes, auto_vacuum)
    free = backup_bound.free_leaf_pages(str(source))
    data = source.read_bytes()
    info = write(path, data, page_bytes=page_bytes, left_out=free)
    assert info.end["left_out"] > 2
    assert info.end["image_sha256"] != info.end["source"]["sha256"]
    assert info.size <= backup_bound.bound_bytes(str(source), 1, free, 0)
    image = tmp_path / "image.db"
    image.write_bytes(agree(path).image)
    assert image.stat().st_size == len(data)
    db = sqlite3.connect(image, isolation_level=None)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("SELECT rowid, * FROM transactions ORDER BY rowid").fetchall() == rows
    db.execute("INSERT INTO transactions SELECT 'new' || key, value FROM transactions")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_a_damaged_list_of_free_pages_is_refused_and_never_followed_for_ever(
    tmp_path: Path,
) -> None:
    """BF-1. A page that is called free by mistake would come back as zeros."""
    source = tmp_path / "pos.db"
    with_free_pages(source, 512)
    whole = source.read_bytes()
    trunk = (struct.unpack(">I", whole[32:36])[0] - 1) * 512
    first_leaf = whole[trunk + 8 : trunk + 12]
    here = struct.pack(">I", trunk // 512 + 1)
    wrongs = {
        "the list leads to itself": (trunk, here),
        "a leaf is a trunk": (trunk + 8, here),
        "a leaf twice": (trunk + 12, first_leaf),
        "page 1 is free": (trunk + 8, struct.pack(">I", 1)),
        "page 0 is free": (trunk + 8, struct.pack(">I", 0)),
        "a page outside": (trunk + 8, struct.pack(">I", len(whole) // 512 + 1)),
        "a trunk outside": (32, struct.pack(">I", 0xFFFFFFFF)),
        "more leaves than fit": (trunk + 4, struct.pack(">I", 127)),
        "another count": (36, struct.pack(">I", 1)),
        "no list but a count": (32, bytes(4)),
        "no SQLite file": (0, b"x"),
    }
    assert any(backup_bound.free_leaf_pages(str(source)))
    for name, (offset, new) in wrongs.items():
        source.write_bytes(whole[:offset] + new + whole[offset + len(new) :])
        with pytest.raises(ValidationError):
            print(name, backup_bound.free_leaf_pages(str(source)))


def test_the_page_of_the_lock_bytes_is_left_out(tmp_path: Path) -> None:
    """BF-1. SQLite never reads or writes that page; the file here is one of holes."""
    source = tmp_path / "pos.db"
    for page_bytes in (4096, 65536):
        source.unlink(missing_ok=True)
        db = sqlite3.connect(source)
        db.execute(f"PRAGMA page_size={page_bytes}")
        db.execute("CREATE TABLE t (a)")
        db.close()
        os.truncate(source, (1 << 30) + 3 * page_bytes)
        free = backup_bound.free_leaf_pages(str(source))
        page_count = (1 << 30) // page_bytes + 3
        assert free == bitmap({page_count - 2}, page_count)


def test_the_bound_holds_and_is_near_for_a_terminal(tmp_path: Path) -> None:
    """BF-7. A bound far above the truth would refuse upgrades for want of space that is there."""
    root = tmp_path / "terminal"
    summary = make_terminal(root, Recipe(records=12_000, unsettled=50, seed=4, free_share=0.2))
    source = root / "data" / "pos.db"
    assert summary.file_bytes > 70 * 65536
    free = backup_bound.free_leaf_pages(str(source))
    path = tmp_path / "000001-v0.posbak"
    for level in (1, 6):
        bound = backup_bound.bound_bytes(str(source), level, free, 0)
        size = write(path, source.read_bytes(), left_out=free, bytes_max=bound).size
        path.unlink()
        assert size <= bound <= 1.3 * size + 80_000
    assert size <= 0.33 * summary.file_bytes
    assert backup_bound.sample_ratio(str(source), 1, None) < 0.5


def entries_and_tally(db_path: Path) -> tuple[list[bytes], Tally]:
    """What a walk over the stores finds, by the shipped contract."""
    document = (ROOT / "migrations" / "stores.json").read_text("utf-8")
    contract = Contracts(codec.decode(document), "").at(0)
    tally, entries = Tally(), []
    db = sqlite3.connect(db_path)
    for name, store in contract.stores.items():
        tally.start(name)
        for key, value in db.execute(f'SELECT key, value FROM "{name}"'):
            if tally.add(store, key, codec.decode(value)):
                entries.append(frames.unsettled_entry(name, key.encode(), value.encode()))
    db.close()
    return sorted(entries), tally


def make_sample(path: Path) -> backup_reader.BackupInfo:
    """A small terminal with free pages and unsettled sales, backed up."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(records=150, unsettled=7, seed=11, page_size=1024)
        summary = make_terminal(Path(folder) / "terminal", recipe)
        source = Path(folder) / "terminal" / "data" / "pos.db"
        db = sqlite3.connect(source)
        db.execute("PRAGMA secure_delete=OFF")  # what was deleted stays in its free page
        db.execute(
            "DELETE FROM transactions WHERE rowid BETWEEN 20 AND 60 AND value LIKE ?",
            ('%"status":"completed"%',),
        )
        db.commit()
        db.close()
        entries, tally = entries_and_tally(source)
        return write(
            path,
            source.read_bytes(),
            page_bytes=1024,
            entries=entries,
            left_out=backup_bound.free_leaf_pages(str(source)),
            sequence=1,
            schema_version=0,
            tally=tally.as_json(),
            unsettled=tally.unsettled_summary(),
            device_id=summary.device_id,
            made_ms=1_735_689_600_000,
            clock_trusted=True,
            agent="0.1.0",
        )


def test_the_sample_of_format_1_reads_the_same_for_ever(tmp_path: Path) -> None:
    """BF-11, BF-6. The figures below were written down when the sample was made."""
    path, _ = sample_of(tmp_path)
    read = agree(path)
    assert read.digest == SAMPLE_SHA256
    assert hashlib.sha256(read.image).hexdigest() == SAMPLE_IMAGE_SHA256
    assert read.header["unsettled"] == SAMPLE_UNSETTLED
    image = tmp_path / "image.db"
    image.write_bytes(read.image)
    db = sqlite3.connect(image)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counts = [
        (name, db.execute(f"SELECT count(*) FROM {name}").fetchone()[0])
        for name in ("transactions", "balances", "metadata", "sync")
    ]
    db.close()
    assert counts == SAMPLE_COUNTS
    assert read.end["left_out"] == SAMPLE_LEFT_OUT


def test_the_entries_of_the_sample_are_those_of_its_unsettled_records(tmp_path: Path) -> None:
    """BF-9. Worked out anew from the rows of the image."""
    read = second_reader.read(SAMPLE.read_bytes())
    image = tmp_path / "image.db"
    image.write_bytes(read.image)
    entries, tally = entries_and_tally(image)
    assert read.entries == entries
    counted = tally.as_json()
    # The sample is older than the digest of what cannot be summed.
    assert read.header["tally"] == {word: counted[word] for word in read.header["tally"]}
    assert counted.keys() - read.header["tally"].keys() == {"odd_digest"}
    db = sqlite3.connect(image)
    key, value = db.execute("SELECT key, value FROM sync LIMIT 1").fetchone()
    db.close()
    name = hashlib.sha256(b"sync\0" + key.encode()).digest()[:16]
    assert name + hashlib.sha256(value.encode()).digest()[:16] in entries


def test_every_promise_of_the_specification_has_a_test() -> None:
    text = (ROOT / "docs" / "spec" / "backup-format.md").read_text("utf-8")
    promised = set(re.findall(r"\*\*(BF-\d+)\*\*", text))
    assert len(promised) == 11
    assert promised == set(re.findall(r"\bBF-\d+", Path(__file__).read_text("utf-8")))


if __name__ == "__main__":
    made = make_sample(Path(sys.argv[1]))
    print(made.sha256, made.end, made.header["unsettled"], made.size)
