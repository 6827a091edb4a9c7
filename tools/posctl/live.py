"""A run as it goes, on a technician's screen: a bar that moves, or lines where a bar cannot be.

What is shown is a courtesy: the terminal works whether or not anybody looks. The way is reckoned as
the terminal's own command reckons it, so both tell the same percent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from agent.core import states
from agent.core.report import Meter, amount
from agent.links.console_text import span
from posctl.client import Counts, Run, WireEvent
from posctl.client import Progress as Mark
from posctl.show import QUIET, WARN, Line, Out, clean

BAR_CHARS = 20  # what stands beside it needs the rest of 80
LINE_MS = 5_000  # without a new state there is a line this often, as long as there is news
_BYTES = (states.BACKING_UP, states.BUILDING, states.SWITCHING)
# What is worth a line of its own; repeats and damaged frames are only counted.
_TOLD = ("lost", "waiting", "reconnected", "restarted")


class View:
    """What every way of showing a run has in common: where it is, and what the line did."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._meter = Meter(_now_ms())
        self._waiting = False

    def mark(self, mark: Mark, counts: Counts) -> None:
        """There is news of the run."""
        if mark.state not in states.STATES or mark.state in states.FINAL:
            return  # between two attempts, or just over
        now = self._meter.mark(
            mark.state, mark.step or "", mark.done or 0, mark.total or 0, _now_ms()
        )
        if mark.eta_s is not None:
            now.eta_ms = mark.eta_s * 1000
        self._waiting = False
        self._show(counts)

    def told(self, event: WireEvent) -> None:
        """Something happened on the line."""
        if event.what not in _TOLD or (event.what == "waiting" and self._waiting):
            return
        self._waiting = event.what in ("waiting", "lost")
        says = event.says
        if self._waiting:
            says += "; the work on the terminal goes on, waiting for it to answer"
        self._say(says)

    def _show(self, counts: Counts) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError


class Silent(View):
    """For programs: nothing."""

    def _show(self, counts: Counts) -> None:
        pass

    def _say(self, text: str) -> None:
        pass


class Lines(View):
    """A line at each change of state, and every few seconds; nothing is overwritten."""

    def __init__(self, out: Out) -> None:
        super().__init__(out)
        self._state = ""
        self._said_ms = 0

    def _show(self, counts: Counts) -> None:
        now, at = self._meter.now, _now_ms()
        if now.state != self._state or at - self._said_ms >= LINE_MS:
            self._state, self._said_ms = now.state, at
            self._out.say(Line(now.line()))

    def _say(self, text: str) -> None:
        self._out.say(Line(text, whole=True))


class Bar(View):
    """A bar with what is being done, how far, how long yet, and how good the line is."""

    def __init__(self, out: Out, title: str) -> None:
        super().__init__(out)
        self._bar = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=BAR_CHARS),
            TextColumn("{task.percentage:>3.0f}%"),
            _one_line("{task.fields[doing]}"),
            _one_line("{task.fields[left]}", "cyan"),
            _one_line("{task.fields[line]}", "yellow"),
            console=out.console,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task(title, total=100, doing="", left="", line="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, counts: Counts) -> None:
        now = self._meter.now
        doing = f"{now.state} {clean(now.store)}".strip()
        if now.total and now.done:
            unit = "bytes" if now.state in _BYTES else "records"
            doing += f" {amount(now.done, unit)}/{amount(now.total, unit)}"
        self._bar.update(
            self._task,
            completed=now.percent,
            doing=doing,
            left=f"{span(now.eta_ms // 1000)} left" if now.eta_ms >= 0 else "",
            line=quality(counts),
        )

    def _say(self, text: str) -> None:
        self._bar.update(self._task, left="", line="waiting" if self._waiting else "")
        self._bar.console.print(Text(clean(text), WARN if self._waiting else QUIET))


def _one_line(text: str, style: str = "none") -> TextColumn:
    """A column that is cut and never broken: the bar stays where it is."""
    return TextColumn(text, style=style, table_column=Column(no_wrap=True, overflow="ellipsis"))


def quality(counts: Counts) -> str:
    """What the cable cost so far; "" for a good one."""
    again = counts.sends - counts.requests
    return f"{again} sent again" if again else ""


@contextmanager
def view(out: Out, title: str) -> Iterator[View]:
    """The way of showing that this output can do."""
    if out.as_json:
        yield Silent(out)
    elif out.plain:
        yield Lines(out)
    else:
        with Bar(out, title) as bar:
            yield bar


def follow(run: Run, shown: View, counts: Counts) -> None:
    """Show a run until its end. Raises what `Run.watch` raises."""
    for mark in run.watch():
        shown.mark(mark, counts)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
