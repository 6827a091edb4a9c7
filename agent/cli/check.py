"""`check`: every fault of the migrations folder at once, for authors on their machine and in CI.

The authors' files and their steps are run in a child, so that one that hangs or crashes is told
like any other fault.
"""

from __future__ import annotations

from agent.cli.output import show
from agent.ground.errors import MigrationsRejected
from agent.service.apart import apart
from agent.verbs.check import checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command
    from agent.edges.config import Config


def check(command: Command, config: Config) -> int:
    """Report every fault of the migrations folder; 11 when there is one."""
    result = apart(config, lambda mark: checked(config, mark))
    faults, warnings, count = result["faults"], result["warnings"], len(result["files"])
    lines = [f"{fault['file']}: {fault['message']}" for fault in faults]
    lines += [f"warning: {one['file']}: {one['message']}" for one in warnings]
    if not faults:
        lines.append(f"OK: {count} migrations, schema 0 -> {count}")
    show(result, lines, command.json)
    return MigrationsRejected.exit_code if faults else 0
