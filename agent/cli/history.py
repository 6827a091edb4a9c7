"""`history`: what was done and what failed, from the diary as it lies; nothing is written."""

from __future__ import annotations

import os

from agent.cli.output import show, table, when, wrap
from agent.edges import quiet
from agent.ground.errors import EXIT_OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


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
    if row["version"] is not None and row["kind"] == "rollback":
        return f"{row['version']} -> {row['version'] - 1}"
    if row["version"] is not None:
        return f"{row['version'] - 1} -> {row['version']}"
    ends = (row["from_version"], row["to_version"])
    return " -> ".join("?" if end is None else str(end) for end in ends)
