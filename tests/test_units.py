"""The unit, the init script and app-may-start, by the programs that will run them.

systemd-analyze judges the units; the shell scripts run under busybox with a path that holds nothing
but busybox, as on a small terminal. What the unit takes away from the agent is taken away from a
real upgrade here: the rights of root by setpriv, the system calls by comparing with strace.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.core import states
from agent.edges import config as places
from agent.ground.limits import QUICK_CHECK_BYTES_PER_S
from tests.terminals import COMMAND, ROOT, Terminal, new_terminal, start_at_gate

PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "systemd" / "posagent.service"
DROP_IN = PACKAGING / "systemd" / "pos-application.service.d" / "posagent.conf"
INIT = PACKAGING / "init" / "S20posagent"
MAY_START = PACKAGING / "app-may-start"
SCRIPTS = [INIT, MAY_START]
INSTALLED = "/usr/lib/posagent/"


def settings_of(path: Path) -> dict[str, dict[str, str]]:
    """A unit's sections; of a setting that stands more than once, all values, a line each."""
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    seen: dict[str, list[str]] = {}

    def numbered(line: str) -> str:
        name, equals, value = line.partition("=")
        if not equals or line.startswith("#"):
            return line
        seen.setdefault(name, []).append(value)
        return f"{name}={value}"

    parser.read_string("\n".join(map(numbered, path.read_text("utf-8").splitlines())))
    return {
        section: {name: "\n".join(seen[name]) for name in parser[section]}
        for section in parser.sections()
    }


SERVICE = settings_of(UNIT)["Service"]


def seconds(text: str) -> int:
    """A time as the units write it."""
    return int(text[:-3]) * 60 if text.endswith("min") else int(text)


def profiles() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each shipped profile."""
    for path in sorted((ROOT / "device_profiles").glob("*.json")):
        document = json.loads(path.read_text())
        if path.stem != "schema":
            yield path.stem, {name: e["value"] for name, e in document["settings"].items()}


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tools of busybox and nothing else."""
    folder = tmp_path_factory.mktemp("busybox")
    subprocess.run(["busybox", "--install", "-s", str(folder)], check=True)
    return str(folder)


# Units


def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    # As installed, but for the interpreter, which lies elsewhere on a machine that builds.
    unit = UNIT.read_text().replace("/usr/bin/python3", sys.executable)
    (tmp_path / "posagent.service").write_text(unit)
    (tmp_path / "pos-application.service").write_text("[Service]\nExecStart=/bin/sh -c :\n")
    shutil.copytree(DROP_IN.parent, tmp_path / DROP_IN.parent.name)
    for name in ("posagent.service", "pos-application.service"):
        judged = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
            capture_output=True,
            text=True,
            check=False,
        )
        ours = [line for line in judged.stderr.splitlines() if "pos" in line]
        assert (judged.returncode, ours) == (0, [])


def test_the_unit_starts_what_the_wheel_brings_without_site_or_environment() -> None:
    start = SERVICE["ExecStart"].split()
    assert start[:4] == ["/usr/bin/python3", "-I", "-S", "-B"]
    assert (ROOT / start[4].removeprefix(INSTALLED)).is_file()
    assert start[5:] == ["run"]


def test_the_wheel_brings_what_the_units_and_the_page_name() -> None:
    included = (ROOT / "pyproject.toml").read_text()
    assert '"packaging" = "agent/_data/packaging"' in included
    named = re.findall(
        rf"{INSTALLED}agent/_data/packaging/([\w/.-]*\w)",
        DROP_IN.read_text() + (ROOT / "docs/running.md").read_text(),
    )
    assert named
    assert [name for name in named if not (PACKAGING / name).exists()] == []


@pytest.mark.parametrize("setting", ["TimeoutStartSec", "WatchdogSec"])
def test_systemd_waits_longer_than_the_longest_time_without_a_mark(setting: str) -> None:
    for name, profile in profiles():
        checking_s = min(profile["pos_db_bytes_max"], 1 << 30) / QUICK_CHECK_BYTES_PER_S
        longest_s = profile["deadline_ms"] / 1000 + checking_s
        assert seconds(SERVICE[setting]) > longest_s, name


def test_the_unit_lets_the_agent_write_where_it_writes_and_nowhere_else() -> None:
    writable = SERVICE["ReadWritePaths"].split()
    assert SERVICE["ProtectSystem"] == "strict"
    for path in (places.POS_DB, places.STATE_DIR):
        assert any(path.startswith(folder + "/") for folder in writable)
    assert f"/run/{SERVICE['RuntimeDirectory']}" == places.RUN_DIR
    assert SERVICE["RuntimeDirectoryMode"] == "0750"


def test_the_unit_allows_the_devices_of_every_shipped_profile() -> None:
    allowed = {line.split()[0] for line in SERVICE["DeviceAllow"].splitlines()}
    for name, profile in profiles():
        if profile["watchdog_device"]:
            assert profile["watchdog_device"] in allowed, name
        if profile["serial_device"]:
            kind = profile["serial_device"].removeprefix("/dev/").rstrip("0123456789")
            assert f"char-{kind}" in allowed, name


def test_the_application_waits_for_the_agent_and_does_not_need_it() -> None:
    unit = settings_of(DROP_IN)["Unit"]
    assert (unit["After"], unit["Wants"]) == ("posagent.service", "posagent.service")
    for binds in ("Requires", "BindsTo", "PartOf", "Requisite"):
        assert binds not in unit


def calls_of(group: str) -> set[str]:
    """The system calls of a group of systemd's, groups within it included."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    words = [line.strip() for line in listed.stdout.splitlines()[1:]]
    plain = {word for word in words if word and word[0] not in "@#"}
    return plain.union(*(calls_of(word) for word in words if word[:1] == "@"))


def test_a_daemon_that_upgrades_does_nothing_that_the_unit_refuses(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", records=30, unsettled=3)
    trace = tmp_path / "trace"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        told = ""
        with subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-I1", "--trace=all", "-o", str(trace)),
                *(*COMMAND, "--root", str(terminal.root), "run"),
            ],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as daemon:
            while "READY=1" not in told:
                told += manager.recv(4096).decode() + "\n"
            first = int(trace.read_text().split(" ", 1)[0])
            os.kill(first, signal.SIGTERM)
        assert daemon.returncode == 0
    assert terminal.read().schema_version == 3
    assert "EXTEND_TIMEOUT_USEC=" in told
    lines = trace.read_text()
    made = set(re.findall(r"^\d+ +([a-z]\w+)\(", lines, re.MULTILINE))
    assert len(made) > 40
    assert made - calls_of(SERVICE["SystemCallFilter"]) == set()
    families = set(re.findall(r" socket\((\w+)", lines))
    assert families == set(SERVICE["RestrictAddressFamilies"].split())


def test_an_upgrade_needs_no_right_of_root_that_the_unit_takes(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", records=30, unsettled=3)
    terminal.pos.chmod(0o600)
    os.chown(terminal.pos, 1234, 1234)
    os.chown(terminal.data, 1234, 1234)
    kept = SERVICE["CapabilityBoundingSet"].replace("CAP_", "+").lower().split()
    bounded = ["setpriv", "--no-new-privs", "--bounding-set", ",".join(["-all", *kept])]
    command = [*bounded, *COMMAND, "--root", str(terminal.root), "boot", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "OK"), done.stdout
    found = terminal.pos.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1234, 0o600)


# app-may-start


class Data:
    """The files that app-may-start looks at, and the script itself under busybox."""

    def __init__(self, root: Path, path: str) -> None:
        self.env = {
            "PATH": path,
            "POSAGENT_DEFAULTS": str(root / "none"),
            "POS_DB": str(root / "pos.db"),
            "STATE_DIR": str(root),
            "RUN_DIR": str(root),
            "STORES_JSON": str(root / "stores.json"),
            "RUN_WAIT_S": "0",
        }
        self.root = root

    def put(self, schema: int | None, reads: object, status: object = None) -> None:
        if schema is not None:
            with closing(sqlite3.connect(self.root / "pos.db")) as database:
                database.execute("CREATE TABLE IF NOT EXISTS t (a)")
                database.execute(f"PRAGMA user_version = {schema}")
                database.commit()
        if reads is not None:
            (self.root / "stores.json").write_text(json.dumps({"app_reads": reads}, indent=2))
        if status is not None:
            (self.root / "status.json").write_text(json.dumps(status, separators=(",", ":")))

    def ask(self) -> tuple[int, str]:
        ran = subprocess.run(
            ["busybox", "sh", str(MAY_START)],
            env={**self.env, "PATH": self.env["PATH"]},
            executable=shutil.which("busybox"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout == ""
        return ran.returncode, ran.stderr


@pytest.fixture
def data(tmp_path: Path, small_path: str) -> Data:
    return Data(tmp_path, small_path)


RUNNING = {"state": "migrating", "app_may_start": False, "progress": {"state": "migrating"}}
HELD = {
    "verdict": "HELD",
    "app_may_start": False,
    "app_must_not_start_because": 'somebody has to look at "pos.db"',
    "error": {"code": "HELD", "message": 'it is not "app_may_start":true'},
    "state": "held",
}

# What it looks at -> 0 or 1, and a part of what it says.
JUDGEMENTS = {
    "the agent says yes": (3, [0, 3], {"app_may_start": True, "state": "done"}, 0, ""),
    "the agent says yes to newer data": (4, [0, 3], {"app_may_start": True}, 0, ""),
    "the agent says no": (3, [0, 3], HELD, 1, "somebody has to look at"),
    "the agent was cut, data readable": (3, [0, 3], RUNNING, 0, "the agent was cut"),
    "the agent was cut, data too old": (0, [1, 3], RUNNING, 1, "schema 0"),
    "no word, data readable": (2, [2, 2], None, 0, "schema 2, which the application reads"),
    "no word, data too new": (4, [0, 3], None, 1, "schema 4 and the application reads 0 to 3"),
    "no word, data too old": (1, [2, 3], None, 1, "schema 1 and the application reads 2 to 3"),
    "no word, a large number": (2**31 - 1, [0, 3], None, 1, "schema 2147483647"),
    "no word, below nought": (-1, [0, 3], None, 1, "schema 4294967295"),
    "no word, no data": (None, [0, 3], None, 1, "no SQLite file"),
    "no word, no contract": (3, None, None, 1, "cannot be told"),
    "no word, a contract that says nothing": (3, "all", None, 1, "cannot be told"),
    "rubbish for a word": (3, [0, 3], "rubbish", 0, "the agent has not spoken"),
}


@pytest.mark.parametrize("case", JUDGEMENTS.values(), ids=list(JUDGEMENTS))
def test_the_agent_is_asked_first_and_the_data_where_it_is_silent(data: Data, case: Any) -> None:
    schema, reads, status, code, says = case
    data.put(schema, reads, status)
    ended, said = data.ask()
    assert (ended, said.count("\n")) == (code, 1 if says else 0)
    assert says in said


@pytest.mark.parametrize("state", states.STATES)
def test_every_state_of_a_run_is_known_to_the_scripts(data: Data, state: str) -> None:
    data.put(3, [0, 3], {"state": state, "app_may_start": False})
    assert data.ask()[0] == (1 if state in states.FINAL else 0)
    for script in SCRIPTS:
        assert (f'"state":"{state}"' in script.read_text()) == (state not in states.FINAL)


def test_a_file_that_is_no_database_is_told_from_one(data: Data) -> None:
    data.put(None, [0, 3])
    for content in (b"", b"SQLite format 2\0" + bytes(100), b"SQLite format 3", os.urandom(200)):
        (data.root / "pos.db").write_bytes(content)
        assert data.ask()[0] == 1


def test_it_changes_nothing_and_locks_nothing(data: Data) -> None:
    data.put(3, [0, 3])
    (data.root / "lock").touch()
    before = {path.name: path.stat().st_mtime_ns for path in data.root.iterdir()}
    assert data.ask()[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in data.root.iterdir()} == before


def at(terminal: Terminal, path: str) -> Data:
    """app-may-start for a sample terminal with the folders as they lie there."""
    data = Data(terminal.root, path)
    data.env["POS_DB"] = str(terminal.pos)
    data.env["STATE_DIR"] = str(terminal.data / "posagent")
    data.env["RUN_DIR"] = str(terminal.root / "run/posagent")
    data.env["STORES_JSON"] = str(terminal.own_migrations() / "stores.json")
    return data


def test_it_agrees_with_the_agent_through_an_upgrade(tmp_path: Path, small_path: str) -> None:
    terminal = new_terminal(tmp_path / "root", records=30, unsettled=3)
    data = at(terminal, small_path)
    assert data.ask()[0] == 0
    assert terminal.boot().code == 0
    assert data.ask() == (0, "")
    contract = terminal.own_migrations() / "stores.json"
    contract.write_text(json.dumps(dict(json.loads(contract.read_text()), app_reads=[0, 2])))
    assert terminal.boot().code == 12
    ended, said = data.ask()
    assert (ended, "pos.db has schema 3 and the application reads 0 to 2" in said) == (1, True)
    (terminal.root / "run/posagent/status.json").unlink()
    ended, said = data.ask()
    assert (ended, "schema 3 and the application reads 0 to 2" in said) == (1, True)


def test_a_run_that_is_on_is_waited_for_and_one_that_was_cut_is_not(
    tmp_path: Path, small_path: str
) -> None:
    terminal = new_terminal(tmp_path / "root", records=30, unsettled=3)
    data = at(terminal, small_path)
    run, gate = start_at_gate(terminal, "boot", "--json")
    ended, said = data.ask()
    assert (ended, "a run is on" in said) == (1, True)
    run.kill()
    run.communicate()
    gate.wait_for_death()
    (terminal.root / "run/posagent/status.json").write_text(
        json.dumps(RUNNING, separators=(",", ":"))
    )
    ended, said = data.ask()
    assert (ended, "the agent was cut" in said) == (0, True)


# The init script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.name))
@pytest.mark.parametrize("shell", [["busybox", "sh"], ["sh"]], ids=" ".join)
def test_the_scripts_are_plain_sh(script: Path, shell: list[str]) -> None:
    judged = subprocess.run([*shell, "-n", str(script)], capture_output=True, check=False)
    assert (judged.returncode, judged.stderr) == (0, b"")
    assert os.access(script, os.X_OK)


# A daemon that behaves as its folder says: what it publishes, when it ends, how it takes a TERM.
STAND_IN = """
import json, os, signal, sys
folder = os.path.dirname(os.path.abspath(__file__))
assert sys.argv[-1] == "run" and sys.flags.isolated and sys.flags.no_site
starts = os.path.join(folder, "starts")
with open(starts, "a") as file:
    file.write(str(os.getpid()) + "\\n")
number = len(open(starts).readlines())
plan = json.load(open(os.path.join(folder, "plan")))
step = plan[min(number, len(plan)) - 1]
def say(**values):
    path = os.path.join(folder, "run", "status.json")
    with open(path + ".tmp", "w") as file:
        file.write(json.dumps(values, separators=(",", ":")))
    os.replace(path + ".tmp", path)
if step == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if isinstance(step, int):
    sys.exit(step)
if step == "gate":
    say(state="migrating", app_may_start=False)
    open(os.path.join(folder, "gate")).read()
say(state="done", app_may_start=True)
signal.sigwait([signal.SIGUSR1]) if step == "deaf" else signal.pause()
"""


class Init:
    """The init script with its own folder in place of /run, and a stand-in for the daemon."""

    def __init__(self, root: Path, path: str, plan: list[object]) -> None:
        self.root = root
        self.run = root / "run"
        self.daemon = root / "daemon.py"
        self.daemon.write_text(STAND_IN)
        (root / "plan").write_text(json.dumps(plan))
        os.mkfifo(root / "gate")
        self.env = {
            "PATH": path,
            "POSAGENT_DEFAULTS": str(root / "none"),
            "PYTHON": sys.executable,
            "PROGRAM": str(self.daemon),
            "RUN_DIR": str(self.run),
            "START_WAIT_S": "60",
            "STOP_WAIT_S": "20",
            "RESTART_S": "0",
        }

    def begin(self, word: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["busybox", "sh", str(INIT), word],
            executable=shutil.which("busybox"),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, word: str) -> tuple[int, str]:
        process = self.begin(word)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.root / "starts").read_text().split()]


@pytest.fixture
def init(tmp_path: Path, small_path: str) -> Iterator[Any]:
    made: list[Init] = []

    def make(*plan: object) -> Init:
        made.append(Init(tmp_path, small_path, list(plan)))
        return made[-1]

    yield make
    for one in made:
        one.env["STOP_WAIT_S"] = "0"
        one("stop")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_start_status_stop(init: Any) -> None:
    script = init("well")
    assert script("status") == (3, "posagent does not run\n")
    assert script("start") == (0, "posagent runs\n")
    assert script("status")[0] == 0
    assert (script.run.stat().st_mode & 0o777) == 0o750
    assert "already" in script("start")[1]
    (pid,) = script.pids
    assert is_alive(pid)
    assert script("stop") == (0, "posagent is stopped\n")
    assert not is_alive(pid)
    assert script("status")[0] == 3
    assert script("stop") == (0, "posagent does not run\n")


def test_start_returns_only_when_the_decision_is_there(init: Any) -> None:
    script = init("gate")
    start = script.begin("start")
    with open(script.root / "gate", "w"):  # opens when the daemon stands at the gate
        assert start.poll() is None
        assert '"migrating"' in (script.run / "status.json").read_text()
    assert start.communicate(timeout=60)[0] == "posagent runs\n"


def test_what_an_agent_before_it_said_is_no_answer(init: Any) -> None:
    script = init("gate")
    script.run.mkdir()
    (script.run / "status.json").write_text('{"app_may_start":true,"state":"done"}')
    start = script.begin("start")
    with open(script.root / "gate", "w"):
        assert start.poll() is None
    assert start.communicate(timeout=60)[0] == "posagent runs\n"


def test_the_boot_goes_on_when_an_upgrade_takes_very_long(init: Any) -> None:
    script = init("gate")
    script.env["START_WAIT_S"] = "0"
    assert script("start") == (0, "posagent is still at work; it goes on\n")
    with open(script.root / "gate", "w"):
        pass


def test_a_daemon_that_cannot_start_keeps_nobody_waiting_and_is_tried_again(init: Any) -> None:
    script = init(78, "gate")
    script.env["RESTART_S"] = "0.2"
    ended, said = script("start")
    assert (ended, "ended with 78" in said) == (1, True)
    with open(script.root / "gate", "w"):
        assert len(script.pids) == 2
    assert script("status")[0] == 0


def test_a_daemon_that_was_killed_comes_back(init: Any) -> None:
    script = init("well", "gate")
    assert script("start")[0] == 0
    os.kill(script.pids[0], signal.SIGKILL)
    with open(script.root / "gate", "w"):
        assert is_alive(script.pids[1])
    assert script("stop")[0] == 0
    assert not any(is_alive(pid) for pid in script.pids)


def test_a_daemon_that_ends_well_by_itself_stays_ended(init: Any) -> None:
    script = init(0)
    assert script("start")[0] == 1
    assert script("status")[0] == 3
    assert len(script.pids) == 1


def test_stop_during_the_pause_before_a_new_try_ends_it(init: Any) -> None:
    script = init(1)
    script.env["RESTART_S"] = "1000"
    assert script("start")[0] == 1
    assert script("stop")[0] == 0
    assert script("status")[0] == 3


def test_a_daemon_that_does_not_hear_is_killed(init: Any) -> None:
    script = init("deaf")
    assert script("start")[0] == 0
    script.env["STOP_WAIT_S"] = "0"
    assert script("stop")[0] == 0
    assert not is_alive(script.pids[0])


def test_a_number_that_another_program_has_now_is_not_ours(init: Any) -> None:
    script = init("well")
    script.run.mkdir()
    with subprocess.Popen(["sleep", "1000"]) as other:
        (script.run / "posagent.pid").write_text(str(other.pid))
        assert script("status")[0] == 3
        assert script("stop")[0] == 0
        assert other.poll() is None
        assert script("start")[0] == 0
        other.kill()


def test_settings_come_from_the_file_of_defaults(init: Any) -> None:
    script = init("well")
    defaults = script.root / "defaults"
    defaults.write_text(f"PROGRAM={script.env.pop('PROGRAM')}\n")
    script.env["POSAGENT_DEFAULTS"] = str(defaults)
    assert script("start") == (0, "posagent runs\n")


def test_a_wrong_word_is_told_what_there_is(init: Any) -> None:
    ended, said = init("well")("begin")
    assert (ended, "start | stop | restart | status" in said) == (64, True)


def test_the_real_daemon_upgrades_at_start_and_ends_at_stop(init: Any, tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "terminal", records=30, unsettled=3)
    script = init()
    script.run = terminal.root / "run/posagent"
    script.env.update(
        PROGRAM=str(COMMAND[-1]), RUN_DIR=str(script.run), OPTIONS=f"--root {terminal.root}"
    )
    assert script("start") == (0, "posagent runs\n")
    assert terminal.read().schema_version == 3
    assert at(terminal, script.env["PATH"]).ask() == (0, "")
    assert terminal.run("boot", "--json").code == 5  # there is an agent here
    assert script("stop") == (0, "posagent is stopped\n")
    assert terminal.boot().json["verdict"] == "NOT_REQUIRED"
