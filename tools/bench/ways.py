"""Figures of several versions at once against one after the other, and of the way back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tools.bench.figure import Figure
from tools.bench.measure import Cost, boot, medians, posagent, run, trace_flash
from tools.bench.samples import Sample

VERSIONS = 3


def fused_or_not(folder: Path, records: int, times: int) -> list[Figure]:
    """One upgrade over three versions against three upgrades over one version each."""
    sample = Sample(folder, records, VERSIONS)

    def at_once() -> Cost:
        return run(boot(sample.fresh()))

    def one_by_one() -> Cost:
        sample.migrations = 1
        root = sample.fresh()
        sample.migrations = VERSIONS
        cost = run(boot(root))
        for installed in range(2, VERSIONS + 1):
            sample.install(installed)
            more = run(boot(root))
            cost = Cost(cost.cpu_s + more.cpu_s, cost.wall_s + more.wall_s)
        return cost

    fused, apart = medians(times, at_once, one_by_one)
    written = [_written(sample, folder, at) for at in (VERSIONS, 1)]
    sample.done_with()
    note = f"CPU {apart.cpu_s:.2f} s in three runs, {fused.cpu_s:.2f} s in one"
    figures = [
        Figure(
            "three versions in one run against one by one",
            apart.cpu_s / fused.cpu_s,
            "x",
            note=note,
        )
    ]
    if None not in written:
        one, three = (value or 0 for value in written)
        note = f"{three / 1e6:.1f} MB in three runs, {one / 1e6:.1f} MB in one"
        figures.append(Figure("  its bytes written to flash", three / one, "x", note=note))
    return figures


def _written(sample: Sample, folder: Path, first: int) -> int | None:
    """Bytes written until the last version, with so many migrations installed at first."""
    sample.migrations = first
    root = sample.fresh()
    sample.migrations = VERSIONS
    total = 0
    for installed in range(first, VERSIONS + 1):
        sample.install(installed)
        used = trace_flash(boot(root), root / "data", folder / "strace.log")
        if used is None:
            return None
        total += used.written_bytes
    return total


def way_back(folder: Path, records: int, times: int) -> list[Figure]:
    """A rollback over three versions by `down`, with a sale made since, against the upgrade; and
    what pos.db keeps for it."""
    sample = Sample(folder, records, VERSIONS)
    kept: list[tuple[int, int]] = []

    def up() -> Cost:
        return run(boot(sample.fresh()))

    def down() -> Cost:
        root = sample.fresh()
        run(boot(root))
        kept.append(_sell(root / "data" / "pos.db"))
        return run(posagent(root, "rollback", "--to", "0"))

    forward, back = medians(times, up, down)
    sample.done_with()
    rows, size = kept[-1]
    note = f"CPU {back.cpu_s:.2f} s, the upgrade {forward.cpu_s:.2f} s"
    return [
        Figure("rollback by down against the upgrade", back.cpu_s / forward.cpu_s, "x", note=note),
        Figure("  rows kept in pos.db for it", rows, "", note=f"{size} bytes of text"),
    ]


def _sell(pos: Path) -> tuple[int, int]:
    """One more sale, so that the old file cannot just be put back. Answers what is kept."""
    connection = sqlite3.connect(pos)
    try:
        sale = '{"amount":1,"currency":"EUR","status":"pending"}'
        connection.execute("INSERT INTO transactions VALUES ('tx_new', ?)", (sale,))
        connection.commit()
        rows, size = connection.execute(
            "SELECT count(*), coalesce(sum(length(kind) + length(key) + length(value)), 0) "
            "FROM posagent WHERE kind NOT IN ('run', 'format', 'min_reader')"
        ).fetchone()
        return int(rows), int(size)
    finally:
        connection.close()
