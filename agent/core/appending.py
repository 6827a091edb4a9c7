"""Adds fields to a record's text without writing the rest of it anew.

Most passes only set fields that a record does not have yet. Their values are the same for every
record of a run, so what is added is one piece of text before the last brace; all that stood there
keeps its bytes. It must give what core/steps gives by value, and says when it cannot tell.
"""

from __future__ import annotations

from agent.core.steps import filled
from agent.ground.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.migration import Context, Step


class Appender:
    """The fields that one pass sets at the top of every record that lacks them."""

    __slots__ = ("_fields", "_tails", "_values")

    def __init__(self, steps: list[tuple[int, Step]], contexts: dict[int, Context]) -> None:
        """`steps` as in a Pass; all of them must satisfy `only_appends`."""
        self._values: dict[str, Any] = {}
        overwrites: dict[str, bool] = {}
        for version, step in steps:
            name = step.path[0]
            if name not in self._values or not step.if_missing:
                self._values[name] = filled(step.value, contexts[version])
            overwrites[name] = overwrites.get(name, False) or not step.if_missing
        self._fields = list(overwrites.items())
        # By the names of the fields that are added: the text that replaces the last brace.
        self._tails: dict[tuple[str, ...], str] = {}

    def appended(self, text: str, record: Any) -> str | None:
        """`text` with what the pass adds, `text` itself where it adds nothing; None where only the
        plain reading can tell. `record` is the decoded text and stays as it is."""
        if type(record) is not dict:
            return text
        if not record or text[-1] != "}":
            return None
        missing = []
        for name, overwrites in self._fields:
            if name not in record:
                missing.append(name)
            elif overwrites:
                return None
        if not missing:
            return text
        names = tuple(missing)
        tail = self._tails.get(names)
        if tail is None:
            added = encode({name: self._values[name] for name in names})
            tail = self._tails[names] = "," + added[1:]
        return text[:-1] + tail


def only_appends(steps: list[tuple[int, Step]]) -> bool:
    """Whether all steps of a pass set a field at the top of every record."""
    return all(s.kind == "set_field" and len(s.path) == 1 and s.key is None for _, s in steps)
