"""Figures of memory: supervisor and worker together, over an interpreter that does nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.bench.figure import Figure
from tools.bench.measure import Failed, Memory, bare_memory, boot, peak_memory, run
from tools.bench.samples import Sample

ADDRESS_SPACE_MIB = 24
PSS_OVER_BARE_MB = 9.0
PRIVATE_GROWTH_KIB = 256


# The smallest class of terminal, allowed a file as large as the bench asks for.
SMALL_CLASS = {"profile": "linux-nand-64", "pos_db_bytes_max": 1 << 30}


def memory(folder: Path, small: int, large: int) -> list[Figure]:
    """Peaks of a whole upgrade at two sizes, their difference, and a run in a small space."""
    bare = bare_memory()
    peaks = {records: _peak(folder, records, SMALL_CLASS) for records in (small, large)}
    shown = [(f"{records:,} records", peak) for records, peak in peaks.items()]
    shown.append((f"{small:,} records, generic", _peak(folder, small, {})))
    figures = [
        Figure(
            f"PSS over bare, whole run, {which}",
            (peak.pss_kb - bare.pss_kb) / 1024,
            "MiB",
            PSS_OVER_BARE_MB,
            note=f"{peak.pss_kb:,} KiB, bare {bare.pss_kb:,} KiB; "
            f"private {peak.private_kb:,} KiB, bare {bare.private_kb:,} KiB",
        )
        for which, peak in shown
    ]
    growth = peaks[large].private_kb - peaks[small].private_kb
    name = f"private memory, {large:,} records against {small:,}"
    figures.append(
        Figure(name, growth, "KiB", PRIVATE_GROWTH_KIB, note="peaks of supervisor+worker")
    )
    figures.append(_small_space(folder, small, peaks[large]))
    return figures


def _peak(folder: Path, records: int, overrides: dict[str, object]) -> Memory:
    sample = Sample(folder, records, 3)
    sample.overrides = overrides
    peak = peak_memory(boot(sample.fresh()))
    sample.done_with()
    return peak


def _small_space(folder: Path, records: int, seen: Memory) -> Figure:
    """Whether an upgrade comes to its end with an address space of 24 MiB for each process."""
    name = f"works under RLIMIT_AS {ADDRESS_SPACE_MIB} MiB (1 = yes)"
    largest = f"generic profile; with the small class {seen.address_space_kb / 1024:.1f} MiB seen"
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        return Figure(name, None, "", 1, at_least=True, note="prlimit is missing; " + largest)
    sample = Sample(folder, records, 3)
    command = [prlimit, f"--as={ADDRESS_SPACE_MIB << 20}", *boot(sample.fresh())]
    try:
        run(command)
        works = 1
    except Failed:
        works = 0
    sample.done_with()
    return Figure(name, works, "", 1, at_least=True, note=largest)
