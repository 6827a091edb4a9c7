"""Waiting for a child process to end, as one more thing a task can await.
Rule: one waiter per child; a cancelled wait leaves the child unreaped, to be waited for again.
"""

from __future__ import annotations

import os

from .event import ThreadSafeFlag
from .ioqueue import signals
from .waits import wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_waiting: dict[int, ThreadSafeFlag] = {}  # by pid; the flag is set by SIGCHLD
_old_handlers: list[Any] = []  # the one that was there before the first SIGCHLD waiter
_signalled: dict[int, None] = {}  # the pids that need SIGCHLD


async def child_ended(pid: int) -> int:
    """Extension: wait until a child of ours ends; answer its wait status as `os.waitpid` does.

    ChildProcessError if there is no such child, RuntimeError if another task waits for it.
    """
    if pid in _waiting:
        raise RuntimeError(f"somebody waits for child {pid} already")
    _waiting[pid] = ThreadSafeFlag()
    try:
        found, status = os.waitpid(pid, os.WNOHANG)  # a process that is not ours is told at once
        if found:
            return status
        pidfd = _open_pidfd(pid)
        if pidfd < 0:
            return await _ended_by_signal(pid)
        try:
            await wait_readable(pidfd)
        finally:
            os.close(pidfd)
        return os.waitpid(pid, 0)[1]
    finally:
        del _waiting[pid]


def _open_pidfd(pid: int) -> int:
    """-1 where there are none: kernel before 5.3, a sandbox, another system, no number left."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        return -1


async def _ended_by_signal(pid: int) -> int:
    _listen(pid)
    try:
        while True:  # SIGCHLD may mean another child
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return status
            await _waiting[pid].wait()
    finally:
        _stop_listening(pid)


def _listen(pid: int) -> None:
    if not _signalled:
        _old_handlers.append(signals.signal(signals.SIGCHLD, _on_sigchld))
    _signalled[pid] = None


def _stop_listening(pid: int) -> None:
    del _signalled[pid]
    if not _signalled:
        old = _old_handlers.pop()
        signals.signal(signals.SIGCHLD, signals.SIG_DFL if old is None else old)


def _on_sigchld(number: int, frame: Any) -> None:
    for pid in list(_signalled):
        _waiting[pid].set()
    # Whoever listened before goes on hearing of its own children.
    if _old_handlers and callable(_old_handlers[0]):
        _old_handlers[0](number, frame)
