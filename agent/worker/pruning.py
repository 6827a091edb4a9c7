"""A prune: old backups first, then settled records, on a successor like any other change."""

from __future__ import annotations

import os

from agent.core import states
from agent.core.terminal import RunRow
from agent.edges import database
from agent.ground.errors import Unsettled
from agent.verbs import (
    backup,
    backup_bound,
    backup_folder,
    build,
    prune,
    prune_proof,
    quota,
    restore,
    survey,
    switch,
)
from agent.worker.keeping import Keeping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.stores import Contract
    from agent.verbs.look import Looked
    from agent.verbs.survey import Survey

    Figures = dict[str, dict[str, int]]


class Pruning(Keeping):
    """Deletes what the contract gives up; pending migrations stay pending."""

    deleted = 0

    def do(self) -> dict[str, Any]:
        """Judge everything first: data that cannot be read costs no backup either."""
        looked, _ = self._settle_flash()
        version = looked.header.user_version
        prune.check_version(version, self.files.head)
        size = os.stat(self.places.pos).st_size
        self.source = database.open_source(self.places.pos, self.profile.page_cache_bytes)
        contract = self._contract(looked)
        survey.check_stores(self.source, contract)
        found = self._survey(contract, set(), size)
        self.desk.allow(size)  # what refers to a store is gathered without a mark
        figures = prune.figures(self.source, contract, found.counters, self.limits, self.desk.mark)
        there = self._backup_names()
        self._drop_old_backups()
        if any(figure["records"] for figure in figures.values()):
            result = self._prune(looked, contract, found, figures)
        else:
            result = _nothing_to_do(looked)
        kept = {name: found.tally.records[name] - figures[name]["records"] for name in figures}
        now = self._backup_names()
        result.update(
            pruned=figures,
            kept=kept,
            backups_deleted=[name for name in there if name not in now],
        )
        return result

    def _backup_names(self) -> list[str]:
        files = backup_folder.backup_files(self.places.backups)
        return [os.path.basename(path) for _, _, path in files]

    def _prune(
        self, looked: Looked, contract: Contract, found: Survey, figures: Figures
    ) -> dict[str, Any]:
        """The run: backup, copy, deletions, proof, switch."""
        tally = found.tally
        refuse = self.profile.unsettled_guard == "refuse" and not self.job.despite_unsettled
        if refuse and any(tally.unsettled_records.values()):
            raise Unsettled(
                "there are unsettled sales and this terminal's profile says to settle first; with "
                "consent: `posagent prune --despite-unsettled`",
                **tally.unsettled_summary(),
            )
        assert self.source is not None
        quota.check_place(self.places, self.profile.unproven_filesystem)
        build.check_writable(self.source, set(prune.ruled(contract)))
        left_out = self._make_room(looked)
        links = quota.probe(self.places)
        row = self._copied(looked, contract, found, figures, left_out)
        self._delete(contract, row)
        self._prove(contract, row, found)
        result = self._switch(row, links)
        result["records"] -= sum(row.before["pruned"].values())
        return result

    def _make_room(self, looked: Looked) -> bytearray:
        """See that everything fits before anything is written; an older way back goes first.

        A successor of which only records are deleted does not grow, so that a terminal too full
        for an upgrade can still be pruned.
        """
        places, profile = self.places, self.profile
        self._tidy_backups()
        left_out = backup_bound.free_leaf_pages(places.pos)
        bound = backup_bound.bound_bytes(places.pos, profile.backup_level, left_out, 0)
        need = quota.need_for(os.stat(places.pos).st_size, bound, profile)
        need.successor = self._successor_bytes_max()
        if quota.shortage(places, need)[0] and looked.facts.prev == "ours":
            switch.drop_prev(places)
        quota.check_space(places, need)
        return left_out

    def _successor_bytes_max(self) -> int:
        return os.stat(self.places.pos).st_size + quota.GROWTH_BYTES_MIN

    def _copied(
        self,
        looked: Looked,
        contract: Contract,
        found: Survey,
        figures: Figures,
        left_out: bytearray,
    ) -> RunRow:
        """Backup and copy in one read; ends with a successor that carries its run row."""
        places = self.places
        size = os.stat(places.pos).st_size
        now, trusted = self._now(found, looked)
        kept = self._reusable_backup(looked)
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
        row = RunRow(
            kind="prune",
            run=self.job.run,
            source_size=source[0],
            source_sha256=source[1],
            plan="",
            from_version=looked.header.user_version,
            to_version=looked.header.user_version,
            now=now,
            clock_trusted=trusted,
            device_id=self._device_id(contract),
            # What went is told beside what was there: after a cut, history knows only this row.
            before=dict(
                found.tally.as_json(), pruned={name: f["records"] for name, f in figures.items()}
            ),
            counters=found.counters,
            despite_unsettled=self.job.despite_unsettled,
            backup=restore.reference_of(kept),
            wal=looked.header.wal_mode,
            app_reads=list(self.files.contracts.app_reads),
            state="open",
        )
        self.successor = self._open_successor()
        build.start_run(self.successor, row)
        return row

    def _open_successor(self) -> Connection:
        return database.open_successor(
            self.places.next,
            self.profile.page_cache_bytes,
            self.profile.journal_bytes_max,
            self._successor_bytes_max(),
        )

    def _delete(self, contract: Contract, row: RunRow) -> None:
        """Choose in the old file, delete in the new one."""
        assert self.source is not None
        assert self.successor is not None
        profile, desk = self.profile, self.desk
        pruned: dict[str, int] = row.before["pruned"]
        desk.enter(states.MIGRATING, sum(pruned.values()))
        # What the quota sets aside for one commit before it is checkpointed.
        batch = (profile.batch_rows_max, 2 * profile.batch_bytes_max)
        for name in [name for name, count in pruned.items() if count]:
            chosen = prune.prunable(
                self.source, contract, name, row.counters, self.limits, self._goes_on
            )
            for count in prune.delete(self.successor, name, chosen, batch):
                self.deleted += count
                desk.mark(name, self.deleted)
        desk.allow(os.stat(self.places.next).st_size)
        build.end_run(self.successor, self.places, row, None)
        self.successor = None

    def _goes_on(self, store: str, read: int) -> None:
        """A mark while records are read of which none may go."""
        self.desk.mark(store, self.deleted)

    def _prove(self, contract: Contract, row: RunRow, found: Survey) -> None:
        assert self.source is not None
        self.desk.enter(states.PROVING, sum(found.tally.records.values()))
        self.desk.allow(os.stat(self.places.next).st_size)
        build.forget_pages(self.places.pos)
        build.sync_file(self.places.next)
        new = database.open_source(self.places.next, self.profile.page_cache_bytes)
        try:
            prune_proof.prove_pruned(
                self.source, new, contract, row, found, self.limits, self.desk.mark
            )
        finally:
            new.close()


def _nothing_to_do(looked: Looked) -> dict[str, Any]:
    version = looked.facts.version
    return {
        "verdict": "NOT_REQUIRED",
        "from_version": version,
        "to_version": version,
        "previous_kept": looked.facts.prev == "ours",
    }
