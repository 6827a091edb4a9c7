"""Waiting with a limit. `gather` comes here too once something needs it.
Rule: a time-out is an error even if the inner task swallows its cancel.
"""

from __future__ import annotations

from .core import create_task
from .task import CancelledError, Task, TimeoutError, current_task, loop, sleep, sleep_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .task import Coro, Sleep


class _Outcome:
    __slots__ = ("error", "known", "value")

    def __init__(self) -> None:
        self.known = False
        self.value: Any = None
        self.error: BaseException | None = None


async def _watch(task: Task, waiter: Task, outcome: _Outcome) -> None:
    try:
        outcome.value = await task
    except (CancelledError, Exception) as error:
        outcome.error = error
    outcome.known = True
    # Still asleep, and not on its way because somebody cancelled it: cut the sleep short.
    if waiter.blocker is None and waiter.entry is not None and waiter.pending is None:
        loop.queue.remove(waiter)
        loop.queue.push(waiter)


async def wait_for(
    aw: Task | Coro[Any],
    timeout: float | None,
    sleep: Callable[[Any], Sleep] = sleep,
) -> Any:
    """Await with a limit in seconds; None waits for ever.

    At the limit the inner task is cancelled, its end awaited, and TimeoutError raised. If this
    wait is cancelled, so is the inner task, but its end is not awaited.
    """
    task = aw if isinstance(aw, Task) else create_task(aw)
    if timeout is None:
        return await task
    outcome = _Outcome()
    watcher = create_task(_watch(task, current_task(), outcome))
    try:
        await sleep(timeout)
    except CancelledError:
        task.cancel()
        raise
    if not outcome.known:
        task.cancel()
        await watcher
        raise TimeoutError
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


async def wait_for_ms(aw: Task | Coro[Any], timeout: int | None) -> Any:
    """`wait_for` with the limit in milliseconds."""
    return await wait_for(aw, timeout, sleep_ms)
