"""Taking a backup: as a job of its own, before a restore, and beside a migration's copy."""

from __future__ import annotations

import os

from agent.core import states
from agent.edges import clock, flash
from agent.ground.errors import AgentError
from agent.verbs import (
    backup,
    backup_bound,
    backup_folder,
    backup_list,
    backup_reader,
    build,
    quota,
    survey,
)
from agent.worker.run import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.core.stores import Contract
    from agent.edges.database import Header
    from agent.verbs.look import Looked
    from agent.verbs.survey import Survey


class Keeping(Run):
    """A run that takes backups."""

    def _tidy_backups(self) -> None:
        """See that the folder is there, without what a cut backup left in it."""
        folder = self.places.backups
        try:
            flash.make_folder(folder)
            backup_folder.remove_unfinished(folder)
        except OSError as error:
            raise flash.refused(error, f"preparing {folder}") from error

    def _whole_backup(
        self, header: Header, contract: Contract, size: int
    ) -> backup_reader.BackupInfo:
        """One verified backup of pos.db as it is now; `self.source` is open on it."""
        places, profile = self.places, self.profile
        self._tidy_backups()
        left_out = backup_bound.free_leaf_pages(places.pos)
        bound = backup_bound.bound_bytes(places.pos, profile.backup_level, left_out, 0)
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
        sequence = backup_folder.next_sequence(places.backups)
        path = os.path.join(
            places.backups, backup_folder.backup_name(sequence, header.user_version)
        )
        unsettled = found.tally.unsettled_summary()
        bound = backup_bound.bound_bytes(
            places.pos, profile.backup_level, left_out, unsettled["records"]
        )
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
        for digest in survey.unsettled_digests(
            self.source, contract, found, self.limits, self.desk.mark
        ):
            self.writer.add_unsettled(digest)
        return path

    def _reusable_backup(self, looked: Looked) -> backup_reader.BackupInfo | None:
        """The backup that an earlier attempt took of this very source for this plan, if whole."""
        mark = self.desk.marker("")
        for _, _, path in reversed(backup_folder.backup_files(self.places.backups)):
            try:
                info = backup_reader.read_info(path)
                if info.header.get("plan") != self.plan_digest:
                    continue
                source = info.end["source"]
                if (source["size"], source["sha256"]) == looked.identity(self.places, mark):
                    return backup_reader.verify(path, mark)
            except AgentError:
                continue
        return None

    def _drop_old_backups(self) -> None:
        """Delete backups beyond the profile's number before a new one is taken; never the newest
        whole one, which may be older than damaged ones."""
        old, whole = backup_list.old_backups(
            self.places.backups, self.profile.backup_count, self.desk.marker("backup")
        )
        if old:
            self._prune_backups(whole)

    def _prune_backups(self, keep: str) -> None:
        """Delete the oldest beyond the profile's number; never the last, never the run's own."""
        found = backup_folder.backup_files(self.places.backups)
        if self.job.spares_other_schemas:
            mine = [version for _, version, path in found if path == keep]
            found = [entry for entry in found if entry[1] in mine]
        files = [path for _, _, path in found]
        surplus = files[: -self.profile.backup_count]
        gone = [flash.delete(path) for path in surplus if path not in (keep, self.job.restore_from)]
        if gone:
            flash.sync_folder(self.places.backups)
