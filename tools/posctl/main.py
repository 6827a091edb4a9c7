"""The command `posctl`: from its first moment on an interrupt is a sentence and not a trace."""

from __future__ import annotations

import os
import sys

EXIT_INTERRUPTED = 3


def main() -> None:
    """Entry point of the installed command."""
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)  # the interpreter's own farewell would fail once more on a closed output


def run(arguments: list[str]) -> int:
    """One command line; the exit code (docs/posctl.md)."""
    try:
        from posctl.commands import obey

        return obey(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("posctl: INTERRUPTED: nothing was started on the terminal\n")
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    main()
