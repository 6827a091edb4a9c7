"""MicroPython's asyncio API on CPython; why: docs/decisions/0002-own-scheduler.md.
Extensions: waits.py, child.py, shutdown, detach_after_fork, use_clock; else as MicroPython has it.
`as_asyncio()` lets a program import it under MicroPython's names, `asyncio` and `uasyncio`.
"""

from __future__ import annotations

from . import core
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
from .funcs import gather, wait_for, wait_for_ms
from .lock import Lock
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .alias import as_asyncio
    from .stream import Server, Stream, StreamReader, StreamWriter, open_connection, start_server

__all__ = [
    "CancelledError",
    "Event",
    "Lock",
    "Loop",
    "Server",
    "Stream",
    "StreamReader",
    "StreamWriter",
    "Task",
    "TaskQueue",
    "ThreadSafeFlag",
    "TimeoutError",
    "as_asyncio",
    "child_ended",
    "create_task",
    "current_task",
    "detach_after_fork",
    "gather",
    "get_event_loop",
    "new_event_loop",
    "open_connection",
    "release_fd",
    "run",
    "run_until_complete",
    "shutdown",
    "sleep",
    "sleep_ms",
    "start_server",
    "ticks",
    "use_clock",
    "wait_for",
    "wait_for_ms",
    "wait_readable",
    "wait_writable",
]

__version__ = (3, 0, 0)  # of MicroPython's asyncio, whose API this is

# Loaded when first asked for: a program without streams does not pay for sockets.
_LATER = {
    "Server": "stream",
    "Stream": "stream",
    "StreamReader": "stream",
    "StreamWriter": "stream",
    "as_asyncio": "alias",
    "open_connection": "stream",
    "start_server": "stream",
}

if not TYPE_CHECKING:  # a checker would take it for "any name is there"

    def __getattr__(name: str) -> object:
        if name == "cur_task":  # changes with every turn, so it is asked for anew
            return core.cur_task
        if name not in _LATER:
            raise AttributeError(f"module 'agent.aio' has no attribute {name!r}")
        module = __import__(_LATER[name], globals(), None, (name,), 1)
        value = globals()[name] = getattr(module, name)
        return value
