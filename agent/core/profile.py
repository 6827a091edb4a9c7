"""What is true of a class of terminals: one table of settings, and how a profile is read by it.

Pure: documents come in as decoded JSON, a `Profile` or a ConfigError goes out. The same table is
written as JSON Schema in device_profiles/schema.json and as text in docs/spec/device-profile.md;
a test holds the three equal. Rules are marked DP-1 and so on in that text.
"""

from __future__ import annotations

from agent.ground.errors import ConfigError
from agent.ground.words import WORD_CHARS_MAX, nearest, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1  # DP-1: a profile with any other number is refused, never guessed at
BASES = ("sourced", "derived", "measured", "estimate")
SCHEMA_ID = "schema"  # schema.json lies among the profiles and is none
PATH_CHARS_MAX = 255
TEXT_CHARS_MAX = 1000  # a title or a source; longer is no phrase any more

KIB = 1024
MIB = 1024 * KIB


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


class Profile:
    """The settings in force, each under its own name, and the `id` of the profile they began as."""

    __slots__ = ("id", *NAMES)

    id: str
    ram_budget_bytes: int
    batch_rows_max: int
    batch_bytes_max: int
    record_bytes_max: int
    record_depth_max: int
    page_cache_bytes: int
    journal_bytes_max: int
    backup_level: int
    backup_count: int
    backup_enabled_required: bool
    reserve_bytes: int
    pos_db_bytes_max: int
    deadline_ms: int
    unsettled_guard: str
    quarantine_unsettled: bool
    watchdog_device: str | None
    watchdog_timeout_s: int | None
    serial_device: str | None
    serial_baud: int
    busy_wait_ms: int
    unproven_filesystem: bool
    progress_interval_ms: int

    def __init__(self, id: str, values: dict[str, Any]) -> None:
        self.id = id
        for name in NAMES:
            setattr(self, name, values[name])


def profile_from(document: dict[str, Any], overrides: dict[str, Any]) -> Profile:
    """Return the profile that `document` (a decoded profile file) describes, with `overrides` on.

    What neither names has the table's default. Raises ConfigError for an unknown format number, a
    missing part, an unknown key (naming the nearest), a wrong type and a value out of its range
    (naming the range and the unit).
    """
    values = settings_in(document)
    return profile_of(document["id"], values, overrides)


def settings_in(document: dict[str, Any]) -> dict[str, Any]:
    """Check a whole profile file and return {key: value} of the settings it names."""
    _check_format(document)
    _check_keys(document, ("format", "id", "title", "settings"), "the profile")
    for part in ("id", "title"):
        _check_text(document[part], part)
    settings = document["settings"]
    if type(settings) is not dict:
        raise ConfigError("'settings' must be an object of settings", key="settings")
    values = {}
    for name, entry in settings.items():
        setting = setting_named(name)
        _check_entry(name, entry)
        check_value(setting, entry["value"])
        values[name] = entry["value"]
    return values


def profile_of(id: str, values: dict[str, Any], overrides: dict[str, Any]) -> Profile:
    """Lay checked profile `values` over the defaults and `overrides`, still unchecked, on top."""
    merged = {setting.name: setting.default for setting in SETTINGS}
    merged.update(values)
    for name, value in overrides.items():
        check_value(setting_named(name), value)
        merged[name] = value
    _check_together(merged)
    return Profile(id, merged)


def explain(document: dict[str, Any], overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each setting in force as {"value", "basis", "source"}, in the table's order.

    Takes what `profile_from` accepted. Besides the bases of a profile file, "override" marks a
    value from the configuration and "default" one that nobody named.
    """
    rows: dict[str, dict[str, Any]] = {}
    for setting in SETTINGS:
        name = setting.name
        if name in overrides:
            rows[name] = _row(overrides[name], "override", "the configuration file")
        elif name in document["settings"]:
            entry = document["settings"][name]
            rows[name] = _row(entry["value"], entry["basis"], entry["source"])
        else:
            rows[name] = _row(setting.default, "default", "the table of settings")
    return rows


def setting_named(name: str) -> Setting:
    """The table's row for `name`; ConfigError with the nearest known key when there is none."""
    for setting in SETTINGS:
        if setting.name == name:
            return setting
    near = nearest(name, NAMES)
    raise ConfigError(
        f"unknown setting {shown(name)}; the nearest known one is '{near}'",
        key=name[:WORD_CHARS_MAX],
        nearest=near,
    )


def check_value(setting: Setting, value: object) -> None:
    """ConfigError, naming the range with its unit, unless `setting` may hold `value`."""
    if not setting.accepts(value):
        raise ConfigError(
            f"'{setting.name}' is {_told(value)}; it must be {setting.bounds()}", key=setting.name
        )


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


def _check_together(values: dict[str, Any]) -> None:
    """DP-5: the worker must be killed well before the watchdog would take the whole terminal.

    Otherwise a hung migration looks like a power cut, and power cuts do not count as failures.
    """
    period_s = values["watchdog_timeout_s"]
    if values["watchdog_device"] is None or period_s is None:
        return
    longest_ms = period_s * 2000 // 3
    if values["deadline_ms"] > longest_ms:
        raise ConfigError(
            f"'deadline_ms' is {values['deadline_ms']}, but with a watchdog of {period_s} s it "
            f"must be at most {longest_ms} ms, two thirds of it",
            key="deadline_ms",
        )


def _check_format(document: dict[str, Any]) -> None:
    """Before anything else: a later format may have other keys, and would be misjudged by them."""
    found = document.get("format")
    if type(found) is not int or found != FORMAT:
        raise ConfigError(
            f"'format' is {_told(found)}; this version reads profiles of format {FORMAT} only",
            key="format",
        )


def _check_entry(name: str, entry: object) -> None:
    if type(entry) is not dict:
        raise ConfigError(f"'{name}' must be an object of value, basis and source", key=name)
    _check_keys(entry, ("value", "basis", "source"), f"'{name}'")
    _check_text(entry["source"], f"{name}.source")
    basis = entry["basis"]
    if basis not in BASES:
        raise ConfigError(
            f"the basis of '{name}' is {_told(basis)}; it must be one of {', '.join(BASES)}",
            key=name,
        )


def _check_keys(found: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            near = nearest(key, known)
            raise ConfigError(
                f"unknown key {shown(key)} in {where}; the nearest known one is '{near}'",
                key=key[:WORD_CHARS_MAX],
                nearest=near,
            )
    for key in known:
        if key not in found:
            raise ConfigError(f"{where} lacks '{key}'", key=key)


def _check_text(value: object, key: str) -> None:
    if type(value) is not str or not 0 < len(value.strip()) <= len(value) <= TEXT_CHARS_MAX:
        raise ConfigError(f"'{key}' must be a text of 1 to {TEXT_CHARS_MAX} characters", key=key)


def _row(value: object, basis: str, source: str) -> dict[str, Any]:
    return {"value": value, "basis": basis, "source": source}


def _told(value: object) -> str:
    """A wrong value as JSON's reader would call it, of bounded length."""
    if value is None or type(value) is bool:
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is str:
        return shown(value)
    if type(value) is dict or type(value) is list:
        return "an object" if type(value) is dict else "a list"
    if type(value) is int and value.bit_length() > 200:
        return "a number of too many digits"
    text = getattr(value, "text", None)  # a literal that the codec keeps, such as 1e3
    return (text if type(text) is str else repr(value))[:40]
