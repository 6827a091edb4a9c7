"""Figures of runs that the daemon does: calls meanwhile, and the same work by the command alone."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.bench.figure import Figure
from tools.bench.measure import Cost, medians, posagent, run
from tools.bench.serving import PATIENCE_S, STATUS, Caller, Terminal, daemon

ROUND_TRIP_MS = 50.0
PAUSE_S = 0.002  # between two calls while a run is on


def calls_during_a_run(folder: Path, records: int, times: int) -> list[Figure]:
    """Round trips of `status` while the boot's migration is on, and what they cost the run."""
    trips, crowded = Trips(), Trips()
    with Terminal(folder, records, 3) as terminal:
        called, alone = medians(
            times,
            lambda: _boot_by_daemon(terminal, trips),
            lambda: _boot_by_daemon(terminal, None),
        )
        with _one_processor():
            _boot_by_daemon(terminal, crowded)
    note = f"{called.wall_s:.2f} s with a caller every {1000 * PAUSE_S:.0f} ms, "
    note += f"{alone.wall_s:.2f} s without, {records:,} records"
    counting_ms = 1000 * statistics.median(trips.behind)
    return [
        trips.figure("status during a run, p99"),
        crowded.figure("  with one processor for all"),
        Figure("  the call behind the run, which counts anew", counting_ms, "ms"),
        Figure("  the run's time with the caller", called.wall_s / alone.wall_s, "x", note=note),
    ]


class Trips:
    """Seconds of calls: those that a run was on at, and the first of each run's that was not."""

    def __init__(self) -> None:
        self.during: list[float] = []
        self.behind: list[float] = []

    def call_until_the_end(self, caller: Caller) -> None:
        """Call with a pause in between until the run has ended."""
        while True:
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            reply = caller.exchange(STATUS)
            took = time.perf_counter() - begun
            if b'"run":null' in reply:
                self.behind.append(took)
                return
            self.during.append(took)

    def figure(self, name: str) -> Figure:
        """The 99th percentile of those during a run."""
        in_ms = sorted(1000 * trip for trip in self.during)
        note = f"median {statistics.median(in_ms):.2f} ms, highest {in_ms[-1]:.1f} ms, "
        note += f"{len(in_ms):,} calls"
        return Figure(name, in_ms[len(in_ms) * 99 // 100], "ms", ROUND_TRIP_MS, note=note)


def _boot_by_daemon(terminal: Terminal, trips: Trips | None) -> Cost:
    with daemon(terminal.fresh()) as service:
        if trips is None:
            return service.ready()
        caller = service.caller()
        calling = threading.Thread(target=trips.call_until_the_end, args=(caller,), daemon=True)
        calling.start()
        cost = service.ready()
        calling.join(PATIENCE_S)
        caller.close()
        return cost


@contextmanager
def _one_processor() -> Iterator[None]:
    """Everything that is started meanwhile shares one processor, as on most terminals."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def by_daemon_or_not(folder: Path, records: int, times: int) -> list[Figure]:
    """`posagent migrate` done by a daemon that waits, against the command by itself."""
    with Terminal(folder, records, 0) as terminal:
        asked, alone = medians(
            times, lambda: _asked_migrate(terminal), lambda: _lone_migrate(terminal)
        )
    note = f"{asked.wall_s:.2f} s, the command alone {alone.wall_s:.2f} s, {records:,} records"
    return [Figure("migrate by the daemon, time", asked.wall_s / alone.wall_s, "x", note=note)]


def _asked_migrate(terminal: Terminal) -> Cost:
    root = terminal.fresh()
    with daemon(root) as service:
        service.ready()
        return _migrate(terminal)


def _lone_migrate(terminal: Terminal) -> Cost:
    terminal.fresh()
    return _migrate(terminal)


def _migrate(terminal: Terminal) -> Cost:
    terminal.sample.install(3)
    return run(posagent(terminal.root, "migrate"))
