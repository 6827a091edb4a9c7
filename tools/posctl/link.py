"""The way to one terminal, which may be pulled and plugged in again: opened, greeted, kept up.

A conversation knows one open line. This knows the place, opens it anew when the line was lost, and
makes sure that it is still the same terminal before anything is asked of it.
"""

from __future__ import annotations

import time
from typing import Any, Callable

from agent import __version__
from posctl.conversation import Conversation, Counts, Notification, WireEvent
from posctl.faults import (
    AgentRefused,
    HostError,
    LineLost,
    NotOurAgent,
    OtherTerminal,
    PortError,
    TooNoisy,
    Unheard,
    WrongProtocol,
)
from posctl.lines import Line, Place, open_line
from posctl.shapes import Hello, shaped

PROTOS = (1,)
RECONNECT_S = 10.0  # for a call in passing; whoever follows a run waits longer
# Eight sends of a long reply fail now and then on a line that can be worked with: of 900 bytes at
# two damaged in a thousand 15 of 100 come whole. So a request is asked again while it is damaged.
ROUNDS_MAX = 8
ROUNDS_OF_HELLO_MAX = 3  # it is short, and who is there is not known yet
_LOOK_S = 0.2  # between two looks for a port that is gone
_WAITED_FOR = ("missing", "gone", "busy", "denied", "kind", "other")


class Link:
    """One terminal's line. Nothing is opened before `open`."""

    def __init__(
        self,
        place: Place,
        told: Callable[[WireEvent], None],
        on_text: Callable[[bytes], None],
        answer_s: float | None,
        sends_max: int | None,
    ) -> None:
        self.place = place
        self.counts = Counts()
        self.hello: Hello
        self._told = told
        self._on_text = on_text
        self._answer_s = answer_s
        self._sends_max = sends_max
        self._talk: Conversation | None = None
        self._is_wanted = False  # lost by others it is opened again, closed by us it is not

    def open(self) -> None:
        """Open the line and greet the agent. Raises PortError, Unheard, NotOurAgent, WrongProtocol,
        with the line closed."""
        self._talk = self._conversation(open_line(self.place))
        try:
            self.hello = self._greeted(self._talk)
        except BaseException:
            self._hang_up()
            raise
        self._is_wanted = True

    def close(self) -> None:
        """Hang up for good."""
        self._is_wanted = False
        self._hang_up()

    def _hang_up(self) -> None:
        if self._talk is not None:
            self._talk.line.close()
            self._talk = None

    def hand_over(self) -> Line:
        """The line itself, which from now on is the caller's."""
        talk = self._conversing()
        self._talk, self._is_wanted = None, False
        return talk.line

    def call(
        self, method: str, params: dict[str, Any] | None = None, patience_s: float = RECONNECT_S
    ) -> dict[str, Any]:
        """The result of one call, over a line that is lost and found again meanwhile: whatever
        changes something has an op, so a repeat is the same call. `patience_s` bounds how long a
        lost line is waited for; with 0 LineLost is raised at once."""
        while True:
            try:
                return self._heard(self._conversing(), method, params, ROUNDS_MAX)
            except LineLost as error:
                if patience_s <= 0:
                    raise
                self.reconnect(error, patience_s)

    def _heard(
        self, talk: Conversation, method: str, params: dict[str, Any] | None, rounds_max: int
    ) -> dict[str, Any]:
        """The result of a call that is asked again as long as its frames come damaged."""
        rounds = 1 if self._sends_max is not None else rounds_max
        while True:
            rounds -= 1
            try:
                return talk.call(method, params)
            except TooNoisy as error:
                if not rounds or error.is_rate:
                    raise

    def say(self, event: WireEvent) -> None:
        """Let whoever wants to know know."""
        self._told(event)

    def tell(self, method: str) -> None:
        """Say something whose reply nobody waits for, if there is a line."""
        if self._talk is not None:
            try:
                self._talk.tell(method)
            except LineLost:
                pass

    def listen(self, wait_s: float) -> Notification | None:
        """The next event, or None. Raises LineLost."""
        return self._conversing().listen(wait_s)

    def reconnect(self, why: HostError, patience_s: float) -> None:
        """Wait until the same terminal answers again. Raises `why` when it does not in that time,
        and OtherTerminal at once when another one does."""
        self._hang_up()
        self._told(WireEvent("lost", why.message))
        give_up_at = time.monotonic() + patience_s
        while not self._opened_again():
            if time.monotonic() >= give_up_at:
                raise why
            time.sleep(_LOOK_S)
        self.counts.reconnects += 1
        self._told(WireEvent("reconnected", f"{self.place.path} is there again"))

    def _opened_again(self) -> bool:
        was = self.hello
        try:
            self.open()
        except PortError as error:
            if error.why not in _WAITED_FOR:
                raise
            return False
        except (Unheard, NotOurAgent):  # a terminal that starts says this and that before
            return False
        except AgentRefused as error:  # its connections are all taken, for now
            if error.retry != "later":
                raise
            return False
        try:
            self._check_same(was)
        except OtherTerminal:
            self._hang_up()
            raise
        return True

    def see_boot(self, boot: str) -> None:
        """Told which start of the agent answers now: after another one it is greeted again, since
        it may be another terminal on the same cable. Raises OtherTerminal."""
        if boot != self.hello.boot:
            was = self.hello
            self.hello = self._greeted(self._conversing())
            self._check_same(was)

    def _check_same(self, was: Hello) -> None:
        now = self.hello
        if (now.serial, now.model) != (was.serial, was.model):
            self.hello = was
            raise OtherTerminal(
                f"{self.place.path} has another terminal now: {now.model} {now.serial}, "
                f"not {was.model} {was.serial}"
            )
        if now.boot != was.boot:
            self._told(WireEvent("restarted", "the agent has started again"))

    def _conversing(self) -> Conversation:
        if not self._is_wanted:
            raise HostError(f"{self.place.path} was closed; connect again")
        if self._talk is None:
            raise LineLost(f"{self.place.path} is gone")
        return self._talk

    def _conversation(self, line: Line) -> Conversation:
        return Conversation(
            line, self._told, self._on_text, self.counts, self._answer_s, self._sends_max
        )

    def _greeted(self, talk: Conversation) -> Hello:
        params = {"proto": list(PROTOS), "client": f"posctl/{__version__}"}
        try:
            said = self._heard(talk, "hello", params, ROUNDS_OF_HELLO_MAX)
        except AgentRefused as error:
            raise self._not_greeted(error) from error
        if said.get("proto") not in PROTOS:
            raise self._wrong_protocol(said.get("proto"))
        if not (isinstance(said.get("agent"), str) and isinstance(said.get("boot"), str)):
            raise NotOurAgent(f"what answers at {self.place.path} is no posagent")
        return shaped(Hello, said)

    def _not_greeted(self, error: AgentRefused) -> HostError:
        if error.data.get("param") == "proto":
            return self._wrong_protocol(error.data.get("allowed"))
        if error.kind in ("METHOD", "REQUEST", "PARSE") or "kind" not in error.data:
            return NotOurAgent(
                f"what answers at {self.place.path} is no posagent: {error.message[:80]}"
            )
        return error

    def _wrong_protocol(self, theirs: Any) -> WrongProtocol:
        ours = ", ".join(map(str, PROTOS))
        return WrongProtocol(
            f"the agent at {self.place.path} speaks protocol {theirs}, this posctl "
            f"({__version__}) {ours}; use the posctl of the agent's release"
        )
