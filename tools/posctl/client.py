"""The library: a terminal, connected, with a method for each thing that can be asked of it.

    from posctl.client import connect

    with connect("/dev/ttyUSB0@115200") as terminal:
        print(terminal.hello.serial, terminal.status().state)
        run = terminal.migrate()
        for progress in run.watch():
            print(progress.state, progress.percent)
        print(run.result().verdict)

It is synchronous and for one thread. Every fault is a HostError of posctl.faults and says what to
do. Whatever ends the program, what was begun on the terminal goes on: `run_of` finds it again.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Callable

from posctl.conversation import Counts, WireEvent
from posctl.faults import (
    AgentRefused,
    HostError,
    KeptChanging,
    LineLost,
    NoAnswer,
    NotOurAgent,
    OtherTerminal,
    PortError,
    TooNoisy,
    Unheard,
    WrongProtocol,
)
from posctl.lines import Line, place_of
from posctl.link import Link
from posctl.ops import new_op
from posctl.reading import ask, keep, read_json, read_whole
from posctl.runs import Outcome, Run
from posctl.shapes import Challenge, Hello, Plan, PlanStep, Progress, Status, shaped

__all__ = [
    "AgentRefused",
    "Challenge",
    "Counts",
    "Hello",
    "HostError",
    "KeptChanging",
    "LineLost",
    "NoAnswer",
    "NotOurAgent",
    "OtherTerminal",
    "Outcome",
    "Plan",
    "PlanStep",
    "PortError",
    "Progress",
    "Run",
    "Status",
    "Terminal",
    "TooNoisy",
    "Unheard",
    "WireEvent",
    "WrongProtocol",
    "connect",
    "new_op",
]

PATIENCE_S = 600.0  # somebody pulls the cable in the middle of a run and looks for another one

LOOKS_MAX = 5  # at a plan that is another one on each page


def connect(
    where: str,
    *,
    told: Callable[[WireEvent], None] = lambda event: None,
    on_text: Callable[[bytes], None] = lambda text: None,
    patience_s: float = PATIENCE_S,
    answer_s: float | None = None,
    sends_max: int | None = None,
) -> Terminal:
    """The terminal at `/dev/ttyUSB0@115200` or `socket:/run/posagent/agent.sock`, greeted.

    `told` gets what happens on the line, `on_text` what its console writes between frames.
    `patience_s` is how long a run that is watched may be out of reach; `answer_s` replaces the
    second that an agent has for an answer, `sends_max` the number of sends. Raises PortError,
    NoAnswer, TooNoisy, NotOurAgent or WrongProtocol.
    """
    link = Link(place_of(where), told, on_text, answer_s, sends_max)
    link.open()
    return Terminal(link, patience_s)


class Terminal:
    """One terminal. What only asks gives values; what takes time gives a Run.

    What the agent refuses is raised as AgentRefused, with nothing changed on the terminal. Unheard
    is raised when no answer came; after a call that changes something its `op` tells which.
    """

    def __init__(self, link: Link, patience_s: float) -> None:
        self._link = link
        self._patience_s = patience_s

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; what goes on there goes on."""
        self._link.close()

    @property
    def hello(self) -> Hello:
        """Who it is, as it said when it was greeted last."""
        return self._link.hello

    @property
    def counts(self) -> Counts:
        """How good the line was so far."""
        return self._link.counts

    # What is so

    def status(self) -> Status:
        """What is going on; answered from the agent's memory, also while a run is on."""
        return shaped(Status, self._link.call("status"))

    def plan(self) -> Plan:
        """What the next run would do, and what is in its way."""
        for _ in range(LOOKS_MAX):
            plan = self._plan_of_one_look()
            if plan is not None:
                return plan
        raise KeptChanging("the plan was another one with each page; look again later")

    def _plan_of_one_look(self) -> Plan | None:
        """All pages, or None when they are not of the same plan."""
        first = page = ask(self._link, "plan")
        steps = list(page["steps"])
        while page["next"] is not None:
            page = ask(self._link, "plan", {"cursor": page["next"]})
            steps += page["steps"]
            if page["plan"] != first["plan"]:
                return None
        return shaped(Plan, {**first, "steps": [shaped(PlanStep, step) for step in steps]})

    def report(self, verb: str) -> dict[str, Any]:
        """The very object that `posagent VERB --json` prints there: `status`, `plan`, `history`,
        `backups`, `quarantine`, `health`, `profile` or `log`."""
        return read_json(self._link, f"report/{verb}")

    def history(self) -> dict[str, Any]:
        """What runs have done."""
        return self.report("history")

    def backups(self) -> dict[str, Any]:
        """The backups there."""
        return self.report("backups")

    def quarantine(self) -> dict[str, Any]:
        """The records that migrations left as they were; names and reasons, never their bodies."""
        return self.report("quarantine")

    def health(self) -> dict[str, Any]:
        """Storage, file system, clock, watchdog and the agent's own files."""
        return self.report("health")

    def profile(self) -> dict[str, Any]:
        """The device profile in force."""
        return self.report("profile")

    def log(self) -> dict[str, Any]:
        """Who asked for what on the lines, and what was refused."""
        return self.report("log")

    def fetch(
        self, name: str, path: str, told: Callable[[int, int], None] = lambda done, total: None
    ) -> int:
        """Write `bundle` (every report, for the desk) or `backups/NAME` to a file, which is there
        whole or not at all; answers its size. `told` gets (bytes so far, bytes in all)."""
        data = read_whole(self._link, name, told)
        keep(data, path)
        return len(data)

    # What changes something. Each takes an `op` that was made by `new_op` beforehand, or makes one.

    def migrate(
        self,
        to: int | None = None,
        plan: str | None = None,
        despite_unsettled: bool = False,
        op: str | None = None,
    ) -> Run:
        """Upgrade to the installed target. Without `to` the plan is looked at first, and the run
        starts only while it is still the same."""
        if to is None:
            found = self.plan()
            to, plan = found.to_version, plan or found.plan
        return self._begin("migrate", op, to=to, plan=plan, despite_unsettled=despite_unsettled)

    def rollback(
        self,
        to: int,
        plan: str | None = None,
        despite_unsettled: bool = False,
        op: str | None = None,
    ) -> Run:
        """Return to an earlier version; what was sold since is kept."""
        return self._begin("rollback", op, to=to, plan=plan, despite_unsettled=despite_unsettled)

    def restore(self, backup: int | str, discard: str | None = None, op: str | None = None) -> Run:
        """Put a backup in the place of the data. `discard` consents to exactly the loss that it
        counts, as the refusal named it."""
        return self._begin("restore", op, backup=backup, discard=discard)

    def prune(self, despite_unsettled: bool = False, op: str | None = None) -> Run:
        """Delete old backups and old settled records."""
        return self._begin("prune", op, despite_unsettled=despite_unsettled)

    def backup(self, op: str | None = None) -> Run:
        """Make a backup."""
        return self._begin("backup", op)

    def commit(self, op: str | None = None) -> Run:
        """Delete the old file that a switch back would need."""
        return self._begin("commit", op)

    def _begin(self, method: str, op: str | None, **given: Any) -> Run:
        op = op or new_op()
        params = {name: value for name, value in given.items() if value not in (None, False)}
        try:
            said = self._link.call(method, {"op": op, **params})
        except (Unheard, LineLost) as error:
            said = self._became_of(op, error)
        if said.get("noop"):
            return self._run(method, op=op, outcome=self._nothing_to_do(params["to"]))
        return self._run(method, op=op, number=said["run"])

    def _became_of(self, op: str, error: HostError) -> dict[str, Any]:
        """Whether the call was taken although no answer came; else its error, with the op."""
        error.op = op
        try:
            return self._link.call("result", {"op": op})
        except HostError:
            raise error from None

    def _nothing_to_do(self, version: int) -> Outcome:
        said = Outcome(verdict="NOT_REQUIRED", from_version=version, to_version=version)
        said["app_may_start"] = self._link.call("status")["app_may_start"]
        return said

    # Work that only reads

    def validate(self) -> Run:
        """Check every record; writes nothing."""
        return self._begin_reading("validate", {}, "report/validate")

    def verify(self, backup: int | str | None = None) -> Run:
        """Check one backup, or all; writes nothing."""
        if backup is None:
            return self._begin_reading("verify", {}, "report/verify")
        return self._begin_reading("verify", {"backup": backup}, "")

    def _begin_reading(self, method: str, params: dict[str, Any], report: str) -> Run:
        said = ask(self._link, method, params)
        return self._run(method, number=said["run"], params=params, report=report)

    # Runs

    def run_of(self, op: str = "", number: int | None = None) -> Run:
        """The run of an op, or of a number, begun by whomever and whenever. Raises AgentRefused
        NO_SUCH for what was never begun, or ended so long ago that it is forgotten."""
        said = self._link.call("result", {"op": op} if op else {"run": number})
        method = str(said.get("method", ""))
        return self._run(method, op=said.get("op") or op, number=said["run"])

    def cancel(self, run: Run | int) -> None:
        """Stop a run after its batch; the data stays as it was."""
        number = run if isinstance(run, int) else run.number
        self._run("", number=number).cancel()

    def _run(self, method: str, **given: Any) -> Run:
        return Run(self._link, self._patience_s, method, **given)

    # Rights

    def challenge(self, command: str) -> Challenge:
        """What the service desk needs to allow a command, such as `restore 41`. Asked again it is
        the same challenge."""
        return shaped(Challenge, self._link.call("challenge", {"command": command}))

    def code(self, code: str) -> str:
        """Bring the desk's code; answers the command that may now be run, once."""
        return str(self._link.call("code", {"code": code})["command"])

    # The line itself

    def open_console(self) -> Line:
        """The line as a person's console: keys out, text in. It is the caller's from now on, and
        this terminal closed; a socket's connection becomes a console first."""
        if self._link.place.kind == "socket":
            self._link.call("console")
        return self._link.hand_over()
