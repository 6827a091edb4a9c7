"""MicroPython's asyncio API on CPython; why: docs/decisions/0002-own-scheduler.md.
Extensions: waits.py, child.py, shutdown, detach_after_fork, use_clock; else as MicroPython has it.
"""

from __future__ import annotations

from .child import child_ended
from .core import (
    Loop,
    create_task,
    detach_after_fork,
    get_event_loop,
    new_event_loop,
    run,
    run_until_complete,
    shutdown,
    ticks,
    use_clock,
)
from .event import Event, ThreadSafeFlag
from .funcs import wait_for, wait_for_ms
from .task import (
    CancelledError,
    Task,
    TaskQueue,
    TimeoutError,
    current_task,
    sleep,
    sleep_ms,
)
from .waits import release_fd, wait_readable, wait_writable

__all__ = [
    "CancelledError",
    "Event",
    "Loop",
    "Task",
    "TaskQueue",
    "ThreadSafeFlag",
    "TimeoutError",
    "child_ended",
    "create_task",
    "current_task",
    "detach_after_fork",
    "get_event_loop",
    "new_event_loop",
    "release_fd",
    "run",
    "run_until_complete",
    "shutdown",
    "sleep",
    "sleep_ms",
    "ticks",
    "use_clock",
    "wait_for",
    "wait_for_ms",
    "wait_readable",
    "wait_writable",
]
