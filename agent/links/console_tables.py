"""Lists as tables of at most 79 columns. One page of rows is in memory at a time, so the widths
are fixed; what does not fit its column is cut, and what explains a row stands under it, whole.
"""

from __future__ import annotations

from agent.links.console_text import clean, columns, size, span, when, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Result = dict[str, Any]

_INDENT = " " * 7


class Table:
    """How a list is shown: its member, titles and widths, and the lines of one row."""

    __slots__ = ("empty", "foot", "head", "member", "row", "titles", "widths")

    def __init__(
        self,
        member: str,
        titles: tuple[str, ...],
        widths: tuple[int, ...],
        row: Callable[[Result, tuple[int, ...]], list[str]],
        empty: str,
        head: Callable[[Result], list[str]] | None = None,
        foot: Callable[[Result], list[str]] | None = None,
    ) -> None:
        self.member = member
        self.titles = titles
        self.widths = widths
        self.row = row
        self.empty = empty
        self.head = head
        self.foot = foot

    def lines(self, page: Result, is_first: bool) -> list[str]:
        """The lines of one page; titles stand over the first, what is below under the last."""
        rows = page.get(self.member) or []
        lines = []
        if is_first:
            lines += self.head(page) if self.head else []
            if not rows:
                lines.append(self.empty)
            elif self.titles:
                lines.append(columns(self.titles, self.widths))
        for row in rows:
            lines += self.row(row, self.widths)
        if page.get("next") is None and self.foot:
            lines += self.foot(page)
        return lines


def _history_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    version, is_back = row.get("version"), row.get("kind") == "rollback"
    ends = (row.get("from_version"), row.get("to_version"))
    if isinstance(version, int):
        ends = (version, version - 1) if is_back else (version - 1, version)
    cells = (
        row.get("seq"),
        when(row.get("at_ms"), row.get("clock_trusted")),
        row.get("kind"),
        " -> ".join(map(clean, ends)),
        row.get("state"),
        row.get("verdict"),
    )
    why = [clean(row[name]) for name in ("name", "code", "message") if row.get(name)]
    return [columns(cells, widths), *(wrap(_INDENT, ": ".join(why)) if why else [])]


def _backup_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    kept = row.get("unsettled")
    cells = (
        row.get("name"),
        row.get("version"),
        size(row.get("size_bytes")),
        kept.get("records") if isinstance(kept, dict) else kept,
        when(row.get("made_ms"), row.get("clock_trusted")),
    )
    damaged = row.get("damaged")
    if not damaged:
        return [columns(cells, widths)]
    why = "" if damaged is True else f": {clean(damaged)}"
    return [columns(cells, widths), *wrap(_INDENT, f"DAMAGED{why}")]


def _quarantine_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    cells = tuple(row.get(name) for name in ("store", "key", "version", "now"))
    return [columns(cells, widths), *wrap(_INDENT, clean(row.get("reason")))]


def _log_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    rest = tuple(row.get(name) for name in ("link", "method", "outcome", "count"))
    return [columns((row.get("seq"), when(row.get("at_ms")), *rest), widths)]


def _check_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    label = columns((row.get("name"), row.get("level"), ""), widths).ljust(sum(widths[:2]) + 4)
    return wrap(label, clean(row.get("says")))


def _setting_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    value = "none" if row.get("value", "?") is None else row.get("value")
    label = columns((row.get("name"), value, ""), widths).ljust(sum(widths[:2]) + 4)
    return wrap(label, clean(row.get("basis")))


def _plan_row(row: Result, widths: tuple[int, ...]) -> list[str]:
    number, name = f"{clean(row.get('version')):>3} ", clean(row.get("name"))
    way = "reversible" if row.get("reversible") else "cannot be undone"
    work = ""
    if "rows" in row:
        work = f"{clean(row['rows']):>7} rows, {clean(row.get('batches')):>5} batches  "
    if len(name) <= widths[0]:
        return [f"{number}{name.ljust(widths[0])}  {work}{way}"]
    return [*wrap(number, name), " " * (len(number) + widths[0] + 2) + work + way]


def _plan_foot(result: Result) -> list[str]:
    lines = refusal_lines(result)
    if not has_steps(result) or result.get("plan") is None:
        return lines
    known = result.get("fits")
    parts = [f"backup {clean(result.get('backup_kib'))} KiB"]
    parts.append(f"peak {clean(result.get('peak_kib'))} KiB")
    if "rows" in result:
        parts.insert(0, f"{clean(result['rows'])} rows, {clean(result.get('batches'))} batches")
    parts.append("fits" if known else "?" if known is None else "DOES NOT FIT")
    if result.get("est_s") is not None:
        parts.append(f"~{span(result['est_s'])}")
    return [*wrap(f" plan {clean(result['plan'])}: ", ", ".join(parts)), *lines]


def has_steps(plan: Result) -> bool:
    """Whether a plan leads anywhere."""
    return plan.get("to_version") is not None and plan.get("from_version") != plan["to_version"]


def refusal_lines(plan: Result) -> list[str]:
    """What a run would be refused for."""
    lines = []
    for one in plan.get("refusals") or []:
        lines += wrap("refused: ", f"{clean(one.get('code'))}: {clean(one.get('message'))}")
    return lines


TABLES = {
    "plan": Table("steps", (), (24,), _plan_row, "nothing is pending", None, _plan_foot),
    "history": Table(
        "history",
        ("No.", "when (UTC)", "what", "schema", "state", "verdict"),
        (-5, 21, 8, 12, 11, 12),
        _history_row,
        "nothing was done yet",
    ),
    "backups": Table(
        "backups",
        ("backup", "schema", "size", "unsettled", "made (UTC)"),
        (20, -6, -10, -9, 21),
        _backup_row,
        "there is no backup",
    ),
    "quarantine": Table(
        "quarantine",
        ("store", "record", "schema", "now"),
        (16, 38, -6, 8),
        _quarantine_row,
        "no record is left behind",
    ),
    "log": Table(
        "log",
        ("No.", "when (UTC)", "line", "method", "outcome", "times"),
        (-5, 21, 8, 11, 15, -5),
        _log_row,
        "nothing came over a line yet",
    ),
    "health": Table(
        "checks",
        (),
        (14, 10, 0),
        _check_row,
        "nothing was checked",
        lambda page: [f"worst: {clean(page.get('worst'))}"],
    ),
    "profile": Table(
        "settings",
        ("setting", "value", "why"),
        (26, 16, 31),
        _setting_row,
        "there is no setting",
        lambda page: wrap(f"profile {clean(page.get('id'))}: ", clean(page.get("title"))),
    ),
}
