"""How a run speaks to its supervisor: one JSON line per mark of progress, over one pipe.

A mark is work done - a batch committed, a slice checked, a chunk written - never mere time, because
the supervisor kills whoever shows none within the deadline.
"""

from __future__ import annotations

import os

from agent.core import states
from agent.ground.codec import encode
from agent.ground.errors import Interrupted
from agent.ground.limits import BYTES_PER_MARK, QUICK_CHECK_BYTES_PER_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

BEYOND_STOPPING = (states.SWITCHING, *states.FINAL)


class Desk:
    """The worker's end. `ask` waits for the supervisor's answer, all else is one-way."""

    __slots__ = ("_answers", "_may_be_alone", "_reports", "_stop", "state", "total")

    def __init__(self, reports: int, answers: int) -> None:
        self._reports = reports
        self._answers = answers
        self._may_be_alone = False
        self._stop = False
        self.state = ""
        self.total = 0

    def tell(self, **said: Any) -> None:
        """One line to the supervisor."""
        line = encode(said).encode() + b"\n"
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._reports, view) :]
        except BrokenPipeError:
            if not self._may_be_alone:
                raise

    def enter(self, state: str, total: int = 0) -> None:
        """A new state of the run, with how much there is to do in it (records or bytes)."""
        self.state = state
        self.total = total
        self.tell(state=state, total=total)

    def mark(self, store: str, done: int) -> None:
        """Work done in this state so far. Raises Interrupted when somebody asked to stop."""
        self.tell(state=self.state, store=store, done=done, total=self.total)
        if self._stop and self.state not in BEYOND_STOPPING:
            where = f"{done:,} of {self.total:,} done" if self.total else "nothing was changed yet"
            raise Interrupted(f"told to stop while {self.state}, {where}; the next start goes on")

    def ask_to_stop(self) -> None:
        """From a signal handler: end at the next mark, which comes when a piece of work is whole.
        From the seal on it is too late, and the run comes to its end."""
        self._stop = True

    def marker(self, label: str) -> Callable[[int], None]:
        """`mark` with its first argument set, for loops that count bytes: told once per MiB."""
        told = 0

        def mark(done: int) -> None:
            nonlocal told
            if not told <= done < told + BYTES_PER_MARK:
                told = done
                self.mark(label, done)

        return mark

    def allow(self, size_bytes: int) -> None:
        """One call is coming that gives no mark and whose time grows with a file's size."""
        self.tell(allow_ms=size_bytes * 1000 // QUICK_CHECK_BYTES_PER_S)

    def go_on_alone(self) -> None:
        """From here on a supervisor that is gone is no reason to stop; nobody is told then."""
        self._may_be_alone = True

    def ask(self, **said: Any) -> None:
        """Tell, and wait until the supervisor has made it durable. Where the supervisor is gone
        the process ends, or goes on without a claim if it may."""
        self.tell(**said)
        if os.read(self._answers, 1) != b"+" and not self._may_be_alone:
            os._exit(3)

    def close(self) -> None:
        """Hang up; the supervisor waits for nothing more."""
        os.close(self._reports)
        os.close(self._answers)
