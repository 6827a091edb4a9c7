"""What a sample terminal may be asked to be: the recipe, and why some recipes are impossible."""

from __future__ import annotations

from dataclasses import dataclass, field

# Each kind is a defect a reader must notice; `too_large` is only made when it is asked for by name,
# because a share of a big terminal in megabyte records would fill the disk.
BAD_KINDS = (
    "truncated",
    "duplicate_key",
    "nan",
    "blob",
    "deep",
    "lone_surrogate",
    "nul",
    "not_utf8",
    "null",
    "empty",
    "too_large",
)
BAD_KINDS_DEFAULT = BAD_KINDS[:-1]


class RecipeError(ValueError):
    """The recipe asks for something impossible; the message says which figure and why."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a sample terminal holds.

    `records` counts the `tx_` records, bad ones included; exactly `unsettled` of them are pending
    or processing. `bad_share` and `free_share` are parts of one: of the `tx_` records, and of the
    pages of the finished file. `overrides` are further keys of config.json.
    """

    profile: str = "generic"
    records: int = 1_000
    unsettled: int = 20
    seed: int = 1
    layout: str = "rowid"
    keys: str = "random"
    journal: str = "delete"
    extra_tables: bool = False
    bad_share: float = 0.0
    bad_kinds: tuple[str, ...] = BAD_KINDS_DEFAULT
    free_share: float = 0.0
    preferences: bool = True
    page_size: int = 4_096
    overrides: dict[str, object] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """How many `tx_` records are bad."""
        return round(self.records * self.bad_share)

    def check(self) -> None:
        """Raise RecipeError, naming the figure, when no such terminal can be made."""
        if self.records < 0 or self.unsettled < 0:
            raise RecipeError("records and unsettled are counts; they cannot be negative")
        if not 0 <= self.bad_share <= 1:
            raise RecipeError(f"bad records are a share from 0 to 1, not {self.bad_share}")
        if not 0 <= self.free_share <= 0.95:
            raise RecipeError(f"free pages are a share from 0 to 0.95, not {self.free_share}")
        if self.unsettled + self.bad > self.records:
            raise RecipeError(
                f"{self.unsettled} unsettled and {self.bad} bad records do not fit into "
                f"{self.records} records: a bad record is never an unsettled one"
            )
        unknown = [kind for kind in self.bad_kinds if kind not in BAD_KINDS]
        if unknown or not self.bad_kinds:
            raise RecipeError(
                f"unknown kind of bad record {unknown}; known: {', '.join(BAD_KINDS)}"
            )
        size = self.page_size
        if not 512 <= size <= 65_536 or size & (size - 1):
            raise RecipeError(f"a page has a power of two from 512 to 65536 bytes, not {size}")
        for name, value, allowed in (
            ("layout", self.layout, ("rowid", "without-rowid")),
            ("keys", self.keys, ("random", "time")),
            ("journal", self.journal, ("delete", "wal")),
        ):
            if value not in allowed:
                raise RecipeError(f"{name} is one of {', '.join(allowed)}, not {value!r}")
