"""The verbs that only look: what is asked of the terminal, how it is shown, what the exit code is.

Each fetches the very object that the command prints there and shows that. What changes something
is in `changes`.
"""

from __future__ import annotations

import os
from typing import Any

from agent.core.report import Meter
from agent.ground.errors import UsageError, revive
from posctl.client import AgentRefused, Status, Terminal
from posctl.console import carry
from posctl.sheets import SHEETS
from posctl.show import Line, Out
from posctl.visit import Visit

EXIT_PENDING = 3
_A_CUT_NOW = "the run continues at the next start; until it is done the old data stays whole"
_NAME_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"


def report(visit: Visit, verb: str) -> int:
    """`plan`, `history`, `health` and the like."""
    with visit.terminal() as terminal, visit.out.busy(f"asking for {verb}"):
        said = terminal.report(verb)
    return shown(visit, verb, said)


def shown(visit: Visit, verb: str, said: dict[str, Any]) -> int:
    """Show a verb's object; the exit code is that of the command on the terminal."""
    visit.out.show(said, SHEETS[verb](said))
    if verb == "plan" and said.get("refusals"):
        return revive(said["refusals"][0]).exit_code
    if verb == "health":
        return 1 if said.get("worst") == "fail" else 0
    error = said.get("error")
    if error is None:
        return 0
    if not visit.as_json:
        visit.out.error(error["code"], error["message"])
    return revive(error).exit_code


def status(visit: Visit, exit_code: bool) -> int:
    """What is going on; also while a run is on, when the data itself cannot be asked."""
    with visit.terminal() as terminal, visit.out.busy("asking for status"):
        said = _status_of(terminal)
    doing = said["doing"]
    pending = doing["state"] != "idle" or doing["pending"] > 0
    shown(visit, "status", said)
    return EXIT_PENDING if exit_code and pending else 0


def _status_of(terminal: Terminal) -> dict[str, Any]:
    try:
        return terminal.report("status")
    except AgentRefused as error:
        if error.kind != "BUSY":
            raise
        short = terminal.status()
        if short.run is None:
            return terminal.report("status")  # it has just ended
        return of_a_run(short)


def of_a_run(short: Status) -> dict[str, Any]:
    """What `posagent status --json` says while a run is on, of what the agent's memory holds: the
    reader of the data stays out of a run's way there, too."""
    place = (short.state, short.step or "", short.done or 0, short.total or 0)
    progress = Meter(0).mark(*place, 0).as_json()
    left_ms = -1 if short.eta_s is None else short.eta_s * 1000
    nothing = ("given_up", "held", "migrations_rejected", "last", "diary_not_read")
    uncounted = ("records", "money", "odd_amounts", "unreadable", "quarantined")
    compared = ("version", "unsettled", "exact", "newer", "changed", "gone")
    backup = None
    if short.backup is not None:
        backup = {"name": short.backup, "verified": False, **dict.fromkeys(compared)}
    return {
        "doing": {
            "state": short.state,
            "progress": {**progress, "eta_ms": left_ms},
            "version": None,
            "target": short.target,
            "pending": 0,
            "too_new": False,
            "attempts": 0,
            "interrupted": False,
            "previous_kept": False,
            **dict.fromkeys(nothing),
        },
        "money": {
            "counted": False,
            "why_not_counted": "a run is on, which proves the money itself",
            **dict.fromkeys(uncounted),
            "backup": backup,
            "damaged_backups": [],
        },
        "unplug": {
            "safe": True,
            "then": _A_CUT_NOW,
        },
        "advice": {"word": "wait", "says": "nothing; wait until it is done"},
        "app_may_start": short.app_may_start,
        "app_must_not_start_because": None if short.app_may_start else "a run is on",
    }


def validate(visit: Visit) -> int:
    """Read every record there."""
    return report(visit, "validate")


def verify(visit: Visit, backup: str | None) -> int:
    """Read one backup whole, or all."""
    with visit.terminal() as terminal, visit.out.busy("reading the backups there"):
        said = terminal.report("verify")
    return shown(visit, "verify", said if backup is None else only(said, backup))


def only(said: dict[str, Any], backup: str) -> dict[str, Any]:
    """Of all backups that were read the one that is meant, by its name or its number. Raises
    UsageError when it is not among them."""
    kept = [one for one in said["checked"] if _is(one["name"], backup)]
    if not kept:
        raise UsageError(f"there is no backup {backup!r}; `posctl backups` lists them")
    damaged = [one["name"] for one in kept if not one["ok"]]
    found: dict[str, Any] = {"checked": kept, "damaged": damaged}
    if damaged:
        error = said["error"]
        names = ", ".join(said["damaged"])
        message = error["message"].replace(names, damaged[0])
        found["error"] = {**error, "message": message, "facts": {"damaged": damaged}}
    return found


def _is(name: str, wanted: str) -> bool:
    number = name.partition("-")[0]
    is_number = wanted.isascii() and wanted.isdigit() and number.isdigit()
    return name == wanted or (is_number and int(wanted) == int(number))


def bundle(visit: Visit, path: str | None, over: bool) -> int:
    """Every report in one file, for the service desk."""
    with visit.terminal() as terminal:
        found = path or f"posagent-{_plain(terminal.hello.serial)}.json"
        if os.path.lexists(found) and not over:
            raise UsageError(f"{found} is there already; name another file, or say --force")
        try:
            with _piece_by_piece(visit.out, found) as told:
                size = terminal.fetch("bundle", found, told)
        except OSError as error:
            raise UsageError(f"{found} cannot be written: {error.strerror}") from error
    said = {"path": found, "size_bytes": size}
    visit.out.show(said, [Line(f"{found}: {size:,} bytes, no record body in it")])
    return 0


def _plain(serial: str | None) -> str:
    """A serial number as a part of a file's name."""
    return "".join(char if char in _NAME_CHARS else "_" for char in serial or "unnamed")


class _piece_by_piece:
    """A bar while a file comes in; nothing where there are no bars."""

    def __init__(self, out: Out, name: str) -> None:
        from rich.progress import Progress

        self._bar = None if out.plain else Progress(console=out.console, transient=True)
        self._name = name

    def __enter__(self) -> Any:
        if self._bar is None:
            return lambda done, total: None
        bar, task = self._bar, self._bar.add_task(self._name, total=None)
        bar.start()
        return lambda done, total: bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def console(visit: Visit) -> int:
    """The technician's keyboard on the terminal's console."""
    if visit.as_json:
        raise UsageError("the console is for people; it has --json behind each of its commands")
    with visit.terminal() as terminal:
        line = terminal.open_console()
    where = visit.entry().where
    visit.out.note(f"console of {where}; press Enter to begin, Ctrl-] to leave")
    try:
        carry(line, 0, 1, _beside_a_raw_screen)
    finally:
        line.close()
    visit.out.note("")  # behind the prompt there
    visit.out.note("left; what goes on there goes on")
    return 0


def _beside_a_raw_screen(text: str) -> None:
    try:
        os.write(2, f"\r\nposctl: {text}\r\n".encode("ascii", "replace"))
    except OSError:
        pass  # nobody reads it
