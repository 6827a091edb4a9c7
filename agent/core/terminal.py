"""Where a terminal's files lie and what our own rows in pos.db look like: names only, no I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Our one small table travels inside pos.db, so that what it says is true of the file it is in.
TABLE = "posagent"
# The format of its rows. An agent that finds a higher one does not believe any of them.
FORMAT = 1
CREATE_TABLE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} "
    "(kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) "
    "WITHOUT ROWID"
)


class Places:
    """Paths around one pos.db; side files lie beside the file that the name resolves to."""

    __slots__ = ("backups", "folder", "lock", "next", "pos", "prev", "seal", "state", "status")

    def __init__(self, pos: str, state: str, backups: str, run: str) -> None:
        self.pos = pos
        self.folder = pos.rpartition("/")[0] or "/"
        self.next = pos + ".next"
        self.prev = pos + ".prev"
        self.state = state
        self.seal = state + "/seal"
        self.lock = state + "/lock"
        self.backups = backups
        self.status = run + "/status.json"


class RunRow:
    """The row of the last run as it stands in a file: what was built from what, and how far.

    `state` is "open" while batches run and "sealed" once nothing more will be written into the
    file; `left` is the number of records that are in quarantine then. `checked` is False where the
    authors' checks were left out on request, `despite_unsettled` True where somebody consented to
    a run that the profile refuses. The next successor replaces it.
    """

    __slots__ = (
        "app_reads",
        "backup",
        "before",
        "checked",
        "clock_trusted",
        "counters",
        "despite_unsettled",
        "device_id",
        "from_version",
        "kind",
        "left",
        "now",
        "plan",
        "run",
        "source_sha256",
        "source_size",
        "state",
        "to_version",
        "wal",
    )

    kind: str  # "migrate", "rollback", "restore" or "prune"
    run: str
    source_size: int
    source_sha256: str
    plan: str
    from_version: int
    to_version: int
    now: int
    clock_trusted: bool
    device_id: str
    before: dict[str, Any]
    counters: dict[str, int]
    backup: dict[str, Any] | None
    wal: bool
    app_reads: list[int]
    state: str
    left: int
    checked: bool
    despite_unsettled: bool

    # What a row of an earlier agent does not say.
    _YOUNGER = {"left": 0, "checked": True, "despite_unsettled": False}

    def __init__(self, **given: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, given[name] if name in given else self._YOUNGER[name])

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready to be encoded."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, given: Any) -> RunRow | None:
        """The row again, or None when it is not one this agent can read."""
        try:
            row = cls(**{name: given[name] for name in cls.__slots__ if name in given})
        except (KeyError, TypeError):
            return None
        typed = all(type(getattr(row, name)) in kinds for name, kinds in _TYPES.items())
        return row if typed and has_counts(row.before) else None


def has_counts(before: Any) -> bool:
    """Whether plain values count records and unsettled ones, as every tally does."""
    words = ("records", "unsettled_records")
    return all(
        type(before.get(word)) is dict and all(type(n) is int for n in before[word].values())
        for word in words
    )


_TEXT, _NUMBER, _FLAG = (str,), (int,), (bool,)
_TYPES: dict[str, tuple[type, ...]] = {
    "app_reads": (list,),
    "backup": (dict, type(None)),
    "before": (dict,),
    "checked": _FLAG,
    "clock_trusted": _FLAG,
    "counters": (dict,),
    "despite_unsettled": _FLAG,
    "device_id": _TEXT,
    "from_version": _NUMBER,
    "kind": _TEXT,
    "left": _NUMBER,
    "now": _NUMBER,
    "plan": _TEXT,
    "run": _TEXT,
    "source_sha256": _TEXT,
    "source_size": _NUMBER,
    "state": _TEXT,
    "to_version": _NUMBER,
    "wal": _FLAG,
}
