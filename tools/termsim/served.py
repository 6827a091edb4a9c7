"""One simulated terminal: a real daemon on a sample terminal's folder, its line, its shop.

What the terminal is told about itself is written into its config.json and stays there. A power cut
kills daemon, workers and shop at once and empties the folder that lies in memory on a real one;
while it is dark, and until the daemon answers again, the line carries nothing.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import signal
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.termsim import tethered
from tools.termsim.marks import Marks
from tools.termsim.middleman import Middleman
from tools.termsim.recipe import RecipeError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
AGENT = REPOSITORY / "agent/__main__.py"
SHOP = Path(__file__).with_name("shop.py")
SERIAL_DEVICE = "/dev/ttyS0"
OTHER_MODEL = "another-model"
START_S = 30.0  # a daemon answers within one second; one that does not by then never will
ASK_AGAIN_S = 0.25  # a port that is being opened throws away what came before
LOOK_S = 0.01
READ_BYTES = 4096
SAID_LINES = 5

Tell = Callable[[dict[str, Any]], None]


class PowerCut(Exception):
    """Power went before the terminal was up."""


class NotServed(Exception):
    """The terminal does not come up; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the line and the power of every terminal are like."""

    noise: float = 0.0
    baud: int = 0
    strict_baud: int = 0
    sales_per_s: float = 0.0
    cuts_ms: tuple[int, ...] = ()
    cuts_at_mark: tuple[int, ...] = ()
    pulls_at: tuple[int, ...] = ()
    dark_ms: int = 1000
    pending: bool = False
    seed: int = 1


@dataclass(frozen=True)
class Role:
    """What makes this terminal another one than its folder says; "" and False change nothing."""

    serial: str
    forced_serial: bool = False
    wrong_model: bool = False
    silent: bool = False


class Served:
    """A terminal that is on, or dark for a moment."""

    def __init__(self, root: Path, role: Role, options: Options, tell: Tell) -> None:
        self.root = root
        self.role = role
        self.options = options
        self._tell = tell
        self._config_path = root / "etc/posagent/config.json"
        self._pos = root / "data/pos.db"
        self._run = root / "run/posagent"
        self._said = root / "said.log"
        if not self._config_path.is_file():
            raise RecipeError(f"{root} is no sample terminal: it has no etc/posagent/config.json")
        self._libraries = folder_of_libraries()
        self.is_up = asyncio.Event()  # once it has answered for the first time
        self._cuts_ms = list(options.cuts_ms)
        self._is_cut = False
        self._is_installed = False  # the migrations that --pending holds back
        self._daemon: tethered.Tethered | None = None
        self._shop: tethered.Tethered | None = None
        self._line = Middleman(
            root / "line",
            options.noise,
            options.baud,
            f"{options.seed}/{root.name}",
            options.strict_baud,
        )
        self._line.when_pulled = self._was_pulled
        self._pulls = list(options.pulls_at)

    async def live(self) -> None:
        """Be on until this is cancelled: start, serve, lose power or die, start again. Raises
        NotServed when it does not come up."""
        cuts_at_mark = list(self.options.cuts_at_mark)
        self._configure()
        try:
            while True:
                at_mark = cuts_at_mark.pop(0) if cuts_at_mark else None
                with Marks(at_mark, self.cut) as marks:
                    await self._one_life(marks)
                await self._dark()
        finally:
            await self._end()

    # What it is told about itself

    def _configure(self) -> None:
        """Write what a terminal on this bench needs; the same again changes nothing."""
        config = json.loads(self._config_path.read_text(encoding="utf-8"))
        changes: dict[str, Any] = {"serial_device": SERIAL_DEVICE, "library_dir": "/lib"}
        if self.options.baud:
            changes["serial_baud"] = self.options.baud
        if self.role.forced_serial or "device_id" not in config:
            changes["device_id"] = self.role.serial
        if self.role.wrong_model:
            changes.update(self._other_model(config["profile"]))
        if self.options.pending:
            changes["migrations_dir"] = "/software/migrations"
            self._install("stores.json")
        text = json.dumps({**config, **changes}, ensure_ascii=False, indent=2) + "\n"
        beside = self._config_path.with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self._config_path)
        self._link(self.root / "lib", self._libraries)
        self._link(Path(f"{self.root}{SERIAL_DEVICE}"), self._line.terminal.name)

    def _other_model(self, profile: str) -> dict[str, Any]:
        """The same device under the name of another one."""
        if profile == OTHER_MODEL:
            return {}
        path = REPOSITORY / f"device_profiles/{profile}.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        folder = self.root / "profiles"
        folder.mkdir(exist_ok=True)
        text = json.dumps({**document, "id": OTHER_MODEL, "title": "A model that nobody expects"})
        (folder / f"{OTHER_MODEL}.json").write_text(text, encoding="utf-8")
        return {"profile": OTHER_MODEL, "profiles_dir": "/profiles"}

    def _install(self, pattern: str) -> None:
        """Put files of the software's migrations in place."""
        folder = self.root / "software/migrations"
        folder.mkdir(parents=True, exist_ok=True)
        for path in (REPOSITORY / "migrations").glob(pattern):
            shutil.copy(path, folder)

    def _link(self, path: Path, target: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.symlink_to(target)

    # Its life

    async def _one_life(self, marks: Marks) -> None:
        """From power on to power off."""
        self._is_cut = False
        timer = None
        try:
            daemon = await self._start(marks)
            if self._cuts_ms:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(self._cuts_ms.pop(0) / 1000, self.cut)
            code = await daemon.ended()
            if not self._is_cut:
                self._event("ended", code=code)
        except PowerCut:
            pass
        finally:
            if timer is not None:
                timer.cancel()

    async def _start(self, marks: Marks) -> tethered.Tethered:
        """Power comes; returns once the daemon answers on its line, and has said so."""
        python = tethered.PYTHON
        waits = self.options.pending and not self._is_installed
        if not waits:
            marks.begin()
        self._daemon = daemon = await tethered.start(
            [*python, str(AGENT), "--root", str(self.root), "run"], self._said, **marks.environment
        )
        if self.options.sales_per_s:
            words = [str(self.root), str(self.options.sales_per_s), str(self.options.seed)]
            self._shop = await tethered.start([*python, str(SHOP), *words], self._said)
        hello = await self._answer(self._hello())
        if waits:
            await self._answer(self._decided())
            marks.begin()  # what the boot showed that found nothing to do is no upgrade's
            self._install("[0-9]*.py")
            self._is_installed = True
        if self.role.silent:
            self.silence()
        self._pull_when_due()
        self._line.plug()
        self._line.light_up()
        self._say_ready(daemon.pid, hello)
        self.is_up.set()
        return daemon

    async def _answer(self, asking: Any) -> Any:
        """What somebody who asks the daemon gets, unless it ends or takes too long."""
        assert self._daemon is not None
        asked = asyncio.ensure_future(asking)
        ended = asyncio.ensure_future(self._daemon.ended())
        try:
            await asyncio.wait({asked, ended}, timeout=START_S, return_when="FIRST_COMPLETED")
            if asked.done():
                return asked.result()
            if self._is_cut:
                raise PowerCut
            why = f"ended with {ended.result()}" if ended.done() else "does not answer"
            said = self._said.read_text(encoding="utf-8", errors="replace").splitlines()
            raise NotServed("\n".join([f"{self.root}: the daemon {why}", *said[-SAID_LINES:]]))
        finally:
            asked.cancel()
            ended.cancel()

    async def _hello(self) -> dict[str, Any]:
        """Ask it on its own end of the line, before anybody else can."""
        port = self._line.terminal
        ask_s, seen = 0.0, b""
        while True:
            now_s = asyncio.get_running_loop().time()
            if now_s >= ask_s:
                port.give(framed({"method": "hello", "params": {"proto": [1], "client": "bench"}}))
                ask_s = now_s + ASK_AGAIN_S
            seen += port.take(READ_BYTES)
            found = result_in(seen)
            if found is not None:
                return found
            await asyncio.sleep(LOOK_S)

    async def _decided(self) -> None:
        """The boot decision is made."""
        while "verdict" not in read_json(self._run / "status.json"):
            await asyncio.sleep(LOOK_S)

    async def _dark(self) -> None:
        """Power is gone, for a while."""
        await asyncio.gather(*(one.cut() for one in (self._daemon, self._shop) if one is not None))
        self._line.go_dark()
        for path in self._run.iterdir():
            path.unlink()
        self._event("dark")
        await asyncio.sleep(self.options.dark_ms / 1000)

    async def _end(self) -> None:
        """Switch it off in an orderly way and take the line away."""
        for one in (self._shop, self._daemon):
            if one is not None:
                await one.stop()
        self._line.end()
        Path(f"{self.root}{SERIAL_DEVICE}").unlink(missing_ok=True)

    # What may be done to it

    def cut(self) -> None:
        """Power goes now, for all of its processes at the same moment."""
        self._is_cut = True
        for one in (self._daemon, self._shop):
            if one is not None:
                one.kill()

    def pull(self) -> None:
        """Take the technician's end of the cable out."""
        self._line.pull()
        self._event("pulled")

    def plug(self) -> None:
        """Put it back."""
        self._line.plug()
        self._event("plugged")

    def silence(self) -> None:
        """It hears nothing and says nothing, like a program that hangs."""
        if self._daemon is not None:
            self._daemon.signal(signal.SIGSTOP)
        self._event("silent")

    def wake(self) -> None:
        """It goes on."""
        if self._daemon is not None:
            self._daemon.signal(signal.SIGCONT)
        self._event("awake")

    def _pull_when_due(self) -> None:
        if self._line.pull_at is None and self._pulls:
            self._line.pull_at = self._line.to_technician.delivered + self._pulls.pop(0)

    def _was_pulled(self) -> None:
        self._event("pulled")
        asyncio.get_running_loop().call_later(self.options.dark_ms / 1000, self._put_back)

    def _put_back(self) -> None:
        self._pull_when_due()
        self.plug()

    # What is told of it

    def _say_ready(self, pid: int, hello: dict[str, Any]) -> None:
        self._tell(
            {
                "dir": str(self.root),
                "line": str(self._line.link),
                "socket": str(self._run / "agent.sock"),
                "serial": hello["serial"],
                "model": hello["model"],
                "pid": pid,
            }
        )

    def _event(self, event: str, **more: Any) -> None:
        self._tell({"dir": str(self.root), "event": event, **more})


def folder_of_libraries() -> str:
    """Where the daemon finds pyserial; it runs without site and would not look there itself."""
    found = importlib.util.find_spec("serial")
    if found is None or found.origin is None:
        raise RecipeError("pyserial is not installed, and a terminal's line needs it")
    return str(Path(found.origin).parent.parent)


def framed(request: dict[str, Any]) -> bytes:
    """RS, body, #, CRC-32 in eight small hexadecimal digits, LF."""
    body = json.dumps({"jsonrpc": "2.0", "id": "bench", **request}).encode("ascii")
    return b"\x1e%b#%08x\n" % (body, zlib.crc32(body))


def result_in(seen: bytes) -> dict[str, Any] | None:
    """The result in the first whole frame that answers ours."""
    for piece in seen.split(b"\x1e")[1:]:
        line, ended, _ = piece.partition(b"\n")
        body, _, crc = line.rpartition(b"#")
        if ended and crc == b"%08x" % zlib.crc32(body):
            said = json.loads(body)
            if said.get("id") == "bench" and "result" in said:
                return dict(said["result"])
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}
