"""A figure beside its budget, and the table they are printed as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure. Without a budget it is there to explain another one.

    `at_least` turns the comparison round: the budget is then the least that will do.
    """

    name: str
    value: float | None
    unit: str = ""
    budget: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None without a budget or without a measurement."""
        if self.budget is None or self.value is None:
            return None
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, budget, measured, verdict and note, as shown."""
        sign = ">=" if self.at_least else "<="
        budget = "" if self.budget is None else f"{sign} {_number(self.budget, self.unit)}"
        measured = "not measured" if self.value is None else _number(self.value, self.unit)
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return self.name, budget, measured, verdict, self.note


HEADINGS = ("figure", "budget", "measured", "", "how")


def _number(value: float, unit: str) -> str:
    if unit in ("x", "s", "ms", "MB", "MiB"):
        return f"{value:.2f}{'' if unit == 'x' else ' '}{unit}"
    if unit == "%":
        return f"{value:.1f} %"
    return f"{value:,.0f} {unit}".rstrip()


def as_text(figures: Sequence[Figure]) -> str:
    """The figures as lines for a terminal."""
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip()
        for row in rows
    )


def as_markdown(figures: Sequence[Figure]) -> str:
    """The figures as a table for docs/figures.md."""
    rows = [HEADINGS, ("---",) * 5, *(figure.cells() for figure in figures)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
