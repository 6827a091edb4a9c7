"""One run, from the look at the flash to the switch, in the order it happens.

Runs in a forked child, in plain synchronous order, and may die at any instant: whatever it leaves
is what core/decide expects to find. It tells its supervisor over a pipe and writes no diary.
"""

from __future__ import annotations

import os

from agent.core import decide, states
from agent.core.decide import OnFlash
from agent.core.terminal import Places, RunRow
from agent.edges import clock, database, flash, process
from agent.edges.database import Header
from agent.edges.migration_files import MigrationFiles
from agent.ground.codec import decode
from agent.ground.errors import (
    AgentError,
    BackupCorrupt,
    NeedsTechnician,
    SchemaTooNew,
    Unsettled,
)
from agent.verbs import backup, build, look, passes, prove, quota, restore, survey, switch
from agent.verbs.oldfile import hold_old_file, settle_old_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.plan import Pass, Plan
    from agent.core.profile import Profile
    from agent.core.stores import Contract
    from agent.edges.config import Config
    from agent.edges.filelock import FileLock
    from agent.verbs.desk import Desk
    from agent.verbs.look import Looked
    from agent.verbs.survey import Survey


class Job:
    """What a worker is asked to do, made by the supervisor before the fork.

    `kind` is "migrate", "restore", "backup" or "commit"; `asked` tells that a person asked for it,
    which lifts a plan's being given up.
    """

    __slots__ = (
        "agent_version",
        "asked",
        "attempts",
        "config",
        "discard",
        "given_up",
        "kind",
        "known_runs",
        "lock",
        "places",
        "restore_from",
        "run",
    )

    def __init__(self, kind: str, config: Config, places: Places, **given: Any) -> None:
        self.kind = kind
        self.config = config
        self.places = places
        self.asked: bool = given.get("asked", False)
        self.restore_from: str = given.get("restore_from", "")
        self.discard: Any = given.get("discard")
        self.agent_version: str = given.get("agent_version", "")
        self.attempts = 0
        self.given_up: dict[str, str] = {}
        self.known_runs: set[str] = set()
        self.run = ""
        self.lock: FileLock | None = None


def work(job: Job, desk: Desk) -> None:
    """Do the job and tell its end. AgentErrors are told; anything else ends the process."""
    run = Run(job, desk)
    try:
        result = run.do()
    except AgentError as error:
        try:
            run.leave()
        except (AgentError, OSError):
            pass  # what is left behind is a successor, which the next boot deletes
        held = isinstance(error, NeedsTechnician)
        desk.enter(states.HELD if held else states.FAILED)
        desk.tell(error=error.as_json(), plan=run.plan_digest)
        return
    late = bool(result.get("late_holders"))
    if late:
        process.let_go()
    desk.enter(states.HELD if late else states.DONE)
    desk.tell(result=result, plan=run.plan_digest)
    if late and job.lock is not None:
        hold_old_file(job.lock, desk)


class Run:
    """The state of one run in this process; everything durable is on flash instead."""

    def __init__(self, job: Job, desk: Desk) -> None:
        self.job = job
        self.desk = desk
        self.config = job.config
        self.places = job.places
        self.profile: Profile = job.config.profile
        self.plan_digest = ""
        self.writer: backup.BackupWriter | None = None
        self.successor: Connection | None = None
        self.source: Connection | None = None
        self.may_drop_next = False
        self.files: MigrationFiles

    def do(self) -> dict[str, Any]:
        """The whole job."""
        self.desk.enter(states.CHECKING)
        self.files = MigrationFiles(self.config.migrations_dir)
        try:
            header = database.recover(self.places.pos)
        except NeedsTechnician:
            if self.job.kind == "restore" and self.job.discard == "unknown":
                return self._restore_unread()
            raise
        looked, row = self._settle_flash()
        kind = self.job.kind
        if kind == "commit":
            return self._commit(looked)
        if kind == "backup":
            return self._backup(header)
        if kind == "restore":
            return self._restore(looked)
        return self._migrate(looked, row)

    # Looking and tidying

    def _settle_flash(self) -> tuple[Looked, decide.Row]:
        """Act on what an earlier run left until nothing is left to tidy."""
        mark = self.desk.marker("")
        while True:
            looked = look.look(
                self.places,
                self.files,
                self.profile,
                self.job.known_runs,
                self.job.given_up,
                self.job.asked,
                mark,
            )
            self.plan_digest = looked.plan
            row = decide.decide(looked.facts)
            if self.job.kind == "commit" and row.action == decide.COMMIT:
                return looked, row
            if row.action not in decide.LOOK_AGAIN:
                return looked, row
            self.desk.tell(found=row.mark, text=row.found)
            self._tidy(looked, row.action)

    def _tidy(self, looked: Looked, action: str) -> None:
        places = self.places
        if action == decide.UNLINK_TWIN:
            # Renaming a link onto itself "succeeds" and does nothing, so it must go first.
            switch.drop_prev(places)
        elif action == decide.WRITE_HISTORY:
            flash.sync_folder(places.folder)
            assert looked.row is not None
            history = self._history_of(looked.row)
            self.desk.ask(switched=history)
            self.job.known_runs.add(looked.row.run)
            if looked.seal is not None and not looked.seal.reported:
                looked.seal.reported = True
                switch.write_seal(places, looked.seal)
            if history["hold"]:
                self.job.given_up[history["hold"]] = "restored on request"
        elif action == decide.RETURN_WAL:
            assert looked.seal is not None
            restore_wal(places, looked.seal)
        elif action == decide.DROP_NEXT:
            switch.drop_next(places)
        elif action == decide.COMMIT:
            switch.drop_prev(places)
            self.desk.tell(committed=looked.row.run if looked.row else "")

    def _history_of(self, row: RunRow) -> dict[str, Any]:
        """What the diary is told of a finished run, all of it from the row inside the file."""
        migrated = row.kind == "migrate"
        return {
            "run": row.run,
            "kind": row.kind,
            "plan": row.plan,
            "from_version": row.from_version,
            "to_version": row.to_version,
            "at_ms": row.now,
            "clock_trusted": row.clock_trusted,
            "backup": row.backup,
            "before": row.before,
            "names": self.files.names[row.from_version : row.to_version] if migrated else [],
            # Data that a person brought back is not migrated forward again by the next boot.
            "hold": (
                self.files.digest(row.to_version)
                if not migrated and row.to_version < self.files.head
                else ""
            ),
        }

    # Migrating

    def _migrate(self, looked: Looked, row: decide.Row) -> dict[str, Any]:
        facts = looked.facts
        if row.action == decide.TOO_NEW:
            raise SchemaTooNew(
                f"pos.db has schema {facts.version} and the installed migrations end at "
                f"{facts.target}; install the software that belongs to this data",
                version=facts.version,
                target=facts.target,
            )
        if row.action == decide.GIVEN_UP:
            raise AgentError(
                f"the plan {facts.version} -> {facts.target} was given up "
                f"({self.job.given_up[looked.plan]}); the old data stays in use; "
                "`posagent migrate` tries again",
                cause="GIVEN_UP",
                plan=looked.plan,
            )
        if row.action == decide.IDLE:
            return self._nothing_to_do(looked)
        assert facts.version is not None
        plan = self.files.load(facts.version)
        contract = self.files.contracts.at(facts.version)
        quota.check_place(self.places, self.profile.unproven_filesystem)
        self.source = database.open_source(self.places.pos, self.profile.page_cache_bytes)
        survey.check_stores(self.source, contract)
        build.check_writable(self.source, plan.stores())
        if row.action == decide.RESUME and looked.next_row is not None:
            run_row = looked.next_row
            links = quota.probe(self.places)
        else:
            run_row, links = self._prepare(looked, plan, contract)
        self._run_batches(plan, run_row)
        before = run_row.before
        self._prove(plan, before, contract, run_row)
        return self._switch(run_row, links)

    def _prepare(self, looked: Looked, plan: Plan, contract: Contract) -> tuple[RunRow, bool]:
        """Checks, survey, backup and copy; ends with a successor that carries its run row."""
        places, profile = self.places, self.profile
        size = os.stat(places.pos).st_size
        quota.check_size(size, profile)
        left_out = self._make_room(size, looked)
        links = quota.probe(places)
        found = self._survey(contract, plan.stores(), size)
        tally = found.tally.as_json()
        if profile.unsettled_guard == "refuse" and any(tally["unsettled_records"].values()):
            raise Unsettled(
                "there are unsettled sales and this terminal's profile says to settle first",
                **found.tally.unsettled_summary(),
            )
        now, trusted = self._now(found, looked)
        device_id = self._device_id(contract)
        kept = self._reusable_backup(looked, plan)
        self.desk.enter(states.BUILDING if kept else states.BACKING_UP, size)
        self.may_drop_next = True
        fd = build.create_next(places)
        try:
            if kept is None:
                path = self._start_backup(looked.header, found, contract, now, trusted, left_out)
            source = build.copy_source(places, fd, self.writer, self.desk.marker("pos.db"))
            if self.writer is not None:
                self.writer.finish(*source)
                self.writer = None
                kept = backup.keep(path, self.desk.marker("backup"))
            self.desk.enter(states.BUILDING, size)
            self.desk.allow(size)
            build.settle_copy(places, fd)
        finally:
            os.close(fd)
        build.compare_copy(places, self.desk.marker("copy"))
        assert kept is not None
        self._prune_backups(kept.path)
        run_row = RunRow(
            kind="migrate",
            run=self.job.run,
            source_size=source[0],
            source_sha256=source[1],
            plan=plan.digest,
            from_version=plan.from_version,
            to_version=plan.to_version,
            now=now,
            clock_trusted=trusted,
            device_id=device_id,
            before=tally,
            counters=found.counters,
            backup={"name": os.path.basename(kept.path), "sha256": kept.sha256},
            wal=looked.header.wal_mode,
            app_reads=list(self.files.contracts.app_reads),
            state="open",
        )
        self.successor = self._open_successor()
        build.start_run(self.successor, run_row, plan.stores())
        return run_row, links

    def _make_room(self, size: int, looked: Looked) -> bytearray:
        """See that everything fits before anything is written; an older way back goes first."""
        places, profile = self.places, self.profile
        try:
            flash.make_folder(places.backups)
            backup.remove_unfinished(places.backups)
        except OSError as error:
            raise flash.refused(error, f"preparing {places.backups}") from error
        self._prune_backups("")
        left_out = backup.free_leaf_pages(places.pos)
        bound = backup.bound_bytes(places.pos, profile.backup_level, left_out, 0)
        need = quota.need_for(size, bound, profile)
        if quota.shortage(places, need)[0] and looked.facts.prev == "ours":
            switch.drop_prev(places)
        quota.check_space(places, need)
        return left_out

    def _survey(self, contract: Contract, judged: set[str], size: int) -> Survey:
        assert self.source is not None
        self.desk.allow(size)
        return survey.survey(
            self.source,
            contract,
            judged,
            self.profile.record_bytes_max,
            self.profile.record_depth_max,
            self.desk.mark,
        )

    def _now(self, found: Survey, looked: Looked) -> tuple[int, bool]:
        newest = found.newest_ms
        if looked.row is not None:
            newest = max(newest, looked.row.now)
        for _, _, path in backup.backup_files(self.places.backups):
            try:
                newest = max(newest, int(backup.read_info(path).header["made_ms"]))
            except (BackupCorrupt, AgentError):
                continue
        return clock.frozen_now(newest, clock.wall_ms())

    def _device_id(self, contract: Contract) -> str:
        """The terminal's identity as the application wrote it, else the configured one."""
        assert self.source is not None
        if contract.device_id_at is not None:
            store, key = contract.device_id_at
            found = self.source.execute(
                f"SELECT value FROM {database.quoted(store)} WHERE key = ?", (key,)
            ).fetchone()
            try:
                value = decode(found[0]) if found is not None else None
            except (ValueError, TypeError):
                value = None
            if isinstance(value, str) and value:
                return value
        return self.config.device_id or "unknown"

    def _reusable_backup(self, looked: Looked, plan: Plan) -> backup.BackupInfo | None:
        """The backup that an earlier attempt of this plan took of this very source, if whole."""
        mark = self.desk.marker("")
        for _, _, path in reversed(backup.backup_files(self.places.backups)):
            try:
                info = backup.read_info(path)
                if info.header.get("plan") != plan.digest:
                    continue
                source = info.end["source"]
                if (source["size"], source["sha256"]) == looked.identity(self.places, mark):
                    return backup.verify(path, mark)
            except (BackupCorrupt, AgentError):
                continue
        return None

    def _start_backup(
        self,
        header: Header,
        found: Survey,
        contract: Contract,
        now: int,
        trusted: bool,
        left_out: bytearray,
    ) -> str:
        """Open the backup's file and write its header and the unsettled digests."""
        places, profile = self.places, self.profile
        assert self.source is not None
        size = os.stat(places.pos).st_size
        sequence = backup.next_sequence(places.backups)
        path = os.path.join(places.backups, backup.backup_name(sequence, header.user_version))
        unsettled = found.tally.unsettled_summary()
        bound = backup.bound_bytes(places.pos, profile.backup_level, left_out, unsettled["records"])
        self.writer = backup.BackupWriter(
            path,
            {
                "sequence": sequence,
                "schema_version": header.user_version,
                "page_bytes": header.page_bytes,
                "image_bytes": size,
                "tally": found.tally.as_json(),
                "unsettled": unsettled,
                "counters": found.counters,
                "device_id": self._device_id(contract),
                "made_ms": now,
                "clock_trusted": trusted,
                "agent": self.job.agent_version,
                "plan": self.plan_digest or None,
            },
            profile.backup_level,
            bound,
            left_out,
        )
        for digest in survey.unsettled_digests(self.source, contract, found, self.desk.mark):
            self.writer.add_unsettled(digest)
        return path

    def _prune_backups(self, keep: str) -> None:
        """Delete the oldest beyond the profile's number; never the run's own, never the last."""
        files = [path for _, _, path in backup.backup_files(self.places.backups)]
        surplus = files[: -self.profile.backup_count]
        gone = [flash.delete(path) for path in surplus if path != keep]
        if gone:
            flash.sync_folder(self.places.backups)

    def _open_successor(self) -> Connection:
        size = os.stat(self.places.pos).st_size
        return database.open_successor(
            self.places.next,
            self.profile.page_cache_bytes,
            self.profile.journal_bytes_max,
            quota.need_for(size, 0, self.profile).successor,
        )

    def _run_batches(self, plan: Plan, run_row: RunRow) -> None:
        if run_row.state == "sealed":
            return  # an attempt was cut between its last commit and the switch: prove it again
        if self.successor is None:
            self.may_drop_next = True
            self.successor = self._open_successor()
        counts = run_row.before["records"]
        total = sum(counts.get(p.store, 0) for p in plan.passes if p.kind == "walk")
        self.desk.enter(states.MIGRATING, total)
        self.desk.tell(came_as_far_as=passes.read_cursor(self.successor).done)

        def on_batch(a_pass: Pass, cursor: passes.Cursor) -> None:
            self.desk.mark(a_pass.store, cursor.done)

        contexts = plan.contexts(run_row.now, run_row.device_id)
        passes.run_passes(self.successor, plan, contexts, self.profile, on_batch)
        self.desk.allow(os.stat(self.places.next).st_size)
        build.end_run(self.successor, self.places, run_row, self.files.checksums[: plan.to_version])
        self.successor = None

    def _prove(
        self, plan: Plan, before: dict[str, Any], contract: Contract, run_row: RunRow
    ) -> None:
        assert self.source is not None
        total = sum(before["records"].values())
        self.desk.enter(states.PROVING, total)
        self.desk.allow(os.stat(self.places.next).st_size)
        build.forget_pages(self.places.pos)
        build.sync_file(self.places.next)
        new = database.open_source(self.places.next, self.profile.page_cache_bytes)
        try:
            prove.prove_migration(
                self.source,
                new,
                plan,
                before,
                (contract, self.files.contracts.at(plan.to_version)),
                plan.contexts(run_row.now, run_row.device_id),
                passes.moves_of(self.source, plan),
                self.desk.mark,
            )
        finally:
            new.close()
        self.source.close()
        self.source = None

    # The switch and after

    def _switch(self, row: RunRow, links: bool) -> dict[str, Any]:
        """Seal, rename, history, and the old file's end."""
        places = self.places
        if self.source is not None:
            self.source.close()
            self.source = None
        self.desk.enter(states.SWITCHING, 3)
        size, digest = flash.digest_file(places.next, self.desk.marker("seal"))
        seal = switch.Seal(
            run=row.run,
            size=size,
            sha256=digest,
            prev_sha256=row.source_sha256,
            wal=row.wal,
            attempts=self.job.attempts,
            given_up=list(self.job.given_up),
            reported=links,
        )
        switch.write_seal(places, seal)
        self._set_foreign_prev_aside()
        self.desk.mark("sealed", 1)
        new_lock = switch.switch(places, links)
        self.may_drop_next = False
        self.desk.mark("renamed", 2)
        self.desk.ask(switched=self._history_of(row))
        if not seal.reported:
            seal.reported = True
            switch.write_seal(places, seal)
        holders = settle_old_file(self.job.lock, self.profile.deadline_ms, self.desk)
        if not holders and row.wal:
            restore_wal(places, seal)
        new_lock.close()
        return {
            "verdict": "OK",
            "run": row.run,
            "from_version": row.from_version,
            "to_version": row.to_version,
            "timestamp": row.now,
            "clock_trusted": row.clock_trusted,
            "records": sum(row.before["records"].values()),
            "unsettled": sum(row.before["unsettled_records"].values()),
            "backup": row.backup,
            "previous_kept": links,
            "late_holders": holders,
        }

    def _set_foreign_prev_aside(self) -> None:
        """A `.prev` that no seal of ours names is somebody's file: moved aside, never deleted."""
        places = self.places
        if not os.path.lexists(places.prev):
            return
        aside = places.prev + ".unknown"
        row = look.run_row_of(places.pos)
        ours = (
            row is not None
            and os.path.isfile(places.prev)
            and (flash.digest_file(places.prev) == (row.source_size, row.source_sha256))
        )
        if ours:
            return
        if os.path.lexists(aside):
            raise AgentError(
                f"{places.prev} and {aside} are not ours; move them away, then start again"
            )
        os.rename(places.prev, aside)
        flash.sync_folder(places.folder)

    def _nothing_to_do(self, looked: Looked) -> dict[str, Any]:
        facts = looked.facts
        foreign = not facts.sealed_here and facts.version != 0 and looked.row is None
        return {
            "verdict": "NOT_REQUIRED",
            "from_version": facts.version,
            "to_version": facts.version,
            "written_by_others": foreign,
            "foreign_previous": facts.prev == "foreign",
            "previous_kept": facts.prev == "ours",
        }

    # The other jobs

    def _commit(self, looked: Looked) -> dict[str, Any]:
        """Give up the way back to the old file, on request."""
        prev = looked.facts.prev
        if prev == "ours":
            switch.drop_prev(self.places)
        return {
            "verdict": "OK" if prev == "ours" else "NOT_REQUIRED",
            "committed": prev == "ours",
            "foreign_previous": prev == "foreign",
            "version": looked.facts.version,
        }

    def _backup(self, header: Header) -> dict[str, Any]:
        """One verified backup of pos.db as it is now."""
        places = self.places
        version = min(header.user_version, self.files.head)
        contract = self.files.contracts.at(version)
        self.plan_digest = ""
        self.source = database.open_source(places.pos, self.profile.page_cache_bytes)
        survey.check_stores(self.source, contract)
        size = os.stat(places.pos).st_size
        info = self._whole_backup(header, contract, size)
        return {"verdict": "OK", "backup": restore.summary_of(info), "version": version}

    def _whole_backup(self, header: Header, contract: Contract, size: int) -> backup.BackupInfo:
        places, profile = self.places, self.profile
        try:
            flash.make_folder(places.backups)
            backup.remove_unfinished(places.backups)
        except OSError as error:
            raise flash.refused(error, f"preparing {places.backups}") from error
        left_out = backup.free_leaf_pages(places.pos)
        bound = backup.bound_bytes(places.pos, profile.backup_level, left_out, 0)
        quota.check_backup_space(places, bound, profile.reserve_bytes)
        found = self._survey(contract, set(), size)
        self.desk.enter(states.BACKING_UP, size)
        now, trusted = clock.frozen_now(found.newest_ms, clock.wall_ms())
        path = self._start_backup(header, found, contract, now, trusted, left_out)
        assert self.writer is not None
        source = build.copy_source(places, -1, self.writer, self.desk.marker("pos.db"))
        self.writer.finish(*source)
        self.writer = None
        info = backup.keep(path, self.desk.marker("backup"))
        self._prune_backups(info.path)
        return info

    # Restoring

    def _restore(self, looked: Looked) -> dict[str, Any]:
        """Replace pos.db by a backup, having counted what that would lose."""
        info = self._backup_to_restore()
        places, contracts = self.places, self.files.contracts
        version = looked.header.user_version
        contract = contracts.at(min(version, self.files.head))
        quota.check_place(places, self.profile.unproven_filesystem)
        self.source = database.open_source(places.pos, self.profile.page_cache_bytes)
        survey.check_stores(self.source, contract)
        size = os.stat(places.pos).st_size
        found = self._survey(contract, set(), size)
        lost = restore.losses(
            survey.unsettled_digests(self.source, contract, found, self.desk.mark),
            backup.unsettled_entries(info.path),
        )
        check_consent(lost, self.job.discard)
        quota.check_space(places, self._restore_need(info, size))
        links = quota.probe(places)
        present = self._whole_backup(looked.header, contract, size)
        row = self._restored_row(looked, info, present, found)
        counters = restore.highest(contract, found.counters, info.header.get("counters", {}))
        lifted = self._build_restored(info, row, counters)
        result = self._switch(row, links)
        result.update(restored=restore.summary_of(info), discarded=lost, counters_lifted=lifted)
        return result

    def _backup_to_restore(self) -> backup.BackupInfo:
        info = backup.verify(self.job.restore_from, self.desk.marker("backup"))
        if info.schema_version > self.files.head:
            raise SchemaTooNew(
                f"the backup has schema {info.schema_version} and the installed migrations end at "
                f"{self.files.head}; install the software that belongs to it"
            )
        return info

    def _restore_need(self, info: backup.BackupInfo, size: int) -> quota.Need:
        bound = 0
        if size:
            left_out = backup.free_leaf_pages(self.places.pos)
            bound = backup.bound_bytes(self.places.pos, self.profile.backup_level, left_out, 0)
        need = quota.need_for(size, bound, self.profile)
        need.successor = info.header["image_bytes"] + quota.GROWTH_BYTES_MIN
        return need

    def _restored_row(
        self,
        looked: Looked,
        info: backup.BackupInfo,
        present: backup.BackupInfo,
        found: Survey,
    ) -> RunRow:
        now, trusted = self._now(found, looked)
        source = present.end["source"]
        return RunRow(
            kind="restore",
            run=self.job.run,
            source_size=source["size"],
            source_sha256=source["sha256"],
            plan="",
            from_version=looked.header.user_version,
            to_version=info.schema_version,
            now=now,
            clock_trusted=trusted,
            device_id=str(info.header["device_id"]),
            before=info.header["tally"],
            counters=found.counters,
            backup={"name": os.path.basename(present.path), "sha256": present.sha256},
            wal=looked.header.wal_mode,
            app_reads=list(self.files.contracts.app_reads),
            state="open",
        )

    def _build_restored(
        self, info: backup.BackupInfo, row: RunRow, counters: dict[str, int]
    ) -> dict[str, list[int]]:
        """Write the image, read it back, lift the counters, prove it. Answers what was lifted."""
        places = self.places
        self.desk.enter(states.BUILDING, info.header["image_bytes"])
        self.may_drop_next = True
        fd = build.create_next(places)
        try:
            backup.write_image(info.path, fd, self.desk.marker("image"))
            self.desk.allow(info.header["image_bytes"])
            build.settle_copy(places, fd)
        finally:
            os.close(fd)
        image = flash.digest_file(places.next, self.desk.marker("copy"))
        if image != (info.header["image_bytes"], info.end["image_sha256"]):
            raise AgentError("flash gave back other bytes than the backup's image")
        contract = self.files.contracts.at(info.schema_version)
        self.successor = database.open_successor(
            places.next,
            self.profile.page_cache_bytes,
            self.profile.journal_bytes_max,
            info.header["image_bytes"] + quota.GROWTH_BYTES_MIN,
        )
        build.start_run(self.successor, row, {c.store for c in contract.counters})
        lifted = restore.lift_counters(self.successor, contract, counters)
        self.desk.enter(states.PROVING, sum(row.before["records"].values()))
        build.end_run(self.successor, places, row, None)
        self.successor = None
        new = database.open_source(places.next, self.profile.page_cache_bytes)
        try:
            found = survey.survey(
                new,
                contract,
                set(),
                self.profile.record_bytes_max,
                self.profile.record_depth_max,
                self.desk.mark,
            )
            self.desk.allow(info.header["image_bytes"])
            digests = survey.unsettled_digests(new, contract, found, self.desk.mark)
            restore.prove_restored(new, info, found, digests)
        finally:
            new.close()
        return lifted

    def _restore_unread(self) -> dict[str, Any]:
        """Restore over a pos.db that cannot be read; the damaged file is kept under its own name."""
        places = self.places
        info = self._backup_to_restore()
        quota.check_space(places, self._restore_need(info, 0))
        kept = self._keep_damaged()
        size, digest = flash.digest_file(places.pos, self.desk.marker("damaged"))
        now, trusted = clock.frozen_now(int(info.header["made_ms"]), clock.wall_ms())
        row = RunRow(
            kind="restore",
            run=self.job.run,
            source_size=size,
            source_sha256=digest,
            plan="",
            from_version=0,
            to_version=info.schema_version,
            now=now,
            clock_trusted=trusted,
            device_id=str(info.header["device_id"]),
            before=info.header["tally"],
            counters={},
            backup=None,
            wal=False,
            app_reads=list(self.files.contracts.app_reads),
            state="open",
        )
        lifted = self._build_restored(info, row, info.header.get("counters", {}))
        result = self._switch(row, False)
        result.update(
            restored=restore.summary_of(info),
            discarded="unknown",
            counters_lifted=lifted,
            damaged_file=kept,
        )
        return result

    def _keep_damaged(self) -> str:
        """Give the damaged file, and what lies beside it, a second and lasting name."""
        places = self.places
        number = 1
        while os.path.lexists(f"{places.pos}.damaged-{number}"):
            number += 1
        kept = f"{places.pos}.damaged-{number}"
        for suffix in database.SIDE_FILES:
            if os.path.lexists(places.pos + suffix):
                os.rename(places.pos + suffix, kept + suffix)
        os.link(places.pos, kept)
        flash.sync_folder(places.folder)
        return kept

    def leave(self) -> None:
        """Leave nothing of a failed run but its reusable backup."""
        if self.writer is not None:
            self.writer.abort()
        for connection in (self.source, self.successor):
            if connection is not None:
                connection.close()
        if self.may_drop_next:
            switch.drop_next(self.places)


def check_consent(lost: dict[str, int], discard: Any) -> None:
    """Raise Unsettled unless nothing is lost or exactly these counts were consented to."""
    if not any(lost.values()) and discard is None:
        return
    if discard == lost:
        return
    typed = ",".join(f"{word}={count}" for word, count in lost.items() if count)
    if discard is not None and not typed:
        raise Unsettled("nothing would be discarded; leave --discard away", **lost)
    raise Unsettled(
        f"the restore would lose {lost['newer']} newer unsettled records, set {lost['changed']} "
        f"back and revive {lost['gone']} that were settled since; with consent: --discard {typed}",
        **lost,
    )


def restore_wal(places: Places, seal: switch.Seal) -> None:
    """Give pos.db the WAL mode it came with, and note its new digest.

    The seal is written last: cut before it, the mode is there already and the next boot only finds
    pos.db changed since the switch.
    """
    database.set_wal_mode(places.pos)
    build.sync_file(places.pos)
    seal.size, seal.sha256 = flash.digest_file(places.pos)
    seal.wal = False
    switch.write_seal(places, seal)


def missing(places: Places) -> AgentError:
    """What to say when there is no pos.db at all; nothing is ever created in its place."""
    left = [p for p in (places.prev, places.next) if os.path.lexists(p)]
    if left:
        row = decide.decide(OnFlash(None, 0))
        return NeedsTechnician(
            f"{places.pos} is missing and {', '.join(left)} is there: {row.done}; a technician must "
            "look at this terminal",
            cause="MISSING",
        )
    return NeedsTechnician(
        f"{places.pos} is missing; install the application's data or restore a backup",
        cause="MISSING",
    )
