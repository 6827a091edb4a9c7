"""Runs what the documents show, and looks for what no text of the repository may hold.

Every fenced `console` block of README.md and docs/**/*.md is run, a document's blocks one after the
other in one scratch folder, by these rules:

- `$ command` is run by sh; the lines below it are its whole standard output and standard error.
- A line `...` stands for any number of lines, also none; `...` within a line for any text.
- `[exit 5]` as the last line says the exit status, which is 0 where nothing is said.
- Durations, rates, ETAs, dates, times of day and hexadecimal digests of 8 digits or more are
  compared as if all of them were alike; blanks in a row count as one.
- `posagent`, `.venv/bin/posagent`, `posctl` and `python` are this checkout's, and
  `python -m tools.…` works.
- The comment `<!-- terminal: NAME ARGUMENTS -->` makes the sample terminal NAME afresh with
  `tools.termsim new NAME ARGUMENTS` at that place.
- The comment `<!-- served: NAME ARGUMENTS -->` has that terminal served from there to the end of
  the document by `tools.termsim serve NAME ARGUMENTS`.
- The comment `<!-- file: NAME -->` has the fenced block below it written to the file NAME.

A `sh` block is for what a test cannot run within itself; it may hold `make` commands only, and its
targets must exist.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMAND_SECONDS_MAX = 100  # below the test's own timeout, so that the command is named


class Block(NamedTuple):
    """A fenced block, or a comment of the rules above (language `terminal`, `served` or `file`,
    which has its block's text behind the name), with its first line's number."""

    language: str
    line: int
    text: str


class Shown(NamedTuple):
    """One command of a console block and what the document shows of it."""

    command: str
    output: list[str]
    exit_status: int


def blocks_in(text: str) -> Iterator[Block]:
    """Yields the fenced blocks and the terminal comments of a document in order."""
    fence, language, start, file = "", "", 0, ""
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        opened = re.match(r"\s*(```+|~~~+)\s*([\w-]*)", line)
        comment = re.match(r"<!--\s*(terminal|served|file):\s*(.*?)\s*-->", line)
        if fence and line.strip() == fence:
            yield Block(language, start, "\n".join(lines))
            if file:
                yield Block("file", start, "\n".join([file, *lines]))
            fence, file = "", ""
        elif fence:
            lines.append(line)
        elif opened:
            fence, language, start, lines = opened[1], opened[2], number + 1, []
        elif comment and comment[1] == "file":
            file = comment[2]
        elif comment:
            yield Block(comment[1], number, comment[2])


def commands_in(block: str) -> list[Shown]:
    """Returns the commands of a console block; text before the first `$ ` is an error."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert not parts[0].strip(), f"output without a command: {parts[0]!r}"
    shown = []
    for part in parts[1:]:
        command, *output = part.rstrip().split("\n")
        status = re.fullmatch(r"\[exit (\d+)\]", output[-1]) if output else None
        shown.append(
            Shown(command, output[:-1] if status else output, int(status[1] if status else 0))
        )
    return shown


NUMBER = r"(?<![\w.])\d[\d,_]*(?:\.\d+)?"
ALIKE = [
    (
        r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?",
        "<time>",
    ),
    (r"\b\d{1,3}:\d\d(?::\d\d)?\b", "<duration>"),
    (r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,64}\b", "<digest>"),
    (rf"{NUMBER} ?(?:[kKMG]i?B|B|bytes|records|rows)? ?(?:/|per |a )(?:s|second)\b", "<rate>"),
    (rf"(?:{NUMBER} ?(?:ms|us|µs|s|min|m|h|seconds?|minutes?|hours?)\b ?)+", "<duration> "),
    (r"[ \t]+", " "),
]


def alike(line: str) -> str:
    """Returns a line with everything that differs between two runs replaced by a mark."""
    for pattern, mark in ALIKE:
        line = re.sub(pattern, mark, line)
    return line.strip()


def matches(expected: list[str], printed: list[str]) -> bool:
    """Tells whether printed lines are the expected ones, by the rules at the top of this file."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*?".join(re.escape(alike(part)) for part in line.split("...")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{alike(line)}\n" for line in printed)) is not None


class Scratch:
    """A folder where a document's commands run, with this checkout's programs first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        self.served: list[subprocess.Popen[str]] = []
        for name, arguments in (
            ("posagent", "-m agent"),
            ("posctl", "-m posctl"),
            ("python", ""),
            ("python3", ""),
        ):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            program.chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(folder),
            "COLUMNS": "100",
            "LC_ALL": "C.UTF-8",
        }

    def run(self, command: str) -> tuple[int, list[str]]:
        """Runs one command; returns its exit status and the lines of both its outputs."""
        ran = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        return ran.returncode, ran.stdout.splitlines()

    def make_terminal(self, arguments: str) -> None:
        """Makes a sample terminal in place of an older one of that name."""
        name = arguments.split()[0]
        assert re.fullmatch(r"[\w-]+", name), f"{name!r} is not a plain folder name"
        status, lines = self.run(f"rm -rf {name} && python -m tools.termsim new {arguments}")
        assert status == 0, "\n".join(lines)

    def serve(self, arguments: str) -> None:
        """Has a terminal served until `end`; returns once it answers."""
        server = subprocess.Popen(
            [sys.executable, "-m", "tools.termsim", "serve", *arguments.split()],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.served.append(server)
        assert server.stdout
        assert server.stdout.readline(), f"{arguments}: not served"

    def write(self, text: str) -> None:
        """Writes a file whose name stands in the first line."""
        name, _, content = text.partition("\n")
        (self.folder / name).write_text(content + "\n", "utf-8")

    def end(self) -> None:
        """Ends what is served."""
        for server in self.served:
            server.terminate()
            server.communicate()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    made = Scratch(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_console_block_prints_what_the_document_shows(
    document: Path, scratch: Scratch
) -> None:
    directives = {"terminal": scratch.make_terminal, "served": scratch.serve, "file": scratch.write}
    for block in blocks_in(document.read_text("utf-8")):
        if block.language in directives:
            directives[block.language](block.text)
        for shown in commands_in(block.text) if block.language == "console" else []:
            where = f"{document.relative_to(ROOT)}, block at line {block.line}: $ {shown.command}"
            status, lines = scratch.run(shown.command)
            printed = "\n".join(lines)
            assert status == shown.exit_status, f"{where}\nexit {status}, printed:\n{printed}"
            assert matches(shown.output, lines), f"{where}\nprinted:\n{printed}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_sh_block_makes_targets_that_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for block in blocks_in(document.read_text("utf-8")):
        for line in block.text.splitlines() if block.language == "sh" else []:
            made = re.fullmatch(r"make(?: [A-Z_]+=\S+)*((?: [a-z]+)+)", line)
            assert made, (
                f"{document.name}:{block.line}: a sh block holds make commands only: {line}"
            )
            assert set(made[1].split()) <= targets, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_the_readme_lists_every_exit_code_once() -> None:
    codes = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [int(code) for code in codes] == [0, 1, 3, *range(5, 15), 64, 70, 78]


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a", "x", "b"], False),
        (["a", "...", "b"], ["a", "x", "y", "b"], True),
        (["a", "...", "b"], ["a", "b"], True),
        (["..."], [], True),
        ([], ["a"], False),
        (["backup ... verified"], ["backup 000001-v0.posbak verified"], True),
        (["took 1.5 s at 98,000 records/s"], ["took 12.25 s at 7 records/s"], True),
        (["took 1 min 5 s"], ["took 59 s"], True),
        (["ETA 0:03"], ["ETA 12:44"], True),
        (["at 2024-05-01T10:00:00Z"], ["at 1970-01-01T00:00:09Z"], True),
        (["digest 9f3c51aa00"], ["digest 00aa51c39f"], True),
        (["212 unsettled"], ["211 unsettled"], False),
        (["EUR 1234567890"], ["EUR 1234567891"], False),
        (["100000 records"], ["10000 records"], False),
        (["a   b"], ["a b"], True),
    ],
)
def test_output_is_compared_by_the_rules_above(
    expected: list[str], printed: list[str], equal: bool
) -> None:
    assert matches(expected, printed) is equal


def test_blocks_and_commands_are_found_in_order() -> None:
    text = (
        "<!-- terminal: t --seed 1 -->\n```console\n$ a\nx\n$ b\n[exit 5]\n```\n```sh\nmake\n```\n"
    )
    text += "<!-- file: a.py -->\n```python\nx = 1\n```\n<!-- served: t -->\n"
    found = list(blocks_in(text))
    languages = ["terminal", "console", "sh", "python", "file", "served"]
    assert [block.language for block in found] == languages
    assert found[4].text == "a.py\nx = 1"
    assert commands_in(found[1].text) == [Shown("a", ["x"], 0), Shown("b", [], 5)]


# Each pattern has a letter in brackets, so that this file does not hold what it looks for.
FORBIDDEN_TEXT = {
    "a path of one machine": "/wor[k]/|[.][.]/share[d]|/roo[t]/|/opt/wheel[s]|/opt/pyp[i]",
    "a registry's host": "pypi[.]org|pythonhoste[d]|deb[.]debian|proxy[.]golang|npmj[s]",
    "a tracker that readers do not have": r"\bissu[e] \d",
    "a document that is not in the repository": r"\bDESIG[N]\b|STYL[E]\.md|device-fact[s]",
    "who typed it": r"\bassistan[t]s?\b|\bsub-?agen[t]s?\b",
}


def is_ignored(path: Path, patterns: list[str]) -> bool:
    """Tells whether .gitignore leaves a file out, or git itself does."""
    parts = path.relative_to(ROOT).parts
    return ".git" in parts or any(
        fnmatch.fnmatch(part, name) for part in parts for name in patterns
    )


def repository_texts() -> Iterator[tuple[str, str]]:
    """Yields name and text of every text file that git would keep."""
    patterns = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split()]
    for path in sorted(ROOT.rglob("*")):
        if is_ignored(path, patterns) or not path.is_file():
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def test_no_text_of_the_repository_names_what_a_reader_cannot_reach() -> None:
    found = [
        f"{name}:{number}: {what}: {line.strip()[:80]}"
        for name, text in repository_texts()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN_TEXT.items()
        if re.search(pattern, line)
    ]
    assert found == []
