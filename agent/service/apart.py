"""Runs what executes the authors' code in a child, where a hang, a crash or hunger is survived.

The child shows by marks that it goes on; without one for the profile's deadline it is killed. Its
memory is bounded as a worker's is. What it answers is plain values, as in a JSON text.
"""

from __future__ import annotations

import os

from agent import aio
from agent.edges import flash, process
from agent.ground.codec import decode, encode
from agent.ground.errors import AgentError, InternalError, MigrationsRejected, TimedOut, revive
from agent.ground.limits import REPORT_BYTES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.edges.config import Config

    Mark = Callable[[str], None]

ANSWER_BYTES_MAX = 1 << 22  # a plan of thousands of migrations takes less


def apart(config: Config, do: Callable[[Mark], dict[str, Any]]) -> dict[str, Any]:
    """What `do(mark)` answers in a child of its own; `mark` is told what is being done.

    Raises what `do` raises of AgentError; TimedOut after the deadline without a mark and when
    memory ran out; MigrationsRejected when the child was ended by what it executed.
    """
    try:
        return aio.run(answer_apart(config, do))
    finally:
        aio.shutdown()


async def answer_apart(config: Config, do: Callable[[Mark], dict[str, Any]]) -> dict[str, Any]:
    """The same for a caller that runs on `agent.aio` already; other tasks go on meanwhile."""
    profile = config.profile
    child = process.start_child(
        lambda reports, answers: _work(do, reports), (), profile.ram_budget_bytes
    )
    try:
        said = await _last_words(child, profile.deadline_ms)
    finally:
        child.kill()
        _, status = os.waitpid(child.pid, 0)
        child.close()
    if "answer" in said:
        answer: dict[str, Any] = said["answer"]
        return answer
    if "error" in said:
        raise revive(said["error"])
    if "crash" in said:
        raise InternalError(f"a fault of the agent: {said['crash']}; report it")
    doing = said.get("doing") or "loading the migrations"
    if said.get("late"):
        raise TimedOut(
            f"no progress within the deadline of {profile.deadline_ms} ms while {doing}; "
            "correct the migration"
        )
    how = process.outcome_of(status)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == process.MEMORY_EXIT:
        raise TimedOut(
            f"it outgrew its memory of {profile.ram_budget_bytes} bytes while {doing}; "
            "correct the migration"
        )
    raise MigrationsRejected(f"the migrations end the process they run in ({how}) while {doing}")


def _work(do: Callable[[Mark], dict[str, Any]], reports: int) -> None:
    """In the child: do it, and say what came of it as the last line."""

    def say(said: dict[str, Any]) -> None:
        flash.write_all(reports, encode(said).encode() + b"\n")

    try:
        said = {"answer": do(lambda doing: say({"doing": doing}))}
    except AgentError as error:
        said = {"error": error.as_json()}
    say(said)


async def _last_words(child: process.Child, deadline_ms: int) -> dict[str, Any]:
    """The child's last line, as it answers, hangs up, or is late, which `late` tells."""
    said: dict[str, Any] = {}
    rest = b""
    while not said.keys() & {"answer", "error", "crash"} and len(rest) <= ANSWER_BYTES_MAX:
        try:
            await aio.wait_for_ms(aio.wait_readable(child.reports), deadline_ms)
        except aio.TimeoutError:
            said["late"] = True
            break
        try:
            data = os.read(child.reports, REPORT_BYTES_MAX)
        except BlockingIOError:
            continue
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            said = decode(lines[-1].decode())
    return said
