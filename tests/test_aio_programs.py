"""MicroPython itself as the judge: programs that print the same there and on `agent.aio`.

Rules: what a program of tests/data/aio prints is kept beside it, and the kept text is what real
MicroPython prints; the wheel with that interpreter exists for some Pythons, the kept text for all.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "tests/data/aio").glob("*.py"))
HAS_MICROPYTHON = importlib.util.find_spec("micropython_unix") is not None

# Run as a terminal runs Python; the program finds its own argument at sys.argv[1].
ON_AIO = r"""
import sys
sys.path.insert(0, sys.argv[1])
from agent import aio
aio.as_asyncio()
del sys.argv[:2]
with open(sys.argv[0]) as file:
    text = file.read().replace("import asyncio\n", sys.argv.pop() + "\n")
exec(compile(text, sys.argv[0], "exec"), {"__name__": "__main__"})
"""


def free_port() -> str:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def printed(*words: str) -> str:
    """What a program prints in a process of its own, which has to end by itself and well."""
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert [ran.returncode, ran.stderr] == [0, ""], ran.stdout + ran.stderr
    return ran.stdout


def on_micropython(program: Path) -> str:
    return printed(sys.executable, "-m", "micropython_unix", str(program), free_port())


def on_aio(program: Path, how_imported: str) -> str:
    start = (sys.executable, "-I", "-S", "-B", "-c", ON_AIO, str(ROOT))
    return printed(*start, str(program), free_port(), how_imported)


@pytest.mark.parametrize("program", PROGRAMS, ids=[path.stem for path in PROGRAMS])
def test_a_program_prints_the_same_on_micropython_and_here(program: Path) -> None:
    kept = program.with_suffix(".exp").read_text()
    if HAS_MICROPYTHON:
        assert on_micropython(program) == kept
    assert on_aio(program, "import asyncio") == kept
    assert on_aio(program, "import uasyncio as asyncio") == kept


def test_every_kept_text_belongs_to_a_program_that_printed_something() -> None:
    kept = sorted((ROOT / "tests/data/aio").glob("*.exp"))
    assert [path.stem for path in kept] == [path.stem for path in PROGRAMS]
    assert [path.name for path in kept if not path.read_text()] == []


def test_ci_has_micropython_where_there_is_a_wheel_of_it() -> None:
    has_wheel = (
        (3, 10) <= sys.version_info[:2] <= (3, 14)
        and sys.platform == "linux"
        and platform.machine() == "x86_64"
        and platform.libc_ver()[0] == "glibc"
    )
    assert HAS_MICROPYTHON or not (has_wheel and os.environ.get("CI"))


def test_parts_imported_under_micropythons_names_are_the_same_loop() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from agent import aio; aio.as_asyncio();"
        "import asyncio.core, uasyncio.event, asyncio.funcs, asyncio.lock, asyncio.stream;"
        "from uasyncio.stream import Stream; from asyncio.task import Task;"
        "print(asyncio is aio, uasyncio is aio, asyncio.core is aio.core, Stream is aio.Stream,"
        "Task is aio.Task, uasyncio.event.Event is aio.Event, asyncio.lock.Lock is aio.Lock)"
    )
    assert printed(sys.executable, "-I", "-S", "-B", "-c", program, str(ROOT)).split() == (
        ["True"] * 7
    )
