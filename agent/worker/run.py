"""What every run shares: looking at the flash, tidying it, the switch, leaving nothing behind."""

from __future__ import annotations

import os

from agent.core import decide, states
from agent.core.terminal import Places, RunRow
from agent.edges import clock, database, flash, process
from agent.edges.migration_files import MigrationFiles
from agent.ground.codec import decode
from agent.ground.errors import AgentError
from agent.verbs import backup, backup_folder, backup_reader, build, look, rows, survey, switch
from agent.verbs.oldfile import settle_old_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.core.profile import Profile
    from agent.core.stores import Contract
    from agent.verbs.desk import Desk
    from agent.verbs.look import Looked
    from agent.verbs.survey import Survey
    from agent.worker.job import Job

# Why a plan is not done by itself after data was brought back to an older schema.
HELD_ON_REQUEST = "brought back on request"
DEVICE_ID_CHARS_MAX = 256  # it travels in every backup's header, which has a bound


class Run:
    """The state of one run in this process; everything durable is on flash instead."""

    def __init__(self, job: Job, desk: Desk) -> None:
        self.job = job
        self.desk = desk
        self.config = job.config
        self.places = job.places
        self.profile: Profile = job.config.profile
        self.files = MigrationFiles(job.config.migrations_dir)
        # The largest record in bytes and its deepest nesting.
        self.limits = (self.profile.record_bytes_max, self.profile.record_depth_max)
        self.plan_digest = ""
        self.writer: backup.BackupWriter | None = None
        self.successor: Connection | None = None
        self.source: Connection | None = None
        # Set once what lies under `.next` is this run's own and worthless if it fails.
        self.may_drop_next = False

    def do(self) -> dict[str, Any]:
        """The job on a recovered pos.db; its result. Raises AgentError with the data as it was."""
        raise NotImplementedError

    # Looking and tidying

    def _settle_flash(self) -> tuple[Looked, decide.Row]:
        """Act on what an earlier run left until nothing is left to tidy."""
        mark = self.desk.marker("")
        self._remove_scraps()
        try:
            backup_folder.remove_unfinished(self.places.backups)
        except AgentError:
            pass  # a folder that refuses is named by whoever has to write there
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
            if row.action == decide.COMMIT and self.job.kind != "migrate":
                # `commit` does it itself; whatever else is asked for leaves a way back as it is.
                return looked, row
            if row.action not in decide.LOOK_AGAIN:
                return looked, row
            self.desk.tell(found=row.mark, text=row.found)
            self._tidy(looked, row.action)

    def _remove_scraps(self) -> None:
        """Small files that a cut left and that nothing reads."""
        pos = self.places.pos
        for scrap in (self.places.seal + ".tmp", pos + ".probe", pos + ".probe2"):
            try:
                flash.delete(scrap)
            except OSError:
                pass  # a folder that refuses is named by whoever has to write there

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
                self.job.given_up[history["hold"]] = HELD_ON_REQUEST
        elif action == decide.WRITE_BACK:
            assert looked.seal is not None
            assert looked.seal.back is not None
            flash.sync_folder(places.folder)
            self.desk.ask(switched=looked.seal.back)
            self.job.known_runs.add(looked.seal.back["run"])
            self.job.given_up[looked.seal.back["hold"]] = HELD_ON_REQUEST
        elif action == decide.RETURN_WAL:
            assert looked.seal is not None
            restore_wal(places, looked.seal)
        elif action == decide.DROP_NEXT:
            switch.drop_next(places)
        elif action == decide.COMMIT:
            switch.drop_prev(places)

    def _history_of(self, row: RunRow) -> dict[str, Any]:
        """What the diary is told of a finished run, all of it from the row inside the file."""
        names: list[str] = []
        if row.kind == "migrate":
            names = self.files.names[row.from_version : row.to_version]
        elif row.kind == "rollback":
            names = self.files.names[row.to_version : row.from_version][::-1]
        # Data that a person brought back is not migrated forward again by the next boot.
        brought_back = row.kind in ("restore", "rollback") and row.to_version < self.files.head
        return {
            "run": row.run,
            "kind": row.kind,
            "plan": row.plan,
            "from_version": row.from_version,
            "to_version": row.to_version,
            "verdict": "PARTIAL" if row.left else "OK",
            "at_ms": row.now,
            "clock_trusted": row.clock_trusted,
            "backup": row.backup,
            "before": row.before,
            "left": row.left,
            "despite_unsettled": row.despite_unsettled,
            "names": names,
            "hold": self.files.digest(row.to_version) if brought_back else "",
        }

    # What every kind of run wants to know of the data

    def _contract(self, looked: Looked) -> Contract:
        """The rules for pos.db as it is; `self.source` is open on it."""
        assert self.source is not None
        version = min(looked.header.user_version, self.files.head)
        return rows.contract_at(self.source, self.files.contracts, version)

    def _survey(self, contract: Contract, judged: set[str], size: int) -> Survey:
        assert self.source is not None
        self.desk.allow(size)
        found = survey.survey(self.source, contract, judged, self.limits, self.desk.mark)
        if found.odd_count:
            self.desk.tell(odd=found.odd_count, first=list(found.odd[0]))
        return found

    def _now(self, found: Survey, looked: Looked) -> tuple[int, bool]:
        newest = found.newest_ms
        if looked.row is not None:
            newest = max(newest, looked.row.now)
        for _, _, path in backup_folder.backup_files(self.places.backups):
            try:
                newest = max(newest, int(backup_reader.read_info(path).header["made_ms"]))
            except AgentError:
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
            if isinstance(value, str) and 0 < len(value) <= DEVICE_ID_CHARS_MAX:
                return value
        return self.config.device_id or "unknown"

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
        # Whoever has the old file open must stay locked out of it, also if the supervisor dies now.
        process.let_go()
        self.desk.go_on_alone()
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
            "verdict": "PARTIAL" if row.left else "OK",
            "run": row.run,
            "from_version": row.from_version,
            "to_version": row.to_version,
            "timestamp": row.now,
            "clock_trusted": row.clock_trusted,
            "records": sum(row.before["records"].values()),
            "unsettled": sum(row.before["unsettled_records"].values()),
            "backup": row.backup,
            "previous_kept": links,
            "quarantined": row.left,
            "late_holders": holders,
        }

    def _set_foreign_prev_aside(self) -> None:
        """A `.prev` that no seal of ours names is somebody's file: moved aside, never deleted."""
        places = self.places
        if not os.path.lexists(places.prev):
            return
        aside = places.prev + ".unknown"
        try:
            row = look.run_row_of(places.pos)
        except database.SQLITE_ERRORS:
            row = None  # a restore over a file that is damaged or missing
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

    def leave(self) -> None:
        """Leave nothing of a failed run but its reusable backup."""
        if self.writer is not None:
            self.writer.abort()
        for connection in (self.source, self.successor):
            if connection is not None:
                connection.close()
        if self.may_drop_next:
            switch.drop_next(self.places)


def restore_wal(places: Places, seal: switch.Seal) -> None:
    """Give pos.db the WAL mode it came with, and note its new digest.

    The seal is written last. Cut before it, the mode is there already and the application may have
    sold since: the digest stays the old one, so that pos.db counts as written since the switch.
    """
    header = database.read_header(places.pos)
    if header is None or not header.wal_mode:
        # Whoever sold before the mode was back sold into the new file: the digest stays the old
        # one then too, or the sale would count as part of the switch.
        untouched = flash.digest_file(places.pos) == (seal.size, seal.sha256)
        database.set_wal_mode(places.pos)
        flash.sync_folder(places.folder)  # a -journal that came back would undo the mode
        build.sync_file(places.pos)
        if untouched:
            seal.size, seal.sha256 = flash.digest_file(places.pos)
    seal.wal = False
    switch.write_seal(places, seal)
