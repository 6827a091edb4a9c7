"""A run on a terminal as the host sees it: followed, waited for, stopped, found again.

The terminal does the work whether or not anybody follows. Events are a courtesy and may be lost, so
what decides is always the answer to `result`, asked for by the op.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from posctl.conversation import WireEvent
from posctl.faults import (
    AgentRefused,
    HostError,
    LineLost,
    Unheard,
)
from posctl.link import Link
from posctl.ops import new_op
from posctl.reading import read_begun, read_json
from posctl.shapes import Progress, shaped

LOOK_S = 2.0  # so long without an event, and the run is asked after
RENEW_S = 60.0  # a subscription ends after ten minutes without a request
EVENTS = ["progress", "state", "alarm"]
EVENT_INTERVAL_MS = 200  # where the line has no rate that bounds it
_PAUSE_S = 0.1
_SIDE_FIRST = 1_000_000_001  # numbers of work that only reads begin here


class Outcome(dict[str, Any]):
    """The object that the command on the terminal prints with --json."""

    @property
    def verdict(self) -> str:
        """`OK`, `NOT_REQUIRED`, `REFUSED`, `ROLLED_BACK`, `PARTIAL`, `INTERRUPTED` or `HELD`."""
        return str(self.get("verdict", "REFUSED" if "error" in self else "OK"))

    @property
    def exit_code(self) -> int:
        """What the command on the terminal ends with (docs/exit-codes.md)."""
        from agent.service.verdict import exit_code

        return exit_code({**self, "verdict": self.verdict}, boot=False)

    @property
    def message(self) -> str:
        """Why it failed; "" when it did not."""
        return str((self.get("error") or {}).get("message", ""))


class Run:
    """One piece of work. `op` is its key for ever, `number` what the terminal calls it. `method` is
    the call that began it; for work that only reads (`validate`, `verify`) there is no op."""

    def __init__(
        self,
        link: Link,
        patience_s: float,
        method: str,
        op: str = "",
        number: int | None = None,
        params: dict[str, Any] | None = None,
        report: str = "",
        outcome: Outcome | None = None,
    ) -> None:
        self.method = method
        self.op = op
        self.number = number
        self._link = link
        self._patience_s = patience_s
        self._params = params  # of what only reads, to begin it again
        self._report = report  # that is what only reads comes to, where it has one
        self._outcome = outcome
        self._ended: dict[str, Any] | None = None

    @property
    def reads_only(self) -> bool:
        """Whether it changes nothing; then it may be begun again without harm."""
        return self.number is not None and self.number >= _SIDE_FIRST

    def watch(self) -> Iterator[Progress]:
        """How far it is, whenever there is news, until it has ended. A line that is lost or an
        agent that starts again is waited for, as long as `patience_s` of the connection says; then
        the fault is raised with `op` set, and the run may be found again later."""
        silent_since: float | None = None
        try:
            while True:
                try:
                    if self._has_ended():
                        return
                    silent_since = None
                    yield from self._news()
                except (Unheard, LineLost) as error:
                    silent_since = silent_since or time.monotonic()
                    self._wait_out(error, self._patience_s - time.monotonic() + silent_since)
        except HostError as error:
            error.op = self.op
            raise
        finally:
            if not self.reads_only:
                self._link.tell("unsubscribe")

    def result(self) -> Outcome:
        """Its end, waited for."""
        if self._outcome is None:
            for _ in self.watch():
                pass
        if self._outcome is None:
            try:
                self._outcome = self._whole_outcome()
            except HostError as error:
                error.op = self.op
                raise
        return self._outcome

    def cancel(self) -> None:
        """Ask it to stop after its batch; the data stays as it was. Its end tells whether it did.
        Raises AgentRefused when it is not on."""
        try:
            self._link.call("cancel", {"op": new_op(), "run": self.number})
        except AgentRefused as error:
            # The repeat of a call whose answer was lost finds the run ended.
            if error.kind != "NO_SUCH" or self._found().get("state") != "interrupted":
                raise

    # How it goes on

    def _has_ended(self) -> bool:
        if self._outcome is not None:
            return True
        if self._report:
            return self._has_reported()
        try:
            found = self._found()
        except AgentRefused as error:
            if error.kind != "NO_SUCH" or self._params is None:
                raise
            # The agent started anew, and what only reads was forgotten.
            self.number = self._call(self.method, self._params)["run"]
            return False
        self.number = found.get("run", self.number)
        if found["state"] == "running":
            return False
        self._ended = found
        return True

    def _has_reported(self) -> bool:
        """Whether what only reads is done: its report is its end, and whole where `result` is not.
        One that the agent forgot when it started again is begun anew by the asking."""
        try:
            self._outcome = Outcome(read_begun(self._link, self._report))
        except AgentRefused as error:
            if error.kind != "BUSY":
                raise
            return False
        return True

    def _found(self) -> dict[str, Any]:
        named = {"op": self.op} if self.op else {"run": self.number}
        return self._call("result", named)

    def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A call while the run is followed; how long a lost line is waited for is told there."""
        return self._link.call(method, params, patience_s=0)

    def _news(self) -> Iterator[Progress]:
        """What is told until it is time to ask again: it seems to be over, or nothing comes."""
        if self.reads_only:
            time.sleep(_PAUSE_S)  # nobody tells of it
            return
        yield shaped(Progress, self._subscribed())
        renew_at = time.monotonic() + RENEW_S
        while time.monotonic() < renew_at:
            told = self._link.listen(LOOK_S)
            if told is None or (told.method == "state" and told.params.get("to") in _AT_REST):
                return
            if told.method == "progress":
                yield shaped(Progress, told.params)

    def _subscribed(self) -> dict[str, Any]:
        """The status, and events from now on; that is renewed with each look, since an agent that
        starts again has forgotten it."""
        status = self._call("subscribe", {"events": EVENTS, "min_ms": EVENT_INTERVAL_MS})
        self._link.see_boot(str(status.get("boot")))
        return status

    def _wait_out(self, error: HostError, patience_s: float) -> None:
        """Until the terminal answers again; `error` when it does not."""
        if isinstance(error, LineLost):
            self._link.reconnect(error, patience_s)
        elif patience_s <= 0:
            raise error
        else:
            self._link.say(WireEvent("waiting", error.message))

    # Its end

    def _whole_outcome(self) -> Outcome:
        """The command's own object; where this line may not read it, the short one of `result`."""
        try:
            whole = Outcome(read_json(self._link, f"result/{self.number}"))
        except AgentRefused as error:
            if error.kind not in ("NO_SUCH", "NOT_ALLOWED"):
                raise
            whole = self._short_outcome()
        return whole if self.reads_only else self._with_may_start(whole)

    def _short_outcome(self) -> Outcome:
        assert self._ended is not None
        short = dict(self._ended.get("outcome") or {})
        code, message = short.pop("code", None), short.pop("message", "")
        if code is not None:
            short["error"] = {"code": code, "message": message}
        return Outcome(short)

    def _with_may_start(self, outcome: Outcome) -> Outcome:
        """As the command on the terminal has it, which asks for it last."""
        if "app_may_start" not in outcome:
            outcome["app_may_start"] = self._link.call("status")["app_may_start"]
            if not outcome["app_may_start"]:
                outcome["app_must_not_start_because"] = "see status"
        return outcome


_AT_REST = ("idle", "held")
