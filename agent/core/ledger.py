"""What one record's steps note for their way back, and what that way back has to report.

On the way up a ledger takes entries, on the way down it holds those that flash gave back. An entry
is a small list of plain values; its forms are told where they are made (core/steps) and used
(core/undo).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.step import Step


class Ledger:
    """The entries of one record by schema version and number of the step; `reports` holds (version,
    step's number, "kept" or "removed") for values that `down` could not give back."""

    __slots__ = ("entries", "reports")

    def __init__(self) -> None:
        self.entries: dict[int, dict[int, list[Any]]] = {}
        self.reports: list[tuple[int, int, str]] = []

    def add(self, version: int, step: Step, entry: list[Any]) -> None:
        """Note an entry, unless nobody can go back behind this step anyway."""
        if step.keeps:
            self.entries.setdefault(version, {})[step.number] = entry

    def entry(self, version: int, step: Step) -> list[Any] | None:
        """What was noted for a step, or None."""
        noted = self.entries.get(version)
        return None if noted is None else noted.get(step.number)

    def as_rows(self) -> dict[int, list[list[Any]]]:
        """Per version the plain values that flash keeps: [number, entry] in order."""
        return {
            version: [[number, noted[number]] for number in sorted(noted)]
            for version, noted in self.entries.items()
        }

    def join(self, other: Ledger) -> None:
        """Take what another ledger of the same record has noted for other steps."""
        for version, noted in other.entries.items():
            self.entries.setdefault(version, {}).update(noted)

    def take(self, version: int, row: list[list[Any]]) -> None:
        """Take back what `as_rows` gave for one version. Raises ValueError for anything else."""
        noted: dict[int, list[Any]] = {}
        for pair in row if type(row) is list else (None,):
            if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int:
                raise ValueError("no ledger")
            if not _is_entry(pair[1]):
                raise ValueError("no entry of a ledger")
            noted[pair[0]] = pair[1]
        self.entries[version] = noted


def _is_entry(given: Any) -> bool:
    """Whether plain values are an entry as core/steps makes them."""
    if type(given) is not list or not given:
        return False
    word, rest = given[0], given[1:]
    if word in ("there", "stays"):
        return not rest
    if word == "was":
        return len(rest) == 1
    if word == "absent":
        return len(rest) == 1 and type(rest[0]) is int
    return (
        word == "fields"
        and len(rest) == 1
        and type(rest[0]) is list
        and all(map(_is_field, rest[0]))
    )


def _is_field(given: Any) -> bool:
    if type(given) is not list or len(given) != 3:
        return False
    path, old, wrote = given
    return (
        type(path) is list
        and bool(path)
        and all(type(part) is str for part in path)
        and type(old) is list
        and len(old) < 2
        and type(wrote) is str
    )
