"""The audit: who asked for what on the lines, and what was refused; no secret, no record.

What changes something has its row in the commit that accepts it. Refusals are counted and written
with the next row, so that a line full of noise wears no flash.
"""

from __future__ import annotations

from agent.edges import clock
from agent.edges.holders import boot_id
from agent.ground.errors import AgentError
from agent.ground.limits import REFUSALS_KEPT_MAX
from agent.links import methods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.edges.ledger import Ledger
    from agent.links.session import Session


def audit_row(link: str, level: str, method: str, outcome: str, count: int = 1) -> dict[str, Any]:
    """One row as the ledger takes it."""
    return {
        "at_ms": clock.wall_ms(),
        "boot_id": boot_id(),
        "link": link,
        "level": level,
        "method": method,
        "outcome": outcome,
        "count": count,
    }


class Audit:
    """What is not written yet. `note` is told when flash refuses a row: that keeps nobody from
    working."""

    def __init__(self, ledger: Callable[[], Ledger], note: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._note = note
        self._counts: dict[tuple[str, str, str, str], int] = {}
        self._was_wrong = False  # a code, and the lock that this leads to was not written yet

    def accepted(self, session: Session, method: str) -> None:
        """A call that changed something and has no row of its own."""
        key = (session.link, session.level, method, "accepted")
        self._counts[key] = self._counts.get(key, 0) + 1
        self.write()

    def refused(self, session: Session, method: str, kind: str) -> None:
        """Count a refusal; a wrong code is written at once, and the lock that follows it. Other
        refusals of a code come as often as somebody likes to send them, and would wear flash."""
        known = method if method in methods.METHODS else "unknown"
        key = (session.link, session.level, known, kind)
        if key in self._counts or len(self._counts) < REFUSALS_KEPT_MAX:
            self._counts[key] = self._counts.get(key, 0) + 1
        if known == "code" and (kind == "CODE_WRONG" or (kind == "LOCKED" and self._was_wrong)):
            self._was_wrong = kind == "CODE_WRONG"
            self.write()

    def write(self) -> None:
        """Write what was counted."""
        rows = [audit_row(*key, count) for key, count in self._counts.items()]
        if not rows:
            return
        try:
            self._ledger().note(rows)
            self._counts.clear()
        except AgentError as error:
            self._note(f"the audit could not be written: {error.message}")
