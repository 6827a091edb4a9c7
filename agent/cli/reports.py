"""The verbs that list what is there: backups, history, profile; and the reading of backups.

Like all that only report they write nothing and take no lock. `validate` and `health` have modules
of their own.
"""

from __future__ import annotations

import os

from agent.cli.output import show, show_error, table, when, wrap
from agent.edges import quiet
from agent.edges.config import profile_report
from agent.ground.errors import EXIT_OK, AgentError, BackupCorrupt
from agent.verbs import backup_folder, backup_reader
from agent.verbs.restore import find_backup, summary_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config

_MARKS = {True: "", False: "DAMAGED"}


def backups(command: Command, config: Config) -> int:
    """List the backups by sequence, told from their headers; `verify` reads them whole."""
    rows: list[dict[str, Any]] = []
    for sequence, version, path in backup_folder.backup_files(config.backups_dir):
        try:
            rows.append(dict(summary_of(backup_reader.read_info(path)), damaged=None))
        except AgentError as error:
            row = _unread(path, sequence, version)
            if row is not None:
                rows.append(dict(row, damaged=error.message))
    foreign = len(backup_folder.foreign_files(config.backups_dir))
    result = {"backups": rows, "foreign_files": foreign}
    show(result, _backups_lines(rows, foreign), command.json)
    return EXIT_OK


def _unread(path: str, sequence: int, version: int) -> dict[str, Any] | None:
    """What name and size tell of a backup that says nothing itself; None when it is gone."""
    try:
        size = os.stat(path).st_size
    except OSError:
        return None
    known = {"sequence": sequence, "version": version, "size_bytes": size}
    empty = dict.fromkeys(("image_bytes", "sha256", "made_ms", "clock_trusted", "unsettled"))
    return {"name": os.path.basename(path), **known, **empty}


def _backups_lines(rows: list[dict[str, Any]], foreign: int) -> list[str]:
    cells = []
    for row in rows:
        whole = row["damaged"] is None
        cells.append(
            (
                str(row["sequence"]),
                row["name"],
                str(row["version"]),
                size_text(row["size_bytes"]),
                str(row["unsettled"]["records"]) if whole else "-",
                when(row["made_ms"], row["clock_trusted"]) if whole else "-",
                _MARKS[whole],
            )
        )
    titles = ("No. ", "backup", "schema ", "size ", "unsettled ", "made (UTC)", "")
    lines = table(titles, cells) if cells else ["there is no backup"]
    for row in rows:
        if row["damaged"] is not None:
            lines += wrap(f"{row['name']}: ", _reason(row["damaged"]))
    if any(row["clock_trusted"] is False for row in rows):
        lines.append("? the clock could not be trusted; the order is that of the numbers")
    if foreign:
        lines.append(f"{foreign} other files in the folder are left alone")
    return lines


def _reason(message: str) -> str:
    """An error's sentence without the name that stands before it already."""
    return message.partition(" is not a usable backup: ")[2] or message


def verify(command: Command, config: Config) -> int:
    """Read one backup, or all, from the first byte to the last; 9 when any is damaged."""
    folder = config.backups_dir
    if command.words:
        paths = [find_backup(folder, command.words[0])]
    else:
        paths = [path for _, _, path in backup_folder.backup_files(folder)]
    checked: list[dict[str, Any]] = []
    for path in paths:
        entry: dict[str, Any] = {"name": os.path.basename(path), "ok": True, "why": None}
        try:
            info = backup_reader.verify(path)
            entry["size_bytes"], entry["sha256"] = info.size, info.sha256
        except AgentError as error:
            if not os.path.lexists(path) and not command.words:
                continue  # a run that takes a backup deletes the oldest
            entry.update(ok=False, why=error.message, size_bytes=None, sha256=None)
        checked.append(entry)
    damaged = [entry["name"] for entry in checked if not entry["ok"]]
    result: dict[str, Any] = {"checked": checked, "damaged": damaged}
    lines: list[str] = []
    for entry in checked:
        said = size_text(entry["size_bytes"]) if entry["ok"] else _reason(entry["why"])
        lines += wrap(f"{entry['name']}  {'ok     ' if entry['ok'] else 'DAMAGED'} ", said)
    if not damaged:
        show(result, lines or ["there is no backup"], command.json)
        return EXIT_OK
    corrupt = BackupCorrupt(
        f"{', '.join(damaged)} cannot be used; take a new one with `posagent backup`",
        damaged=damaged,
    )
    result["error"] = corrupt.as_json()
    show(result, lines, command.json)
    return corrupt.exit_code if command.json else show_error(corrupt, False)


def history(command: Command, config: Config) -> int:
    """What was done and what failed, newest last. No diary is an empty history."""
    nothing: list[dict[str, Any]] = []
    rows = quiet.read_diary(
        os.path.join(config.state_dir, "agent.db"), lambda diary: diary.history(), nothing
    )
    show({"history": rows}, _history_lines(rows), command.json)
    return EXIT_OK


def _history_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["nothing was done yet"]
    cells = [
        (
            str(row["seq"]),
            when(row["at_ms"], row["clock_trusted"]),
            row["kind"],
            _versions(row),
            row["state"],
            row["verdict"],
            row["code"] or row["name"] or "",
        )
        for row in rows
    ]
    titles = ("No. ", "when (UTC)", "what", "schema", "state", "verdict", "")
    listed = table(titles, cells)
    lines = [listed[0][:80]]
    for row, line in zip(rows, listed[1:]):
        lines += [line] if len(line) <= 80 else _broken(line)
        if row["message"]:
            lines += wrap("      ", row["message"])
    if not all(row["clock_trusted"] for row in rows):
        lines.append("? the clock could not be trusted; the order is that of the numbers")
    return lines


def _broken(line: str) -> list[str]:
    head, _, tail = line.rpartition("  ")
    return [head.rstrip(), "      " + tail]


def _versions(row: dict[str, Any]) -> str:
    """What the row moved: one migration of a run its own version, anything else all of it."""
    if row["version"] is not None:
        return f"{row['version'] - 1} -> {row['version']}"
    ends = (row["from_version"], row["to_version"])
    return " -> ".join("?" if end is None else str(end) for end in ends)


def profile(command: Command, config: Config) -> int:
    """The profile in force, with the basis and source of every figure."""
    report = profile_report(config)
    lines = [*wrap(f"profile {report['id']}: ", report["title"]), report["path"], ""]
    for name, entry in report["settings"].items():
        value = entry["value"]
        told = {None: "none", True: "yes", False: "no"}.get(value) if _is_word(value) else value
        lines += [f"{name:24} {told}  ({entry['basis']})", *wrap("    ", entry["source"])]
    show(report, lines, command.json)
    return EXIT_OK


def _is_word(value: Any) -> bool:
    return value is None or type(value) is bool


def validate(command: Command, config: Config) -> int:
    """Every record read strictly; 10 when records that matter cannot be read."""
    from agent.cli.validating import validate as run

    return run(command, config)


def health(command: Command, config: Config) -> int:
    """Everything around the data; 1 when something would stop a run."""
    from agent.cli.health import health as run

    return run(command, config)


def size_text(size_bytes: int) -> str:
    """A size for people."""
    if size_bytes < 1 << 20:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"
