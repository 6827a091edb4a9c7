"""What pos.db says of one applied migration: all that a later `down` needs beside its file.

One row per applied version travels in the file: the checksum of what was applied, the run's frozen
values, and the values that migrations gave a field in every record. From an agent that kept no more
than the checksum a row is that text alone; such a version cannot be undone by `down`.
"""

from __future__ import annotations

from agent.core.step import ABSENT, Context
from agent.core.steps import filled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.migration import Migration
    from agent.core.step import Step

    # (store, path) -> the value that every record has there by the migrations so far.
    Constants = dict[tuple[str, tuple[str, ...]], Any]


class Applied:
    """One applied version. `keeps_undo` tells whether its ledger rows are in the file; `defaults`
    are by the step's number, `constants` hold after the version."""

    __slots__ = (
        "checksum",
        "constants",
        "defaults",
        "device_id",
        "keeps_undo",
        "min_reader",
        "now",
        "run",
    )

    def __init__(
        self,
        checksum: str,
        run: str,
        now: int,
        device_id: str,
        min_reader: int,
        keeps_undo: bool,
        defaults: dict[int, Any],
        constants: Constants,
    ) -> None:
        self.checksum = checksum
        self.run = run
        self.now = now
        self.device_id = device_id
        self.min_reader = min_reader
        self.keeps_undo = keeps_undo
        self.defaults = defaults
        self.constants = constants

    def as_json(self) -> dict[str, Any]:
        """Plain values for the row."""
        return {
            "checksum": self.checksum,
            "run": self.run,
            "now": self.now,
            "device_id": self.device_id,
            "min_reader": self.min_reader,
            "keeps_undo": self.keeps_undo,
            "defaults": [[number, value] for number, value in sorted(self.defaults.items())],
            "constants": [[store, list(path), v] for (store, path), v in self.constants.items()],
        }

    @classmethod
    def from_json(cls, given: Any, version: int) -> Applied | None:
        """The row again; None for one this agent cannot read."""
        if type(given) is str:
            return cls(given, "", 0, "", version, False, {}, {})
        try:
            return cls(
                given["checksum"],
                given["run"],
                int(given["now"]),
                str(given["device_id"]),
                int(given["min_reader"]),
                given["keeps_undo"] is True,
                {int(number): value for number, value in given["defaults"]},
                {(store, tuple(path)): value for store, path, value in given["constants"]},
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


def bind(
    migrations: list[Migration], contexts: dict[int, Context], constants: Constants
) -> dict[int, Constants]:
    """Give each step its default: what the migrations before it gave its field in every record.

    Answers the constants after each version. A step that overwrites such a value needs no ledger
    entry for it, and `down` knows it for records that the new software made as well. Records that
    hold something else get an entry of their own.
    """
    after: dict[int, Constants] = {}
    constants = dict(constants)
    for migration in migrations:
        context = contexts[migration.version]
        for step in migration.steps:
            if step.kind == "set_field" and not step.if_missing:
                step.default = constants.get((step.store, step.path), ABSENT)
            _follow(step, context, constants)
        after[migration.version] = dict(constants)
    return after


def _follow(step: Step, context: Context, constants: Constants) -> None:
    """What a step makes of the constants. A field of one record, or one set where it is missing,
    is no constant."""
    place = (step.store, step.path)
    if step.kind == "set_field" and step.if_missing and place in constants:
        return  # it is there in every record, so nothing happens
    for store, path in list(constants):
        if store == step.store and any(_overlap(path, field) for field in step.fields):
            del constants[store, path]
    if step.kind == "set_field" and not step.if_missing and step.key is None:
        constants[place] = filled(step.value, context)


def _overlap(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return a[: len(b)] == b[: len(a)]
