"""`quarantine`: the records that earlier runs left as they were, with the reason, never a body."""

from __future__ import annotations

from agent.cli.output import show, table, wrap
from agent.edges import quiet
from agent.edges.config import places_of
from agent.ground.errors import EXIT_OK
from agent.verbs.left_list import left_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


def quarantine(command: Command, config: Config) -> int:
    """List them. An empty list is no fault, and a full one neither."""
    places = places_of(config)
    found = left_list(places, quiet.until_a_run(places.lock))
    show({"quarantine": found}, _lines(found), command.json)
    return EXIT_OK


def _lines(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return ["no record is left behind"]
    cells = [(row["store"], row["key"], str(row["version"]), row["now"]) for row in found]
    listed = table(("store", "record", "schema ", "now"), cells)
    lines = [listed[0]]
    for row, line in zip(found, listed[1:]):
        lines += [line, *wrap("      ", row["reason"])]
    lines.append("they stay as they are; a later migration tries them again")
    return lines
