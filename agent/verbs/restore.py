"""A backup becomes the successor: what would be lost is counted first, counters never go back."""

from __future__ import annotations

import os

from agent.core.steps import field
from agent.core.stores import Contract
from agent.core.tally import difference, is_tally
from agent.edges import database
from agent.edges.database import SQLITE_ERRORS, begin, commit, refused_by_sqlite
from agent.ground.codec import decode, encode
from agent.ground.errors import BackupCorrupt, UsageError, ValidationError
from agent.ground.words import nearest
from agent.verbs import backup_folder, backup_reader
from agent.verbs.reading import ROWS_PER_MARK, records_of
from agent.verbs.survey import is_reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.verbs.backup_reader import BackupInfo
    from agent.verbs.survey import Survey

LOSSES = ("newer", "changed", "gone")  # of unsettled records, by their digests
CONSENTS = (*LOSSES, "settled")


def summary_of(info: BackupInfo) -> dict[str, Any]:
    """What `backups` tells of one file."""
    header = info.header
    return {
        "name": os.path.basename(info.path),
        "sequence": info.sequence,
        "version": info.schema_version,
        "size_bytes": info.size,
        "image_bytes": header["image_bytes"],
        "sha256": info.sha256,
        "made_ms": header["made_ms"],
        "clock_trusted": header["clock_trusted"],
        "unsettled": header["unsettled"],
    }


def reference_of(info: BackupInfo) -> dict[str, Any]:
    """By what a run row knows its backup."""
    return {"name": os.path.basename(info.path), "sha256": info.sha256}


def find_backup(folder: str, wanted: str) -> str:
    """The path of a backup by its name, by its sequence number, or "latest"."""
    files = backup_folder.backup_files(folder)
    if not files:
        raise UsageError(f"there is no backup in {folder}")
    if wanted == "latest":
        return files[-1][2]
    for sequence, _, path in files:
        if wanted == os.path.basename(path) or wanted.lstrip("0") == str(sequence):
            return path
    names = [os.path.basename(path) for _, _, path in files]
    raise UsageError(f'there is no backup "{wanted}"; did you mean {nearest(wanted, names)}?')


def losses(current: Iterable[bytes], kept: Iterable[bytes]) -> dict[str, int]:
    """How the unsettled records of pos.db differ from a backup's, by count.

    `newer`: only in pos.db, a restore would lose them. `changed`: in both with another value.
    `gone`: only in the backup, settled or removed since; a restore would bring them back. Both
    sides come sorted, and one entry of each is in memory at a time.
    """
    count = dict.fromkeys(LOSSES, 0)
    left, right = iter(current), iter(kept)
    here, there = next(left, None), next(right, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[:16] < there[:16]):
            count["newer"] += 1
            here = next(left, None)
        elif here is None or there[:16] < here[:16]:
            count["gone"] += 1
            there = next(right, None)
        else:
            count["changed"] += here != there
            here, there = next(left, None), next(right, None)
    return count


def parse_discard(text: str) -> dict[str, int] | str:
    """`--discard` as typed: "newer=2,gone=1" or "unknown". Raises UsageError."""
    if text == "unknown":
        return text
    counts = dict.fromkeys(CONSENTS, 0)
    parts = text.split(",")
    for part in parts:
        word, _, number = part.partition("=")
        if [other.partition("=")[0] for other in parts].count(word) > 1:
            raise UsageError(f'--discard: "{word}" stands twice')
        if word not in CONSENTS:
            raise UsageError(
                f'--discard: "{word}" is none of {", ".join(CONSENTS)}, unknown; '
                f'did you mean "{nearest(word, CONSENTS)}"?'
            )
        if not (number.isascii() and number.isdigit() and len(number) <= 9):
            raise UsageError(f"--discard: {word} needs a count, as in {word}=2")
        counts[word] = int(number)
    return counts


def forgotten(
    current: Connection,
    image: Connection,
    contract: Contract,
    kept: Contract,
    limits: tuple[int, int],
    mark: Callable[[str, int], None],
) -> int:
    """How many settled sales of pos.db have no record in a backup's image, by store and key: a
    restore would forget them. `kept` are the rules at the image's schema.

    Each is looked up. A difference of two counts would let a sale that was deleted or pruned since
    make up for one that was made. One record is in memory at a time.
    """
    count = done = 0
    for name, store in contract.stores.items():
        if not store.amount and not contract.has_left(name):
            continue
        is_kept = _finder(image, name) if name in kept.stores else None
        for key, value, record, reason in records_of(current, name, False, limits):
            done += 1
            if done % ROWS_PER_MARK == 0:
                mark(name, done)
            if reason:
                # Where records may be unsettled it was counted as one of these.
                is_sale = bool(store.amount) and not store.rules and type(key) is str
            else:
                rules = contract.rules_of(store, key, value)
                settled = rules.unsettled_rule(key, record) is None
                is_sale = settled and bool(rules.sales(record, None))
            if is_sale and (is_kept is None or not is_kept(key)):
                count += 1
    return count


def _finder(image: Connection, store: str) -> Callable[[str], bool]:
    """How to tell whether a record of exactly this key is in a store of the image.

    The first comparison finds it by the primary key, whatever rules of order the column has; the
    second is by bytes, also for a text that is not UTF-8.
    """
    text = "CAST(? AS TEXT)"
    sql = f"SELECT 1 FROM {database.quoted(store)} WHERE key = {text} "
    sql += f"AND key = {text} COLLATE BINARY"

    def is_there(key: str) -> bool:
        name = key.encode("utf-8", "surrogateescape")
        try:
            return image.execute(sql, (name, name)).fetchone() is not None
        except SQLITE_ERRORS as error:
            raise refused_by_sqlite(error, "looking for a sale in the backup") from error

    return is_there


def check_figures(info: BackupInfo, contract: Contract) -> None:
    """Refuse a backup whose header holds figures that no agent wrote. Raises BackupCorrupt."""
    counters = info.header.get("counters", {})
    if not is_tally(info.header["tally"], contract.stores):
        raise BackupCorrupt("the backup's header does not count the stores")
    if type(counters) is not dict or not all(is_reading(value) for value in counters.values()):
        raise BackupCorrupt("the backup's header holds impossible counters")


def lift_counters(
    connection: Connection, contract: Contract, known: dict[str, int]
) -> dict[str, list[int]]:
    """Set each counter in a successor to the highest number known to be used, in one commit.

    Answers name -> [restored value, lifted value] of those that rose. A counter whose record is
    not there or is no integer is left alone.
    """
    lifted: dict[str, list[int]] = {}
    try:
        begin(connection)
        for counter in contract.counters:
            store = database.quoted(counter.store)
            row = connection.execute(
                f"SELECT value FROM {store} WHERE key = ?", (counter.key,)
            ).fetchone()
            if row is None or counter.name not in known:
                continue
            try:
                record = decode(row[0])
            except (ValueError, TypeError):
                continue  # the application cannot read it either
            value = field(record, counter.field)
            if type(value) is not int:
                continue
            higher = counter.higher(value, known[counter.name])
            if higher != value:
                place = record
                for part in counter.field[:-1]:
                    place = place[part]
                place[counter.field[-1]] = higher
                connection.execute(
                    f"UPDATE {store} SET value = ? WHERE key = ?", (encode(record), counter.key)
                )
                lifted[counter.name] = [value, higher]
        commit(connection)
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "lifting the counters") from error
    return lifted


def highest(contract: Contract, *known: dict[str, int]) -> dict[str, int]:
    """The later reading of each counter among several sources."""
    best: dict[str, int] = {}
    for readings in known:
        for counter in contract.counters:
            if counter.name in readings:
                value = readings[counter.name]
                best[counter.name] = (
                    counter.higher(best[counter.name], value) if counter.name in best else value
                )
    return best


def prove_restored(
    new: Connection, info: BackupInfo, found: Survey, digests: Iterable[bytes]
) -> None:
    """The successor holds exactly the backup's unsettled records, counts and sums; it is sound.

    Raises ValidationError.
    """
    lost = losses(digests, backup_reader.unsettled_entries(info.path))
    if any(lost.values()):
        raise ValidationError(f"the restored file does not equal the backup: {lost}")
    differs = difference(info.header["tally"], found.tally.as_json())
    if differs:
        raise ValidationError(f"the restored file does not equal the backup: {differs}")
    try:
        answer = new.execute("PRAGMA quick_check(1)").fetchone()[0]
        version = new.execute("PRAGMA user_version").fetchone()[0]
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "proving the restored file") from error
    if answer != "ok" or version != info.schema_version:
        raise ValidationError(f"the restored file is not sound: {answer}, version {version}")
