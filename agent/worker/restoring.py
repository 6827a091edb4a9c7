"""A restore: a backup becomes the successor, once what it would lose was consented to."""

from __future__ import annotations

import os

from agent.core import states
from agent.core.steps import shown
from agent.core.terminal import RunRow
from agent.edges import clock, database, flash
from agent.ground.errors import (
    AgentError,
    BackupCorrupt,
    NeedsTechnician,
    SchemaTooNew,
    Unsettled,
    ValidationError,
    printable,
)
from agent.verbs import backup_bound, backup_reader, build, quota, restore, rows, survey
from agent.worker.keeping import Keeping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.stores import Contract
    from agent.verbs.look import Looked
    from agent.verbs.survey import Survey


class Restoring(Keeping):
    """Replaces pos.db by a backup."""

    kind = "restore"

    def do(self) -> dict[str, Any]:
        """Restore over data that can be read, and so be counted."""
        info = self._backup_to_restore()
        try:
            looked, _ = self._settle_flash()
            found, lost = self._losses(looked, info)
        except (NeedsTechnician, ValidationError, *database.SQLITE_ERRORS) as error:
            return self.do_uncounted(error)
        return self._restore(looked, info, found, lost)

    def _losses(
        self, looked: Looked, info: backup_reader.BackupInfo
    ) -> tuple[Survey, dict[str, int]]:
        """What pos.db holds, and how its unsettled records differ from the backup's."""
        places = self.places
        quota.check_place(places, self.profile.unproven_filesystem)
        self.source = database.open_source(places.pos, self.profile.page_cache_bytes)
        contract = self._contract(looked)
        survey.check_stores(self.source, contract)
        self._check_owner(contract, info)
        size = os.stat(places.pos).st_size
        found = self._survey(contract, set(), size)
        lost = restore.losses(
            survey.unsettled_digests(self.source, contract, found, self.limits, self.desk.mark),
            backup_reader.unsettled_entries(info.path),
        )
        return found, lost

    def _check_owner(self, contract: Contract, info: backup_reader.BackupInfo) -> None:
        """Refuse another terminal's backup: its sales are that terminal's to send."""
        own, theirs = self._device_id(contract), info.header["device_id"]
        if own != theirs and "unknown" not in (own, theirs):
            raise BackupCorrupt(
                f"the backup is of the terminal {shown(theirs)} and this one is {shown(own)}; to "
                "make this terminal that one, move pos.db away and restore with --discard unknown",
                own=shown(own),
                theirs=shown(theirs),
            )

    def _restore(
        self, looked: Looked, info: backup_reader.BackupInfo, found: Survey, lost: dict[str, int]
    ) -> dict[str, Any]:
        """Replace pos.db by a backup, if what that would lose was consented to.

        Which settled sales are not in the backup only its data can tell. So that is written first,
        still as a part of checking: a refusal deletes it, and after a cut the next boot does.
        """
        links = self._make_room_for(info)
        self._write_image(info)
        lost["settled"] = self._forgotten(looked, info)
        check_consent(lost, self.job.discard)
        result = self._replace_by_image(looked, info, found, links)
        result["discarded"] = lost
        return result

    def _forgotten(self, looked: Looked, info: backup_reader.BackupInfo) -> int:
        """How many settled sales of pos.db are not in the image that was written."""
        assert self.source is not None
        image = database.open_source(self.places.next, self.profile.page_cache_bytes)
        try:
            return restore.forgotten(
                self.source,
                image,
                self._contract(looked),
                self.files.contracts.at(info.schema_version),
                self.limits,
                self.desk.mark,
            )
        finally:
            image.close()

    def _replace_by(
        self, looked: Looked, info: backup_reader.BackupInfo, found: Survey
    ) -> dict[str, Any]:
        """Replace pos.db by a backup that is known to hold all there is."""
        links = self._make_room_for(info)
        self._write_image(info)
        return self._replace_by_image(looked, info, found, links)

    def _make_room_for(self, info: backup_reader.BackupInfo) -> bool:
        """See that everything fits and can be done before anything is written. Whether hard links
        work."""
        need = self._restore_need(info, os.stat(self.places.pos).st_size)
        quota.check_space(self.places, need)
        return quota.probe(self.places)

    def _replace_by_image(
        self, looked: Looked, info: backup_reader.BackupInfo, found: Survey, links: bool
    ) -> dict[str, Any]:
        """Back up the present, make the image the successor and switch."""
        contract = self._contract(looked)
        size = os.stat(self.places.pos).st_size
        present = self._reusable_backup(looked) or self._whole_backup(looked.header, contract, size)
        row = self._restored_row(looked, info, present, found)
        counters = restore.highest(contract, found.counters, info.header.get("counters", {}))
        self.desk.enter(states.BUILDING, info.header["image_bytes"])
        lifted = self._build_restored(info, row, counters)
        result = self._switch(row, links)
        result.update(restored=restore.summary_of(info), counters_lifted=lifted)
        return result

    def _backup_to_restore(self) -> backup_reader.BackupInfo:
        info = backup_reader.verify(self.job.restore_from, self.desk.marker("backup"))
        if info.schema_version > self.files.head:
            raise SchemaTooNew(
                f"the backup has schema {info.schema_version} and the installed migrations end at "
                f"{self.files.head}; install the software that belongs to it"
            )
        restore.check_figures(info, self.files.contracts.at(info.schema_version))
        return info

    def _restore_need(self, info: backup_reader.BackupInfo, size: int) -> quota.Need:
        bound = 0
        if size:
            left_out = backup_bound.free_leaf_pages(self.places.pos)
            bound = backup_bound.bound_bytes(
                self.places.pos, self.profile.backup_level, left_out, 0
            )
        need = quota.need_for(size, bound, self.profile)
        need.successor = info.header["image_bytes"] + quota.GROWTH_BYTES_MIN
        return need

    def _restored_row(
        self,
        looked: Looked,
        info: backup_reader.BackupInfo,
        present: backup_reader.BackupInfo,
        found: Survey,
    ) -> RunRow:
        now, trusted = self._now(found, looked)
        source = present.end["source"]
        return RunRow(
            kind=self.kind,
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
            backup=restore.reference_of(present),
            wal=looked.header.wal_mode,
            app_reads=list(self.files.contracts.app_reads),
            state="open",
        )

    def _write_image(self, info: backup_reader.BackupInfo) -> None:
        """Write what the backup holds where the successor is built, and read it back from flash.

        Cut in it or behind it: a file without the row of this run, which the next boot deletes.
        """
        places = self.places
        self.may_drop_next = True
        fd = build.create_next(places)
        try:
            backup_reader.write_image(info.path, fd, self.desk.marker("image"))
            self.desk.allow(info.header["image_bytes"])
            build.settle_copy(places, fd)
        finally:
            os.close(fd)
        image = flash.digest_file(places.next, self.desk.marker("copy"))
        if image != (info.header["image_bytes"], info.end["image_sha256"]):
            raise AgentError("flash gave back other bytes than the backup's image")
        inside = database.read_header(places.next)
        if inside is None or inside.user_version != info.schema_version:
            raise BackupCorrupt("the backup's header names another schema than the data in it")

    def _build_restored(
        self, info: backup_reader.BackupInfo, row: RunRow, counters: dict[str, int]
    ) -> dict[str, list[int]]:
        """Put the run row into the image, lift the counters, prove it. Answers what was lifted."""
        places = self.places
        contract = self.files.contracts.at(info.schema_version)
        self.successor = database.open_successor(
            places.next,
            self.profile.page_cache_bytes,
            self.profile.journal_bytes_max,
            info.header["image_bytes"] + quota.GROWTH_BYTES_MIN,
        )
        build.start_run(self.successor, row)
        lifted = restore.lift_counters(self.successor, contract, counters)
        self.desk.enter(states.PROVING, sum(row.before["records"].values()))
        build.end_run(self.successor, places, row, None)
        self.successor = None
        new = database.open_source(places.next, self.profile.page_cache_bytes)
        try:
            contract = rows.contract_at(new, self.files.contracts, info.schema_version)
            found = survey.survey(new, contract, set(), self.limits, self.desk.mark)
            self.desk.allow(info.header["image_bytes"])
            digests = survey.unsettled_digests(new, contract, found, self.limits, self.desk.mark)
            restore.prove_restored(new, info, found, digests)
        finally:
            new.close()
        return lifted

    def do_uncounted(self, error: Exception) -> dict[str, Any]:
        """Restore over data that cannot be counted, if a person said so; else raise why not."""
        if self.source is not None:
            self.source.close()
            self.source = None
        if self.job.discard == "unknown":
            return self._restore_unread()
        if not isinstance(error, AgentError):
            raise error
        raise type(error)(
            f"{error.message}; `--discard unknown` restores over it and keeps the damaged file",
            **error.facts,
        ) from error

    def _restore_unread(self) -> dict[str, Any]:
        """Restore over a pos.db that is damaged or missing; what was there keeps a name."""
        places = self.places
        info = self._backup_to_restore()
        quota.check_space(places, self._restore_need(info, 0))
        size, digest = 0, ""
        if os.path.lexists(places.pos):
            size, digest = flash.digest_file(places.pos, self.desk.marker("damaged"))
        kept = self._keep_lone_successor()
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
        self.desk.enter(states.BUILDING, info.header["image_bytes"])
        self._write_image(info)
        lifted = self._build_restored(info, row, info.header.get("counters", {}))
        kept = self._keep_damaged() or kept
        result = self._switch(row, False)
        result.update(
            restored=restore.summary_of(info),
            discarded="unknown",
            counters_lifted=lifted,
            damaged_file=printable(kept),
        )
        return result

    def _keep_lone_successor(self) -> str:
        """Where pos.db is missing, a successor may hold all there is: it is moved, not deleted."""
        places = self.places
        if os.path.lexists(places.pos) or not os.path.lexists(places.next):
            return ""
        kept = self._damaged_name()
        os.rename(places.next, kept)
        for suffix in database.SIDE_FILES:
            if os.path.lexists(places.next + suffix):
                os.rename(places.next + suffix, kept + suffix)
        flash.sync_folder(places.folder)
        return kept

    def _keep_damaged(self) -> str:
        """Give the damaged file, and what lies beside it, a second and lasting name.

        Last thing before the switch. Cut after it: pos.db has two names, so that no run takes it
        for whole although its side files are gone; the restore can be asked for again.
        """
        places = self.places
        if not os.path.lexists(places.pos):
            return ""
        kept = self._damaged_name()
        side = [s for s in database.SIDE_FILES if os.path.lexists(places.pos + s)]
        for suffix in ("", *side):
            os.link(places.pos + suffix, kept + suffix)
        flash.sync_folder(places.folder)
        for suffix in side:
            flash.delete(places.pos + suffix)
        flash.sync_folder(places.folder)
        return kept

    def _damaged_name(self) -> str:
        number = 1
        while os.path.lexists(f"{self.places.pos}.damaged-{number}"):
            number += 1
        return f"{self.places.pos}.damaged-{number}"


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
        f"back, revive {lost['gone']} that were settled or removed since, and forget "
        f"{lost['settled']} settled sales; with consent: --discard {typed}",
        **lost,
    )
