"""Figures of a whole upgrade: its CPU, what it writes to flash, and the passes alone."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.core.terminal import Places, RunRow
from agent.edges import database
from agent.edges.config import load_config
from agent.edges.migration_files import MigrationFiles
from agent.verbs import build, passes
from tools.bench import reference
from tools.bench.figure import Figure
from tools.bench.measure import Cost, boot, medians, run, trace_flash
from tools.bench.samples import Sample

DEVICE_ID = "device_1729603200000_bench"
_BUDGETS = {2: 5.0}


def upgrade_cpu(folder: Path, records: int, migrations: int, times: int) -> list[Figure]:
    """The whole upgrade against the same change as UPDATEs."""
    sample = Sample(folder, records, migrations)
    program = [sys.executable, "-I", "-S", str(Path(reference.__file__))]

    def upgrade() -> Cost:
        return run(boot(sample.fresh()))

    def updates() -> Cost:
        db = sample.fresh() / "data" / "pos.db"
        return run([*program, str(db), str(migrations), DEVICE_ID])

    ours, theirs = medians(times, upgrade, updates)
    sample.done_with()
    name = f"whole upgrade, {records:,} records, migrations 1 to {migrations}"
    note = f"CPU {ours.cpu_s:.2f} s against {theirs.cpu_s:.2f} s of plain UPDATEs"
    return [
        Figure(name, ours.cpu_s / theirs.cpu_s, "x", _BUDGETS.get(migrations), note=note),
        Figure("  its wall time", ours.wall_s, "s", note=f"UPDATEs {theirs.wall_s:.2f} s"),
    ]


def flash(folder: Path, records: int) -> list[Figure]:
    """Bytes written and flushes on the data partition by one whole upgrade."""
    sample = Sample(folder, records, 2)
    root = sample.fresh()
    used = trace_flash(boot(root), root / "data", folder / "strace.log")
    new_bytes = (root / "data" / "pos.db").stat().st_size
    sample.done_with()
    if used is None:
        missing = "strace is missing"
        return [
            Figure("flash written per byte of the new file", None, "x", 4.0, note=missing),
            Figure("flushes of a whole upgrade", None, "", 150, note=missing),
        ]
    written = used.written_bytes
    note = f"{written / 1e6:.1f} MB by write calls below data/, new file {new_bytes / 1e6:.1f} MB"
    return [
        Figure("flash written per byte of the new file", written / new_bytes, "x", 4.0, note=note),
        Figure("flushes of a whole upgrade", used.flushes, "", 150, note="fsync and fdatasync"),
    ]


def passes_alone(folder: Path, records: int, times: int) -> list[Figure]:
    """Both migrations as one fused walk in this process, against one UPDATE each."""
    sample = Sample(folder, records, 2)

    def fused() -> Cost:
        return _in_process(_prepared_walk(sample.fresh()))

    def updates() -> Cost:
        db = str(sample.fresh() / "data" / "pos.db")
        return _in_process(lambda: reference.update(db, 2, DEVICE_ID))

    ours, theirs = medians(times, fused, updates)
    sample.done_with()
    note = f"UPDATEs {theirs.cpu_s:.2f} s / fused passes {ours.cpu_s:.2f} s, CPU"
    return [
        Figure(
            "passes alone, two migrations fused",
            theirs.cpu_s / ours.cpu_s,
            "x",
            note=note + "; 1.5x is aimed at with steps as SQL",
        )
    ]


def _in_process(work: Callable[[], None]) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def _prepared_walk(root: Path) -> Callable[[], None]:
    """A successor that is ready for its batches, and the function that runs them."""
    config = load_config(str(root), None)
    places = Places(config.pos_db, config.state_dir, config.backups_dir, config.run_dir)
    files = MigrationFiles(config.migrations_dir)
    plan = files.load(0)
    shutil.copy(places.pos, places.next)
    row = RunRow(
        kind="migrate",
        run="bench",
        source_size=os.path.getsize(places.pos),
        source_sha256="0" * 64,
        plan=plan.digest,
        from_version=plan.from_version,
        to_version=plan.to_version,
        now=reference.NOW_MS,
        clock_trusted=True,
        device_id=DEVICE_ID,
        before={},
        counters={},
        backup={},
        wal=False,
        app_reads=[0, 3],
        state="open",
    )
    profile = config.profile
    successor = database.open_successor(
        places.next, profile.page_cache_bytes, profile.journal_bytes_max, 1 << 40
    )
    build.start_run(successor, row)

    def walk() -> None:
        plan.bind(row.now, row.device_id, {})
        work = passes.Passes(successor, plan, profile, files.contracts)
        work.run(lambda a_pass, cursor: None)
        database.leave_wal(successor, places.next)

    return walk
