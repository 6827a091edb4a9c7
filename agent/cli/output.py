"""How every verb answers: one JSON object, or lines for people; errors on standard error."""

from __future__ import annotations

import sys
import time

from agent.ground.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from agent.ground.errors import AgentError


def show(result: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Print a verb's answer in the form that was asked for."""
    text = encode(result) if as_json else "\n".join(lines)
    if text:
        write(text + "\n")


def write(text: str) -> None:
    """Standard output, whatever its encoding can hold."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError:
        pass  # nobody reads it; what was done is done, and the exit code says it


def show_error(error: AgentError, as_json: bool) -> int:
    """Print an error; answers its exit code."""
    if as_json:
        write(encode({"error": error.as_json()}) + "\n")
    else:
        try:
            sys.stderr.write(f"posagent: {error.code}: {error.message}\n")
        except OSError:
            pass
    return error.exit_code


def show_fault(error: Exception, as_json: bool) -> int:
    """A fault of the agent itself: where and of what kind, without values of any record."""
    from agent.ground.errors import InternalError

    where, trace = "", error.__traceback__
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    text = f"a fault of the agent: {type(error).__name__} at {where}; report it"
    return show_error(InternalError(text), as_json)


LINE_CHARS_MAX = 80


def wrap(label: str, text: str, width: int = LINE_CHARS_MAX) -> list[str]:
    """`label` and the text behind it, in lines of at most `width`; a longer word stands alone."""
    lines = [label]
    blank = " " * len(label)
    for word in text.split():
        if len(lines[-1]) > len(blank) and len(lines[-1]) + 1 + len(word) > width:
            lines.append(blank)
        apart = " " if len(lines[-1]) > len(blank) else ""
        lines[-1] += apart + word
    return lines


def table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns two blanks apart; a title that ends in a blank stands over numbers."""
    widths = [
        max([len(title.strip()), *(len(row[i]) for row in rows)]) for i, title in enumerate(titles)
    ]

    def line(cells: tuple[str, ...]) -> str:
        placed = [
            cell.rjust(width) if title.endswith(" ") else cell.ljust(width)
            for cell, width, title in zip(cells, widths, titles)
        ]
        return "  ".join(placed).rstrip()

    return [line(tuple(title.strip() for title in titles)), *map(line, rows)]


def when(ms: int, trusted: bool) -> str:
    """A time as people read it, in UTC, with a ? where the clock was not to be trusted."""
    try:
        text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms // 1000))
    except (ValueError, OverflowError, OSError):
        text = f"{ms} ms"
    return text if trusted else text + " ?"
