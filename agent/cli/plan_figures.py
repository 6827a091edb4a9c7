"""What a plan takes, reckoned from one reading of pos.db: batches, bytes written, time.

Estimates, all of them: factors measured on a sample terminal, times what the records at hand gave.
"""

from __future__ import annotations

from time import process_time_ns

from agent.ground.digest import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.plan_reading import Reading
    from agent.core.plan import Pass, Plan
    from agent.core.profile import Profile

# A whole upgrade against the steps alone, in processor time, measured on 100,000 records: each
# record is decoded again for the survey and the proof, found in SQLite and written back.
RECORD_FACTOR = 3
# Bytes written per byte that a pass changes: journal and file, pages that two batches share, pages
# that split; measured on 100,000 records.
PASS_FACTOR = 2.5
# The file is read for its digest, the copy, the backup, their comparison, and the seal.
FILE_READS = 6


def scaled(reading: Reading, name: str, count: int) -> int:
    """A count among the sampled records of a store as one of all its records."""
    tried = reading.sampled[name] + reading.left[name]
    readable = reading.tally.records[name] - reading.unreadable[name]
    return -(-count * readable // max(tried, 1))


def left_behind(loaded: Plan, reading: Reading) -> dict[str, int]:
    """How many records of each store a run would leave as they are: those that cannot be read, and
    those that the steps could not do, reckoned from the sample."""
    found = {}
    for name in sorted(loaded.stores()):
        unreadable = reading.unreadable.get(name, 0) if name not in reading.judged else 0
        count = scaled(reading, name, reading.left[name]) if reading.left.get(name) else 0
        if unreadable + count:
            found[name] = unreadable + count
    return found


def undo(loaded: Plan, reading: Reading) -> dict[str, Any]:
    """What the way back will need: rows and bytes that stay in pos.db, and which versions cannot be
    gone back behind."""
    stores = [name for name in loaded.stores() if reading.sampled.get(name)]
    return {
        "rows_estimate": sum(scaled(reading, n, reading.undo_rows[n]) for n in stores),
        "bytes_estimate": sum(scaled(reading, n, reading.undo_bytes[n]) for n in stores),
        "not_behind": loaded.irreversible or None,
    }


def of_pass(a_pass: Pass, reading: Reading, profile: Profile) -> dict[str, Any]:
    """One pass as `plan` shows it."""
    name = a_pass.store
    if a_pass.kind == "sql":
        steps = [step.describe() for _, step in a_pass.steps]
        return {"store": None, "kind": "sql", "records": 0, "batches": 1, "steps": steps}
    records = reading.tally.records.get(name, 0) if a_pass.kind == "walk" else len(a_pass.keys)
    batches = 1
    if a_pass.kind == "walk":
        rows, size = profile.batch_rows_max, profile.batch_bytes_max
        grown = int(reading.bytes.get(name, 0) * _growth(reading, name))
        batches = max(1, -(-records // rows), -(-grown // size))
    return {
        "store": name,
        "kind": a_pass.kind,
        "records": records,
        "batches": batches,
        "steps": [step.describe() for _, step in a_pass.steps],
    }


def of_migration(version: int, loaded: Plan, passes: list[dict[str, Any]]) -> dict[str, int]:
    """The share of one migration in the passes; those that it shares count for each."""
    mine = [
        shown
        for a_pass, shown in zip(loaded.passes, passes)
        if any(of == version for of, _ in a_pass.steps)
    ]
    return {
        "records": sum(shown["records"] for shown in mine),
        "batches": sum(shown["batches"] for shown in mine),
    }


def flash_written(loaded: Plan, reading: Reading, size: int, backup_bound: int) -> int:
    """Copy, backup, and for each pass the pages of its store into the journal and home."""
    texts = sum(reading.bytes.values())
    written = size + backup_bound + int(PASS_FACTOR * undo(loaded, reading)["bytes_estimate"])
    for a_pass in loaded.passes:
        if a_pass.kind == "walk" and texts and a_pass.store in reading.bytes:
            share = reading.bytes[a_pass.store] / texts
            written += int(PASS_FACTOR * size * share * max(_growth(reading, a_pass.store), 1.0))
    return written


def time_ms(loaded: Plan, reading: Reading, pos: str, size: int) -> int | None:
    """Processor time in ms; None where no record of a store with records could be tried."""
    tally, ms = reading.tally, 0.0
    for name in loaded.stores():
        if reading.sampled.get(name):
            each = reading.sample_ms[name] / reading.sampled[name]
            ms += each * RECORD_FACTOR * tally.records[name]
        elif tally.records.get(name):
            return None
    window = min(size, 1 << 20)
    started = process_time_ns()
    digest = sha256()
    with open(pos, "rb", buffering=0) as file:
        digest.update(file.read(window) or b"")
    ms += (process_time_ns() - started) / 1e6 * FILE_READS * size / max(window, 1)
    return int(ms) + 1


def _growth(reading: Reading, name: str) -> float:
    """How much longer the sampled records became; 1.0 where none were tried."""
    return (
        reading.new_bytes[name] / reading.read_bytes[name] if reading.read_bytes.get(name) else 1.0
    )
