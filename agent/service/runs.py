"""The runs of a daemon, one at a time: from an accepted call to its end in the ledger."""

from __future__ import annotations

from agent import aio
from agent.edges.ledger import DONE, FAILED, INTERRUPTED
from agent.ground.errors import AgentError, Interrupted
from agent.service.audit import audit_row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.edges.config import Config
    from agent.edges.ledger import Call, Ledger
    from agent.service.board import Board
    from agent.service.guard import Guard
    from agent.service.reports import Reports
    from agent.service.supervisor import Supervisor
    from agent.worker.job import Job

OUTCOME_KEPT = ("kept", "late_holders", "edited_migrations")  # lists that may be long


class Runs:
    """Does jobs for whoever asks."""

    def __init__(
        self, config: Config, board: Board, guard: Guard, reports: Reports, ledger: Ledger
    ) -> None:
        self._config = config
        self._board = board
        self._guard = guard
        self._reports = reports
        self._ledger = ledger
        self._supervisor: Supervisor | None = None
        self._ended: dict[int, tuple[str, dict[str, Any]]] = {}  # not in the ledger yet
        self._newest: Call | None = None
        self._told = ""
        self._task: aio.Task | None = None

    @property
    def is_on(self) -> bool:
        """Whether a run is on."""
        return self._board.running

    def start(self, call: Call, job: Job) -> None:
        """Begin a job that was accepted; its end goes into the ledger."""
        self._newest = call
        self._board.begin(call.run)
        self._task = aio.create_task(self._to_its_end(call.run, job))

    async def at_boot(self, job: Job) -> dict[str, Any]:
        """The run of the boot decision. Nobody waits for its number before it has ended, and before
        its space is known to be there nothing is written that is not needed."""
        self._board.begin(self._next_number())
        result = await self._do(job)
        try:
            call = self._ledger.accept(
                None, "", "boot", job.kind, audit_row("boot", "admin", "boot", "accepted")
            )
            self._board.run = call.run
            self._ledger.end(call.run, state_of(result), outcome_of(result))
        except AgentError as error:
            self._board.note(f"the boot's run could not be numbered: {error.message}")
        return result

    def _next_number(self) -> int:
        try:
            newest = self._ledger.newest()
        except AgentError:
            return 1
        return newest.run + 1 if newest is not None else 1

    async def _to_its_end(self, run: int, job: Job) -> None:
        result = await self._do(job)
        end = (state_of(result), outcome_of(result))
        self._ended[run] = end
        if self._newest is not None and self._newest.run == run:
            self._newest.state, self._newest.outcome = end
        self.note_ends()

    def note_ends(self) -> None:
        """Write what ended; what flash refuses now is kept in memory and tried again later."""
        for run, (state, outcome) in list(self._ended.items()):
            try:
                self._ledger.end(run, state, outcome)
            except AgentError as error:
                text = f"the end of run {run} could not be noted yet: {error.message}"
                if text != self._told:
                    self._told = text
                    self._board.alarm("ledger", text)
                return
            del self._ended[run]

    def call_of(self, op: str = "", run: int = 0) -> Call | None:
        """A call by its key or its number, with its end even where that is not written yet. What
        was accepted last is known without flash, which may be full."""
        newest = self._newest
        if newest is not None and (newest.op == op if op else newest.run == run):
            found: Call | None = newest
        else:
            found = self._ledger.find(op=op, run=run)
        if found is not None and found.run in self._ended:
            found.state, found.outcome = self._ended[found.run]
        return found

    async def _do(self, job: Job) -> dict[str, Any]:
        from agent.service.supervisor import Supervisor

        # There before the wait: who asks it to stop meanwhile is heard.
        self._supervisor = Supervisor(self._config, self._board, self._guard)
        try:
            await self._reports.bar()
            return await self._supervisor.work(job)
        except Exception as error:
            from agent.service.verdict import fault

            result = fault(error, "a run")
            self._board.end(result)
            return result
        finally:
            self._supervisor = None
            self._reports.open()

    def stop(self) -> bool:
        """Ask the run to end at its next batch edge; whether there is one."""
        if self._supervisor is None:
            return False
        self._supervisor.stop()
        return True

    def kill(self) -> None:
        """End the run that is on where it is: a cut like any other."""
        if self._task is not None:
            self._task.cancel()


def state_of(result: dict[str, Any]) -> str:
    """The state in which a call ends."""
    if "error" not in result:
        return DONE
    return INTERRUPTED if result["error"]["code"] == "INTERRUPTED" else FAILED


def outcome_of(result: dict[str, Any]) -> dict[str, Any]:
    """A result as the ledger keeps it: lists of bounded length."""
    return {
        key: value[:20] if key in OUTCOME_KEPT and type(value) is list else value
        for key, value in result.items()
    }


# What is known of a call that the daemon did not survive and that history has no row of.
_WITHOUT_HISTORY = {
    "backup": "`backups` tells whether it was made",
    "commit": "`status` tells whether the old file is still kept",
    "prune": "no record was deleted; old backups may have been",
    "migrate": "no record was changed",
    "rollback": "no record was changed",
    "restore": "no record was changed",
}


def settle_ledger(ledger: Ledger) -> None:
    """Give the calls that a daemon died of, or during, the end that history tells. What history
    does not know was not done: only a migration goes on by itself, and the boot has seen to it."""
    for call in ledger.without_end():
        row = ledger.history_behind(call)
        if row is None:
            error = Interrupted(f"the agent ended meanwhile; {_WITHOUT_HISTORY[call.kind]}")
            outcome: dict[str, Any] = {"verdict": "INTERRUPTED", "error": error.as_json()}
            ledger.end(call.run, INTERRUPTED, outcome)
            continue
        outcome = {key: row[key] for key in ("verdict", "from_version", "to_version", "run")}
        if row["code"]:
            outcome["error"] = {"code": row["code"], "message": row["message"]}
        ledger.end(call.run, state_of(outcome), outcome)
