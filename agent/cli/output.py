"""How every verb answers: one JSON object, or lines for people; errors on standard error."""

from __future__ import annotations

import sys

from agent.ground.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
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
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def show_error(error: AgentError, as_json: bool) -> int:
    """Print an error; answers its exit code."""
    if as_json:
        write(encode({"error": error.as_json()}) + "\n")
    else:
        sys.stderr.write(f"posagent: {error.code}: {error.message}\n")
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
