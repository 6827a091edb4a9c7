"""`log`: who asked for what on the lines, and what was refused; without secrets and records."""

from __future__ import annotations

import os

from agent.cli.output import show, table, when
from agent.edges import quiet
from agent.edges.ledger import read_audit
from agent.ground.errors import EXIT_OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


def log(command: Command, config: Config) -> int:
    """The audit, newest last. The clock is shown as it was; the order is that of the numbers."""
    path = os.path.join(config.state_dir, "agent.db")
    rows: list[dict[str, Any]] = []
    if os.path.exists(path) and os.path.getsize(path):
        rows = quiet.quietly(path, read_audit)
    cells = [
        (
            str(row["seq"]),
            when(row["at_ms"], False),
            row["link"],
            row["level"],
            row["method"],
            row["outcome"],
            str(row["count"]),
        )
        for row in rows
    ]
    titles = ("No. ", "when (UTC)", "line", "level", "call", "outcome", "times ")
    lines = table(titles, cells) if cells else ["nobody has called yet"]
    show({"log": rows}, lines, command.json)
    return EXIT_OK
