"""Answers of commands as short as a serial line needs them: rows of few members, pages of rows."""

from __future__ import annotations

from agent.core.settings import KIB
from agent.links.wire import bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEXT_CHARS_MAX = 200
TEXT_BYTES_MAX = 240


def plan(said: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(a row for each pending migration, what holds for all of them)."""
    steps = [
        {
            "version": migration["version"],
            "name": migration["name"],
            "rows": migration.get("records"),
            "batches": migration.get("batches"),
            "reversible": migration["reversible"],
        }
        for migration in said["migrations"]
    ]
    space = said["space"] or {}
    more = {
        "plan": said["plan"],
        "from_version": said["from_version"],
        "to_version": said["to_version"],
        "est_s": None if said["time_ms_estimate"] is None else said["time_ms_estimate"] // 1000 + 1,
        "backup_kib": _kib(space.get("backup_bytes")),
        "peak_kib": _kib(space.get("total_bytes")),
        "free_kib": _kib(space.get("free_bytes")),
        "fits": not any(one["code"] == "STORAGE_ERROR" for one in said["refusals"]),
        "refusals": [
            {
                "code": one["code"],
                "message": _short(one["message"]),
                "cause": (one.get("facts") or {}).get("cause"),
            }
            for one in said["refusals"][:2]
        ],
    }
    return steps, more


def _kib(size: Any) -> int | None:
    return None if size is None else -(-int(size) // KIB)


def rows(said: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of a list, newest first where they have an order in time, with few members each."""
    keys = _MEMBERS[name]
    found = [{key: _short(row.get(key)) for key in keys} for row in said[name]]
    if name == "backups":
        for row, whole in zip(found, said[name]):
            row["unsettled"] = whole["unsettled"] and whole["unsettled"]["records"]
    return found[::-1] if name in ("history", "backups", "log") else found


def _short(value: Any) -> Any:
    return bounded(value, TEXT_CHARS_MAX, TEXT_BYTES_MAX) if type(value) is str else value


_MEMBERS = {
    "history": (
        "seq",
        "run",
        "kind",
        "version",
        "name",
        "state",
        "from_version",
        "to_version",
        "verdict",
        "code",
        "message",
        "at_ms",
        "clock_trusted",
    ),
    "backups": ("name", "version", "size_bytes", "made_ms", "clock_trusted", "damaged"),
    "quarantine": ("store", "key", "version", "reason", "now"),
    "log": ("seq", "at_ms", "link", "level", "method", "outcome", "count"),
    "checks": ("name", "level", "says"),
}


def settings(said: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a profile as rows."""
    return [
        {"name": name, "value": _short(row["value"]), "basis": row["basis"]}
        for name, row in said["settings"].items()
    ]


def outcome(said: dict[str, Any]) -> dict[str, Any]:
    """The end of a run: verdict, schema, error, backup."""
    error = said.get("error") or {}
    backup = said.get("backup") or said.get("restored") or {}
    found = {
        "verdict": said.get("verdict"),
        "from_version": said.get("from_version"),
        "to_version": said.get("to_version"),
        "code": error.get("code"),
        "message": _short(error.get("message")),
        "backup": backup.get("name"),
    }
    for key in ("checked", "damaged", "sound", "version", "way"):
        if key in said:
            value = said[key]
            found[key] = len(value) if type(value) is list else value
    return {key: value for key, value in found.items() if value is not None}
