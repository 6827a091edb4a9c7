"""What an agent holds while it works, besides the data: lock file, watchdog, service manager.

A command holds it for one run. The daemon holds it for life, through many runs. Whoever feeds a
watchdog has seen work done, or knows that nothing is to be done.
"""

from __future__ import annotations

import os

from agent.edges import clock
from agent.edges.agentlock import AgentLock
from agent.edges.watchdog import Notifier, Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.core.terminal import Places
    from agent.edges.config import Config

KEEPALIVE_INTERVAL_MS = 500  # marks come by the hundred; two signs of life a second are enough


class Guard:
    """`stays` tells that the agent lives on after a run; `embedded` that it lives in another
    program, whose word READY is."""

    __slots__ = ("_config", "_fed_ms", "_notifier", "_period_ms", "_watchdog", "lock", "stays")

    def __init__(
        self, config: Config, places: Places, stays: bool = False, embedded: bool = False
    ) -> None:
        self.stays = stays
        self.lock = AgentLock(places.lock)
        self._config = config
        self._watchdog = Watchdog(None, None)
        self._notifier = Notifier(None if embedded else os.environ.get("NOTIFY_SOCKET"))
        self._period_ms = 0 if embedded else _period_ms()
        self._fed_ms = -KEEPALIVE_INTERVAL_MS

    def take(self) -> None:
        """Be the one agent of this terminal. Raises Busy. Only that one opens the watchdog: from
        then on it must be fed and, at the end, disarmed."""
        self.lock.take()
        if not self._watchdog.armed:
            config = self._config
            self._watchdog = Watchdog(config.watchdog_device, config.profile.watchdog_timeout_s)

    def begin(self) -> None:
        """Before a run. Raises Busy."""
        self.take()
        self.lock.begin_run()

    def feed(self) -> None:
        """There was progress, or there is nothing to do."""
        self._watchdog.feed()
        at = clock.steady_ms()
        rest_ms = min(KEEPALIVE_INTERVAL_MS, self._period_ms // 4)
        if self._period_ms and at - self._fed_ms >= rest_ms:
            self._fed_ms = at
            self._notifier.send("WATCHDOG=1")

    def interval_ms(self) -> int:
        """How often both must be fed at least: a third of the shorter period."""
        periods = [60_000]
        if self._period_ms:
            periods.append(self._period_ms)
        if self._watchdog.timeout_s is not None:
            periods.append(self._watchdog.timeout_s * 1000)
        return max(min(periods) // 3, 10)

    def say(self, text: str) -> None:
        """Tell the service manager."""
        self._notifier.send(text)

    def end(self, verdict: str) -> None:
        """After a run that came to a verdict."""
        if not self.stays:
            self._watchdog.close()
            self.say("READY=1\nSTATUS=" + verdict)
        self.let_go()

    def let_go(self) -> None:
        """The run is over, this way or that; an agent that stays keeps the rest."""
        self.lock.end_run()
        if not self.stays:
            self.close()

    def close(self) -> None:
        """The watchdog is disarmed, and the next agent may begin."""
        self._watchdog.close()
        self._notifier.close()
        self.lock.release()


def _period_ms() -> int:
    """Within which time the service manager wants a sign of life from this very process, or 0."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdigit()) or pid not in ("", str(os.getpid())):
        return 0
    return max(int(usec) // 1000, 1) if int(usec) else 0
