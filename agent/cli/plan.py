"""`plan`: what an upgrade would do, need and take, and what it would be refused for.

Nothing is changed: pos.db is read as any other client reads it, or, where nobody has it open, as
the plain file it is; it is never recovered and no file is made. What is worked out from a sample is
called an estimate. The authors' files are executed here, in this process.
"""

from __future__ import annotations

import os
from time import process_time_ns

from agent.cli.output import show
from agent.cli.plan_lines import lines_of
from agent.cli.quiet import given_up_in, open_quietly, rows_in_slices
from agent.core.steps import shown
from agent.edges import clock, database, flash
from agent.edges.config import places_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.codec import decode, encode
from agent.ground.digest import sha256
from agent.ground.errors import (
    AgentError,
    NeedsTechnician,
    SchemaTooNew,
    Unsettled,
    ValidationError,
    revive,
)
from agent.verbs import backup_bound, backup_folder, build, quota, survey, switch
from agent.worker.start import missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.cli.arguments import Command
    from agent.core.plan import Pass, Plan
    from agent.core.stores import Contract, Tally
    from agent.core.terminal import Places
    from agent.edges.config import Config

SAMPLE_RECORDS = 200  # per store, decoded, migrated and encoded to measure and to try the steps
UNREADABLE_SHOWN = 5
# A whole upgrade against the steps alone, in processor time, measured on 100,000 records: each
# record is decoded again for the survey and the proof, found in SQLite and written back.
RECORD_FACTOR = 3
# Bytes written per byte that a pass changes: journal and file, pages that two batches share, pages
# that split; measured on 100,000 records.
PASS_FACTOR = 2.5
# The file is read for its digest, the copy, the backup, their comparison, and the seal.
FILE_READS = 6
# File systems without hard links, where a switch cannot keep the old file.
NO_LINKS = ("vfat", "msdos", "exfat")


class Reading:
    """What one reading of pos.db found, store by store."""

    __slots__ = ("bytes", "new_bytes", "read", "sample_ms", "sampled", "tally", "unreadable")

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.bytes: dict[str, int] = {}
        self.unreadable: dict[str, int] = {}
        self.sampled: dict[str, int] = {}
        self.read: dict[str, int] = {}  # bytes of the sampled records before
        self.new_bytes: dict[str, int] = {}  # and after the plan
        self.sample_ms: dict[str, float] = {}


def plan(command: Command, config: Config) -> int:
    """Show the plan. The exit code is that of the first refusal that a run would meet, else 0."""
    result = plan_of(config)
    show(result, lines_of(result), command.json)
    refusals = result["refusals"]
    return revive(refusals[0]).exit_code if refusals else 0


def plan_of(config: Config) -> dict[str, Any]:
    """The plan as plain values; docs/json-output.md names the keys."""
    planner = _Planner(config)
    try:
        planner.work()
    except AgentError as error:
        planner.refuse(error)
    except OSError as error:
        planner.refuse(flash.refused(error, "looking at the terminal"))
    except database.SqliteError as error:
        planner.unread("pos.db", error)
    return planner.result


class _Planner:
    """Fills `result` in the order in which a run meets things, as far as it gets."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.profile = config.profile
        self.places: Places = places_of(config)
        self.result: dict[str, Any] = {
            "from_version": None,
            "to_version": None,
            "migrations": [],
            "passes": [],
            "unsettled": None,
            "unreadable": {},
            "space": None,
            "flash_written_bytes_estimate": None,
            "time_ms_estimate": None,
            "way_back": None,
            "refusals": [],
            "notes": [],
        }

    def refuse(self, error: AgentError) -> None:
        self.result["refusals"].append(error.as_json())

    def unread(self, what: str, error: database.SqliteError) -> None:
        """SQLite could not read on. What is not recovered yet says nothing of what a run meets."""
        if "UTF-8" in str(error):
            self.refuse(ValidationError(f"{what} holds a record that is not UTF-8 text"))
        elif database.left_to_recover(self.places.pos):
            self.note(f"{what} cannot be read before its recovery; its figures are not known")
        else:
            self.refuse(database.refused_by_sqlite(error, f"reading {what}"))

    def note(self, text: str) -> None:
        self.result["notes"].append(text)

    def work(self) -> None:
        result, places = self.result, self.places
        files = MigrationFiles(self.config.migrations_dir)
        result["to_version"] = files.head
        if not os.path.lexists(places.pos):
            raise missing(places)
        header = database.read_header(places.pos)
        if header is None:
            raise NeedsTechnician(
                f"{places.pos} is not an SQLite file: it is empty, damaged or encrypted; "
                "restore a backup",
                cause="UNREADABLE",
            )
        connection = open_quietly(places.pos, header.wal_mode, self.note)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            result["from_version"] = version
            if version > files.head:
                raise SchemaTooNew(
                    f"pos.db has schema {version} and the installed migrations end at {files.head}"
                    "; install the software that belongs to this data",
                    version=version,
                    target=files.head,
                )
            if version == files.head:
                self.note(f"nothing to do: the data is at schema {version}")
                return
            loaded = files.load(version)
            result["migrations"] = [_migration(m) for m in loaded.migrations]
            self._given_up(loaded)
            self._try(lambda: quota.check_place(places, self.profile.unproven_filesystem))
            contract = files.contracts.at(version)
            survey.check_stores(connection, contract)
            build.check_writable(connection, loaded.stores())
            reading = self._read(connection, loaded, contract)
        finally:
            connection.close()
        result["unsettled"] = reading.tally.unsettled_summary()
        result["unreadable"] = {name: n for name, n in reading.unreadable.items() if n}
        result["passes"] = [self._pass(p, reading) for p in loaded.passes]
        self._guard(reading)
        self._space(loaded, reading)
        self._way_back()

    def _try(self, check: Callable[[], None]) -> None:
        """A check whose refusal does not hide what comes after it."""
        try:
            check()
        except AgentError as error:
            self.refuse(error)

    def _given_up(self, loaded: Plan) -> None:
        """Whether a boot would leave this plan alone; the diary is only read."""
        why = given_up_in(os.path.join(self.config.state_dir, "agent.db"), loaded.digest)
        seal = switch.read_seal(self.places)
        if not why and seal is not None and loaded.digest in seal.given_up:
            why = "as the last switch noted"
        if why:
            self.refuse(
                AgentError(
                    f"this plan was given up ({why}); a boot leaves the old data in use; "
                    "`posagent migrate` tries again",
                    cause="GIVEN_UP",
                    plan=loaded.digest,
                )
            )

    # Reading

    def _read(self, connection: Connection, loaded: Plan, contract: Contract) -> Reading:
        from agent.core.stores import Tally

        reading = Reading(Tally())
        for name in contract.stores:
            reading.tally.start(name)
            try:
                self._read_store(connection, loaded, contract, name, reading)
            except database.SqliteError as error:
                self.unread(name, error)
        return reading

    def _read_store(
        self, connection: Connection, loaded: Plan, contract: Contract, name: str, reading: Reading
    ) -> None:
        store = contract.stores[name]
        touched = name in loaded.stores()
        reading.bytes[name] = reading.unreadable[name] = 0
        reading.sampled[name] = reading.read[name] = reading.new_bytes[name] = 0
        reading.sample_ms[name] = 0.0
        contexts = loaded.contexts(clock.wall_ms(), self.config.device_id or "unknown")
        steps = [p for p in loaded.passes if p.store == name and p.kind != "move"]
        stride = 0
        for number, (key, value) in enumerate(rows_in_slices(connection, name)):
            reason = survey.why_unreadable(key, value, self.profile.record_bytes_max)
            record = None
            if not reason:
                try:
                    record = decode(value, self.profile.record_depth_max)
                except ValueError as error:
                    reason = str(error)
            if reason:
                self._unreadable(name, key, reason, touched, reading)
                reading.tally.add_unreadable(store)
                continue
            reading.bytes[name] += len(value)
            reading.tally.add(store, key, record)
            # Every record at first, then ever fewer: the sample is spread over the whole store.
            if touched and number >= stride and reading.sampled[name] < SAMPLE_RECORDS:
                stride = number + 1 + number // 16
                self._sample(steps, contexts, name, key, value, reading)

    def _unreadable(
        self, name: str, key: Any, reason: str, touched: bool, reading: Reading
    ) -> None:
        reading.unreadable[name] += 1
        if not touched or reading.unreadable[name] > UNREADABLE_SHOWN:
            return  # what no step touches is kept as it is; `unreadable` counts it
        error = ValidationError(
            f"{name}/{shown(key)} cannot be migrated: {reason}; correct or settle it, "
            "then start again",
            store=name,
            key=shown(key),
        )
        self.refuse(error)

    def _sample(
        self,
        steps: list[Pass],
        contexts: Any,
        name: str,
        key: str,
        value: str,
        reading: Reading,
    ) -> None:
        """Migrate a copy of one record: what the steps take, what they make of its size, whether
        they can be done."""
        from agent.core.plan import run_pass

        started = process_time_ns()
        try:
            record = decode(value)
            for a_pass in steps:
                run_pass(a_pass, key, record, contexts)
            text = encode(record)
        except ValidationError as error:
            if not any(r["code"] == error.code for r in self.result["refusals"]):
                self.refuse(error)
            return
        reading.sample_ms[name] += (process_time_ns() - started) / 1e6
        reading.sampled[name] += 1
        reading.read[name] += len(value)
        reading.new_bytes[name] += len(text)

    # Figures

    def _pass(self, a_pass: Pass, reading: Reading) -> dict[str, Any]:
        name = a_pass.store
        records = reading.tally.records.get(name, 0) if a_pass.kind == "walk" else len(a_pass.keys)
        batches = 1
        if a_pass.kind == "walk":
            rows, size = self.profile.batch_rows_max, self.profile.batch_bytes_max
            grown = int(reading.bytes.get(name, 0) * _growth(reading, name))
            batches = max(1, -(-records // rows), -(-grown // size))
        return {
            "store": name,
            "kind": a_pass.kind,
            "records": records,
            "batches": batches,
            "steps": [step.describe() for _, step in a_pass.steps],
        }

    def _guard(self, reading: Reading) -> None:
        unsettled = reading.tally.unsettled_summary()
        if self.profile.unsettled_guard == "refuse" and unsettled["records"]:
            self.refuse(
                Unsettled(
                    f"there are {unsettled['records']} unsettled records and this terminal's "
                    "profile says to settle first",
                    **unsettled,
                )
            )

    def _space(self, loaded: Plan, reading: Reading) -> None:
        """Peak need against what is free, flash to be written, time."""
        pos, profile = self.places.pos, self.profile
        size = os.stat(pos).st_size
        self._try(lambda: quota.check_size(size, profile))
        try:
            left_out = backup_bound.free_leaf_pages(pos)
        except ValidationError as error:
            self.note(f"{error.message}; figures reckon with every page")
            left_out = bytearray()
        bound = backup_bound.bound_bytes(pos, profile.backup_level, left_out, 0)
        need = quota.need_for(size, bound, profile)
        places = places_of(self.config)
        places.backups = _existing(places.backups)
        freed = self._freed_first(size)
        needed, free = quota.shortage(places, need)
        space = {
            "file_bytes": size,
            **need.as_json(),
            "free_bytes": flash.free_bytes(places.folder),
            "freed_first_bytes": freed,
        }
        self.result["space"] = space
        if needed > free + freed:
            self._try(lambda: quota.check_space(places, need))
        self.result["flash_written_bytes_estimate"] = _written(loaded, reading, size, bound)
        self._time(loaded, reading, size)

    def _freed_first(self, size: int) -> int:
        """Bytes that a run gives back before it needs any: an earlier successor, backups beyond the
        profile's number, and where space is short the file kept from before the last switch."""
        places = self.places
        files = [path for _, _, path in backup_folder.backup_files(_existing(places.backups))]
        surplus = files[: -self.profile.backup_count]
        old = [places.next + suffix for suffix in ("", *database.SIDE_FILES)]
        if os.path.lexists(places.next):
            self.note("an earlier attempt left its work; a run continues it, or deletes it")
        if os.path.exists(places.prev):
            old.append(places.prev)
        return sum(os.stat(path).st_size for path in (*surplus, *old) if os.path.isfile(path))

    def _time(self, loaded: Plan, reading: Reading, size: int) -> None:
        tally, ms = reading.tally, 0.0
        for name in loaded.stores():
            if reading.sampled.get(name):
                each = reading.sample_ms[name] / reading.sampled[name]
                ms += each * RECORD_FACTOR * tally.records[name]
            elif tally.records.get(name):
                self.note("no estimate of the time: no record could be tried")
                return
        window = min(size, 1 << 20)
        started = process_time_ns()
        digest = sha256()
        with open(self.places.pos, "rb", buffering=0) as file:
            digest.update(file.read(window) or b"")
        ms += (process_time_ns() - started) / 1e6 * FILE_READS * size / max(window, 1)
        self.result["time_ms_estimate"] = int(ms) + 1
        self.note("the time is the processor's; how fast this flash takes writes is not measured")

    def _way_back(self) -> None:
        kind = flash.file_system_of(self.places.pos)[0]
        if kind in quota.PROVEN_FILE_SYSTEMS:
            self.result["way_back"] = True
        elif kind in NO_LINKS:
            self.result["way_back"] = False


def _migration(migration: Any) -> dict[str, Any]:
    return {
        "version": migration.version,
        "name": migration.name,
        "file": migration.file,
        "steps": [
            {"does": step.describe(), "reversible": step.reversible} for step in migration.steps
        ],
        "reversible": all(step.reversible for step in migration.steps),
    }


def _growth(reading: Reading, name: str) -> float:
    """How much longer the sampled records became; 1.0 where none were tried."""
    return reading.new_bytes[name] / reading.read[name] if reading.read.get(name) else 1.0


def _written(loaded: Plan, reading: Reading, size: int, backup_bound: int) -> int:
    """Copy, backup, and for each pass the pages of its store into the journal and home."""
    texts = sum(reading.bytes.values())
    written = size + backup_bound
    for a_pass in loaded.passes:
        if a_pass.kind == "walk" and texts and a_pass.store in reading.bytes:
            share = reading.bytes[a_pass.store] / texts
            written += int(PASS_FACTOR * size * share * max(_growth(reading, a_pass.store), 1.0))
    return written


def _existing(folder: str) -> str:
    """The folder, or the nearest one above it that is there already."""
    while not os.path.isdir(folder) and folder not in ("/", ""):
        folder = os.path.dirname(folder)
    return folder
