"""Stops one process of a real `posagent` at an exact system call and kills it, or its supervisor.

Run as a program it traces one command with ptrace: no sleeping, no switch in the product, and the
moment is the same in every run because it is counted in the process's own calls. It imports nothing
of `agent`. In a test use `trace`, which starts this file as a process of its own, since ptrace
belongs to the thread that began it. `python tests/killing.py WATCH VICTIM KIND AT OUT -- COMMAND`
replays one case by hand.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 100
SIDE_FILES = ("-wal", "-shm", "-journal")
O_CREAT = os.O_CREAT

# Calls that change something another process or the next boot can see, by number.
_CALLS = {
    "x86_64": {
        1: "write", 18: "pwrite64", 20: "writev", 72: "fcntl", 73: "flock", 74: "fsync",
        75: "fdatasync", 77: "ftruncate", 82: "rename", 83: "mkdir", 86: "link", 87: "unlink",
        91: "fchmod", 93: "fchown", 190: "fsetxattr", 257: "openat", 258: "mkdirat",
        263: "unlinkat", 264: "renameat", 265: "linkat", 285: "fallocate", 296: "pwritev",
        316: "renameat2",
    },
    "aarch64": {
        7: "fsetxattr", 25: "fcntl", 32: "flock", 34: "mkdirat", 35: "unlinkat", 37: "linkat",
        38: "renameat", 46: "ftruncate", 47: "fallocate", 52: "fchmod", 55: "fchown",
        56: "openat", 64: "write", 66: "writev", 68: "pwrite64", 70: "pwritev", 82: "fsync",
        83: "fdatasync", 276: "renameat2",
    },
}  # fmt: skip
_LOCKING = (37, 38)  # fcntl commands that set an open-file-description lock
_SILENT = ("/dev/null", "-shm")  # nothing there outlives the process

_ON_OPEN_FILES = (
    "write", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "ftruncate", "fallocate",
    "fchmod", "fchown", "fsetxattr", "flock", "fcntl",
)  # fmt: skip

_TRACEME, _CONT, _SYSCALL, _DETACH = 0, 7, 24, 17
_SETOPTIONS, _GETEVENTMSG, _GET_SYSCALL_INFO = 0x4200, 0x4201, 0x420E
_SYSGOOD, _FOLLOW_FORK, _EXITKILL = 1, 2, 0x100000
_WALL = 0x40000000
_PR_SET_CHILD_SUBREAPER = 36
_SHUTDOWN = 0x8004587D


class Traced:
    """What a traced command did: its moments, whether the kill came, how the command ended."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.moments: list[str] = given["moments"]
        self.killed: bool = given["killed"]
        self.code: int = given["code"]
        self.out: str = given["out"]
        self.replay: str = given["replay"]

    @property
    def json(self) -> dict[str, Any]:
        """What the command printed under --json."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def at(self) -> str:
        """The last moment before the kill, in words."""
        return self.moments[-1] if self.moments else "before anything"


def trace(
    command: list[str],
    out: Path,
    *,
    watch: str = "worker",
    victim: str = "worker",
    kind: str = "any",
    at: int | str = 0,
    keep: Path | None = None,
    cut: Path | None = None,
    flush_log: bool = False,
) -> Traced:
    """Run `command`, and kill `victim` right behind the moment `at` of process `watch`.

    `kind` says what counts as a moment: "mark" (a line to the supervisor), "change" (any call that
    others can see) or "any". `at` is the moment's number from 1, or its description: a call as a
    whole, a mark from its start; the first that fits counts. 0 kills nothing and only lists. With
    watch "worker" and victim "supervisor" both are dead at that moment, as after a power cut whose
    writes all reached flash. `keep` is a file that is copied, with its side files, to the folder
    `out` at the moment of death. Every process of the command is gone when this returns.

    With `cut`, a mounted file system, the moment is one of a power cut: nobody of the command does
    anything more, and the file system loses what it has not brought to its device. `flush_log`
    lets it write its log before: the names are there, the data behind them only where synced.
    """
    out.mkdir(parents=True, exist_ok=True)
    words = [watch, victim, kind, str(at), str(out), str(keep or "-")]
    if cut is not None:
        words += [str(cut), "flush" if flush_log else "drop"]
    words += ["--", *command]
    run = [sys.executable, "-I", "-S", "-B", str(Path(__file__).resolve()), *words]
    done = subprocess.run(run, capture_output=True, text=True, timeout=TIMEOUT_S + 20)
    if done.returncode:
        raise AssertionError(f"the tracer ended with {done.returncode}: {done.stderr}\n{run}")
    given = json.loads(done.stdout)
    given["replay"] = " ".join(run)
    return Traced(given)


def shut_down(point: Path, flush_log: bool = False) -> None:
    """Cut a mounted file system off from its device, as a power cut does (FS_IOC_SHUTDOWN).

    What it holds in memory is lost at the next umount; every call on it fails from now on.
    """
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", 1 if flush_log else 2))
    finally:
        os.close(fd)


# --- the tracer, a process of its own ------------------------------------------------------------


class _Syscall(ctypes.Structure):
    """struct ptrace_syscall_info; entry: number and six arguments, exit: value and error flag."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("values", ctypes.c_uint64 * 8),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: Any = 0, data: Any = 0) -> int:
    answer = int(_libc.ptrace(request, pid, address, data))
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request} of {pid}: {os.strerror(number)}")
    return answer


class Tracer:
    """One traced command. `moments` grows until the moment to kill at is there."""

    def __init__(
        self,
        watch: str,
        victim: str,
        kind: str,
        at: str,
        out: Path,
        keep: str,
        cut: tuple[Path, bool] | None,
    ) -> None:
        self.watch, self.victim, self.kind, self.at = watch, victim, kind, at
        self.out = out
        self.cut = cut
        self.keep = Path(keep) if keep != "-" else None
        self.moments: list[str] = []
        self.killed = False
        self.calls = _CALLS[platform.machine()]
        self.entered: tuple[str, list[int]] | None = None

    def run(self, command: list[str]) -> dict[str, Any]:
        """Trace to the end of every process that the command started."""
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.alarm(TIMEOUT_S)
        pid = self._start(command)
        target = self._worker_of(pid) if self.watch == "worker" else pid
        code = self._watch(target, pid) if target else -1
        code = self._reap(pid, code)
        if self.killed and self.victim == "supervisor":
            self._snapshot()
        text = (self.out / "stdout").read_text()
        return {"moments": self.moments, "killed": self.killed, "code": code, "out": text}

    def _start(self, command: list[str]) -> int:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            follow = _FOLLOW_FORK if self.watch == "worker" else 0
            _ptrace(_SETOPTIONS, pid, 0, _SYSGOOD | _EXITKILL | follow)
            return pid
        try:
            for name, fd in (("stdout", 1), ("stderr", 2)):
                os.dup2(os.open(self.out / name, os.O_WRONLY | O_CREAT | os.O_TRUNC, 0o600), fd)
            signal.alarm(0)
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execv(command[0], command)
        finally:
            os._exit(99)

    def _worker_of(self, pid: int) -> int:
        """Let the supervisor run to its first fork, let it go there, and answer the worker."""
        self._ended = -1
        deliver = 0
        while True:
            _ptrace(_CONT, pid, 0, deliver)
            _, status = os.waitpid(pid, 0)
            if not os.WIFSTOPPED(status):
                self._ended = status
                return 0
            if status >> 16 == 1:
                break
            number = os.WSTOPSIG(status)
            deliver = 0 if number == signal.SIGTRAP else number
        child = ctypes.c_ulong()
        _ptrace(_GETEVENTMSG, pid, 0, ctypes.byref(child))
        os.waitpid(child.value, _WALL)
        _ptrace(_DETACH, pid)
        return int(child.value)

    def _watch(self, target: int, supervisor: int) -> int:
        """Count moments; the supervisor's wait status if it ended here, else -1."""
        deliver = 0
        while True:
            _ptrace(_SYSCALL, target, 0, deliver)
            _, status = os.waitpid(target, _WALL)
            deliver = 0
            if not os.WIFSTOPPED(status):
                return status if target == supervisor else -1
            number = os.WSTOPSIG(status)
            if number == signal.SIGTRAP | 0x80:
                if self._stepped(target):
                    return self._kill(target, supervisor)
            elif number not in (signal.SIGTRAP, signal.SIGSTOP):
                deliver = number

    def _kill(self, target: int, supervisor: int) -> int:
        self.killed = True
        if self.cut is not None:
            return self._cut_power(target, supervisor, *self.cut)
        if self.victim == "worker":
            self._snapshot()
            os.kill(target, signal.SIGKILL)
            os.waitpid(target, _WALL)
            return -1
        os.kill(supervisor, signal.SIGKILL)
        _, status = os.waitpid(supervisor, _WALL)
        if target != supervisor:
            # Behind the rename it would go on alone; a power cut takes both.
            os.kill(target, signal.SIGKILL)
            os.waitpid(target, _WALL)
        return status

    def _cut_power(self, target: int, supervisor: int, point: Path, flush_log: bool) -> int:
        """The others die first, so that nobody tells anything about calls that fail; `target`
        stands still. Then the file system goes, then `target`."""
        status = -1
        for pid in _children(supervisor):
            if pid != target:
                os.kill(pid, signal.SIGKILL)
        if target != supervisor:
            os.kill(supervisor, signal.SIGKILL)
            _, status = os.waitpid(supervisor, _WALL)
        shut_down(point, flush_log)
        os.kill(target, signal.SIGKILL)
        _, ended = os.waitpid(target, _WALL)
        return ended if target == supervisor else status

    def _reap(self, supervisor: int, code: int) -> int:
        """Wait until nobody is left; the supervisor's exit code, or minus its signal."""
        status = code if code >= 0 else getattr(self, "_ended", -1)
        while True:
            try:
                pid, ended = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return os.waitstatus_to_exitcode(status)
            if pid == supervisor:
                status = ended

    def _snapshot(self) -> None:
        if self.keep is None:
            return
        for tail in ("", *SIDE_FILES):
            source = self.keep.with_name(self.keep.name + tail)
            if source.exists():
                shutil.copyfile(source, self.out / source.name)

    # Moments

    def _stepped(self, pid: int) -> bool:
        """Take one stop of a call; whether the moment to kill at has come."""
        info = _Syscall()
        _ptrace(_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.byref(info))
        if info.op == 1:
            name = self.calls.get(info.values[0])
            self.entered = (name, list(info.values[1:7])) if name else None
            return False
        entered, self.entered = self.entered, None
        failed = info.op == 2 and bool(info.values[1] & 0xFF)
        if entered is None or failed:
            return False
        text = self._describe(pid, *entered)
        if text is None or (
            self.kind != "any" and (self.kind == "mark") != text.startswith("mark")
        ):
            return False
        self.moments.append(text)
        if self.at.isdigit():
            return len(self.moments) == int(self.at)
        return text == self.at or (self.at.startswith("mark") and text.startswith(self.at))

    def _describe(self, pid: int, name: str, args: list[int]) -> str | None:
        """The call in words, or None when nobody outside can see what it did."""
        if name in _ON_OPEN_FILES:
            if name == "fcntl" and args[1] & 0xFFFFFFFF not in _LOCKING:
                return None
            path = os.readlink(f"/proc/{pid}/fd/{args[0] & 0xFFFFFFFF}")
            if name == "write" and path.startswith("pipe:"):
                return "mark " + self._bytes(pid, args[1], min(args[2], 300)).decode().strip()
            return None if path.endswith(_SILENT) else f"{name} {os.path.basename(path)}"
        if name == "openat":
            if not args[2] & O_CREAT:
                return None
            path = self._name(pid, args[1])
            return None if path.endswith(_SILENT) else f"create {path}"
        at = [1, 3] if name in ("renameat", "renameat2", "linkat") else [0, 1]
        if name in ("mkdirat", "unlinkat"):
            at = [1]
        elif name in ("mkdir", "unlink"):
            at = [0]
        word = name.replace("at2", "").replace("at", "") if name != "mkdirat" else "mkdir"
        return " ".join([word, *(self._name(pid, args[i]) for i in at)])

    def _bytes(self, pid: int, address: int, count: int) -> bytes:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(count) or b""

    def _name(self, pid: int, address: int) -> str:
        end = 4096 - address % 4096  # a name may end right before an unmapped page
        found = self._bytes(pid, address, end)
        if b"\0" not in found:
            found += self._bytes(pid, address + end, 4096)
        return os.path.basename(os.fsdecode(found.split(b"\0")[0]))


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if int(fields[1]) == parent:
                found.append(int(entry))
    return found


def main(words: list[str]) -> None:
    """Trace one command and print what happened as one JSON object."""
    given, command = words[: words.index("--")], words[words.index("--") + 1 :]
    watch, victim, kind, at, out, keep = given[:6]
    cut = (Path(given[6]), given[7] == "flush") if len(given) > 6 else None
    tracer = Tracer(watch, victim, kind, at, Path(out), keep, cut)
    print(json.dumps(tracer.run(command)))


if __name__ == "__main__":
    main(sys.argv[1:])
