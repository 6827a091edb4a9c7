"""Does what a peer calls: from memory, by a report, or by a run. Every peer's calls end up here.

Whatever is refused changes nothing and is counted.
"""

from __future__ import annotations

from agent import __version__
from agent.ground.errors import AgentError
from agent.ground.limits import PATIENCE_MS
from agent.links import commands, methods, wire
from agent.service import short
from agent.service.audit import Audit
from agent.service.changes import Changes
from agent.service.reading import Reading, age_of
from agent.service.reading_jobs import ReadingJobs
from agent.service.rights import Rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.ledger import Ledger
    from agent.links.access import Access
    from agent.links.session import Session
    from agent.service.board import Board
    from agent.service.reports import Reports
    from agent.service.runs import Runs

CAPS = ("crc32", "console", "read")


class Calls:
    """The calls of one daemon. What `needed` answers is made when it is first asked: it brings
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
        self._board = board
        self._reports = reports
        self._needed = needed
        self._rights = Rights(access)
        self.audit = Audit(lambda: needed()[0], board.note)
        self._changes = Changes(config, places, board, self._rights, self.audit, needed)
        self._jobs = ReadingJobs(board, reports)
        self._reading = Reading(
            places, reports, self._jobs, lambda run: needed()[1].call_of(run=run)
        )

    async def call(self, session: Session, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Do one call of a peer. Raises RemoteError, with nothing changed."""
        try:
            return await self._judged(session, method, params)
        except wire.RemoteError as error:
            self.audit.refused(session, method, error.kind)
            raise
        except AgentError as error:
            self.audit.refused(session, method, error.code)
            raise wire.from_agent_error(error) from error

    async def _judged(self, session: Session, name: str, params: dict[str, Any]) -> dict[str, Any]:
        method = methods.method_named(name)
        params = methods.check_params(method, params)
        if method.changes and name != "cancel":
            return self._changes.change(session, method, params)
        self._rights.check(session, name, params, method.level)
        do = getattr(self, f"_do_{name}")
        found: dict[str, Any] = await do(session, params)
        return found

    async def _do_cancel(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        if self._jobs.knows(params["run"]):
            raise wire.remote("NO_SUCH", f"run {params['run']} only reads; it ends by itself")
        return self._changes.cancel(session, params)

    async def _do_result(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        if self._jobs.knows(params.get("run", 0)):
            return self._jobs.result(params["run"])
        return self._changes.result(params)

    async def _do_validate(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        return self._jobs.begin(("validate",))

    async def _do_verify(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        words = ("verify", str(params["backup"])) if "backup" in params else ("verify",)
        if words[-1].startswith("-"):  # the command would take it for an option, --root perhaps
            raise wire.remote("NO_SUCH", "no backup has a name that begins with a dash")
        return self._jobs.begin(words)

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
        age_ms = age_of(verb, bool(params.get("cursor")))
        return await self._reports.answer((verb,), session.patience_ms, age_ms)

    async def _do_read(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        name = params["name"]
        self._rights.check(session, "read", {"name": name}, self._reading.level_of(name))
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
            self._changes.job(name, given)  # a backup that is not there needs no code
        return self._rights.challenge(name, given)

    async def _do_code(self, session: Session, params: dict[str, Any]) -> dict[str, Any]:
        self._needed()
        command = self._rights.answer(session, params["code"])
        self.audit.accepted(session, "code")
        return {"ok": True, "command": command}


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
