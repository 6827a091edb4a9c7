"""The loop: turns for tasks, and an end for all of them. It is MicroPython's asyncio.core.
Rules: one poll per pass over what is due; `run` leaves other tasks alone, `shutdown` ends them all.
"""

from __future__ import annotations

import sys

from .ioqueue import kernel_poll, signals
from .task import (
    CancelledError,
    Task,
    TaskQueue,
    TimeoutError,
    current_task,
    loop,
    real_ms,
    sleep,
    sleep_ms,
    unqueue,
    wake,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .ioqueue import PollFunction
    from .task import Coro, T

    Context = dict[str, Any]
    Handler = Callable[[type["Loop"], Context], object]

__all__ = [
    "CancelledError",
    "Loop",
    "Task",
    "TaskQueue",
    "TimeoutError",
    "create_task",
    "current_task",
    "detach_after_fork",
    "get_event_loop",
    "new_event_loop",
    "run",
    "run_until_complete",
    "shutdown",
    "sleep",
    "sleep_ms",
    "ticks",
    "use_clock",
]

SHUTDOWN_MS = 5_000  # what all `finally` blocks together may take before they are closed hard


def __getattr__(name: str) -> Any:
    if name == "cur_task":  # a public name of MicroPython's core
        return loop.task
    raise AttributeError(f"module 'agent.aio.core' has no attribute {name!r}")


def ticks() -> int:
    """The loop's time in milliseconds."""
    return loop.ticks()


def use_clock(now_ms: Callable[[], int] | None = None, poll: PollFunction | None = None) -> None:
    """For tests: take time from `now_ms` and wait through `poll(poller, wait_ms)`.

    Without them the loop is back on real time.
    """
    loop.ticks = now_ms or real_ms
    loop.kernel = poll or kernel_poll


def create_task(coro: Coro[Any]) -> Task:
    """Start a coroutine beside the others. TypeError for what is none, `sleep(1)` included."""
    if not hasattr(coro, "send"):
        raise TypeError("coroutine expected")
    task = Task(coro)
    loop.alive[task] = None
    loop.queue.push(task)
    return task


def run(coro: Coro[T]) -> T:
    """Run until this coroutine ends; answer its value or raise its exception.

    Other tasks stay as they are and go on in the next `run`: end with `shutdown` in a `finally`.
    """
    _refuse_inside_run()  # before the task exists: it would be left in the loop that runs
    value: T = run_until_complete(create_task(coro))
    return value


def run_until_complete(main_task: Task | None = None) -> Any:
    """Run until the task ends; without one, until nothing can wake a task any more."""
    _enter()
    try:
        while main_task is None or not main_task.ended:
            if main_task is None and not (loop.queue or loop.io.waits or loop.flags):
                return None
            _pass(main_task)
    finally:
        _leave()
    main_task.retrieved = True
    if main_task.error is not None:
        raise main_task.error
    return main_task.value


def _refuse_inside_run() -> None:
    if loop.running:
        raise RuntimeError("the loop is running already")


def _enter() -> None:
    _refuse_inside_run()
    loop.io.open_bell()
    loop.running = True


def _leave() -> None:
    loop.running = False
    loop.task = None
    loop.io.close_bell()


def _pass(main_task: Task | None, until_ms: int | None = None) -> None:
    """Poll once, then give each task that is due one turn, up to the end of the main task.

    There are never more turns than tasks, so tasks that do not pause cannot keep I/O waiting.
    """
    for flag in list(loop.flags):
        flag.deliver()
    for wait in loop.io.poll(_wait_ms(until_ms), loop.kernel):
        wake(wait.task)
    queue, now_ms = loop.queue, loop.ticks()
    for _ in range(len(queue)):
        if not queue.heap or queue.heap[0][0] > now_ms:
            return
        task = queue.pop()
        _turn(task, main_task)
        if task is main_task and task.ended:
            return


def _wait_ms(until_ms: int | None) -> int:
    first = loop.queue.heap[0][0] if loop.queue.heap else until_ms
    if first is None:
        return -1
    if until_ms is not None and until_ms < first:
        first = until_ms
    return max(0, int(first) - loop.ticks())


def _turn(task: Task, main_task: Task | None) -> None:
    if task.ended:
        _report(task)
        return
    pending, task.pending = task.pending, None
    loop.task = task
    try:
        if pending is None:
            task.coro.send(None)
        else:
            task.coro.throw(pending)
    except StopIteration as stop:
        task.value = stop.value
        _end(task, None, task is main_task)
    except (CancelledError, Exception) as error:
        _end(task, error, task is main_task)
    except BaseException as error:  # KeyboardInterrupt, SystemExit: they end the run as well
        _end(task, error, True)
        raise
    finally:
        loop.task = None


def _end(task: Task, error: BaseException | None, retrieved: bool) -> None:
    task.ended = True
    task.error = error
    task.retrieved = retrieved
    loop.alive.pop(task, None)
    while task.waiters:
        wake(task.waiters.pop())
        task.retrieved = True
    if task.gatherer is not None:
        task.gatherer.child_ended(task)
        task.gatherer = None
        task.retrieved = True
    if error is not None and not task.retrieved and not isinstance(error, CancelledError):
        loop.queue.push(task)  # one more turn, in which somebody may still await it


def _report(task: Task) -> None:
    if not task.retrieved:
        task.retrieved = True
        message = "Task exception wasn't retrieved"
        Loop.call_exception_handler(
            {"message": message, "exception": task.error, "future": task},
        )


def shutdown(limit_ms: int = SHUTDOWN_MS) -> int:
    """Cancel every task and run until all have ended: `finally` blocks run, and may await.

    A task is cancelled once, so that its `finally` is not interrupted, and once more if it is
    still there at half of `limit_ms`; one that awaits another task, through that one. What is left
    at the end is closed hard; answers how many those were. RuntimeError inside `run`.
    """
    _enter()
    try:
        start_ms = loop.ticks()
        for until_ms in (start_ms + limit_ms // 2, start_ms + limit_ms):
            _cancel_all(until_ms)
        return _close_rest()
    finally:
        loop.asked = None
        _leave()


def _cancel_all(until_ms: int) -> None:
    asked = loop.asked = {}
    awaiting: dict[Task, Task] = {}
    while (loop.alive or loop.queue) and loop.ticks() < until_ms:
        for task in list(loop.alive):
            _ask_to_end(task, asked, awaiting)
        _pass(None, until_ms)


def _ask_to_end(task: Task, asked: dict[Task, None], awaiting: dict[Task, Task]) -> None:
    if isinstance(task.blocker, Task):
        awaiting[task] = task.blocker
    elif task in awaiting:
        # In its next turn it learns how the other task ended: a cancel now would be taken for
        # that one's. If that one was cancelled, this is how the cancel arrives here too.
        if isinstance(awaiting.pop(task).error, CancelledError):
            asked[task] = None
    elif task not in asked:
        task.cancel()


def _close_rest() -> int:
    rest = list(loop.alive)
    for task in rest:
        unqueue(task)
        try:
            task.coro.close()
        except (CancelledError, Exception) as error:  # it awaits although it is being closed
            _end(task, error, True)
        else:
            _end(task, CancelledError(), True)
    loop.queue = TaskQueue()
    return len(rest)


def detach_after_fork() -> None:
    """Extension, for a forked child that runs no loop: its signals ring no more in the parent.

    Nothing is closed or dropped: dropping the parent's coroutines would run their `finally`.
    """
    if loop.io.bell:
        signals.set_wakeup_fd(-1)


async def _stopper() -> None:
    pass


class Loop:
    """MicroPython's loop object: a class used as a namespace, for there is one loop."""

    _exc_handler: Handler | None = None
    _stop_task: Task | None = None

    @staticmethod
    def create_task(coro: Coro[Any]) -> Task:
        return create_task(coro)

    @staticmethod
    def run_forever() -> None:
        """Run until `stop`, also when no task is left."""
        stop_task = Loop._stop_task = Task(_stopper())
        try:
            run_until_complete(stop_task)
        finally:
            Loop._stop_task = None
            stop_task.coro.close()

    @staticmethod
    def run_until_complete(aw: Task | Coro[Any]) -> Any:
        return run_until_complete(aw if isinstance(aw, Task) else create_task(aw))

    @staticmethod
    def stop() -> None:
        stop_task, Loop._stop_task = Loop._stop_task, None
        if stop_task is not None:
            loop.queue.push(stop_task)

    @staticmethod
    def close() -> None:
        pass

    @staticmethod
    def set_exception_handler(handler: Handler | None) -> None:
        """`handler(loop, context)` gets each exception of a task that nobody awaited."""
        Loop._exc_handler = handler

    @staticmethod
    def get_exception_handler() -> Handler | None:
        return Loop._exc_handler

    @staticmethod
    def default_exception_handler(loop: type[Loop], context: Context) -> None:
        task, error = context["future"], context["exception"]
        print(context["message"], file=sys.stderr)
        print("future:", task, "coro=", getattr(task, "coro", None), file=sys.stderr)
        sys.__excepthook__(type(error), error, error.__traceback__)

    @staticmethod
    def call_exception_handler(context: Context) -> None:
        (Loop._exc_handler or Loop.default_exception_handler)(Loop, context)


def get_event_loop(runq_len: int = 0, waitq_len: int = 0) -> type[Loop]:
    """The loop; both arguments are for old programs and mean nothing."""
    return Loop


def new_event_loop() -> type[Loop]:
    """The loop with no tasks. RuntimeError inside `run`."""
    _refuse_inside_run()
    loop.forget()
    return Loop
