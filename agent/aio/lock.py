"""A lock for tasks. It is given from one to the next in the order in which they asked.
Rule: between release and the next task's turn it is promised, and nobody else gets it.
"""

from __future__ import annotations

from .task import CancelledError, Park, Task, TaskQueue, current_task, wake

__all__ = ["Lock"]


class Lock:
    """Held by one task at a time; `async with` takes it and gives it back."""

    __slots__ = ("_held", "_promised", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._promised: Task | None = None  # on its way to take the lock
        self._waiting = TaskQueue()

    def locked(self) -> bool:
        """True from `acquire` to `release`; False also while it is promised."""
        return self._held

    async def acquire(self) -> bool:
        if self._held or self._promised is not None:
            try:
                await Park(self._waiting)
            except CancelledError:
                if self._promised is current_task():
                    self._pass_on()
                raise
        self._promised = None
        self._held = True
        return True

    def release(self) -> None:
        """Give it to the task that has waited longest. RuntimeError if nobody holds it."""
        if not self._held:
            raise RuntimeError("Lock not acquired")
        self._pass_on()

    def _pass_on(self) -> None:
        self._held = False
        self._promised = self._waiting.pop() if self._waiting else None
        if self._promised is not None:
            wake(self._promised)

    async def __aenter__(self) -> bool:
        return await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
