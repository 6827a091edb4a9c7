"""Adds fields to a record's text without writing the rest of it anew.

Most passes only set fields that a record does not have yet. Their values are the same for every
record of a run, so what is added is one piece of text before the last brace; all that stood there
keeps its bytes. It must give what core/steps gives by value, and says when it cannot tell; so it
does where a record's way back needs anything kept.
"""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.steps import apply_step, filled
from agent.ground.codec import encode, nests_deeper, same_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.step import Context, Step


class Appender:
    """The fields that one pass sets at the top of every record that lacks them."""

    __slots__ = ("_fields", "_noted", "_plain", "_tails", "_values")

    def __init__(self, steps: list[tuple[int, Step]], contexts: dict[int, Context]) -> None:
        """`steps` as in a Pass; all of them must satisfy `only_appends`."""
        self._values: dict[str, Any] = {}
        overwrites: dict[str, bool] = {}
        # Values that the way back must know were there before, and fields of which it must know
        # that they were not: records with those are left to the plain reading.
        self._noted: dict[str, list[Any]] = {}
        self._plain: set[str] = set()
        for version, step in steps:
            name, value = step.path[0], filled(step.value, contexts[version])
            if name not in self._values or not step.if_missing:
                self._values[name] = value
            overwrites[name] = overwrites.get(name, False) or not step.if_missing
            if step.if_missing:
                self._noted.setdefault(name, []).append(value)
                if step.on_new == "remove":
                    overwrites[name] = True
        for name in overwrites:
            made: dict[str, Any] = {}
            ledger = Ledger()
            for version, step in steps:
                if step.path[0] == name:
                    apply_step(step, "", made, contexts[version], ledger)
            if ledger.entries:
                self._plain.add(name)
        self._fields = list(overwrites.items())
        # By the names of the fields that are added: the text that replaces the last brace.
        self._tails: dict[tuple[str, ...], str] = {}

    def _was_there(self, name: str, value: Any) -> bool:
        """Whether a value is the one that the pass would have set: only a note tells them apart."""
        return any(same_value(value, set_here) for set_here in self._noted[name])

    def nests_deeper(self, depth_max: int) -> bool:
        """Whether what the pass adds nests deeper than a record may."""
        return nests_deeper(encode(self._values), depth_max)

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
                if name in self._plain:
                    return None
                missing.append(name)
            elif overwrites or self._was_there(name, record[name]):
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
