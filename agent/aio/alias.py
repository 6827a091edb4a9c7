"""For programs written for MicroPython: this package under the names by which they import it.
Rule: only in a process that does not use CPython's own asyncio, for that is no longer found.
"""

from __future__ import annotations

import sys

from . import core, event, funcs, lock, stream, task

__all__ = ["as_asyncio"]


def as_asyncio() -> None:
    """Make `import asyncio`, `import uasyncio` and their submodules find this package."""
    for name in ("asyncio", "uasyncio"):
        sys.modules[name] = sys.modules[__package__]
        # Each part as well: found by its path instead, it would be a second loop.
        for part in (core, event, funcs, lock, stream, task):
            sys.modules[part.__name__.replace(__package__, name)] = part
