"""Starts a job in the worker: recovers pos.db, runs the job, tells its end."""

from __future__ import annotations

import os

from agent.core import decide, states
from agent.core.decide import OnFlash
from agent.core.terminal import Places
from agent.edges import database, flash, process
from agent.ground.errors import AgentError, Interrupted, NeedsTechnician
from agent.verbs import restore, survey, switch
from agent.verbs.oldfile import hold_old_file, settle_old_file
from agent.worker.keeping import Keeping
from agent.worker.migrating import Migrating
from agent.worker.pruning import Pruning
from agent.worker.restoring import Restoring
from agent.worker.rolling_back import RollingBack
from agent.worker.run import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.verbs.desk import Desk
    from agent.worker.job import Job


class BackingUp(Keeping):
    """A backup on request."""

    def do(self) -> dict[str, Any]:
        """Take it."""
        looked, _ = self._settle_flash()
        version = min(looked.header.user_version, self.files.head)
        self.plan_digest = ""
        self.source = database.open_source(self.places.pos, self.profile.page_cache_bytes)
        contract = self._contract(looked)
        survey.check_stores(self.source, contract)
        size = os.stat(self.places.pos).st_size
        info = self._whole_backup(looked.header, contract, size)
        return {"verdict": "OK", "backup": restore.summary_of(info), "version": version}


class Committing(Run):
    """Giving up the way back, on request."""

    def do(self) -> dict[str, Any]:
        """Delete `.prev` if it is ours."""
        looked, _ = self._settle_flash()
        prev = looked.facts.prev
        if prev == "ours":
            switch.drop_prev(self.places)
        return {
            "verdict": "OK" if prev == "ours" else "NOT_REQUIRED",
            "committed": prev == "ours",
            "foreign_previous": prev == "foreign",
            "version": looked.facts.version,
        }


class Settling(Run):
    """Only the look and the tidying, after a worker died whose job is not begun again."""

    def do(self) -> dict[str, Any]:
        """Whether a switch was reached is told on the way, by the row in pos.db."""
        looked, _ = self._settle_flash()
        return {"verdict": "INTERRUPTED", "version": looked.facts.version}


_KINDS: dict[str, type[Run]] = {
    "migrate": Migrating,
    "rollback": RollingBack,
    "restore": Restoring,
    "prune": Pruning,
    "backup": BackingUp,
    "commit": Committing,
    "settle": Settling,
}


def work(job: Job, desk: Desk) -> None:
    """Do the job and tell its end. AgentErrors are told; anything else ends the process."""
    process.on_stop(desk.ask_to_stop)
    desk.enter(states.CHECKING)
    run: Run | None = None
    try:
        run = _KINDS[job.kind](job, desk)
        late = settle_old_file(job.old_lock, job.config.profile.deadline_ms, desk)
        result = _on_recovered(run, job)
    except Interrupted as stopped:
        # What is done stays as it lies, as after a kill, so that the next start goes on from it.
        desk.tell(error=stopped.as_json())
        return
    except (AgentError, OSError, *database.SQLITE_ERRORS) as raised:
        error = _ours(raised, desk.state)
        if run is not None:
            try:
                run.leave()
            except (AgentError, OSError):
                pass  # what is left behind is a successor, which the next boot deletes
        held = isinstance(error, NeedsTechnician)
        desk.enter(states.HELD if held else states.FAILED)
        desk.tell(error=error.as_json())
        return
    if late:
        result["late_holders"] = late
    held = bool(result.get("late_holders"))
    if held:
        process.let_go()
        desk.go_on_alone()
    desk.enter(states.HELD if held else states.DONE)
    desk.tell(result=result)
    if held and job.old_lock is not None and job.lock is not None:
        job.lock.close()  # on the new file, which the application is to have
        hold_old_file(job.old_lock, desk)
    elif held and job.lock is not None:
        hold_old_file(job.lock, desk)


def _ours(raised: Exception, doing: str) -> AgentError:
    """Our error for one of the system's or of SQLite's that no edge has translated."""
    if isinstance(raised, OSError):
        return flash.refused(raised, doing)
    if isinstance(raised, database.SQLITE_ERRORS):
        return database.refused_by_sqlite(raised, doing)
    assert isinstance(raised, AgentError)
    return raised


def check_kinds(pos: str) -> None:
    """Refuse what is no file where pos.db or a side file of it belongs: SQLite would wait for ever
    on a pipe, and could not open the database beside a folder."""
    for name in (pos, *(pos + suffix for suffix in database.SIDE_FILES)):
        if os.path.lexists(name) and not os.path.isfile(name):
            raise NeedsTechnician(f"{name} is no file; look what put it there", cause="STRANGE")


def _on_recovered(run: Run, job: Job) -> dict[str, Any]:
    pos = job.places.pos
    sizes = [os.stat(p).st_size for p in (pos, pos + "-wal") if os.path.exists(p)]
    run.desk.allow(sum(sizes))  # SQLite gives no mark while it recovers
    try:
        if not sizes:
            raise missing(job.places)  # SQLite would make an empty one
        check_kinds(pos)
        database.recover(pos)
    except NeedsTechnician as error:
        if isinstance(run, Restoring):
            return run.do_uncounted(error)
        raise
    return run.do()


def missing(places: Places) -> AgentError:
    """What to say when there is no pos.db at all; nothing is ever created in its place."""
    left = [p for p in (places.prev, places.next) if os.path.lexists(p)]
    if left:
        row = decide.decide(OnFlash(None, 0))
        return NeedsTechnician(
            f"{places.pos} is missing and {', '.join(left)} is there: {row.done}; a technician "
            "must look at this terminal; `posagent restore --discard unknown` keeps what is there",
            cause="MISSING",
        )
    return NeedsTechnician(
        f"{places.pos} is missing; install the application's data, or restore a backup with "
        "`--discard unknown`",
        cause="MISSING",
    )
