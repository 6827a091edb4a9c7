"""The simulated terminals: they come up, their lines are as bad as asked, their shops lose no sale.

The server is a process of its own as anybody would start it; what it does to a line is measured on
the bytes at both ends. Whatever ends the server, nothing that it started is left.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import independent_reader as reader
from tests.daemons import PATIENCE_S, SocketPeer, framed, frames_in, until
from tests.terminals import Terminal, new_terminal
from tools.termsim.middleman import PIECE_BYTES, Middleman, Noise, Pace

REPOSITORY = Path(__file__).resolve().parent.parent
SERVE = [sys.executable, "-m", "tools.termsim", "serve"]
HEAD = 3
ENOUGH = 15  # sales in a row
TRIES = 40
TIOCGEXCL = 0x80045440  # asm-generic/ioctls.h

Doing = Callable[[Middleman, int, int], Coroutine[Any, Any, None]]


class Served:
    """`termsim serve` and what it prints, ended at the latest with the `with` block."""

    def __init__(self, *words: object, **given: Any) -> None:
        given.setdefault("stdin", subprocess.PIPE)
        self.process = subprocess.Popen(
            [*SERVE, *map(str, words)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **given,
        )

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate()

    def next(self) -> dict[str, Any]:
        """The next thing it tells."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        found: dict[str, Any] = json.loads(line)
        return found

    def ready(self, count: int = 1) -> dict[str, dict[str, Any]]:
        """That so many terminals are ready, by folder; events before it are passed over."""
        found: dict[str, dict[str, Any]] = {}
        while len(found) < count:
            said = self.next()
            if "event" not in said:
                found[said["dir"]] = said
        return found

    def event(self, name: str) -> None:
        """What it tells next, but for a terminal that is ready, is this."""
        while True:
            said = self.next()
            if "event" in said:
                assert said["event"] == name, said
                return

    def order(self, verb: str, root: Path) -> None:
        """One line to --control."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {root}\n")
        self.process.stdin.flush()

    def stop(self) -> int:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


class Device:
    """A technician's program at the line."""

    def __init__(self, path: Path, speed: int | None = None) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.fd)
        if speed is not None:
            mode = termios.tcgetattr(self.fd)
            mode[4] = mode[5] = speed
            termios.tcsetattr(self.fd, termios.TCSANOW, mode)
        self.seen = b""
        self._id = 100

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def send(self, method: str, id: int, params: dict[str, Any]) -> None:
        """One request, whatever becomes of it."""
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        os.write(self.fd, framed(json.dumps(request).encode()))

    def read(self, wait_s: float) -> bytes:
        """What comes within that time; b"" also when the cable was pulled."""
        if not select.select([self.fd], [], [], wait_s)[0]:
            return b""
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            return b""
        self.seen += data
        return data

    def answer(self, id: int, wait_s: float = PATIENCE_S) -> dict[str, Any] | None:
        """The reply with this id, or None when none comes in that time."""
        give_up_at = time.monotonic() + wait_s
        while time.monotonic() < give_up_at:
            for said in frames_in(self.seen):
                if said.get("id") == id and "method" not in said:
                    return said
            self.read(max(0.0, give_up_at - time.monotonic()))
        return None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a call on a line that is sound."""
        self._id += 1
        self.send(method, self._id, params)
        said = self.answer(self._id)
        assert said is not None, self.seen
        assert "result" in said, said
        found: dict[str, Any] = said["result"]
        return found


def small(root: Path, **recipe: Any) -> Terminal:
    """A terminal that is upgraded in a moment, in many batches."""
    terminal = new_terminal(root, **{"records": 120, "unsettled": 8, **recipe})
    terminal.configure(batch_rows_max=16)
    return terminal


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes on terminals in a folder, this server's own left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(folder) in " ".join(words) and "tools.termsim" not in words:
            found.append(" ".join(words))
    return found


def receipts_of(terminal: Terminal) -> list[dict[str, Any]]:
    """What the shop has printed so far."""
    try:
        text = (terminal.root / "receipts.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


# --- the server ----------------------------------------------------------------------------------


def test_each_terminal_comes_up_with_a_line_a_socket_and_a_serial_number_of_its_own(
    tmp_path: Path,
) -> None:
    with Served(tmp_path / "shop", "--make", 3, "--records", 60) as served:
        ready = served.ready(3)
        assert sorted(ready) == [str(tmp_path / "shop" / str(n)) for n in (1, 2, 3)]
        assert len({said["serial"] for said in ready.values()}) == 3
        for said in ready.values():
            assert set(said) == {"dir", "line", "socket", "serial", "model", "pid"}
            assert said["model"] == "generic"
            peer = SocketPeer(Path(said["socket"]))
            with Device(Path(said["line"])) as device:
                for hello in (
                    device.call("hello", proto=[1]),
                    peer.result("hello", proto=[1]),
                ):
                    assert (hello["serial"], hello["model"]) == (said["serial"], said["model"])
            peer.close()
            assert Path(f"/proc/{said['pid']}").exists()
        assert served.stop() == 0


def test_a_model_that_nobody_expects_and_a_serial_number_that_is_there_twice(
    tmp_path: Path,
) -> None:
    roots = [small(tmp_path / name).root for name in "abc"]
    words = ["--wrong-model", roots[1], "--duplicate-serial", roots[2]]
    with Served(*roots, *words) as served:
        ready = served.ready(3)
    a, b, c = (ready[str(root)] for root in roots)
    assert a["model"] == c["model"] == "generic" != b["model"]
    assert a["serial"] == c["serial"] != b["serial"]


def test_a_silent_terminal_hears_nothing_until_it_wakes(tmp_path: Path) -> None:
    root = small(tmp_path / "t").root
    with Served(root, "--silent", root, "--control") as served:
        served.event("silent")
        said = served.ready()[str(root)]
        stat = Path(f"/proc/{said['pid']}/stat")
        until(lambda: stat.read_text().rpartition(") ")[2][0] == "T")
        with Device(root / "line") as device:
            device.send("ping", 5, {})
            served.order("wake", root)
            assert device.answer(5) == {"jsonrpc": "2.0", "id": 5, "result": {}}
        served.event("awake")


def test_pending_migrations_wait_for_somebody_who_asks(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    with Served(terminal.root, "--pending") as served:
        served.ready()
        with Device(terminal.root / "line") as device:
            status = device.call("status")
            assert (status["schema"], status["target"]) == (0, HEAD)
            assert device.call("migrate", op="op-000001", to=HEAD)["replayed"] is False
            until(lambda: device.call("status")["schema"] == HEAD)
    assert terminal.read().schema_version == HEAD


def test_the_command_runs_on_terminals_that_are_up_and_its_end_is_the_end_of_all(
    tmp_path: Path,
) -> None:
    root = small(tmp_path / "t").root
    command = [sys.executable, "-c", f"import os; os.stat({str(root / 'line')!r}); exit(7)"]
    with Served(root, "--", *command) as served:
        served.process.communicate(timeout=PATIENCE_S)
        assert served.process.returncode == 7
    assert processes_of(tmp_path) == []


def test_time_that_is_up_ends_a_command_as_well(tmp_path: Path) -> None:
    root = small(tmp_path / "t").root
    with Served(root, "--at-most-s", 0.01, "--", "sleep", "1000") as served:
        served.process.communicate(timeout=PATIENCE_S)
        assert served.process.returncode == 124
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "DIR"),
        (["nowhere"], "no sample terminal"),
        (["x", "y", "--make", "2"], "in one folder"),
        (["x", "--silent", "y"], "not served"),
        (["x", "--noise", "1.5"], "from 0 to 1"),
        (["x", "--strict-baud"], "--baud"),
        (["x", "--baud", "1"], "invalid choice"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_in_a_sentence(words: list[str], said: str) -> None:
    done = subprocess.run([*SERVE, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 64
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_that_does_not_come_up_is_named_with_what_it_said(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    terminal.configure(profile="generik")
    done = subprocess.run(
        [*SERVE, str(terminal.root)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"{terminal.root}: the daemon ended with 78" in done.stderr
    assert "generik" in done.stderr


# --- the end -------------------------------------------------------------------------------------


@pytest.fixture
def working(tmp_path: Path) -> Iterator[tuple[Served, Terminal]]:
    """A server with a shop that sells and a run that is on."""
    terminal = small(tmp_path / "t", records=20_000)
    with Served(terminal.root, "--sales-per-s", 50, "--pending") as served:
        served.ready()
        until(lambda: len(receipts_of(terminal)) > 1)
        with Device(terminal.root / "line") as device:
            device.call("migrate", op="op-000001", to=HEAD)
            assert len(processes_of(tmp_path)) >= 2
            yield served, terminal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_whatever_ends_the_server(
    working: tuple[Served, Terminal], number: int
) -> None:
    served, terminal = working
    served.process.send_signal(number)
    served.process.communicate(timeout=PATIENCE_S)
    assert served.process.returncode == (-number if number == signal.SIGKILL else 0)
    until(lambda: processes_of(terminal.root) == [])
    if number != signal.SIGKILL:
        assert not (terminal.root / "line").is_symlink()
    assert reader.soundness(terminal.pos) == []


def test_a_killed_server_leaves_terminals_that_can_be_served_again(
    working: tuple[Served, Terminal],
) -> None:
    served, terminal = working
    served.process.kill()
    served.process.communicate()
    until(lambda: processes_of(terminal.root) == [])
    with Served(terminal.root) as again:
        again.ready()
        with Device(terminal.root / "line") as device:
            assert device.call("ping") == {}


# --- power ---------------------------------------------------------------------------------------


def test_a_line_that_is_held_open_through_a_power_cut_answers_afterwards(tmp_path: Path) -> None:
    root = small(tmp_path / "t").root
    with Served(root, "--control", "--dark-ms", 10) as served:
        first = served.ready()[str(root)]
        with Device(root / "line") as device:
            boot = device.call("hello", proto=[1])["boot"]
            served.order("cut", root)
            served.event("dark")
            second = served.ready()[str(root)]
            assert device.call("hello", proto=[1])["boot"] != boot
        assert first["pid"] != second["pid"]
        assert not Path(f"/proc/{first['pid']}").exists()


@pytest.mark.parametrize("marks", [(), (5, 20), (12, 20, 24)], ids=str)
def test_no_sale_is_lost_over_an_upgrade_and_power_cuts_in_it(
    tmp_path: Path, marks: tuple[int, ...]
) -> None:
    """Sold before, between and after; each receipt is in the data with its numbers, once."""
    terminal = small(tmp_path / "t", records=400, unsettled=30)
    terminal.configure(busy_wait_ms=5_000)
    before = terminal.read()
    options = ["--sales-per-s", 100, "--pending", "--dark-ms", 10]
    cuts = [word for mark in marks for word in ("--cut-at-mark", mark)]
    with Served(terminal.root, *options, *cuts) as served:
        served.ready()
        until(lambda: len(receipts_of(terminal)) >= ENOUGH)
        with Device(terminal.root / "line") as device:
            device.send("migrate", 1, {"op": "op-000001", "to": HEAD})  # power may beat its reply
            until(lambda: sum(one["schema"] == HEAD for one in receipts_of(terminal)) >= ENOUGH)
            assert device.call("status")["schema"] == HEAD
        served.process.terminate()
        told, _ = served.process.communicate(timeout=PATIENCE_S)
        assert served.process.returncode == 0
    cuts_told = told.count('"dark"')
    assert bool(cuts_told) is bool(marks), told
    check_sales(terminal, before, cuts_told + 1)


def check_sales(terminal: Terminal, before: reader.Terminal, ends: int) -> None:
    receipts, after = receipts_of(terminal), terminal.read()
    assert {one["schema"] for one in receipts} == {0, HEAD}
    assert reader.soundness(terminal.pos) == []
    kept = after.stores["transactions"]
    for one in receipts:
        sale = reader.parse(kept[one["key"]])
        assert {name: sale[name] for name in ("stan", "receipt", "amount")} == {
            name: reader.Number(str(one[name])) for name in ("stan", "receipt", "amount")
        }
        assert (sale["currency"], sale["status"]) == (one["currency"], "pending")
        assert sale["schemaVersion"] == reader.Number("2")
    numbers = [one["receipt"] for one in receipts]
    assert numbers == sorted(set(numbers))
    counters = reader.parse(after.stores["metadata"]["counters"])
    assert reader.integer(counters["receipt"]) >= numbers[-1]
    new = set(kept) - set(before.stores["transactions"])
    unprinted = new - {one["key"] for one in receipts}
    assert len(unprinted) <= ends, "at each end, the one between COMMIT and its receipt"
    old = {key: raw for key, raw in kept.items() if key not in new}
    assert {key: value_of(raw) for key, raw in old.items()} == {
        key: value_of(raw) for key, raw in before.stores["transactions"].items()
    }


MADE = ("schemaVersion", "updatedAt", "metadata")


def value_of(raw: reader.Raw) -> Any:
    """A record without what the migrations give it."""
    value = reader.parse(raw)
    if isinstance(value, dict):
        return {key: part for key, part in value.items() if key not in MADE}
    return value


# --- the cable -----------------------------------------------------------------------------------


def test_a_noisy_line_spoils_bytes_both_ways_and_a_client_gets_through_by_asking_again(
    tmp_path: Path,
) -> None:
    root = small(tmp_path / "t").root
    with Served(root, "--noise", 0.003) as served:
        served.ready()
        tries = 0
        with Device(root / "line") as device:
            for id in range(1, 11):
                said = None
                while said is None:
                    tries += 1
                    assert tries < 10 * TRIES
                    device.send("status", id, {})
                    said = device.answer(id, 0.1)
                assert said["result"]["target"] == HEAD
    assert tries > 10, "with 0.3 % of some 400 bytes spoilt, some of ten must have failed"


def test_a_pulled_cable_hangs_up_and_is_there_again_under_the_same_name(tmp_path: Path) -> None:
    root = small(tmp_path / "t").root
    with Served(root, "--control") as served:
        served.ready()
        with Device(root / "line") as device:
            assert device.call("ping") == {}
            served.order("pull", root)
            served.event("pulled")
            assert device.read(PATIENCE_S) == b""
        assert not (root / "line").is_symlink()
        served.order("plug", root)
        served.event("plugged")
        with Device(root / "line") as device:
            assert device.call("ping") == {}


def test_a_cable_that_is_pulled_in_mid_frame_gives_no_frame_and_comes_back(tmp_path: Path) -> None:
    root = small(tmp_path / "t").root
    pull = ["--pull-at-byte", 40, "--dark-ms", 10, "--baud", 115_200]
    with Served(root, *pull) as served:
        served.ready()
        with Device(root / "line") as device:
            device.send("hello", 1, {"proto": [1]})
            served.event("pulled")
            while device.read(PATIENCE_S):
                pass
            assert len(device.seen) <= 40
            assert frames_in(device.seen) == []
        served.event("plugged")
        with Device(root / "line") as device:
            assert device.call("ping") == {}


def test_a_program_at_another_speed_reads_garbage(tmp_path: Path) -> None:
    root = small(tmp_path / "t").root
    with Served(root, "--baud", 115_200, "--strict-baud") as served:
        served.ready()
        with Device(root / "line", termios.B9600) as device:
            device.send("ping", 1, {})
            assert device.answer(1, 0.1) is None
        with Device(root / "line", termios.B115200) as device:
            os.write(device.fd, b"\x1e\n")  # a clean line
            assert device.call("ping") == {}


def in_loop(do: Doing, folder: Path, **given: Any) -> None:
    """Do something with a middleman whose terminal listens, and a descriptor at either end."""

    async def doing() -> None:
        middleman = Middleman(folder / "line", **given)
        middleman.plug()
        middleman.light_up()
        technician = os.open(folder / "line", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        terminal = os.open(middleman.terminal.name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            await do(middleman, technician, terminal)
        finally:
            os.close(technician)
            os.close(terminal)
            middleman.end()

    asyncio.run(doing())


async def received(fd: int, count: int) -> bytes:
    """So many bytes, waited for."""
    seen = b""
    while len(seen) < count:
        try:
            seen += os.read(fd, 65536)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    return seen


def test_both_ways_carry_every_byte_there_is(tmp_path: Path) -> None:
    every = bytes(range(256)) * 3

    async def do(middleman: Middleman, technician: int, terminal: int) -> None:
        os.write(technician, every)
        os.write(terminal, every[::-1])
        assert await received(terminal, len(every)) == every
        assert await received(technician, len(every)) == every[::-1]
        assert middleman.to_terminal.lost == middleman.to_technician.lost == 0

    in_loop(do, tmp_path)


def test_the_share_of_bytes_that_noise_spoils_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    piece, pieces = bytes(range(250)) * 4, 60

    async def do(middleman: Middleman, technician: int, terminal: int) -> None:
        for _ in range(pieces):
            os.write(technician, piece)
            await received(terminal, int(len(piece) * 0.9))
        sent = middleman.to_terminal.sent
        assert sent == len(piece) * pieces
        # Three standard deviations around 2 % of 60,000; the draws are those of the seed.
        assert abs(middleman.to_terminal.noise.spoilt - 0.02 * sent) < 3 * (0.02 * sent) ** 0.5

    in_loop(do, tmp_path, noise=0.02, seed=1)


def test_what_is_sent_to_a_dark_terminal_or_a_pulled_cable_is_lost(tmp_path: Path) -> None:
    async def do(middleman: Middleman, technician: int, terminal: int) -> None:
        middleman.go_dark()
        os.write(technician, b"dark")
        while middleman.to_terminal.lost < 4:
            await asyncio.sleep(0.001)
        middleman.light_up()
        os.write(technician, b"light")
        assert await received(terminal, 5) == b"light"
        middleman.pull()
        os.write(terminal, b"nobody")
        while middleman.to_technician.lost < 6:
            await asyncio.sleep(0.001)
        middleman.plug()
        again = os.open(tmp_path / "line", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        os.write(terminal, b"again")
        assert await received(again, 5) == b"again"
        os.close(again)

    in_loop(do, tmp_path)


def test_a_reader_that_does_not_read_loses_bytes_and_holds_nobody_up(tmp_path: Path) -> None:
    async def do(middleman: Middleman, technician: int, terminal: int) -> None:
        for _ in range(200):
            try:
                os.write(terminal, b"x" * 1000)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
        while not middleman.to_technician.lost:
            await asyncio.sleep(0.001)
        os.write(technician, b"y")
        assert await received(terminal, 1) == b"y"

    in_loop(do, tmp_path)


def test_a_program_that_wanted_the_line_for_itself_leaves_it_to_the_next(tmp_path: Path) -> None:
    """On a pty that mark would stay behind, and a plain user's next program would be refused."""

    def is_taken(fd: int) -> bool:
        return bool(struct.unpack("i", fcntl.ioctl(fd, TIOCGEXCL, b"0000"))[0])

    async def do(middleman: Middleman, technician: int, terminal: int) -> None:
        first = os.open(tmp_path / "line", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(first, termios.TIOCEXCL)
        assert is_taken(technician)
        os.close(first)
        while is_taken(technician):
            await asyncio.sleep(0.001)

    in_loop(do, tmp_path)


def test_at_a_baud_rate_bytes_are_never_there_before_the_wire_has_carried_them(
    tmp_path: Path,
) -> None:
    async def do(middleman: Middleman, technician: int, terminal: int) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        os.write(technician, b"z" * 100)
        os.write(terminal, b"z" * 100)
        await received(terminal, 100)
        await received(technician, 100)
        assert loop.time() - began_s >= 100 * 10 / 9600

    in_loop(do, tmp_path, baud=9600)


# --- noise and pace as they are reckoned ---------------------------------------------------------

DATA = st.binary(max_size=300)


@given(data=DATA, cuts=st.lists(st.integers(0, 300)), seed=st.integers())
def test_noise_does_not_depend_on_how_bytes_are_cut_into_reads(
    data: bytes, cuts: list[int], seed: int
) -> None:
    whole, cut = Noise(0.3, seed), Noise(0.3, seed)
    edges = sorted({0, len(data), *(at for at in cuts if at < len(data))})
    pieces = [data[a:b] for a, b in zip(edges, edges[1:])]
    assert whole.spoil(data) == b"".join(map(cut.spoil, pieces))
    assert whole.spoilt == cut.spoilt
    assert Noise(0.0, seed).spoil(data) == data


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.05])
def test_each_kind_of_damage_is_as_likely_as_the_others(share: float) -> None:
    kinds = {"lost": 0, "flipped": 0, "twice": 0, "inserted": 0}
    noise = Noise(share, 7)
    for byte in random.Random(7).randbytes(200_000):
        made = noise.spoil(bytes((byte,)))
        if made == b"":
            kinds["lost"] += 1
        elif len(made) == 2:
            kinds["twice" if made[0] == byte else "inserted"] += 1
        elif made[0] != byte:
            assert bin(made[0] ^ byte).count("1") == 1
            kinds["flipped"] += 1
    expected = 200_000 * share / 4
    assert sum(kinds.values()) == noise.spoilt
    for count in kinds.values():
        assert abs(count - expected) < 4 * expected**0.5 + 1


@given(data=st.binary(min_size=1, max_size=60))
def test_a_receiver_at_another_speed_gets_as_many_bytes(data: bytes) -> None:
    assert len(Noise(0.0, 1).garble(data)) == len(data)


@given(
    sends=st.lists(st.tuples(st.floats(0, 0.05), st.binary(max_size=40)), max_size=12),
    looks=st.lists(st.floats(0, 0.05), max_size=20),
)
def test_a_byte_arrives_in_order_and_ten_bits_after_the_one_before_it(
    sends: list[tuple[float, bytes]], looks: list[float]
) -> None:
    """Against the plain reckoning: each byte begins when it is sent and the wire is free."""
    pace, now_s, free_s = Pace(9600), 100.0, 0.0
    due: list[float] = []
    given_to, got = b"", b""
    for wait_s, data in sends:
        now_s += wait_s
        got += pace.arrived(now_s)
        pace.send(data, now_s)
        for _ in data:
            free_s = max(free_s, now_s) + 10 / 9600
            due.append(free_s)
        given_to += data
    for wait_s in looks:
        now_s += wait_s
        got += pace.arrived(now_s)
        assert len(got) in range(
            sum(at < now_s - 1e-6 for at in due), sum(at < now_s + 1e-6 for at in due) + 1
        )
        if len(got) < len(due):
            next_s = pace.due_s()
            assert next_s is not None
            assert next_s == pytest.approx(due[len(got)])
    assert given_to.startswith(got)
    assert got + pace.arrived(now_s + 1000) == given_to
    assert pace.due_s() is None


def test_without_a_rate_everything_arrives_at_once_and_a_wire_takes_only_so_much() -> None:
    pace = Pace(0)
    pace.send(b"abc", 5.0)
    assert pace.room == PIECE_BYTES - 3
    assert pace.arrived(5.0) == b"abc"
    pace.send(b"abcd", 5.0)
    assert pace.drop() == 4
    assert (pace.room, pace.arrived(6.0)) == (PIECE_BYTES, b"")
