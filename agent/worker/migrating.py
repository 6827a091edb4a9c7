"""A migration, from the checks to the switch, in the order it happens."""

from __future__ import annotations

import os

from agent.core import decide, left_behind, states
from agent.core.terminal import RunRow
from agent.edges import database
from agent.ground.errors import AgentError, SchemaTooNew, Unsettled, ValidationError
from agent.verbs import (
    backup,
    backup_bound,
    backup_reader,
    batches,
    build,
    moving,
    passes,
    prove,
    quota,
    restore,
    rows,
    schema,
    survey,
    switch,
)
from agent.worker.keeping import Keeping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.plan import Pass, Plan
    from agent.core.stores import Contract
    from agent.verbs.look import Looked


class Migrating(Keeping):
    """Brings pos.db to the installed version, or leaves it as it was."""

    kind = "migrate"
    checked = True  # whether the authors' checks are made

    def do(self) -> dict[str, Any]:
        """Migrate what is pending; commit an earlier switch when its time has come."""
        looked, row = self._settle_flash()
        for name in looked.edited:
            self.desk.tell(found="", text=f"{name} was edited after this terminal applied it")
        result = self._migrate(looked, row)
        if looked.edited:
            result["edited_migrations"] = looked.edited
        return result

    def _migrate(self, looked: Looked, row: decide.Row) -> dict[str, Any]:
        facts = looked.facts
        if row.action == decide.TOO_NEW:
            raise SchemaTooNew(
                f"pos.db has schema {facts.version} and the installed migrations end at "
                f"{facts.target}; install the software that belongs to this data",
                version=facts.version,
                target=facts.target,
                min_reader=looked.min_reader,
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
        self.source = database.open_source(self.places.pos, self.profile.page_cache_bytes)
        left = [row.version for row in rows.quarantined(self.source).rows()]
        plan = self.files.load(facts.version, min(left, default=None))
        self._leave_checks_out(plan, looked.next_row if row.action == decide.RESUME else None)
        quota.check_place(self.places, self.profile.unproven_filesystem)
        contract = rows.contract_at(self.source, self.files.contracts, facts.version)
        survey.check_stores(self.source, contract)
        build.check_writable(self.source, plan.stores())
        planned = schema.rehearse(self.source, plan)
        after = self.files.contracts.at(plan.to_version)
        schema.check_stores_made(planned, after.stores, plan.to_version)
        run_row = looked.next_row
        if row.action == decide.RESUME and run_row is not None and self._backup_holds(run_row):
            self.may_drop_next = True
            links = quota.probe(self.places)
            try:
                self._run_and_prove(plan, run_row)
            except ValidationError as error:
                # Not the plan may be at fault but what a cut left: a fresh successor tells.
                self.desk.tell(found="", text=f"the successor left by a cut is no good: {error}")
                self._begin_anew()
            else:
                return self._switch(run_row, links)
        run_row, links = self._prepare(looked, plan, contract)
        self._run_and_prove(plan, run_row)
        return self._switch(run_row, links)

    def _leave_checks_out(self, plan: Plan, run_row: RunRow | None) -> None:
        """Without validation the authors' checks are not made, by any attempt of the run. The proof
        is."""
        self.checked = self.job.validate_data if run_row is None else run_row.checked
        for migration in plan.migrations if not self.checked else ():
            for step in migration.steps:
                step.check = None

    def _run_and_prove(self, plan: Plan, run_row: RunRow) -> None:
        assert self.source is not None
        plan.bind(run_row.now, run_row.device_id, rows.read_applied(self.source))
        self._run_batches(plan, run_row)
        self._prove(plan, run_row)

    def _begin_anew(self) -> None:
        if self.successor is not None:
            self.successor.close()
            self.successor = None
        switch.drop_next(self.places)
        self.desk.enter(states.CHECKING)

    def _prepare(self, looked: Looked, plan: Plan, contract: Contract) -> tuple[RunRow, bool]:
        """Checks, survey, backup and copy; ends with a successor that carries its run row."""
        places, profile = self.places, self.profile
        size = os.stat(places.pos).st_size
        quota.check_size(size, profile)
        left_out = self._make_room(size, looked)
        links = quota.probe(places)
        judged = left_behind.judged(plan, self.files.contracts, profile.quarantine_unsettled)
        found = self._survey(contract, judged, size)
        tally = found.tally.as_json()
        refuse = profile.unsettled_guard == "refuse" and not self.job.despite_unsettled
        if refuse and any(tally["unsettled_records"].values()):
            raise Unsettled(
                "there are unsettled sales and this terminal's profile says to settle first; with "
                f"consent: `posagent {self.kind} --despite-unsettled`",
                **found.tally.unsettled_summary(),
            )
        now, trusted = self._now(found, looked)
        device_id = self._device_id(contract)
        with_backup = self.job.backup_enabled
        kept = self._reusable_backup(looked) if with_backup else None
        self.desk.enter(states.BACKING_UP if with_backup and not kept else states.BUILDING, size)
        self.may_drop_next = True
        fd = build.create_next(places)
        try:
            if kept is None and with_backup:
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
        if kept is not None:
            self._prune_backups(kept.path)
        run_row = RunRow(
            kind=self.kind,
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
            backup=None if kept is None else restore.reference_of(kept),
            checked=self.checked,
            despite_unsettled=self.job.despite_unsettled,
            wal=looked.header.wal_mode,
            app_reads=list(self.files.contracts.app_reads),
            state="open",
        )
        self.successor = self._open_successor()
        build.start_run(self.successor, run_row)
        return run_row, links

    def _backup_holds(self, run_row: RunRow) -> bool:
        """Whether the backup that the successor relies on still reads back whole."""
        known = run_row.backup
        if known is None:
            return True  # none was asked for
        path = os.path.join(self.places.backups, str(known.get("name")))
        try:
            return backup_reader.verify(path, self.desk.marker("backup")).sha256 == known.get(
                "sha256"
            )
        except AgentError:
            return False

    def _make_room(self, size: int, looked: Looked) -> bytearray:
        """See that everything fits before anything is written; an older way back goes first."""
        places, profile = self.places, self.profile
        self._tidy_backups()
        self._drop_old_backups()
        left_out = backup_bound.free_leaf_pages(places.pos)
        bound = 0
        if self.job.backup_enabled:
            bound = backup_bound.bound_bytes(places.pos, profile.backup_level, left_out, 0)
        need = quota.need_for(size, bound, profile)
        if quota.shortage(places, need)[0] and looked.facts.prev == "ours":
            switch.drop_prev(places)
        quota.check_space(places, need)
        return left_out

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
            # An attempt was cut between its last commit and the switch: prove it again. To look at
            # it was to open it, which put it back into WAL mode; pos.db must not get that.
            build.close_next(self._open_successor(), self.places)
            return
        if self.successor is None:
            self.may_drop_next = True
            self.successor = self._open_successor()
        counts = run_row.before["records"]
        total = sum(counts.get(p.store, 0) for p in plan.passes if p.kind == "walk")
        self.desk.enter(states.MIGRATING, total)
        self.desk.tell(came_as_far_as=batches.read_cursor(self.successor).done)

        def on_batch(a_pass: Pass, cursor: batches.Cursor) -> None:
            self.desk.mark(a_pass.store, cursor.done)

        work = passes.Passes(self.successor, plan, self.profile, self.files.contracts)
        work.run(on_batch)
        self.desk.allow(os.stat(self.places.next).st_size)
        build.end_run(self.successor, self.places, run_row, plan)
        self.successor = None

    def _prove(self, plan: Plan, run_row: RunRow) -> None:
        assert self.source is not None
        total = sum(run_row.before["records"].values())
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
                run_row.before,
                self.files.contracts,
                moving.moves_of(self.source, plan, new),
                self.limits,
                self.desk.mark,
                self.profile.quarantine_unsettled,
            )
        finally:
            new.close()
        self.source.close()
        self.source = None

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
