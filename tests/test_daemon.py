"""The life of `posagent run`: its boot decision, its end by SIGTERM and by KILL, and who asks it.

Whatever ends the daemon or its worker, and whenever: the next start goes on, ends where a run that
nothing happened to ends, and no sale is lost. Needs root, strace and mkfs.ext4.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import filesystems, killing
from tests import independent_reader as reader
from tests.client import sale
from tests.daemons import Daemon, SocketPeer, give_libraries, until
from tests.terminals import COMMAND, Gate, Terminal, new_terminal
from tests.test_kills import TOUCHED, contents, history_of
from tests.test_watchdog import Manager

HEAD = 4  # with the migration that a gate or a step of this file adds
END_S = 5  # what a service manager may wait for a daemon that was told to stop
FREEZE, THAW = 0xC0045877, 0xC0045878  # FIFREEZE and FITHAW of linux/fs.h
FLASH_CALLS = (
    "write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,fallocate,fchmod,chmod,fchown,chown,setxattr,fsetxattr"
)
FORKS = ("fork(", "vfork(", "clone(", "clone3(")


def a_terminal(root: Path, **recipe: Any) -> Terminal:
    """A small one at schema 0, whose stores take several batches."""
    terminal = new_terminal(root, **{"records": 120, "unsettled": 8, **recipe})
    terminal.configure(batch_rows_max=16, busy_wait_ms=300)
    return terminal


def at_head(root: Path, **recipe: Any) -> Terminal:
    """One that is migrated, and whose old file is given up: a boot has nothing to do."""
    terminal = a_terminal(root, **recipe)
    assert terminal.boot().code == 0
    assert terminal.run("commit", "--json").code == 0
    return terminal


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run through a gate ends with when nothing happens to it."""
    terminal = a_terminal(tmp_path_factory.mktemp("whole") / "t")
    Gate(terminal).path.unlink()
    assert terminal.boot().code == 0
    return contents(terminal.pos)


def goes_on(terminal: Terminal, expected: dict[str, Any], verdict: str = "OK") -> None:
    """The next start ends as a run that nothing happened to, and nothing is left beside it."""
    with Daemon(terminal) as daemon:
        assert daemon.ready().result("status")["verdict"] == verdict
        assert daemon.stop() == 0
    assert contents(terminal.pos) == expected
    assert set(terminal.listing()) <= {"pos.db", "pos.db.prev", "posagent"}
    rows = [row for row in history_of(terminal) if row["verdict"] != "INTERRUPTED"]
    assert len({row["run"] for row in rows}) == 1, rows
    assert {row["verdict"] for row in rows} == {"OK"}


def worker_of(daemon: Daemon) -> int:
    """The pid of the worker: the daemon's one child."""
    pid = daemon.process.pid

    def child() -> int:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(found[0]) if found else 0

    found: int = until(child)
    return found


def state_of(pid: int) -> str:
    """A process's state as one letter, "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


def ended_in_time(daemon: Daemon) -> int:
    """Its exit code, within what a service manager allows."""
    daemon.process.communicate(timeout=END_S)
    return daemon.process.returncode


# The boot decision


def test_a_boot_with_nothing_to_do_forks_nothing_and_writes_nothing_to_flash(
    tmp_path: Path,
) -> None:
    terminal = at_head(tmp_path / "t")
    give_libraries(terminal)
    log, notify = tmp_path / "log", tmp_path / "notify"
    manager = Manager(notify)
    calls = f"{FLASH_CALLS},openat,sendto,fork,vfork,clone,clone3,execve"
    words = ["strace", "-D", "-f", "-y", "-qq", "-o", str(log), "-e", f"trace={calls}"]
    command = [*words, *COMMAND, "--root", str(terminal.root), "run", "--json"]
    before = terminal.sha256()
    daemon = subprocess.Popen(
        command, env=dict(os.environ, NOTIFY_SOCKET=str(notify)), stdout=subprocess.PIPE
    )
    until(lambda: any("READY=1" in m for m in manager.messages))
    daemon.terminate()
    daemon.communicate(timeout=END_S)
    manager.stop()
    lines = until(lambda: said_until_stopping(log))
    assert sum("execve(" in line for line in lines) == 1
    assert not [line for line in lines if any(word in line for word in FORKS)]
    data = str(terminal.data)
    wrote = [line for line in lines if data in line and "openat(" not in line]
    assert wrote == []
    made = [line for line in lines if data in line and "O_CREAT" in line]
    assert len(made) == 1, "the lock file is opened, as it is"
    assert "posagent/lock" in made[0]
    assert terminal.sha256() == before


def said_until_stopping(log: Path) -> list[str]:
    """strace's lines, once the last message to the service manager is among them."""
    text = log.read_text()
    return text.splitlines() if "STOPPING=1" in text else []


def test_a_daemon_that_was_never_asked_to_change_anything_leaves_the_diary_as_it_was(
    tmp_path: Path,
) -> None:
    terminal = at_head(tmp_path / "t")
    diary = terminal.data / "posagent/agent.db"
    before = reader.file_sha256(diary)
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        for method in ("ping", "hello", "describe", "status"):
            peer.call(method, **({"proto": [1]} if method == "hello" else {}))
        assert daemon.stop() == 0
    assert reader.file_sha256(diary) == before


# SIGTERM


def test_sigterm_stops_a_run_at_a_batch_edge_and_the_next_start_goes_on(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    terminal = a_terminal(tmp_path / "t")
    gate, notify = Gate(terminal), tmp_path / "notify"
    manager = Manager(notify)
    with Daemon(terminal, env=dict(os.environ, NOTIFY_SOCKET=str(notify))) as daemon:
        gate.wait(daemon.process)
        daemon.process.terminate()
        until(lambda: any("STOPPING=1" in m for m in manager.messages))
        gate.open()  # the worker is in the middle of a batch, and ends at its edge
        assert ended_in_time(daemon) == 0
    manager.stop()
    assert "pos.db.next" in terminal.listing()
    assert reader.read_terminal(terminal.pos).schema_version == 0
    (row,) = history_of(terminal)
    assert (row["verdict"], row["code"]) == ("INTERRUPTED", "INTERRUPTED")
    assert attempts_of(terminal) == ["refused"], "an attempt that was told to stop did not die"
    goes_on(terminal, whole)


def attempts_of(terminal: Terminal) -> list[str]:
    with reader.opened(terminal.data / "posagent/agent.db") as db:
        return [row[0] for row in db.execute("SELECT ended FROM attempts ORDER BY seq")]


def test_being_told_to_stop_again_and_again_never_uses_up_the_attempts(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    terminal = a_terminal(tmp_path / "t")
    gate = Gate(terminal)
    path = terminal.root / "migrations/0004_waits_at_the_gate.py"
    path.write_text(path.read_text().replace("balances", "transactions"))  # in many batches
    for _ in range(4):
        with Daemon(terminal) as daemon:
            gate.wait(daemon.process)
            os.kill(worker_of(daemon), signal.SIGTERM)  # what the daemon sends
            gate.open()
            assert daemon.ready().result("status")["verdict"] == "INTERRUPTED"
            assert daemon.stop() == 0
        os.mkfifo(gate.path)
        gate._way_in = -1  # it is shut again
    gate.path.unlink()
    assert set(attempts_of(terminal)) == {"refused"}
    goes_on(terminal, whole)


@pytest.mark.parametrize("stopped", [False, True])
def test_sigterm_ends_a_worker_that_does_not_react(
    tmp_path: Path, whole: dict[str, Any], stopped: bool
) -> None:
    """One that waits inside a step, and one that does not even take signals."""
    terminal = a_terminal(tmp_path / "t")
    gate = Gate(terminal)
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        worker = worker_of(daemon)
        if stopped:
            os.kill(worker, signal.SIGSTOP)
        daemon.process.terminate()
        assert ended_in_time(daemon) == 0
        assert state_of(worker) == "", "it is gone before the daemon is"
    gate.wait_for_death()
    assert "pos.db.next" in terminal.listing()
    goes_on(terminal, whole)


def test_sigterm_at_any_mark_is_answered_in_time_and_the_next_start_goes_on(
    tmp_path: Path,
) -> None:
    template = a_terminal(tmp_path / "template", records=300)
    template.own_migrations()
    assert template.boot().code == 0
    give_libraries(template)
    expected: dict[str, Any] = {}
    for heard in (1000, 1, 3, 8, 15, 30, 60):
        terminal = Terminal(tmp_path / f"t{heard}")
        shutil.copytree(template.root, terminal.root, symlinks=True)
        with Daemon(terminal) as daemon:
            peer = daemon.ready()
            add_migration(terminal)
            peer.result("subscribe", events=["progress", "state"])
            peer.result("migrate", op="op-000001", to=HEAD)
            for _ in range(heard):
                if b'"to":"idle"' in peer.line():
                    break
            daemon.process.terminate()
            assert ended_in_time(daemon) == 0
        with Daemon(terminal) as daemon:
            peer = daemon.ready()
            assert peer.result("status")["schema"] == HEAD
            state = peer.result("result", op="op-000001")["state"]
            assert state in ("done", "interrupted")
            assert daemon.stop() == 0
        expected = expected or contents(terminal.pos)
        assert contents(terminal.pos) == expected, f"after {heard} notifications"
        rows = [row for row in history_of(terminal) if row["version"] == HEAD]
        assert len(rows) == 1, f"after {heard} notifications"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_ends_at_once_and_takes_its_socket_out_of_use(
    tmp_path: Path, number: int
) -> None:
    terminal = at_head(tmp_path / "t")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        daemon.process.send_signal(number)
        assert ended_in_time(daemon) == 0
        assert peer.line() == b"", "whoever is connected is hung up on"
    assert terminal.run("migrate", "--json").json["verdict"] == "NOT_REQUIRED"


# KILL


def sell(terminal: Terminal, key: str) -> None:
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES (?, ?)", (key, sale(key)))
    db.close()


def test_a_killed_daemon_takes_its_worker_with_it(tmp_path: Path, whole: dict[str, Any]) -> None:
    terminal = a_terminal(tmp_path / "t")
    gate = Gate(terminal)
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        worker = worker_of(daemon)
        daemon.process.kill()
        gate.wait_for_death()
        until(lambda: state_of(worker) in ("", "Z"))
    goes_on(terminal, whole)


class Kills:
    """One terminal, and what an uninterrupted daemon on it does, moment by moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = a_terminal(folder / "template", records=60)
        (self.template.own_migrations() / "0004_touch_each_record.py").write_text(TOUCHED)
        stores = self.template.root / "migrations/stores.json"
        stores.write_text(stores.read_text().replace('"app_reads": [0, 3]', '"app_reads": [0, 4]'))
        give_libraries(self.template)
        done = self.copy("whole")
        self.marks = self.moments(done, "worker", "mark")
        self.after = contents(done.pos)
        self.own = self.moments(self.copy("own"), "supervisor", "change")

    def copy(self, name: str) -> Terminal:
        """A fresh copy of the terminal."""
        shutil.copytree(self.template.root, self.folder / name, symlinks=True)
        return Terminal(self.folder / name)

    def trace(self, terminal: Terminal, watch: str, kind: str, at: int) -> killing.Traced:
        command = [*COMMAND, "--root", str(terminal.root), "run", "--json"]
        seen = terminal.root / "seen"
        return killing.trace(command, seen, watch=watch, victim="supervisor", kind=kind, at=at)

    def moments(self, terminal: Terminal, watch: str, kind: str) -> list[str]:
        """All of a daemon that is told to stop once its status file says that it is done."""
        with ThreadPoolExecutor(1) as pool:
            traced = pool.submit(self.trace, terminal, watch, kind, 0)
            until(lambda: status_of(terminal).get("verdict"))
            os.kill(pid_of_daemon(terminal), signal.SIGTERM)
            return traced.result().moments

    def case(self, watch: str, kind: str, at: int) -> str:
        """Kill once, start again, judge; what is wrong, or ""."""
        terminal = self.copy(f"{watch}-{kind}-{at}")
        try:
            traced = self.trace(terminal, watch, kind, at)
            assert traced.killed, f"it ended before, with {traced.code}"
            goes_on(terminal, self.after, verdict_after(terminal))
            check_each_done_once(terminal)
        except AssertionError as wrong:
            return f"{watch} {kind} {at}: {str(wrong)[:600]}"
        shutil.rmtree(terminal.root)
        return ""

    def cases(self, cases: list[tuple[str, str, int]]) -> None:
        """All of them, two at a time; each failure is one line."""
        with ThreadPoolExecutor(2) as pool:
            wrong = [line for line in pool.map(lambda c: self.case(*c), cases) if line]
        assert not wrong, "\n" + "\n".join(wrong)


def status_of(terminal: Terminal) -> dict[str, Any]:
    """status.json, or nothing where there is none yet."""
    try:
        found: dict[str, Any] = json.loads((terminal.root / "run/posagent/status.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def pid_of_daemon(terminal: Terminal) -> int:
    """Who answers on the socket, by the kernel's word."""
    peer = SocketPeer(terminal.root / "run/posagent/agent.sock")
    said = peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    peer.close()
    return int(struct.unpack("3i", said)[0])


def verdict_after(terminal: Terminal) -> str:
    """What the next start says: OK also where only the report of the switch was missing."""
    switched = reader.read_terminal(terminal.pos).schema_version == HEAD
    return "NOT_REQUIRED" if switched and history_of(terminal) else "OK"


def check_each_done_once(terminal: Terminal) -> None:
    """The step of TOUCHED counts how often a record was done."""
    for store, rows in reader.read_terminal(terminal.pos).stores.items():
        for key, raw in rows.items():
            value = reader.parse(raw)
            if isinstance(value, dict):
                assert value["touched"] == reader.Number("1"), f"{store}/{key}"


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Kills:
    """Once for all tests of this file."""
    return Kills(tmp_path_factory.mktemp("kills"))


def test_a_kill_of_the_daemon_behind_every_mark_ends_as_if_it_had_not_been(kills: Kills) -> None:
    states = [m for m in kills.marks if '"state"' in m]
    assert len(states) > 20
    kills.cases([("worker", "mark", n) for n in range(1, len(kills.marks) + 1)])


def test_a_kill_of_the_daemon_at_seeded_moments_of_its_own_ends_as_if_it_had_not_been(
    kills: Kills,
) -> None:
    """Its lock, its diary, its ledger, its status file."""
    last = len(kills.own) - 8  # as time passes it publishes its status a few times more or less
    rng = random.Random(20_261_127)
    kills.cases([("supervisor", "change", n) for n in rng.sample(range(1, last), 20)])


def test_a_sale_made_between_a_kill_and_the_next_start_is_not_lost(tmp_path: Path) -> None:
    """The successor was built from a file that is no longer the one that is there."""
    terminal = a_terminal(tmp_path / "t")
    gate = Gate(terminal)
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        daemon.process.kill()
        gate.wait_for_death()
    sell(terminal, "tx_9999_between")
    before = reader.read_terminal(terminal.pos)
    with Daemon(terminal) as daemon:
        assert daemon.ready().result("status")["verdict"] == "OK"
        assert daemon.stop() == 0
    after = reader.read_terminal(terminal.pos)
    assert after.stores["transactions"].keys() == before.stores["transactions"].keys()
    assert reader.money(terminal.pos)["EUR"] == money_in(before)["EUR"]


def money_in(terminal: reader.Terminal) -> dict[str, tuple[int, int]]:
    return reader.money_of(terminal.stores)


# A worker that no KILL ends


@contextmanager
def frozen(point: Path) -> Iterator[None]:
    """A file system on which every write waits in the kernel, deaf to KILL."""
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.ioctl(fd, FREEZE, 0)
    try:
        yield
    finally:
        fcntl.ioctl(fd, THAW, 0)
        os.close(fd)


@contextmanager
def data_apart(root: Path) -> Iterator[Terminal]:
    """A terminal whose pos.db lies on a file system of its own, the agent's files elsewhere."""
    terminal = a_terminal(root)
    terminal.data.rename(root / "aside")
    with filesystems.ext4(terminal.data, 32 * filesystems.MIB):
        shutil.copytree(root / "aside", terminal.data, dirs_exist_ok=True)
        terminal.configure(state_dir="/state", backups_dir="/state/backups", deadline_ms=1000)
        yield terminal


def test_a_worker_that_no_kill_ends_is_told_of_and_nothing_is_tried_beside_it(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    with data_apart(tmp_path / "t") as terminal:
        gate = Gate(terminal)
        with Daemon(terminal) as daemon:
            gate.wait(daemon.process)
            worker, peer = worker_of(daemon), daemon.peer()
            peer.result("subscribe", events=["alarm"])
            with frozen(terminal.data):
                gate.open()
                until(lambda: state_of(worker) == "D")
                alarm = json.loads(peer.line())
                assert (alarm["method"], alarm["params"]["kind"]) == ("alarm", "stuck")
                assert f"pid {worker}" in alarm["params"]["text"]
                assert state_of(worker) == "D"
                status = peer.result("status")
                assert status["last_error"]["code"] == "TIMEOUT"
                assert "restart the terminal" in status["last_error"]["message"]
                assert status["state"] == "migrating"
                assert peer.call("backup", op="op-000001")["error"]["data"]["kind"] == "BUSY"
                assert worker_of(daemon) == worker, "no other attempt is made meanwhile"
            status = daemon.ready().result("status")
            assert (status["verdict"], status["last_error"]) == ("OK", None)
            assert daemon.stop() == 0
        assert contents(terminal.pos) == whole


def test_sigterm_does_not_wait_for_a_worker_that_no_kill_ends(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    with data_apart(tmp_path / "t") as terminal:
        terminal.configure(deadline_ms=20_000)
        gate = Gate(terminal)
        with Daemon(terminal) as daemon:
            gate.wait(daemon.process)
            worker = worker_of(daemon)
            with frozen(terminal.data):
                gate.open()
                until(lambda: state_of(worker) == "D")
                daemon.process.terminate()
                assert ended_in_time(daemon) == 0
                assert state_of(worker) == "D"
                with Daemon(terminal) as other:
                    status = other.ready().result("status")
                    assert status["last_error"]["code"] == "BUSY"
                    assert other.stop() == 0
        until(lambda: state_of(worker) == "")
        with Daemon(terminal) as daemon:
            assert daemon.ready().result("status")["verdict"] == "OK"
            assert daemon.stop() == 0
        assert contents(terminal.pos) == whole


# Who asks it


def add_migration(terminal: Terminal) -> None:
    """One more that is pending from now on."""
    folder = terminal.own_migrations()
    (folder / "0004_touch_each_record.py").write_text(TOUCHED)
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, 4]
    (folder / "stores.json").write_text(json.dumps(document))


def pending(terminal: Terminal) -> None:
    add_migration(terminal)


def spoilt(terminal: Terminal) -> None:
    add_migration(terminal)
    path = terminal.root / "migrations/0004_touch_each_record.py"
    path.write_text(TOUCHED.replace("return record", "raise ValueError"))


def sold(terminal: Terminal) -> None:
    sell(terminal, "tx_9999_newer")


def nothing(terminal: Terminal) -> None:
    """As the upgrade has left it."""


VERBS = [
    (pending, "migrate"),
    (spoilt, "migrate"),
    (nothing, "migrate"),
    (nothing, "backup"),
    (nothing, "rollback --to 2"),
    (sold, "rollback --to 2"),
    (nothing, "rollback --to 9"),
    (nothing, "rollback --to 3"),
    (nothing, "prune"),
    (nothing, "commit"),
    (nothing, "restore 1"),
    (nothing, "restore 99"),
    (sold, "restore 1"),
    (sold, "restore 1 --discard newer=1,changed=18"),
]


@pytest.mark.parametrize(
    ("prepare", "words"), VERBS, ids=[f"{p.__name__}-{w.replace(' ', '-')}" for p, w in VERBS]
)
def test_a_verb_answers_the_same_object_and_code_with_a_daemon_as_without(
    tmp_path: Path, prepare: Any, words: str
) -> None:
    alone, served = a_terminal(tmp_path / "alone"), a_terminal(tmp_path / "served")
    for terminal in (alone, served):
        terminal.own_migrations()
        assert terminal.boot().code == 0
    prepare(alone)
    expected = alone.run(*words.split(), "--json")
    with Daemon(served) as daemon:
        daemon.ready()
        prepare(served)
        found = served.run(*words.split(), "--json")
        assert daemon.stop() == 0
    if words == "migrate" and prepare is nothing:  # answered without a run, like such a boot
        assert found.json.items() <= expected.json.items()
    else:
        assert shape_of(found.json) == shape_of(expected.json), (found.out, expected.out)
    assert found.code == expected.code
    assert contents(served.pos) == contents(alone.pos)


def shape_of(said: Any, name: str = "") -> Any:
    """The object without what is another in every run: times, names of runs, paths, digests."""
    if isinstance(said, dict):
        return {key: shape_of(value, key) for key, value in said.items()}
    if name in ("run", "timestamp", "sha256", "made_ms", "plan", "message", "size_bytes"):
        return type(said).__name__
    return said


def test_a_second_daemon_ends_with_five_and_leaves_the_first_alone(tmp_path: Path) -> None:
    terminal = at_head(tmp_path / "t")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        second = terminal.run("run", "--json")
        assert (second.code, second.json["error"]["code"]) == (5, "BUSY")
        assert peer.result("ping") == {}
        assert daemon.peer().result("status")["state"] == "idle", "the socket is still the first's"


def test_a_boot_beside_a_daemon_does_nothing_or_leaves_it_to_the_daemon(tmp_path: Path) -> None:
    terminal = at_head(tmp_path / "t")
    terminal.own_migrations()
    with Daemon(terminal) as daemon:
        daemon.ready()
        before = terminal.sha256()
        answer = terminal.boot()
        assert (answer.code, answer.json["verdict"]) == (0, "NOT_REQUIRED")
        add_migration(terminal)
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (5, "BUSY")
        assert terminal.sha256() == before


def test_ctrl_c_of_the_asking_command_leaves_the_run_on(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    terminal = a_terminal(tmp_path / "t")
    terminal.own_migrations()
    assert terminal.boot().code == 0
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        gate = Gate(terminal)
        asking = terminal.start("migrate", "--json")
        gate.wait(asking)
        asking.send_signal(signal.SIGINT)
        out, _ = asking.communicate(timeout=END_S)
        assert asking.returncode == 3
        assert "goes on" in json.loads(out)["error"]["message"]
        assert peer.result("status")["state"] == "migrating"
        gate.open()
        until(lambda: peer.result("status")["state"] == "idle")
        assert peer.result("status")["verdict"] == "OK"
        assert daemon.stop() == 0
    assert contents(terminal.pos) == whole


def test_two_that_ask_at_once_get_one_run(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path / "t")
    terminal.own_migrations()
    assert terminal.boot().code == 0
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        gate = Gate(terminal)
        first = terminal.start("migrate", "--json")
        gate.wait(first)
        second = terminal.run("migrate", "--json")
        assert (second.code, second.json["error"]["code"]) == (5, "BUSY")
        gate.open()
        out, _ = first.communicate()
        assert (first.returncode, json.loads(out)["verdict"]) == (0, "OK")
        assert peer.result("history")["history"][0]["version"] == HEAD


READING = ("status", "plan", "history", "backups", "health", "profile", "log", "quarantine")


def test_reading_verbs_work_beside_an_idle_daemon(tmp_path: Path) -> None:
    terminal = at_head(tmp_path / "t")
    expected = {verb: terminal.run(verb, "--json") for verb in (*READING, "validate", "verify")}
    with Daemon(terminal) as daemon:
        daemon.ready()
        for verb, alone in expected.items():
            beside = terminal.run(verb, "--json")
            assert beside.code == alone.code == 0, beside.out
            assert beside.json.keys() == alone.json.keys()
        assert daemon.stop() == 0


def test_while_a_run_is_on_what_reads_pos_db_says_busy_and_the_rest_answers(
    tmp_path: Path,
) -> None:
    terminal = a_terminal(tmp_path / "t")
    gate = Gate(terminal)
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        peer = daemon.peer()
        answer = terminal.run("validate", "--json")
        assert (answer.code, answer.json["error"]["code"]) == (5, "BUSY")
        for verb in ("plan", "validate", "verify"):
            assert peer.call(verb)["error"]["data"]["kind"] == "BUSY"
        status = peer.result("status")
        assert (status["schema"], status["target"], status["run"]) == (0, HEAD, 1)
        answer = terminal.run("status", "--json", "--exit-code")
        assert answer.code == 3
        assert answer.json["advice"]["word"] == "wait"
        for verb in ("history", "backups", "profile"):
            assert terminal.run(verb, "--json").code == 0
        gate.open()
        until(lambda: peer.result("status")["state"] == "idle")
        assert daemon.stop() == 0


def test_status_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Whoever reads it, at any moment, finds one JSON object in a file that does not change."""
    terminal = a_terminal(tmp_path / "t", records=4000)
    path = terminal.root / "run/posagent/status.json"
    path.write_text('{"state":"older"}')
    seen: list[tuple[int, str]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with open(path) as file:
                text = file.read()
                again = os.pread(file.fileno(), 65536, 0).decode()
                seen.append((os.fstat(file.fileno()).st_ino, json.loads(text)["state"]))
            assert text == again

    with ThreadPoolExecutor(1) as pool, Daemon(terminal) as daemon:
        looking = pool.submit(look)
        daemon.ready()
        over.set()
        looking.result()
        assert daemon.stop() == 0
    assert len({inode for inode, _ in seen}) > 1
    assert {"older", "done"} <= {state for _, state in seen}
    assert len({state for _, state in seen}) > 2, "a reader sees the run move"


# Memory


def private_kib(pid: int) -> int:
    """What this process alone holds of memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


SHEAVES = 5  # sent at once
MIXED: list[tuple[str, dict[str, Any], str]] = [
    ("status", {}, "result"),
    ("ping", {}, "result"),
    ("subscribe", {"events": ["progress", "state"], "min_ms": 0}, "result"),
    ("stauts", {}, "error"),
    ("unsubscribe", {}, "result"),
    ("migrate", {"to": 3}, "error"),
    ("hello", {"proto": [1]}, "result"),
    ("result", {"run": 77}, "error"),
    ("describe", {"method": "restore"}, "result"),
    ("cancel", {"op": "op-000001", "run": 77}, "error"),
]


def talk(daemon: Daemon, calls: int) -> None:
    """So many calls of all kinds over one connection, sent in sheaves, each answer looked at."""
    sheaf = b"".join(
        json.dumps({"jsonrpc": "2.0", "id": n, "method": method, "params": params}).encode() + b"\n"
        for n, (method, params, _) in enumerate(MIXED)
    )
    starts = [
        b'{"jsonrpc":"2.0","id":%d,"%s"' % (n, end.encode()) for n, (*_, end) in enumerate(MIXED)
    ]
    peer = daemon.peer()
    for _ in range(calls // len(MIXED) // SHEAVES):
        peer.send(sheaf * SHEAVES)
        for start in starts * SHEAVES:
            line = peer.line()
            assert line.startswith(start), line
    peer.close()


def test_private_memory_does_not_grow_with_the_calls(tmp_path: Path) -> None:
    terminal = at_head(tmp_path / "t")
    with Daemon(terminal) as daemon:
        daemon.ready().close()
        pid = daemon.process.pid
        talk(daemon, 1000)
        before = private_kib(pid)
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(talk, daemon, 33_000) for _ in range(3)]:
                done.result()
        grown = private_kib(pid) - before
        assert grown <= 128, f"{grown} KiB more after 100,000 calls"
        assert daemon.stop() == 0
