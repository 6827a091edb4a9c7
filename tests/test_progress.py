"""What people see of a run: one live line on a terminal, plain lines in a pipe, status.json."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

from agent.core import states
from agent.core.report import Meter, duration
from tests.terminals import COMMAND, new_terminal


def test_on_a_terminal_progress_is_one_line_that_is_written_over(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t", records=20000)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--root", str(terminal.root), "boot"], stdout=slave, stderr=slave
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end of a pty that was closed
            break
        if not data:
            break
        seen += data
    os.close(master)
    assert process.wait() == 0
    text = seen.decode()
    live, _, _ = text.rpartition("\r")
    assert "\n" not in live.split("OK:")[0].replace("\r\n", "\n").rstrip()
    assert len(re.findall(r"\r\[ *\d+%\] \w+", live)) >= 3
    assert re.search(r"/s, [\d.]+ s left", live)
    assert "OK: schema 0 -> 3" in text


def test_in_a_pipe_every_state_gets_a_plain_line_without_control_characters(
    tmp_path: Path,
) -> None:
    answer = new_terminal(tmp_path / "t").run("boot")
    assert answer.code == 0
    assert "\r" not in answer.err
    words = [line.split("] ")[1].split()[0].strip(",") for line in answer.err.splitlines()]
    assert words == [
        "checking",
        "backing_up",
        "building",
        "migrating",
        "proving",
        "switching",
    ]


def test_status_json_ends_with_the_verdict_and_whether_the_application_may_start(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t")
    assert terminal.boot().code == 0
    status = json.loads((terminal.root / "run/posagent/status.json").read_text())
    assert status["state"] == states.DONE
    assert status["verdict"] == "OK"
    assert status["app_may_start"] is True


def test_percent_never_goes_back_and_ends_at_100() -> None:
    meter = Meter(0)
    at, last = 0, 0
    for state in states.STATES[:6]:
        for done in range(0, 1001, 100):
            at += 50
            snapshot = meter.mark(state, "transactions", done, 1000, at)
            assert last <= snapshot.percent < 100
            last = snapshot.percent
    assert meter.mark(states.DONE, "", 0, 0, at).percent == 100


def test_rate_and_time_left_come_from_the_work_done_in_this_state() -> None:
    meter = Meter(0)
    meter.mark(states.MIGRATING, "transactions", 0, 1000, 1000)
    snapshot = meter.mark(states.MIGRATING, "transactions", 500, 1000, 2000)
    assert snapshot.rate == 500
    assert snapshot.eta_ms > 0
    assert len(snapshot.line()) < 80


def test_durations_read_as_people_say_them() -> None:
    assert [duration(ms) for ms in (400, 9990, 12000, 200000)] == [
        "0.4 s",
        "10.0 s",
        "12 s",
        "3 min 20 s",
    ]
