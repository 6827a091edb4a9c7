"""`validate`: read every record of every store strictly, and tell which cannot be read and why."""

from __future__ import annotations

from agent.cli.output import show, show_error, table, wrap
from agent.core.report import money_line
from agent.ground.errors import EXIT_OK, revive
from agent.service import validation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


def validate(command: Command, config: Config) -> int:
    """Answer 0 when every judged store can be read, else 10. Raises Busy while a run is on."""
    version, files = validation.data_at(config)
    result = validation.validated(
        config, version, files, *validation.planned(config, version, files)
    )
    show(result, _lines(result), command.json)
    if "error" not in result:
        return EXIT_OK
    error = revive(result["error"])
    return error.exit_code if command.json else show_error(error, False)


def _lines(result: dict[str, Any]) -> list[str]:
    cells = [
        (
            entry["store"],
            f"{entry['records']:,}",
            f"{entry['unsettled']:,}",
            f"{entry['unreadable']:,}",
            f"{entry['odd_amounts']:,}",
            "yes" if entry["judged"] else "no",
        )
        for entry in result["stores"]
    ]
    titles = ("store", "records ", "unsettled ", "unreadable ", "odd amounts ", "judged")
    lines = [f"schema {result['version']}", *table(titles, cells)]
    for entry in result["odd"]:
        lines += wrap(f"{entry['store']}/{entry['key']}: ", entry["reason"])
    more = sum(entry["unreadable"] for entry in result["stores"]) - len(result["odd"])
    if more > 0:
        lines.append(f"and {more:,} more that cannot be read")
    if result["plan_not_read"]:
        lines += wrap("", f"judged by the money alone: {result['plan_not_read']}")
    return lines + wrap("", money_line(result["unsettled"]))
