"""What is true of a class of terminals: how a profile is read by the table of settings.

Pure: documents come in as decoded JSON, a `Profile` or a ConfigError goes out. Rules are marked
DP-1 and so on in docs/spec/device-profile.md.
"""

from __future__ import annotations

from agent.core.settings import NAMES, SETTINGS, Setting
from agent.ground.errors import ConfigError
from agent.ground.words import WORD_CHARS_MAX, nearest, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1  # DP-1: a profile with any other number is refused, never guessed at
BASES = ("sourced", "derived", "measured", "estimate")
SCHEMA_ID = "schema"  # schema.json lies among the profiles and is none
TEXT_CHARS_MAX = 1000  # a title or a source; longer is no phrase any more


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
    serial_access: str
    tcp_port: int | None
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


def _check_together(values: dict[str, Any]) -> None:
    """DP-5: the worker must be killed well before the watchdog would take the whole terminal.

    Otherwise a hung migration looks like a power cut, and power cuts do not count as failures.
    """
    period_s = values["watchdog_timeout_s"]
    longest_ms = longest_deadline_ms(values["watchdog_device"], period_s)
    if longest_ms is not None and values["deadline_ms"] > longest_ms:
        raise ConfigError(
            f"'deadline_ms' is {values['deadline_ms']}, but with a watchdog of {period_s} s it "
            f"must be at most {longest_ms} ms, two thirds of it",
            key="deadline_ms",
        )


def longest_deadline_ms(watchdog_device: str | None, period_s: int | None) -> int | None:
    """Two thirds of the watchdog's period; None where there is no watchdog, or one whose period
    is its driver's."""
    if watchdog_device is None or period_s is None:
        return None
    return period_s * 2000 // 3


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
