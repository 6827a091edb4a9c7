"""The supervisor: forks a worker per run, kills it when it shows no progress, keeps the diary.

It owns every line to the outside and never touches pos.db beyond holding its lock. So there is one
failure mode, "the worker was killed at any instant", and one answer to it: look at the flash again.
"""

from __future__ import annotations

import os

from agent import __version__, aio
from agent.edges import clock, database, flash, holders, process
from agent.edges.config import places_of
from agent.edges.filelock import FileLock, try_lock
from agent.edges.migration_files import MigrationFiles
from agent.ground import limits
from agent.ground.errors import (
    AgentError,
    Busy,
    Interrupted,
    MigrationsRejected,
    NeedsTechnician,
    TimedOut,
)
from agent.service.chronicle import NOTED, Chronicle
from agent.service.guard import Guard
from agent.service.verdict import REFUSALS, failed, may_start
from agent.service.watch import Watch
from agent.verbs.desk import Desk
from agent.verbs.oldfile import hold_old_file, late_holders
from agent.verbs.switch import drop_next
from agent.worker.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.edges.announce import Announcer
    from agent.edges.config import Config


REAP_MS = 1000  # a worker in a call of the kernel that no KILL ends must not hold up a shutdown


class Supervisor:
    """One job from lock to verdict. `progress` is told what happens and shows it to somebody.

    `guard` is that of an agent that goes on after the job; without one it is the job's own.
    """

    def __init__(self, config: Config, progress: Announcer, guard: Guard | None = None) -> None:
        self.config = config
        self.profile = config.profile
        self.places = places_of(config)
        self.progress = progress
        self.chronicle = Chronicle(self.places)
        self.guard = guard or Guard(config, self.places)
        self.lock: FileLock | None = None
        self.files: MigrationFiles | None = None
        self._child: process.Child | None = None
        self.stopping = False
        self._gave_up = False
        self._held = ""  # the plan that waits while a way back is on

    def run(self, job: Job) -> dict[str, Any]:
        """Do a job and answer its result: `verdict`, `app_may_start`, and `error` when it failed.

        After a crash of this process at any point, running again is the whole recovery.
        """
        try:
            return aio.run(self.work(job))
        finally:
            aio.shutdown()

    async def work(self, job: Job) -> dict[str, Any]:
        """The same for a program that runs on `agent.aio` itself; its other tasks go on meanwhile.

        Cancelled, the worker is killed at once, which is a cut like any other.
        """
        try:
            result = await self._result_of(job)
            self._leave_old_file(job, result)
            self._conclude(job, result)
        except BaseException:
            self._abandon(job)
            raise
        return result

    async def _result_of(self, job: Job) -> dict[str, Any]:
        result: dict[str, Any]
        try:
            self.guard.begin()
            job.agent_version = __version__
            self.progress.publish_to(self.places.status)
            if not os.path.lexists(self.places.pos) and job.discard != "unknown":
                from agent.worker.start import missing

                raise missing(self.places)
            await self._lock_pos_db()
            self._hold_forward(job)
            result = await self._attempts(job)
        except AgentError as error:
            result = self.chronicle.with_switch(failed(error))
        except OSError as error:
            result = self.chronicle.with_switch(
                failed(flash.refused(error, "the supervisor was at work"))
            )
        self._release_forward(result)
        if self.lock is not None:
            self.lock.close()
        return result

    def _hold_forward(self, job: Job) -> None:
        """While a way back is on, what is pending forward must wait: the boot after a cut would
        otherwise do it in the place of what a person asked for."""
        plan = self._forward_plan() if job.kind == "rollback" else ""
        if plan and plan not in self.chronicle.given_up():
            self.chronicle.diary.give_up(
                plan, "a rollback was asked for and did not come to its end"
            )
            self._held = plan

    def _release_forward(self, result: dict[str, Any]) -> None:
        """The way back has ended, this way or that, and somebody was told."""
        if self._held:
            try:
                self.chronicle.diary.take_back(self._held)
            except AgentError as error:
                result.setdefault("warning", error.as_json())

    def _abandon(self, job: Job) -> None:
        """Cancelled or interrupted: the next run looks at what the killed worker left.

        Nothing may be kept that would refuse that run; but a file that was replaced stays locked
        while others have it open, whoever goes away.
        """
        if self.lock is not None:
            if self._is_replaced(self.lock):
                job.old_lock = job.old_lock or self.lock
            else:
                self.lock.close()
        self._leave_old_file(job, {})
        self.chronicle.diary.close()
        self.guard.let_go()

    def _is_replaced(self, lock: FileLock) -> bool:
        try:
            found = os.stat(self.places.pos)
        except OSError:
            return False
        return lock.fd >= 0 and lock.inode != (found.st_dev, found.st_ino)

    # Before the fork

    async def _lock_pos_db(self) -> None:
        """Keep the application out, or say who is in. Nothing is written meanwhile."""
        if not os.path.lexists(self.places.pos):
            return
        give_up_at = clock.steady_ms() + self.profile.busy_wait_ms
        if not os.path.isfile(self.places.pos):
            raise NeedsTechnician(
                f"{self.places.pos} is no file; look what put it there", cause="STRANGE"
            )
        try:
            while True:
                self.lock = try_lock(self.places.pos)
                if self.lock is not None or clock.steady_ms() >= give_up_at:
                    break
                await aio.sleep_ms(limits.RETRY_INTERVAL_MS)
        except OSError as error:
            raise flash.refused(error, f"opening {self.places.pos}") from error
        found = os.stat(self.places.pos)
        inode = (found.st_dev, found.st_ino)
        if self.lock is None:
            raise Busy(f"{self.places.pos} is in use by {self._named(inode)}; stop it first")
        # Whoever had the file open before the lock may hold it open without a lock of its own and
        # would go on writing into the old file. Later openers get nothing and are waited for
        # after the switch.
        earlier, seen = self._holders(inode)
        while holders.open_elsewhere(self.lock.fd) is not False and (earlier or not seen):
            if clock.steady_ms() >= give_up_at:
                raise Busy(f"{self.places.pos} is open in {self._named(inode)}; stop it first")
            await aio.sleep_ms(limits.RETRY_INTERVAL_MS)
            now, seen = self._holders(inode)
            earlier &= now

    async def _lock_new_file(self, job: Job) -> None:
        """Lock pos.db again where a worker died behind its rename: our lock means the old file.

        That one stays locked as well. Raises Busy when an application is in the new file already;
        what it is writing there must not be taken for what a cut has left.
        """
        if self.lock is None:
            return
        found = os.stat(self.places.pos)
        if self.lock.inode != (found.st_dev, found.st_ino):
            job.old_lock, self.lock = self.lock, None
            await self._lock_pos_db()

    def _leave_old_file(self, job: Job, result: dict[str, Any]) -> None:
        """Give up the old file's lock, or leave a child behind with it while others use it."""
        lock = job.old_lock
        if lock is None or lock.fd < 0:
            return
        if not result.get("late_holders") and late_holders(lock):

            def do(reports: int, answers: int) -> None:
                process.let_go()
                hold_old_file(lock, Desk(reports, answers))

            child = process.start_child(do, (lock.fd,), self.profile.ram_budget_bytes)
            os.set_blocking(child.reports, True)
            os.read(child.reports, 1)  # it has let go of us once it has hung up
            child.close()
        lock.close()

    def _holders(self, inode: tuple[int, int]) -> tuple[set[tuple[int, int]], bool]:
        found, complete = holders.holders_of(inode, (os.getpid(),))
        return set(found), complete

    def _named(self, inode: tuple[int, int]) -> str:
        found, complete = holders.holders_of(inode, (os.getpid(),))
        names = sorted({repr(holder) for holder in found.values()})
        if not names:
            return "a program that has ended by now" if complete else "a process of another user"
        return ", ".join(names)

    # Attempts

    async def _attempts(self, job: Job) -> dict[str, Any]:
        """Fork workers until one ends by itself or the plan has used up its attempts."""
        deaths = 0
        death: AgentError | None = None
        asked_for = job.kind
        while True:
            plan = self._pending_plan(job)
            if plan and job.asked:
                self.chronicle.diary.forgive(plan)
            job.given_up = self.chronicle.given_up()
            await self._lock_new_file(job)
            job.known_runs = self.chronicle.diary.runs()
            job.run = self._new_run()
            self.chronicle.own_runs.add(job.run)
            attempt = 0
            if plan and plan not in job.given_up:
                why = self.chronicle.spent(plan, job.retry_attempts)
                if why:
                    return self._give_up(plan, why)
                attempt = self.chronicle.diary.begin_attempt(plan, self.chronicle.boot_id)
                job.attempts = len(self.chronicle.diary.attempts(plan, self.chronicle.boot_id))
            self.chronicle.diary.close()
            watch = await self._one_attempt(job)
            job.kind, job.asked = asked_for, False
            if watch.found_place:
                self.chronicle.diary.came_as_far_as(plan, watch.found_place)
            if attempt:
                self.chronicle.diary.end_attempt(attempt, watch.place, watch.ended, watch.why)
            if watch.result is not None:
                if death is not None and self.chronicle.switched is None:
                    return failed(death)
                return self.chronicle.with_switch(watch.result)
            if watch.error is not None:
                if attempt and watch.ended == "failed":
                    why = self.chronicle.spent(plan, job.retry_attempts)
                    if why:
                        self._give_up(plan, why)
                return self.chronicle.with_switch(failed(watch.error))
            if not attempt:
                deaths += 1
                if deaths >= job.retry_attempts:
                    return self.chronicle.with_switch(failed(watch.death()))
                if job.kind != "migrate":
                    # What a person asked for is not begun again unasked; but whether the switch
                    # was reached must be known before anything is claimed.
                    death, job.kind = watch.death(), "settle"
            self.progress.note(f"the worker ended: {watch.why}; looking at the flash again")

    def _pending_plan(self, job: Job) -> str:
        """The digest of the plan that a migration would run, from headers and names alone."""
        return self._forward_plan() if job.kind == "migrate" else ""

    def _forward_plan(self) -> str:
        header = database.read_header(self.places.pos)
        try:
            self.files = MigrationFiles(self.config.migrations_dir)
        except MigrationsRejected:
            return ""  # the worker says so
        if header is None or not 0 <= header.user_version < self.files.head:
            return ""
        return self.files.digest(header.user_version)

    def _new_run(self) -> str:
        return os.urandom(6).hex()

    def _give_up(self, plan: str, why: str) -> dict[str, Any]:
        """Stop trying: the successor goes, the old data stays in use."""
        last = self.chronicle.diary.last_message(plan)
        drop_next(self.places)
        self.chronicle.diary.give_up(plan, why)
        self._gave_up = True
        text = (
            f"the upgrade was given up: {why} ({last}); the old data stays in use; correct the "
            "cause, then `posagent migrate`"
        )
        kind = TimedOut if "deadline" in last or "memory" in last else AgentError
        return failed(kind(text, cause="GIVEN_UP", plan=plan))

    async def _one_attempt(self, job: Job) -> Watch:
        keep = tuple(lock.fd for lock in (self.lock, job.old_lock) if lock is not None)
        job.lock = self.lock

        def do(reports: int, answers: int) -> None:
            # Only the worker needs what a run is made of; here it would lie in memory twice.
            from agent.worker.start import work

            work(job, Desk(reports, answers))

        if self.stopping:
            raise Interrupted("the agent was told to stop; the next start goes on from here")
        child = process.start_child(do, keep, self.profile.ram_budget_bytes)
        watch = Watch(self, child)
        self._child = child
        try:
            await watch.until_end()
        except BaseException:
            child.kill()
            child.reap(REAP_MS)  # until it is gone it holds its locks
            raise
        finally:
            self._child = None
            child.close()
        return watch

    def stop(self) -> None:
        """End the run at its next batch edge; what is done stays for the next start. Behind the
        rename it is too late, and the run comes to its end."""
        self.stopping = True
        if self._child is not None:
            self._child.ask_to_stop()

    # After

    def _conclude(self, job: Job, result: dict[str, Any]) -> None:
        """Write a failure into history, judge whether the application may start, tell everyone."""
        error = result.get("error")
        if error is None:
            result.pop("error", None)
        elif (error["code"] not in REFUSALS or error["code"] in NOTED) and (
            self._gave_up or error.get("facts", {}).get("cause") != "GIVEN_UP"
        ):
            target = self.files.head if self.files is not None else None
            self.chronicle.failed(job.kind, job.run or self._new_run(), result, target)
        may, why = may_start(result, self.places, self.config.migrations_dir, self.lock is not None)
        result["app_may_start"] = may
        if why:
            result["app_must_not_start_because"] = why
        result["diary_set_aside"] = self.chronicle.diary.set_aside
        self.chronicle.diary.close()
        self.progress.end(result)
        self.guard.end(result["verdict"])
