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
    """Entry point of the installed command. Where nobody listens, the work is done all the same."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdout is None or sys.stderr is None:  # the interpreter found them closed
        sys.stdout = sys.stdout or open(1, "w", closefd=False)
        sys.stderr = sys.stderr or open(2, "w", closefd=False)
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)  # the interpreter's own farewell would fail once more on a full or closed output


if __name__ == "__main__":
    console()
