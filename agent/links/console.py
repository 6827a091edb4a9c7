"""The technician's console: a typed line becomes a call, and its result becomes lines.

It knows no right of its own: each call goes to the same judge as a machine's. What it adds is for
people: before a command changes something it says what it understood and asks for a number made
from exactly that, so that noise on the line cannot start what nobody meant.
"""

from __future__ import annotations

from agent import aio
from agent.links import console_text as texts
from agent.links.asking import NOT_STARTED, Asking, new_op
from agent.links.commands import ALLOWED, COMMANDS, TypingError, parse, split
from agent.links.commands import canonical as canonical  # for whoever judges the same text
from agent.links.console_tables import TABLES
from agent.links.editor import PROMPT
from agent.links.methods import METHODS
from agent.links.mute import Mute
from agent.links.pager import Pager
from agent.links.screen import Screen
from agent.links.watching import Following
from agent.links.wire import RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any, Callable, Protocol

    from agent.links.commands import Command
    from agent.links.screen import Call

    class Facts(Protocol):
        """What is so now, kept in memory by the daemon."""

        def banner(self) -> dict[str, Any]:
            """model, serial, agent, schema, target, pending, storage, unsettled, open."""


MORE = "-- more -- "
# A report is made in a process of its own; on a slow terminal with much data it takes its time.
WAIT_LOOK_MS = 500
WAIT_LOOKS = 60


class Console:
    """One person's end of a line. The link feeds it whole lines, one at a time."""

    __slots__ = (
        "_asking",
        "_facts",
        "_following",
        "_greeted",
        "_pager",
        "_screen",
        "_waiting",
        "mute",
    )

    def __init__(
        self,
        call: Call,
        out: Callable[[str], None],
        facts: Facts,
        now_ms: Callable[[], int] = aio.ticks,
    ) -> None:
        self._screen = Screen(call, out, now_ms)
        self._facts = facts
        self.mute = Mute()
        self.hang_up()

    def hang_up(self) -> None:
        """The person is gone: whoever comes next is greeted and finds no question open."""
        self._greeted = False
        self._pager: Pager | None = None
        self._waiting: aio.Task | None = None
        self._asking = Asking(self._screen)
        self._following = Following(self._screen, self.prompt)

    @property
    def greeted(self) -> bool:
        """Whether the banner was shown to whoever is there now."""
        return self._greeted

    def first_enter(self) -> None:
        """Greet, once; until somebody presses Enter nothing is printed on the line."""
        if not self._greeted:
            self._greeted = True
            self._screen.say(*texts.banner(self._facts.banner()))

    def prompt(self) -> str:
        """What the link prints when a line or an interrupt is done; "" where nothing is awaited."""
        silent = self._asking.is_open() or self._following.is_on() or self._waiting
        if not self._greeted or silent or self.mute.is_on(self._screen.now_ms()):
            return ""
        return MORE if self._pager else PROMPT

    def complete(self, typed: str) -> list[str]:
        """The commands that begin with what is typed; none once there is a blank."""
        if self._asking.is_open() or self._pager or not typed:
            return []
        return [name for name in COMMANDS if name.startswith(typed)]

    async def line(self, text: str) -> None:
        """Do one typed line to its end; an answer to a question is a line, too."""
        self.first_enter()
        now = self._screen.now_ms()
        if self.mute.is_on(now):
            self.mute.feed(now)
        elif self._asking.is_open():
            await self._asking.answer(text)
        elif self._pager is not None and text.strip().lower() in ("", "q"):
            await self._turn(text)
        elif text.strip():
            self._leave_list()
            await self._command(text)

    async def interrupt(self) -> None:
        """Ctrl-C: leave what is being shown or asked. Never cancels work: noise can make a 0x03."""
        if not self._greeted or self.mute.is_on(self._screen.now_ms()):
            return
        self._leave_list()
        if self._following.is_on():
            await self._following.leave()
        else:
            self._screen.say("^C")
        if self._asking.leave():
            self._screen.say(NOT_STARTED)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """A notification came; while `watch` is on it may become a line."""
        self._following.notify(method, params)

    def stray(self) -> None:
        """A line that looks like a machine's and is no whole frame. It is never executed."""
        now = self._screen.now_ms()
        if self.mute.is_on(now):
            self.mute.feed(now)
        else:
            self._unknown("machine frame without RS or with bad checksum; it was not run")

    # ---- Lines

    async def _command(self, text: str) -> None:
        try:
            command, words, as_json = split(text)
            params = parse(command, words)
        except TypingError as error:
            self._unknown(str(error))
            return
        self.mute.known()
        await self._patiently(lambda: self._do(command, params, as_json), as_json)

    async def _patiently(self, work: Callable[[], Awaitable[None]], as_json: bool) -> None:
        """Do it; where a report is still being made go on asking for it, but keep the line free.

        Only for what changes nothing before it is asked for by its number.
        """
        if not await self._screen.guarded(work(), as_json, patient=True):
            return
        if await self._is_run_on():  # nothing is read meanwhile, however long it takes
            await self._screen.guarded(work(), as_json)
            return
        if not as_json:
            self._screen.say("it is being worked out; Ctrl-C leaves it")
        self._waiting = aio.create_task(self._wait(work, as_json))

    async def _is_run_on(self) -> bool:
        try:
            return (await self._screen.call("status", {})).get("run") is not None
        except RemoteError:
            return False

    async def _wait(self, work: Callable[[], Awaitable[None]], as_json: bool) -> None:
        for look in range(1, WAIT_LOOKS + 1):
            await aio.sleep_ms(WAIT_LOOK_MS)
            if not await self._screen.guarded(work(), as_json, patient=look < WAIT_LOOKS):
                break
        self._waiting = None
        self._screen.write(self.prompt())

    def _leave_list(self) -> None:
        """Nobody waits any more for what was to be shown."""
        waiting, self._waiting, self._pager = self._waiting, None, None
        if waiting is not None:
            waiting.cancel()

    def _unknown(self, why: str) -> None:
        self._screen.say(f"error: {why}")
        self.mute.unknown(self._screen.now_ms())

    async def _do(self, command: Command, params: dict[str, Any], as_json: bool) -> None:
        if command.confirmed:
            await self._asking.prepare(command.method, params, as_json)
        elif command.name == "help":
            await self._help(params.get("of"), as_json)
        elif command.name == "watch":
            await self._following.follow(params.get("run"), as_json)
        elif command.name == "challenge":
            await self._asking.challenge(params["command"], as_json)
        elif command.name == "code":
            await self._asking.code(params, as_json)
        else:
            await self._ask_daemon(command, params, as_json)

    async def _ask_daemon(self, command: Command, params: dict[str, Any], as_json: bool) -> None:
        """A command that needs no question: its result as lines, as a list, or as it is."""
        method = command.method
        if method == "hello":
            params = {"proto": [1], "client": "console"}
        elif METHODS[method].changes:
            params = {**params, "op": new_op()}
        result = await self._screen.call(method, params)
        if as_json:
            self._screen.say_json(result)
        elif command.name in TABLES:
            pager = Pager(method)
            pager.take(result)
            await self._print_page(pager)
        elif command.name in texts.TEXTS:
            self._screen.say(*texts.TEXTS[command.name](result))
        elif "run" in result:
            self._screen.say(*texts.started_lines(method, result))
        else:
            self._screen.say(*texts.figures(result))

    async def _help(self, name: str | None, as_json: bool) -> None:
        if as_json:
            method = COMMANDS[name].method if name else ""
            self._screen.say_json(
                await self._screen.call("describe", {"method": method} if method else {})
            )
        elif name:
            self._screen.say(*texts.command_lines(COMMANDS[name], ALLOWED))
        else:
            await self._print_page(Pager("help", texts.help_lines()))

    async def _turn(self, text: str) -> None:
        """Answer to "-- more --"."""
        pager, self._pager = self._pager, None
        if pager is not None and not text.strip():
            await self._patiently(lambda: self._print_page(pager), False)

    async def _print_page(self, pager: Pager) -> None:
        while pager.wants_more():
            pager.take(await self._screen.call(pager.method, {"cursor": pager.cursor}))
        self._screen.say(*pager.next_lines())
        self._pager = None if pager.is_done() else pager
