"""The results of methods as lines for people: sentences and single answers.

A terminal on a serial line knows ASCII and nothing else is sent to it: what a record, a file name
or an error brought along is written out, so no text from outside can move a cursor. A member that
an older or newer daemon leaves out shows as "?" and never as an error.
"""

from __future__ import annotations

import time

from agent.links.commands import COMMANDS, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Result = dict[str, Any]

LINE_CHARS_MAX = 79
# Milliseconds below this are no date that a terminal of ours can show: they count from its start.
_DATE_MS_MIN = 100_000_000_000


def clean(text: Any) -> str:
    """Any value as printable ASCII in one line; "?" for what is not known."""
    if text is None:
        return "?"
    if text is True or text is False:
        return "yes" if text else "no"
    if isinstance(text, dict):
        return ", ".join(f"{clean(name)}={clean(value)}" for name, value in text.items())
    if isinstance(text, list):
        return ", ".join(map(clean, text))
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return plain.encode("unicode_escape").decode("ascii")


def wrap(label: str, text: str) -> list[str]:
    """`label` and words behind it; a word longer than a line is cut into lines."""
    lines, blank = [label], " " * len(label)
    room = LINE_CHARS_MAX - len(label)
    for word in text.split():
        for at in range(0, len(word), room):
            piece = word[at : at + room]
            if len(lines[-1]) > len(blank) and len(lines[-1]) + 1 + len(piece) > LINE_CHARS_MAX:
                lines.append(blank)
            lines[-1] += (" " if len(lines[-1]) > len(blank) else "") + piece
    return lines


def columns(cells: tuple[Any, ...], widths: tuple[int, ...]) -> str:
    """Cells two blanks apart; a negative width puts its cell to the right; too long is cut."""
    placed = []
    for cell, width in zip(cells, widths):
        text, room = clean(cell), abs(width)
        if len(text) > room:
            text = text[: room - 2] + ".."
        placed.append(text.ljust(room) if width > 0 else text.rjust(room))
    return "  ".join(placed).rstrip()


def when(ms: Any, trusted: Any = True) -> str:
    """A time in UTC, with a ? where the clock was not to be trusted."""
    if not isinstance(ms, int):
        return "?"
    if 0 <= ms < _DATE_MS_MIN:
        return "start +" + clock(ms // 1000)
    try:
        text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms // 1000))
    except (ValueError, OverflowError, OSError):
        text = f"{ms} ms"
    return text if trusted else text + " ?"


def clock(seconds: int) -> str:
    """Hours, minutes and seconds since something."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def span(seconds: Any) -> str:
    """A time that something takes: 40 s, 3 min 20 s, 2 h 5 min."""
    if not isinstance(seconds, int):
        return "?"
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"


def size(size_bytes: Any) -> str:
    """A size for people."""
    if not isinstance(size_bytes, int):
        return "?"
    if size_bytes < 1 << 20:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"


def schemas(low: Any, high: Any) -> str:
    """Where a schema goes, or where it is when it goes nowhere."""
    return clean(low) if low == high or high is None else f"{clean(low)} -> {clean(high)}"


# What is said before anybody asked, and what is said to errors.


def banner(facts: Result) -> list[str]:
    """The first lines that a person sees."""
    pending = " pending" if facts.get("pending") else ""
    parts = [
        f"Terminal {clean(facts.get('model'))} SN {clean(facts.get('serial'))}",
        f"agent {clean(facts.get('agent'))}",
        f"schema {schemas(facts.get('schema'), facts.get('target'))}{pending}",
        f"storage {clean(facts.get('storage'))}",
        f"{clean(facts.get('unsettled'))} unsettled",
    ]
    if facts.get("open"):
        says = "type help. OPEN: this terminal asks for no service code; it belongs in a lab."
    else:
        says = "type help. Nothing here can delete data without a code from the service desk."
    return [*_joined(parts), says]


def _joined(parts: list[str]) -> list[str]:
    """The parts with a bar between them, in as few lines as hold them."""
    lines = parts[:1]
    for part in parts[1:]:
        together = f"{lines[-1]} | {part}"
        if len(together) > LINE_CHARS_MAX:
            lines.append(part)
        else:
            lines[-1] = together
    return lines


def noise_line(baud: int) -> str:
    """The hint after many bytes above 0x7E; `baud` is 0 where the line has no speed of its own."""
    return f"line noise: check {baud or 'the speed,'} 8N1"


def desk_lines(challenge: Result) -> list[str]:
    """What to read to the service desk, and what to do with its answer."""
    nonce = clean(challenge.get("nonce"))
    if len(nonce) == 8 and nonce.isalnum():
        nonce = f"{nonce[:4]}-{nonce[4:]}"
    minutes = (challenge.get("expires_s") or 900) // 60
    serial, counter = clean(challenge.get("serial")), clean(challenge.get("counter"))
    who = f"  read to the desk:  SN {serial}  #{counter}  {nonce}"
    command = clean(challenge.get("command"))
    # A command that the screen breaks in two would be read out as another one; and no line of ours
    # may be a command by itself, for a line that hears its own echo would carry it out.
    if len(who) + 2 + len(command) <= LINE_CHARS_MAX:
        told = [f"{who}  {command}"]
    else:
        told = [who, f"  for: {command}"]
    return [
        *told,
        f"  then type: code XXXX-XXXX   (valid {minutes} min, 3 tries)",
    ]


_LOSSES = {
    "newer": "unsettled sales made since are lost",
    "changed": "changed since get their old value back",
    "gone": "settled or removed since come back",
    "settled": "settled sales made since are forgotten",
}


def losses(discard: Any) -> str:
    """What a restore with these counts gives up, in words."""
    parts = [part.partition("=") for part in str(discard).split(",")]
    said = [f"{count} {_LOSSES.get(word, word)}" for word, _, count in parts if count != "0"]
    if str(discard) == "unknown":
        return "what is lost is not known: the data cannot be read"
    return clean(", ".join(said)) or "nothing is lost"


def sentence(method: str, params: Result, plan: Result | None = None) -> str:
    """What a command will do, as it was understood."""
    guard = ", although sales are unsettled" if params.get("despite_unsettled") else ""
    if method == "migrate":
        ends = schemas((plan or {}).get("from_version"), params.get("to"))
        return f"This runs plan {clean(params.get('plan'))} ({ends}){guard}."
    if method == "restore":
        lost = f" ({losses(params['discard'])})" if "discard" in params else ""
        return f"This replaces the data by backup {clean(params.get('backup'))}{lost}."
    if method == "rollback":
        return f"This takes the data back to schema {clean(params.get('to'))}{guard}."
    return {
        "backup": "This makes a backup of the data as it is.",
        "commit": "This deletes the file from before the last upgrade; the way back is then a "
        "restore.",
        "prune": "This deletes old backups and old settled records, never an unsettled one"
        f"{guard}.",
    }.get(method, f"This runs {clean(method)}.")


def started_lines(method: str, result: Result) -> list[str]:
    """What a call that starts a run came to."""
    run = clean(result.get("run"))
    if result.get("noop") or result.get("run") is None:
        return ["nothing to do: it is so already"]
    if result.get("replayed"):
        return [f'run {run} was started by the same call before; "result {run}" tells of it']
    if method == "cancel":
        return [f"run {run} stops after the current batch"]
    if method in ("verify", "validate"):
        return [f"run {run} started; nothing is changed", f'  "result {run}" tells what it found']
    return [
        f"run {run} started; safe to unplug the cable",
        f'  "watch {run}" follows it, "cancel {run}" stops after the current batch',
    ]


# The answers to single questions.


def status_lines(result: Result) -> list[str]:
    """What is it doing, is the money safe, what should I do."""
    schema, target = result.get("schema"), result.get("target")
    lines = [
        _row(
            "state", result.get("state") or "?", f"boot {clean(result.get('boot'))}, {_may(result)}"
        )
    ]
    if result.get("run") is not None:
        lines.append(_row("run", clean(result["run"]), _where(result)))
    lines.append(_row("schema", schemas(schema, target), _pending(schema, target)))
    lines.append(_row("unsettled", clean(result.get("unsettled")), _counted(result)))
    free, need = clean(result.get("free_kib")), result.get("need_kib")
    lines.append(
        _row("storage", f"{free} KiB free" + ("" if need is None else f", next run needs {need}"))
    )
    known = result.get("backup")
    name = known.get("name") if isinstance(known, dict) else known
    lines.append(_row("backup", "none yet" if name is None else name))
    lines += wrap("last error ", "none" if not _error_text(result) else _error_text(result))
    return lines + wrap("to do      ", advice(result))


def advice(result: Result) -> str:
    """What should be done now: the first that applies."""
    schema, target = result.get("schema"), result.get("target")
    ahead = target - schema if isinstance(schema, int) and isinstance(target, int) else 0
    pending = ahead > 0
    free, need = result.get("free_kib"), result.get("need_kib")
    if result.get("run") is not None:
        return f'nothing; "watch {clean(result["run"])}" follows the run'
    if ahead < 0:
        return f"install the software that belongs to schema {schema}"
    if result.get("app_may_start") is False and not pending:
        return "see the last error; the application must not start until it is corrected"
    if pending and isinstance(free, int) and isinstance(need, int) and free < need:
        return 'make room: settle, then "prune"; the upgrade waits for it'
    if pending and _error_text(result):
        return 'correct the cause of the last error, then type "migrate"'
    if pending:
        return 'type "migrate", or restart the terminal'
    return "nothing"


def _row(word: str, first: Any, second: str = "") -> str:
    return f"{word:<10} {clean(first):<15} {second}".rstrip()


def _may(result: Result) -> str:
    may = result.get("app_may_start")
    return "the application " + ("may start" if may else "?" if may is None else "must not start")


def _pending(schema: Any, target: Any) -> str:
    if not isinstance(schema, int) or not isinstance(target, int):
        return ""
    count = target - schema
    if count < 0:
        return "newer than the installed migrations"
    return ("1 migration" if count == 1 else f"{count or 'no'} migrations") + " pending"


def _counted(result: Result) -> str:
    ago = result.get("counted_s")
    if result.get("unsettled") is None:
        return "not counted"
    return "" if ago is None else f"counted {span(ago)} ago"


def _where(result: Result) -> str:
    done, total, eta = result.get("done"), result.get("total"), result.get("eta_s")
    text = clean(result.get("step") or "")
    if total:
        text += f" {clean(done)}/{clean(total)}"
    return text.strip() + (f", about {span(eta)} left" if isinstance(eta, int) and eta >= 0 else "")


def _error_text(result: Result) -> str:
    error = result.get("last_error")
    if isinstance(error, dict):
        return f"{clean(error.get('code'))}: {clean(error.get('message'))}"
    return clean(error) if error else ""


def result_lines(result: Result) -> list[str]:
    """What became of a run."""
    head = f"run {clean(result.get('run'))} {clean(result.get('method'))}: "
    lines = [head + clean(result.get("state"))]
    outcome = result.get("outcome")
    return lines + verdict_lines(outcome) if isinstance(outcome, dict) else lines


def verdict_lines(outcome: Result) -> list[str]:
    """The verdict of a run, why, and its backup; figures that have no sentence of their own."""
    verdict = clean(outcome.get("verdict"))
    if outcome.get("code"):
        why = f"{clean(outcome['code'])}: {clean(outcome.get('message'))}"
        lines = wrap(f"{verdict}: ", why)
    else:
        ends = (outcome.get("from_version"), outcome.get("to_version"))
        lines = [verdict if ends == (None, None) else f"{verdict}: schema {schemas(*ends)}"]
    known = outcome.get("backup")
    if known:
        name = known.get("name") if isinstance(known, dict) else known
        lines.append(f"backup {clean(name)}, read back and verified")
    told = ("verdict", "code", "message", "from_version", "to_version", "backup")
    return lines + figures({name: outcome[name] for name in outcome if name not in told})


def figures(result: Result) -> list[str]:
    """Members that have no text of their own, one a line; long lists by their length."""
    lines = []
    for name, value in result.items():
        if value is None or name == "next":
            continue
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            value = f"{len(value)} entries; --json shows them"
        lines += wrap(f"{clean(name):<14} ", clean(value))
    return lines


def version_lines(result: Result) -> list[str]:
    """What is installed here and what this line may do."""
    return [
        f"agent {clean(result.get('agent'))}, protocol {clean(result.get('proto'))}",
        f"terminal {clean(result.get('model'))} SN {clean(result.get('serial'))}",
        f"this line has the level {clean(result.get('level'))}",
    ]


def help_lines() -> list[str]:
    """All commands."""
    lines = [f"{command.name:<12}{command.says}" for command in COMMANDS.values()]
    return [*lines, '"help COMMAND" tells its words; --json behind any gives one line of JSON']


def command_lines(command: Command, allowed: dict[str, str]) -> list[str]:
    """One command: how it is typed, what it does, what its words may be."""
    lines = [command.usage(), f"  {command.says}"]
    for slot in (*command.words, *command.options.values()):
        lines += wrap(f"  {slot.label:<8} ", allowed[slot.kind])
    if command.confirmed:
        lines.append("  it says what it will do and asks for a number before it starts")
    return lines


TEXTS: dict[str, Callable[[Result], list[str]]] = {
    "status": status_lines,
    "result": result_lines,
    "version": version_lines,
}
