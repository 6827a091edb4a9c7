"""One call of the command: which terminal, how it is shown, and what its end is called.

What can go wrong is turned into a word and an exit code here, once, for every verb.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from agent.ground.errors import AgentError, UsageError
from posctl.client import Terminal, connect
from posctl.conversation import WireEvent
from posctl.faults import (
    AgentRefused,
    HostError,
    NoAnswer,
    NotOurAgent,
    OtherTerminal,
    PortError,
    TooNoisy,
    Unheard,
    WrongProtocol,
)
from posctl.inventory import Entry, entry_named
from posctl.show import Out

EXIT_FAILED = 1
EXIT_INTERRUPTED = 3
PATIENCE_S = 600.0
# So many of a hundred requests sent again are worth a word about the cable.
NOISY_PERCENT = 10
NOISY_SENDS_MIN = 3

# The words under which programs find a fault of the line; those of the terminal come with it.
WORDS: tuple[tuple[type[HostError], str], ...] = (
    (PortError, "PORT"),
    (NoAnswer, "NO_ANSWER"),
    (TooNoisy, "TOO_NOISY"),
    (WrongProtocol, "OTHER_PROTOCOL"),
    (OtherTerminal, "OTHER_TERMINAL"),
    (NotOurAgent, "NOT_OUR_AGENT"),
)
# Refusals for which the command on a terminal has a word of its own.
_AS_THERE = {"PARAMS": "USAGE", "NO_SUCH": "USAGE", "OP_REUSED": "USAGE", "OP_MISSING": "USAGE"}
_NO_FACTS = ("kind", "retry", "changed", "word")


class Visit:
    """What the words before the verb said."""

    def __init__(self) -> None:
        self.port = ""
        self.socket = ""
        self.name = ""
        self.inventory: str | None = None
        self.as_json = False
        self.timeout_s: float | None = None
        self.patience_s = PATIENCE_S
        self.told: Callable[[WireEvent], None] | None = None  # who watches the line, if anybody
        self.op = ""  # of what may have been begun: whoever is cut off is told of it
        self._out: Out | None = None

    @property
    def out(self) -> Out:
        """Made when it is first needed: all words are read by then."""
        if self._out is None:
            self._out = Out(self.as_json)
        return self._out

    # Which terminal

    def entry(self) -> Entry:
        """The terminal that was named. Raises UsageError when none was, or more than one."""
        given = [word for word in (self.port, self.socket, self.name) if word]
        if len(given) != 1:
            what = "say which terminal" if not given else "say one terminal, not several"
            raise UsageError(f"{what}: -p PORT, -s SOCKET or -t NAME; `posctl ports` lists ports")
        if self.name:
            return entry_named(self.name, self.inventory)
        where = self.port or f"socket:{self.socket}"
        return Entry(where, where, "")

    def again(self, words: str) -> str:
        """The command line for the same terminal with another verb."""
        option, value = next(
            (option, value)
            for option, value in (("-p", self.port), ("-s", self.socket), ("-t", self.name))
            if value
        )
        named = f"--inventory {_quoted(self.inventory)} " if self.name and self.inventory else ""
        return f"posctl {named}{option} {_quoted(value)} {words}"

    @contextmanager
    def terminal(self) -> Iterator[Terminal]:
        """The terminal, greeted, and hung up at the end. Raises what `connect` raises, and
        OtherTerminal where the inventory expects another one."""
        entry = self.entry()
        with self.out.busy(f"asking {entry.where}"):
            terminal = connect(
                entry.where,
                told=self._tell,
                patience_s=self.patience_s,
                answer_s=self.timeout_s,
            )
        with terminal:
            if entry.serial and terminal.hello.serial != entry.serial:
                raise OtherTerminal(
                    f"{entry.name} is to be terminal {entry.serial}, and {entry.where} leads to "
                    f"{terminal.hello.serial}; nothing was asked of it"
                )
            try:
                yield terminal
            finally:
                self._tell_quality(terminal)

    def _tell(self, event: WireEvent) -> None:
        if self.told is not None:
            self.told(event)

    def _tell_quality(self, terminal: Terminal) -> None:
        counts = terminal.counts
        again = counts.sends - counts.requests
        if again >= NOISY_SENDS_MIN and again * 100 >= counts.requests * NOISY_PERCENT:
            self.out.note(
                f"note: the line is noisy: {counts.requests} requests took {counts.sends} sends"
            )

    # What people are asked

    def asked(self, question: str) -> str | None:
        """What somebody typed, or None where there is nobody. Asked on standard error: standard
        output is the answer's."""
        sys.stderr.write(question)
        sys.stderr.flush()
        typed = sys.stdin.readline()
        if not typed:
            sys.stderr.write("\n")
            return None
        return typed.strip()

    def agreed(self, question: str) -> bool:
        """Whether somebody said yes, and not by mistake."""
        return (self.asked(f"{question} [y/N] ") or "").lower() in ("y", "yes")

    def not_started(self) -> int:
        """Nobody agreed."""
        self.out.error("NOT_STARTED", "nothing was changed")
        return EXIT_FAILED

    # How it ended

    def guarded(self, work: Callable[[], int]) -> int:
        """Do it; the exit code, whatever happens."""
        try:
            return work()
        except KeyboardInterrupt:
            return self._interrupted()
        except HostError as error:
            return self._failed(error)
        except AgentError as error:
            self.out.error(error.code, error.message, error.facts)
            return error.exit_code

    def _failed(self, error: HostError) -> int:
        word, facts, op = word_of(error), facts_of(error), error.op
        if isinstance(error, Unheard):
            op = op or self.op
        if op:
            facts["op"] = op
        self.out.error(word, error.message, facts)
        if op:
            self.out.note(f"what was begun goes on; `{self.again(f'watch --op {op}')}` finds it")
        elif isinstance(error, AgentRefused) and error.kind == "BUSY" and error.data.get("run"):
            self.out.note(f"`{self.again('watch')}` follows the run that is on")
        return error.exit_code

    def _interrupted(self) -> int:
        """Ctrl-C. What the terminal does it goes on doing."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one changes nothing
        if self.op:
            words = self.again(f"watch --op {self.op}")
            text = f"the work on the terminal goes on; `{words}` follows it"
            self.out.error("INTERRUPTED", text, {"op": self.op})
        else:
            self.out.error("INTERRUPTED", "nothing was started on the terminal")
        return EXIT_INTERRUPTED


def word_of(error: HostError) -> str:
    """The code word of a fault, as it stands under `error.code`."""
    if isinstance(error, AgentRefused):
        return str(error.data.get("word") or _AS_THERE.get(error.kind, error.kind))
    return next((word for kind, word in WORDS if isinstance(error, kind)), "FAILED")


def facts_of(error: HostError) -> dict[str, Any]:
    """What programs may want to know besides."""
    if isinstance(error, AgentRefused):
        return {name: value for name, value in error.data.items() if name not in _NO_FACTS}
    return {"why": error.why} if isinstance(error, PortError) else {}


def _quoted(word: str) -> str:
    return shlex.quote(os.path.normpath(word) if word.startswith("/") else word)
