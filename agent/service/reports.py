"""What reading verbs answer, made by the command itself in a process of its own.

So neither SQLite nor a migration file is loaded here, what a line is told is the very object that
the command prints, and a reader that hangs or dies takes nothing with it. While a run is on there
are no reports: a run waits for whoever has the data open.
"""

from __future__ import annotations

import os

from agent import aio
from agent.edges import clock, process
from agent.ground.codec import decode
from agent.ground.errors import AgentError, Busy, InternalError, TimedOut, revive
from agent.ground.limits import (
    CHUNK_BYTES,
    REPORT_DEADLINE_MS,
    REPORT_KEPT_MS,
    REPORT_TEXT_BYTES_MAX,
    REPORTS_AT_ONCE_MAX,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.edges.config import Config


class Report:
    """One answer on its way, or kept for whoever asks again in a moment."""

    __slots__ = (
        "barred",
        "done",
        "error",
        "fetched",
        "pid",
        "ready_ms",
        "stamp",
        "text",
        "used_ms",
    )

    def __init__(self) -> None:
        self.pid = 0
        self.text = b""
        self.error: AgentError | None = None
        self.ready_ms = 0
        self.stamp: Any = None  # what the files looked like when it was begun
        self.used_ms = 0  # when somebody last had a piece of it
        self.fetched = False
        self.barred = False  # a run began, and it had to let go of the data
        self.done = aio.Event()


class Reports:
    """The reports of one daemon."""

    def __init__(self, config: Config) -> None:
        self._words = ["--root", config.root, "--config", config.path]
        self._reports: dict[tuple[str, ...], Report] = {}
        self.barred = False  # a run is on, or about to begin
        # What the files look like from outside, told by whoever looks at them.
        self.stamp: Callable[[], Any] = lambda: None

    async def ask(self, words: tuple[str, ...], wait_ms: int, age_ms: int = 0) -> bytes:
        """The JSON text that `posagent WORDS --json` prints. Raises its error; Busy when it is not
        there within `wait_ms`, when a run is on, and when too many are asked for at once.

        Asked again it is the same report until somebody got it, and after that for `age_ms`: a
        repeat on a noisy line must not make it anew, nor may a further page be of another one.
        """
        if self.barred:
            raise Busy("a run is on, and the data cannot be read meanwhile", reading=True)
        self._forget_old()
        found = self._reports.get(words)
        if found is not None and found.fetched and self._is_old(found, age_ms):
            found = None
        if found is None:
            found = self._start(words)
        try:
            await aio.wait_for_ms(found.done.wait(), wait_ms)
        except aio.TimeoutError:
            raise Busy("it is being worked out; ask again in a moment", reading=True) from None
        found.fetched = True
        found.used_ms = clock.steady_ms()
        if found.error is not None:
            self._reports.pop(words, None)
            raise found.error
        return found.text

    async def answer(self, words: tuple[str, ...], wait_ms: int, age_ms: int = 0) -> dict[str, Any]:
        """The same, decoded."""
        value: dict[str, Any] = decode((await self.ask(words, wait_ms, age_ms)).decode())
        return value

    def begin(self, words: tuple[str, ...]) -> None:
        """Begin one that is asked for later."""
        self._forget_old()
        self._start(words)

    def _start(self, words: tuple[str, ...]) -> Report:
        if (
            sum(not report.done.is_set() for report in self._reports.values())
            >= REPORTS_AT_ONCE_MAX
        ):
            raise Busy("too much is being worked out already; ask again in a moment", reading=True)
        found = self._reports[words] = Report()
        found.stamp = self.stamp()
        try:
            found.pid, reading = process.start_command([*self._words, *words, "--json"])
        except OSError as error:
            del self._reports[words]
            raise Busy(f"no process can be started ({error.strerror}); ask again") from error
        aio.create_task(_read(found, reading))
        return found

    def _is_old(self, report: Report, age_ms: int) -> bool:
        if clock.steady_ms() - report.ready_ms >= age_ms:
            return True
        # Pages of one report belong together; a repeat is the same only where nothing changed.
        return age_ms < REPORT_KEPT_MS and report.stamp != self.stamp()

    def _forget_old(self) -> None:
        now = clock.steady_ms()
        for words, report in list(self._reports.items()):
            if report.done.is_set() and now - report.used_ms > REPORT_KEPT_MS:
                del self._reports[words]

    async def bar(self) -> None:
        """Before a run: end those that read, and begin no more."""
        self.barred = True
        for report in list(self._reports.values()):
            if not report.done.is_set():
                report.barred = True
                process.kill(report.pid)
                await report.done.wait()
        self._reports.clear()

    def open(self) -> None:
        """After a run: what was known before it is old."""
        self.barred = False
        self._reports.clear()


async def _read(report: Report, reading: int) -> None:
    """Read to the end, within the deadline and the bound, and see how the process ended."""
    text, late = b"", False
    due = clock.steady_ms() + REPORT_DEADLINE_MS
    try:
        while len(text) <= REPORT_TEXT_BYTES_MAX:
            try:
                left = max(due - clock.steady_ms(), 1)
                await aio.wait_for_ms(aio.wait_readable(reading), left)
                data = os.read(reading, CHUNK_BYTES)
            except BlockingIOError:
                continue
            except aio.TimeoutError:
                late = True
                break
            if not data:
                break
            text += data
    finally:
        aio.release_fd(reading)
        os.close(reading)
        process.kill(report.pid)  # one that has ended is a zombie yet, and feels nothing
        try:
            await aio.child_ended(report.pid)
        finally:
            _settle(report, text, late)


def _settle(report: Report, text: bytes, late: bool) -> None:
    report.text = text.strip()
    report.error = _error_of(report.text, late)
    if report.barred:
        report.error = Busy("a run has begun, and the data cannot be read meanwhile", reading=True)
    report.ready_ms = report.used_ms = clock.steady_ms()
    report.done.set()


def _error_of(text: bytes, late: bool) -> AgentError | None:
    if late:
        return TimedOut(f"no answer within {REPORT_DEADLINE_MS} ms; look at the terminal's load")
    if len(text) > REPORT_TEXT_BYTES_MAX:
        return AgentError("the answer is too long for a line; ask by the command on the terminal")
    try:
        value = decode(text.decode())
    except (ValueError, RecursionError):
        return InternalError("the report ended without an answer; ask again")
    if type(value) is dict and set(value) == {"error"}:
        return revive(value["error"])
    return None
