"""The way back to an earlier version, by the first of three ways that loses nothing newer.

Nothing was written since the switch: the old file is put back. Else `down` on a successor, which
keeps what was sold since. Else, where nothing newer is there, the backup. Else the data stays as it
is, and the answer says what is in the way.
"""

from __future__ import annotations

import os

from agent.core import states
from agent.edges import clock, database, process
from agent.ground.errors import AgentError, SchemaTooNew, Unsettled, UsageError
from agent.verbs import backup_reader, build, quota, rows, survey, switch, way_down
from agent.verbs.oldfile import settle_old_file
from agent.worker.migrating import Migrating
from agent.worker.restoring import Restoring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.terminal import RunRow
    from agent.verbs.look import Looked


class RollingBack(Migrating, Restoring):
    """Brings pos.db back to `job.to_version`, or leaves it as it was."""

    kind = "rollback"

    def do(self) -> dict[str, Any]:
        """Switch back, `down`, restore, or say why none of them can be."""
        looked, _ = self._settle_flash()
        version, to = looked.header.user_version, self.job.to_version
        check_target(version, to, self.files.head)
        if version == to:
            return {"verdict": "NOT_REQUIRED", "from_version": version, "to_version": to}
        row = looked.row
        quota.check_place(self.places, self.profile.unproven_filesystem)
        if row is not None and may_switch_back(looked, to):
            return self._switch_back(looked, row)
        self.source = database.open_source(self.places.pos, self.profile.page_cache_bytes)
        try:
            return self._go_down(looked, version, to)
        except _InTheWay as found:
            obstacle = found.error
        info = self._lossless_backup(looked, row, to)
        if info is None:
            raise held_back(version, to, obstacle, row)
        self.desk.tell(found="", text=f"no way down ({obstacle.message}); restoring the backup")
        self.job.restore_from = info.path  # so that no other backup takes its place
        size = os.stat(self.places.pos).st_size
        contract = self._contract(looked)
        result = self._replace_by(looked, info, self._survey(contract, set(), size))
        return dict(result, way="restore", kept=[])

    def _go_down(self, looked: Looked, version: int, to: int) -> dict[str, Any]:
        """The `down` passes, once the whole of it was tried in memory."""
        assert self.source is not None
        try:
            plan = self.files.load_down(version, to)
            applied = rows.read_applied(self.source)
            way_down.check_reversible(plan, applied)
            plan.bind(0, "", applied)
            contract = self._contract(looked)
            survey.check_stores(self.source, contract)
            build.check_writable(self.source, plan.stores())
            kept = way_down.try_down(self.source, plan, self.limits, self.desk.mark)
        except AgentError as error:
            raise _InTheWay(error) from error
        self.plan_digest = plan.digest
        run_row, links = self._prepare(looked, plan, contract)
        self._run_and_prove(plan, run_row)
        return dict(self._switch(run_row, links), way="down", kept=kept.as_json())

    def _lossless_backup(
        self, looked: Looked, row: RunRow | None, to: int
    ) -> backup_reader.BackupInfo | None:
        """The backup of the last run, where it holds all there is: nothing was written since."""
        seal = looked.seal
        if row is None or seal is None or seal.run != row.run:
            return None
        if (row.kind, row.from_version) != ("migrate", to):
            return None
        mark = self.desk.marker("backup")
        if looked.identity(self.places, mark) != (seal.size, seal.sha256):
            return None
        return way_down.backup_of(self.places, row, mark)

    def _switch_back(self, looked: Looked, row: RunRow) -> dict[str, Any]:
        """Put `.prev` back: it holds all there is, since nothing was written after the switch."""
        places, seal = self.places, looked.seal
        assert seal is not None
        self.desk.enter(states.SWITCHING, 2)
        now, trusted = clock.frozen_now(row.now, clock.wall_ms())
        left = quarantined_in(places.prev)
        said = {
            "run": self.job.run,
            "kind": "rollback",
            "plan": "",
            "from_version": row.to_version,
            "to_version": row.from_version,
            "verdict": "PARTIAL" if left else "OK",
            "at_ms": now,
            "clock_trusted": trusted,
            "backup": row.backup,
            "before": row.before,
            "left": left,
            "despite_unsettled": self.job.despite_unsettled,
            "names": self.files.names[row.from_version : row.to_version][::-1],
            "hold": self.files.digest(row.from_version),
        }
        seal.back = dict(said, size=row.source_size, sha256=row.source_sha256)
        seal.given_up = [*seal.given_up, str(said["hold"])]
        switch.write_seal(places, seal)
        self.desk.mark("sealed", 1)
        new_lock = switch.switch_back(places)
        process.let_go()
        self.desk.go_on_alone()
        self.desk.mark("renamed", 2)
        self.desk.ask(switched=seal.back)
        holders = settle_old_file(self.job.lock, self.profile.deadline_ms, self.desk)
        new_lock.close()
        return {
            "verdict": said["verdict"],
            "run": self.job.run,
            "from_version": row.to_version,
            "to_version": row.from_version,
            "timestamp": now,
            "clock_trusted": trusted,
            "records": sum(row.before["records"].values()),
            "unsettled": sum(row.before["unsettled_records"].values()),
            "backup": row.backup,
            "previous_kept": False,
            "quarantined": left,
            "late_holders": holders,
            "way": "switch back",
            "kept": [],
        }


def quarantined_in(path: str) -> int:
    """How many records of a recovered file were left behind."""
    connection = database.open_source(path, 65536)
    try:
        return rows.count_quarantined(connection)
    finally:
        connection.close()


class _InTheWay(Exception):
    """Carries why `down` cannot be to where another way is looked for."""

    def __init__(self, error: AgentError) -> None:
        super().__init__(error.message)
        self.error = error


def check_target(version: int, to: int, head: int) -> None:
    """Refuse a version that no rollback from here leads to."""
    if version > head:
        raise SchemaTooNew(
            f"pos.db has schema {version} and the installed migrations end at {head}; the way back "
            "is in the software that belongs to this data: install it, roll back, then install the "
            "older one",
            version=version,
            target=head,
        )
    if to > version:
        raise UsageError(
            f"the data is at schema {version}, which is below {to}; `posagent migrate` goes forward"
        )


def may_switch_back(looked: Looked, to: int) -> bool:
    """Whether `.prev` is what is asked for and holds all there is."""
    facts, row, seal = looked.facts, looked.row, looked.seal
    return (
        row is not None
        and seal is not None
        and seal.run == row.run
        and facts.prev == "ours"
        and not facts.written_since
        and (row.kind, row.from_version) == ("migrate", to)
    )


def held_back(version: int, to: int, obstacle: AgentError, row: RunRow | None) -> AgentError:
    """The error for a way back that no way leads."""
    text = (
        f"rolling back from schema {version} to {to} is held: {obstacle.message}; restoring a "
        "backup of that schema would lose what was written since (`posagent backups`; `posagent "
        "restore` counts it and asks for consent)"
    )
    facts = {"cause": "NO_WAY_BACK", "in_the_way": obstacle.as_json()}
    if row is not None and any(row.before["unsettled_records"].values()):
        return Unsettled(text, **facts)
    return AgentError(text, **facts)
