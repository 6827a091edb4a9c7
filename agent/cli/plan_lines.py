"""The plan for people: what, with what, what for, what is in the way. Estimates are called so."""

from __future__ import annotations

from agent.core.report import duration, money_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def lines_of(result: dict[str, Any]) -> list[str]:
    """The plan in lines: what, with what, what for, what is in the way."""
    lines = []
    if result["from_version"] is not None and result["to_version"] is not None:
        lines.append(f"schema {result['from_version']} -> {result['to_version']}")
    for migration in result["migrations"]:
        back = "" if migration["reversible"] else " (cannot be undone by its steps)"
        lines.append(f"  {migration['version']:04d} {migration['name']}{back}")
        lines += [f"       {step['does']}" for step in migration["steps"]]
    for number, a_pass in enumerate(result["passes"], 1):
        if a_pass["kind"] == "sql":
            lines.append(f"pass {number}: {a_pass['steps'][0]}")
            continue
        lines.append(
            f"pass {number}: {a_pass['kind']} {a_pass['store']}, {a_pass['records']:,} records in "
            f"{a_pass['batches']} batches"
        )
    if result["unsettled"] is not None:
        lines.append(money_line(result["unsettled"]))
    for name, count in result["unreadable"].items():
        lines.append(f"{name} holds {count} records that cannot be read")
    for name, count in result["left_behind"].items():
        lines.append(f"{name}: about {count} records would be left behind as they are (estimate)")
    lines += _undo_lines(result["undo"])
    lines += _space_lines(result)
    if result["time_ms_estimate"] is not None:
        lines.append(f"time: about {duration(result['time_ms_estimate'])} (estimate)")
    if result["migrations"] and not result["refusals"]:
        words = {
            True: "yes, the old file is kept until it is committed",
            False: "no hard links here: a restore of the backup is the way back",
        }
        lines.append(f"way back: {words.get(result['way_back'], 'known once a run tries a link')}")
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"a run would be refused: {r['code']}: {r['message']}" for r in result["refusals"]]
    return lines


def _undo_lines(undo: dict[str, Any] | None) -> list[str]:
    """What a later way back needs, and where there is none by the steps."""
    if undo is None:
        return []
    lines = []
    if undo["rows_estimate"]:
        lines.append(
            f"for a way back: about {undo['rows_estimate']:,} rows, {_mib(undo['bytes_estimate'])} "
            "in pos.db (estimate)"
        )
    if undo["not_behind"] is not None:
        lines.append(f"no way back by its steps behind schema {undo['not_behind']}")
    return lines


def _space_lines(result: dict[str, Any]) -> list[str]:
    space = result["space"]
    if space is None:
        return []
    lines = [
        f"backup: at most {_mib(space['backup_bytes'])}",
        f"space: {_mib(space['total_bytes'])} at its peak, {_mib(space['free_bytes'])} free",
    ]
    if space["freed_first_bytes"]:
        lines.append(f"       {_mib(space['freed_first_bytes'])} can be given back before")
    written = result["flash_written_bytes_estimate"]
    lines.append(f"flash to be written: about {_mib(written)} (estimate)")
    return lines


def _mib(size: int) -> str:
    return f"{size / 1048576:.1f} MiB"
