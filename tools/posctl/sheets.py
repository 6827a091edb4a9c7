"""The terminal's own JSON, verb by verb, as parts to show.

Pure: told the object that the command prints there, answers what to print here. A key that an older
or newer terminal leaves out shows as "-" and is never an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Callable

from agent.cli.backups import size_text
from agent.cli.output import when
from agent.cli.status import doing_sentence
from agent.cli.status_money import backup_sentence
from agent.core.report import duration, money_line
from posctl.show import BAD, GOOD, QUIET, WARN, Fact, Line, Part, Row, Rows, clean

Result = dict[str, Any]

# What a terminal's sentence may tell people to type, and what is typed here just the same.
_THERE = re.compile(
    r"`posagent (?=(?:status|plan|migrate|rollback|restore|prune|commit|backups?|verify|validate"
    r"|quarantine|history|health|profile|log)\b)"
)
_CLOCK = Line("? the clock could not be trusted; the order is that of the numbers", QUIET)
_VERDICT_TONES = {"OK": GOOD, "NOT_REQUIRED": GOOD, "PARTIAL": WARN, "INTERRUPTED": WARN}


def here(text: Any) -> str:
    """A terminal's sentence with the commands that do it from here."""
    return _THERE.sub("`posctl ", clean(text))


# ---- Single answers


def status(said: Result) -> list[Part]:
    """What is it doing, is the money safe, may it be unplugged, what should I do."""
    doing, money, advice = said["doing"], said["money"], said["advice"]
    parts: list[Part] = [Fact("doing", here(doing_sentence(doing)), _doing_tone(doing))]
    for label, text in (
        ("held", doing.get("held")),
        ("migrations", doing.get("migrations_rejected")),
        ("given up", doing.get("given_up")),
        ("last run", _last_failure(doing)),
        ("history", doing.get("diary_not_read")),
    ):
        if text:
            parts.append(Fact(label, here(text), BAD))
    parts += _money(money, doing.get("version"))
    parts.append(Fact("unplug", f"yes, at any moment; {here(said['unplug']['then'])}", GOOD))
    if said.get("app_may_start") is False and doing.get("state") == "idle":
        why = here(said.get("app_must_not_start_because"))
        parts.append(Fact("start", f"the application must not start: {why}", BAD))
    calm = advice.get("word") in ("nothing", "wait", "commit", "backup")
    parts.append(Fact("to do", here(advice["says"]), "" if calm else WARN))
    return parts


def _doing_tone(doing: Result) -> str:
    if doing.get("held") or doing.get("too_new") or doing.get("migrations_rejected"):
        return BAD
    return WARN if doing.get("pending") or doing.get("state") != "idle" else GOOD


def _last_failure(doing: Result) -> str:
    last = doing.get("last")
    if not last or not last.get("code") or not doing.get("pending"):
        return ""
    return f"failed: {last['code']}: {last['message']}"


def _money(money: Result, version: Any) -> Iterable[Part]:
    if not money.get("counted"):
        yield Fact("money", f"not counted: {here(money.get('why_not_counted'))}", WARN)
    else:
        known = money.get("backup")
        safe = not money["records"] or bool(known and known.get("exact"))
        yield Fact("money", money_line(money), GOOD if safe else WARN)
    if money.get("backup") or money.get("records"):
        yield Fact("", _backup_of(money, version))
    for count, text in (
        ("odd_amounts", "amounts are no whole numbers and not in a sum"),
        ("quarantined", "records were left behind; `posctl quarantine` lists them"),
        ("unreadable", "records cannot be read; `posctl validate` names them"),
    ):
        if money.get(count):
            yield Fact("", f"{money[count]} {text}", WARN)
    if money.get("damaged_backups"):
        yield Fact("", f"damaged backups: {', '.join(money['damaged_backups'])}", BAD)


def _backup_of(money: Result, version: Any) -> str:
    known = money.get("backup")
    if known and known.get("unsettled") is None:
        return f"the newest backup is {clean(known.get('name'))}"
    return backup_sentence(money, version)


def plan(said: Result) -> list[Part]:
    """What an upgrade would do, with what, what for, and what is in its way."""
    ends = f"{clean(said.get('from_version'))} -> {clean(said.get('to_version'))}"
    parts: list[Part] = [Fact("schema", ends)]
    if said.get("plan"):
        parts.append(Fact("plan", clean(said["plan"])))
    if said.get("migrations"):
        parts.append(Rows(("No. ", "migration", "records ", "batches ", "undo"), _steps(said)))
    parts += _plan_figures(said)
    parts += [Line(f"note: {here(note)}", QUIET) for note in said.get("notes", [])]
    return parts + refusals(said)


def _steps(said: Result) -> list[Row]:
    rows = []
    for one in said["migrations"]:
        cells = (
            f"{one['version']:04d}",
            clean(one["name"]),
            _count(one.get("records")),
            _count(one.get("batches")),
            "reversible" if one.get("reversible") else "cannot be undone",
        )
        does = "; ".join(step["does"] for step in one.get("steps", []))
        rows.append(Row(cells, does, "" if one.get("reversible") else WARN))
    return rows


def _plan_figures(said: Result) -> Iterable[Part]:
    if said.get("unsettled") is not None:
        yield Fact("money", money_line(said["unsettled"]))
    for store, count in (said.get("unreadable") or {}).items():
        yield Fact("", f"{store} holds {count} records that cannot be read", WARN)
    for store, count in (said.get("left_behind") or {}).items():
        yield Fact("", f"{store}: about {count} records would stay as they are (estimate)", WARN)
    space = said.get("space")
    if space:
        fits = space["total_bytes"] <= space["free_bytes"] + space.get("freed_first_bytes", 0)
        peak, free = size_text(space["total_bytes"]), size_text(space["free_bytes"])
        yield Fact("space", f"{peak} at its peak, {free} free", "" if fits else BAD)
        yield Fact("backup", f"at most {size_text(space['backup_bytes'])}")
    if said.get("flash_written_bytes_estimate") is not None:
        yield Fact("flash", f"about {size_text(said['flash_written_bytes_estimate'])} written")
    if said.get("time_ms_estimate") is not None:
        yield Fact("time", f"about {duration(said['time_ms_estimate'])} (estimate)")
    undo = said.get("undo")
    if undo and undo.get("not_behind") is not None:
        yield Fact("way back", f"none by its steps behind schema {undo['not_behind']}", WARN)


def refusals(said: Result) -> list[Part]:
    """What a run would be refused for."""
    return [
        Line(f"a run would be refused: {one['code']}: {here(one['message'])}", BAD)
        for one in said.get("refusals", [])
    ]


# ---- Lists


def history(said: Result) -> list[Part]:
    """What was done and what failed, newest last."""
    rows = [_history_row(row) for row in said["history"]]
    if not rows:
        return [Line("nothing was done yet")]
    titles = ("No. ", "when (UTC)", "what", "schema", "state", "verdict", "")
    trusted = all(row.get("clock_trusted") for row in said["history"])
    return [Rows(titles, rows), *([] if trusted else [_CLOCK])]


def _history_row(row: Result) -> Row:
    ends = (row.get("from_version"), row.get("to_version"))
    version = row.get("version")
    if version is not None:
        ends = (version, version - 1) if row["kind"] == "rollback" else (version - 1, version)
    cells = (
        clean(row.get("seq")),
        when(row["at_ms"], bool(row.get("clock_trusted"))),
        clean(row.get("kind")),
        " -> ".join("?" if end is None else str(end) for end in ends),
        clean(row.get("state")),
        clean(row.get("verdict")),
        clean(row.get("code") or row.get("name") or ""),
    )
    tone = BAD if row.get("code") else _VERDICT_TONES.get(str(row.get("verdict")), "")
    return Row(cells, here(row["message"]) if row.get("message") else "", tone)


def backups(said: Result) -> list[Part]:
    """The backups, oldest first."""
    rows = [_backup_row(row) for row in said["backups"]]
    titles = ("No. ", "backup", "schema ", "size ", "unsettled ", "made (UTC)", "")
    parts: list[Part] = [Rows(titles, rows) if rows else Line("there is no backup")]
    if any(row.get("clock_trusted") is False for row in said["backups"]):
        parts.append(_CLOCK)
    if said.get("foreign_files"):
        parts.append(Line(f"{said['foreign_files']} other files in the folder are left alone"))
    return parts


def _backup_row(row: Result) -> Row:
    whole = row.get("damaged") is None
    cells = (
        clean(row.get("sequence")),
        clean(row.get("name")),
        clean(row.get("version")),
        size_text(row["size_bytes"]),
        clean(row["unsettled"]["records"]) if whole else "-",
        when(row["made_ms"], bool(row.get("clock_trusted"))) if whole else "-",
        "" if whole else "DAMAGED",
    )
    return Row(cells, "" if whole else here(row["damaged"]), "" if whole else BAD)


def quarantine(said: Result) -> list[Part]:
    """The records that were left behind, with the reason and never a body."""
    rows = [
        Row(tuple(clean(row.get(k)) for k in ("store", "key", "version", "now")), row["reason"])
        for row in said["quarantine"]
    ]
    if not rows:
        return [Line("no record is left behind")]
    return [
        Rows(("store", "record", "schema ", "now"), rows),
        Line("they stay as they are; a later migration tries them again"),
    ]


def log(said: Result) -> list[Part]:
    """Who asked for what on the lines, newest last."""
    keys = ("link", "level", "method", "outcome", "count")
    rows = [
        Row(
            (clean(row["seq"]), when(row["at_ms"], False), *(clean(row.get(key)) for key in keys)),
            "",
            "" if row.get("outcome") == "accepted" else WARN,
        )
        for row in said["log"]
    ]
    titles = ("No. ", "when (UTC)", "line", "level", "call", "outcome", "times ")
    return [Rows(titles, rows)] if rows else [Line("nobody has called yet")]


def health(said: Result) -> list[Part]:
    """Every check, the failed ones to be seen from afar."""
    tones = {"ok": GOOD, "warn": WARN, "fail": BAD}
    parts: list[Part] = [
        Fact(f"{row['level']:5}{row['name']}", here(row["says"]), tones.get(row["level"], ""))
        for row in said["checks"]
    ]
    levels = [row["level"] for row in said["checks"]]
    failed, warned = levels.count("fail"), levels.count("warn")
    tone = BAD if failed else WARN if warned else GOOD
    return [*parts, Line(f"{failed} failed, {warned} warnings", tone)]


def profile(said: Result) -> list[Part]:
    """The settings in force, each with what it is based on."""
    rows = [
        Row((name, _setting(entry["value"]), clean(entry["basis"])), clean(entry["source"]))
        for name, entry in said["settings"].items()
    ]
    title = Line(f"profile {clean(said['id'])}: {clean(said['title'])}")
    return [title, Rows(("setting", "value", "basis"), rows)]


def _setting(value: Any) -> str:
    return "none" if value is None else clean(value)


# ---- Ends of work


def verify(said: Result) -> list[Part]:
    """Each backup that was read."""
    rows = []
    for one in said.get("checked") or []:
        word = "ok" if one["ok"] else "DAMAGED"
        size = size_text(one["size_bytes"]) if one.get("size_bytes") is not None else "-"
        why = "" if one["ok"] else here(one["why"])
        rows.append(Row((one["name"], word, size), why, GOOD if one["ok"] else BAD))
    return [Rows(("backup", "", "size "), rows)] if rows else [Line("there is no backup")]


def validate(said: Result) -> list[Part]:
    """Store by store what cannot be read."""
    rows = []
    for one in said.get("stores", []):
        counts = ("records", "unsettled", "unreadable", "odd_amounts")
        cells = tuple(_count(one.get(key)) for key in counts)
        odd = one.get("unreadable") or one.get("odd_amounts")
        rows.append(
            Row((one["store"], *cells, clean(one.get("judged"))), "", WARN if odd else GOOD)
        )
    titles = ("store", "records ", "unsettled ", "unreadable ", "odd amounts ", "judged")
    parts: list[Part] = [Fact("schema", clean(said.get("version"))), Rows(titles, rows)]
    for one in said.get("odd", []):
        parts.append(Line(f"{one['store']}/{one['key']}: {one['reason']}", WARN))
    if said.get("plan_not_read"):
        parts.append(Line(f"judged by the money alone: {here(said['plan_not_read'])}", WARN))
    if said.get("unsettled"):
        parts.append(Line(money_line(said["unsettled"])))
    return parts


def ended(said: Result, method: str) -> list[Part]:
    """The end of a run: verdict, money, backup, what to do; as the command there tells it."""
    from agent.cli.runs import verdict_lines

    verdict = str(said.get("verdict", ""))
    try:
        lines = verdict_lines({"app_may_start": True, **said}, method)
    except (KeyError, TypeError):  # the short outcome, or another release's
        lines = _short_lines(said, verdict)
    tone = _VERDICT_TONES.get(verdict, BAD)
    return [Line(here(line), "" if at else tone) for at, line in enumerate(lines)]


def _short_lines(said: Result, verdict: str) -> list[str]:
    error = said.get("error")
    lines = [f"{verdict}: {error['code']}: {error.get('message', '')}" if error else verdict]
    for name in ("from_version", "to_version", "backup"):
        if said.get(name) is not None:
            lines.append(f"{name}: {clean(said[name])}")
    return lines


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else clean(value)


SHEETS: dict[str, Callable[[Result], list[Part]]] = {
    "status": status,
    "plan": plan,
    "history": history,
    "backups": backups,
    "quarantine": quarantine,
    "log": log,
    "health": health,
    "profile": profile,
    "verify": verify,
    "validate": validate,
}
