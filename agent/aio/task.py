"""Tasks, their one queue and the ways a task gives up its turn: what MicroPython keeps in C.
Rules: the queue is in order of (millisecond, arrival); a task stands in one queue at a time.
"""

from __future__ import annotations

import time

from .ioqueue import IOQueue, kernel_poll

try:
    from _heapq import heapify, heappop, heappush
except ImportError:
    from heapq import heapify, heappop, heappush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from typing import Any, Callable, Protocol, TypeVar, Union

    from .ioqueue import PollFunction

    T = TypeVar("T")
    Coro = Union[Coroutine[Any, Any, T], Generator[Any, Any, T]]

    class Blocker(Protocol):
        """What a task waits on when it is not on the run queue."""

        def remove(self, task: Task) -> None: ...

    class Gatherer(Protocol):
        """What hears of a task's end in place of those who await it."""

        def child_ended(self, child: Task) -> None: ...


SLEEP_MS_MAX = (1 << 61) - 1  # MicroPython's own on a 64-bit machine; more is a slip of the pen


class CancelledError(BaseException):
    """Thrown into a task by `cancel`. No Exception: `except Exception` must not stop a cancel."""


class TimeoutError(Exception):
    """Raised by `wait_for`. No OSError: `except OSError` must not eat it."""


def real_ms() -> int:
    """Milliseconds of a clock that never goes back and knows no date."""
    return time.monotonic_ns() // 1_000_000


class TaskQueue:
    """Tasks in order of (millisecond, arrival).

    Taking one out of the middle walks the list: a daemon has dozens of tasks, not thousands.
    """

    __slots__ = ("arrivals", "heap")

    def __init__(self) -> None:
        self.heap: list[list[Any]] = []  # [when_ms, arrival, task]
        self.arrivals = 0

    def __len__(self) -> int:
        return len(self.heap)

    def peek(self) -> Task | None:
        return self.heap[0][2] if self.heap else None

    def push(self, task: Task, when_ms: int | None = None) -> None:
        self.arrivals += 1
        task.entry = [loop.ticks() if when_ms is None else when_ms, self.arrivals, task]
        heappush(self.heap, task.entry)

    def pop(self) -> Task:
        task: Task = heappop(self.heap)[2]
        task.entry = None
        return task

    def remove(self, task: Task) -> None:
        if task.entry is not None:
            self.heap.remove(task.entry)
            heapify(self.heap)
            task.entry = None


class LoopState:
    """What the one loop of the process knows."""

    __slots__ = ("alive", "asked", "flags", "io", "kernel", "queue", "running", "task", "ticks")

    def __init__(self) -> None:
        self.ticks: Callable[[], int] = real_ms
        self.kernel: PollFunction = kernel_poll
        self.task: Task | None = None  # the one whose turn it is
        self.running = False
        self.asked: dict[Task, None] | None = None  # in a shutdown: who was told to end
        self.forget()

    def forget(self) -> None:
        self.queue = TaskQueue()
        self.io = IOQueue()
        # Tasks not yet ended, oldest first: without it a shutdown would miss those that wait.
        self.alive: dict[Task, None] = {}
        self.flags: dict[Any, None] = {}  # the ThreadSafeFlags somebody waits on


class Task:
    """A coroutine on its way. Awaiting it gives its value or raises what it raised."""

    __slots__ = (
        "blocker",
        "coro",
        "ended",
        "entry",
        "error",
        "gatherer",
        "pending",
        "retrieved",
        "value",
        "waiters",
    )

    def __init__(self, coro: Coro[Any]) -> None:
        self.coro = coro
        self.entry: list[Any] | None = None  # its place in the one queue it stands in
        self.blocker: Blocker | None = None  # what it waits on, if not the run queue
        self.pending: BaseException | None = None  # thrown in at its next turn
        self.waiters: TaskQueue | None = None
        self.gatherer: Gatherer | None = None
        self.ended = False
        self.retrieved = False  # somebody has seen how it ended
        self.error: BaseException | None = None
        self.value: Any = None

    def done(self) -> bool:
        return self.ended

    def __await__(self) -> Generator[None, None, Any]:
        if not self.ended:
            # A task that waits for us could never go on, nor we; one that is gathered has its
            # one listener already.
            if last_awaited(self) is loop.task or self.gatherer is not None:
                raise RuntimeError("can't wait")
            if self.waiters is None:
                self.waiters = TaskQueue()
            stand_in(self.waiters, self)
            yield
        self.retrieved = True
        if self.error is not None:
            raise self.error
        return self.value

    __iter__ = __await__

    def cancel(self) -> bool:
        """Throw CancelledError in at the next turn; if it awaits another task, into that one.

        False if it has ended. RuntimeError if the task that asks would have to be cancelled.
        During a shutdown the second cancel of a task does nothing: whoever asks after the first,
        a `finally` is under way by then.
        """
        if self.ended:
            return False
        task = last_awaited(self)
        if task is loop.task:
            raise RuntimeError("can't cancel self")
        if loop.asked is not None:
            if task in loop.asked:
                return True
            loop.asked[task] = None
        # One that is due keeps its place; its turn comes anyway.
        if task.blocker is not None or task.entry is None or task.entry[0] > loop.ticks():
            unqueue(task)
            loop.queue.push(task)
        task.pending = CancelledError()
        return True

    def remove(self, task: Task) -> None:
        """Take `task` off those that await this one."""
        if self.waiters is not None:
            self.waiters.remove(task)


loop = LoopState()


def current_task() -> Task:
    if loop.task is None:
        raise RuntimeError("no running event loop")
    return loop.task


def last_awaited(task: Task) -> Task:
    """Follow task awaits task to the one that awaits no task."""
    while isinstance(task.blocker, Task):
        task = task.blocker
    return task


def stand_in(queue: TaskQueue, blocker: Blocker) -> None:
    """Put the current task in a queue other than the run queue; it has to yield next."""
    task = current_task()
    queue.push(task)
    task.blocker = blocker


def unqueue(task: Task) -> None:
    """Take a task out of whatever queue it stands in."""
    if task.blocker is not None:
        task.blocker.remove(task)
    else:
        loop.queue.remove(task)
    task.blocker = None


def wake(task: Task) -> None:
    """Put a task that was already taken off what it waited on onto the run queue."""
    task.blocker = None
    loop.queue.push(task)


class Park:
    """Await this to stand in a queue until somebody takes the task out and wakes it."""

    __slots__ = ("queue",)

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue

    def __await__(self) -> Generator[None, None, None]:
        stand_in(self.queue, self.queue)
        yield

    __iter__ = __await__


class Sleep:
    """What `sleep` gives: an awaitable that is no coroutine, with its deadline already fixed."""

    __slots__ = ("when_ms",)

    def __init__(self, when_ms: int | None) -> None:
        self.when_ms = when_ms

    def __await__(self) -> Generator[None, None, None]:
        if self.when_ms is not None:
            loop.queue.push(current_task(), self.when_ms)
            self.when_ms = None
            yield

    __iter__ = __await__


def sleep_ms(t: int) -> Sleep:
    """Pause for `t` milliseconds from this call on, not from the await. Negative counts as 0."""
    if not isinstance(t, int):
        raise TypeError("sleep_ms takes whole milliseconds")
    if t <= 0:
        return Sleep(loop.ticks())
    if t > SLEEP_MS_MAX:
        raise OverflowError("sleep is too long")
    return Sleep(loop.ticks() + t)


def sleep(t: float) -> Sleep:
    """Pause for `t` seconds, cut to whole milliseconds."""
    return sleep_ms(int(t * 1000))
