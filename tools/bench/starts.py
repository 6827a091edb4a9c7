"""Figures of a boot with nothing to do, against an interpreter that does nothing."""

from __future__ import annotations

from pathlib import Path

from tools.bench.figure import Figure
from tools.bench.measure import BARE, POSAGENT, boot, medians, run
from tools.bench.samples import Sample


def idle_boot(folder: Path, times: int) -> list[Figure]:
    """CPU and wall time of a boot of a terminal that is up to date."""
    sample = Sample(folder, 100, 3)
    root = sample.fresh()
    run(boot(root))
    run([*POSAGENT, "--root", str(root), "commit"])  # or each boot would look at the old file
    bare, idle = medians(times, lambda: run(BARE), lambda: run(boot(root)))
    sample.done_with()
    return [
        Figure(
            "boot with nothing to do, CPU",
            idle.cpu_s / bare.cpu_s,
            "x",
            2.0,
            note=f"{idle.cpu_s * 1000:.1f} ms, bare {bare.cpu_s * 1000:.1f} ms, {times} runs each",
        ),
        Figure(
            "boot with nothing to do, wall time",
            idle.wall_s / bare.wall_s,
            "x",
            note=f"{idle.wall_s * 1000:.1f} ms, bare {bare.wall_s * 1000:.1f} ms",
        ),
    ]
