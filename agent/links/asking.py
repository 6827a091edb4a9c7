"""What changes something: said as it was understood, asked for by a number, and only then started.

The number is made from the very text that the service desk signs and the daemon runs. Where a line
may not do it, what to read to the desk is told, and its code leads to the same question.
"""

from __future__ import annotations

import binascii
import os

from agent.links import console_text as texts
from agent.links.commands import COMMANDS, TypingError, canonical, understood
from agent.links.console_tables import has_steps, refusal_lines
from agent.links.methods import METHODS, check_params
from agent.links.wire import RemoteError, remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.links.screen import Screen

ASK_MS_MAX = 300_000  # who answers after this long is somebody else, or a line full of noise
NOT_STARTED = "not started; nothing was changed"


class _Asked:
    """A command that waits for its number."""

    __slots__ = ("as_json", "asked_ms", "method", "number", "params")

    def __init__(self, method: str, params: dict[str, Any], as_json: bool, now_ms: int) -> None:
        self.method = method
        self.params = params
        self.number = number_of(canonical(method, params))
        self.as_json = as_json
        self.asked_ms = now_ms


class Asking:
    """The question that is open on this line, and the code that was accepted on it."""

    __slots__ = ("_accepted", "_asked", "_screen")

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._asked: _Asked | None = None
        self._accepted = ""  # the command that a service code was accepted for

    def is_open(self) -> bool:
        """Whether a number is awaited."""
        return self._asked is not None

    def leave(self) -> bool:
        """Ctrl-C: ask no more; whether there was a question."""
        asked, self._asked = self._asked, None
        return asked is not None

    async def prepare(self, method: str, params: dict[str, Any], as_json: bool) -> None:
        """Say what a command will do and ask for its number, or send to the service desk."""
        plan = None
        if method == "migrate":
            plan = await self._planned(params)
            if plan is None:
                return
        check_params(METHODS[method], {**params, "op": "not-yet-made"})
        if await self._needs_code(method, params):
            if as_json:
                raise remote("NOT_ALLOWED", f"{method} needs a service code", need="admin")
            await self._send_to_desk(method, params, None)
        else:
            self._ask(method, params, texts.sentence(method, params, plan), as_json)

    async def _planned(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """Fill plan and target in from the plan as it is now; None where nothing is to be run."""
        plan = await self._screen.call("plan", {})
        to = plan.get("to_version")
        # A plan that was given up is tried again when somebody asks, which is what this is.
        refusals = [one for one in plan.get("refusals") or [] if one.get("cause") != "GIVEN_UP"]
        consented = params.get("despite_unsettled") and all(
            one.get("code") == "UNSETTLED" for one in refusals
        )
        if refusals and not consented:
            self._screen.say(*refusal_lines(plan), NOT_STARTED)
        elif not has_steps(plan):
            self._screen.say(f"nothing to do: the data is at schema {texts.clean(to)}")
        elif params.get("to", to) != to:
            self._screen.say(f"error: TO must be {to}, where the installed migrations lead")
        elif params.get("plan", plan["plan"]) != plan["plan"]:
            self._screen.say(
                f"error: ID must be {texts.clean(plan['plan'])}, the plan as it is now"
            )
        else:
            params.update(to=to, plan=plan["plan"])
            return plan
        return None

    async def _needs_code(self, method: str, params: dict[str, Any]) -> bool:
        """Whether this line's level is too low and no code was accepted for just this command.

        Only to ask the desk before the number and not after it: the judge decides at the call.
        """
        needs_admin = METHODS[method].level == "admin" or params.get("despite_unsettled")
        if not needs_admin or canonical(method, params) == self._accepted:
            return False
        hello = await self._screen.call("hello", {"proto": [1], "client": "console"})
        return hello.get("level") not in ("admin", None)

    def _ask(self, method: str, params: dict[str, Any], sentence: str, as_json: bool) -> None:
        self._asked = _Asked(method, params, as_json, self._screen.now_ms())
        question = f"Type {self._asked.number} to start: "
        # A number that the edge of the screen cuts in two is typed wrongly.
        room = texts.LINE_CHARS_MAX - len(sentence) - len(question) - len(self._asked.number)
        between = " " if room >= 1 else "\n"
        self._screen.write(f"{sentence}{between}{question}")

    async def answer(self, text: str) -> None:
        """Start what was asked for when `text` is exactly its number."""
        asked, self._asked = self._asked, None
        assert asked is not None
        if text != asked.number or self._screen.now_ms() - asked.asked_ms > ASK_MS_MAX:
            self._screen.say(NOT_STARTED)
            return
        self._accepted = ""
        await self._screen.guarded(self._start(asked), asked.as_json)

    async def _start(self, asked: _Asked) -> None:
        try:
            result = await self._screen.call(asked.method, {**asked.params, "op": new_op()})
        except RemoteError as error:
            if asked.as_json or not _wants_code(error):
                raise
            await self._send_to_desk(asked.method, asked.params, error)
            return
        if asked.as_json:
            self._screen.say_json(result)
        else:
            self._screen.say(*texts.started_lines(asked.method, result))

    # ---- The service desk

    async def _send_to_desk(
        self, method: str, params: dict[str, Any], error: RemoteError | None
    ) -> None:
        """The refusal, and what to read to the desk; counts that the refusal names go along."""
        lost = error.data.get("discard") if error is not None else None
        if method == "restore" and isinstance(lost, str) and "discard" not in params:
            params = {**params, "discard": lost}
        self._screen.say(f"refused: {method} needs a service code; nothing was changed")
        try:
            await self.challenge(canonical(method, params), False)
        except RemoteError as refused:
            self._screen.say(f"  {texts.clean(refused.message)}")

    async def challenge(self, command: str, as_json: bool) -> None:
        """Tell what to read to the service desk for a command."""
        challenge = await self._screen.call("challenge", {"command": command})
        if as_json:
            self._screen.say_json(challenge)
            return
        lost = _discarded(challenge.get("command"))
        if lost:
            self._screen.say(f"  would discard: {lost}")
        self._screen.say(*texts.desk_lines(challenge))

    async def code(self, params: dict[str, Any], as_json: bool) -> None:
        """A code was read out; what it is good for is taken from the answer, not from memory."""
        result = await self._screen.call("code", params)
        if as_json:
            self._screen.say_json(result)
        command = str(result.get("command"))
        sentence = f"accepted for exactly one command: {texts.clean(command)}."
        try:
            method, wanted = understood(command)
        except TypingError:
            method, wanted = "", {}
        if method in COMMANDS and COMMANDS[method].confirmed:
            self._accepted = command
            self._ask(method, wanted, sentence, as_json)
        else:
            self._screen.say(sentence)


def number_of(command: str) -> str:
    """The four digits that start a command: an echo of what was understood, not a secret."""
    return f"{binascii.crc32(command.encode()) % 10_000:04d}"


def new_op() -> str:
    """A key for one call, so that the daemon can tell its repeat from another."""
    return "con-" + os.urandom(6).hex()


def _wants_code(error: RemoteError) -> bool:
    return error.kind == "NOT_ALLOWED" and error.data.get("need") == "admin"


def _discarded(command: Any) -> str:
    """What a restore gives up, of its canonical text; "" where it gives up nothing."""
    try:
        _, params = understood(str(command))
    except TypingError:
        return ""
    return texts.losses(params["discard"]) if "discard" in params else ""
