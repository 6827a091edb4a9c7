"""The technician's console: a typed line becomes a call, and its result becomes lines.

It knows no right of its own: each call goes to the same judge as a machine's. What it adds is for
people: before a command changes something it says what it understood and asks for a number made
from exactly that, so that noise on the line cannot start what nobody meant.
"""

from __future__ import annotations

import binascii
import os

from agent import aio
from agent.ground.codec import encode_line
from agent.links import console_text as texts
from agent.links.commands import ALLOWED, COMMANDS, TypingError, parse, split, understood
from agent.links.commands import canonical as canonical  # for whoever judges the same text
from agent.links.console_tables import TABLES, has_steps, refusal_lines
from agent.links.editor import PROMPT
from agent.links.methods import METHODS, check_params
from agent.links.mute import Mute
from agent.links.pager import Pager
from agent.links.watching import Watch
from agent.links.wire import RemoteError, remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any, Callable, Protocol

    from agent.links.commands import Command

    class Facts(Protocol):
        """What is so now, kept in memory by the daemon."""

        def banner(self) -> dict[str, Any]:
            """model, serial, agent, schema, target, pending, storage, unsettled, open."""

    Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

MORE = "-- more --"
ASK_MS_MAX = 300_000  # who answers after this long is somebody else, or a line full of noise
WATCH_MS = 1_000  # slower, and a tenth of a quick run would be missed
RENEW_MS = 300_000  # half the time after which the daemon takes a silent subscriber for gone
VERDICT_LOOKS = 50
VERDICT_LOOK_MS = 100

# Errors that are a "no" to somebody who may ask again; the others are faults.
_REFUSALS = (
    *("BUSY", "NOT_ALLOWED", "CODE_WRONG", "LOCKED", "OP_REUSED", "PLAN_CHANGED", "UNSETTLED"),
    *("STORAGE_ERROR", "SCHEMA_TOO_NEW", "BACKUP_CORRUPT", "REFUSED"),
)
_NOT_STARTED = "not started; nothing was changed"


class _Asked:
    """A command that waits for its number."""

    __slots__ = ("as_json", "asked_ms", "method", "number", "params")

    def __init__(self, method: str, params: dict[str, Any], as_json: bool, now_ms: int) -> None:
        self.method = method
        self.params = params
        self.number = number_of(canonical(method, params))
        self.as_json = as_json
        self.asked_ms = now_ms


class Console:
    """One person's end of a line. The link feeds it whole lines, one at a time."""

    __slots__ = (
        "_accepted",
        "_asked",
        "_facts",
        "_greeted",
        "_judge",
        "_now_ms",
        "_one_call",
        "_out",
        "_pager",
        "_subscribed_ms",
        "_watch",
        "mute",
    )

    def __init__(
        self,
        call: Call,
        out: Callable[[str], None],
        facts: Facts,
        now_ms: Callable[[], int] = aio.ticks,
    ) -> None:
        self._judge = call
        self._one_call = aio.Lock()
        self._out = out
        self._facts = facts
        self._now_ms = now_ms
        self.mute = Mute()
        self.hang_up()

    def hang_up(self) -> None:
        """The person is gone: whoever comes next is greeted and finds no question open."""
        self._greeted = False
        self._accepted = ""  # the command that a service code was accepted for
        self._asked: _Asked | None = None
        self._pager: Pager | None = None
        self._watch: Watch | None = None
        self._subscribed_ms = 0

    @property
    def greeted(self) -> bool:
        """Whether the banner was shown to whoever is there now."""
        return self._greeted

    def first_enter(self) -> None:
        """Greet, once; until somebody presses Enter nothing is printed on the line."""
        if not self._greeted:
            self._greeted = True
            self._say(*texts.banner(self._facts.banner()))

    def prompt(self) -> str:
        """What the link prints when a line or an interrupt is done; "" where nothing is awaited."""
        silent = not self._greeted or self._asked or self._watch
        if silent or self.mute.is_on(self._now_ms()):
            return ""
        return MORE if self._pager else PROMPT

    def complete(self, typed: str) -> list[str]:
        """The commands that begin with what is typed; none once there is a blank."""
        if self._asked or self._pager or not typed:
            return []
        return [name for name in COMMANDS if name.startswith(typed)]

    async def line(self, text: str) -> None:
        """Do one typed line to its end; an answer to a question is a line, too."""
        self.first_enter()
        now = self._now_ms()
        if self.mute.is_on(now):
            self.mute.feed(now)
        elif self._asked is not None:
            await self._answer(text, now)
        elif self._pager is not None and text.strip().lower() in ("", "q"):
            await self._turn(text)
        elif text.strip():
            self._pager = None
            await self._command(text, now)

    async def interrupt(self) -> None:
        """Ctrl-C: leave what is being shown or asked. Never cancels work: noise can make a 0x03."""
        if not self._greeted or self.mute.is_on(self._now_ms()):
            return
        watch, asked = self._watch, self._asked
        self._asked = self._pager = self._watch = None
        if watch is not None:
            self._say(f"^C detached; run {watch.run} continues")
            await self._unsubscribe()
        elif asked is not None:
            self._say("^C", _NOT_STARTED)
        else:
            self._say("^C")

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """A notification came; while `watch` is on it may become a line."""
        watch = self._watch
        if watch is None:
            return
        lines = watch.lines(method, params, self._now_ms())
        if watch.as_json:
            lines = [encode_line({"method": method, "params": params})]
        self._say(*lines)
        if watch.is_over:
            self._watch = None
            aio.create_task(self._tell_end(watch))
        elif self._now_ms() - self._subscribed_ms >= RENEW_MS:
            aio.create_task(self._shown(self._subscribe(), watch.as_json))

    def stray(self) -> None:
        """A line that looks like a machine's and is no whole frame. It is never executed."""
        now = self._now_ms()
        if self.mute.is_on(now):
            self.mute.feed(now)
        else:
            self._unknown("machine frame without RS or with bad checksum; it was not run")

    # ---- Lines

    async def _command(self, text: str, now_ms: int) -> None:
        try:
            command, words, as_json = split(text)
            params = parse(command, words)
        except TypingError as error:
            self._unknown(str(error))
            return
        self.mute.known()
        await self._shown(self._do(command, params, as_json), as_json)

    def _unknown(self, why: str) -> None:
        self._say(f"error: {why}")
        self.mute.unknown(self._now_ms())

    async def _do(self, command: Command, params: dict[str, Any], as_json: bool) -> None:
        if command.confirmed:
            await self._prepare(command.method, params, as_json)
        elif command.name == "help":
            await self._help(params.get("of"), as_json)
        elif command.name == "watch":
            await self._follow(params.get("run"), as_json)
        elif command.name == "challenge":
            await self._challenge(params["command"], as_json)
        elif command.name == "code":
            await self._code(params, as_json)
        else:
            await self._ask_daemon(command, params, as_json)

    async def _ask_daemon(self, command: Command, params: dict[str, Any], as_json: bool) -> None:
        """A command that needs no question: its result as lines, as a list, or as it is."""
        method = command.method
        if method == "hello":
            params = {"proto": [1], "client": "console"}
        elif METHODS[method].changes:
            params = {**params, "op": new_op()}
        result = await self._call(method, params)
        if as_json:
            self._say_json(result)
        elif command.name in TABLES:
            pager = Pager(method)
            pager.take(result)
            await self._print_page(pager)
        elif command.name in texts.TEXTS:
            self._say(*texts.TEXTS[command.name](result))
        elif "run" in result:
            self._say(*texts.started_lines(method, result))
        else:
            self._say(*texts.figures(result))

    async def _help(self, name: str | None, as_json: bool) -> None:
        if as_json:
            method = COMMANDS[name].method if name else ""
            self._say_json(await self._call("describe", {"method": method} if method else {}))
        elif name:
            self._say(*texts.command_lines(COMMANDS[name], ALLOWED))
        else:
            await self._print_page(Pager("help", texts.help_lines()))

    # ---- What changes something: understood, asked, started

    async def _prepare(self, method: str, params: dict[str, Any], as_json: bool) -> None:
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
        plan = await self._call("plan", {})
        to = plan.get("to_version")
        refusals = plan.get("refusals") or []
        consented = params.get("despite_unsettled") and all(
            one.get("code") == "UNSETTLED" for one in refusals
        )
        if refusals and not consented:
            self._say(*refusal_lines(plan), _NOT_STARTED)
        elif not has_steps(plan):
            self._say(f"nothing to do: the data is at schema {texts.clean(to)}")
        elif params.get("to", to) != to:
            self._say(f"error: TO must be {to}, where the installed migrations lead")
        elif params.get("plan", plan["plan"]) != plan["plan"]:
            self._say(f"error: ID must be {texts.clean(plan['plan'])}, the plan as it is now")
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
        hello = await self._call("hello", {"proto": [1], "client": "console"})
        return hello.get("level") not in ("admin", None)

    def _ask(self, method: str, params: dict[str, Any], sentence: str, as_json: bool) -> None:
        self._asked = _Asked(method, params, as_json, self._now_ms())
        self._out(f"{sentence} Type {self._asked.number} to start: ")

    async def _answer(self, text: str, now_ms: int) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None
        if text != asked.number or now_ms - asked.asked_ms > ASK_MS_MAX:
            self._say(_NOT_STARTED)
            return
        self._accepted = ""
        await self._shown(self._start(asked), asked.as_json)

    async def _start(self, asked: _Asked) -> None:
        try:
            result = await self._call(asked.method, {**asked.params, "op": new_op()})
        except RemoteError as error:
            if asked.as_json or not _wants_code(error):
                raise
            await self._send_to_desk(asked.method, asked.params, error)
            return
        if asked.as_json:
            self._say_json(result)
        else:
            self._say(*texts.started_lines(asked.method, result))

    # ---- The service desk

    async def _send_to_desk(
        self, method: str, params: dict[str, Any], error: RemoteError | None
    ) -> None:
        """The refusal, and what to read to the desk; counts that the refusal names go along."""
        lost = error.data.get("discard") if error is not None else None
        if method == "restore" and isinstance(lost, str) and "discard" not in params:
            params = {**params, "discard": lost}
        self._say(f"refused: {method} needs a service code; nothing was changed")
        try:
            await self._challenge(canonical(method, params), False)
        except RemoteError as refused:
            self._say(f"  {texts.clean(refused.message)}")

    async def _challenge(self, command: str, as_json: bool) -> None:
        challenge = await self._call("challenge", {"command": command})
        if as_json:
            self._say_json(challenge)
            return
        lost = _discarded(challenge.get("command"))
        if lost:
            self._say(f"  would discard: {lost}")
        self._say(*texts.desk_lines(challenge))

    async def _code(self, params: dict[str, Any], as_json: bool) -> None:
        """A code was read out; what it is good for is taken from the answer, not from memory."""
        result = await self._call("code", params)
        if as_json:
            self._say_json(result)
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
            self._say(sentence)

    # ---- Lists

    async def _turn(self, text: str) -> None:
        """Answer to "-- more --"."""
        pager = self._pager
        if pager is None or text.strip():
            self._pager = None
            return
        self._pager = None
        await self._shown(self._print_page(pager), False)

    async def _print_page(self, pager: Pager) -> None:
        while pager.wants_more():
            pager.take(await self._call(pager.method, {"cursor": pager.cursor}))
        self._say(*pager.next_lines())
        self._pager = None if pager.is_done() else pager

    # ---- Following a run

    async def _follow(self, run: int | None, as_json: bool) -> None:
        status = await self._subscribe()
        if as_json:
            self._say_json(status)
        running = status.get("run")
        if running is not None and run in (None, running):
            self._watch = Watch(running, as_json)
            self.notify("progress", status)
            return
        await self._unsubscribe()
        if run is None:
            self._say("no run is on")
        else:
            self._say(*texts.result_lines(await self._call("result", {"run": run})))

    async def _tell_end(self, watch: Watch) -> None:
        await self._unsubscribe()
        await self._shown(self._tell_verdict(watch), watch.as_json)
        self._out(self.prompt())

    async def _tell_verdict(self, watch: Watch) -> None:
        """The run has ended; its end is noted in the diary a moment later."""
        result = await self._call("result", {"run": watch.run})
        for _ in range(VERDICT_LOOKS):
            if result.get("state") != "running":
                break
            await aio.sleep_ms(VERDICT_LOOK_MS)
            result = await self._call("result", {"run": watch.run})
        if watch.as_json:
            self._say_json(result)
        else:
            self._say(*texts.result_lines(result))

    async def _subscribe(self) -> dict[str, Any]:
        self._subscribed_ms = self._now_ms()
        events = ["progress", "state", "alarm"]
        return await self._call("subscribe", {"events": events, "min_ms": WATCH_MS})

    async def _unsubscribe(self) -> None:
        try:
            await self._call("unsubscribe", {})
        except RemoteError:
            pass  # it was gone already; nothing more comes

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """One call at a time, as any peer: a run may end while a line is being done."""
        async with self._one_call:
            return await self._judge(method, params)

    # ---- Saying

    def _say(self, *lines: str) -> None:
        if lines:
            self._out("".join([line + "\n" for line in lines]))

    def _say_json(self, result: dict[str, Any]) -> None:
        self._say(encode_line(result))

    async def _shown(self, work: Awaitable[Any], as_json: bool) -> None:
        """Do it; what goes wrong is said and ends nothing but this one command."""
        try:
            await work
        except RemoteError as error:
            self._show_error(error, as_json)
        except Exception as error:
            text = f"a fault of the agent: {type(error).__name__}; report it"
            self._show_error(remote("INTERNAL", text, changed=None), as_json)

    def _show_error(self, error: RemoteError, as_json: bool) -> None:
        if as_json:
            self._say_json({"error": error.as_json()})
            return
        word = "refused" if error.kind in _REFUSALS else "error"
        text = texts.clean(error.message)
        if error.data.get("changed") is False and "nothing was changed" not in text:
            text += "; nothing was changed"
        self._say(f"{word}: {text}")
        if error.data.get("hint"):
            self._say(f"  {texts.clean(error.data['hint'])}")


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
