"""One run as `watch` shows it: which notifications become a line, and when the run is over.

A line is appended for every tenth of the way and every few seconds; nothing is overwritten, so
what was on the screen stays readable in a log of the session.
"""

from __future__ import annotations

from agent import aio
from agent.core import states
from agent.links.console_text import clean, result_lines, span
from agent.links.wire import RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.links.screen import Screen

WATCH_MS = 1_000  # slower, and a tenth of a quick run would be missed
RENEW_MS = 300_000  # half the time after which the daemon takes a silent subscriber for gone
VERDICT_LOOKS = 50
VERDICT_LOOK_MS = 100
LINE_MS = 5_000  # without a further tenth there is a line this often, as long as there is news


# Where a run leaves the terminal. `done` and `failed` are where an attempt leaves it: the one is
# followed by the run's end, the other perhaps by the next attempt.
ENDS = ("idle", states.HELD, "interrupted")


class Watch:
    """What was last shown of a run."""

    __slots__ = ("_place", "_said_ms", "as_json", "is_over", "run")

    def __init__(self, run: int, as_json: bool) -> None:
        self.run = run
        self.as_json = as_json
        self.is_over = False
        self._place: tuple[Any, ...] | None = None
        self._said_ms = 0

    def lines(self, method: str, params: dict[str, Any], now_ms: int) -> list[str]:
        """The lines that a notification is worth; sets `is_over` at the end of the run."""
        if method == "alarm":
            return [f"alarm: {clean(params.get('kind'))}: {clean(params.get('text'))}"]
        run = params.get("run")
        if not isinstance(run, int) or run < self.run:
            return []
        if run > self.run:
            self.is_over = True  # its last state was lost on the way: a later run is on already
            return []
        return self._state(params) if method == "state" else self._progress(params, now_ms)

    def _state(self, params: dict[str, Any]) -> list[str]:
        after, why = params.get("to"), params.get("why")
        self.is_over = after in ENDS
        if self.is_over or after in states.FINAL:
            return []  # the verdict says it better
        return [f"run {self.run}: {clean(after)}" + (f": {clean(why)}" if why else "")]

    def _progress(self, params: dict[str, Any], now_ms: int) -> list[str]:
        done, total = whole(params.get("done")), whole(params.get("total"))
        percent = min(done * 100 // total, 100) if total else 0
        place = (params.get("state"), params.get("step") or "", percent // 10)
        if place == self._place and now_ms - self._said_ms < LINE_MS:
            return []
        self._place, self._said_ms = place, now_ms
        words = [clean(word) for word in (params.get("state"), params.get("step")) if word]
        line = f"[{percent:3d}%] {' '.join(words)}"
        if total:
            line += f"  {done}/{total}"
        eta = whole(params.get("eta_s"), -1)
        return [line + (f", about {span(eta)} left" if eta >= 0 else "")]


class Following:
    """The run that is being watched on this line, if any."""

    __slots__ = ("_prompt", "_screen", "_subscribed_ms", "_watch")

    def __init__(self, screen: Screen, prompt: Callable[[], str]) -> None:
        self._screen = screen
        self._prompt = prompt
        self._watch: Watch | None = None
        self._subscribed_ms = 0

    def is_on(self) -> bool:
        """Whether lines come by themselves."""
        return self._watch is not None

    async def leave(self) -> None:
        """Ctrl-C: the run goes on."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._screen.say(f"^C detached; run {watch.run} continues")
            await self._unsubscribe()

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """A notification came: it may become a line, or be the end."""
        watch, now = self._watch, self._screen.now_ms()
        if watch is None:
            return
        lines = watch.lines(method, params, now)
        if watch.as_json:
            self._screen.say_json({"method": method, "params": params})
        else:
            self._screen.say(*lines)
        if watch.is_over:
            self._watch = None
            aio.create_task(self._tell_end(watch))
        elif now - self._subscribed_ms >= RENEW_MS:
            aio.create_task(self._screen.guarded(self._subscribe(), watch.as_json))

    async def follow(self, run: int | None, as_json: bool) -> None:
        """Begin with the run that is on; of another one only the end can be told."""
        status = await self._subscribe()
        if as_json:
            self._screen.say_json(status)
        running = status.get("run")
        if running is not None and run in (None, running):
            self._watch = Watch(running, as_json)
            self.notify("progress", status)
            return
        await self._unsubscribe()
        if run is None:
            self._screen.say("no run is on")
        else:
            self._screen.say(*result_lines(await self._screen.call("result", {"run": run})))

    async def _tell_end(self, watch: Watch) -> None:
        await self._unsubscribe()
        await self._screen.guarded(self._tell_verdict(watch), watch.as_json)
        self._screen.write(self._prompt())

    async def _tell_verdict(self, watch: Watch) -> None:
        """The run has ended; its end is noted in the diary a moment later."""
        result = await self._screen.call("result", {"run": watch.run})
        for _ in range(VERDICT_LOOKS):
            if result.get("state") != "running":
                break
            await aio.sleep_ms(VERDICT_LOOK_MS)
            result = await self._screen.call("result", {"run": watch.run})
        if watch.as_json:
            self._screen.say_json(result)
        else:
            self._screen.say(*result_lines(result))

    async def _subscribe(self) -> dict[str, Any]:
        self._subscribed_ms = self._screen.now_ms()
        events = ["progress", "state", "alarm"]
        return await self._screen.call("subscribe", {"events": events, "min_ms": WATCH_MS})

    async def _unsubscribe(self) -> None:
        try:
            await self._screen.call("unsubscribe", {})
        except RemoteError:
            pass  # it was gone already; nothing more comes


def whole(value: Any, otherwise: int = 0) -> int:
    """A whole number that is not negative, or what stands for one that is not known."""
    return value if isinstance(value, int) and value >= 0 else otherwise
