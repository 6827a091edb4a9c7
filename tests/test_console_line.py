"""One line that a person and machines share, and the console as getty would start it."""

from __future__ import annotations

import json
import os
import re
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import (
    Daemon,
    Line,
    framed,
    frames_in,
    result_of,
    terminal_with_line,
    until,
)
from tests.screens import Screen, shows
from tests.terminals import COMMAND, Gate, Terminal, new_terminal

CTRL_C, CTRL_U, LEAVE = "\x03", "\x15", "\x1d"


class Seat:
    """A terminal at rest with its daemon, a serial line and a socket."""

    def __init__(self, terminal: Terminal, daemon: Daemon, line: Line) -> None:
        self.terminal = terminal
        self.daemon = daemon
        self.line = line
        self.socket = daemon.ready()


@pytest.fixture
def seat(tmp_path: Path) -> Iterator[Seat]:
    terminal, line = terminal_with_line(tmp_path, records=40, unsettled=5)
    terminal.own_migrations()
    with Daemon(terminal) as daemon:
        yield Seat(terminal, daemon, line)
    line.close()


def console(terminal: Terminal) -> Screen:
    """`posagent console` on a pseudo-terminal that is its controlling one."""
    return Screen(*COMMAND, "--root", str(terminal.root), "console")


def greeted(screen: Screen) -> Screen:
    """Once the console is there and the banner was shown."""
    until(lambda: not termios.tcgetattr(screen.slave)[3] & termios.ECHO)
    screen.keys("\r")
    shows(screen.until("agent> "), "Terminal generic SN *", "type help.*", "agent>")
    return screen


# ---- The console as getty would start it


def test_console_greets_at_enter_echoes_answers_and_gives_the_terminal_back(seat: Seat) -> None:
    with console(seat.terminal) as screen:
        greeted(screen)
        screen.keys("sta")
        assert screen.until("sta") == "sta"
        screen.keys("\ttus\x7f\x7f\x7f\x08\x17status\r")
        shows(screen.until("agent> "), "status", "state      idle *", "to do *")
        screen.keys("migrate" + CTRL_C)
        assert screen.until("agent> ").endswith("^C\nagent> ")
        screen.keys(LEAVE)
        assert screen.ends() == 0
        assert termios.tcgetattr(screen.slave) == screen.modes
    assert seat.socket.result("status")["state"] == "idle"


def test_console_without_a_daemon_ends_with_5_and_a_sentence(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path, records=10, unsettled=1)
    with console(terminal) as screen:
        assert screen.ends() == 5
        assert "no agent runs on this terminal; start `posagent run`" in screen.text
        assert termios.tcgetattr(screen.slave) == screen.modes


def test_console_ends_with_the_daemon_and_gives_the_terminal_back(seat: Seat) -> None:
    with console(seat.terminal) as screen:
        greeted(screen)
        assert seat.daemon.stop() == 0
        assert screen.ends() == 0
        assert termios.tcgetattr(screen.slave) == screen.modes


def test_a_hang_up_drops_the_half_typed_line_and_greets_whoever_comes_next(seat: Seat) -> None:
    with console(seat.terminal) as screen:
        greeted(screen)
        screen.keys("backup")
        screen.until("backup")
        screen.close()
        screen.process.wait()
    with console(seat.terminal) as screen:
        greeted(screen)
        shows(screen.type("version"), "agent *", "terminal *")
    assert not seat.terminal.run("history", "--json").json["history"][3:]


def test_two_consoles_and_the_serial_line_do_not_see_each_others_keys(seat: Seat) -> None:
    with console(seat.terminal) as first, console(seat.terminal) as second:
        greeted(first)
        greeted(second)
        first.keys("restore 1")
        first.until("restore 1")
        second.keys("\r")
        assert second.until("agent> ") == "\nagent> "
        assert seat.line.type("").endswith("agent> ")
        first.keys(CTRL_U + "version\r")
        shows(first.until("agent> "), "agent *")


def test_a_tool_may_speak_frames_through_a_console_that_getty_started(seat: Seat) -> None:
    with console(seat.terminal) as screen:
        greeted(screen)
        request = b'{"jsonrpc":"2.0","id":77,"method":"status"}'
        screen.keys("half a li" + framed(request).decode())
        seen = screen.until("}#") + screen.until("\n")
        (said,) = frames_in(b"\x1e" + seen.partition("\x1e")[2].encode())
        assert said["id"] == 77
        assert said["result"]["schema"] == 3
        screen.keys("\r")
        assert screen.until("agent> ") == "\nagent> "


def test_lines_that_are_pasted_at_once_are_answered_in_their_order(seat: Seat) -> None:
    with console(seat.terminal) as screen:
        greeted(screen)
        screen.keys("help status\rhelp plan\nhelp watch\r\nversion\r" * 5)
        seen = "".join(screen.until("this line has the level ") for _ in range(5))
        echoes = re.findall(r"agent> (help \w+|version)\n", "agent> " + seen)
        assert echoes == ["help status", "help plan", "help watch", "version"] * 5


# ---- One line for a person and machines


def test_a_half_typed_command_does_not_survive_a_tools_frame(seat: Seat) -> None:
    line = seat.line
    assert "type help" in line.type("")
    line.send(b"restore 1")
    line.text_until("restore 1")
    assert line.call("ping")["result"] == {}
    line.send(b"\r")
    assert line.text_until("agent> ") == "\r\nagent> "
    line.send(b"backup\x1e\n")  # a tool that only makes sure it is heard
    line.text_until("backup")
    assert line.type("") == "\r\nagent> "
    assert seat.socket.result("status")["run"] is None
    assert [one["method"] for one in seat.socket.result("log")["log"]] == ["boot"]


def test_a_number_that_a_frame_cut_off_starts_nothing(seat: Seat) -> None:
    line = seat.line
    line.type("")
    asked = line.type("backup", until="to start: ")
    number = re.findall(r"Type (\d{4})", asked)[0]
    line.send(number.encode())
    line.text_until(number)
    line.call("ping")
    line.send(b"\r")
    assert "not started; nothing was changed" in line.text_until("agent> ")
    assert seat.socket.result("status")["run"] is None


def test_a_machine_calls_status_while_a_person_watches_on_the_same_line(seat: Seat) -> None:
    line = seat.line
    gate = Gate(seat.terminal)
    line.type("")
    run = seat.socket.result("migrate", op="watched-1", to=4)["run"]
    gate.wait(seat.daemon.process)
    assert f"run {run}" not in line.type("watch", until="%] ")
    for number in range(5):
        said = line.call("status", id=f"tool-{number}")["result"]
        assert (said["run"], said["schema"], said["target"]) == (run, 3, 4)
    gate.open()
    seen = line.text_until("agent> ")
    # What the person subscribed to comes as text; no machine asked for frames of it.
    assert frames_in(seen.encode()) == []
    shows(seen.replace("\r", ""), f"run {run} migrate: done", "OK: schema 3 -> 4", "agent>")
    assert result_of(seat.socket, run)["state"] == "done"


def test_a_machine_and_a_person_follow_the_same_run_each_in_their_own_way(seat: Seat) -> None:
    line = seat.line
    gate = Gate(seat.terminal)
    line.type("")
    assert line.call("subscribe", events=["state"])["result"]["run"] is None
    run = seat.socket.result("migrate", op="watched-2", to=4)["run"]
    gate.wait(seat.daemon.process)
    line.type("watch", until="%] ")
    gate.open()
    seen = line.until(lambda data: data if b"agent> " in data and b'"idle"' in data else None)
    told = [said["params"]["to"] for said in frames_in(seen) if said.get("method") == "state"]
    assert told[-1] == "idle"
    text = re.sub(r"\x1e[^\n]*\n", "", seen.decode()).replace("\r", "")
    shows(text, f"run {run} migrate: done", "OK: schema 3 -> 4")


def test_the_same_answer_in_three_ways_is_the_same_object(seat: Seat) -> None:
    line = seat.line
    line.type("")
    typed = json.loads(line.type("backups --json").splitlines()[1])
    assert typed == line.call("backups")["result"] == seat.socket.result("backups")
    assert [one["name"] for one in typed["backups"]] == ["000001-v0.posbak"]


def test_a_line_of_a_machine_that_is_pasted_without_its_frame_is_told_and_not_run(
    seat: Seat,
) -> None:
    line = seat.line
    line.type("")
    line.seen = b""
    line.send(b'{"jsonrpc":"2.0","id":1,"method":"backup","params":{"op":"pasted-01"}}\r')
    seen = line.text_until("agent> ")
    assert seen.startswith("error: machine frame without RS or with bad checksum")
    assert "pasted-01" not in seen
    line.send(b"\r")
    assert line.text_until("agent> ") == "\r\nagent> "
    assert seat.socket.call("result", op="pasted-01")["error"]["data"]["kind"] == "NO_SUCH"


def test_the_daemon_keeps_the_port_for_itself(seat: Seat) -> None:
    name = os.path.realpath(f"{seat.terminal.root}/dev/ttyS0")
    seat.line.type("")
    with Screen("picocom", "-b", "115200", name) as picocom:
        assert picocom.ends() != 0
    assert "agent> " in seat.line.type("version")
