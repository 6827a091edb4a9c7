"""`backups` lists them by what their headers say; `verify` reads them whole.

Nothing is written and no lock is taken: a run may take and delete backups meanwhile.
"""

from __future__ import annotations

import os

from agent.cli.output import show, show_error, table, when, wrap, write
from agent.ground.errors import EXIT_OK, AgentError, BackupCorrupt
from agent.verbs import backup_folder, backup_list, backup_reader
from agent.verbs.restore import find_backup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config

_MARKS = {True: "", False: "DAMAGED"}


def backups(command: Command, config: Config) -> int:
    """List the backups by sequence, told from their headers; `verify` reads them whole."""
    rows = backup_list.listed(config.backups_dir)
    foreign = len(backup_folder.foreign_files(config.backups_dir))
    result = {"backups": rows, "foreign_files": foreign}
    show(result, _backups_lines(rows, foreign), command.json)
    return EXIT_OK


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
    """Read one backup, or all, from the first byte to the last; 9 when any is damaged.

    Without --json each is told as soon as it is read.
    """
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
        if not command.json:  # reading takes long: what is known is told at once
            write("\n".join(_verified_lines(entry)) + "\n")
    damaged = [entry["name"] for entry in checked if not entry["ok"]]
    result: dict[str, Any] = {"checked": checked, "damaged": damaged}
    if not damaged:
        show(result, [] if checked else ["there is no backup"], command.json)
        return EXIT_OK
    corrupt = BackupCorrupt(
        f"{', '.join(damaged)} cannot be used; take a new one with `posagent backup`",
        damaged=damaged,
    )
    result["error"] = corrupt.as_json()
    show(result, [], command.json)
    return corrupt.exit_code if command.json else show_error(corrupt, False)


def _verified_lines(entry: dict[str, Any]) -> list[str]:
    said = size_text(entry["size_bytes"]) if entry["ok"] else _reason(entry["why"])
    return wrap(f"{entry['name']}  {'ok     ' if entry['ok'] else 'DAMAGED'} ", said)


def size_text(size_bytes: int) -> str:
    """A size for people."""
    if size_bytes < 1 << 20:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"
