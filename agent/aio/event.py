"""How code wakes a task: Event from another task, ThreadSafeFlag from a signal handler.
Rule: `Event.set` is for the loop's own tasks; only `ThreadSafeFlag.set` is for the rest.
"""

from __future__ import annotations

from .task import Park, Task, TaskQueue, current_task, loop, wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator


class Event:
    """True or not; tasks wait until it is. `set` wakes all that wait, also if `clear` follows."""

    __slots__ = ("_state", "_waiting")

    def __init__(self) -> None:
        self._state = False
        self._waiting = TaskQueue()

    def is_set(self) -> bool:
        return self._state

    def set(self) -> None:
        self._state = True
        while self._waiting:
            wake(self._waiting.pop())

    def clear(self) -> None:
        self._state = False

    async def wait(self) -> bool:
        if not self._state:
            await Park(self._waiting)
        return True


class ThreadSafeFlag:
    """A flag for one waiter that a signal handler may set; waiting clears it.

    Another thread may set it while `run` is under way.
    """

    __slots__ = ("_state", "_waiter")

    def __init__(self) -> None:
        self._state = False
        self._waiter: Task | None = None

    def set(self) -> None:
        self._state = True
        if self._waiter is not None:
            loop.io.ring()

    def clear(self) -> None:
        self._state = False

    async def wait(self) -> None:
        """Return at once if it is set. RuntimeError if another task waits already."""
        if self._waiter is not None:
            raise RuntimeError("the flag has a waiter already")
        # First the waiter, then the look: a handler in between finds somebody to ring for.
        self._waiter = current_task()
        loop.flags[self] = None
        try:
            if not self._state:
                await _FlagPark(self)
            self._state = False
        finally:
            self._waiter = None
            loop.flags.pop(self, None)

    def deliver(self) -> None:
        """Called by the loop once per pass while somebody waits."""
        if self._state and self._waiter is not None:
            del loop.flags[self]
            wake(self._waiter)

    def remove(self, task: Task) -> None:
        loop.flags.pop(self, None)


class _FlagPark:
    __slots__ = ("flag",)

    def __init__(self, flag: ThreadSafeFlag) -> None:
        self.flag = flag

    def __await__(self) -> Generator[None, None, None]:
        current_task().blocker = self.flag
        yield
