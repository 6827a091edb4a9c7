"""`prune --dry-run`: what a prune would delete and what it would keep; nothing is changed."""

from __future__ import annotations

from agent.cli.backups import size_text
from agent.cli.output import show, wrap
from agent.core.report import money_line
from agent.ground.errors import EXIT_OK
from agent.service.dry_prune import foreseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


def dry_run(command: Command, config: Config) -> int:
    """Say per store what would go and what would stay. Raises AgentError where nobody can tell."""
    result = foreseen(config)
    show(result, _lines(result), command.json)
    return EXIT_OK


def _lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, figure in result["pruned"].items():
        lines.append(
            f"{name}: {figure['records']:,} settled records of {size_text(figure['bytes'])} "
            f"would be pruned, {result['kept'][name]:,} kept"
        )
    if not result["pruned"]:
        lines.append("stores.json gives no record up")
    lines.append(money_line(result["unsettled"]) + "; all of them stay")
    old = result["backups_deleted"]
    if old:
        lines += wrap("backups that would be deleted: ", ", ".join(old))
    else:
        lines.append("no backup would be deleted")
    lines.append("nothing was changed")
    return [part for line in lines for part in wrap("", line)]
