"""The verbs that change something: shown, agreed to, begun, followed to their end.

The op is made and told before the first byte of the call is sent. From then on nothing that happens
here stops the work there, and whoever comes later finds it by its op.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from agent.ground.errors import Busy, revive
from agent.links.commands import canonical
from agent.links.console_text import desk_lines, losses, sentence
from agent.links.methods import METHODS
from posctl import live, sheets
from posctl.client import AgentRefused, Outcome, Run, Terminal, new_op
from posctl.show import BAD, Fact, Line, Part
from posctl.visit import Visit

# A call that says no more than its name is the same call whoever makes it: one that is on already
# is followed instead of refused.
SAME_FOR_ALL = ("migrate", "backup", "commit")
_BOOT = "boot"  # the upgrade of the terminal's start
_TRIED_AGAIN = "GIVEN_UP"  # a plan that no boot tries any more; trying it is what `migrate` is for


def migrate(visit: Visit, yes: bool, despite_unsettled: bool, code: str | None) -> int:
    """Upgrade, after a look at the plan."""
    with visit.terminal() as terminal:
        known = _already_on(visit, terminal, "migrate")
        if known is not None:
            return followed(visit, terminal, known)
        with visit.out.busy("working out the plan"):
            plan = terminal.report("plan")
        to = plan["to_version"]
        if not plan["migrations"] and to is not None and not plan["refusals"]:
            return followed(visit, terminal, terminal.migrate(to=to))  # there is nothing to do
        parts = sheets.plan({**plan, "refusals": _untried(plan)})
        visit.out.say(Fact("terminal", _who(terminal)), *parts)
        hindrance = _hindrance(plan, despite_unsettled)
        if to is None or (hindrance is not None and not yes):
            error = revive(hindrance or {"code": "FAILED", "message": "this plan leads nowhere"})
            visit.out.error(error.code, f"{error.message}; not started, nothing was changed")
            return error.exit_code
        params = {"to": to, "plan": plan["plan"], "despite_unsettled": despite_unsettled}
        if not (yes or visit.agreed(f"Upgrade it to schema {to}?")):
            return visit.not_started()
        return begun(visit, terminal, "migrate", params, code)


def _untried(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The refusals that a run would meet which somebody asks for."""
    return [
        one for one in plan["refusals"] if (one.get("facts") or {}).get("cause") != _TRIED_AGAIN
    ]


def _hindrance(plan: dict[str, Any], consented: bool) -> dict[str, Any] | None:
    """The first of them that nobody consented to."""
    for one in _untried(plan):
        if not (consented and one["code"] == "UNSETTLED"):
            return one
    return None


def change(visit: Visit, method: str, params: dict[str, Any], yes: bool, code: str | None) -> int:
    """`backup`, `restore`, `rollback`, `prune` or `commit`."""
    with visit.terminal() as terminal:
        known = _already_on(visit, terminal, method)
        if known is not None:
            return followed(visit, terminal, known)
        given = _given(params)
        parts: list[Part] = [Fact("terminal", _who(terminal))]
        parts.append(Fact(method, sentence(method, given)))
        if "discard" in given:
            parts.append(Fact("loses", losses(given["discard"]), BAD))
        visit.out.say(*parts)
        if not (yes or visit.agreed("Go on?")):
            return visit.not_started()
        return begun(visit, terminal, method, params, code)


def _already_on(visit: Visit, terminal: Terminal, method: str) -> Run | None:
    """The same work if it is on; raises Busy where something else is."""
    number = terminal.status().run
    if number is None:
        return None
    try:
        run = terminal.run_of(number=number)
    except AgentRefused:
        return None  # it has ended meanwhile
    asked = (method, _BOOT) if method == "migrate" else (method,)
    if method in SAME_FOR_ALL and run.method in asked:
        visit.op = run.op
        visit.out.note(f"run {number} ({run.method}) is on already; this follows it")
        return run
    raise Busy(
        f"run {number} ({run.method}) is on; `{visit.again('watch')}` follows it, "
        f"`{visit.again('cancel')}` stops it",
        run=number,
    )


def begun(
    visit: Visit, terminal: Terminal, method: str, params: dict[str, Any], code: str | None
) -> int:
    """Begin it under a new op, with the desk's code where one is needed, and follow it."""
    given = _given(params)
    command = canonical(method, given)
    if code is not None:
        terminal.code(code)
    elif _needs_code(terminal, method, given):
        _bring_code(visit, terminal, command)
    op = new_op()
    visit.out.note(f"op {op}: `{visit.again(f'watch --op {op}')}` finds this work again")
    while True:
        visit.op = op
        try:
            run: Run = getattr(terminal, method)(**params, op=op)
            break
        except AgentRefused as error:
            visit.op = ""  # refused, so nothing goes on there
            if error.kind != "NOT_ALLOWED" or error.data.get("need") != "admin":
                raise
            _bring_code(visit, terminal, command)
    return followed(visit, terminal, run)


def _given(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters as they are sent: what is not said is not there."""
    return {name: value for name, value in params.items() if value not in (None, False)}


# ---- The service desk


def _needs_code(terminal: Terminal, method: str, given: dict[str, Any]) -> bool:
    """Whether this line may not do it by itself; the judge of that is the terminal."""
    needs_admin = METHODS[method].level == "admin" or "despite_unsettled" in given
    return needs_admin and terminal.hello.level == "tech"


def _bring_code(visit: Visit, terminal: Terminal, command: str) -> None:
    """Tell what to read to the desk and take its answer. Raises AgentRefused with the challenge in
    it where nobody answers."""
    found = terminal.challenge(command)
    visit.out.note("this needs a code of the service desk, which makes it from these words:")
    *told, _ = desk_lines(asdict(found))
    for line in (*told, f"  (valid {found.expires_s // 60} min, 3 tries)"):
        visit.out.note(line)
    while True:
        typed = visit.asked("code: ")
        if typed is None:
            text = "this needs a code of the service desk; nothing was changed"
            raise AgentRefused(0, "NOT_ALLOWED", text, {"challenge": asdict(found)})
        try:
            terminal.code(typed)
            return
        except AgentRefused as error:
            if error.kind not in ("CODE_WRONG", "PARAMS"):
                raise
            visit.out.note(error.message)


# ---- A run that is on


def watch(visit: Visit, number: int | None, op: str | None) -> int:
    """Follow the work of an op, a run, or what is on."""
    with visit.terminal() as terminal:
        if op is None and number is None:
            status = terminal.status()
            number = status.run
            if number is None:
                said = {"run": None, "verdict": status.verdict}
                ended = f"; the last one ended {status.verdict}" if status.verdict else ""
                visit.out.show(said, [Line(f"no run is on{ended}")])
                return 0
        run = terminal.run_of(op=op) if op else terminal.run_of(number=number)
        visit.op = run.op
        return followed(visit, terminal, run)


def cancel(visit: Visit, number: int | None, op: str | None) -> int:
    """Stop a run after its batch; the data stays as it was."""
    with visit.terminal() as terminal:
        if op is not None:
            number = terminal.run_of(op=op).number
        elif number is None:
            number = terminal.status().run
        if number is None:
            visit.out.show({"run": None}, [Line("no run is on")])
            return 0
        terminal.cancel(number)
    text = f"run {number} stops after its current batch; the data stays as it was"
    visit.out.show({"run": number, "state": "stopping"}, [Line(text)])
    return 0


def followed(visit: Visit, terminal: Terminal, run: Run) -> int:
    """Show a run until its end, and its end."""
    outcome = _end_of(visit, terminal, run)
    visit.op = ""
    kind = "migrate" if run.method == _BOOT else run.method
    parts = sheets.SHEETS[kind](outcome) if run.reads_only else sheets.ended(outcome, kind)
    visit.out.show(outcome, parts)
    return outcome.exit_code


def _end_of(visit: Visit, terminal: Terminal, run: Run) -> Outcome:
    if run.number is None:
        return run.result()  # there was nothing to do
    try:
        with live.view(visit.out, run.method) as view:
            visit.told = view.told
            live.follow(run, view, terminal.counts)
            return run.result()
    finally:
        visit.told = None


def _who(terminal: Terminal) -> str:
    return f"{terminal.hello.serial or 'unnamed'} ({terminal.hello.model})"
