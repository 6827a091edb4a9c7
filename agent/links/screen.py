"""What the parts of the console share: calls to the daemon one by one, and lines to a person."""

from __future__ import annotations

from agent import aio
from agent.ground.codec import encode_line
from agent.links.console_text import clean
from agent.links.wire import RemoteError, remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any, Callable

    Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

# Errors that are a "no" to somebody who may ask again; the others are faults.
_REFUSALS = (
    *("BUSY", "NOT_ALLOWED", "CODE_WRONG", "LOCKED", "OP_REUSED", "PLAN_CHANGED", "UNSETTLED"),
    *("STORAGE_ERROR", "SCHEMA_TOO_NEW", "BACKUP_CORRUPT", "REFUSED"),
)


class Screen:
    """The daemon on the one side and the person on the other."""

    __slots__ = ("_judge", "_one_call", "now_ms", "write")

    def __init__(self, call: Call, write: Callable[[str], None], now_ms: Callable[[], int]) -> None:
        self._judge = call
        self._one_call = aio.Lock()
        self.write = write
        self.now_ms = now_ms

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """One call at a time, as any peer: a run may end while a line is being done."""
        async with self._one_call:
            return await self._judge(method, params)

    def say(self, *lines: str) -> None:
        """Write lines."""
        if lines:
            self.write("".join([line + "\n" for line in lines]))

    def say_json(self, result: dict[str, Any]) -> None:
        """Write an object as machines get it, in one line."""
        self.say(encode_line(result))

    async def guarded(self, work: Awaitable[Any], as_json: bool, patient: bool = False) -> bool:
        """Do it; what goes wrong is said and ends nothing but this one command.

        With `patient` a report that is still being made is no error: True answers that it is.
        """
        try:
            await work
        except RemoteError as error:
            if patient and error.kind == "BUSY" and error.data.get("reading"):
                return True
            self.say_error(error, as_json)
        except Exception as error:
            text = f"a fault of the agent: {type(error).__name__}; report it"
            self.say_error(remote("INTERNAL", text, changed=None), as_json)
        return False

    def say_error(self, error: RemoteError, as_json: bool) -> None:
        """Write an error, and that nothing was changed where that is so."""
        if as_json:
            self.say_json({"error": error.as_json()})
            return
        word = "refused" if error.kind in _REFUSALS else "error"
        text = clean(error.message)
        if error.data.get("changed") is False and "nothing was changed" not in text:
            text += "; nothing was changed"
        self.say(f"{word}: {text}")
        if error.data.get("hint"):
            self.say(f"  {clean(error.data['hint'])}")
