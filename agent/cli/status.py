"""`status`: what is it doing, is the money safe, may it be unplugged, what should I do.

In that order, in JSON and in words. It writes nothing, waits for nobody, and is out of the way of a
run that begins meanwhile.
"""

from __future__ import annotations

from agent.cli.output import show, wrap
from agent.cli.status_facts import Facts
from agent.cli.status_money import backup_sentence, money_facts
from agent.core.report import Snapshot, money_line
from agent.ground.errors import EXIT_OK, EXIT_PENDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config

_LABEL_CHARS = 8


def status(command: Command, config: Config) -> int:
    """Answer; with --exit-code 3 while migrations are pending or a run is on."""
    facts = Facts(config)
    doing = facts.doing
    why = "a run is on, which proves the money itself" if facts.running else ""
    if doing["held"] and doing["version"] is None:
        why = "there is no data that can be read"
    money = money_facts(config, facts.places, facts.files, doing["version"], why)
    word, advice = advise(facts, money)
    result = {
        "doing": doing,
        "money": money,
        "unplug": {"safe": True, "then": what_a_cut_does(facts)},
        "advice": {"word": word, "says": advice},
        "app_may_start": facts.may_start,
        "app_must_not_start_because": facts.why_not_start or None,
    }
    show(result, lines_of(facts, money, result), command.json)
    pending = facts.running or doing["pending"] > 0
    return EXIT_PENDING if pending and command.options.get("--exit-code") else EXIT_OK


def advise(facts: Facts, money: dict[str, Any]) -> tuple[str, str]:
    """(a word for machines, one sentence for people): the first that applies."""
    doing = facts.doing
    if facts.running:
        return "wait", "nothing; wait until it is done"
    if doing["held"]:
        return "technician", "call a technician; until then the data stays as it is"
    if doing["migrations_rejected"]:
        return "correct_migrations", f"install the migrations again: {doing['migrations_rejected']}"
    if doing["too_new"]:
        return (
            "install_software",
            f"install the software that belongs to schema {doing['version']}",
        )
    if doing["given_up"]:
        return "correct_cause", "correct the cause, then start `posagent migrate`"
    if doing["interrupted"]:
        return "migrate", "start `posagent migrate`, or restart the terminal: the run goes on"
    if doing["pending"]:
        return "migrate", "start `posagent migrate`, or restart the terminal"
    if not money["counted"]:
        return "look", "see why the money is not counted, then ask again"
    return _advise_at_target(doing, money)


def _advise_at_target(doing: dict[str, Any], money: dict[str, Any]) -> tuple[str, str]:
    known = money["backup"]
    if money["records"] and (known is None or known["newer"]):
        return "backup", "nothing has to be done; `posagent backup` puts the new sales in a backup"
    if doing["previous_kept"]:
        return (
            "commit",
            "nothing has to be done; `posagent commit` deletes the file from before the upgrade "
            "once the application has proven itself",
        )
    return "nothing", "nothing"


def what_a_cut_does(facts: Facts) -> str:
    """What happens when power goes now. It is safe always; people want to know why."""
    doing = facts.doing
    if facts.running:
        return "the run continues at the next start; until it is done the old data stays whole"
    if doing["held"]:
        return "nothing changes; it will be held at the next start, too"
    if doing["given_up"] or doing["too_new"] or doing["migrations_rejected"]:
        return "nothing is being changed; the next start goes on with the data as it is"
    if doing["interrupted"]:
        return "the interrupted run continues at the next start"
    if doing["pending"]:
        return "the upgrade begins at the next start"
    return "nothing is being changed; the next start has nothing to do"


def lines_of(facts: Facts, money: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """The four answers for people."""
    doing = facts.doing
    lines = _said("doing", doing_sentence(doing))
    for word, text in (
        ("", doing["held"] and f"held: {doing['held']}"),
        ("", doing["migrations_rejected"] and f"migrations: {doing['migrations_rejected']}"),
        ("", doing["given_up"] and f"the upgrade was given up: {doing['given_up']}"),
        ("", _last_failure(doing)),
        ("", doing["diary_not_read"] and f"history not read: {doing['diary_not_read']}"),
    ):
        if text:
            lines += _said(word, text)
    lines += _money_lines(money, doing["version"])
    lines += _said("unplug", f"yes, at any moment; {result['unplug']['then']}")
    if not facts.may_start and not facts.running:
        why = "" if doing["held"] else f": {facts.why_not_start}"
        lines += _said("start", f"the application must not start{why}")
    return lines + _said("to do", result["advice"]["says"])


def _said(word: str, text: str) -> list[str]:
    return wrap((word + ":" if word else "").ljust(_LABEL_CHARS), text)


def doing_sentence(doing: dict[str, Any]) -> str:
    """What it is doing, in one sentence."""
    if doing["state"] != "idle":
        return running_line(doing["state"], doing["progress"])
    version, target, pending = doing["version"], doing["target"], doing["pending"]
    if version is None:
        return "idle; there is no data that can be read"
    if doing["too_new"]:
        return f"idle; schema {version} is newer than the installed migrations (to {target})"
    if not pending:
        return f"idle; schema {version}" + ("" if target is None else ", nothing pending")
    noun = "migration" if pending == 1 else "migrations"
    cut = "; a run was interrupted" if doing["interrupted"] else ""
    return f"idle; schema {version} -> {target}, {pending} {noun} pending{cut}"


def running_line(state: str, progress: Any) -> str:
    """The run's last mark as one line."""
    snapshot = Snapshot()
    snapshot.state = state
    try:
        for name in Snapshot.__slots__:
            if name != "state":
                setattr(snapshot, name, progress[name])
        return f"a run is on: {snapshot.line()}"
    except (TypeError, KeyError):
        return f"a run is on: {state}"


def _last_failure(doing: dict[str, Any]) -> str:
    last = doing["last"]
    if last is None or not last["code"] or not doing["pending"]:
        return ""
    return f"the last attempt failed: {last['code']}: {last['message']}"


def _money_lines(money: dict[str, Any], version: int | None) -> list[str]:
    if not money["counted"]:
        lines = _said("money", f"not counted: {money['why_not_counted']}")
        return lines + _said("", backup_sentence(money, version))
    lines = _said("money", money_line(money))
    if money["records"]:
        lines += _said("", backup_sentence(money, version))
    if money["odd_amounts"]:
        lines += _said("", f"{money['odd_amounts']} amounts are no whole numbers and not in a sum")
    if money["quarantined"]:
        text = f"{money['quarantined']} records were left behind; `posagent quarantine` lists them"
        lines += _said("", text)
    if money["unreadable"]:
        text = f"{money['unreadable']} records cannot be read; `posagent validate` names them"
        lines += _said("", text)
    if money["damaged_backups"]:
        lines += _said("", f"damaged backups: {', '.join(money['damaged_backups'])}")
    return lines
