"""What can go wrong between a host and a terminal, each with a sentence that says what to do.

All are HostError. `exit_code` is what the command `posctl` ends with; those below 20 are the
terminal's own (docs/exit-codes.md).
"""

from __future__ import annotations

from typing import Any

from agent.ground.errors import revive

EXIT_NO_ANSWER = 20
EXIT_TOO_NOISY = 21
EXIT_NOT_OURS = 22
EXIT_PORT = 23


class HostError(Exception):
    """Whatever ends a call. `op` is set where a change may have been begun all the same: with it
    `Terminal.run_of` finds out, later and from another program, too."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.op = ""


class PortError(HostError):
    """A port or socket that cannot be opened. `why`: `missing`, `busy`, `denied`, `kind` (it is no
    terminal line), `baud`, or `other`."""

    exit_code = EXIT_PORT

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class LineLost(PortError):
    """A line that was open and is gone: pulled, or hung up by the other end."""

    def __init__(self, message: str) -> None:
        super().__init__("gone", message)


class Unheard(HostError):
    """No send of a request was answered; what became of it is not known."""


class NoAnswer(Unheard):
    """Nobody answers."""

    exit_code = EXIT_NO_ANSWER


class TooNoisy(Unheard):
    """Somebody is there, and too many frames came damaged. `is_rate`: what comes is no text at all,
    as with another baud rate, so that asking again is of no use."""

    exit_code = EXIT_TOO_NOISY

    def __init__(self, message: str, is_rate: bool = False) -> None:
        super().__init__(message)
        self.is_rate = is_rate


class NotOurAgent(HostError):
    """Something else is at the other end of the line."""

    exit_code = EXIT_NOT_OURS


class OtherTerminal(NotOurAgent):
    """After the line was lost another terminal was found on it; nothing was asked of that one."""


class WrongProtocol(HostError):
    """The agent speaks no version of the protocol that is spoken here."""

    exit_code = EXIT_NOT_OURS


class KeptChanging(HostError):
    """What was read in pieces was another thing with each piece."""


class AgentRefused(HostError):
    """The agent's own no. docs/spec/wire-protocol.md names the kinds and what stands in `data`."""

    def __init__(self, code: int, kind: str, message: str, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.data = data

    @property
    def retry(self) -> str:
        """`same-op`, `later` or `never`: whether asking again may help."""
        return str(self.data.get("retry", "never"))

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """That of the command on the terminal that fails for the same reason."""
        if self.kind in _EXIT:
            return _EXIT[self.kind]
        return revive({"code": self.data.get("word", self.kind)}).exit_code


# Kinds of the line that no command on the terminal ends with; 1 is: failed, the data as it was.
_EXIT = {
    "PARAMS": 64,
    "NO_SUCH": 64,
    "OP_REUSED": 64,
    "OP_MISSING": 64,
    "METHOD": 70,
    "NOT_ALLOWED": 1,
    "CODE_WRONG": 1,
    "LOCKED": 1,
    "PLAN_CHANGED": 1,
}
