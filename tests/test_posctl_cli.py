"""The command `posctl` as a technician and a program run it, against real daemons.

Each verb over a pty, a noisy pty and a socket; each bad line; an interrupt at each request. What is
to happen in mid-run happens while the run stands at its gate, so nothing here waits for a time.
"""

from __future__ import annotations

import fcntl
import grp
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import pytest

from agent.cli.arguments import VERBS
from posctl.main import run
from tests.daemons import until
from tests.posctl_bench import HELLO, RATE, Bench, Device, replying
from tests.screens import Screen, shows
from tests.terminals import Answer, Gate
from tests.test_posctl_lines import as_nobody

POSCTL = [sys.executable, "-m", "posctl"]
PLACES = ("pty", "noisy pty", "socket")
NOISE = 0.002
KEY = bytes(range(32))
DIALOUT = grp.getgrnam("dialout").gr_gid
QUICK = ("--timeout", "0.6")  # a pty has no rate, and the agent's own patience is 0.4 s
AT_ONCE = ("--timeout", "0.03")  # where no answer is to come
OP = re.compile(r"\bop (ctl-[0-9a-f]{16}): ")

every_place = pytest.mark.parametrize("place", PLACES)


class Ran:
    """How one call of the command ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr
        assert "Traceback" not in self.err, self.err
        assert "\x1b" not in self.out + self.err, "a pipe gets plain lines"

    @property
    def json(self) -> Any:
        """The one line of standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def op(self) -> str:
        """What was told before anything was sent."""
        found = OP.search(self.err)
        assert found, self.err
        return found[1]


def environment(**more: str) -> dict[str, str]:
    """Without what a test machine may have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POSCTL", "XDG", "_POSCTL"))}
    return {**kept, "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1", **more}


def ctl(*words: str, typed: str = "", **env: str) -> Ran:
    """`posctl WORDS` in this process, which spares its start and nothing else."""
    out, err, keys = io.StringIO(), io.StringIO(), io.StringIO(typed)
    patches = (
        patch.dict(os.environ, environment(**env), clear=True),
        patch.object(sys, "stdin", keys),
    )
    with patches[0], patches[1], redirect_stdout(out), redirect_stderr(err):
        code = run(list(words))
    return Ran(subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue()))


def real(*words: str, typed: str = "", **env: str) -> Ran:
    """The same in a process of its own, waited for."""
    return Ran(
        subprocess.run(
            [*POSCTL, *words],
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(**env),
        )
    )


def start(*words: str, **env: str) -> subprocess.Popen[str]:
    """The same, not waited for, and without anybody at the keyboard."""
    return subprocess.Popen(
        [*POSCTL, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    )


def ends(process: subprocess.Popen[str]) -> Ran:
    """How one that was started ended."""
    out, err = process.communicate(timeout=60)
    return Ran(subprocess.CompletedProcess(process.args, process.returncode, out, err))


def at(bench: Bench, place: str) -> tuple[str, ...]:
    """The words that name a terminal over one of its lines."""
    if place == "socket":
        return ("-s", str(bench.daemon.socket_path))
    return ("-p", f"{bench.port}@{RATE}", *QUICK)


def wired(bench: Bench, place: str, seed: object = 3) -> tuple[str, ...]:
    """The same, with the cable that the place says."""
    if place != "socket":
        bench.pull()
        bench.plug_in(NOISE if place == "noisy pty" else 0.0, seed)
    return at(bench, place)


def with_key(bench: Bench, folder: Path) -> Path:
    """Give the terminal its own key, of which the desk has the file; the daemon starts anew."""
    key = folder / "device.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    assert bench.terminal.run("key", "--set", str(key)).code == 0
    bench.restart(signal.SIGTERM)
    bench.daemon.ready()
    return key


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path / "terminal") as made:
        yield made


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One terminal for the tests that change nothing."""
    with Bench(tmp_path_factory.mktemp("resting")) as made:
        yield made


class AtGate:
    """`posctl migrate` whose run stands at its gate. The plan executes a migration, too, so the
    gate is there only once the plan was shown."""

    def __init__(self, bench: Bench, *words: str) -> None:
        self.gate = Gate(bench.terminal)
        self.gate.path.unlink()
        self.process = subprocess.Popen(
            [*POSCTL, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self.process.stdin
        assert self.process.stderr
        _until_asked(self.process.stderr)
        os.mkfifo(self.gate.path)
        self.process.stdin.write("y\n")
        self.process.stdin.flush()
        told = OP.search(self.process.stderr.readline())
        assert told
        self.op = told[1]
        self.gate.wait(bench.daemon.process)

    def until_shown(self, word: str) -> str:
        """The next line of standard output with a word in it."""
        assert self.process.stdout
        for line in self.process.stdout:
            if word in line:
                return line
        raise AssertionError(f"{word!r} did not come")


def _until_asked(stream: IO[str]) -> None:
    said = ""
    while not said.endswith("[y/N] "):
        more = stream.read(1)
        assert more, said
        said += more


# ---- What only looks


@every_place
@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["plan"], ["history"], ["backups"], ["quarantine"]),
        *(["health"], ["profile"], ["log"], ["verify"], ["verify", "1"], ["validate"]),
    ],
    ids=" ".join,
)
def test_a_reading_verb_answers_as_on_the_terminal(
    resting: Bench, place: str, words: list[str]
) -> None:
    there = on_the_terminal(resting, words)
    here = ctl(*wired(resting, place), *words, "--json")
    assert here.code == there.code, here.err
    assert steady(here.json) == steady(there.json)


_there: dict[tuple[str, ...], Answer] = {}


def on_the_terminal(resting: Bench, words: list[str]) -> Answer:
    """What the command says there; asked once, since nothing changes it."""
    key = tuple(words)
    if key not in _there:
        _there[key] = resting.terminal.run(*words, "--json")
    return _there[key]


def steady(said: Any) -> Any:
    """An answer without what is another with each look: the clock, the log, free space."""
    if isinstance(said, dict):
        gone = ("wall_ms", "log") if "checks" not in said else ()
        kept = {key: steady(value) for key, value in said.items() if key not in gone}
        if kept.get("name") == "space":
            del kept["says"], kept["value"]
        return kept
    return [steady(one) for one in said] if isinstance(said, list) else said


SHOWN = {
    "status": ["doing   idle; schema 3, nothing pending", "to do   nothing has to be done; *"],
    "plan": ["schema  3 -> 3", "note: nothing to do: *"],
    "history": ["No.  when (UTC)*verdict", "  1  *  migrate  0 -> 1  applied  OK  *"],
    "backups": ["No.  backup*", "  1  000001-v0.posbak  *"],
    "quarantine": ["no record is left behind"],
    "health": ["ok   data *", "* failed, * warnings"],
    "profile": ["profile generic: *", "ram_budget_bytes * 67108864 *"],
    "log": ["No.  when (UTC) *", "* boot * accepted *"],
    "verify": ["000001-v0.posbak  ok *"],
    "validate": ["schema  3", "transactions *", "* unsettled records; *"],
    "watch": ["no run is on; the last one ended OK"],
    "cancel": ["no run is on"],
}


@pytest.mark.parametrize("verb", list(SHOWN))
def test_people_get_lines_that_say_the_same(resting: Bench, verb: str) -> None:
    ran = ctl(*at(resting, "socket"), verb)
    assert (ran.code, ran.err) == (0, "")
    shows(ran.out, *SHOWN[verb])
    assert "`posagent " not in ran.out, "what is to be typed is typed here"


def test_the_words_before_the_verb_may_stand_behind_it(resting: Bench) -> None:
    before = ctl(*at(resting, "pty"), "--json", "backups")
    behind = ctl("backups", "--json", *at(resting, "pty"))
    assert before.json == behind.json


def test_the_bundle_is_one_file_and_is_not_written_over(resting: Bench, tmp_path: Path) -> None:
    path = tmp_path / "for-the-desk.json"
    words = (*wired(resting, "pty"), "bundle", str(path))
    ran = ctl(*words, "--json")
    assert ran.json == {"path": str(path), "size_bytes": path.stat().st_size}
    assert {"status", "health", "history", "log"} <= set(json.loads(path.read_text()))
    assert ctl(*words).code == 64
    assert ctl(*words, "--force").code == 0


def test_status_exits_3_when_asked_while_something_is_pending(bench: Bench) -> None:
    Gate(bench.terminal).path.unlink()
    assert ctl(*at(bench, "socket"), "status").code == 0
    ran = ctl(*at(bench, "socket"), "status", "--exit-code")
    assert ran.code == 3
    shows(ran.out, "doing   idle; schema 3 -> 4, 1 migration pending", "to do   start `posctl *")


def test_a_damaged_backup_is_told_with_the_terminals_exit_code(bench: Bench) -> None:
    (path,) = bench.terminal.backups.glob("*.posbak")
    path.write_bytes(path.read_bytes()[:-40])
    for words in (["verify"], ["verify", "1"]):
        there, here = bench.terminal.run(*words, "--json"), ctl(*at(bench, "pty"), *words, "--json")
        assert (here.code, here.json) == (there.code, there.json) == (9, there.json)
    ran = ctl(*at(bench, "pty"), "verify", path.name)
    shows(ran.out, f"{path.name}  DAMAGED *")
    assert ran.err.startswith("posctl: BACKUP_CORRUPT: ")
    assert ctl(*at(bench, "pty"), "verify", "7").code == 64


# ---- What changes something


@every_place
def test_an_upgrade_shows_its_plan_tells_its_op_and_ends_with_the_terminals_answer(
    bench: Bench, place: str
) -> None:
    Gate(bench.terminal).path.unlink()
    line = wired(bench, place)
    refused = ctl(*line, "migrate", typed="no\n")
    assert refused.code == 1
    assert "posctl: NOT_STARTED: nothing was changed\n" in refused.err
    assert OP.search(refused.err) is None
    assert bench.terminal.run("status", "--json").json["doing"]["version"] == 3
    ran = ctl(*line, "migrate", typed="y\n")
    assert ran.code == 0, ran.err
    shows(ran.out, "schema * 3 -> 4", "0004 *waits at the gate*", "OK: schema 3 -> 4, *")
    assert OP.search(ran.err)
    again = ctl(*line, "migrate", "--json")
    assert (again.code, again.json["verdict"]) == (0, "NOT_REQUIRED")
    watched = ctl(*line, "watch", "--op", ran.op, "--json")
    assert (watched.code, watched.json["verdict"]) == (0, "OK")
    assert watched.json["to_version"] == 4
    assert len([row for row in bench.history() if row["version"] == 4]) == 1


@every_place
def test_backup_commit_rollback_restore_and_prune_over_every_line(
    bench: Bench, place: str, tmp_path: Path
) -> None:
    key = with_key(bench, tmp_path)
    line = wired(bench, place)
    made = ctl(*line, "backup", "--json")
    assert (made.code, made.json["backup"]["sequence"]) == (0, 2), made.err
    if place != "socket":  # where an admin may take as many as there is room for
        soon = ctl(*line, "backup", "--json")
        assert (soon.code, soon.json["error"]["code"]) == (5, "BUSY"), soon.out
    for words, verdict in (
        (["rollback", "--to", "2"], "OK"),
        (["commit"], "OK"),
        (["prune"], "NOT_REQUIRED"),
        (["restore", "2"], "OK"),
    ):
        ran = allowed(line, words, key)
        assert (ran.code, ran.json.get("verdict")) == (0, verdict), (words, ran.out, ran.err)
    assert ctl(*line, "restore", "7", "-y", "--json").code in (1, 64)


def allowed(line: tuple[str, ...], words: list[str], key: Path) -> Ran:
    """A command with the code of a desk that has the key, where the line needs one."""
    first = ctl(*line, *words, "-y", "--json")
    facts = first.json.get("error", {}).get("facts", {})
    if "challenge" not in facts:
        return first
    assert (first.code, first.json["error"]["code"]) == (1, "NOT_ALLOWED")
    desk = ctl("code", "--device-key", str(key), "--json", typed=json.dumps(facts["challenge"]))
    assert desk.json["command"].split()[0] == words[0]
    return ctl(*line, *words, "-y", "--json", "--code", desk.json["code"])


def test_somebody_on_the_telephone_reads_a_line_out_and_types_the_code(
    bench: Bench, tmp_path: Path
) -> None:
    key = with_key(bench, tmp_path)
    process = subprocess.Popen(
        [*POSCTL, *at(bench, "pty"), "rollback", "--to", "2", "-y"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin
    assert process.stderr
    said = list(iter(process.stderr.readline, "  (valid 15 min, 3 tries)\n"))
    assert said[0] == "this needs a code of the service desk, which makes it from these words:\n"
    spoken = "".join(said[1:])
    assert "SN " in spoken
    desk = ctl("code", "--device-key", str(key), typed=spoken)
    shows(
        desk.out, "allows    rollback 2", "*takes the data back to schema 2.", "code      ????-????"
    )
    code = re.search(r"^code +(\S+)", desk.out, re.MULTILINE)
    assert code
    process.stdin.write(f"QQQQ-QQQQ\nhm\n{code[1].lower()}\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "that is not the code; tries left: 2" in err
    assert "no try was counted" in err
    assert err.index("no try was counted") < err.index("op ctl-"), "the op comes before the call"
    shows(out, "[*%] checking", "OK: schema 3 -> 2, *")


def test_a_terminal_without_a_key_says_what_is_missing(resting: Bench) -> None:
    ran = ctl(*at(resting, "pty"), "prune", "-y", "--json")
    assert ran.code == 1
    assert ran.json["error"]["code"] == "NOT_ALLOWED"
    assert "no service key is set on this terminal" in ran.json["error"]["message"]


def test_a_dry_run_is_sent_to_the_terminal(resting: Bench) -> None:
    for words in (["rollback", "--to", "1", "--dry-run"], ["prune", "--dry-run"]):
        ran = ctl(*at(resting, "pty"), *words)
        assert ran.code == 64
        assert f"`posagent {' '.join(words)}`" in ran.err


def test_what_a_run_would_be_refused_for_is_said_and_nothing_is_sent(bench: Bench) -> None:
    bench.terminal.configure(unsettled_guard="refuse")
    bench.restart(signal.SIGTERM)
    bench.daemon.ready()
    Gate(bench.terminal).path.unlink()
    before = bench.history()
    ran = ctl(*at(bench, "pty"), "migrate", typed="y\n")
    assert ran.code == 13
    assert "not started, nothing was changed" in ran.err
    assert OP.search(ran.err) is None
    assert bench.history() == before


# ---- A run that is on


def test_a_run_is_left_with_ctrl_c_seen_by_others_picked_up_and_ends_once(bench: Bench) -> None:
    line = at(bench, "pty")
    first = AtGate(bench, *line, "migrate")
    op, gate = first.op, first.gate
    first.until_shown("migrating")
    first.process.send_signal(signal.SIGINT)
    left = ends(first.process)
    assert left.code == 3
    again = f"`posctl -p {bench.port}@{RATE} watch --op {op}` follows it"
    assert f"posctl: INTERRUPTED: the work on the terminal goes on; {again}" in left.err

    seen = ctl(*at(bench, "socket"), "status", "--json").json
    assert (seen["doing"]["state"], seen["advice"]["word"]) == ("migrating", "wait")
    there = bench.terminal.run("status", "--json").json
    assert shape(seen) == shape(there), "the same keys as the command prints in mid-run"
    plan = ctl(*at(bench, "socket"), "plan", "--json")
    assert (plan.code, plan.json["error"]["code"]) == (5, "BUSY")
    other = ctl(*at(bench, "socket"), "backup", "--json")
    assert (other.code, other.json["error"]["facts"]) == (5, {"run": 2})
    assert "`posctl -s" in other.json["error"]["message"]

    picked_up = start(*at(bench, "socket"), "migrate", "-y")
    watching = start(*at(bench, "socket"), "watch", "--op", op, "--json")
    assert picked_up.stderr
    assert picked_up.stderr.readline() == "run 2 (migrate) is on already; this follows it\n"
    gate.open()
    for ran in (ends(picked_up), ends(watching)):
        assert ran.code == 0, ran.err
    by_number = ctl(*line, "watch", "2", "--json")
    assert by_number.json == ctl(*line, "watch", "--op", op, "--json").json
    assert len([row for row in bench.history() if row["version"] == 4]) == 1


def shape(said: Any, name: str = "") -> Any:
    """The keys of an object and of those within, but for what the agent's memory has in short: the
    newest backup and the last run."""
    if not isinstance(said, dict) or name in ("backup", "last"):
        return None
    return {key: shape(value, key) for key, value in said.items()}


def test_a_run_can_be_cancelled_and_the_data_is_as_it_was(bench: Bench) -> None:
    running = AtGate(bench, *at(bench, "pty"), "migrate", "--json")
    ran = ctl(*at(bench, "socket"), "cancel", "--json")
    assert (ran.code, ran.json) == (0, {"run": 2, "state": "stopping"})
    running.gate.open()
    ended = ends(running.process)
    assert (ended.code, ended.json["verdict"]) == (3, "INTERRUPTED")
    assert bench.terminal.run("status", "--json").json["doing"]["version"] == 3


def test_a_cable_pulled_in_mid_run_is_told_and_the_run_followed_once_it_is_back(
    bench: Bench,
) -> None:
    running = AtGate(bench, *at(bench, "pty"), "migrate")
    running.until_shown("migrating")
    bench.pull()
    running.until_shown("the work on the terminal goes on, waiting")
    bench.plug_in()
    running.until_shown("is there again")
    running.gate.open()
    ran = ends(running.process)
    assert ran.code == 0, ran.err
    assert "OK: schema 3 -> 4" in ran.out


def test_a_terminal_whose_power_is_cut_in_mid_run_is_followed_to_the_end(bench: Bench) -> None:
    running = AtGate(bench, *at(bench, "pty"), "migrate", "--json")
    bench.restart()
    running.gate.wait_for_death()
    ran = ends(running.process)
    assert (ran.code, ran.json["to_version"]) == (0, 4), (ran.out, ran.err)
    assert len([row for row in bench.history() if row["version"] == 4]) == 1


def test_an_agent_that_stops_answering_ends_with_20_and_is_found_again(bench: Bench) -> None:
    where = ("-p", str(bench.port), "--timeout", "0.12", "--patience", "0")
    running = AtGate(bench, *where, "migrate", "--json")
    bench.daemon.process.send_signal(signal.SIGSTOP)
    ran = ends(running.process)
    bench.daemon.process.send_signal(signal.SIGCONT)
    assert (ran.code, ran.json["error"]["code"]) == (20, "NO_ANSWER")
    assert ran.json["error"]["facts"]["op"] == running.op
    assert f"watch --op {running.op}` finds it" in ran.err
    running.gate.open()
    ended = ctl(*at(bench, "pty"), "watch", "--op", running.op, "--json")
    assert ended.json["verdict"] == "OK"


@pytest.mark.parametrize("request_number", [1, 2, 4, 7])
def test_an_interrupt_at_any_request_is_a_sentence_and_the_next_call_picks_up(
    bench: Bench, request_number: int
) -> None:
    Gate(bench.terminal).path.unlink()
    bench.pull()
    bench.plug_in(baud=115_200)  # so that a request is on its way for a while
    cable = bench.cable
    assert cable is not None
    process = start(*at(bench, "pty"), "migrate", "-y")
    until(lambda: cable.typed.count(b"\x1e") >= request_number or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    ran = ends(process)
    assert ran.code == 3, ran.err
    assert "posctl: INTERRUPTED: " in ran.err
    found = OP.search(ran.err)
    if found is None:
        assert "nothing was started on the terminal" in ran.err
    else:
        assert f"watch --op {found[1]}` follows it" in ran.err
    assert ctl(*at(bench, "pty"), "migrate", "-y").code == 0
    assert bench.terminal.run("status", "--json").json["doing"]["version"] == 4
    assert len([row for row in bench.history() if row["version"] == 4]) == 1


def test_an_interrupt_before_anything_was_read_is_a_sentence_too(tmp_path: Path) -> None:
    # Imports take a moment in which a trace would be all that is said.
    program = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'posctl.commands': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from posctl.main import main\n"
        "sys.argv[1:] = ['status']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "posctl: INTERRUPTED: nothing was started on the terminal\n"


# ---- The console


@pytest.mark.parametrize("place", ["pty", "socket"])
def test_the_console_is_the_technicians_own_keyboard(resting: Bench, place: str) -> None:
    line = wired(resting, place)
    with Screen(*POSCTL, *line, "console", TERM="xterm") as screen:
        screen.until("Ctrl-] to leave")
        screen.keys("\r")
        assert "Terminal generic SN" in screen.until("agent> ")
        shows(screen.type("status"), "state      idle *", "to do *")
        assert "did you mean" in screen.type("stauts")
        screen.keys("half a li\x1d")
        screen.until("left")
        assert screen.ends() == 0
    assert ctl(*line, "status").code == 0


def test_a_pipe_is_a_keyboard_too_and_its_last_answer_is_waited_for(resting: Bench) -> None:
    ran = real(*wired(resting, "pty"), "console", typed="\rstatus\r")
    assert ran.code == 0
    assert "state      idle" in ran.out
    assert "to do      " in ran.out
    assert ctl(*at(resting, "pty"), "console", "--json").code == 64


def test_what_a_line_sends_cannot_move_the_cursor_and_noise_is_told_as_such() -> None:
    with Device(lambda data: b"\x1b[2J\x9b31m" + b"\xfe" * 9 + data) as device:
        where = ("-p", device.where, *AT_ONCE)
        ran = real(*where, "console", typed="x")
        assert ran.code in (20, 21, 22), "nobody is greeted there"
    from posctl.console import Cleaner

    cleaner = Cleaner()
    assert cleaner.clean(b"a\x1b[2J\x9bb\r\n\x08\x07") == b"a[2Jb\r\n\x08\x07"
    assert not cleaner.is_odd()
    assert cleaner.clean(b"\xfe" * 9) == b""
    assert (cleaner.is_odd(), cleaner.is_odd()) == (True, False)


# ---- Bad lines


def test_no_such_port_and_no_such_socket_end_with_23(tmp_path: Path) -> None:
    for words in (("-p", str(tmp_path / "ttyUSB7")), ("-s", str(tmp_path / "agent.sock"))):
        ran = ctl(*words, "status", "--json")
        assert (ran.code, ran.json["error"]["code"]) == (23, "PORT")
        assert ran.json["error"]["facts"] == {"why": "missing"}


def test_a_busy_port_names_who_has_it(resting: Bench) -> None:
    with open(resting.port, "rb+", buffering=0) as port:
        fcntl.flock(port, fcntl.LOCK_EX)
        ran = real(*at(resting, "pty"), "status")
    assert ran.code == 23
    assert ran.err.startswith(f"posctl: PORT: {resting.port} is busy: ")
    assert "python" in ran.err


def test_a_port_for_others_names_the_group(resting: Bench) -> None:
    wired(resting, "pty")  # one that nobody has had to himself
    assert resting.cable is not None
    os.chown(resting.cable.name, 0, DIALOUT)
    os.chmod(resting.cable.name, 0o660)
    with as_nobody():
        ran = ctl("-p", resting.cable.name, "status")
    assert ran.code == 23
    assert " is for group dialout " in ran.err
    assert "`sudo usermod -aG dialout " in ran.err


BAD_LINES = {
    "nobody": (lambda data: b"", 20, "NO_ANSWER", "see that the terminal is on"),
    "another rate": (lambda data: b"\xfe\x8c\xc0" * 9, 21, "TOO_NOISY", "wrong baud rate"),
    "a loop": (lambda data: data, 22, "NOT_OUR_AGENT", "sends back what it is sent"),
    "a GPS": (lambda data: b"$GPGGA,123519,N*47\r\n", 22, "NOT_OUR_AGENT", "$GPGGA,123519"),
    "a getty": (lambda data: b"\r\nlogin: ", 22, "NOT_OUR_AGENT", "'login:'"),
    "newer": (
        replying(lambda *_: {"result": {**HELLO, "proto": 9}}),
        *(22, "OTHER_PROTOCOL", "speaks protocol 9"),
    ),
}


@pytest.mark.parametrize("kind", list(BAD_LINES))
@pytest.mark.parametrize("words", [["status"], ["migrate", "-y"]], ids=" ".join)
def test_what_does_not_answer_as_our_agent_gets_its_own_code(kind: str, words: list[str]) -> None:
    answers, code, word, says = BAD_LINES[kind]
    with Device(answers) as device:
        ran = ctl("-p", device.where, *AT_ONCE, *words, "--json")
    assert (ran.code, ran.json["error"]["code"]) == (code, word)
    assert says in ran.json["error"]["message"]


# ---- Which terminal


def test_a_name_of_the_inventory_is_as_good_as_a_port(resting: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "posctl"
    folder.mkdir()
    (folder / "terminals.ini").write_text(
        f"[till-1]\nport = {resting.port}\nserial = {resting.terminal.device_id}\n"
        f"[till-2]\nsocket = {resting.daemon.socket_path}\nserial = 0099\n"
    )
    config = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert ctl(*QUICK, "-t", "till-1", "status", **config).code == 0
    swapped = ctl("-t", "till-2", "migrate", "-y", "--json", **config)
    assert (swapped.code, swapped.json["error"]["code"]) == (22, "OTHER_TERMINAL")
    unknown = ctl("-t", "til-1", "status", **config)
    assert unknown.code == 64
    assert unknown.err.endswith("; did you mean till-1?\n")
    listed = ctl("ports", "--json", **config).json["ports"]
    assert {row["port"]: row["name"] for row in listed}[f"{resting.port}@115200"] == "till-1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status"], "say which terminal: -p PORT, -s SOCKET or -t NAME"),
        (["-p", "a", "-s", "b", "status"], "say one terminal, not several"),
        (["stauts"], "unknown verb 'stauts'; did you mean status?"),
        (["-p", "a", "status", "--exit"], "no such option"),
        (["-p", "a", "restore"], "missing argument 'BACKUP'"),
        (["-p", "a", "rollback", "--to", "x"], "'x' is not a valid integer"),
        (["-p", "a@fast", "status"], "'fast' is no baud rate"),
        (["-t", "till", "--inventory", "/no/such/file", "status"], "cannot be read"),
        (["-p", "a", "watch", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_command_line_says_what_is_meant(words: list[str], says: str) -> None:
    ran = ctl(*words)
    assert ran.code in (23, 64, 78)
    assert says in ran.err
    assert ran.err.startswith("posctl: ")
    as_json = ctl(*words, "--json")
    assert (as_json.code, as_json.json["error"]["code"]) == (ran.code, ran.err.split(": ")[1])


def test_help_names_every_verb_of_the_terminal_and_is_no_error_when_asked_for() -> None:
    asked = ctl("--help")
    assert (asked.code, ctl().code) == (0, 64)
    here = set(re.findall(r"^  ([a-z]+)  ", asked.out, re.MULTILINE))
    only_there = {"boot", "run", "key", "check", "new"}
    assert here == set(VERBS) - only_there | {"watch", "cancel", "bundle", "ports", "code"}
    assert all(ctl(verb, "-h").code == 0 for verb in here)
    assert re.fullmatch(r"posctl \d+\.\d+\.\d+\n", ctl("--version").out)


@pytest.mark.parametrize(
    ("shell", "typed", "offered"),
    [
        ("bash", "posctl sta", "plain,status"),
        ("zsh", "posctl ver", "verify"),
        ("fish", "posctl -t ", "till-9"),
    ],
)
def test_the_shell_completes_verbs_and_names(
    shell: str, typed: str, offered: str, tmp_path: Path
) -> None:
    (tmp_path / "posctl").mkdir()
    (tmp_path / "posctl/terminals.ini").write_text("[till-9]\nport = /dev/ttyUSB9\n")
    words = typed.split(" ")
    ran = real(
        _POSCTL_COMPLETE=f"{shell}_complete",
        COMP_WORDS=typed if shell != "fish" else typed.strip(),
        COMP_CWORD=words[-1] if shell == "fish" else str(len(words) - 1),
        XDG_CONFIG_HOME=str(tmp_path),
    )
    assert offered in ran.out
    assert "complete" in real(_POSCTL_COMPLETE=f"{shell}_source").out


def test_nobody_who_reads_costs_no_answer_and_no_trace(resting: Bench) -> None:
    process = start(*at(resting, "socket"), "profile")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


# ---- Ports


def test_ports_asks_each_with_an_empty_frame_and_a_hello_and_never_more(resting: Bench) -> None:
    resting.pull()
    resting.plug_in()
    cable = resting.cable
    assert cable is not None
    with Device(lambda data: b"ready>") as other, Device(lambda data: b"") as silent:
        names = (str(resting.port), other.name, silent.name, "/dev/null", "/no/such/port")
        ran = ctl("ports", *names, "--json")
        rows = {row["port"]: row for row in ran.json["ports"]}
    assert cable.typed.count(b"\x1e") == 2
    empty, hello = cable.typed.split(b"\n")[:2]
    assert (empty, hello[:1]) == (b"\x1e", b"\x1e")
    assert json.loads(hello[1:].rpartition(b"#")[0])["method"] == "hello"
    assert [rows[name]["answer"] for name in names] == [
        "posagent", "other", "silent", "kind", "missing",
    ]  # fmt: skip
    found = rows[str(resting.port)]
    assert found["serial"] == resting.terminal.device_id
    assert rows[other.name]["says"] == "ready>"


def test_ports_can_list_without_touching_and_for_people(resting: Bench) -> None:
    typed = resting.cable.typed if resting.cable else b""
    ran = ctl("ports", "--list", str(resting.port))
    shows(ran.out, "port *who answers", f"{resting.port} * not asked")
    assert resting.cable
    assert resting.cable.typed == typed
    ran = ctl("ports", str(resting.port))
    shows(ran.out, f"{resting.port} *posagent *, generic, serial {resting.terminal.device_id}")
