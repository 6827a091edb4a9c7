"""The agent's short answers as typed values. Members that are not known here are left out: a newer
agent may tell more, and `Terminal.report` gives it whole."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

Shape = TypeVar("Shape")


def shaped(kind: type[Shape], said: dict[str, Any]) -> Shape:
    """The members of `said` that the shape has; one that is absent is None."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: said.get(name) for name in names})


@dataclass(frozen=True)
class Hello:
    """Who is at the other end. `boot` is another text after each start of the agent; `level` is
    what this line may do: `read`, `tech` or `admin`."""

    agent: str
    model: str
    serial: str | None
    boot: str
    level: str
    proto: int
    caps: list[str]
    limits: dict[str, int]


@dataclass(frozen=True)
class Status:
    """What is going on. `run` and what belongs to it are None while no run is on; `unsettled` and
    `backup` are None until somebody has counted."""

    state: str
    app_may_start: bool
    schema: int | None
    target: int | None
    run: int | None
    step: str | None
    done: int | None
    total: int | None
    eta_s: int | None
    unsettled: int | None
    counted_s: int | None
    free_kib: int | None
    need_kib: int | None
    backup: str | None
    last_error: dict[str, Any] | None
    verdict: str | None
    seq: int
    boot: str


@dataclass(frozen=True)
class PlanStep:
    """One pending migration."""

    version: int
    name: str
    rows: int | None
    batches: int | None
    reversible: bool


@dataclass(frozen=True)
class Plan:
    """What the next run would do. `plan` names it: a run that is given the name starts only while
    it is still the same. `refusals` say what is in the way."""

    plan: str
    from_version: int | None
    to_version: int | None
    steps: list[PlanStep]
    backup_kib: int | None
    peak_kib: int | None
    free_kib: int | None
    fits: bool
    est_s: int | None
    refusals: list[dict[str, Any]]


@dataclass(frozen=True)
class Challenge:
    """What the service desk needs to allow `command`."""

    serial: str
    counter: int
    nonce: str
    command: str
    expires_s: int
    alg: str


@dataclass(frozen=True)
class Progress:
    """How far a run is. `state` is the phase, `step` the store in work; `total` is 0 or None where
    the phase has no count."""

    run: int | None
    state: str
    step: str | None
    done: int | None
    total: int | None
    eta_s: int | None

    @property
    def percent(self) -> int | None:
        """Of this phase; None where it has no count."""
        if not self.total or self.done is None:
            return None
        return min(self.done * 100 // self.total, 100)
