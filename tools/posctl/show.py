"""How an answer is shown: rich on a technician's screen, plain lines elsewhere, JSON for programs.

An answer is a list of parts, and both ways of showing print the same parts. What a terminal sent is
never trusted with the screen: no byte of it can move a cursor, and none is taken for markup.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO, Union

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from agent.cli.output import LINE_CHARS_MAX, table, wrap
from agent.ground.codec import encode

GOOD, WARN, BAD, QUIET = "green", "yellow", "bold red", "dim"


class Fact(NamedTuple):
    """A label and what belongs to it."""

    label: str
    text: str
    tone: str = ""


class Line(NamedTuple):
    """A sentence by itself; `whole` keeps it in one line, for logs."""

    text: str
    tone: str = ""
    whole: bool = False


class Row(NamedTuple):
    """The cells of one row; `under` explains them, whole, in the lines below."""

    cells: tuple[str, ...]
    under: str = ""
    tone: str = ""


class Rows(NamedTuple):
    """A table; a title that ends in a blank stands over numbers."""

    titles: tuple[str, ...]
    rows: list[Row]


Part = Union[Fact, Line, Rows]


def clean(value: Any) -> str:
    """Any value as text that cannot act on a screen; "-" for what is not there."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else encode(value)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def is_plain(stream: TextIO) -> bool:
    """Whether this output gets lines without colours, cursors and bars."""
    if os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("NO_COLOR"):
        return True
    return not stream.isatty()


class Out:
    """Where one call's words go. Standard output has the answer and nothing else; under `as_json`
    everything for people goes to standard error, and progress nowhere."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.plain = as_json or is_plain(sys.stdout)
        self.console = _console(sys.stdout)

    def show(self, result: dict[str, Any], parts: list[Part]) -> None:
        """An answer: the object itself, or its parts."""
        if self.as_json:
            _write(sys.stdout, encode(result) + "\n")
        else:
            self.say(*parts)

    def say(self, *parts: Part) -> None:
        """Something for people, beside the answer or as a part of it."""
        if self.plain:
            stream = sys.stderr if self.as_json else sys.stdout
            _write(stream, "".join(line + "\n" for line in plain_lines(parts)))
            return
        try:
            _print(self.console, parts)
        except OSError:
            pass  # nobody reads it; the exit code says it all the same

    def note(self, text: str) -> None:
        """Something on the side, for people alone: on standard error."""
        if is_plain(sys.stderr):
            _write(sys.stderr, clean(text) + "\n")
        else:
            _told_whole(Text(clean(text), QUIET))

    def error(self, word: str, message: str, facts: dict[str, Any] | None = None) -> None:
        """Why it failed: a word for programs and a sentence for people."""
        if self.as_json:
            told: dict[str, Any] = {"code": word, "message": message}
            if facts:
                told["facts"] = facts
            _write(sys.stdout, encode({"error": told}) + "\n")
        elif is_plain(sys.stderr):
            _write(sys.stderr, f"posctl: {word}: {clean(message)}\n")
        else:
            _told_whole(Text.assemble((f"posctl: {word}: ", BAD), clean(message)))

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that something is waited for, on a screen that can."""
        if self.plain:
            yield
            return
        with self.console.status(Text(text, QUIET)):
            yield


def _console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _told_whole(text: Text) -> None:
    """On standard error in one line, which the screen may break: a command in it can be copied."""
    try:
        _console(sys.stderr).print(text, soft_wrap=True)
    except OSError:
        pass  # nobody reads it


def _write(stream: TextIO, text: str) -> None:
    """Whatever the stream's encoding can hold; that nobody reads is no failure of the work."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except OSError:
        pass


# ---- Plain


def plain_lines(parts: Any) -> list[str]:
    """The parts in lines of at most 80 characters; tables are as wide as they are."""
    lines: list[str] = []
    width = max([len(part.label) for part in parts if isinstance(part, Fact)], default=0) + 2
    for part in parts:
        if isinstance(part, Fact):
            lines += wrap(part.label.ljust(width), clean(part.text))
        elif isinstance(part, Line):
            text = clean(part.text)
            fits = part.whole or len(text) <= LINE_CHARS_MAX
            lines += [text] if fits else wrap("", text)
        else:
            lines += _plain_table(part)
    return lines


def _plain_table(part: Rows) -> list[str]:
    listed = table(part.titles, [tuple(map(clean, row.cells)) for row in part.rows])
    lines = [listed[0]] if any(title.strip() for title in part.titles) else []
    for row, line in zip(part.rows, listed[1:]):
        lines.append(line)
        if row.under:
            lines += wrap("      ", clean(row.under))
    return lines


# ---- Rich


def _print(console: Console, parts: Any) -> None:
    """Print the parts, facts that follow each other as one grid."""
    grid: RichTable | None = None
    for part in parts:
        if isinstance(part, Fact):
            if grid is None:
                grid = RichTable.grid(padding=(0, 2))
                grid.add_column(style="bold", no_wrap=True)
                grid.add_column(overflow="fold")
            grid.add_row(Text(part.label), Text(clean(part.text), part.tone))
            continue
        if grid is not None:
            console.print(grid)
            grid = None
        if isinstance(part, Line):
            console.print(Text(clean(part.text), part.tone))
        else:
            console.print(_rich_table(part))
            for row in part.rows:
                if row.under:
                    console.print(Text(f"  {clean(row.cells[0])}: {clean(row.under)}", row.tone))
    if grid is not None:
        console.print(grid)


def _rich_table(part: Rows) -> RichTable:
    made = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in part.titles:
        right = title.endswith(" ")
        made.add_column(Text(title.strip()), justify="right" if right else "left", overflow="fold")
    for row in part.rows:
        made.add_row(*[Text(clean(cell), row.tone) for cell in row.cells])
    return made
