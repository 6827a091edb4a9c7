"""The list of records left behind, as it is shown: read from pos.db without leaving a trace."""

from __future__ import annotations

import os

from agent.core.left_behind import record_digest
from agent.core.steps import shown, shown_words
from agent.edges import quiet
from agent.edges.database import has_store, lenient_text
from agent.verbs import rows
from agent.verbs.reading import rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.terminal import Places


def left_list(places: Places, mark: Callable[..., None]) -> list[dict[str, Any]]:
    """Store, key, version and reason of each record left behind, and what became of it since:
    "left" as it was, "changed" by the application, or "gone".

    Raises AgentError where pos.db cannot be read quietly.
    """
    if not os.path.lexists(places.pos):
        return []
    return quiet.quietly(places.pos, lambda connection: _listed(connection, mark))


def _listed(connection: Connection, mark: Callable[..., None]) -> list[dict[str, Any]]:
    rows.check_format(connection)
    left = rows.quarantined(connection)
    stores = sorted({row.store for row in left.rows()})
    now: dict[str, str] = {}
    with lenient_text(connection):
        for store in stores:
            if not has_store(connection, store):
                continue  # a table that is there no more, or that nobody ever made
            names = set(left.names(store))
            for number, (key, value) in enumerate(rows_of(connection, store)):
                if number % 2000 == 0:
                    mark(store, number)
                digest = record_digest(store, key, value).hex()
                if digest[:32] in names:
                    now[digest[:32]] = digest[32:]
    found = []
    for store in stores:
        for name in left.names(store):
            row = left.named(store, name)
            is_now = "gone" if name not in now else "left"
            if name in now and now[name] != row.digest:
                is_now = "changed"
            found.append(
                {
                    # Whatever is written there, no more than this is shown of it.
                    "store": shown(row.store),
                    "key": shown(row.key),
                    "version": row.version,
                    "reason": shown_words(row.reason),
                    "now": is_now,
                }
            )
    return sorted(found, key=lambda entry: (entry["store"], entry["key"]))
