"""Watching one worker: its reports are read, its deadline and its memory limit are held.

Whatever a worker reports is work done, so each report moves the deadline and feeds the watchdogs;
nothing else does.
"""

from __future__ import annotations

import os

from agent import aio
from agent.core import states
from agent.edges import clock, holders, process
from agent.ground import limits
from agent.ground.codec import decode
from agent.ground.errors import AgentError, InternalError, TimedOut, revive
from agent.service.verdict import REFUSALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.service.supervisor import Supervisor

MEMORY_LOOK_MS = 200
END_MS = 5000


class Watch:
    """What the supervisor knows of one attempt: its reports, how far it came, how it ended."""

    def __init__(self, owner: Supervisor, child: process.Child) -> None:
        self.owner = owner
        self.child = child
        self.result: dict[str, Any] | None = None
        self.error: AgentError | None = None
        self.ended = "died"
        self.why = ""
        self.place = 0
        self.found_place = 0
        self.holding = False
        self._state = states.CHECKING
        self._buffer = b""
        self._deadline_ms = owner.profile.deadline_ms
        self._due = clock.steady_ms() + self._deadline_ms
        self._allowed_until = 0

    async def until_end(self) -> None:
        """Until the worker has told its end, died, or had to be killed."""
        while await self._next_reports():
            pass
        if self.holding:
            return
        if self.result is None and self.error is None:
            self.child.kill()
        # Its locks are gone only once it is; a zombie holds nothing.
        status = await self._its_end()
        self.why = self.why or process.outcome_of(status)

    async def _its_end(self) -> int:
        """Wait for a worker that has told its end or was killed. One in a call of the kernel that
        no KILL ends is waited for without end and without another attempt: it has its locks."""
        told = False
        while True:
            try:
                status: int = await aio.wait_for_ms(aio.child_ended(self.child.pid), END_MS)
                return status
            except aio.TimeoutError:
                if not told:
                    told = True
                    self.owner.progress.stuck(
                        f"the worker (pid {self.child.pid}) does not end although it was killed; "
                        "nothing is tried until it does; restart the terminal"
                    )

    async def _next_reports(self) -> bool:
        """Wait for reports for a moment; False when there is nothing more to wait for."""
        wait = max(min(self._due - clock.steady_ms(), MEMORY_LOOK_MS), 1)
        try:
            await aio.wait_for_ms(aio.wait_readable(self.child.reports), wait)
        except aio.TimeoutError:
            return self._still_in_bounds()
        try:
            data = os.read(self.child.reports, limits.REPORT_BYTES_MAX)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._take(decode(line.decode(), 256))
        if len(self._buffer) > limits.REPORT_BYTES_MAX:
            self._kill("its reports make no sense")
        return self.result is None and self.error is None and self._still_in_bounds()

    def _still_in_bounds(self) -> bool:
        """Kill what hangs or eats memory. There is no other way to stop C code."""
        self.owner.progress.tick()
        if self.owner.stopping:
            # Once more: a worker that was just forked may have heard it before it could listen.
            self.child.ask_to_stop()
        if clock.steady_ms() < self._allowed_until:
            # One call of SQLite that gives no mark, in a time that its size bounds.
            self.owner.guard.feed()
        if clock.steady_ms() >= self._due:
            self._kill(
                f"no progress within the deadline of {self._deadline_ms} ms while {self._state}"
            )
        else:
            resident, shared = holders.memory_of(self.child.pid)
            if resident - shared > self.owner.profile.ram_budget_bytes:
                self._kill(f"it outgrew its memory of {self.owner.profile.ram_budget_bytes} bytes")
        return not self.why

    def _kill(self, why: str) -> None:
        self.why = why
        self.child.kill()

    def _take(self, said: dict[str, Any]) -> None:
        """One report. Whatever it says, it is a sign of life."""
        now, allow_ms = clock.steady_ms(), int(said.get("allow_ms", 0))
        self._due = now + self._deadline_ms + allow_ms
        self._allowed_until = now + allow_ms
        if "waiting_for" not in said:
            self.owner.guard.feed()
        if allow_ms:
            self._extend(allow_ms)
        if "state" in said:
            self._enter(said)
        elif "switched" in said:
            self.owner.chronicle.finished(said["switched"])
            try:
                os.write(self.child.answers, b"+")
            except BrokenPipeError:
                pass  # it has died meanwhile, which its end will tell
        elif "came_as_far_as" in said:
            self.found_place = _place(states.MIGRATING, int(said["came_as_far_as"]))
        elif "result" in said:
            self.result, self.ended = said["result"], "done"
            self.holding = bool(self.result.get("late_holders"))
        elif "error" in said:
            self.error = revive(said["error"])
            # A refusal before anything was written says nothing about the plan; one that comes
            # after a backup and a copy wears the flash and counts like any other failure.
            early = self.place < _place(states.BACKING_UP, 0)
            refused = early and self.error.code in REFUSALS
            self.ended = "refused" if refused or self.error.code == "INTERRUPTED" else "failed"
            self.why = self.error.message
        elif "crash" in said:
            self.why = said["crash"]
            self.error = InternalError(f"a fault of the agent: {said['crash']}")
            self.ended = "failed"
        elif "odd" in said:
            store, key, reason = said["first"]
            self.owner.progress.note(
                f"{said['odd']} records outside the plan cannot be read, the first is "
                f"{store}/{key}: {reason}"
            )
        elif "found" in said:
            self.owner.progress.note(f"found: {said['text']}")

    def _enter(self, said: dict[str, Any]) -> None:
        state, done = said["state"], int(said.get("done", 0))
        if not states.may_follow(self._state, state):
            self._kill(f"it went from {self._state} to {state}")
            return
        self._state = state
        if state not in states.FINAL:
            self.place = max(self.place, _place(state, done if state == states.MIGRATING else 0))
        self.owner.progress.mark(state, said.get("store", ""), done, int(said.get("total", 0)))
        self._extend(0, f"\nSTATUS={state} {done}")

    def _extend(self, allow_ms: int, status: str = "") -> None:
        left_ms = 2 * (self._deadline_ms + allow_ms)
        self.owner.guard.say(f"EXTEND_TIMEOUT_USEC={1000 * left_ms}{status}")

    def death(self) -> AgentError:
        """The error for a worker that did not end by itself and is not tried again."""
        if "memory" in self.why or "deadline" in self.why:
            return TimedOut(f"the worker was stopped: {self.why}; nothing was changed")
        return InternalError(f"the worker ended: {self.why}; nothing was changed")


def _place(state: str, done: int) -> int:
    """How far a run is, as one number: later states count more than any number of records."""
    return states.STATES.index(state) * 10**12 + done
