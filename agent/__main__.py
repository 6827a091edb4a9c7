"""Arguments, wiring, exit code. Started as a module, as a command, or by file name at boot.

A boot with nothing to do is decided here from a few small reads: nothing is forked, almost nothing
imported and nothing written. Everything else goes to the verb's own module.
"""

from __future__ import annotations

import os
import sys

if __package__ in (None, ""):  # started as `python3 -I -S -B .../agent/__main__.py`
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from agent.cli.arguments import parse
from agent.ground.errors import AgentError


def main(arguments: list[str]) -> int:
    """Run one command line; the exit code (docs/exit-codes.md)."""
    try:
        command = parse(arguments)
        if command.verb == "boot":
            from agent.cli.boot import boot

            return boot(command)
        from agent.cli import verbs

        return verbs.run(command)
    except AgentError as error:
        from agent.cli.output import show_error

        return show_error(error, "--json" in arguments)
    except KeyboardInterrupt:
        sys.stderr.write("posagent: interrupted; the next start goes on from here\n")
        return 3
    except Exception as error:
        from agent.cli.output import show_fault

        return show_fault(error, "--json" in arguments)


def console() -> None:
    """Entry point of the installed command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
