"""Sends a parsed command to the module of its verb; each loads only what it needs."""

from __future__ import annotations

from agent.cli import output
from agent.cli.arguments import help_text
from agent.edges.config import load_config
from agent.ground.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command


def run(command: Command) -> int:
    """Answer help and version, or run the verb. Raises AgentError."""
    verb = command.verb
    if verb == "version":
        from agent import __version__

        output.write(f"posagent {__version__}\n")
        return 0
    if command.options.get("--help") or not verb:
        output.write(help_text(verb))
        return 0 if command.options.get("--help") else 64
    config = load_config(command.root, command.config)
    if verb == "run":
        from agent.cli.run import run as serve

        return serve(command, config)
    if verb == "console":
        from agent.cli.console import console

        return console(command, config)
    if verb == "log":
        from agent.cli.log import log

        return log(command, config)
    if verb in ("migrate", "rollback", "commit", "backup", "restore", "prune"):
        from agent.cli import runs

        return int(getattr(runs, verb)(command, config))
    if verb in ("backups", "verify"):
        from agent.cli import backups

        return int(getattr(backups, verb)(command, config))
    if verb == "quarantine":
        from agent.cli.quarantine import quarantine

        return quarantine(command, config)
    if verb == "status":
        from agent.cli.status import status

        return status(command, config)
    if verb == "plan":
        from agent.cli.plan import plan

        return plan(command, config)
    if verb == "validate":
        from agent.cli.validate import validate

        return validate(command, config)
    if verb == "history":
        from agent.cli.history import history

        return history(command, config)
    if verb == "health":
        from agent.cli.health import health

        return health(command, config)
    if verb == "profile":
        from agent.cli.profile import profile

        return profile(command, config)
    if verb == "key":
        from agent.cli.key import key

        return key(command, config)
    if verb == "check":
        from agent.cli.check import check

        return check(command, config)
    if verb == "new":
        from agent.cli.new import new

        return new(command, config)
    raise InternalError(f"{verb} is in the table of verbs but leads nowhere")
