"""The supervisor: forks a worker per run, kills it when it shows no progress, keeps the diary.

It owns every line to the outside and never touches pos.db beyond holding its lock. So there is one
failure mode, "the worker was killed at any instant", and one answer to it: look at the flash again.
"""

from __future__ import annotations

import errno
import fcntl
import os

from agent import __version__, aio
from agent.core import decide, states
from agent.core.terminal import Places
from agent.edges import clock, database, flash, holders, process
from agent.edges.filelock import FileLock, try_lock
from agent.edges.migration_files import MigrationFiles, read_contracts
from agent.edges.state import Diary
from agent.edges.watchdog import Notifier, Watchdog
from agent.ground import limits
from agent.ground.codec import decode
from agent.ground.errors import (
    AgentError,
    Busy,
    ConfigError,
    InternalError,
    MigrationsRejected,
    TimedOut,
    revive,
)
from agent.verbs.desk import Desk
from agent.verbs.oldfile import hold_old_file, late_holders
from agent.verbs.switch import drop_next, read_seal, same_file
from agent.worker.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.edges.announce import Announcer
    from agent.edges.config import Config

# Refusals: nothing was done, so they say nothing about the plan and are not counted.
_REFUSALS = ("BUSY", "STORAGE_ERROR", "CONFIG", "SCHEMA_TOO_NEW", "HELD", "UNSETTLED", "USAGE")
# Refusals that a technician will ask about later; the same one is noted once, not at every boot.
_NOTED = ("STORAGE_ERROR", "UNSETTLED")
MEMORY_LOOK_MS = 200


def places_of(config: Config) -> Places:
    """The paths of one terminal; side files lie beside the file that pos.db's name resolves to."""
    pos = os.path.realpath(config.pos_db)
    return Places(pos, config.state_dir, config.backups_dir, config.run_dir)


class Supervisor:
    """One job from lock to verdict. `progress` is told what happens and shows it to somebody."""

    def __init__(self, config: Config, progress: Announcer) -> None:
        self.config = config
        self.profile = config.profile
        self.places = places_of(config)
        self.progress = progress
        self.diary = Diary(os.path.join(config.state_dir, "agent.db"))
        self.notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
        self.watchdog = Watchdog(config.watchdog_device, self.profile.watchdog_timeout_s)
        self.boot_id = holders.boot_id()
        self.lock: FileLock | None = None
        self.files: MigrationFiles | None = None
        self._flock = -1
        # What the worker told of a switch reached during this call, or None.
        self.switched: dict[str, Any] | None = None
        # What went wrong after the switch, where it is too late to fail.
        self.warning: dict[str, Any] | None = None
        self._gave_up = False

    def run(self, job: Job) -> dict[str, Any]:
        """Do a job and answer its result: `verdict`, `app_may_start`, and `error` when it failed.

        After a crash of this process at any point, running again is the whole recovery.
        """
        try:
            return aio.run(self._run(job))
        finally:
            aio.shutdown()

    async def _run(self, job: Job) -> dict[str, Any]:
        result: dict[str, Any]
        try:
            self._take_flock()
            self._watch_over(job)
            if not os.path.lexists(self.places.pos) and job.discard != "unknown":
                from agent.worker.start import missing

                raise missing(self.places)
            await self._lock_pos_db(job)
            result = await self._attempts(job)
        except AgentError as error:
            result = self._with_switch(_failed(error))
        except OSError as error:
            result = self._with_switch(_failed(flash.refused(error, "the supervisor was at work")))
        finally:
            if self.lock is not None:
                self.lock.close()
        self._leave_old_file(job, result)
        self._conclude(job, result)
        return result

    # Before the fork

    def _take_flock(self) -> None:
        """One agent at a time; the kernel gives the lock back when this process ends."""
        try:
            flash.make_folder(self.places.state, 0o755)
            self._flock = os.open(self.places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise flash.refused(error, f"preparing {self.places.state}") from error
        try:
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise Busy(
                "another posagent is at work on this terminal; `status` tells what",
                other_agent=True,
            ) from None

    def _watch_over(self, job: Job) -> None:
        job.agent_version = __version__
        self.progress.publish_to(self.places.status)

    async def _lock_pos_db(self, job: Job) -> None:
        """Keep the application out, or say who is in. Nothing is written meanwhile."""
        if not os.path.lexists(self.places.pos):
            return
        give_up_at = clock.steady_ms() + self.profile.busy_wait_ms
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
            await self._lock_pos_db(job)

    def _leave_old_file(self, job: Job, result: dict[str, Any]) -> None:
        """Give up the old file's lock, or leave a child behind with it while others use it."""
        lock = job.old_lock
        if lock is None:
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
                self.diary.forgive(plan)
            job.given_up = self._given_up()
            await self._lock_new_file(job)
            job.known_runs = self.diary.runs()
            job.run = self._new_run()
            attempt = 0
            if plan and plan not in job.given_up:
                why = self._spent(plan)
                if why:
                    return self._give_up(plan, why)
                attempt = self.diary.begin_attempt(plan, self.boot_id)
                job.attempts = len(self.diary.attempts(plan, self.boot_id))
            self.diary.close()
            watch = await self._one_attempt(job)
            job.kind, job.asked = asked_for, False
            if watch.found_place:
                self.diary.came_as_far_as(plan, watch.found_place)
            if attempt:
                self.diary.end_attempt(attempt, watch.place, watch.ended, watch.why)
            if watch.result is not None:
                if death is not None and self.switched is None:
                    return _failed(death)
                return self._with_switch(watch.result)
            if watch.error is not None:
                if attempt and watch.ended == "failed" and self._spent(plan):
                    self._give_up(plan, self._spent(plan))
                return self._with_switch(_failed(watch.error))
            if not attempt:
                deaths += 1
                if deaths >= limits.ATTEMPTS_WITHOUT_PROGRESS_MAX:
                    return self._with_switch(_failed(watch.death()))
                if job.kind != "migrate":
                    # What a person asked for is not begun again unasked; but whether the switch
                    # was reached must be known before anything is claimed.
                    death, job.kind = watch.death(), "settle"
            self.progress.note(f"the worker ended: {watch.why}; looking at the flash again")

    def _with_switch(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result of a run whose switch was reached, whoever died after it: it is done."""
        said = self.switched
        if self.warning is not None:
            result = dict(result, warning=self.warning)
        if said is None or (result["verdict"] == "OK" and "run" in result):
            return result
        done = {name: value for name, value in result.items() if name != "error"}
        return dict(
            done,
            verdict="OK",
            warning=result.get("error", self.warning),
            run=said["run"],
            from_version=said["from_version"],
            to_version=said["to_version"],
            timestamp=said["at_ms"],
            clock_trusted=said["clock_trusted"],
            records=sum(said["before"]["records"].values()),
            unsettled=sum(said["before"]["unsettled_records"].values()),
            backup=said["backup"],
        )

    def _pending_plan(self, job: Job) -> str:
        """The digest of the plan that a migration would run, from headers and names alone."""
        if job.kind != "migrate":
            return ""
        header = database.read_header(self.places.pos)
        try:
            self.files = MigrationFiles(self.config.migrations_dir)
        except MigrationsRejected:
            return ""  # the worker says so
        if header is None or not 0 <= header.user_version < self.files.head:
            return ""
        return self.files.digest(header.user_version)

    def _given_up(self) -> dict[str, str]:
        known = self.diary.given_up()
        if self.diary.set_aside:
            seal = read_seal(self.places)
            for plan in seal.given_up if seal is not None else ():
                known.setdefault(plan, "known from before the diary was damaged")
                self.diary.give_up(plan, known[plan])
        return known

    def _new_run(self) -> str:
        return os.urandom(6).hex()

    def _spent(self, plan: str) -> str:
        return decide.attempts_spent(
            self.diary.attempts(plan, self.boot_id),
            limits.ATTEMPTS_WITHOUT_PROGRESS_MAX,
            limits.ATTEMPTS_TOTAL_MAX,
        )

    def _give_up(self, plan: str, why: str) -> dict[str, Any]:
        """Stop trying: the successor goes, the old data stays in use."""
        last = self.diary.last_message(plan)
        drop_next(self.places)
        self.diary.give_up(plan, why)
        self._gave_up = True
        text = (
            f"the upgrade was given up: {why} ({last}); the old data stays in use; correct the "
            "cause, then `posagent migrate`"
        )
        kind = TimedOut if "deadline" in last or "memory" in last else AgentError
        return _failed(kind(text, cause="GIVEN_UP", plan=plan))

    async def _one_attempt(self, job: Job) -> _Watch:
        keep = tuple(lock.fd for lock in (self.lock, job.old_lock) if lock is not None)
        job.lock = self.lock

        def do(reports: int, answers: int) -> None:
            # Only the worker needs what a run is made of; here it would lie in memory twice.
            from agent.worker.start import work

            work(job, Desk(reports, answers))

        child = process.start_child(do, keep, self.profile.ram_budget_bytes)
        watch = _Watch(self, child, job)
        try:
            await watch.until_end()
        except BaseException:
            child.kill()
            raise
        finally:
            child.close()
        return watch

    # After

    def _conclude(self, job: Job, result: dict[str, Any]) -> None:
        """Write a failure into history, judge whether the application may start, tell everyone."""
        error = result.get("error")
        if error is None:
            result.pop("error", None)
        elif (error["code"] not in _REFUSALS or error["code"] in _NOTED) and (
            self._gave_up or error.get("facts", {}).get("cause") != "GIVEN_UP"
        ):
            self._write_failure(job, result)
        self._judge_start(result)
        try:
            result["diary_set_aside"] = self.diary.set_aside
            self.diary.close()
        finally:
            self.watchdog.close()
        self.progress.end(result)
        self.notifier.send("READY=1\nSTATUS=" + result["verdict"])
        self.notifier.close()
        if self._flock >= 0:
            os.close(self._flock)

    def _write_failure(self, job: Job, result: dict[str, Any]) -> None:
        error = result["error"]
        try:
            header = database.read_header(self.places.pos)
        except OSError:
            header = None
        version = header.user_version if header is not None else None
        row = {
            "run": job.run or self._new_run(),
            "kind": job.kind,
            "state": "failed",
            "from_version": version,
            "to_version": self.files.head if self.files is not None else None,
            "verdict": result["verdict"],
            "code": error["code"],
            "message": error["message"],
            "at_ms": clock.wall_ms(),
            "clock_trusted": 0,
            "boot_id": self.boot_id,
        }
        try:
            last = self.diary.history(1) if error["code"] in _NOTED else []
            same = ("kind", "code", "from_version", "to_version")
            if not any(all(entry[name] == row[name] for name in same) for entry in last):
                self.diary.write_history([row])
        except AgentError as failure:
            result["diary"] = failure.as_json()

    def write_history(self, said: dict[str, Any]) -> None:
        """Make a finished run durable in the diary: one row per migration, in one commit."""
        shared = {
            "run": said["run"],
            "kind": said["kind"],
            "state": "applied",
            "from_version": said["from_version"],
            "to_version": said["to_version"],
            "verdict": "OK",
            "at_ms": said["at_ms"],
            "clock_trusted": int(said["clock_trusted"]),
            "boot_id": self.boot_id,
            "facts": {"backup": said["backup"], "before": said["before"]},
        }
        rows = [dict(shared, version=int(name[:4]), name=name[:-3]) for name in said["names"]] or [
            shared
        ]
        self.switched = said
        try:
            if not self.diary.knows_run(said["run"]):
                self.diary.write_history(rows)
            if said["hold"]:
                self.diary.give_up(said["hold"], "restored on request")
        except AgentError as error:
            # The switch is done whatever the diary says; the next boot reads it from pos.db.
            self.warning = error.as_json()
        finally:
            self.diary.close()

    def _judge_start(self, result: dict[str, Any]) -> None:
        """`app_may_start`: pos.db is at one whole version that the application reads, unlocked."""
        may, why = self._start_allowed(result)
        result["app_may_start"] = may
        if why:
            result["app_must_not_start_because"] = why

    def _old_file_users(self) -> list[str]:
        """Who still has the file open that an earlier switch replaced, our own holder left out."""
        try:
            old = os.stat(self.places.prev)
        except OSError:
            return []
        if same_file(self.places.pos, self.places.prev):
            return []  # cut before the rename: the file in use, which nothing has replaced yet
        found, _ = holders.holders_of((old.st_dev, old.st_ino), (os.getpid(),))
        return sorted({repr(h) for h in found.values() if h.name != process.HOLDER_NAME})

    def _start_allowed(self, result: dict[str, Any]) -> tuple[bool, str]:
        late = result.get("late_holders") or self._old_file_users()
        if late:
            return False, f"the old file is still open in {', '.join(late)}"
        error = result.get("error") or {}
        if error.get("facts", {}).get("other_agent"):
            return False, "another posagent is at work; it says when the application may start"
        if error.get("code") == "HELD":
            return False, str(error["message"])
        try:
            header = database.read_header(self.places.pos)
        except OSError as failure:
            return False, f"pos.db cannot be read: {failure.strerror}"
        if header is None:
            return False, "pos.db is no SQLite file"
        try:
            contracts = read_contracts(self.config.migrations_dir)
        except AgentError as failure:
            return False, f"which schema the application reads is not known: {failure.message}"
        if not contracts.application_reads(header.user_version):
            low, high = contracts.app_reads
            return False, (
                f"pos.db has schema {header.user_version} and the application reads {low} to {high}"
            )
        if self.lock is not None and error.get("code") != "BUSY":
            try:
                fresh = try_lock(self.places.pos)
            except OSError as failure:
                if failure.errno == errno.EROFS:
                    return True, ""  # whoever can only read needs no lock
                fresh = None
            except ConfigError:
                fresh = None
            if fresh is None:
                return False, "pos.db is still locked"
            fresh.close()
        return True, ""


class _Watch:
    """One attempt as the supervisor sees it: reports read, deadline and limit held."""

    def __init__(self, owner: Supervisor, child: process.Child, job: Job) -> None:
        self.owner = owner
        self.child = child
        self.job = job
        self.result: dict[str, Any] | None = None
        self.error: AgentError | None = None
        self.ended = "died"
        self.why = ""
        self.place = 0
        self.found_place = 0
        self.holding = False
        self._state = states.CHECKING
        self._buffer = b""
        self._deadline_ms = owner.profile.deadline_ms
        self._due = clock.steady_ms() + self._deadline_ms

    async def until_end(self) -> None:
        """Until the worker has told its end, died, or had to be killed."""
        while await self._next_reports():
            pass
        if self.holding:
            return
        if self.result is None and self.error is None:
            self.child.kill()
        # Its locks are gone only once it is; a zombie holds nothing.
        status = await aio.child_ended(self.child.pid)
        self.why = self.why or process.outcome_of(status)

    async def _next_reports(self) -> bool:
        """Wait for reports for a moment; False when there is nothing more to wait for."""
        wait = max(min(self._due - clock.steady_ms(), MEMORY_LOOK_MS), 1)
        try:
            await aio.wait_for_ms(aio.wait_readable(self.child.reports), wait)
        except aio.TimeoutError:
            return self._still_in_bounds()
        try:
            data = os.read(self.child.reports, limits.REPORT_BYTES_MAX)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._take(decode(line.decode(), 256))
        if len(self._buffer) > limits.REPORT_BYTES_MAX:
            self._kill("its reports make no sense")
        return self.result is None and self.error is None and self._still_in_bounds()

    def _still_in_bounds(self) -> bool:
        """Kill what hangs or eats memory. There is no other way to stop C code."""
        self.owner.progress.tick()
        if clock.steady_ms() >= self._due:
            self._kill(
                f"no progress within the deadline of {self._deadline_ms} ms while {self._state}"
            )
        else:
            resident, shared = holders.memory_of(self.child.pid)
            if resident - shared > self.owner.profile.ram_budget_bytes:
                self._kill(f"it outgrew its memory of {self.owner.profile.ram_budget_bytes} bytes")
        return not self.why

    def _kill(self, why: str) -> None:
        self.why = why
        self.child.kill()

    def _take(self, said: dict[str, Any]) -> None:
        """One report. Whatever it says, it is a sign of life."""
        self._due = clock.steady_ms() + self._deadline_ms + int(said.get("allow_ms", 0))
        if "waiting_for" not in said:
            self.owner.watchdog.feed()
        if "state" in said:
            self._enter(said)
        elif "switched" in said:
            self.owner.write_history(said["switched"])
            try:
                os.write(self.child.answers, b"+")
            except BrokenPipeError:
                pass  # it has died meanwhile, which its end will tell
        elif "came_as_far_as" in said:
            self.found_place = _place(states.MIGRATING, int(said["came_as_far_as"]))
        elif "result" in said:
            self.result, self.ended = said["result"], "done"
            self.holding = bool(self.result.get("late_holders"))
        elif "error" in said:
            self.error = revive(said["error"])
            # A refusal before anything was written says nothing about the plan; one that comes
            # after a backup and a copy wears the flash and counts like any other failure.
            early = self.place < _place(states.BACKING_UP, 0)
            self.ended = "refused" if early and self.error.code in _REFUSALS else "failed"
            self.why = self.error.message
        elif "crash" in said:
            self.why = said["crash"]
            self.error = InternalError(f"a fault of the agent: {said['crash']}")
            self.ended = "failed"
        elif "odd" in said:
            store, key, reason = said["first"]
            self.owner.progress.note(
                f"{said['odd']} records outside the plan cannot be read, the first is "
                f"{store}/{key}: {reason}"
            )
        elif "found" in said:
            self.owner.progress.note(f"found: {said['text']}")

    def _enter(self, said: dict[str, Any]) -> None:
        state, done = said["state"], int(said.get("done", 0))
        if not states.may_follow(self._state, state):
            self._kill(f"it went from {self._state} to {state}")
            return
        self._state = state
        if state not in states.FINAL:
            self.place = max(self.place, _place(state, done if state == states.MIGRATING else 0))
        self.owner.progress.mark(state, said.get("store", ""), done, int(said.get("total", 0)))
        self.owner.notifier.send(
            f"EXTEND_TIMEOUT_USEC={2000 * self._deadline_ms}\nSTATUS={state} {done}"
        )

    def death(self) -> AgentError:
        """The error for a worker that did not end by itself and is not tried again."""
        if "memory" in self.why or "deadline" in self.why:
            return TimedOut(f"the worker was stopped: {self.why}; nothing was changed")
        return InternalError(f"the worker ended: {self.why}; nothing was changed")


def _place(state: str, done: int) -> int:
    """How far a run is, as one number: later states count more than any number of records."""
    return states.STATES.index(state) * 10**12 + done


def _failed(error: AgentError) -> dict[str, Any]:
    verdict = "HELD" if error.code == "HELD" else "REFUSED"
    if error.code in ("VALIDATION_ERROR", "TIMEOUT", "INTERNAL", "FAILED", "BACKUP_CORRUPT"):
        verdict = "ROLLED_BACK"
    if error.facts.get("cause") == "GIVEN_UP":
        verdict = "HELD"
    return {"verdict": verdict, "error": error.as_json()}


def exit_code(result: dict[str, Any], boot: bool) -> int:
    """The process's exit code for a result. `boot` answers 12 exactly when the application must
    not start, but for a second agent, which leaves that to the first and answers 5."""
    other = "error" in result and result["error"].get("facts", {}).get("other_agent")
    if boot and not result["app_may_start"] and not other:
        return 12
    if "error" in result:
        return revive(result["error"]).exit_code
    return {"PARTIAL": 14, "INTERRUPTED": 3}.get(result["verdict"], 0)
