"""`posagent run`: the boot decision, then service until somebody says stop.

The socket is there before the first migration step and the lines answer while a run is on; the
service manager hears READY only once the decision is made. Whoever feeds the watchdogs knows that
work was done or that nothing is to be done.
"""

from __future__ import annotations

import os

from agent import aio
from agent.edges import clock, process
from agent.edges.at_boot import nothing_to_do
from agent.edges.config import places_of
from agent.edges.keyfile import read_key
from agent.edges.local_socket import listen_local, listen_loopback, user_of
from agent.edges.token import make_token
from agent.ground.errors import ConfigError
from agent.ground.limits import PATIENCE_MS
from agent.links.access import LEVELS, Access
from agent.links.session import Session
from agent.links.wire import SOCKET_REPLY_BYTES_MAX, SOCKET_REQUEST_BYTES_MAX
from agent.service.board import Board
from agent.service.calls import Calls
from agent.service.guard import Guard
from agent.service.reports import Reports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, Callable

    from agent.edges.config import Config
    from agent.edges.ledger import Ledger
    from agent.service.runs import Runs

    Told = Callable[[str, dict[str, Any]], bool]

STOP_MS = (
    3000  # a batch takes an eighth of the deadline at most; a worker that takes longer is killed
)
HEARTBEAT_MS_MAX = 10_000
FAULT_MS = 1000
LOOK_MS = 10_000
RETRY_MS = 30_000  # a folder that is not ours today may be put right
SERIAL_LEVELS = {"read": "read", "tech": "tech", "open": "admin"}


class Daemon:
    """One agent that stays."""

    def __init__(self, config: Config, quiet: bool = False) -> None:
        self._config = config
        self._places = places_of(config)
        self._guard = Guard(config, self._places, stays=True)
        self._reports = Reports(config)
        self._board = Board(config, self._places, self._reports, quiet)
        self._lazy: tuple[Ledger, Runs] | None = None
        self._settled = False
        store = _LaterStore(self)
        self._access = Access(self._key(), config.device_id, store, self.now_ms, os.urandom)
        self._calls = Calls(
            config, self._places, self._board, self._reports, self._access, self.needed
        )
        self._stop = aio.ThreadSafeFlag()
        self._links: list[aio.Task] = []

    def _key(self) -> bytes | None:
        """The service key; without one nobody is admin on a line, and everything else goes on."""
        try:
            return read_key(self._config.state_dir)
        except ConfigError as error:
            self._board.note(f"no service key: {error.message}")
            return None

    def run(self) -> int:
        """Serve until SIGTERM. Raises Busy when another agent is here; after a crash at any point
        starting again is the whole recovery."""
        self._guard.take()
        try:
            with process.Signals(self._stop.set):
                return aio.run(self._serve())
        finally:
            aio.shutdown()
            self._guard.close()

    async def _serve(self) -> int:
        self._board.publish_to(self._places.status)
        profile = self._config.profile
        self._link("the socket", self._serve_socket)
        if profile.tcp_port is not None:
            self._link("the loopback port", self._serve_loopback)
        if self._config.serial_device is not None:
            self._link("the serial line", self._serve_serial)
        self._link("the watchdogs", self._beat)
        decision = aio.create_task(self._decide())
        await self._stop.wait()
        await self._end(decision)
        return 0

    def _link(self, what: str, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._links.append(aio.create_task(self._kept_up(what, serve)))

    async def _kept_up(self, what: str, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Serve for ever: a fault of ours in one line must not leave a terminal without it."""
        while True:
            try:
                await serve()
            except Exception as error:
                self._board.note(f"a fault of the agent: {type(error).__name__} in {what}")
                await aio.sleep_ms(FAULT_MS)

    # The boot decision

    async def _decide(self) -> None:
        """Decide, whatever happens: who waits for READY must not wait for ever."""
        try:
            await self._decision()
        except Exception as error:
            from agent.service.verdict import fault

            self._board.end(fault(error, "the boot decision"))
        self._guard.say(f"READY=1\nSTATUS={self._board.verdict}")

    async def _decision(self) -> None:
        version = nothing_to_do(self._config)
        if version >= 0:
            self._board.end(
                {
                    "verdict": "NOT_REQUIRED",
                    "from_version": version,
                    "to_version": version,
                    "app_may_start": True,
                }
            )
        else:
            from agent.worker.job import Job

            await self.needed()[1].at_boot(Job("migrate", self._config, self._places))

    async def _end(self, decision: aio.Task) -> None:
        """Stop the run at a batch edge, or where it is when that takes too long; then the lines."""
        self._guard.say("STOPPING=1")
        # The next start goes on with what is on now, and tells its end to whoever asked for it.
        self._settled = True
        if self._lazy is not None and self._lazy[1].stop():
            try:
                await aio.wait_for_ms(self._until_idle(), STOP_MS)
            except aio.TimeoutError:
                self._lazy[1].kill()
        decision.cancel()
        self._calls.audit.write()

    async def _until_idle(self) -> None:
        while self._board.running:
            await aio.sleep_ms(20)

    # What is loaded when it is needed

    def needed(self) -> tuple[Ledger, Runs]:
        """The ledger and the runs. What a dead daemon left without an end gets one, here."""
        if self._lazy is None:
            from agent.edges.ledger import Ledger
            from agent.service.runs import Runs

            ledger = Ledger(os.path.join(self._places.state, "agent.db"))
            runs = Runs(self._config, self._board, self._guard, self._reports, ledger)
            self._lazy = (ledger, runs)
        if not self._settled and not self._board.running and self._board.verdict is not None:
            from agent.service.runs import settle_ledger

            settle_ledger(self._lazy[0])
            self._settled = True
        return self._lazy

    # The lines

    async def _serve_socket(self) -> None:
        from agent.links.socket_link import SocketLink

        path = self._config.run_dir + "/agent.sock"
        listener = await self._until_made(lambda: listen_local(path, self._config.socket_gid))
        made = os.stat(path)

        def make(told: Told, level: str) -> Session:
            return self._session("socket", level, told)

        link = SocketLink(
            listener, make, self._console_session, self._level_of, self._board, self._board.note
        )
        serving = aio.create_task(link.serve())
        try:
            while _is_there(path, made) and not serving.done():
                await aio.sleep_ms(LOOK_MS)
        finally:
            serving.cancel()

    async def _serve_loopback(self) -> None:
        from agent.links.socket_link import SocketLink

        port = self._config.profile.tcp_port
        assert port is not None
        token = make_token(self._places.state)
        listener = await self._until_made(lambda: listen_loopback(port))

        def make(told: Told, level: str) -> Session:
            return self._session("tcp", level, told)

        await SocketLink(
            listener,
            make,
            self._console_session,
            lambda peer: "tech",
            self._board,
            self._board.note,
            token,
        ).serve()

    async def _until_made(self, make: Callable[[], Any]) -> Any:
        """A listening socket; one that cannot be made is tried again, and the reason told once."""
        told = ""
        while True:
            try:
                return make()
            except ConfigError as error:
                if error.message != told:
                    told = error.message
                    self._board.note(f"no socket: {told}")
                await aio.sleep_ms(RETRY_MS)

    async def _serve_serial(self) -> None:
        from agent.links.serial_link import serve_port

        path = self._config.serial_device
        assert path is not None
        profile = self._config.profile
        level = SERIAL_LEVELS[profile.serial_access]

        def make(told: Told) -> Session:
            return Session(self, "serial", level, told, PATIENCE_MS, baud=profile.serial_baud)

        await serve_port(path, profile.serial_baud, make, self._board, self._board.note)

    def _console_session(self, told: Told, level: str) -> Session:
        """A console that came over a socket has the rights of the service port and of its own
        connection, whichever is less: whoever sits at the other end came in at both."""
        least = min(level, SERIAL_LEVELS[self._config.profile.serial_access], key=LEVELS.index)
        return Session(self, "console", least, told, PATIENCE_MS)

    def _session(self, link: str, level: str, told: Told) -> Session:
        return Session(
            self,
            link,
            level,
            told,
            PATIENCE_MS,
            SOCKET_REQUEST_BYTES_MAX,
            SOCKET_REPLY_BYTES_MAX,
        )

    def _level_of(self, connection: Any) -> str:
        """What a process on this machine may do, by what the kernel says of it."""
        uid, gid = user_of(connection)
        config = self._config
        if uid in (0, os.geteuid(), *config.admin_uids):
            return "admin"
        return "tech" if uid in config.tech_uids or gid in config.tech_gids else "read"

    # What sessions ask for

    async def call(self, session: Session, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Do one call of a peer."""
        return await self._calls.call(session, method, params)

    def listen(self, told: Callable[[str, dict[str, Any]], None]) -> None:
        """Tell a peer of what happens."""
        self._board.listeners.append(told)

    def leave(self, told: Callable[[str, dict[str, Any]], None]) -> None:
        """Tell it no more."""
        if told in self._board.listeners:
            self._board.listeners.remove(told)

    def now_ms(self) -> int:
        """The time of a clock that never goes back."""
        return clock.steady_ms()

    # The watchdogs

    async def _beat(self) -> None:
        """Feed while there is nothing to do: that this turn came shows that turns come. While a
        run is on its marks feed, and nothing else does."""
        interval_ms = min(self._guard.interval_ms(), HEARTBEAT_MS_MAX)
        while True:
            if not self._board.running:
                self._guard.feed()
                if self._lazy is not None:
                    self._lazy[1].note_ends()
            await aio.sleep_ms(interval_ms)


def _is_there(path: str, made: os.stat_result) -> bool:
    """Whether the name still leads to our socket; whoever cleans up folders may have removed it."""
    try:
        return os.path.samestat(os.lstat(path), made)
    except OSError:
        return False


class _LaterStore:
    """The ledger for the access rules, opened when a code is first asked for."""

    __slots__ = ("_daemon",)

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def load_access(self) -> dict[str, int]:
        return self._daemon.needed()[0].load_access()

    def save_access(self, counter: int, fails: int, locked: int) -> None:
        self._daemon.needed()[0].save_access(counter, fails, locked)
