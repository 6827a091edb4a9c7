"""`boot`: decide in a few small reads whether there is anything to do, and do it.

What can be told without looking closer is told by edges/at_boot; the rest is a run.
"""

from __future__ import annotations

from agent.edges.at_boot import nothing_to_do
from agent.edges.config import load_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command


def boot(command: Command) -> int:
    """Run the boot decision; 12 exactly when the application must not start."""
    if command.options.get("--help"):
        from agent.cli import verbs

        return verbs.run(command)
    config = load_config(command.root, command.config)
    version = nothing_to_do(config)
    if version >= 0:
        return _say_nothing_to_do(command, version)
    from agent.cli.runs import run_boot

    return run_boot(command, config)


def _say_nothing_to_do(command: Command, version: int) -> int:
    from agent.cli.output import show

    result = {
        "verdict": "NOT_REQUIRED",
        "from_version": version,
        "to_version": version,
        "app_may_start": True,
    }
    show(result, [f"NOT_REQUIRED: the data is at schema {version}"], command.json)
    return 0
