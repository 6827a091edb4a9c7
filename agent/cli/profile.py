"""`profile`: the settings in force, each with what it is based on."""

from __future__ import annotations

from agent.cli.output import show, wrap
from agent.edges.config import profile_report
from agent.ground.errors import EXIT_OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


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
