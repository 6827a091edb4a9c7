"""Where a terminal's files lie and what our own rows in pos.db look like: names only, no I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Our one small table travels inside pos.db, so that what it says is true of the file it is in.
TABLE = "posagent"
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
    file. The next successor replaces it.
    """

    __slots__ = (
        "app_reads",
        "backup",
        "before",
        "clock_trusted",
        "counters",
        "device_id",
        "from_version",
        "kind",
        "now",
        "plan",
        "run",
        "source_sha256",
        "source_size",
        "state",
        "to_version",
        "wal",
    )

    kind: str  # "migrate" or "restore"
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

    def __init__(self, **given: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, given[name])

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready to be encoded."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, given: Any) -> RunRow | None:
        """The row again, or None when it is not one this agent can read."""
        try:
            return cls(**{name: given[name] for name in cls.__slots__})
        except (KeyError, TypeError):
            return None
