"""The table of settings: every key a profile may hold, its range, its default, what it decides.

The same table is written as JSON Schema in device_profiles/schema.json and as text in
docs/spec/device-profile.md; a test holds the three equal. This one is the one to change.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH_CHARS_MAX = 255

KIB = 1024
MIB = 1024 * KIB


def path_fault(path: str) -> str:
    """Why `path` cannot stand in a profile or a configuration, or "" when it can (DP-6).

    ".." is refused because a --root in front of the path would not hold it.
    """
    if not path.startswith("/"):
        return "it must begin with /"
    if len(path) > PATH_CHARS_MAX:
        return f"it has more than {PATH_CHARS_MAX} characters"
    if ".." in path.split("/"):
        return "it must not contain '..'"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "it holds half of a surrogate pair"
    return "" if path.isprintable() else "it holds a character that cannot be printed"


class Setting:
    """One row of the table: a key, what it may hold, its default, and what it decides.

    `kind` is "integer" (whole number from `low` to `high`, or one of `choices`), "boolean", "word"
    (one of `choices`) or "path" (absolute). `unit` is for sentences; the key carries it too.
    """

    __slots__ = (
        "choices",
        "default",
        "high",
        "kind",
        "low",
        "name",
        "nullable",
        "sentence",
        "unit",
    )

    def __init__(
        self,
        name: str,
        kind: str,
        default: Any,
        sentence: str,
        *,
        low: int = 0,
        high: int = 0,
        unit: str = "",
        choices: tuple[Any, ...] = (),
        nullable: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.sentence = sentence
        self.low = low
        self.high = high
        self.unit = unit
        self.choices = choices
        self.nullable = nullable

    def accepts(self, value: object) -> bool:
        """Whether a profile or an override may hold `value` here; true is no number (DP-4)."""
        if value is None:
            return self.nullable
        if self.kind == "boolean":
            return type(value) is bool
        if self.kind == "path":
            return type(value) is str and path_fault(value) == ""
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        return type(value) is int and self.low <= value <= self.high

    def bounds(self) -> str:
        """What the key may hold, in words: for the error sentence and for the document."""
        if self.kind == "boolean":
            words = "true or false"
        elif self.kind == "path":
            words = f"an absolute path of at most {PATH_CHARS_MAX} characters"
        elif self.choices:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            words = f"a whole number from {self.low} to {self.high}"
        if self.unit:
            words += f" {self.unit}"
        return words + (" or null" if self.nullable else "")


SETTINGS = (
    Setting(
        "ram_budget_bytes",
        "integer",
        64 * MIB,
        "Memory that supervisor and worker may use together; a worker that outgrows it is killed.",
        low=16 * MIB,  # an interpreter with sqlite3 alone was measured at 10.7 MB
        high=1024 * MIB,
        unit="bytes",
    ),
    Setting(
        "batch_rows_max",
        "integer",
        2000,
        "Rows of one batch at most; a batch is one transaction.",
        low=1,
        high=100_000,
        unit="rows",
    ),
    Setting(
        "batch_bytes_max",
        "integer",
        1 * MIB,
        "Bytes of record text in one batch at most, unless a single record is larger.",
        low=4 * KIB,
        high=16 * MIB,
        unit="bytes",
    ),
    Setting(
        "record_bytes_max",
        "integer",
        1 * MIB,
        "A record with more bytes of text than this is not read but reported as too large.",
        low=64 * KIB,
        high=16 * MIB,
        unit="bytes",
    ),
    Setting(
        "record_depth_max",
        "integer",
        64,
        "A record nested deeper than this is not read but reported as too deep.",
        low=8,
        high=256,  # the JSON decoder recurses and the interpreter ends it near 1000
        unit="levels",
    ),
    Setting(
        "page_cache_bytes",
        "integer",
        2 * MIB,
        "SQLite's page cache in the worker.",
        low=64 * KIB,
        high=64 * MIB,
        unit="bytes",
    ),
    Setting(
        "journal_bytes_max",
        "integer",
        4 * MIB,
        "The successor's write-ahead log is checkpointed when it has grown to this.",
        low=64 * KIB,
        high=64 * MIB,
        unit="bytes",
    ),
    Setting(
        "backup_level",
        "integer",
        1,
        "zlib level of backups: 1 costs the least time, 9 the least space.",
        low=1,
        high=9,
    ),
    Setting(
        "backup_count",
        "integer",
        3,
        "The newest backups that are kept; a run's own one is kept besides while it is open.",
        low=1,
        high=99,
        unit="files",
    ),
    Setting(
        "backup_enabled_required",
        "boolean",
        True,
        "When true, nobody may ask for a run without a backup.",
    ),
    Setting(
        "reserve_bytes",
        "integer",
        16 * MIB,
        "Space on the data partition that a run leaves free for the application.",
        low=4 * KIB,
        high=4096 * MIB,
        unit="bytes",
    ),
    Setting(
        "pos_db_bytes_max",
        "integer",
        1024 * MIB,
        "The largest pos.db that this class can upgrade.",
        low=4 * KIB,
        high=1024 * 1024 * MIB,
        unit="bytes",
    ),
    Setting(
        "deadline_ms",
        "integer",
        30_000,
        "A worker that shows no mark of progress for this long is killed.",
        low=100,
        high=600_000,
        unit="ms",
    ),
    Setting(
        "unsettled_guard",
        "word",
        "preserve",
        "With unsettled sales on board, a run carries them over (preserve) or does not start "
        "(refuse).",
        choices=("preserve", "refuse"),
    ),
    Setting(
        "quarantine_unsettled",
        "boolean",
        False,
        "When true, an unsettled record that cannot be migrated may be quarantined; when false, it "
        "stops the run.",
    ),
    Setting(
        "watchdog_device",
        "path",
        None,
        "The hardware watchdog that is fed on marks of progress, or null to leave it alone.",
        nullable=True,
    ),
    Setting(
        "watchdog_timeout_s",
        "integer",
        None,
        "The period to ask of the watchdog, or null for the one its driver has.",
        low=1,
        high=3600,
        unit="s",
        nullable=True,
    ),
    Setting(
        "serial_device",
        "path",
        None,
        "The service port, or null for none.",
        nullable=True,
    ),
    Setting(
        "serial_baud",
        "integer",
        115_200,
        "Speed of the service port, always 8N1 without flow control.",
        choices=(9600, 19_200, 38_400, 57_600, 115_200),
        unit="baud",
    ),
    Setting(
        "serial_access",
        "word",
        "tech",
        "What the service port may do without a code: look (read), do what pulling the plug could "
        "also cause (tech), or all of it (open), which is for labs.",
        choices=("read", "tech", "open"),
    ),
    Setting(
        "tcp_port",
        "integer",
        None,
        "The port on loopback for programs without Unix sockets, or null for none.",
        low=1024,
        high=65_535,
        nullable=True,
    ),
    Setting(
        "busy_wait_ms",
        "integer",
        2000,
        "How long boot waits for the application to let go of pos.db.",
        low=0,
        high=60_000,
        unit="ms",
    ),
    Setting(
        "unproven_filesystem",
        "boolean",
        False,
        "When true, the agent also works on file systems that its rules were not proven on.",
    ),
    Setting(
        "progress_interval_ms",
        "integer",
        5000,
        "Progress is reported at least this often.",
        low=100,
        high=5000,  # fifteen silent minutes look like a dead terminal; five seconds do not
        unit="ms",
    ),
)

NAMES = tuple(setting.name for setting in SETTINGS)
