"""One run as `watch` shows it: which notifications become a line, and when the run is over.

A line is appended for every tenth of the way and every few seconds; nothing is overwritten, so
what was on the screen stays readable in a log of the session.
"""

from __future__ import annotations

from agent.core import states
from agent.links.console_text import clean, span

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
        place = (params.get("state"), params.get("step"), percent // 10)
        if place == self._place and now_ms - self._said_ms < LINE_MS:
            return []
        self._place, self._said_ms = place, now_ms
        words = [clean(word) for word in (params.get("state"), params.get("step")) if word]
        line = f"[{percent:3d}%] {' '.join(words)}"
        if total:
            line += f"  {done}/{total}"
        eta = whole(params.get("eta_s"), -1)
        return [line + (f", about {span(eta)} left" if eta >= 0 else "")]


def whole(value: Any, otherwise: int = 0) -> int:
    """A whole number that is not negative, or what stands for one that is not known."""
    return value if isinstance(value, int) and value >= 0 else otherwise
