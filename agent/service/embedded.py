"""The agent inside another program: where it may run there, and how its answers come back.

Such a program has a loop, memory, children and perhaps the data open. What it does itself must not
be taken for the agent's, and what the agent does must leave it as it was.
"""

from __future__ import annotations

import os
import sys

from agent import aio
from agent.core.profile import longest_deadline_ms
from agent.edges import holders
from agent.edges.announce import Announcer
from agent.ground.errors import Busy, UsageError, revive
from agent.ground.limits import QUICK_CHECK_BYTES_PER_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.profile import Profile
    from agent.core.terminal import Places
    from agent.worker.job import Job

    Progress = Callable[[str, str, int, int], object]
    _Dict = dict[str, Any]
else:
    _Dict = dict

SUCCESSES = ("OK", "PARTIAL", "NOT_REQUIRED")
SHOWN_CHARS_MAX = 40  # of a wrong value, in a sentence
SHOWN_BITS_MAX = 100  # the digits of a longer number are not even worked out


class Answer(_Dict):
    """A dict whose keys can be read as attributes too, so that it goes as JSON wherever wanted."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name} in this answer") from None


async def run_embedded(job: Job, progress: Progress | None = None) -> Answer:
    """Do a job beside the other tasks of the program. Raises its error, the answer with it."""
    from agent.service.guard import Guard
    from agent.service.supervisor import Supervisor

    leave_open_file_alone(job.places)
    telling = _Telling(job.config.profile.progress_interval_ms, progress)
    guard = Guard(job.config, job.places, embedded=True)
    result = await Supervisor(job.config, telling, guard).work(job)
    answer = Answer(dict.fromkeys(("from_version", "to_version", "timestamp")))
    answer.update(result)
    answer["success"] = "error" not in result and result["verdict"] in SUCCESSES
    if "error" not in result:
        return answer
    error = revive(result["error"])
    error.result = answer
    raise error


class _Telling(Announcer):
    """Publishes status.json as every run does, prints nothing, and tells the caller of marks."""

    def __init__(self, interval_ms: int, tell: Progress | None) -> None:
        super().__init__(interval_ms, True)
        self._tell = tell

    def mark(self, state: str, store: str, done: int, total: int) -> None:
        """One mark of progress."""
        super().mark(state, store, done, total)
        if self._tell is not None:
            self._tell(state, store, done, total)


# Where it may run


def check_loop(verb: str) -> None:
    """Raise UsageError unless a task of `agent.aio` awaits us: another loop would wait for ever."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        try:
            aio.current_task()
            return
        except RuntimeError:
            pass
    raise UsageError(
        "MigrationManager runs on agent.aio, and this is no task of it: outside of asyncio call "
        "agent.aio.run(...) with the coroutine; a program on asyncio starts "
        f"`posagent {verb} --json` with asyncio.create_subprocess_exec. Nothing was touched",
        verb=verb,
    )


def leave_open_file_alone(places: Places) -> None:
    """Refuse to open pos.db a second time in one process: the close would drop SQLite's locks.

    While a run is on the lock on it may be our own, and no client is in.
    """
    from agent.edges.agentlock import run_is_on

    try:
        found = os.stat(places.pos)
    except OSError:
        return
    if holders.open_here((found.st_dev, found.st_ino)) and not run_is_on(places.lock):
        raise Busy(f"{places.pos} is open in this very program; close it there first")


def own_memory_bytes() -> int:
    """What the program around us holds for itself: a fork begins with all of it, and the profile's
    budget is for our own part."""
    resident, shared = holders.memory_of(os.getpid())
    return max(resident - shared, 0)


def quick_check_ms(places: Places) -> int:
    """How long SQLite may look through the whole file, during which it gives no mark."""
    try:
        return os.stat(places.pos).st_size * 1000 // QUICK_CHECK_BYTES_PER_S
    except OSError:
        return 0


# What callers say


def check_flag(name: str, value: object) -> None:
    """Raise UsageError unless an option is True or False."""
    if type(value) is not bool:
        raise UsageError(f"{name} must be True or False; it is {told(value)}")


def whole_number(name: str, value: object, low: int, high: int | None = None) -> int:
    """The value of an option that is a count; raises UsageError. True is no number here."""
    if type(value) is int and low <= value and (high is None or value <= high):
        return value
    bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"
    raise UsageError(f"{name} must be a whole number {bounds}; it is {told(value)}")


def told(value: object) -> str:
    """A wrong value as it may stand in a sentence."""
    if type(value) is int and value.bit_length() > SHOWN_BITS_MAX:
        return "a number of too many digits"
    plain = value is None or type(value) in (bool, int, float, str)
    return (ascii(value) if plain else type(value).__name__)[:SHOWN_CHARS_MAX]


def within_watchdog(profile: Profile, deadline_ms: int) -> int:
    """The worker must be killed before the watchdog would take the whole terminal (DP-5)."""
    longest = longest_deadline_ms(profile.watchdog_device, profile.watchdog_timeout_s)
    return deadline_ms if longest is None else min(deadline_ms, longest)
