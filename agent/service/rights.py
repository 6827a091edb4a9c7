"""Whether a peer may do what it calls: by the level of its line, or by a code that it brought.

A right given by a code is for exactly one command and for the line that brought the code. It is
used up by the run that it was for, not by one that flash refused.
"""

from __future__ import annotations

from agent.links import commands, wire
from agent.links.access import reaches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.links.access import Access
    from agent.links.session import Session


class Rights:
    """The judge of one daemon."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._holder: Session | None = None  # the line that brought the last right code

    def check(self, session: Session, name: str, params: dict[str, Any], need: str) -> None:
        """Raise NOT_ALLOWED unless the peer may make this very call."""
        if reaches(session.level, need):
            return
        if need == "admin":
            command = commands.canonical(name, params)
            if session is self._holder and self._access.grants(command):
                return
            raise wire.remote("NOT_ALLOWED", f"{name} needs a service code", need=need)
        raise wire.remote(
            "NOT_ALLOWED", f"{name} needs level {need}; this line has {session.level}", need=need
        )

    def use_up(self, session: Session, name: str, params: dict[str, Any]) -> None:
        """The call was accepted: a right that it had serves no other."""
        if session is self._holder:
            self._access.spend(commands.canonical(name, params))

    def challenge(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        """What the service desk needs for a code to that call."""
        return self._access.challenge(commands.canonical(name, params))

    def answer(self, session: Session, code: str) -> str:
        """The command that the code allows; the right to it is this peer's."""
        command = self._access.answer(code)
        self._holder = session
        return command
