"""A technician's visit with the terminal programs that technicians have, on a real pty pair.

picocom and minicom run as they are, under a pseudo-terminal of their own; the code of the service
desk is made here, from docs/spec/wire-protocol.md.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, SocketPeer, result_of, terminal_with_line
from tests.noise import Cable
from tests.screens import Screen, shows
from tests.terminals import Gate, Terminal

FLEET_KEY = bytes(range(32))
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SERIAL = "VX-0012345"

MORE = "-- more -- "
SHOWING = (
    *("help", "status", "plan", "history", "backups", "quarantine", "health", "profile", "log"),
    *("version", "help restore", "help migrate", "result 1", "watch"),
)
UP, BACKSPACE = "\x1b[A", "\x7f"


def desk(counter: str, nonce: str, command: str) -> str:
    """What the service desk reads out: 40 bits of an HMAC in Crockford's base 32."""

    def signed(key: bytes, *parts: str) -> bytes:
        return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).digest()

    key = signed(FLEET_KEY, "posagent device key", SERIAL)
    plain = nonce.replace("-", "")
    mac = signed(key, "posagent service code", SERIAL, counter, plain, command)
    number = int.from_bytes(mac[:5], "big")
    code = "".join(ALPHABET[number >> shift & 31] for shift in range(35, -1, -5))
    return f"{code[:4]}-{code[4:]}"


def number_in(text: str) -> str:
    """The number that is asked for."""
    numbers: list[str] = re.findall(r"Type (\d{4}) to start", text)
    return numbers[-1]


def read_out(seen: str) -> tuple[str, str, str]:
    """What the technician reads to the desk: counter, nonce and command."""
    found = re.findall(r"read to the desk:  SN \S+  #(\d+)  (\S+)  (.*)", seen)
    counter, nonce, command = found[-1]
    return counter, nonce, command


class Visit:
    """A terminal at rest at schema 3, with its daemon, and the device that a program opens."""

    def __init__(self, terminal: Terminal, daemon: Daemon, socket: SocketPeer, cable: Cable):
        self.terminal = terminal
        self.daemon = daemon
        self.socket = socket
        self.cable = cable


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[Visit]:
    terminal, line = terminal_with_line(tmp_path / "terminal", records=40, unsettled=5)
    terminal.own_migrations()
    terminal.configure(device_id=SERIAL)
    fleet = tmp_path / "fleet.key"
    fleet.write_text(FLEET_KEY.hex() + "\n")
    assert terminal.run("key", "--fleet", str(fleet)).code == 0
    with Daemon(terminal) as daemon, Cable(line.master) as cable:
        yield Visit(terminal, daemon, daemon.ready(), cable)
    line.close()


@pytest.fixture
def picocom(visit: Visit) -> Iterator[Screen]:
    with Screen("picocom", "-b", "115200", visit.cable.name) as screen:
        screen.until("Terminal ready\n")
        yield screen


def test_a_visit_with_picocom_from_the_banner_to_a_restore(visit: Visit, picocom: Screen) -> None:
    gate = Gate(visit.terminal)  # one more migration, which waits in its run
    os.unlink(gate.path)
    screen = picocom
    screen.keys("\r")
    shows(screen.until("agent> "), f"*SN {SERIAL}*", "type help.*", "agent>")
    screen.keys("st\t")
    assert screen.until("status ") == "status "
    screen.keys("\r")
    shows(screen.until("agent> "), "state      idle *may start", "unsettled  *", "to do *")

    seen = screen.type("plan")
    shows(seen, "  4 waits at the gate *", " plan *: backup *, fits*")
    seen = screen.type("migrate", until="to start: ")
    shows(seen, f"This runs plan * (3 -> 4). Type {number_in(seen)} to start:")
    os.mkfifo(gate.path)
    seen = screen.type(number_in(seen))
    shows(seen, "run 2 started; safe to unplug the cable", "agent>")
    gate.wait(visit.daemon.process)

    seen = screen.type("watch 2", until="%] ")
    screen.keys("\x03")
    shows(screen.until("agent> "), "^C detached; run 2 continues", "agent>")
    assert visit.socket.result("status")["run"] == 2
    gate.open()
    assert result_of(visit.socket, 2)["state"] == "done"
    shows(screen.type("watch 2"), "run 2 migrate: done", "OK: schema 3 -> 4", "backup *verified")
    shows(screen.type("status"), "schema     4 *")

    seen = screen.type("restore 2")  # what the upgrade saved before it began
    shows(
        seen,
        "refused: restore needs a service code; nothing was changed",
        f"  read to the desk:  SN {SERIAL}  #1  ????-????  restore 2",
        "  then type: code XXXX-XXXX *",
    )
    shows(screen.type("code 0000-0000"), "refused: that is not the code; tries left: 2*")
    seen = screen.type("code " + desk(*read_out(seen)), until="to start: ")
    shows(seen, "accepted for exactly one command: restore 2. Type * to start:")
    shows(screen.type(number_in(seen)), "run 3 started; safe to unplug the cable")
    assert result_of(visit.socket, 3)["outcome"]["verdict"] == "OK"
    assert visit.terminal.read().schema_version == 3

    shows(screen.type("stauts"), 'error: unknown command "stauts" - did you mean "status"?*')
    screen.keys("\x01\x18")  # picocom's own Ctrl-A Ctrl-X
    assert screen.ends() == 0


def test_a_restore_that_gives_sales_up_names_them_to_the_desk(
    visit: Visit, picocom: Screen
) -> None:
    picocom.keys("\r")
    picocom.until("agent> ")
    seen = picocom.type("restore 1 --discard changed=13")
    shows(
        seen,
        "refused: restore needs a service code; nothing was changed",
        "  would discard: 13 changed since get their old value back",
        "  read to the desk:  * restore 1 discard changed=13",
    )
    seen = picocom.type("code " + desk(*read_out(seen)).lower(), until="to start: ")
    right = number_in(seen)
    wrong = f"{(int(right) + 1) % 10_000:04d}"
    shows(picocom.type(wrong), "not started; nothing was changed")
    # The code was accepted and not yet used: the same command is asked for once more.
    seen = picocom.type("restore 1 discard changed=13", until="to start: ")
    assert number_in(seen) == right
    shows(picocom.type(right), "run 2 started; safe to unplug the cable")
    assert result_of(visit.socket, 2)["outcome"]["verdict"] == "OK"
    assert visit.terminal.read().schema_version == 0
    shows(picocom.type("status"), "schema     0 -> 3 * 3 migrations pending")


def test_minicom_has_the_same_keys(visit: Visit, tmp_path: Path) -> None:
    words = ("-D", visit.cable.name, "-b", "115200", "-o", "-c", "off")
    with Screen("minicom", *words, HOME=str(tmp_path)) as screen:
        screen.until("for help on special keys")
        screen.keys("\r")
        screen.until("agent> ")
        screen.keys(f"statuz{BACKSPACE}s\r")
        shows(screen.until("agent> "), "status", "state      idle *", "to do *")
        screen.keys(f"{UP}\r")
        shows(screen.until("agent> "), "status", "state      idle *")
        screen.keys("vers\t\r")
        shows(screen.until("agent> "), "version", f"terminal * SN {SERIAL}")
        screen.keys("restore 1\x03")
        screen.until("agent> ")
        screen.keys(f"{UP}{UP}\x15backups\r")
        shows(screen.until("agent> "), "backups", "000001-v0.posbak *")
        screen.keys("\x01q")
        screen.until("Leave without reset?")
        screen.keys("\r")
        assert screen.ends() == 0
    # The two programs differ in one key, and both mean the same by it.
    assert b"statuz\x08s\r" in visit.cable.typed


def test_picocom_sends_the_other_backspace(visit: Visit, picocom: Screen) -> None:
    picocom.keys("\r")
    picocom.until("agent> ")
    picocom.keys(f"statuz{BACKSPACE}s\r")
    shows(picocom.until("agent> "), "status", "state      idle *")
    assert b"statuz\x7fs\r" in visit.cable.typed


def test_every_list_and_answer_fits_a_screen_of_80_columns(visit: Visit, picocom: Screen) -> None:
    picocom.keys("\r")
    seen = picocom.until("agent> ")
    for command in SHOWING:
        picocom.keys(command + "\r")
        seen += picocom.until(command + "\n") + shown_to_its_end(picocom)
    seen += picocom.type("profile", until=MORE) + picocom.type("q")
    assert max(map(len, seen.splitlines())) <= 79
    shows(seen, "help  *", "*--json behind any gives one line of JSON", "state *", "worst: *")


def shown_to_its_end(screen: Screen) -> str:
    """All pages of what is being shown, with Enter at each "-- more --"."""
    seen = screen.until("agent> ", MORE)
    while seen.endswith(MORE):
        screen.keys("\r")
        seen += screen.until("agent> ", MORE)
    return seen
