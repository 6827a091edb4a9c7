"""Floods: mutated frames, noise, clients that misbehave, and ground that gives way under a daemon.

The daemon lives through all of it, does nothing that no whole frame asked for, keeps its memory,
and answers whoever comes next.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import filesystems
from tests.daemons import (
    LINE,
    Daemon,
    Line,
    SocketPeer,
    framed,
    frames_in,
    give_libraries,
    result_of,
    terminal_with_line,
    until,
)
from tests.terminals import COMMAND, Gate, Terminal
from tests.test_line_bad_input import (
    ByConsole,
    BySerial,
    Site,
    connected,
    free_port,
    give_key,
    request,
)

KIB = 1024
GROWTH_BYTES_MAX = 512 * KIB
PINGS = itertools.count(1)


# ---- Frames and noise


def changing_calls(count: int, rng: random.Random) -> list[bytes]:
    """Bodies of calls that would change something, each with an op of its own."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("migrate", {"to": 3}),
        ("prune", {}),
        ("prune", {"despite_unsettled": True}),
        ("rollback", {"to": 2}),
        ("restore", {"backup": 1, "discard": "unknown"}),
        ("commit", {}),
        ("backup", {}),
    ]
    found = []
    for number in range(count):
        method, params = rng.choice(kinds)
        found.append(request(method, op=f"flood-{number:06d}", **params))
    return found


def mutated(frame: bytes, other: bytes, rng: random.Random) -> bytes:
    """The frame with one or two damages."""
    for _ in range(rng.choice((1, 1, 2))):
        at, size = rng.randrange(len(frame)), rng.choice((1, 1, 2, 8))
        how = rng.randrange(6)
        if how == 0:
            frame = frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]
        elif how == 1:
            frame = frame[:at] + frame[at + size :]
        elif how == 2:
            frame = frame[: at + size] + frame[at:]
        elif how == 3:
            frame = frame[:at] + rng.randbytes(size) + frame[at:]
        elif how == 4:
            frame = frame[:at] if rng.randrange(2) else frame[at:]
        else:
            frame = frame[:at] + other[rng.randrange(len(other)) :]
        if not frame:
            return b"\n"
    return frame


def ping(name: str) -> bytes:
    """An empty frame first, as a careful client does."""
    return b"\x1e\n" + framed(b'{"jsonrpc":"2.0","id":"%s","method":"ping"}' % name.encode())


def flood(line: Line, data: bytes) -> None:
    """Send it all from another thread while this one reads, then have a ping answered."""
    name = f"ping {next(PINGS)}"
    sender = threading.Thread(target=line.send, args=(data + ping(name),), daemon=True)
    sender.start()
    tail = b""
    while b'"id":"%s","result":{}}' % name.encode() not in tail:
        read = line.read()
        assert read, f"the agent fell silent; the last it said was {tail[-300:]!r}"
        tail = (tail + read)[-600:]
        line.seen = b""
    sender.join()


def check_calls(site: Site, sent: bytes, bodies: list[bytes]) -> None:
    """Each call in agent.db was sent as a whole, as it stands there."""
    asked = {json.loads(body)["params"]["op"]: body for body in bodies}
    for _, op, _, method, *_ in site.calls():
        body = asked[op]
        assert json.loads(body)["method"] == method
        whole = (framed(body)[1:-1], body + b"\n")  # a socket takes it without the checksum
        assert any(one in sent for one in whole), f"nobody asked for {method} {op}"


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Site]:
    """A terminal on whose service line everything is allowed."""
    site = Site(tmp_path / "terminal")
    site.terminal.configure(serial_access="open")
    site.start()
    try:
        yield site
    finally:
        site.end()
        site.serial.close()


def test_ten_thousand_mutated_frames_do_only_what_whole_frames_ask_for(open_site: Site) -> None:
    site, rng = open_site, random.Random(20_261_127)
    bodies = changing_calls(10_000, rng)
    frames = [framed(body) for body in bodies]
    pieces = [mutated(frame, rng.choice(frames), rng) for frame in frames]
    for start in range(0, len(pieces), 500):
        flood(site.serial, b"".join(pieces[start : start + 500]))
    assert site.daemon is not None
    assert site.daemon.process.poll() is None
    until(lambda: site.watcher.result("status")["run"] is None)
    check_calls(site, b"".join(pieces), bodies)
    run = site.watcher.result("migrate", op="after-flood", to=3)
    assert run == {"noop": True} or result_of(site.watcher, run["run"])["state"] == "done"


def test_frames_whose_every_mutant_differs_from_a_frame_start_nothing(open_site: Site) -> None:
    """Only damage within the body: not one of them may pass."""
    site, rng = open_site, random.Random(7)
    before = site.facts()
    pieces = []
    for body in changing_calls(2_000, rng):
        at = rng.randrange(10, len(body) - 10)
        keys = bytes([rng.randrange(0x20, 0x7F) ^ 1]) if rng.randrange(2) else b""
        damaged = body[:at] + keys + body[at + 1 :]
        pieces.append(framed(body).replace(body, damaged if damaged != body else body[1:]))
    flood(site.serial, b"".join(pieces))
    assert site.facts() == before


@pytest.mark.parametrize("kind", [BySerial, ByConsole], ids=["serial line", "socket console"])
def test_a_megabyte_of_noise_starts_nothing(open_site: Site, kind: type[BySerial]) -> None:
    site, rng = open_site, random.Random(1)
    line = kind(site).line
    before, memory = site.facts(), private_bytes(site)
    for _ in range(8):
        flood(line, rng.randbytes(125_000))
    assert site.facts() == before
    assert private_bytes(site) - memory < GROWTH_BYTES_MAX


def test_lines_of_a_socket_that_were_damaged_start_nothing_but_what_they_say(
    open_site: Site,
) -> None:
    site, rng = open_site, random.Random(3)
    bodies = changing_calls(1_000, rng)
    lines = [framed(body) for body in bodies]
    sent = []
    for line in lines:
        piece = mutated(line, rng.choice(lines), rng)
        sent.append(piece + b"\n")
        stranger = connect(site)
        say(stranger, piece + b"\n")
        stranger.close()
    until(lambda: site.watcher.result("status")["run"] is None)
    check_calls(site, b"".join(sent), bodies)


# ---- Clients


def private_bytes(site: Site) -> int:
    """What the daemon's process has for itself."""
    assert site.daemon is not None
    total = 0
    for line in Path(f"/proc/{site.daemon.process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            total += int(line.split()[1]) * KIB
    return total


def connect(site: Site) -> socket.socket:
    """A bare connection; the agent may turn it away."""
    stranger = socket.socket(socket.AF_UNIX)
    folder = os.open(site.terminal.root / "run/posagent", os.O_RDONLY)
    try:
        stranger.connect(f"/proc/self/fd/{folder}/agent.sock")  # waits while the queue is full
        stranger.settimeout(20)
    finally:
        os.close(folder)
    return stranger


def say(stranger: socket.socket, data: bytes) -> None:
    """Send what the other end takes."""
    try:
        stranger.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # turned away, which is an answer


SUBSCRIBE = request("subscribe", events=["progress", "state", "alarm"]) + b"\n"
MISBEHAVIOURS = (
    b"",  # comes and goes
    b'{"jsonrpc":"2.0","id":',  # half a line, then gone
    request("status") + b"\n",  # gone before the reply
    request("describe", method="restore") + b"\n" + request("history") + b"\n",
    SUBSCRIBE,
    request("console") + b"\nstatus\rhelp\r",
    request("console") + b"\n\x1e" + b"x" * 900,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00" * 4000,
    (request("ping") + b"\n") * 60,
)


def misbehave(site: Site, count: int) -> None:
    """Clients one after another, a few of them at once, who all do something else."""
    still: list[socket.socket] = []
    for number in range(count):
        stranger = connect(site)
        say(stranger, MISBEHAVIOURS[number % len(MISBEHAVIOURS)])
        if number % 3 == 0:
            stranger.shutdown(socket.SHUT_WR)
        still.append(stranger)
        if len(still) > number % 5:
            still.pop(0).close()
    for stranger in still:
        stranger.close()


def answered(site: Site) -> None:
    """Somebody new is answered as soon as there is room again."""

    def once() -> bool:
        stranger = connect(site)
        say(stranger, request("ping") + b"\n")
        try:
            heard = stranger.makefile("rb").readline()
        except ConnectionResetError:
            heard = b""
        stranger.close()
        return b'"result":{}' in heard

    until(once)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "terminal")
    made.start()
    try:
        yield made
    finally:
        made.end()
        made.serial.close()


@pytest.mark.parametrize("when", ["idle", "during a run"])
def test_a_thousand_clients_that_misbehave_cost_no_memory_and_stop_no_run(
    site: Site, when: str
) -> None:
    run, gate = 0, None
    if when == "during a run":
        gate = Gate(site.terminal)
        run = site.watcher.result("migrate", op="op-through-it", to=4)["run"]
        assert site.daemon is not None
        gate.wait(site.daemon.process)
    misbehave(site, 100)
    answered(site)
    before, calls = private_bytes(site), site.calls()
    misbehave(site, 1_000)
    answered(site)
    assert private_bytes(site) - before < GROWTH_BYTES_MAX
    assert site.calls() == calls
    if gate is not None:
        gate.open()
        assert result_of(site.watcher, run)["outcome"]["verdict"] == "OK"
    assert site.serial.call("ping")["result"] == {}


def is_turned_away(peer: SocketPeer) -> None:
    """One line says why, and the connection ends."""
    said = json.loads(peer.line())
    assert (said["id"], said["error"]["code"]) == (None, -32003)
    assert said["error"]["data"]["kind"] == "BUSY"
    assert peer.line() == b""


def test_a_connection_too_many_is_told_busy_and_closed_and_the_others_go_on(site: Site) -> None:
    peers = [site.watcher, *(site.peer() for _ in range(5))]  # four, and two more for an admin
    for peer in peers:
        assert peer.result("ping") == {}
    is_turned_away(site.peer())
    for peer in peers:
        assert peer.result("ping") == {}
    peers.pop().close()
    answered(site)


AS_A_STRANGER = """
import os, socket
os.setgroups([])
os.setgid(12_345)
os.setuid(12_345)
peers = []
for _ in range(6):
    peers.append(socket.socket(socket.AF_UNIX))
    peers[-1].connect("agent.sock")
    try:
        peers[-1].sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\\n')
    except BrokenPipeError:
        pass  # turned away already
    print(peers[-1].makefile().readline(), end="", flush=True)
input()
"""


def test_strangers_who_take_every_connection_do_not_keep_an_admin_out(tmp_path: Path) -> None:
    site = Site(tmp_path / "terminal")
    site.terminal.configure(socket_gid=12_345)
    site.start()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", AS_A_STRANGER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=site.terminal.root / "run/posagent",
        ) as stranger:
            assert stranger.stdout is not None
            said = [json.loads(stranger.stdout.readline()) for _ in range(6)]
            assert [kind_of(one) for one in said] == [None] * 3 + ["BUSY"] * 3
            assert site.peer().result("ping") == {}
            assert site.watcher.result("ping") == {}
            stranger.communicate("\n", timeout=20)
    finally:
        site.end()
        site.serial.close()


def test_a_subscriber_that_never_reads_costs_nothing(tmp_path: Path) -> None:
    """Six thousand batches are told of, 140 bytes each time: more than the bound."""
    site = Site(tmp_path / "terminal", records=6_000)
    site.terminal.configure(batch_rows_max=1)
    site.start()
    try:
        deaf = [connect(site) for _ in range(2)]
        for stranger in deaf:
            say(stranger, SUBSCRIBE)
        watching = until(functools.partial(console_on, site))
        touch_every_sale(site.terminal)
        before = private_bytes(site)
        run = site.watcher.result("migrate", op="op-unheard-1", to=4)["run"]
        say(watching, b"watch\r" * 3)
        assert result_of(site.watcher, run)["outcome"]["verdict"] == "OK"
        assert private_bytes(site) - before < GROWTH_BYTES_MAX
        for stranger in (*deaf, watching):
            stranger.close()
    finally:
        site.end()
        site.serial.close()


def touch_every_sale(terminal: Terminal) -> None:
    """One more version, whose migration goes over all of them."""
    Gate(terminal).path.unlink()  # nothing waits there
    path = terminal.root / "migrations/0004_waits_at_the_gate.py"
    path.write_text(path.read_text().replace("'balances'", "'transactions'"))


@pytest.mark.parametrize("text", [b"help\r", b"help migrate\r", b"version\r", b"plan\r"])
def test_a_client_that_pastes_and_does_not_read_is_bounded(site: Site, text: bytes) -> None:
    """Each Enter has an answer many times longer than itself."""
    misbehave(site, 50)
    stranger = until(functools.partial(console_on, site))
    before = private_bytes(site)
    paste(stranger, text * 50_000)
    assert private_bytes(site) - before < GROWTH_BYTES_MAX // 2
    assert site.watcher.result("ping") == {}
    stranger.close()
    answered(site)


def console_on(site: Site) -> socket.socket | None:
    """A connection that has become a console, None while there is no room for one."""
    stranger = connect(site)
    say(stranger, request("console") + b"\n")
    try:
        if b'"result"' in stranger.recv(4096):
            return stranger
    except ConnectionResetError:
        pass
    stranger.close()
    return None


def paste(stranger: socket.socket, data: bytes) -> None:
    """Send until the other end takes no more for a moment: it waits for its own answers to go."""
    view = memoryview(data)
    while view and select.select([], [stranger], [], 0.3)[1]:
        stranger.setblocking(False)
        view = view[stranger.send(view[:65_536]) :]
    assert view, "all of it was taken and answered to nobody"


def test_codes_that_cannot_be_right_wear_no_flash(tmp_path: Path) -> None:
    """A right or wrong code is written down at once; what is none comes as often as one likes."""
    site = Site(tmp_path / "terminal")
    give_key(site)
    site.start()
    try:
        site.serial.call("challenge", command="prune")
        assert kind_of(site.serial.call("code", code="0000-0000")) == "CODE_WRONG"
        audit = site.rows("audit")
        assert [row[5:] for row in audit][-1] == ("code", "CODE_WRONG", 1)
        for code in ("none", "000", "0000-000U") * 10:
            assert kind_of(site.serial.call("code", code=code)) == "PARAMS"
        assert site.rows("audit") == audit
        for kind in ("CODE_WRONG", "LOCKED", "LOCKED", "LOCKED", "LOCKED"):
            assert kind_of(site.serial.call("code", code="0000-0000")) == kind
        assert [row[5:] for row in site.rows("audit")][len(audit) :] == [
            ("code", "PARAMS", 30),
            ("code", "CODE_WRONG", 1),
            ("code", "LOCKED", 1),
        ]
    finally:
        site.end()
        site.serial.close()


def test_a_flood_of_checks_that_nobody_fetches_is_bounded(site: Site) -> None:
    for number in range(12):
        site.watcher.call("verify", backup=f"no-such-{number:03d}")
    runs = set()
    for number in range(30):
        ask = functools.partial(site.watcher.call, "verify", backup=f"other-{number}")
        runs.add(until(functools.partial(result_in, ask))["run"])
    assert len(runs) == 30, "a number is given to one check alone"


@pytest.mark.parametrize("name", ["--root=/tmp", "--config=/tmp/x", "--help", "--json", "-h"])
def test_the_name_of_a_backup_is_never_an_option_of_the_command(site: Site, name: str) -> None:
    for way in (site.watcher, site.serial):
        said = way.call("verify", backup=name)
        assert kind_of(said) == "NO_SUCH", said
    assert "no backup" in site.serial.type(f"verify {name}x")


def test_on_tcp_there_is_one_deadline_for_the_token_however_slowly_it_comes(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path / "terminal")
    port = free_port()
    site.terminal.configure(tcp_port=port)
    site.start()
    try:
        stranger = connected(site, port)
        for _ in range(40):
            say(stranger, b" ")
            if select.select([stranger], [], [], 0.25)[0]:
                break
        else:
            raise AssertionError("who sends byte after byte is listened to for ever")
        assert json.loads(stranger.makefile("rb").readline())["error"]["code"] == -32700
        stranger.close()
    finally:
        site.end()
        site.serial.close()


# ---- A socket folder that is none of ours


@pytest.mark.parametrize("what", ["a file", "a stranger's", "everybody's", "a file as its name"])
def test_a_socket_folder_that_is_not_ours_is_told_once_and_left_alone(
    tmp_path: Path, what: str
) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    folder = terminal.root / "run/posagent"
    spoil(folder, what)
    before = look_of(folder)
    with Daemon(terminal) as daemon:
        until(lambda: answers(line))
        until(lambda: line.call("status")["result"]["verdict"] == "OK")
        assert terminal.read().schema_version == 3
        assert look_of(folder) == before
        daemon.process.terminate()
        told = daemon.process.communicate(timeout=20)[1]
        assert told.count("no socket: ") == 1, told
        assert daemon.process.returncode == 0
    assert look_of(folder) == before
    line.close()


def spoil(folder: Path, what: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if what == "a file":
        remove(folder)
        folder.write_text("a file\n")
        return
    folder.mkdir(exist_ok=True)
    if what == "a stranger's":
        os.chown(folder, 12_345, 12_345)
    elif what == "everybody's":
        folder.chmod(0o777)
    else:
        folder.chmod(0o750)
        (folder / "agent.sock").write_text("somebody's\n")


def look_of(path: Path) -> Any:
    """All of it that a program could have changed, but for status.json in a folder of ours."""
    found = path.lstat()
    inside = sorted(set(os.listdir(path)) - {"status.json"}) if path.is_dir() else path.read_text()
    return found.st_mode, found.st_uid, found.st_gid, inside


def answers(line: Line) -> bool:
    """Whether the daemon has opened the line: bytes from before are dropped at the opening."""
    line.seen = b""
    line.send(ping("open?"))
    read = line.read(0.1)
    return bool(frames_in(read))


def test_a_socket_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    shutil.rmtree(terminal.root / "run", ignore_errors=True)
    with Daemon(terminal) as daemon:
        daemon.ready()
        folder = terminal.root / "run/posagent"
        assert folder.stat().st_mode & 0o777 == 0o750
        assert (folder / "agent.sock").stat().st_mode & 0o777 == 0o660
    line.close()


def test_what_the_agent_publishes_is_not_led_into_a_file_of_somebody(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    folder, victim = terminal.root / "run/posagent", tmp_path / "victim"
    spoil(folder, "everybody's")
    victim.write_text("mine\n")
    (folder / "status.json.tmp").symlink_to(victim)
    with Daemon(terminal):
        until(lambda: answers(line))
        until(lambda: line.call("status")["result"]["verdict"] == "OK")
    assert victim.read_text() == "mine\n"
    line.close()


# ---- A serial device that is none, or not now


@pytest.mark.parametrize("what", ["missing", "a file", "a FIFO", "a folder", "no terminal"])
def test_a_serial_device_that_is_none_is_told_once_and_the_socket_works(
    tmp_path: Path, what: str
) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    device = Path(f"{terminal.root}{LINE}")
    device.unlink()
    if what == "a file":
        device.write_text("a file\n")
    elif what == "a FIFO":
        os.mkfifo(device)
    elif what == "a folder":
        device.mkdir()
    elif what == "no terminal":
        device.symlink_to("/dev/null")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert peer.result("status")["verdict"] == "OK"
        if what == "a file":
            assert device.read_text() == "a file\n"
        remove(device)
        device.symlink_to(line.name)
        until(lambda: answers(line))
        daemon.process.terminate()
        told = daemon.process.communicate(timeout=20)[1]
        assert 1 <= told.count("no serial line: ") <= 2, told  # in between it is missing
        assert told.count("is open") == 1, told
    line.close()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif path.is_symlink() or path.exists():
        path.unlink()


def test_a_serial_line_that_another_program_holds_is_taken_when_it_lets_go(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    hold = f"import serial; p = serial.Serial({line.name!r}, exclusive=True); print(); input()"
    words = [sys.executable, "-u", "-c", hold]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "\n"
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert not answers(line)
        holder.communicate("\n", timeout=20)
        until(lambda: answers(line))
        assert peer.result("ping") == {}
        daemon.process.terminate()
        told = daemon.process.communicate(timeout=20)[1]
        assert told.count("busy") == 1, told
    line.close()


def test_a_serial_line_that_is_unplugged_and_plugged_in_again_is_answered(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        line.send(b"half a comm")
        line.send(b"\x1e{")
        Path(f"{terminal.root}{LINE}").unlink()  # the next pty may get the number of this one
        line.close()
        assert peer.result("ping") == {}
        again = Line(terminal)
        until(lambda: answers(again))
        assert "agent> " in again.type("")
        assert peer.result("ping") == {}
    again.close()


@pytest.mark.parametrize("call", ["TCSETS", "TCFLSH"])
def test_a_serial_device_that_goes_away_while_it_is_opened_is_opened_again(
    tmp_path: Path, call: str
) -> None:
    terminal, line = terminal_with_line(tmp_path / "terminal")
    give_libraries(terminal)
    number = {"TCSETS": 4, "TCFLSH": 7}[call]  # pyserial's calls on the device, in their order
    log = tmp_path / "calls"
    words = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=ioctl", "-e", "signal=none"]
    words += ["-e", f"inject=ioctl:error=EIO:when={number}", "-P", line.name]
    words += ["-P", f"{terminal.root}{LINE}", *COMMAND, "--root", str(terminal.root), "run"]
    tracer = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: answers(line))
    finally:
        for pid in children_of(tracer.pid):
            os.kill(pid, signal.SIGTERM)
        told = tracer.communicate(timeout=20)[1]
    injected = [text for text in log.read_text().splitlines() if "INJECTED" in text]
    assert len(injected) == 1
    assert call in injected[0]
    assert told.count("no serial line: ") == 1, told
    line.close()


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


# ---- Flash that is full, damaged or shut


@contextmanager
def on_small_flash(root: Path) -> Iterator[Site]:
    """A terminal whose diary and backups lie on four megabytes of their own."""
    site = Site(root)
    folder = site.terminal.data / "posagent"
    with filesystems.tmpfs(folder, 4 * 1024 * KIB):
        site.terminal.configure(reserve_bytes=4096)
        site.start()
        try:
            yield site
        finally:
            site.end()
            site.serial.close()


@pytest.mark.parametrize("kind", ["serial", "socket"])
def test_a_call_that_flash_does_not_take_is_refused_and_not_begun(
    tmp_path: Path, kind: str
) -> None:
    with on_small_flash(tmp_path / "terminal") as site:
        way: Any = site.serial if kind == "serial" else site.watcher
        before, digest = site.calls(), site.terminal.sha256()
        filler = site.terminal.data / "posagent/filler"
        fill_up(filler)
        for op in ("op-full-001", "op-full-001", "op-full-002"):
            said = way.call("backup", op=op)
            assert said["error"]["code"] == -32021, said
            assert said["error"]["data"]["kind"] == "STORAGE_ERROR"
            assert said["error"]["data"]["changed"] is False
        assert way.call("status")["result"]["run"] is None
        filler.unlink()
        assert (site.calls(), site.terminal.sha256()) == (before, digest)
        said = way.call("backup", op="op-full-001")["result"]
        assert said["replayed"] is False
        assert result_of(site.watcher, said["run"])["outcome"]["verdict"] == "OK"


def fill_up(path: Path) -> None:
    """Take every byte that is left."""
    with open(path, "wb", buffering=0) as file:
        for size in (65_536, 4_096, 512):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_state_folder_that_turns_read_only_lets_readers_read_and_writers_know(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path / "terminal")
    with filesystems.ext4(site.terminal.data / "posagent", 16 * 1024 * KIB) as folder:
        try:
            site.start()
            trigger, digest = filesystems.error_trigger(folder), site.terminal.sha256()
            trigger.write_text("found by a test\n")
            for peer in (site.watcher, site.serial):
                for method, params in (("backup", {}), ("migrate", {"to": 4}), ("prune", {})):
                    said = peer.call(method, op="op-shut-0001", **params)
                    assert kind_of(said) in ("STORAGE_ERROR", "PARAMS", "NOT_ALLOWED"), said
                assert kind_of(peer.call("backup", op="op-shut-0001")) == "STORAGE_ERROR"
                assert peer.call("status")["result"]["run"] is None
            assert until(lambda: site.watcher.call("history").get("result"))["history"]
            assert site.terminal.sha256() == digest
        finally:
            site.end()
            site.serial.close()


def result_in(ask: Callable[[], dict[str, Any]]) -> Any:
    """The result of a call, None while it is an error."""
    return ask().get("result")


def kind_of(said: dict[str, Any]) -> str | None:
    """What kind of error a reply is."""
    kind: str | None = said.get("error", {}).get("data", {}).get("kind")
    return kind


DAMAGES = ("gone", "empty", "garbage", "cut short", "a folder", "a link to the data")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_diary_that_is_damaged_under_the_daemon_keeps_nobody_from_working(
    site: Site, damage: str
) -> None:
    path = site.terminal.data / "posagent/agent.db"
    digest = site.terminal.sha256()
    spoil_diary(path, damage, site.terminal)
    said = site.serial.call("migrate", op="op-damaged-1", to=3)
    assert said["result"] == {"noop": True}
    run = site.watcher.result("backup", op="op-damaged-2")["run"]
    assert result_of(site.watcher, run)["outcome"]["verdict"] == "OK"
    assert site.watcher.result("backup", op="op-damaged-2")["replayed"] is True
    assert site.terminal.sha256() == digest


def spoil_diary(path: Path, damage: str, terminal: Terminal) -> None:
    data = path.read_bytes()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(random.Random(5).randbytes(len(data)))
    elif damage == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a link to the data":
        path.symlink_to(terminal.pos)


def test_a_diary_whose_bytes_change_under_the_daemon_never_ends_it(site: Site) -> None:
    path, rng = site.terminal.data / "posagent/agent.db", random.Random(11)
    digest = site.terminal.sha256()
    for number in range(60):
        if path.is_file():
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice((1, 4, 40))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data)
        for method, params in (
            ("migrate", {"op": f"op-bytes-{number:03d}", "to": 3}),
            ("result", {"op": "op-bytes-000"}),
            ("result", {"run": 1}),
            ("challenge", {"command": "prune"}),
        ):
            said = site.watcher.call(method, **params)
            assert kind_of(said) != "INTERNAL", (number, method, said)
    assert site.daemon is not None
    assert site.daemon.process.poll() is None
    assert site.terminal.sha256() == digest


def test_a_diary_whose_schema_is_damaged_does_not_keep_the_daemon_from_its_decision(
    site: Site,
) -> None:
    """SQLite's words quote the damaged bytes, which no text of Python can hold."""
    site.end()
    path = site.terminal.data / "posagent/agent.db"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tablehistory", b"table\xb8istory", 1))
    site.start()
    assert site.watcher.result("status")["verdict"] in ("OK", "NOT_REQUIRED")
    assert site.watcher.result("backup", op="op-schema-01")["replayed"] is False


def test_rows_of_a_diary_that_somebody_else_wrote_end_nothing(site: Site) -> None:
    """SQLite keeps a text where a number belongs, and so may a damaged page."""
    connection = sqlite3.connect(site.terminal.data / "posagent/agent.db")
    connection.execute(
        "INSERT INTO calls (op, digest, method, kind, state, outcome, history_before)"
        " VALUES ('op-strange-1', 'x', 'backup', 'backup', 'started', '[1]', 'many')"
    )
    connection.execute(
        "INSERT INTO calls (op, digest, method, kind, state, outcome, history_before)"
        " VALUES ('op-strange-2', X'00ff', 'prune', 7, 'done', X'ff', -1.5)"
    )
    connection.execute("INSERT OR REPLACE INTO access VALUES (1, 'a', 'b', 'c')")
    connection.commit()
    connection.close()
    site.restart()
    for op in ("op-strange-1", "op-strange-2"):
        said = site.watcher.call("result", op=op)
        assert kind_of(said) != "INTERNAL", said
    for method, params in (
        ("migrate", {"op": "op-strange-3", "to": 3}),
        ("challenge", {"command": "prune"}),
        ("log", {}),
        ("history", {}),
    ):
        said = site.watcher.call(method, **params)
        assert kind_of(said) != "INTERNAL", said
