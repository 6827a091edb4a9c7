"""Measuring processes from outside: CPU of a whole tree, bytes written, flushes, memory."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# As the unit and the init script start it.
POSAGENT = (sys.executable, "-I", "-S", "-B", str(ROOT / "agent" / "__main__.py"))
BARE = (sys.executable, "-I", "-S", "-c", "pass")
BARE_WAITING = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)")
SAMPLE_S = 0.01


class Cost(NamedTuple):
    """User and system time of a process and all it waited for, and the time that passed."""

    cpu_s: float
    wall_s: float


class Failed(RuntimeError):
    """A command that was to be measured ended with another code than 0."""


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end; raises Failed with what it said."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode:
        raise Failed(f"{' '.join(command)} ended with {child.returncode}: {said[-500:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall)


def boot(root: Path) -> tuple[str, ...]:
    """The command that boots one terminal."""
    return posagent(root, "boot")


def posagent(root: Path, *words: str) -> tuple[str, ...]:
    """A command on one terminal."""
    return (*POSAGENT, "--root", str(root), *words, "--json")


def medians(times: int, *subjects: Callable[[], Cost]) -> list[Cost]:
    """The median cost of each subject over alternating runs, so that a slow minute hits all."""
    taken: list[list[Cost]] = [[] for _ in subjects]
    for _ in range(times):
        for subject, costs in zip(subjects, taken):
            costs.append(subject())
    return [
        Cost(statistics.median(c.cpu_s for c in costs), statistics.median(c.wall_s for c in costs))
        for costs in taken
    ]


class Flash(NamedTuple):
    """What a command did to one folder: bytes it wrote there and how often it flushed."""

    written_bytes: int
    flushes: int


_CALL = re.compile(
    r"(write|pwrite64|writev|pwritev|pwritev2|copy_file_range|sendfile|fsync|fdatasync)"
    r"\((\d+<([^>]*)>.*)\) = (\d+)$"
)


def flash_use(trace: str, folder: str) -> Flash:
    """Sum up the lines of `strace -f -y` for files below `folder`. Pipes and /run do not count."""
    written = flushes = 0
    for line in trace.splitlines():
        found = _CALL.search(line)
        if found is None:
            continue
        name, arguments, path, result = found.groups()
        if name == "copy_file_range":  # its target is the second descriptor
            path = arguments.split("<")[2].partition(">")[0]
        if not (path + "/").startswith(folder.rstrip("/") + "/"):
            continue
        if name in ("fsync", "fdatasync"):
            flushes += 1
        else:
            written += int(result)
    return Flash(written, flushes)


def trace_flash(command: Sequence[str], folder: Path, log: Path) -> Flash | None:
    """Run a command under strace; None where there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    calls = "write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,fsync,fdatasync"
    run([strace, "-f", "-y", "-s0", "-e", f"trace={calls}", "-o", str(log), *command])
    return flash_use(log.read_text(errors="replace"), str(folder))


class Memory(NamedTuple):
    """Kilobytes of a process tree at one moment, or its highest sums."""

    pss_kb: int
    private_kb: int
    address_space_kb: int


def tree(pid: int) -> list[int]:
    """A process and its descendants, as far as they still live."""
    found = [pid]
    for parent in found:
        try:
            with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
                found += [int(word) for word in file.read().split()]
        except OSError:
            continue
    return found


def memory_of(pids: Sequence[int]) -> Memory:
    """The sums over the processes; of the address space the largest single peak."""
    pss = private = space = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                for line in file:
                    name, _, value = line.partition(":")
                    if name == "Pss":
                        pss += int(value.split()[0])
                    elif name in ("Private_Clean", "Private_Dirty"):
                        private += int(value.split()[0])
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
                for line in file:
                    if line.startswith("VmPeak:"):
                        space = max(space, int(line.split()[1]))
        except OSError:
            continue  # it has ended meanwhile
    return Memory(pss, private, space)


def peak_memory(command: Sequence[str]) -> Memory:
    """Run a command and sample its tree until it ends; each figure's highest value."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = Memory(0, 0, 0)
    while child.poll() is None:
        now = memory_of(tree(child.pid))
        peak = Memory(*map(max, peak, now))
        time.sleep(SAMPLE_S)
    if child.returncode:
        raise Failed(f"{' '.join(command)} ended with {child.returncode}")
    return peak


def bare_memory() -> Memory:
    """What an interpreter that does nothing takes."""
    child = subprocess.Popen(BARE_WAITING)
    try:
        time.sleep(0.5)  # it only has to have started
        return memory_of([child.pid])
    finally:
        child.kill()
        child.wait()
