"""Calls that change something: once for each key, judged, made durable, answered, then done."""

from __future__ import annotations

from agent.edges import clock
from agent.ground.codec import encode
from agent.ground.digest import hex_digest
from agent.ground.errors import UsageError
from agent.ground.limits import BACKUP_INTERVAL_MS
from agent.links import wire
from agent.links.access import reaches
from agent.service import short
from agent.service.audit import audit_row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.ledger import Call, Ledger
    from agent.links import methods
    from agent.links.session import Session
    from agent.service.audit import Audit
    from agent.service.board import Board
    from agent.service.rights import Rights
    from agent.service.runs import Runs

# From a method to the kind of job.
KINDS = {
    "migrate": "migrate",
    "rollback": "rollback",
    "restore": "restore",
    "prune": "prune",
    "backup": "backup",
    "commit": "commit",
}


class Changes:
    """What changes something, of one daemon."""

    def __init__(
        self,
        config: Config,
        places: Places,
        board: Board,
        rights: Rights,
        audit: Audit,
        needed: Callable[[], tuple[Ledger, Runs]],
    ) -> None:
        self._config = config
        self._places = places
        self._board = board
        self._rights = rights
        self._audit = audit
        self._needed = needed
        self._backed_up_ms: int | None = None

    def change(
        self, session: Session, method: methods.Method, params: dict[str, Any]
    ) -> dict[str, Any]:
        """Accept a call, durably, and begin its work; or answer what became of it the first time.
        Raises RemoteError and AgentError, with nothing changed."""
        op, name = params["op"], method.name
        rest = {key: value for key, value in params.items() if key != "op"}
        digest = hex_digest(encode([name, sorted(rest.items())]).encode())
        ledger, runs = self._needed()
        known = ledger.find(op=op)
        if known is not None:
            self._rights.check(session, name, params, "tech")
            return self._replayed(known, digest)
        need = "admin" if params.get("despite_unsettled") else method.level
        self._rights.check(session, name, params, need)
        self._check_not_busy(runs)
        if self._has_nothing_to_do(name, params):
            return {"noop": True}
        job = self.job(name, params)
        if name == "backup" and not reaches(session.level, "admin"):
            self._check_backup_pace()
            # Without a code nothing is deleted that a backup of today is no substitute for.
            job.spares_other_schemas = True
        audit = audit_row(session.link, session.level, name, "accepted")
        to = params["to"] if name == "rollback" else None
        call = ledger.accept(op, digest, name, KINDS[name], audit, to)
        self._rights.use_up(session, name, params)
        if name == "backup":
            self._backed_up_ms = clock.steady_ms()
        runs.start(call, job)
        return {"run": call.run, "replayed": False, "state": "running"}

    def _replayed(self, known: Call, digest: str) -> dict[str, Any]:
        if known.digest != digest:
            raise wire.remote(
                "OP_REUSED",
                f"this op was used for {known.method}, run {known.run}; a new call needs a new one",
                method=known.method,
                run=known.run,
            )
        return {"run": known.run, "replayed": True, "state": state_of(known)}

    def _check_not_busy(self, runs: Runs) -> None:
        if runs.is_on:
            run = self._board.run
            raise wire.remote("BUSY", f"run {run} is on; wait for its end, or cancel it", run=run)

    def _has_nothing_to_do(self, name: str, params: dict[str, Any]) -> bool:
        """Whether a migrate has nothing to do. Raises PARAMS and PLAN_CHANGED."""
        if name not in ("migrate", "rollback"):
            return False
        self._board.look()
        schema, target, to = self._board.schema, self._board.target, params["to"]
        if name == "migrate" and target is not None and to != target:
            back = schema is not None and to < schema
            hint = "; for an earlier version there is rollback" if back else ""
            raise wire.remote(
                "PARAMS",
                f"to must be {target}, the installed target{hint}",
                param="to",
                allowed=target,
            )
        given = params.get("plan")
        plan = self._plan_now() if given is not None or name == "migrate" else None
        if given is not None and plan is not None and given != plan:
            raise wire.remote(
                "PLAN_CHANGED", f"the plan is {plan} by now; look at it, then start it", plan=plan
            )
        return name == "migrate" and schema == to

    def _plan_now(self) -> str | None:
        from agent.core.plan_name import plan_name
        from agent.edges.migration_files import MigrationFiles

        files, schema = MigrationFiles(self._config.migrations_dir), self._board.schema
        if schema is None or not 0 <= schema <= files.head:
            return None
        return plan_name(schema, files.head, files.digest(schema), self._config.profile)

    def _check_backup_pace(self) -> None:
        now = clock.steady_ms()
        if self._backed_up_ms is not None and now - self._backed_up_ms < BACKUP_INTERVAL_MS:
            left = (BACKUP_INTERVAL_MS - now + self._backed_up_ms) // 1000 + 1
            raise wire.remote("BUSY", f"one backup a minute; {left} s to wait", retry_s=left)

    def job(self, name: str, params: dict[str, Any]) -> Any:
        """The job that a call asks for. Raises NO_SUCH and UsageError."""
        from agent.worker.job import Job

        given: dict[str, Any] = {"asked": name in ("migrate", "rollback")}
        given["despite_unsettled"] = params.get("despite_unsettled", False)
        if name == "rollback":
            given["to_version"] = params["to"]
        if name == "restore":
            from agent.verbs.restore import find_backup, parse_discard

            if params["backup"] == "latest":
                # By the time it is done another one may be: a line names the one it means.
                raise wire.remote("NO_SUCH", "name the backup by its number; see backups")
            try:
                given["restore_from"] = find_backup(self._config.backups_dir, str(params["backup"]))
            except UsageError as error:
                raise wire.remote("NO_SUCH", error.message) from error
            if "discard" in params:
                given["discard"] = parse_discard(params["discard"])
        return Job(KINDS[name], self._config, self._places, **given)

    def cancel(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        """Ask the run to end at its next batch edge."""
        run = params["run"]
        known = self._needed()[0].find(op=params["op"])
        if known is not None:
            self._replayed(known, "")
        if not self._board.running or run != self._board.run:
            raise wire.remote("NO_SUCH", f"run {run} is not on", run=run)
        self._needed()[1].stop()
        self._audit.accepted(session, "cancel")
        return {"run": run, "state": "stopping", "done": self._board.snapshot.done}

    def result(self, params: dict[str, Any]) -> dict[str, Any]:
        """What became of a call, by its key or its number."""
        run = params.get("run", 0)
        if self._board.running and run == self._board.run:
            return {"run": run, "method": "boot", "state": "running"} | self._known(run)
        call = self._needed()[1].call_of(op=params.get("op", ""), run=run)
        if call is None:
            raise wire.remote("NO_SUCH", "no such call; the last 64 that ended are kept")
        state = state_of(call)
        found: dict[str, Any] = {"run": call.run, "op": call.op, "method": call.method}
        found["state"] = state
        if state != "running":
            found["outcome"] = short.outcome(call.outcome)
        return found

    def _known(self, run: int) -> dict[str, Any]:
        call = self._needed()[1].call_of(run=run)
        return {} if call is None else {"op": call.op, "method": call.method}


def state_of(call: Call) -> str:
    """The state of a call in the words of the wire."""
    return "running" if call.state == "started" else call.state
