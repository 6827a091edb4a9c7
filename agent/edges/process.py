"""Forking the worker and what it must be bound to: its pipes, its lock, its memory, its parent.

Measured rules: no SQLite connection is open at the fork; the child first restores signals, then
closes every descriptor but pipes and lock; a lifeline pipe with O_ASYNC and the default action of
SIGIO ends an orphan even inside C code, where no Python handler would run.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from agent.edges import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
else:
    try:
        import _signal as signals  # the package around it brings enum
    except ImportError:
        import signal as signals

if TYPE_CHECKING:
    from typing import Any, Callable

O_ASYNC = 0o20000  # not in the os module; the value of every Linux port CPython knows but three
MEMORY_EXIT = 77
REAP_INTERVAL_S = 0.002
HOLDER_NAME = "posagent-hold"  # at most 15 bytes; how a left-behind holder is known in /proc


class Child:
    """A running worker, seen by its supervisor."""

    __slots__ = ("answers", "lifeline", "pid", "reports")

    def __init__(self, pid: int, reports: int, answers: int, lifeline: int) -> None:
        self.pid = pid
        self.reports = reports
        self.answers = answers
        self.lifeline = lifeline

    def close(self) -> None:
        """Give up all pipes; a worker still running dies of the lifeline, unless it let go."""
        for fd in (self.reports, self.answers, self.lifeline):
            os.close(fd)

    def reap(self, limit_ms: int) -> None:
        """Wait for the end of one that was killed; nothing happens if that was seen already, or if
        it does not come within the limit: the kernel has it then."""
        give_up_at = clock.steady_ms() + limit_ms
        try:
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0) and clock.steady_ms() < give_up_at:
                time.sleep(REAP_INTERVAL_S)
        except ChildProcessError:
            pass

    def ask_to_stop(self) -> None:
        """It ends by itself at its next mark, unless it is behind its rename."""
        try:
            os.kill(self.pid, signals.SIGTERM)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """End it at once; it is made to be killed at any instant."""
        kill(self.pid)


def kill(pid: int) -> None:
    """End a child at once; nothing happens if it has ended already."""
    try:
        os.kill(pid, signals.SIGKILL)
    except ProcessLookupError:
        pass


def start_child(do: Callable[[int, int], None], keep: tuple[int, ...], memory_bytes: int) -> Child:
    """Fork and run `do(reports, answers)` in the child, which ends by os._exit and never returns.

    The child exits with 0 after `do`, with 77 when memory ran out and with 70 on any other
    exception, whose one-line description it reports first if it can.
    """
    reports, report_end = os.pipe()
    answer_end, answers = os.pipe()
    lifeline_end, lifeline = os.pipe()
    pid = os.fork()
    if pid:
        for fd in (report_end, answer_end, lifeline_end):
            os.close(fd)
        os.set_blocking(reports, False)
        return Child(pid, reports, answers, lifeline)
    status = 70
    try:
        _restore_signals()
        _close_all_but((report_end, answer_end, lifeline_end, *keep))
        _hang_on(lifeline_end)
        _limit_memory(memory_bytes)
        do(report_end, answer_end)
        status = 0
    except MemoryError:
        status = MEMORY_EXIT
    except BaseException as error:
        _tell_crash(report_end, error)
    finally:
        os._exit(status)


def start_command(words: list[str]) -> tuple[int, int]:
    """Start a command of the agent in a process of its own: (pid, what it says, to be read).

    Nothing of this process is in it: no line, no lock, no scheduler.
    """
    main = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "__main__.py")
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writing, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        command = [sys.executable, "-I", "-S", "-B", main, *words]
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return pid, reading


class Signals:
    """While this is entered SIGTERM, SIGINT and SIGHUP call `stop`; then they are as before."""

    __slots__ = ("_old", "_stop")

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._old: list[tuple[int, Any]] = []

    def __enter__(self) -> None:
        for number in (signals.SIGTERM, signals.SIGINT, signals.SIGHUP):
            self._old.append((number, signals.signal(number, self._heard)))
        # A peer that is gone is told by the write; output that nobody reads ends nothing.
        self._old.append((signals.SIGPIPE, signals.signal(signals.SIGPIPE, signals.SIG_IGN)))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old:
            signals.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        self._stop()


def on_stop(do: Callable[[], None]) -> None:
    """In the child: call `do` when the supervisor asks it to stop, between two steps of Python."""
    signals.signal(signals.SIGTERM, lambda number, frame: do())


def let_go() -> None:
    """Outlive the supervisor: once the rename is done, the old file's lock must not end with it."""
    for name in os.listdir("/proc/self/fd"):
        try:
            flags = fcntl.fcntl(int(name), fcntl.F_GETFL)
            if flags & O_ASYNC:
                fcntl.fcntl(int(name), fcntl.F_SETFL, flags & ~O_ASYNC)
        except OSError:
            continue  # the descriptor that listed the folder
    signals.signal(signals.SIGPIPE, signals.SIG_IGN)
    signals.signal(signals.SIGTERM, signals.SIG_DFL)
    try:
        os.setsid()
    except PermissionError:
        pass  # it leads a session already: let go before
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(HOLDER_NAME)


def _restore_signals() -> None:
    for number in range(1, signals.NSIG):
        try:
            signals.signal(number, signals.SIG_DFL)
        except (OSError, ValueError):
            pass  # KILL and STOP have no handler, some numbers are the C library's own
    signals.pthread_sigmask(signals.SIG_SETMASK, ())
    signals.set_wakeup_fd(-1)


def _close_all_but(keep: tuple[int, ...]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the folder
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _hang_on(lifeline: int) -> None:
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | O_ASYNC | os.O_NONBLOCK)
    try:
        gone = os.read(lifeline, 1) == b""  # the supervisor died before the line was armed
    except BlockingIOError:
        gone = False
    if gone:
        os._exit(3)


def _limit_memory(memory_bytes: int) -> None:
    """Bound the address space: what is mapped now, plus what is left of the budget."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        fields = file.read().split()
    page = os.sysconf("SC_PAGE_SIZE")
    mapped, private = int(fields[0]) * page, (int(fields[1]) - int(fields[2])) * page
    limit = mapped + max(memory_bytes - private, 1 << 20)
    outer = resource.getrlimit(resource.RLIMIT_AS)[1]
    if outer != resource.RLIM_INFINITY:
        limit = min(limit, outer)  # whoever started us may have set a narrower one
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _tell_crash(reports: int, error: BaseException) -> None:
    """One line on where the agent itself is at fault; no values, which might be a record's."""
    from agent.ground.codec import encode

    where = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    said = {"crash": f"{type(error).__name__} at {where}"}
    try:
        os.write(reports, encode(said).encode() + b"\n")
    except OSError:
        pass


def outcome_of(status: int) -> str:
    """How a child ended, in words."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    return "out of memory" if code == MEMORY_EXIT else f"exit {code}"
