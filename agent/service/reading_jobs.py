"""Jobs that only read, `validate` and `verify`: begun by a call, asked for by their number."""

from __future__ import annotations

from agent import aio
from agent.ground.codec import encode
from agent.ground.errors import AgentError
from agent.ground.limits import PATIENCE_MS, REPORT_DEADLINE_MS
from agent.links import wire
from agent.service import short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.service.board import Board
    from agent.service.reports import Reports

FIRST = 1_000_000_001  # far above any run that the ledger numbers
JOBS_MAX = 8
TEXTS_MAX = 2  # whole answers kept; each may have the size of a report


class ReadingJobs:
    """The reading jobs of one daemon. Their numbers are good until its end."""

    def __init__(self, board: Board, reports: Reports) -> None:
        self._board = board
        self._reports = reports
        self._jobs: dict[int, _Job] = {}
        self._next = FIRST

    def knows(self, run: int) -> bool:
        """Whether this is the number of one of them."""
        return run in self._jobs

    def begin(self, words: tuple[str, ...]) -> dict[str, Any]:
        """A job that only reads. Its number is good until the next start, or until some more were
        asked for: whoever asks twice while it is at work gets the same work."""
        for run, job in self._jobs.items():
            if job.words == words and job.outcome is None:
                return {"run": run, "replayed": True, "state": "running"}
        if self._board.running:
            raise wire.remote("BUSY", f"run {self._board.run} is on", run=self._board.run)
        self._reports.begin(words)
        run, job = self._next, _Job(words)
        self._next += 1
        self._jobs[run] = job
        aio.create_task(self._to_its_end(job))
        while len(self._jobs) > JOBS_MAX:
            del self._jobs[next(iter(self._jobs))]
        return {"run": run, "replayed": False, "state": "running"}

    async def _to_its_end(self, job: _Job) -> None:
        try:
            said = await self._reports.answer(job.words, REPORT_DEADLINE_MS + PATIENCE_MS)
        except AgentError as error:
            said = {"error": error.as_json()}
        said.setdefault("verdict", "REFUSED" if "error" in said else "OK")
        job.state = "failed" if "error" in said else "done"
        job.outcome = short.outcome(said)
        job.text = encode(said).encode()
        for other in list(self._jobs.values())[:-TEXTS_MAX]:
            other.text = b""

    def whole(self, run: int) -> bytes:
        """The whole answer as JSON. Raises NO_SUCH where there is none, or none any more."""
        text = self._jobs[run].text
        if not text:
            raise wire.remote("NO_SUCH", f"run {run} has no result", run=run)
        return text

    def result(self, run: int) -> dict[str, Any]:
        """How far it is, or what came of it."""
        job = self._jobs[run]
        found: dict[str, Any] = {"run": run, "method": job.words[0], "state": job.state}
        return found if job.outcome is None else dict(found, outcome=job.outcome)


class _Job:
    """A job that only reads: what was asked, and what came of it."""

    __slots__ = ("outcome", "state", "text", "words")

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.state = "running"
        self.text = b""
        self.outcome: dict[str, Any] | None = None
