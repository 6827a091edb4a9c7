"""A list that is being shown, twenty lines at a time; its pages are fetched as they are needed."""

from __future__ import annotations

from agent.links.console_tables import TABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PAGE_LINES = 20


class Pager:
    """The lines not yet shown, and where the next page of rows begins."""

    __slots__ = ("_is_first", "_table", "cursor", "lines", "method")

    def __init__(self, method: str, lines: list[str] | None = None) -> None:
        """A list of `method`, or `lines` that are there already."""
        self.method = method
        self.lines = lines or []
        self.cursor: Any = None
        self._is_first = True
        self._table = TABLES.get(method)

    def take(self, page: dict[str, Any]) -> None:
        """Take one page of rows."""
        assert self._table is not None
        self.lines += self._table.lines(page, self._is_first)
        self._is_first = False
        # A page without rows that points to a next one would lead on for ever.
        self.cursor = page.get("next") if page.get(self._table.member) else None

    def wants_more(self) -> bool:
        """Whether a page must be fetched before it is known what the next lines are."""
        # One line beyond those that are shown: it tells whether to ask for more.
        return len(self.lines) <= PAGE_LINES and self.cursor is not None

    def next_lines(self) -> list[str]:
        """The lines to show now."""
        shown, self.lines = self.lines[:PAGE_LINES], self.lines[PAGE_LINES:]
        return shown

    def is_done(self) -> bool:
        """Whether all of it was shown."""
        return not self.lines and self.cursor is None
