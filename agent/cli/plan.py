"""`plan`: what an upgrade would do, need and take, and what it would be refused for.

Nothing is changed: pos.db is read as any other client reads it, or, where nobody has it open, as
the plain file it is; it is never recovered and no file is made. What is worked out from a sample is
called an estimate. All of it happens in a child, because the authors' files are executed.
"""

from __future__ import annotations

import os

from agent.cli import plan_figures as figures
from agent.cli.output import show
from agent.cli.plan_lines import lines_of
from agent.cli.plan_reading import Reading
from agent.core.plan_name import plan_name
from agent.edges import agentlock, clock, database, flash, quiet
from agent.edges.config import places_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import (
    AgentError,
    Busy,
    NeedsTechnician,
    SchemaTooNew,
    Unsettled,
    ValidationError,
    revive,
)
from agent.service.apart import apart
from agent.verbs import (
    backup_bound,
    backup_folder,
    build,
    quota,
    rows,
    schema,
    survey,
    switch,
)
from agent.worker.start import missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

    from agent.cli.arguments import Command
    from agent.core.plan import Plan
    from agent.core.stores import Contract
    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.state import Diary
    from agent.service.apart import Mark

# File systems without hard links, where a switch cannot keep the old file.
NO_LINKS = ("vfat", "msdos", "exfat")


def plan(command: Command, config: Config) -> int:
    """Show the plan. The exit code is that of the first refusal that a run would meet, else 0."""
    result = apart(config, lambda mark: plan_of(config, mark))
    show(result, lines_of(result), command.json)
    refusals = result["refusals"]
    return revive(refusals[0]).exit_code if refusals else 0


def plan_of(config: Config, mark: Mark) -> dict[str, Any]:
    """The plan as plain values; docs/json-output.md names the keys. Runs the authors' code."""
    planner = _Planner(config, mark)
    if agentlock.run_is_on(planner.places.lock):
        raise Busy("a run is on, and the data cannot be read meanwhile; `status` tells how far")
    try:
        planner.work()
    except AgentError as error:
        planner.refuse(error)
    except OSError as error:
        planner.refuse(flash.refused(error, "looking at the terminal"))
    except database.SQLITE_ERRORS as error:
        planner.unread("pos.db", error)
    return planner.result


class _Planner:
    """Fills `result` in the order in which a run meets things, as far as it gets."""

    def __init__(self, config: Config, mark: Mark) -> None:
        self.config = config
        self.mark = mark
        self.profile = config.profile
        self.places: Places = places_of(config)
        self.result: dict[str, Any] = {
            "plan": None,
            "from_version": None,
            "to_version": None,
            "migrations": [],
            "passes": [],
            "undo": None,
            "left_behind": {},
            "unsettled": None,
            "unreadable": {},
            "space": None,
            "flash_written_bytes_estimate": None,
            "time_ms_estimate": None,
            "way_back": None,
            "refusals": [],
            "notes": [],
        }

    def refuse(self, error: AgentError, once: bool = False) -> None:
        """Note what a run would be refused for; `once`: unless the same code is there already."""
        refusals = self.result["refusals"]
        if not once or not any(r["code"] == error.code for r in refusals):
            refusals.append(error.as_json())

    def unread(self, what: str, error: Exception) -> None:
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
        connection = quiet.open_quietly(places.pos, header.wal_mode, self.note)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            result["from_version"] = version
            if 0 <= version <= files.head:
                digest = files.digest(version)
                result["plan"] = plan_name(version, files.head, digest, self.profile)
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
            self.mark("loading the migrations")
            rows.check_format(connection)
            applied = rows.read_applied(connection)
            left = [row.version for row in rows.quarantined(connection).rows()]
            loaded = files.load(version, min(left, default=None))
            loaded.bind(clock.wall_ms(), self.config.device_id or "unknown", applied)
            result["migrations"] = [_migration(m) for m in loaded.migrations]
            for name in files.edited(applied):
                self.note(f"{name} was edited after this terminal applied it")
            self._given_up(loaded)
            self._try(lambda: quota.check_place(places, self.profile.unproven_filesystem))
            contract = rows.contract_at(connection, files.contracts, version)
            survey.check_stores(connection, contract)
            build.check_writable(connection, loaded.stores())
            self._rehearse(connection, loaded)
            reading = self._read(connection, loaded, contract, files)
        finally:
            connection.close()
        result["unsettled"] = reading.tally.unsettled_summary()
        result["unreadable"] = {name: n for name, n in reading.unreadable.items() if n}
        result["passes"] = [
            figures.of_pass(a_pass, reading, self.profile) for a_pass in loaded.passes
        ]
        for migration in result["migrations"]:
            migration.update(figures.of_migration(migration["version"], loaded, result["passes"]))
        result["undo"] = figures.undo(loaded, reading)
        result["left_behind"] = figures.left_behind(loaded, reading)
        self._guard(reading)
        self._space(loaded, reading)
        self._way_back()

    def _rehearse(self, connection: Connection, loaded: Plan) -> None:
        try:
            schema.rehearse(connection, loaded)
        except AgentError as error:
            self.refuse(error)

    def _try(self, check: Callable[[], None]) -> None:
        """A check whose refusal does not hide what comes after it."""
        try:
            check()
        except AgentError as error:
            self.refuse(error)

    def _given_up(self, loaded: Plan) -> None:
        """Whether a boot would leave this plan alone; a diary that cannot be read says nothing."""

        def read(diary: Diary) -> str:
            return diary.given_up().get(loaded.digest, "")

        try:
            why = quiet.read_diary(os.path.join(self.config.state_dir, "agent.db"), read, "")
        except AgentError:
            why = ""
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

    def _read(
        self, connection: Connection, loaded: Plan, contract: Contract, files: MigrationFiles
    ) -> Reading:
        reading = Reading(self.config, loaded, contract, files.contracts, self.refuse, self.mark)
        for name in contract.stores:
            try:
                reading.read(connection, name)
            except database.SQLITE_ERRORS as error:
                self.unread(name, error)
        return reading

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
        places.backups = quota.existing_folder(places.backups)
        freed = self._freed_first()
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
        self.result["flash_written_bytes_estimate"] = figures.flash_written(
            loaded, reading, size, bound
        )
        time_ms = figures.time_ms(loaded, reading, pos, size)
        self.result["time_ms_estimate"] = time_ms
        if time_ms is None:
            self.note("no estimate of the time: no record could be tried")
        else:
            self.note(
                "the time is the processor's; how fast this flash takes writes is not measured"
            )

    def _freed_first(self) -> int:
        """Bytes that a run gives back before it needs any: an earlier successor, backups beyond the
        profile's number, and where space is short the file kept from before the last switch."""
        places = self.places
        files = [
            path for _, _, path in backup_folder.backup_files(quota.existing_folder(places.backups))
        ]
        surplus = files[: -self.profile.backup_count]
        old = [places.next + suffix for suffix in ("", *database.SIDE_FILES)]
        if os.path.lexists(places.next):
            self.note("an earlier attempt left its work; a run continues it, or deletes it")
        if os.path.exists(places.prev):
            old.append(places.prev)
        return sum(os.stat(path).st_size for path in (*surplus, *old) if os.path.isfile(path))

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
        "reversible": migration.reversible,
        "quarantine": migration.quarantine,
        "min_reader": migration.min_reader,
    }
