"""`python -m tools.bench`: measure everything, print each figure beside its budget."""

from __future__ import annotations

import argparse
import compileall
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tools.bench import reference
from tools.bench.backups import backup_figures
from tools.bench.figure import Figure, as_markdown, as_text
from tools.bench.lines import lines
from tools.bench.measure import ROOT
from tools.bench.memory import memory
from tools.bench.starts import idle_boot
from tools.bench.upgrades import flash, passes_alone, upgrade_cpu
from tools.bench.ways import fused_or_not, way_back


def main() -> int:
    """Run the bench; 0 also when a budget is missed, since a figure is no test."""
    given = _arguments()
    # A terminal has the package with its bytecode; with -B a stale one is compiled at every start.
    compileall.compile_dir(ROOT / "agent", quiet=1)
    with tempfile.TemporaryDirectory(prefix="posagent-bench-", dir=given.dir) as name:
        folder, records, times = Path(name), given.records, given.times
        subjects: dict[str, Callable[[], list[Figure]]] = {
            "boot": lambda: idle_boot(folder, 10 * times),
            "upgrade": lambda: upgrade_cpu(folder, records, 2, times),
            "all-three": lambda: upgrade_cpu(folder, records, 3, times),
            "flash": lambda: flash(folder, records),
            "passes": lambda: passes_alone(folder, records, times),
            "fused": lambda: fused_or_not(folder, records, times),
            "rollback": lambda: way_back(folder, records, times),
            "backup": lambda: backup_figures(folder, records, times),
            "memory": lambda: memory(folder, given.small, given.large),
            **lines(folder, records, times, given.calls),
        }
        figures: list[Figure] = []
        for subject, measured in subjects.items():
            if given.only and subject not in given.only:
                continue
            print(f"measuring {subject} ...", file=sys.stderr, flush=True)
            figures += measured()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{platform.machine()}; medians of {times} alternating runs; CPU is user + system"
    )
    print()
    print(as_markdown(figures) if given.markdown else as_text(figures))
    if not given.markdown:
        print("\nThe UPDATEs that the upgrade is held against, one transaction per migration:")
        for number, statements in enumerate(reference.MIGRATIONS, 1):
            for sql in statements:
                print(f"  {number}  {sql}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="of the timed runs")
    parser.add_argument("--small", type=int, default=10_000, help="the smaller memory run")
    parser.add_argument("--large", type=int, default=1_000_000, help="the larger memory run")
    parser.add_argument("--calls", type=int, default=20_000, help="of the daemon, in turn")
    parser.add_argument("--times", type=int, default=5, help="runs of each subject")
    parser.add_argument("--dir", help="folder on the file system to measure on")
    parser.add_argument("--only", action="append", help="measure just this; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print the table for the docs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
