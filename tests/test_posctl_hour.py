"""A technician's hour with one terminal, in tmux, with every screen compared.

What is typed and what is then on the screen stands in data/technicians-hour.txt, with numbers as #,
names that are made anew as words, and blanks in a row as one. A screen is looked at once the shell
asks for the next command, and in between only for a word that was waited for.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from tests.posctl_bench import RATE, Bench
from tests.terminals import Gate

KEPT = Path(__file__).with_name("data") / "technicians-hour.txt"
PATIENCE_S = 20.0
COLUMNS, ROWS = 100, 50
KEY = bytes(range(32))

ALIKE = (
    (r", [\d.]+ (?:s|min)(?: \d+ s)? left", ""),  # known from some moment on
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<time>"),
    (r"\bctl-[0-9a-f]{16}\b", "<op>"),
    (r"\b[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}\b", "<letters>"),
    (r"\bdevice_\w+", "<serial>"),
    (r"\b(?=[a-f]*\d)[0-9a-f]{8}\b", "<digest>"),
    (r"\d[\d,.]*\b", "#"),
    (r"[ \t]+", " "),
)


class Tmux:
    """One window of a tmux server of its own, with a shell whose prompt shows the exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._socket = str(folder / "tmux.sock")
        program = folder / "posctl"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m posctl "$@"\n')
        program.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR", "COLUMNS")}
        self._env = {
            **kept,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(folder),
            "LC_ALL": "C.UTF-8",
        }
        size = ("-x", str(COLUMNS), "-y", str(ROWS))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(folder), "sh")

    def __enter__(self) -> Tmux:
        self.keys("-l", "PS1='[$?] $ '")  # a shell of root's takes none from outside
        self.keys("Enter")
        self.until("[0] $")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tmux("kill-server")

    def _tmux(self, *words: str) -> str:
        ran = subprocess.run(
            ["tmux", "-S", self._socket, *words],
            env=self._env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout

    def keys(self, *keys: str) -> None:
        """Press keys, by tmux's names for those that are no letters."""
        self._tmux("send-keys", *keys)

    def screen(self) -> list[str]:
        """What is on the screen, without the empty lines below."""
        text = self._tmux("capture-pane", "-p", "-J").rstrip()
        return [line.rstrip() for line in text.splitlines()]

    def until(self, ending: str) -> list[str]:
        """The screen as soon as its last line, below what was typed, ends like that."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            lines = self.screen()
            if len(lines) > 1 and lines[-1].endswith(ending):
                return lines
            assert time.monotonic() < give_up_at, "\n".join(lines)

    def until_seen(self, word: str) -> list[str]:
        """The screen as soon as a word is anywhere on it."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            lines = self.screen()
            if any(word in line for line in lines):
                return lines
            assert time.monotonic() < give_up_at, "\n".join(lines)

    def clear(self) -> None:
        """An empty screen with a prompt of 0."""
        self.keys("clear; true", "Enter")
        give_up_at = time.monotonic() + PATIENCE_S
        while self.screen() != ["[0] $"]:
            assert time.monotonic() < give_up_at, self.screen()


class Hour:
    """What was typed and seen, as it is kept."""

    def __init__(self, tmux: Tmux) -> None:
        self.tmux = tmux
        self.told: list[str] = []

    def type(self, command: str, code: int = 0) -> list[str]:
        """Type a command on an empty screen; the screen once it is done."""
        self.tmux.clear()
        self.tmux.keys("-l", command)
        self.tmux.keys("Enter")
        return self.keep(self.tmux.until(f"[{code}] $"))

    def keep(self, lines: list[str]) -> list[str]:
        """A screen that has to be the same next time."""
        shown = [alike(line) for line in lines]
        self.told += [*shown, "-" * 40]
        return lines


def alike(line: str) -> str:
    """A line with what differs from run to run as words."""
    for pattern, mark in ALIKE:
        line = re.sub(pattern, mark, line)
    return line.rstrip()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    key = tmp_path / "desk.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    with Bench(tmp_path / "terminal") as made:
        assert made.terminal.run("key", "--set", str(key)).code == 0
        made.terminal.configure(device_id="0012345")
        made.restart(15)
        made.daemon.ready()
        (tmp_path / "line").symlink_to(made.port)
        yield made


def test_a_technicians_hour_looks_as_it_always_did(bench: Bench, tmp_path: Path) -> None:
    gate = Gate(bench.terminal)
    gate.path.unlink()
    (tmp_path / "posctl.ini").write_text(f"[till]\nport = line\nbaud = {RATE}\n")
    with Tmux(tmp_path) as tmux:
        hour = Hour(tmux)
        tmux.keys("-l", "alias till='posctl --inventory posctl.ini -t till'")
        tmux.keys("Enter")
        hour.type("posctl ports --inventory posctl.ini line")
        hour.type("till status")
        hour.type("till plan")
        _upgrade(hour, bench, gate)
        hour.type("till history")
        hour.type("till backups")
        hour.type("till verify")
        _back_by_telephone(hour)
        _at_the_console(hour)
        hour.type("till stauts", code=64)
        hour.type("posctl -p /dev/ttyUSB99 status", code=23)
        hour.type("till bundle for-the-desk.json")
    kept = KEPT.read_text("utf-8").splitlines()
    changed = "\n".join(difflib.unified_diff(kept, hour.told, "kept", "seen", lineterm=""))
    assert not changed, changed


def _upgrade(hour: Hour, bench: Bench, gate: Gate) -> None:
    """Begun, left with Ctrl-C, followed again to its end."""
    tmux = hour.tmux
    tmux.clear()
    tmux.keys("-l", "till migrate")
    tmux.keys("Enter")
    hour.keep(tmux.until("[y/N]"))
    os.mkfifo(gate.path)
    tmux.keys("y", "Enter")
    lines = tmux.until_seen("% migrating")
    assert any("━" in line for line in lines), "a real bar"
    gate.wait(bench.daemon.process)
    tmux.keys("C-c")
    left = tmux.until("[3] $")
    assert not any("━" in line for line in left), "and it goes when it is left"
    assert any("the work on the terminal goes on" in line for line in left)
    hour.type("till status")
    tmux.clear()
    tmux.keys("-l", "till watch")
    tmux.keys("Enter")
    tmux.until_seen("% migrating")
    gate.open()
    hour.keep(tmux.until("[0] $"))


def _back_by_telephone(hour: Hour) -> None:
    """A rollback with a code that the desk makes in another window, which is this one's test."""
    tmux = hour.tmux
    tmux.clear()
    tmux.keys("-l", "till rollback --to 3")
    tmux.keys("Enter")
    tmux.until("[y/N]")
    tmux.keys("y", "Enter")
    lines = hour.keep(tmux.until("code:"))
    (first,) = [at for at, line in enumerate(lines) if "read to the desk:" in line]
    spoken = "\n".join(lines[first:-2])
    desk = subprocess.run(
        [sys.executable, "-m", "posctl", "code", "--device-key", "desk.key"],
        input=spoken,
        cwd=hour.tmux.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    code = re.search(r"^code +(\S+)$", desk.stdout, re.MULTILINE)
    assert code
    tmux.keys("-l", code[1])
    tmux.keys("Enter")
    hour.keep(tmux.until("[0] $"))


def _at_the_console(hour: Hour) -> None:
    """The terminal's own console, and out of it again."""
    tmux = hour.tmux
    tmux.clear()
    tmux.keys("-l", "till console")
    tmux.keys("Enter")
    tmux.until_seen("Ctrl-] to leave")
    tmux.keys("Enter")
    tmux.until("agent>")
    tmux.keys("-l", "backups")
    tmux.keys("Enter")
    tmux.until_seen("made (UTC)")
    tmux.until("agent>")
    tmux.keys("C-]")
    hour.keep(tmux.until("[0] $"))
