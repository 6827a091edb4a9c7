"""What is so now, held in memory: `status` is read from here, and whoever subscribed is told.

A run's marks come in as they come to every announcer. What only a look at the data can tell (the
unsettled sales, the newest backup) is known from the last report; how old that is stands beside it.
"""

from __future__ import annotations

import os

from agent import __version__
from agent.core import states
from agent.core.settings import KIB
from agent.edges import clock
from agent.edges.announce import Announcer
from agent.edges.at_boot import head_from_names, schema_in_header
from agent.edges.flash import free_bytes
from agent.ground.errors import AgentError
from agent.ground.limits import RECOUNT_FACTOR
from agent.links.wire import bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.service.reports import Reports

    Listener = Callable[[str, dict[str, Any]], None]

IDLE = "idle"
MESSAGE_CHARS_MAX = 200
MESSAGE_BYTES_MAX = 240  # as it is written on a line, where a letter beyond ASCII takes six bytes
LOOK_MS = 250  # a look at the files costs more than all the rest of an answer


class Board(Announcer):
    """The daemon's announcer and its memory."""

    def __init__(self, config: Config, places: Places, reports: Reports, quiet: bool) -> None:
        super().__init__(config.profile.progress_interval_ms, quiet)
        self._config = config
        self._places = places
        self._reports = reports
        self.boot = os.urandom(2).hex()
        self.listeners: list[Listener] = []
        self.seq = 0
        self.run = 0  # the number of the run that is on, or of the last one; 0: none yet
        self.running = False
        self._why_stuck = ""  # why a run that should have ended has not
        self.state = IDLE
        self.may_start = False
        self.why_not = ""
        self.schema: int | None = None
        self.target: int | None = None
        self.unsettled: int | None = None
        self.backup: str | None = None
        self.need_kib: int | None = None
        self.verdict: str | None = None
        self.error: dict[str, Any] | None = None
        self._counted_ms: int | None = None
        self._count_took_ms = 0
        self._counted_at: Any = None
        self._seen: tuple[Any, ...] = ()
        self._seen_ms = -LOOK_MS
        self._free_kib: int | None = None
        reports.stamp = self.identity

    # What a run tells

    def begin(self, run: int) -> None:
        """A run with this number begins."""
        self.look()
        self.run, self.running, self.may_start = run, True, False
        self.why_not = "a run is on"
        self.restart_meter()
        self._enter(states.CHECKING, "")

    def mark(self, state: str, store: str, done: int, total: int) -> None:
        """One mark of progress."""
        super().mark(state, store, done, total)
        if state != self.state:
            self._enter(state, "")
        now = self.snapshot
        self._tell(
            "progress",
            run=self.run,
            state=state,
            step=store,
            done=done,
            total=total,
            eta_s=now.eta_ms // 1000 if now.eta_ms >= 0 else None,
        )

    def end(self, result: dict[str, Any]) -> None:
        """The verdict."""
        super().end(result)
        self.running = False
        self._why_stuck = ""
        self.verdict = result["verdict"]
        error = result.get("error")
        self.error = None if error is None else _short(error)
        self.may_start = result["app_may_start"]
        self.why_not = result.get("app_must_not_start_because", "")
        self._counted_at = None
        self._seen_ms = clock.steady_ms() - LOOK_MS
        self.look()
        held = not self.may_start and self.verdict == "HELD"
        self._enter(states.HELD if held else IDLE, self.verdict or "")

    def stuck(self, text: str) -> None:
        """The run cannot go on and cannot end."""
        self._why_stuck = text
        self.alarm("stuck", text)

    def alarm(self, kind: str, text: str) -> None:
        """Something a person should look at."""
        self.note(text)
        self._tell("alarm", kind=kind, text=bounded(text, MESSAGE_CHARS_MAX, MESSAGE_BYTES_MAX))

    def _enter(self, state: str, why: str) -> None:
        was, self.state = self.state, state
        self._tell("state", run=self.run, **{"from": was, "to": state, "why": why})

    def _tell(self, method: str, **params: Any) -> None:
        if method != "progress":
            self.seq += 1
        for listener in list(self.listeners):
            listener(method, dict(params, seq=self.seq))

    # What a look tells

    def look(self) -> None:
        """Read what is cheap to read: the header of pos.db and the names of the migrations. Never
        while a run is on."""
        if self.running:
            return
        try:
            self.schema = schema_in_header(self._places.pos)
        except OSError:
            self.schema = None
        if self.schema is None:
            self.may_start, self.why_not = False, "pos.db is no SQLite file, or cannot be read"
        try:
            head = head_from_names(self._config.migrations_dir)
        except OSError:
            head = -1
        self.target = None if head < 0 else head

    async def look_again(self, wait_ms: int) -> None:
        """Count anew what a look at the data tells, where that has changed; waits that long."""
        if self.running or self._reports.barred or not self._is_old():
            return
        found, started = self._seen, clock.steady_ms()
        try:
            said = await self._reports.answer(("status",), wait_ms)
        except AgentError:
            return
        self._counted_at, self._counted_ms = found, clock.steady_ms()
        self._count_took_ms = self._counted_ms - started
        if self.running:
            return
        money = said["money"]
        self.unsettled = money["records"]
        self.backup = money["backup"] and money["backup"]["name"]
        if self.state in (IDLE, states.HELD):
            self.may_start = said["app_may_start"]
            self.why_not = said["app_must_not_start_because"] or ""

    def _is_old(self) -> bool:
        """Whether anything has changed since the count. An application that writes all the time
        must not make the agent count all the time."""
        now = clock.steady_ms()
        if now - self._seen_ms >= LOOK_MS:
            self._see(now)
        if self._counted_ms is None:
            return True
        rest_ms = self._count_took_ms * RECOUNT_FACTOR
        voided = self._counted_at is None
        return self._counted_at != self._seen and (voided or now - self._counted_ms >= rest_ms)

    def _see(self, now: int) -> None:
        """What the files look like from outside; another header or another set of migrations is
        known at once, whenever the next count may be."""
        self._seen_ms = now
        found = self.identity()
        try:
            self._free_kib = free_bytes(os.path.dirname(self._places.pos)) // KIB
        except OSError:
            self._free_kib = None
        if found != self._seen:
            self._seen = found
            self.look()

    def identity(self) -> tuple[Any, ...]:
        """What the files look like from outside; another one, and an answer may be another."""
        found: list[Any] = []
        places = self._places
        for name in (
            places.pos,
            places.pos + "-wal",
            places.backups,
            self._config.migrations_dir,
        ):
            try:
                seen = os.stat(name)
                found += [seen.st_ino, seen.st_size, seen.st_mtime_ns]
            except OSError:
                found.append(None)
        return tuple(found)

    # What is asked

    def status(self) -> dict[str, Any]:
        """The answer of the method `status`; docs/spec/wire-protocol.md names the members."""
        now = self.snapshot
        on = self.running
        counted = self._counted_ms
        if clock.steady_ms() - self._seen_ms >= LOOK_MS:
            self._see(clock.steady_ms())
        return {
            "state": self.state,
            "app_may_start": self.may_start,
            "schema": self.schema,
            "target": self.target,
            "run": self.run if on else None,
            "step": (now.store or None) if on else None,
            "done": now.done if on else None,
            "total": now.total if on else None,
            "eta_s": now.eta_ms // 1000 if on and now.eta_ms >= 0 else None,
            "unsettled": self.unsettled,
            "counted_s": None if counted is None else (clock.steady_ms() - counted) // 1000,
            "free_kib": self._free_kib,
            "need_kib": self.need_kib,
            "backup": self.backup,
            "last_error": self.last_error(),
            "verdict": self.verdict,
            "seq": self.seq,
            "boot": self.boot,
        }

    def last_error(self) -> dict[str, Any] | None:
        """Why the last run failed, or why the one that is on cannot end."""
        if self._why_stuck:
            return {"code": "TIMEOUT", "message": self._why_stuck}
        return self.error

    def banner(self) -> dict[str, Any]:
        """What a person at the console is greeted with."""
        return {
            "model": self._config.profile.id,
            "serial": self._config.device_id,
            "agent": __version__,
            "schema": self.schema,
            "target": self.target,
            "pending": self.pending,
            "storage": "SHORT" if self._is_storage_short() else "OK",
            "unsettled": self.unsettled,
            "open": self._config.profile.serial_access == "open",
        }

    def _is_storage_short(self) -> bool:
        return self.error is not None and self.error["code"] == "STORAGE_ERROR"

    @property
    def pending(self) -> int:
        """How many migrations are pending."""
        if self.schema is None or self.target is None:
            return 0
        return max(self.target - max(self.schema, 0), 0)


def _short(error: dict[str, Any]) -> dict[str, Any]:
    message = bounded(str(error["message"]), MESSAGE_CHARS_MAX, MESSAGE_BYTES_MAX)
    return {"code": error["code"], "message": message}
