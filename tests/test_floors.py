"""Holds agent/ to its floors and to its import allow-list: imports point only downward.

The two tables are the rule; the rest reads them. An import inside a function counts like one at
the top, because it costs the same memory when it runs. What stands under `if TYPE_CHECKING:` never
runs and is left out.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "agent"


class Floor(NamedTuple):
    """Module name prefixes that share a floor, and whether they may import one another."""

    prefixes: tuple[str, ...]
    sideways: bool
    why: str


# From the roof down to the ground. A module belongs to the floor with the longest fitting prefix.
FLOORS = [
    Floor(("agent.__main__",), False, "arguments, wiring, exit code"),
    Floor(("agent.cli",), True, "one small module per group of verbs; they share how they print"),
    Floor(("agent.manager",), False, "the gateway's MigrationManager, a thin face of the service"),
    Floor(("agent.service",), True, "the supervisor: requests, worker life, attempts, watchdog"),
    Floor(("agent.worker",), True, "one run from preflight to switch, in reading order"),
    Floor(("agent.links",), True, "serial line, socket, console, machine protocol, access"),
    Floor(("agent.verbs",), True, "a restore is a build, a proof and a switch"),
    Floor(("agent.edges",), True, "the diary stands on the database, the database on the lock"),
    Floor(("agent.core",), True, "no I/O: a plan is made of migrations, a migration of steps"),
    Floor(("agent.ground", "agent.aio"), True, "words, codecs, digests, frames; the scheduler"),
    Floor(("agent",), False, "the package itself holds a version number and imports nothing"),
]

# What a device module may import from outside: the rows of every prefix that fits its name.
# Everything else is refused: each import is memory that a terminal has to find.
ALLOWED: dict[str, dict[str, str]] = {
    "agent": {
        "__future__": "annotations stay text; loads nothing that counts",
        "sys": "built in",
        "errno": "built in; names for what the kernel answers",
        "struct": "fixed layouts of frames and headers; 20 KiB over _struct",
        "_struct": "the same in C alone",
        "binascii": "CRC-32 and hex, in C",
        "zlib": "frames of a backup and their CRC, in C",
        "_json": "the C scanner and encoder without the json package around them",
        "_heapq": "the scheduler's queue of timers, in C",
        "math": "built in or a small C module",
        "itertools": "built in",
        "_operator": "built in",
    },
    "agent.ground.codec": {
        "ujson": "what goes over lines; the only module that picks between the two",
        "json": "where there is no ujson, or _json is missing or of another shape",
    },
    "agent.ground.digest": {
        "_sha256": "SHA-256 without OpenSSL, up to Python 3.11",
        "_sha2": "the same from Python 3.12",
    },
    "agent.aio": {
        "time": "the scheduler's clock",
        "select": "poll(2), the one wait of the supervisor",
        "os": "the bell that ends a wait: a pipe",
        "_signal": "ringing that bell, without enum, which `signal` brings",
        "_socket": "streams, without selectors and enum, which `socket` brings",
    },
    "agent.edges": {
        "os": "files, descriptors, processes",
        "stat": "kinds of files",
        "time": "edges/clock; everything else is told the time",
        "fcntl": "locks",
        "select": "waiting on one descriptor",
        "resource": "memory limits of the worker",
        "gc": "freezing before the fork",
        "_signal": "signals without enum, which `signal` brings",
        "_socket": "sockets without selectors and enum, which `socket` brings",
        "termios": "serial lines",
        "_sqlite3": "SQLite without datetime, which `sqlite3` brings",
        "serial": "pyserial, where a serial link is configured",
        "importlib": "loading migration files by path",
    },
    "agent.verbs": {
        "os": "names and sizes of files; the calls that write are in edges/flash",
        "time": "monotonic time for rates and deadlines, never a date",
        "_sqlite3": "its errors, and connections that edges/database opened",
        "gc": "one collection per pass instead of many",
    },
    "agent.links": {
        "os": "reading and writing descriptors",
        "time": "monotonic time for deadlines of a line",
        "_socket": "sockets without selectors and enum, which `socket` brings",
    },
    "agent.worker": {
        "os": "pipe, descriptors, _exit",
        "time": "monotonic time for rates",
        "_signal": "the child restores signals before anything else",
        "fcntl": "the lifeline pipe's O_ASYNC",
        "resource": "RLIMIT_AS on itself",
        "gc": "freezing after the fork",
    },
    "agent.service": {
        "os": "fork, wait, kill, pipes",
        "time": "monotonic time for deadlines",
        "_signal": "SIGTERM, SIGCHLD and the worker's kill",
        "fcntl": "non-blocking pipes",
        "select": "waiting for worker and lines",
        "resource": "what the worker used",
        "gc": "freezing before the fork",
        "_socket": "the local socket",
    },
    "agent.manager": {"os": "paths"},
    "agent.cli": {
        "os": "is a terminal behind standard output",
        "time": "a live line is redrawn so often and no more",
    },
    "agent.__main__": {"os": "the package's own folder, when started by file name"},
}

# Heavier modules, allowed only below `except ImportError` where a light one is missing.
FALLBACKS = {
    "agent.aio": {"heapq": "for _heapq", "signal": "for _signal"},
    "agent.edges": {"sqlite3": "for _sqlite3", "signal": "for _signal"},
    "agent.ground.digest": {"hashlib": "for _sha256 and _sha2; costs 3.5 MB of OpenSSL"},
    "agent.service": {"signal": "for _signal"},
    "agent.worker": {"signal": "for _signal"},
}

# Named although ALLOWED leaves them out, so that the run-time test below can look for them.
# `_sqlite3`, though in C, loads collections and functools; what it brings is not held against us.
FORBIDDEN = [
    *("argparse", "asyncio", "collections", "contextlib", "dataclasses", "enum", "functools"),
    *("logging", "pathlib", "re", "selectors", "shutil", "socket", "ssl", "subprocess"),
    *("tempfile", "typing"),
]


class Import(NamedTuple):
    """One import statement that can run: who, where, and the dotted name that it asks for."""

    importer: str
    line: int
    target: str
    is_fallback: bool = False


def module_name(path: Path) -> str:
    """Returns the dotted name of a file below the repository's root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def device_modules() -> dict[str, Path]:
    """Returns every module of agent/ by dotted name; installed migrations are left out."""
    return {
        module_name(path): path
        for path in sorted(AGENT.rglob("*.py"))
        if "_data" not in path.relative_to(AGENT).parts
    }


MODULES = device_modules()


def is_import_error(node: ast.AST) -> bool:
    """Tells the handler of a failed import from other statements."""
    return isinstance(node, ast.ExceptHandler) and (
        isinstance(node.type, ast.Name) and node.type.id in ("ImportError", "ModuleNotFoundError")
    )


def statements_that_run(node: ast.AST, is_fallback: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Walks a tree without the bodies of `if TYPE_CHECKING:`; marks what a failed import runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other, is_fallback
                yield from statements_that_run(other, is_fallback)
            continue
        below = is_fallback or is_import_error(child)
        yield child, below
        yield from statements_that_run(child, below)


def absolute(importer: str, is_package: bool, node: ast.ImportFrom) -> str:
    """Returns the dotted name that a `from` import starts at, relative ones resolved."""
    if not node.level:
        return node.module or ""
    base = importer.split(".")
    base = base[: len(base) - node.level + is_package]
    return ".".join([*base, node.module] if node.module else base)


def imports_in(importer: str, source: str, is_package: bool = False) -> list[Import]:
    """Returns the imports of one source text that can run, function-level ones included."""
    found = []
    for node, fallback in statements_that_run(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(importer, node.lineno, alias.name, fallback) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = absolute(importer, is_package, node)
            # `from agent.core import plan` may ask for a module or for a name in the package.
            targets = {
                name if name in MODULES else start
                for name in (f"{start}.{alias.name}" for alias in node.names)
            }
            found += [Import(importer, node.lineno, target, fallback) for target in sorted(targets)]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "__import__"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append(Import(importer, node.lineno, str(node.args[0].value), fallback))
    return found


def all_imports() -> list[Import]:
    """Returns every import of agent/ that can run."""
    return [
        found
        for name, path in MODULES.items()
        for found in imports_in(name, path.read_text("utf-8"), path.name == "__init__.py")
    ]


def fits(module: str, prefix: str) -> bool:
    """Tells whether a dotted name is the prefix or lies below it."""
    return module == prefix or module.startswith(prefix + ".")


def floor_of(module: str) -> int:
    """Returns the number of a module's floor, 0 for the roof."""
    number, _prefix = max(
        (
            (number, prefix)
            for number, floor in enumerate(FLOORS)
            for prefix in floor.prefixes
            if fits(module, prefix)
        ),
        key=lambda found: len(found[1]),
    )
    return number


def upward(found: Import) -> str:
    """Returns what is wrong with one import between our own modules, or an empty string."""
    here, there = floor_of(found.importer), floor_of(found.target)
    where = f"{found.importer}:{found.line} imports {found.target}"
    if there < here:
        return f"{where}, which is a floor above it"
    if there == here and found.target != found.importer and not FLOORS[here].sideways:
        return f"{where}, and this floor allows no sideways imports"
    return ""


def refused(found: Import) -> str:
    """Returns what is wrong with one import from outside, or an empty string."""
    top = found.target.split(".")[0]
    tables = [*ALLOWED.items(), *(FALLBACKS.items() if found.is_fallback else ())]
    if any(fits(found.importer, prefix) and top in names for prefix, names in tables):
        return ""
    return f"{found.importer}:{found.line} imports {top}, which is not on its allow-list"


def is_ours(found: Import) -> bool:
    """Tells an import of the agent's own modules from one of the world's."""
    return fits(found.target, "agent")


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Returns one ring of names in a graph, or an empty list; each name is looked at once."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if ring := walk(target, [*path, name]):
                return ring
        done.add(name)
        return []

    for name in sorted(graph):
        if ring := walk(name, []):
            return ring
    return []


def test_every_module_stands_on_a_floor_of_the_table() -> None:
    # The last floor is the package's own: a module that fits nothing above it has no place yet.
    lost = [name for name in MODULES if name != "agent" and floor_of(name) == len(FLOORS) - 1]
    assert lost == []


def test_imports_point_only_downward() -> None:
    assert [why for found in all_imports() if is_ours(found) and (why := upward(found))] == []


def test_no_modules_import_one_another_in_a_ring() -> None:
    graph: dict[str, set[str]] = {}
    for found in all_imports():
        if is_ours(found) and found.target != found.importer:
            graph.setdefault(found.importer, set()).add(found.target)
    assert cycle_in(graph) == []


def test_every_import_from_outside_is_on_the_allow_list() -> None:
    assert [why for found in all_imports() if not is_ours(found) and (why := refused(found))] == []


def test_only_one_module_loads_migration_files() -> None:
    loaders = {found.importer for found in all_imports() if found.target.startswith("importlib")}
    assert len(loaders) <= 1


def test_nothing_forbidden_is_allowed_by_the_other_table() -> None:
    tables = [*ALLOWED.values(), *FALLBACKS.values()]
    assert [name for names in tables for name in names if name in FORBIDDEN] == []


@pytest.mark.parametrize(
    ("importer", "source", "targets"),
    [
        ("agent.core.plan", "import os, time", ["os", "time"]),
        ("agent.core.plan", "def late():\n    import re", ["re"]),
        ("agent.core.plan", "from . import steps_x", ["agent.core"]),
        ("agent.core.plan", "from ..ground.errors import AgentError", ["agent.ground.errors"]),
        ("agent.core.plan", "if TYPE_CHECKING:\n    import typing\nelse:\n    import gc", ["gc"]),
        ("agent.core.plan", "m = __import__('enum')", ["enum"]),
    ],
)
def test_the_reader_finds_the_imports_that_run(
    importer: str, source: str, targets: list[str]
) -> None:
    assert [found.target for found in imports_in(importer, source)] == targets


def test_the_reader_knows_a_fallback_from_a_first_choice() -> None:
    source = "import json\ntry:\n    import _json\nexcept ImportError:\n    import json"
    found = imports_in("agent.ground.codec", source)
    assert [(one.target, one.is_fallback) for one in found] == [
        ("json", False),
        ("_json", False),
        ("json", True),
    ]


def test_the_judge_refuses_what_the_tables_refuse() -> None:
    assert upward(Import("agent.core.plan", 1, "agent.edges.flash"))
    assert upward(Import("agent.ground.codec", 1, "agent.core.plan"))
    assert not upward(Import("agent.worker", 1, "agent.core.plan"))
    assert refused(Import("agent.core.plan", 1, "os"))
    assert refused(Import("agent.edges.flash", 1, "json"))
    assert refused(Import("agent.edges.database", 1, "sqlite3"))
    assert not refused(Import("agent.edges.database", 1, "sqlite3", is_fallback=True))
    assert not refused(Import("agent.edges.flash", 1, "os.path"))
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def modules_loaded_by(statement: str) -> set[str]:
    """Returns sys.modules after one statement in a bare interpreter, as a terminal starts it."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize("module", ["agent.worker", "agent.service"])
def test_importing_it_loads_no_forbidden_module(module: str) -> None:
    brought_by_sqlite = modules_loaded_by("import _sqlite3")
    ours = modules_loaded_by(f"import {module}") - brought_by_sqlite
    assert sorted(ours.intersection(FORBIDDEN)) == []
