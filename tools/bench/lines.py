"""Figures of the daemon: what it takes while it waits, to start, and for a call.

Whatever is compared is taken in turn, so that a slow minute hits all of it; how each figure is made
is told in docs/figures.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.bench import reference_lines
from tools.bench.figure import Figure
from tools.bench.measure import (
    BARE,
    Cost,
    Memory,
    bare_memory,
    medians,
    memory_of,
    run,
)
from tools.bench.served_runs import by_daemon_or_not, calls_during_a_run
from tools.bench.serving import (
    STATUS,
    Caller,
    SerialLine,
    Service,
    Terminal,
    daemon,
    reference,
    until,
)

IDLE_PSS_MB = 5.0
CALL_CPU_X = 2.5
SETTLING_S = 0.3  # what was freed after READY is given back by then
CALLS_PER_ROUND = 500
SWITCHES = 200_000
BAUDS = (9600, 115_200)
BITS_PER_BYTE = 10  # start, eight of data, stop


def idle_memory(folder: Path, times: int) -> list[Figure]:
    """The daemon's memory at rest, over an interpreter that waits, and asyncio's beside it."""
    with Terminal(folder, 100, 3) as terminal:
        terminal.bring_up_to_date()
        answer = _answer_file(folder, terminal)
        bare, stdlib = [], []
        moments: dict[str, list[Memory]] = {}
        for _ in range(times):
            bare.append(bare_memory())
            for moment, found in _moments(terminal):
                moments.setdefault(moment, []).append(found)
            with reference("asyncio", terminal.line.name, str(answer)) as service:
                service.ready()
                _call_once(service)
                stdlib.append(_at_rest(service))
    floor = _median_memory(bare)
    figures = [
        _over(floor, moment, _median_memory(found), IDLE_PSS_MB)
        for moment, found in moments.items()
    ]
    figures.append(_over(floor, "  asyncio of the standard library", _median_memory(stdlib), None))
    return figures


def _moments(terminal: Terminal) -> Iterator[tuple[str, Memory]]:
    with daemon(terminal.root) as service:
        service.ready()
        yield "daemon at rest, PSS over bare", _at_rest(service)
        caller = service.caller()
        _counted(caller)
        caller.close()
        yield "  after its first status call", _at_rest(service)
        caller = service.caller()
        number = caller.result("backup", op="bench-000001")["run"]
        until(lambda: caller.result("result", run=number)["state"] != "running")
        caller.close()
        yield "  after its first run", _at_rest(service)


def _at_rest(service: Service) -> Memory:
    time.sleep(SETTLING_S)
    return memory_of([service.pid])


def _median_memory(taken: list[Memory]) -> Memory:
    return Memory(*(round(statistics.median(column)) for column in zip(*taken)))


def _over(floor: Memory, name: str, found: Memory, budget: float | None) -> Figure:
    note = f"{found.pss_kb:,} KiB, bare {floor.pss_kb:,} KiB; "
    note += f"private {found.private_kb:,} KiB, bare {floor.private_kb:,} KiB"
    return Figure(name, (found.pss_kb - floor.pss_kb) / 1024, "MiB", budget, note=note)


def call_cpu(folder: Path, calls: int, times: int) -> list[Figure]:
    """CPU of one status call against an echo of the same bytes, and of what else could serve it.

    All are started anew so many times: one process in memory is not quite like the next.
    """
    rounds = max(calls // CALLS_PER_ROUND // times, 1)
    taken: list[list[float]] = []
    line = SerialLine()
    with Terminal(folder, 100, 3) as terminal:
        terminal.bring_up_to_date()
        answer = str(_answer_file(folder, terminal))
        for _ in range(times):
            with (
                reference("echo", answer) as echo,
                daemon(terminal.root) as ours,
                reference("echo-agent", answer) as carried,
                reference("asyncio", line.name, answer) as stdlib,
            ):
                taken += _costs_in_turn([echo, ours, carried, stdlib], rounds)
    line.close()
    floor, status, bytes_alone, by_asyncio = map(statistics.median, zip(*taken))
    note = f"{1e6 * status:.1f} us of user and system time, the echo {1e6 * floor:.1f} us"
    return [
        Figure("status call, CPU against an echo", status / floor, "x", CALL_CPU_X, note=note),
        _beside("  the loop and the line alone, no JSON", bytes_alone, floor),
        _beside("  asyncio of the standard library", by_asyncio, floor),
    ]


def _costs_in_turn(services: list[Service], rounds: int) -> list[list[float]]:
    """What a call costs at each, over rounds in which all have their turn."""
    callers = [_first_call(service) for service in services]
    taken = [
        [_cpu_of_calls(service, caller) for service, caller in zip(services, callers)]
        for _ in range(rounds)
    ]
    for caller in callers:
        caller.close()
    return taken


def _beside(name: str, cost: float, floor: float) -> Figure:
    return Figure(name, cost / floor, "x", note=f"{1e6 * cost:.1f} us")


def _first_call(service: Service) -> Caller:
    service.ready()
    caller = service.caller()
    _counted(caller)
    return caller


def _counted(caller: Caller) -> None:
    """Ask until the first count of the unsettled sales is there: it is made by a process."""
    until(lambda: _answer(caller).find(b'"unsettled":null') < 0)


def _answer(caller: Caller) -> bytes:
    return caller.exchange(STATUS)


def _call_once(service: Service) -> None:
    caller = service.caller()
    _answer(caller)
    caller.close()


def _cpu_of_calls(service: Service, caller: Caller) -> float:
    begun = service.cpu_s()
    for _ in range(CALLS_PER_ROUND):
        caller.exchange(STATUS)
    return (service.cpu_s() - begun) / CALLS_PER_ROUND


def _answer_file(folder: Path, terminal: Terminal) -> Path:
    """The daemon's own answer to `status`, for the others to give."""
    path = folder / "answer"
    with daemon(terminal.root) as service:
        caller = _first_call(service)
        path.write_bytes(_answer(caller))
        caller.close()
    return path


def start(folder: Path, times: int) -> list[Figure]:
    """From the start of the interpreter to READY, with nothing to do."""
    with Terminal(folder, 100, 3) as terminal:
        terminal.bring_up_to_date()
        answer = str(_answer_file(folder, terminal))
        bare, ours, stdlib = medians(
            times,
            lambda: run(BARE),
            lambda: _until_ready(daemon(terminal.root)),
            lambda: _until_ready(reference("asyncio", terminal.line.name, answer)),
        )
    return [
        figure
        for what, at in (("CPU", 0), ("wall time", 1))
        for figure in (
            Figure(
                f"daemon, start to READY, {what}",
                ours[at] / bare[at],
                "x",
                note=f"{1000 * ours[at]:.1f} ms, bare {1000 * bare[at]:.1f} ms, {times} runs each",
            ),
            Figure(
                "  asyncio of the standard library, until it listens",
                stdlib[at] / bare[at],
                "x",
                note=f"{1000 * stdlib[at]:.1f} ms",
            ),
        )
    ]


def _until_ready(service: Service) -> Cost:
    with service:
        return service.ready()


def serial_bytes(folder: Path) -> list[Figure]:
    """The bytes of one status call on the service port, and what they take of the wire's time."""
    with Terminal(folder, 100, 3) as terminal:
        terminal.bring_up_to_date()
        with daemon(terminal.root) as service:
            _first_call(service).close()
            sent, came = terminal.line.call("status")
    whole = sent + came
    note = f"{sent} bytes of request, {came} of reply, frames included"
    return [
        Figure("status call on a serial line", whole, "bytes", note=note),
        *(
            Figure(f"  at {baud} baud", 1000 * BITS_PER_BYTE * whole / baud, "ms", note="reckoned")
            for baud in BAUDS
        ),
    ]


def switches(times: int) -> list[Figure]:
    """Turns of ten tasks that only pause, on the agent's loop and on the standard library's."""
    ours, theirs = medians(times, lambda: _switches("agent"), lambda: _switches("asyncio"))
    note = f"{SWITCHES / ours.cpu_s:,.0f} a second against {SWITCHES / theirs.cpu_s:,.0f}"
    return [Figure("task switches against asyncio", theirs.cpu_s / ours.cpu_s, "x", note=note)]


def _switches(whose: str) -> Cost:
    program = [sys.executable, "-I", "-S", str(Path(reference_lines.__file__))]
    done = subprocess.run(
        [*program, f"switches-{whose}", str(SWITCHES)], stdout=subprocess.PIPE, check=True
    )
    return Cost(float(done.stdout), 0.0)


def lines(
    folder: Path, records: int, times: int, calls: int
) -> dict[str, Callable[[], list[Figure]]]:
    """The subjects of the daemon, by the names that `--only` takes."""
    return {
        "idle": lambda: idle_memory(folder, times),
        "call": lambda: call_cpu(folder, calls, times),
        "start": lambda: start(folder, 4 * times),
        "serial": lambda: serial_bytes(folder),
        "switches": lambda: switches(times),
        "during": lambda: calls_during_a_run(folder, records, times),
        "asked": lambda: by_daemon_or_not(folder, records, times),
    }
