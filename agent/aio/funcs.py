"""Waiting with a limit and waiting for many.
Rules: a time-out is an error even if the inner task swallows its cancel; a task that is gathered
is awaited by nobody else.
"""

from __future__ import annotations

from .core import create_task
from .task import (
    CancelledError,
    Task,
    TimeoutError,
    current_task,
    last_awaited,
    loop,
    sleep,
    sleep_ms,
    wake,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, Callable

    from .task import Coro, Sleep


__all__ = ["gather", "wait_for", "wait_for_ms"]


class _Outcome:
    __slots__ = ("error", "known", "value", "wanted")

    def __init__(self) -> None:
        self.known = False
        self.wanted = True  # the waiter sleeps until its limit, and not for a reason of its own
        self.value: Any = None
        self.error: BaseException | None = None


async def _watch(task: Task, waiter: Task, outcome: _Outcome) -> None:
    try:
        outcome.value = await task
    except (CancelledError, Exception) as error:
        outcome.error = error
    outcome.known = True
    if not outcome.wanted or waiter.blocker is not None or waiter.entry is None:
        return
    # Cut the sleep short. One that is due keeps its place, one that was cancelled its cancel.
    if waiter.entry[0] > loop.ticks() and waiter.pending is None:
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
    finally:
        outcome.wanted = False
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


class _Gathering:
    """The wait of one `gather`: it goes on at the last end of its tasks, or at the first error."""

    __slots__ = ("error", "keep_errors", "left", "task")

    def __init__(self, task: Task, keep_errors: bool) -> None:
        self.task = task
        self.keep_errors = keep_errors
        self.left = 0
        self.error: BaseException | None = None

    def add(self, child: Task) -> None:
        if child.ended:
            child.retrieved = True
            self.note_error(child)
        elif child.waiters or child.gatherer is not None or last_awaited(child) is self.task:
            raise RuntimeError("can't gather")
        else:
            child.gatherer = self
            self.left += 1

    def note_error(self, child: Task) -> None:
        if not self.keep_errors and self.error is None:
            self.error = child.error

    def child_ended(self, child: Task) -> None:
        if self.task.blocker is not self:
            return  # awake already, by an error or a cancel
        self.left -= 1
        self.note_error(child)
        if self.error is not None or not self.left:
            wake(self.task)

    def let_go(self, children: list[Task]) -> list[Task]:
        """Answer those that still run; from now on they may be awaited again."""
        running = [child for child in children if child.gatherer is self]
        for child in running:
            child.gatherer = None
        return running

    def remove(self, task: Task) -> None:
        """It stands in no queue, so there is nothing to take it out of."""

    def __await__(self) -> Generator[None, None, None]:
        self.task.blocker = self
        yield


async def gather(*aws: Task | Coro[Any], return_exceptions: bool = False) -> list[Any]:
    """Await all of them; answer their values in the order of the arguments.

    The first error ends the wait and the others run on, unless errors are asked for as values.
    If this wait is cancelled, so are those that still run, but their ends are not awaited.
    RuntimeError for a task that somebody awaits or gathers already.
    """
    children = [aw if isinstance(aw, Task) else create_task(aw) for aw in aws]
    gathering = _Gathering(current_task(), return_exceptions)
    try:
        for child in children:
            gathering.add(child)
        if gathering.left and gathering.error is None:
            await gathering
    except CancelledError:
        for child in gathering.let_go(children):
            child.cancel()
        raise
    finally:
        gathering.let_go(children)
    if gathering.error is not None:
        raise gathering.error
    return [child.value if child.error is None else child.error for child in children]
