"""Percent, rate and time left of a run, and the lines people read. It is told the time."""

from __future__ import annotations

from agent.core import states

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What share of a run's time each state takes, measured on 100,000 records (docs/architecture.md).
_WEIGHTS = (
    (states.CHECKING, 15),
    (states.BACKING_UP, 20),
    (states.BUILDING, 5),
    (states.MIGRATING, 37),
    (states.PROVING, 20),
    (states.SWITCHING, 3),
)
_UNITS = {
    states.BACKING_UP: "bytes",
    states.BUILDING: "bytes",
    states.SWITCHING: "bytes",
}


class Snapshot:
    """Where a run is at one moment."""

    __slots__ = ("done", "eta_ms", "percent", "rate", "state", "store", "total")

    def __init__(self) -> None:
        self.state = states.CHECKING
        self.store = ""
        self.done = 0
        self.total = 0
        self.percent = 0
        self.rate = 0  # records or bytes per second
        self.eta_ms = -1  # -1: not known yet

    def as_json(self) -> dict[str, Any]:
        """The `progress` object of status.json."""
        return {name: getattr(self, name) for name in self.__slots__}

    def line(self) -> str:
        """One line of at most 79 characters."""
        text = f"[{self.percent:3d}%] {self.state}"
        if self.store:
            text += f" {self.store}"
        if self.total and self.done:
            unit = _UNITS.get(self.state, "records")
            text += f" {amount(self.done, unit)}/{amount(self.total, unit)}"
            if self.rate:
                text += f", {amount(self.rate, unit)}/s"
        if self.eta_ms >= 0:
            text += f", {duration(self.eta_ms)} left"
        return text[:79]


class Meter:
    """Turns marks of progress into snapshots."""

    __slots__ = ("_entered_ms", "_first", "_started_ms", "now")

    def __init__(self, started_ms: int) -> None:
        self.now = Snapshot()
        self._started_ms = started_ms
        self._entered_ms = started_ms
        self._first = 0

    def mark(self, state: str, store: str, done: int, total: int, at_ms: int) -> Snapshot:
        """Take one mark. Percent never goes back within an attempt."""
        now = self.now
        if state != now.state or done < now.done:
            self._entered_ms, self._first = at_ms, done
        now.state, now.store, now.done, now.total = state, store, done, total
        if state in states.FINAL:
            now.percent, now.eta_ms = (100, 0) if state == states.DONE else (now.percent, -1)
            return now
        spent = 0
        for name, weight in _WEIGHTS:
            if name == state:
                spent += weight * min(done, total) // total if total else 0
                break
            spent += weight
        now.percent = max(now.percent, min(spent, 99))
        took = at_ms - self._entered_ms
        now.rate = (done - self._first) * 1000 // took if took > 0 and done > self._first else 0
        elapsed = at_ms - self._started_ms
        enough = now.percent >= 3 and elapsed >= 200
        now.eta_ms = elapsed * (100 - now.percent) // now.percent if enough else -1
        return now


def amount(count: int, unit: str) -> str:
    """A count with thousands apart, or bytes as MiB."""
    return f"{count / 1048576:.1f} MiB" if unit == "bytes" else f"{count:,}"


def duration(ms: int) -> str:
    """A time people can read: 0.4 s, 12 s, 3 min 20 s."""
    if ms < 10_000:
        return f"{ms / 1000:.1f} s"
    seconds = ms // 1000
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60} s"


def money_line(summary: dict[str, Any]) -> str:
    """The unsettled sales in one line: how many, and count and sum per currency."""
    parts = [
        f"{entry['count']} in {currency} = {entry['sum']}"
        for currency, entry in summary["money"].items()
    ]
    return f"{summary['records']} unsettled records; " + ("; ".join(parts) or "no amounts")
