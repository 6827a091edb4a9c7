"""Sample terminals for tests: make one, run the real command on it, judge it from outside."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import independent_reader as reader
from tools.termsim import Recipe, make_terminal

ROOT = Path(__file__).resolve().parent.parent
ENTRY = ROOT / "agent" / "__main__.py"
# As the unit and the init script start it: isolated, without site, by file name.
COMMAND = [sys.executable, "-I", "-S", "-B", str(ENTRY)]


class Answer:
    """What one command printed and how it ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Terminal:
    """A terminal's root folder and the real command on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.pos = self.data / "pos.db"
        self.backups = self.data / "posagent" / "backups"
        self.device_id = ""

    def run(self, *words: str, **given: Any) -> Answer:
        """`posagent --root ROOT WORDS`, waited for."""
        given.setdefault("timeout", 120)
        command = [*COMMAND, "--root", str(self.root), *words]
        return Answer(subprocess.run(command, capture_output=True, text=True, **given))

    def start(self, *words: str, **given: Any) -> subprocess.Popen[str]:
        """The same, not waited for."""
        command = [*COMMAND, "--root", str(self.root), *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given
        )

    def boot(self) -> Answer:
        """One boot."""
        return self.run("boot", "--json")

    def read(self) -> reader.Terminal:
        """Everything in pos.db, by the independent reader."""
        return reader.read_terminal(self.pos)

    def sha256(self) -> str:
        """The digest of pos.db's bytes."""
        return reader.file_sha256(self.pos)

    def configure(self, **overrides: Any) -> None:
        """Set keys of config.json."""
        path = self.root / "etc/posagent/config.json"
        values = json.loads(path.read_text())
        values.update(overrides)
        path.write_text(json.dumps(values))

    def own_migrations(self) -> Path:
        """A migrations folder of its own, filled with the shipped files, for a test to change."""
        folder = self.root / "migrations"
        if not folder.exists():
            shutil.copytree(
                ROOT / "migrations", folder, ignore=shutil.ignore_patterns("__pycache__")
            )
            self.configure(migrations_dir="/migrations")
        return folder

    def listing(self) -> list[str]:
        """Names beside pos.db."""
        return sorted(os.listdir(self.data))


def new_terminal(root: Path, **recipe: Any) -> Terminal:
    """A fresh sample terminal at schema 0."""
    given: dict[str, Any] = {"profile": "generic", "records": 300, "unsettled": 20, "seed": 1}
    given.update(recipe)
    summary = make_terminal(root, Recipe(**given))
    terminal = Terminal(root)
    terminal.device_id = summary.device_id
    return terminal


def start_at_gate(
    terminal: Terminal, *words: str, **given: Any
) -> tuple[subprocess.Popen[str], Gate]:
    """A run that stands at its gate, and the gate."""
    gate = Gate(terminal)
    run = terminal.start(*words, **given)
    gate.wait(run)
    return run, gate


class Gate:
    """Stops a run in its last pending migration, between two records, until the test opens it.

    The migration waits on a pipe with a name, so nothing here guesses how long anything takes.
    """

    def __init__(self, terminal: Terminal) -> None:
        folder = terminal.own_migrations()
        version = len(list(folder.glob("[0-9]*.py"))) + 1
        self.path = terminal.root / f"gate-{version}"
        os.mkfifo(self.path)
        (folder / f"{version:04d}_waits_at_the_gate.py").write_text(
            "import os\n"
            "from agent.core.migration import KEEP, each\n"
            "def up(record, context):\n"
            f"    if os.path.exists({str(self.path)!r}):\n"
            f"        open({str(self.path)!r}).read()\n"
            "    return KEEP\n"
            f"VERSION, NAME = {version}, 'waits at the gate'\n"
            "STEPS = [each('balances', up, fields=['gate'])]\n"
        )
        document = json.loads((folder / "stores.json").read_text())
        document["app_reads"] = [0, version]
        (folder / "stores.json").write_text(json.dumps(document))
        self._way_in = -1

    def wait(self, run: subprocess.Popen[str]) -> None:
        """Return once the run stands at the gate; fails when it ends before it."""
        while self._way_in < 0:
            try:
                self._way_in = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads at the other end yet
                try:
                    run.wait(timeout=0.005)
                except subprocess.TimeoutExpired:
                    continue
                raise AssertionError(run.communicate()) from None
        os.unlink(self.path)

    def open(self) -> None:
        """Let the run go on; nothing waits here a second time."""
        os.close(self._way_in)

    def wait_for_death(self) -> None:
        """Return once the worker that stood at the gate has ended; the next run passes."""
        poll = select.poll()
        poll.register(self._way_in, 0)  # an error is told always: the reader is gone
        poll.poll()
        os.close(self._way_in)
