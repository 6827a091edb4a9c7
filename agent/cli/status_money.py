"""For `status`, is the money safe: what is unsettled, and which verified backup holds just that.

pos.db is read through `edges/quiet`, which changes nothing; the walk ends as soon as a run begins,
because a run waits for whoever has the file open.
"""

from __future__ import annotations

import os

from agent.edges import quiet
from agent.ground.errors import AgentError, BackupCorrupt
from agent.verbs import backup_folder, backup_reader, restore, rows, survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.core.stores import Contract
    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.migration_files import MigrationFiles


def money_facts(
    config: Config, places: Places, files: MigrationFiles | None, version: int | None, why: str
) -> dict[str, Any]:
    """The answer's `money` object. `why` tells why nothing may be counted now, or is ""."""
    if not why and (files is None or version is None):
        why = "which records are money is not known: stores.json or pos.db cannot be read"
    if not why:
        assert files is not None
        assert version is not None
        contracts, judged_at = files.contracts, max(min(version, files.head), 0)
        try:
            return quiet.quietly(
                places.pos,
                lambda connection: _counted(
                    connection, config, places, rows.contract_at(connection, contracts, judged_at)
                ),
            )
        except AgentError as error:
            why = error.message
    return {
        "counted": False,
        "why_not_counted": why,
        "records": None,
        "money": None,
        "odd_amounts": None,
        "unreadable": None,
        "quarantined": None,
        "backup": newest_backup(places),
        "damaged_backups": [],
    }


def _counted(
    connection: Connection, config: Config, places: Places, contract: Contract
) -> dict[str, Any]:
    mark = quiet.until_a_run(places.lock)
    limits = (config.profile.record_bytes_max, config.profile.record_depth_max)
    survey.check_stores(connection, contract)
    found = survey.survey(connection, contract, set(), limits, mark)
    summary = found.tally.unsettled_summary()
    covered, damaged = covering_backup(
        places,
        summary["records"],
        lambda: survey.unsettled_digests(connection, contract, found, limits, mark),
        mark,
    )
    return {
        "counted": True,
        "why_not_counted": None,
        "records": summary["records"],
        "money": summary["money"],
        "odd_amounts": sum(found.tally.odd.values()),
        "unreadable": found.odd_count,
        "quarantined": rows.count_quarantined(connection),
        "backup": covered,
        "damaged_backups": damaged,
    }


def covering_backup(
    places: Places,
    records: int,
    digests: Callable[[], Iterator[bytes]],
    mark: Callable[..., None],
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest verified backup with exactly the unsettled records of now, else the newest
    verified one and how it differs; and the names of the damaged ones met on the way."""
    newest: dict[str, Any] | None = None
    damaged: list[str] = []
    for _, _, path in reversed(backup_folder.backup_files(places.backups)):
        try:
            info = backup_reader.read_info(path)
            if newest is not None and info.header["unsettled"]["records"] != records:
                continue
            lost = restore.losses(digests(), backup_reader.unsettled_entries(path))
            exact = not any(lost.values())
            if newest is not None and not exact:
                continue
            backup_reader.verify(path, mark)
        except quiet.NotNow:
            raise
        except BackupCorrupt:
            damaged.append(os.path.basename(path))
            continue
        except AgentError:
            continue  # deleted, or not for this user to read
        found = _known(info, True, exact, lost)
        if exact:
            return found, damaged
        newest = found
    return newest, damaged


def newest_backup(places: Places) -> dict[str, Any] | None:
    """The newest backup whose header can be read, compared with nothing and not read whole."""
    try:
        for _, _, path in reversed(backup_folder.backup_files(places.backups)):
            try:
                return _known(backup_reader.read_info(path), False, None, {})
            except AgentError:
                continue
    except AgentError:
        pass
    return None


def _known(
    info: backup_reader.BackupInfo, verified: bool, exact: bool | None, lost: dict[str, int]
) -> dict[str, Any]:
    return {
        "name": os.path.basename(info.path),
        "version": info.schema_version,
        "unsettled": info.header["unsettled"],
        "verified": verified,
        "exact": exact,
        **{word: lost.get(word) for word in restore.LOSSES},
    }


def backup_sentence(money: dict[str, Any], version: int | None) -> str:
    """Where the unsettled records of now are besides, in words."""
    known, records = money["backup"], money["records"]
    if known is None:
        return "there is no backup that can be used" if records else "no backup is there yet"
    name = known["name"]
    if known["exact"]:
        return f"all of them are in the verified backup {name}"
    if not known["verified"]:
        kept = known["unsettled"].get("records")
        return f"the newest backup, {name}, holds {kept} unsettled records"
    if not known["newer"] and known["version"] != version:
        return (
            f"all of them are in the verified backup {name}, {known['changed']} of them as they "
            f"were at schema {known['version']}"
        )
    absent = known["newer"] + known["changed"]
    if not absent:
        return f"all of them are in the verified backup {name}, and {known['gone']} settled since"
    return (
        f"{absent} of them are not in the newest verified backup, {name} "
        f"({known['newer']} newer, {known['changed']} changed since)"
    )
