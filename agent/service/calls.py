"""Does what a peer calls: from memory, by a report, or by a run. Every peer's calls end up here.

A call that changes something goes: its key in the ledger, its right, its preconditions, the ledger,
the reply, the work. A refusal changes nothing and is counted; the counts are written with the next
row, so that a line full of noise wears no flash.
"""

from __future__ import annotations

from agent import __version__, aio
from agent.edges import clock
from agent.edges.holders import boot_id
from agent.ground.codec import encode
from agent.ground.digest import hex_digest
from agent.ground.errors import AgentError, UsageError
from agent.ground.limits import (
    BACKUP_INTERVAL_MS,
    PATIENCE_MS,
    REFUSALS_KEPT_MAX,
    REPORT_DEADLINE_MS,
)
from agent.links import commands, methods, wire
from agent.links.access import reaches
from agent.service import short
from agent.service.reading import Reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.ledger import Call, Ledger
    from agent.links.access import Access
    from agent.links.session import Session
    from agent.service.board import Board
    from agent.service.reports import Reports
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
CAPS = ("crc32", "console", "read")


class Calls:
    """The calls of one daemon. `ledger` and `runs` are made when they are first needed: they bring
    SQLite, which a terminal that nobody calls has no use for."""

    def __init__(
        self,
        config: Config,
        places: Places,
        board: Board,
        reports: Reports,
        access: Access,
        needed: Callable[[], tuple[Ledger, Runs]],
    ) -> None:
        self._config = config
        self._places = places
        self._board = board
        self._reports = reports
        self._access = access
        self._needed = needed
        self._reading = Reading(places, reports, lambda run: self._needed()[1].call_of(run=run))
        self._side: dict[int, _Side] = {}  # reading jobs by number
        self._next_side = SIDE_FIRST
        self._refused: dict[tuple[str, str, str, str], int] = {}
        self._backed_up_ms: int | None = None
        # Whose code was right: a right is for the line that brought it, and for no other.
        self._holder: Session | None = None
        self._was_wrong = False  # a code, and the lock that this leads to was not written yet

    async def call(self, session: Session, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Do one call of a peer. Raises RemoteError, with nothing changed."""
        try:
            return await self._judged(session, method, params)
        except wire.RemoteError as error:
            self._count(session, method, error.kind)
            raise
        except AgentError as error:
            self._count(session, method, error.code)
            raise wire.from_agent_error(error) from error

    async def _judged(self, session: Session, name: str, params: dict[str, Any]) -> dict[str, Any]:
        method = methods.method_named(name)
        params = methods.check_params(method, params)
        if method.changes and name != "cancel":
            return await self._change(session, method, params)
        self._check_level(session, name, params, method.level)
        do = getattr(self, f"_do_{name}")
        found: dict[str, Any] = await do(session, params)
        return found

    def _check_level(self, session: Session, name: str, params: dict[str, Any], need: str) -> None:
        if reaches(session.level, need):
            return
        if need == "admin":
            if session is self._holder and self._access.grants(commands.canonical(name, params)):
                return
            raise wire.remote("NOT_ALLOWED", f"{name} needs a service code", need=need)
        raise wire.remote(
            "NOT_ALLOWED", f"{name} needs level {need}; this line has {session.level}", need=need
        )

    # What changes something

    async def _change(
        self, session: Session, method: methods.Method, params: dict[str, Any]
    ) -> dict[str, Any]:
        op, name = params["op"], method.name
        rest = {key: value for key, value in params.items() if key != "op"}
        digest = hex_digest(encode([name, sorted(rest.items())]).encode())
        ledger, runs = self._needed()
        known = ledger.find(op=op)
        if known is not None:
            self._check_level(session, name, params, "tech")
            return self._replayed(known, digest)
        need = "admin" if params.get("despite_unsettled") else method.level
        self._check_level(session, name, params, need)
        self._check_not_busy(runs)
        if self._has_nothing_to_do(name, params):
            return {"noop": True}
        job = self._job(name, params)
        if name == "backup" and not reaches(session.level, "admin"):
            self._check_backup_pace()
            # Without a code nothing is deleted that a backup of today is no substitute for.
            job.spares_other_schemas = not reaches(session.level, "admin")
        audit = self._audit_row(session.link, session.level, name, "accepted", 1)
        to = params["to"] if name == "rollback" else None
        call = ledger.accept(op, digest, name, KINDS[name], audit, to)
        if session is self._holder:
            # A code is used up by the run that it was for, not by one that flash refused.
            self._access.spend(commands.canonical(name, params))
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
        return {"run": known.run, "replayed": True, "state": self._state(known)}

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

    def _job(self, name: str, params: dict[str, Any]) -> Any:
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

    async def _do_cancel(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        run = params["run"]
        known = self._needed()[0].find(op=params["op"])
        if known is not None:
            self._replayed(known, "")
        if run in self._side:
            raise wire.remote("NO_SUCH", f"run {run} only reads; it ends by itself")
        if not self._board.running or run != self._board.run:
            raise wire.remote("NO_SUCH", f"run {run} is not on", run=run)
        self._needed()[1].stop()
        self._write_audit(session.link, session.level, "cancel", "accepted")
        return {"run": run, "state": "stopping", "done": self._board.snapshot.done}

    # What came of it

    async def _do_result(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        run = params.get("run", 0)
        if run in self._side:
            return self._side_result(run)
        if self._board.running and run == self._board.run:
            return {"run": run, "method": "boot", "state": "running"} | self._known(run)
        call = self._needed()[1].call_of(op=params.get("op", ""), run=run)
        if call is None:
            raise wire.remote("NO_SUCH", "no such call; the last 64 that ended are kept")
        state = self._state(call)
        found: dict[str, Any] = {"run": call.run, "op": call.op, "method": call.method}
        found["state"] = state
        if state != "running":
            found["outcome"] = short.outcome(call.outcome)
        return found

    def _known(self, run: int) -> dict[str, Any]:
        call = self._needed()[1].call_of(run=run)
        return {} if call is None else {"op": call.op, "method": call.method}

    def _state(self, call: Call) -> str:
        return "running" if call.state == "started" else call.state

    async def _do_validate(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return self._begin_side(session, ("validate",))

    async def _do_verify(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        words = ("verify", str(params["backup"])) if "backup" in params else ("verify",)
        if words[-1].startswith("-"):  # the command would take it for an option, --root perhaps
            raise wire.remote("NO_SUCH", "no backup has a name that begins with a dash")
        return self._begin_side(session, words)

    def _begin_side(self, session: Session, words: tuple[str, ...]) -> dict[str, Any]:
        """A job that only reads. Its number is good until the next start, or until some more were
        asked for: whoever asks twice while it is at work gets the same work."""
        for run, side in self._side.items():
            if side.words == words and side.outcome is None:
                return {"run": run, "replayed": True, "state": "running"}
        if self._board.running:
            raise wire.remote("BUSY", f"run {self._board.run} is on", run=self._board.run)
        self._reports.begin(words)
        run, side = self._next_side, _Side(words)
        self._next_side += 1
        self._side[run] = side
        aio.create_task(self._side_to_its_end(side))
        while len(self._side) > SIDES_MAX:
            del self._side[next(iter(self._side))]
        return {"run": run, "replayed": False, "state": "running"}

    async def _side_to_its_end(self, side: _Side) -> None:
        try:
            said = await self._reports.answer(side.words, REPORT_DEADLINE_MS + PATIENCE_MS)
        except AgentError as error:
            said = {"error": error.as_json()}
        said.setdefault("verdict", "REFUSED" if "error" in said else "OK")
        side.state = "failed" if "error" in said else "done"
        side.outcome = short.outcome(said)

    def _side_result(self, run: int) -> dict[str, Any]:
        side = self._side[run]
        found: dict[str, Any] = {"run": run, "method": side.words[0], "state": side.state}
        return found if side.outcome is None else dict(found, outcome=side.outcome)

    # What is so

    async def _do_hello(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        if 1 not in params["proto"]:
            raise wire.remote("PARAMS", "this agent speaks proto 1", param="proto", allowed=1)
        return {
            "proto": 1,
            "agent": __version__,
            "model": self._config.profile.id,
            "serial": self._config.device_id,
            "boot": self._board.boot,
            "limits": {"request": session.request_bytes_max, "reply": session.reply_bytes_max},
            "level": session.level,
            "caps": list(CAPS),
        }

    async def _do_describe(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        if "method" not in params:
            return {"methods": list(methods.METHODS)}
        return methods.method_named(params["method"]).as_json()

    async def _do_ping(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _do_status(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        await self._board.look_again(PATIENCE_MS)
        return self._board.status()

    async def _do_subscribe(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        session.subscribe(params["events"], params.get("min_ms", 0))
        return self._board.status()

    async def _do_console(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        if session.link not in ("socket", "tcp"):
            raise wire.remote("REQUEST", "this line is a console already")
        return {}

    async def _do_unsubscribe(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        session.unsubscribe()
        return {}

    async def _do_plan(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        steps, more = short.plan(await self._said(session, "plan", params))
        self._board.need_kib = more["peak_kib"]
        return wire.page("steps", steps, params.get("cursor", 0), session.reply_bytes_max, **more)

    async def _do_history(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return await self._rows(session, "history", params)

    async def _do_backups(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return await self._rows(session, "backups", params)

    async def _do_quarantine(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return await self._rows(session, "quarantine", params)

    async def _do_log(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return await self._rows(session, "log", params)

    async def _do_health(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        said = await self._said(session, "health", params)
        found, start = short.rows(said, "checks"), params.get("cursor", 0)
        return wire.page("checks", found, start, session.reply_bytes_max, worst=said["worst"])

    async def _do_profile(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        said = await self._said(session, "profile", params)
        more = {"id": said["id"], "title": said["title"]}
        found, start = short.settings(said), params.get("cursor", 0)
        return wire.page("settings", found, start, session.reply_bytes_max, **more)

    async def _rows(self, session: Session, name: str, params: dict[str, Any]) -> dict[str, Any]:
        found = short.rows(await self._said(session, name, params), name)
        return wire.page(name, found, params.get("cursor", 0), session.reply_bytes_max)

    async def _said(self, session: Session, verb: str, params: dict[str, Any]) -> dict[str, Any]:
        """What the command says; a further page is of the same report."""
        fresh = not params.get("cursor")
        return await self._reports.answer((verb,), session.patience_ms, fresh)

    async def _do_read(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        name = params["name"]
        need = self._reading.level_of(name)
        self._check_level(session, "read", {"name": name}, need)
        return await self._reading.piece(name, params["off"], session.patience_ms)

    # Rights

    async def _do_challenge(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        self._needed()
        name, given = _call_in(params["command"])
        method = methods.method_named(name)
        if method.level != "admin" and not given.get("despite_unsettled"):
            raise wire.remote("PARAMS", f"{name} needs no code", param="command")
        # A challenge for what could never be called would cost a telephone call.
        methods.check_params(method, {**given, "op": "challenged"} if method.changes else given)
        if name == "restore":
            self._job(name, given)  # a backup that is not there needs no code
        return self._access.challenge(commands.canonical(name, given))

    async def _do_code(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        self._needed()
        command = self._access.answer(params["code"])
        self._holder = session
        self._write_audit(session.link, session.level, "code", "accepted")
        return {"ok": True, "command": command}

    # The audit

    def _count(self, session: Session, method: str, kind: str) -> None:
        """Count a refusal; a wrong code is written at once, and the lock that follows it. Other
        refusals of a code come as often as somebody likes to send them, and would wear flash."""
        known = method if method in methods.METHODS else "unknown"
        key = (session.link, session.level, known, kind)
        if key in self._refused or len(self._refused) < REFUSALS_KEPT_MAX:
            self._refused[key] = self._refused.get(key, 0) + 1
        if known == "code" and (kind == "CODE_WRONG" or (kind == "LOCKED" and self._was_wrong)):
            self._was_wrong = kind == "CODE_WRONG"
            self.flush_audit()

    def _audit_row(
        self, link: str, level: str, method: str, outcome: str, count: int
    ) -> dict[str, Any]:
        return {
            "at_ms": clock.wall_ms(),
            "boot_id": boot_id(),
            "link": link,
            "level": level,
            "method": method,
            "outcome": outcome,
            "count": count,
        }

    def _write_audit(self, link: str, level: str, method: str, outcome: str) -> None:
        self._refused[link, level, method, outcome] = (
            self._refused.get((link, level, method, outcome), 0) + 1
        )
        self.flush_audit()

    def flush_audit(self) -> None:
        """Write what was counted; a diary that refuses keeps nobody from working."""
        rows = [self._audit_row(*key, count) for key, count in self._refused.items()]
        if rows:
            try:
                self._needed()[0].note(rows)
                self._refused.clear()
            except AgentError as error:
                self._board.note(f"the audit could not be written: {error.message}")


def _call_in(text: str) -> tuple[str, dict[str, Any]]:
    """The method and the parameters of a command as it is typed."""
    words = text.split()
    command = commands.COMMANDS.get(words[0]) if words else None
    if command is None or not command.method:
        raise wire.remote("PARAMS", "command must be one such as restore 41", param="command")
    try:
        return command.method, commands.parse(command, words[1:])
    except commands.TypingError as error:
        raise wire.remote("PARAMS", str(error), param="command") from error


SIDE_FIRST = 1_000_000_001  # far above any run that the ledger numbers
SIDES_MAX = 8


class _Side:
    """A job that only reads: what was asked, and what came of it."""

    __slots__ = ("outcome", "state", "words")

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.state = "running"
        self.outcome: dict[str, Any] | None = None
