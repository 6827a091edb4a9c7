"""`validate`: read every record of every store strictly, and tell which cannot be read and why.

Judged are the stores that hold money and those that the pending plan touches: there an odd record
would stop a run. Only counts, keys and reasons are told, never a body. Nothing is written.
"""

from __future__ import annotations

import os

from agent.cli.apart import apart
from agent.cli.output import show, show_error, table, wrap
from agent.core.report import money_line
from agent.core.steps import shown
from agent.core.tally import Tally
from agent.edges import database, quiet
from agent.edges.config import places_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import EXIT_OK, AgentError, Busy, NeedsTechnician, ValidationError
from agent.verbs import survey
from agent.worker.start import missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.cli.arguments import Command
    from agent.core.stores import Contract
    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.database import Header

ODD_SHOWN_MAX = 100


def validate(command: Command, config: Config) -> int:
    """Answer 0 when every judged store can be read, else 10. Raises Busy while a run is on."""
    places = places_of(config)
    if quiet.run_is_on(places.lock):
        raise Busy("a run is on; `posagent status` tells how far it is")
    header = _header(places)
    files = MigrationFiles(config.migrations_dir)
    version = header.user_version
    contract = files.contracts.at(max(min(version, files.head), 0))
    planned, why = plan_stores(config, files, version)
    judged = {name for name, store in contract.stores.items() if store.rules} | planned
    result: dict[str, Any] = quiet.quietly(
        places.pos, lambda connection: _walked(connection, config, places, contract, judged)
    )
    result = {"version": version, "plan_not_read": why or None, **result}
    bad = [entry for entry in result["stores"] if entry["judged"] and entry["unreadable"]]
    error: ValidationError | None = None
    if bad or not result["sound"]:
        names = ", ".join(f"{entry['unreadable']} in {entry['store']}" for entry in bad)
        text = f"records that cannot be read: {names}; correct or settle them"
        error = ValidationError(text if bad else "the file is damaged; restore a backup")
        result["error"] = error.as_json()
    show(result, _lines(result), command.json)
    if error is None:
        return EXIT_OK
    return error.exit_code if command.json else show_error(error, False)


def _header(places: Places) -> Header:
    if not os.path.lexists(places.pos):
        raise missing(places)
    try:
        header = database.read_header(places.pos)
    except OSError as error:
        raise AgentError(f"pos.db cannot be read: {error.strerror}") from error
    if header is None:
        raise NeedsTechnician(f"{places.pos} is no SQLite file; restore a backup")
    return header


def _walked(
    connection: Connection, config: Config, places: Places, contract: Contract, judged: set[str]
) -> dict[str, Any]:
    mark = quiet.until_a_run(places.lock)
    limits = (config.profile.record_bytes_max, config.profile.record_depth_max)
    survey.check_stores(connection, contract)
    tally = Tally()
    stores: list[dict[str, Any]] = []
    odd: list[dict[str, str]] = []
    done = 0
    for name, store in contract.stores.items():
        tally.start(name)
        unreadable = 0
        for key, _, record, reason in survey.records_of(connection, name, False, limits):
            done += 1
            if done % survey.ROWS_PER_MARK == 0:
                mark()
            if not reason:
                tally.add(store, key, record)
                continue
            tally.add_unreadable(store)
            unreadable += 1
            if len(odd) < ODD_SHOWN_MAX:
                odd.append({"store": name, "key": shown(key), "reason": reason})
        stores.append(
            {
                "store": name,
                "judged": name in judged,
                "records": tally.records[name],
                "unsettled": tally.unsettled_records[name],
                "unreadable": unreadable,
                "odd_amounts": tally.odd[name],
            }
        )
    return {
        "stores": stores,
        "odd": odd,
        "unsettled": tally.unsettled_summary(),
        "sound": connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok",
    }


def _lines(result: dict[str, Any]) -> list[str]:
    cells = [
        (
            entry["store"],
            f"{entry['records']:,}",
            f"{entry['unsettled']:,}",
            f"{entry['unreadable']:,}",
            f"{entry['odd_amounts']:,}",
            "yes" if entry["judged"] else "no",
        )
        for entry in result["stores"]
    ]
    titles = ("store", "records ", "unsettled ", "unreadable ", "odd amounts ", "judged")
    lines = [f"schema {result['version']}", *table(titles, cells)]
    for entry in result["odd"]:
        lines += wrap(f"{entry['store']}/{entry['key']}: ", entry["reason"])
    more = sum(entry["unreadable"] for entry in result["stores"]) - len(result["odd"])
    if more > 0:
        lines.append(f"and {more:,} more that cannot be read")
    if result["plan_not_read"]:
        lines += wrap("", f"judged by the money alone: {result['plan_not_read']}")
    return lines + wrap("", money_line(result["unsettled"]))


def plan_stores(config: Config, files: MigrationFiles, version: int) -> tuple[set[str], str]:
    """(stores that the pending plan touches, why they are not known or "")."""
    if not 0 <= version < files.head:
        return set(), ""
    try:
        said = apart(config, lambda mark: {"stores": sorted(files.load(version).stores())})
        return set(said["stores"]), ""
    except AgentError as error:
        return set(), error.message
