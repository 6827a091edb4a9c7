"""Reading every record of every store strictly, without leaving a trace: is the data valid?

Judged are the stores that hold money and those that the pending plan touches: there an odd record
would stop a run. Only counts, keys and reasons are told, never a body. Nothing is written.
"""

from __future__ import annotations

import os

from agent.core import left_behind
from agent.core.steps import shown
from agent.core.tally import Tally
from agent.edges import agentlock, database, quiet
from agent.edges.config import places_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import AgentError, Busy, NeedsTechnician, ValidationError
from agent.service.apart import answer_apart, apart
from agent.verbs import reading, rows, survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.stores import Contract
    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.database import Header
    from agent.service.apart import Mark

ODD_SHOWN_MAX = 100


def data_at(config: Config) -> tuple[int, MigrationFiles]:
    """The schema of pos.db, and the installed files. Raises Busy while a run is on."""
    places = places_of(config)
    if agentlock.run_is_on(places.lock):
        raise Busy("a run is on; `posagent status` tells how far it is")
    return header_of(places).user_version, MigrationFiles(config.migrations_dir)


def planned(config: Config, version: int, files: MigrationFiles) -> tuple[set[str], str]:
    """(stores that the pending plan touches, why they are not known or "")."""
    if not 0 <= version < files.head:
        return set(), ""
    try:
        said = apart(config, lambda mark: _stores(config, files, version))
        return set(said["stores"]), ""
    except AgentError as error:
        return set(), error.message


def _stores(config: Config, files: MigrationFiles, version: int) -> dict[str, Any]:
    """The stores in which the pending plan stops at a record that cannot be read."""
    plan = files.load(version)
    judged = left_behind.judged(plan, files.contracts, config.profile.quarantine_unsettled)
    return {"stores": sorted(judged)}


def validated(
    config: Config, version: int, files: MigrationFiles, plan_stores: set[str], why_no_plan: str
) -> dict[str, Any]:
    """What `validate` answers, with `error` where a judged store cannot be read."""
    places = places_of(config)
    mark = quiet.until_a_run(places.lock)
    result: dict[str, Any] = quiet.quietly(
        places.pos,
        lambda connection: _walked(connection, config, (files, version), plan_stores, mark),
    )
    result = {"version": version, "plan_not_read": why_no_plan or None, **result}
    error = _fault_in(result)
    if error is not None:
        result["error"] = error.as_json()
    return result


def _judged(contract: Contract, plan_stores: set[str]) -> set[str]:
    return {name for name, store in contract.stores.items() if store.rules} | plan_stores


def _fault_in(result: dict[str, Any]) -> ValidationError | None:
    bad = [entry for entry in result["stores"] if entry["judged"] and entry["unreadable"]]
    if bad:
        names = ", ".join(f"{entry['unreadable']} in {entry['store']}" for entry in bad)
        return ValidationError(f"records that cannot be read: {names}; correct or settle them")
    if not result["sound"]:
        return ValidationError("the file is damaged; restore a backup")
    return None


async def is_valid(config: Config) -> bool:
    """The same as yes or no, for a program on `agent.aio`: it is read in a child, and what the
    file itself is at fault for is a no. Raises AgentError where that cannot be told now."""
    try:
        version, files = data_at(config)
    except NeedsTechnician:
        return False
    plan_stores: set[str] = set()
    if 0 <= version < files.head:
        try:
            said = await answer_apart(config, lambda mark: _stores(config, files, version))
            plan_stores = set(said["stores"])
        except AgentError:
            pass  # judged by the money alone, as `validate` does and says
    said = await answer_apart(
        config, lambda mark: {"valid": _holds(config, version, files, plan_stores, mark)}
    )
    return bool(said["valid"])


def _holds(
    config: Config, version: int, files: MigrationFiles, plan_stores: set[str], tell: Mark
) -> bool:
    """Whether the data is valid; `tell` is told that the reading goes on."""
    places = places_of(config)
    ask = quiet.until_a_run(places.lock)

    def mark() -> None:
        tell("reading the records")
        ask()

    def read(connection: Connection) -> dict[str, Any]:
        try:
            return _walked(connection, config, (files, version), plan_stores, mark)
        except database.SQLITE_ERRORS as error:
            raise database.refused_by_sqlite(error, "reading pos.db") from error

    try:
        return _fault_in(quiet.quietly(places.pos, read)) is None
    except (ValidationError, NeedsTechnician):
        return False


def header_of(places: Places) -> Header:
    """The header of pos.db. Raises NeedsTechnician when it is missing or no SQLite file."""
    if not os.path.lexists(places.pos):
        from agent.worker.start import missing  # with all that a run is made of

        raise missing(places)
    try:
        header = database.read_header(places.pos)
    except OSError as error:
        raise AgentError(f"pos.db cannot be read: {error.strerror}") from error
    if header is None:
        raise NeedsTechnician(f"{places.pos} is no SQLite file; restore a backup")
    return header


def _walked(
    connection: Connection,
    config: Config,
    of: tuple[MigrationFiles, int],
    plan_stores: set[str],
    mark: Callable[[], None],
) -> dict[str, Any]:
    files, version = of
    contract = rows.contract_at(connection, files.contracts, max(min(version, files.head), 0))
    judged = _judged(contract, plan_stores)
    limits = (config.profile.record_bytes_max, config.profile.record_depth_max)
    survey.check_stores(connection, contract)
    tally = Tally()
    stores: list[dict[str, Any]] = []
    odd: list[dict[str, str]] = []
    done = 0
    for name, store in contract.stores.items():
        tally.start(name)
        unreadable = left = 0
        mixed = contract.has_left(name)
        for key, value, record, reason in reading.records_of(connection, name, False, limits):
            done += 1
            if done % reading.ROWS_PER_MARK == 0:
                mark()
            left += mixed and contract.is_left(name, key, value)
            if not reason:
                tally.add(contract.rules_of(store, key, value) if mixed else store, key, record)
                continue
            tally.add_unreadable(store)
            if mixed and contract.is_left(name, key, value):
                continue  # known, and no reason for a run to stop
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
                "quarantined": left,
                "odd_amounts": tally.odd[name],
            }
        )
    return {
        "stores": stores,
        "odd": odd,
        "unsettled": tally.unsettled_summary(),
        "sound": connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok",
    }
