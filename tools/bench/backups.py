"""Figures of a backup: its size, and its CPU against zlib level 1 over the same file."""

from __future__ import annotations

import os
import statistics
import time
import zlib
from pathlib import Path

from agent.core.terminal import Places
from agent.edges.config import load_config
from agent.edges.database import read_header
from agent.ground.limits import CHUNK_BYTES
from agent.verbs import backup, backup_bound, backup_folder, build
from tools.bench.figure import Figure
from tools.bench.samples import Sample


def backup_figures(folder: Path, records: int, times: int) -> list[Figure]:
    """Size and CPU of one backup of a file at schema 0."""
    sample = Sample(folder, records, 3)
    config = load_config(str(sample.fresh()), None)
    places = Places(config.pos_db, config.state_dir, config.backups_dir, config.run_dir)
    level = config.profile.backup_level
    plain, writing, whole = [], [], []
    size = packed = 0
    for number in range(1, times + 1):
        cpu, packed = _zlib(places.pos)
        plain.append(cpu)
        written, kept, size = _backup(places, level, number)
        writing.append(written)
        whole.append(kept)
    sample.done_with()
    zlib_s, writing_s, whole_s = map(statistics.median, (plain, writing, whole))
    file_bytes = sample.pos_bytes
    return [
        Figure(
            "backup size of the file",
            100 * size / file_bytes,
            "%",
            33.0,
            note=f"{size / 1e6:.1f} of {file_bytes / 1e6:.1f} MB; zlib level 1 over the whole file "
            f"{100 * packed / file_bytes:.1f} %",
        ),
        Figure(
            "backup CPU, written and read back",
            whole_s / zlib_s,
            "x",
            2.5,
            note=f"{whole_s:.2f} s against {zlib_s:.2f} s of zlib level 1",
        ),
        Figure("backup CPU, writing alone", writing_s / zlib_s, "x", note=f"{writing_s:.2f} s"),
    ]


def _zlib(path: str) -> tuple[float, int]:
    begun = time.process_time()
    stream = zlib.compressobj(1)
    packed = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            packed += len(stream.compress(chunk))
    packed += len(stream.flush())
    return time.process_time() - begun, packed


def _backup(places: Places, level: int, sequence: int) -> tuple[float, float, int]:
    """(CPU until written, CPU until read back, bytes), sampling and source digest included."""
    begun = time.process_time()
    header = read_header(places.pos)
    assert header is not None
    left_out = backup_bound.free_leaf_pages(places.pos)
    path = os.path.join(places.backups, backup_folder.backup_name(sequence, 0))
    writer = backup.BackupWriter(
        path,
        {
            "sequence": sequence,
            "schema_version": 0,
            "page_bytes": header.page_bytes,
            "image_bytes": os.path.getsize(places.pos),
            "tally": {},
            "unsettled": {"records": 0},
            "counters": {},
            "device_id": None,
            "made_ms": 0,
            "clock_trusted": False,
            "agent": "bench",
            "plan": None,
        },
        level,
        backup_bound.bound_bytes(places.pos, level, left_out, 0),
        left_out,
    )
    size = writer.finish(*build.copy_source(places, -1, writer, lambda done: None))
    written = time.process_time() - begun
    backup.keep(path)
    whole = time.process_time() - begun
    os.unlink(path)
    return written, whole, size
