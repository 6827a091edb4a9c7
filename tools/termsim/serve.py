"""`python -m tools.termsim serve DIR...`: simulated terminals until somebody says stop.

One JSON line per terminal when it answers, and again after each power cut; one with `event` for
whatever happens to it. SIGTERM, Ctrl-C or, with --control, the end of standard input ends all; so
does the end of the COMMAND that was given to be run on them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.termsim import tethered
from tools.termsim.port import SPEEDS
from tools.termsim.recipe import Recipe, RecipeError
from tools.termsim.served import NotServed, Options, Role, Served
from tools.termsim.terminal import make_terminal

if TYPE_CHECKING:
    Task = asyncio.Task[Any]

EXIT_NOT_SERVED = 1
EXIT_TOO_LONG = 124  # as timeout(1)
VERBS = ("cut", "pull", "plug", "silence", "wake")


def add_arguments(serve: argparse.ArgumentParser) -> None:
    """The verb's own options."""
    add = serve.add_argument
    add("roots", metavar="DIR", type=Path, nargs="+", help="a sample terminal's folder")
    add("--make", type=int, metavar="N", help="serve DIR/1 to DIR/N; those missing are made")
    add("--records", type=int, default=1_000, help="of each terminal that is made (default: 1000)")
    add("--noise", type=share, default=0.0, metavar="P", help="probability that a byte is spoilt")
    add("--baud", type=int, choices=sorted(SPEEDS), default=0, help="carry bytes at this speed")
    add("--strict-baud", action="store_true", help="a program at another speed reads garbage")
    add("--sales-per-s", type=float, default=0.0, metavar="S", help="a shop sells on each terminal")
    add("--silent", type=Path, action="append", default=[], metavar="DIR", help="answers nothing")
    add("--wrong-model", type=Path, action="append", default=[], metavar="DIR")
    add("--duplicate-serial", type=Path, action="append", default=[], metavar="DIR")
    for option, word, says in (
        ("--cut-after", "MS", "power goes this long after the terminal is ready"),
        ("--cut-at-mark", "N", "power goes when N marks of progress were heard"),
        ("--pull-at-byte", "N", "the cable is pulled once N bytes came over it"),
    ):
        says += "; given again, it holds for the next time"
        add(option, metavar=word, type=int, action="append", default=[], help=says)
    add("--dark-ms", type=int, default=1_000, help="until power, or the cable, is back")
    add("--pending", action="store_true", help="migrations are installed once the terminal is up")
    add("--control", action="store_true", help=f"read lines '{'|'.join(VERBS)} DIR' from stdin")
    add("--at-most-s", type=float, metavar="S", help="end all after this long, with 124")
    add("--seed", type=int, default=1, help="of noise, sales and terminals that are made")


def share(text: str) -> float:
    """A probability."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def main(args: argparse.Namespace, command: list[str]) -> int:
    """Serve until told to stop; the exit code."""
    roots = made(args)
    bench = Bench(args, roots)
    try:
        return asyncio.run(bench.run(command))
    except NotServed as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_SERVED


def made(args: argparse.Namespace) -> list[Path]:
    """The folders to serve; --make makes those that are not there."""
    if args.make is None:
        return list(args.roots)
    if len(args.roots) != 1 or args.make < 1:
        raise RecipeError("--make N makes terminals 1 to N in one folder")
    roots = [args.roots[0] / str(number) for number in range(1, args.make + 1)]
    for number, root in enumerate(roots, args.seed):
        if not root.exists():
            records = args.records
            make_terminal(root, Recipe(records=records, unsettled=records // 50, seed=number))
    return roots


def roles(args: argparse.Namespace, roots: list[Path]) -> list[Role]:
    """What each terminal claims to be. Raises RecipeError for a folder that is not served."""
    for name in ("silent", "wrong_model", "duplicate_serial"):
        for path in getattr(args, name):
            if path not in roots:
                raise RecipeError(f"--{name.replace('_', '-')} {path}: it is not served")
    if args.strict_baud and not args.baud:
        raise RecipeError("--strict-baud needs the right speed: give --baud")
    serials = [serial_of(root, number) for number, root in enumerate(roots)]
    found = []
    for number, root in enumerate(roots):
        same = root in args.duplicate_serial
        found.append(
            Role(
                serial=serials[0] if same else serials[number],
                forced_serial=same,
                wrong_model=root in args.wrong_model,
                silent=root in args.silent,
            )
        )
    return found


def serial_of(root: Path, number: int) -> str:
    """The serial number in its configuration, else one of this bench."""
    try:
        config = json.loads((root / "etc/posagent/config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    return str(config.get("device_id") or f"SIM-{number + 1:04d}")


def tell(what: dict[str, Any]) -> None:
    """One JSON line; that nobody reads it is no reason to stop."""
    try:
        print(json.dumps(what, ensure_ascii=False), flush=True)
    except BrokenPipeError:
        pass


class Bench:
    """All terminals of one call."""

    def __init__(self, args: argparse.Namespace, roots: list[Path]) -> None:
        self._roots = roots
        self._roles = roles(args, roots)
        self._has_control: bool = args.control
        self._at_most_s: float | None = args.at_most_s
        self._options = Options(
            noise=args.noise,
            baud=args.baud,
            strict_baud=args.baud if args.strict_baud else 0,
            sales_per_s=args.sales_per_s,
            cuts_ms=tuple(args.cut_after),
            cuts_at_mark=tuple(args.cut_at_mark),
            pulls_at=tuple(args.pull_at_byte),
            dark_ms=args.dark_ms,
            pending=args.pending,
            seed=args.seed,
        )

    async def run(self, command: list[str]) -> int:
        """Everything, to its end; nothing that was started is left then. Raises NotServed."""
        served = [
            Served(root, role, self._options, tell) for root, role in zip(self._roots, self._roles)
        ]
        lives: list[Task] = [asyncio.ensure_future(one.live()) for one in served]
        work = [self._hear_signals(bool(command))]
        if self._has_control:
            work.append(asyncio.ensure_future(obey(served)))
        if command:
            work.append(asyncio.ensure_future(run_command(command, served)))
        try:
            return await self._first_end(lives, work)
        finally:
            for task in (*work, *lives):
                task.cancel()
            await asyncio.gather(*work, *lives, return_exceptions=True)

    def _hear_signals(self, has_command: bool) -> Task:
        """Done with 0 when somebody says stop."""
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, told.set)
        # Ctrl-C reaches a command of ours by itself; what it makes of it is its own affair.
        loop.add_signal_handler(signal.SIGINT, (lambda: None) if has_command else told.set)
        return asyncio.ensure_future(zero_after(told))

    async def _first_end(self, lives: list[Task], work: list[Task]) -> int:
        """What ends all: a terminal that cannot live, the command, a signal, or time."""
        done, _ = await asyncio.wait(
            {*lives, *work}, timeout=self._at_most_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            return EXIT_TOO_LONG
        for task in lives:
            if task in done:
                task.result()
        code: int = max(task.result() for task in work if task in done)
        return code


async def zero_after(told: asyncio.Event) -> int:
    """An end in good order."""
    await told.wait()
    return 0


async def obey(served: list[Served]) -> int:
    """Do what lines on standard input say, to their end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    by_name = {str(one.root): one for one in served}
    while True:
        line = (await reader.readline()).decode(errors="replace")
        if not line:
            return 0
        verb, _, name = line.strip().partition(" ")
        if verb in VERBS and name in by_name:
            getattr(by_name[name], verb)()
        else:
            tell({"event": "not understood", "line": line.strip(), "verbs": VERBS})


async def run_command(command: list[str], served: list[Served]) -> int:
    """Run a command on the terminals, once all answer; its exit code."""
    for one in served:
        await one.is_up.wait()
    process = await tethered.start_beside(command)
    try:
        return await process.wait()
    finally:
        await tethered.end(process)
