"""`run`: the agent as it stays on the terminal."""

from __future__ import annotations

import sys

from agent.cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command
    from agent.edges.config import Config


def run(command: Command, config: Config) -> int:
    """The boot decision, then service until SIGTERM; 5 when another agent is here."""
    if config.library_dir is not None:
        sys.path.append(config.library_dir)  # behind what is there: it brings ujson and pyserial
    from agent.service.daemon import Daemon

    code = Daemon(config, quiet=command.json).run()
    show({"stopped": True}, ["stopped"], command.json)
    return code
