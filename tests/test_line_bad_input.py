"""Fifteen bad inputs, each over the real serial line and over the socket: a clear error, nothing
changed, and the next call answered.

The terminal, its daemon and its lines are real; what changed is read from the files, not asked of
the daemon. Numbers in comments are those of the list that this file works off.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import (
    Daemon,
    Line,
    SocketPeer,
    framed,
    frames_in,
    is_idle,
    result_of,
    terminal_with_line,
    until,
)
from tests.terminals import Gate, new_terminal

KEY = hashlib.sha256(b"a service key of the tests").digest()
FIRST_BACKUP = "000001-v0.posbak"
PROMPT = b"agent> "


class Site:
    """A terminal with a daemon at rest, a peer that only watches, and what lies on its flash."""

    def __init__(self, root: Path, **recipe: Any) -> None:
        self.terminal, self.serial = terminal_with_line(root, **recipe)
        self.terminal.own_migrations()  # a folder to which a test may add a file
        self.daemon: Daemon | None = None

    def start(self) -> SocketPeer:
        """Start the daemon; `watcher` is connected once it is at rest."""
        self.daemon = Daemon(self.terminal)
        self.watcher = self.daemon.ready()
        return self.watcher

    def restart(self) -> None:
        """Power gone, power back."""
        self.end()
        self.start()

    def end(self) -> str:
        """Kill the daemon; what it said on standard error."""
        if self.daemon is None:
            return ""
        daemon, self.daemon = self.daemon, None
        self.watcher.close()
        if daemon.process.poll() is None:
            daemon.process.kill()
        return str(daemon.process.communicate()[1])

    def peer(self) -> SocketPeer:
        """One more connection."""
        assert self.daemon is not None
        return self.daemon.peer()

    def facts(self) -> dict[str, Any]:
        """Everything that no bad input may change."""
        return {
            "data": self.terminal.sha256(),
            "beside it": self.terminal.listing(),
            "backups": sorted(os.listdir(self.terminal.backups)),
            "diary": self.rows("history"),
            "calls": self.calls(),
        }

    def calls(self) -> list[Any]:
        """The calls that were accepted; a boot has a number like them and nobody called it."""
        return [row for row in self.rows("calls") if "boot" not in row]

    def rows(self, table: str) -> list[Any]:
        """A table of agent.db, read from a copy so that the daemon notices nothing."""
        copy = self.terminal.root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for suffix in ("", "-wal"):
            path = self.terminal.data / f"posagent/agent.db{suffix}"
            if path.exists():
                shutil.copy(path, copy / path.name)
        connection = sqlite3.connect(copy / "agent.db")
        try:
            return connection.execute(f"SELECT * FROM {table}").fetchall()
        finally:
            connection.close()


class ConsoleLine(Line):
    """A connection to agent.sock that has become a console: a byte line like the serial one."""

    def __init__(self, peer: SocketPeer) -> None:
        peer.result("console")
        self.master = os.dup(peer.socket.fileno())
        os.set_blocking(self.master, True)
        self.seen = b""

    def close(self) -> None:
        os.close(self.master)


class Way:
    """One way in. `say` sends one body and answers the reply to it, whichever id that has."""

    name = ""
    is_admin = False

    def __init__(self, site: Site) -> None:
        self.site = site
        self.connect()

    def connect(self) -> None:
        raise NotImplementedError

    def say(self, body: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        request = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        return self.say(json.dumps(request).encode())

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        said = self.call(method, **params)
        assert "result" in said, said
        found: dict[str, Any] = said["result"]
        return found

    def error(self, method: str, **params: Any) -> dict[str, Any]:
        return error_in(self.call(method, **params))

    def may(self, command: str) -> None:
        """Get the right to one command, where this way needs a code for it."""


class BySerial(Way):
    """Frames on the serial line."""

    name = "serial line"

    def connect(self) -> None:
        self.line: Line = self.site.serial

    def say(self, body: bytes) -> dict[str, Any]:
        self.line.seen = b""
        self.line.send(framed(body))
        found: dict[str, Any] = self.line.until(lambda seen: frames_in(seen))[-1]
        return found

    def may(self, command: str) -> None:
        told = self.result("challenge", command=command)
        assert self.result("code", code=code_of(told)) == {"ok": True, "command": command}


class ByConsole(BySerial):
    """Frames on a connection that has become a console."""

    name = "console on the socket"

    def connect(self) -> None:
        self.line = ConsoleLine(self.site.peer())


class BySocket(Way):
    """Plain lines on the socket."""

    name = "socket"
    is_admin = True

    def connect(self) -> None:
        self.peer = self.site.peer()

    def say(self, body: bytes) -> dict[str, Any]:
        self.peer.send(body + b"\n")
        line = self.peer.line()
        assert line, "the agent hung up"
        found: dict[str, Any] = json.loads(line)
        if is_cut_off(found):
            assert self.peer.line() == b"", "whoever sends no request is cut off"
            self.connect()
        return found


def is_cut_off(said: dict[str, Any]) -> bool:
    """Whether a socket is closed behind this reply."""
    return "error" in said and said["error"]["data"]["kind"] in ("PARSE", "BAD_CRC", "TOO_LONG")


def error_in(said: dict[str, Any]) -> dict[str, Any]:
    """The error of a reply; it says that nothing was changed."""
    assert "error" in said, said
    error: dict[str, Any] = said["error"]
    assert error["data"]["changed"] is False
    assert 0 < len(error["message"]) <= 200
    return error


def is_error(said: dict[str, Any], code: int, kind: str) -> dict[str, Any]:
    """The error of a reply, which has this code and kind."""
    error = error_in(said)
    assert (error["code"], error["data"]["kind"]) == (code, kind), error
    return error


def code_of(told: dict[str, Any], key: bytes = KEY, **instead: Any) -> str:
    """What the service desk reads out, by the standard library alone."""
    told = {**told, **instead}
    parts = ["posagent service code", told["serial"], str(told["counter"])]
    parts += [told["nonce"].replace("-", ""), told["command"]]
    mac = hmac.new(key, "\0".join(parts).encode(), "sha256").digest()
    ours, theirs = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    return base64.b32encode(mac[:5]).decode().translate(str.maketrans(ours, theirs))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "terminal")
    give_key(made)
    made.start()
    try:
        yield made
    finally:
        made.end()
        made.serial.close()


def give_key(site: Site) -> None:
    folder = site.terminal.data / "posagent"
    folder.mkdir(exist_ok=True)
    path = folder / "service.key"
    path.write_text(KEY.hex() + "\n")
    path.chmod(0o600)


def all_ways(*ways: type[Way]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", ways, ids=[way.name for way in ways])


every_way = all_ways(BySerial, ByConsole, BySocket)
byte_lines = all_ways(BySerial, ByConsole)


@contextmanager
def nothing_changes(way: Way) -> Iterator[None]:
    """The files are afterwards as they were, and the next call is answered."""
    before = way.site.facts()
    yield
    assert way.result("ping") == {}
    assert is_idle(way.site.watcher)
    assert way.site.facts() == before


def request(method: str, /, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()


# ---- 1: one byte lost, doubled or flipped

DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "lost": lambda frame, at: frame[:at] + frame[at + 1 :],
    "doubled": lambda frame, at: frame[: at + 1] + frame[at:],
    "flipped": lambda frame, at: frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :],
}


@every_way
def test_a_frame_with_one_damaged_byte_is_bad_crc_and_its_repeat_is_carried_out(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    whole = framed(request("migrate", op="op-damaged-1", to=3, plan="0123"))
    with nothing_changes(way):
        for damage in DAMAGES.values():
            broken = damage(whole, whole.index(b"migrate") + 2)
            said = say_broken(way, broken)
            assert said["id"] is None
            assert is_error(said, -32001, "BAD_CRC")["data"]["retry"] == "same-op"
    kept = request("backup", op="op-damaged-2")
    is_error(say_broken(way, DAMAGES["flipped"](framed(kept), 9)), -32001, "BAD_CRC")
    assert way.say(kept)["result"]["replayed"] is False


def say_broken(way: Way, frame: bytes) -> dict[str, Any]:
    """Send bytes that are no whole frame; the one reply."""
    if isinstance(way, BySocket):
        return way.say(frame[:-1])
    assert isinstance(way, BySerial)
    way.line.seen = b""
    way.line.send(frame)
    return way.line.answer(None)


@all_ways(BySerial, ByConsole, BySocket)
def test_a_frame_that_lost_its_rs_is_known_by_its_checksum(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    if isinstance(way, BySocket):
        assert way.say(framed(request("ping"))[1:-1])["result"] == {}
    else:
        assert isinstance(way, BySerial)
        way.line.send(framed(request("ping"))[1:])
        assert way.line.answer(7)["result"] == {}


# ---- 2: a frame that is cut off


@byte_lines
def test_a_frame_that_is_cut_off_ends_at_the_next_rs(site: Site, kind: type[BySerial]) -> None:
    way = kind(site)
    with nothing_changes(way):
        way.line.send(framed(request("backup", op="op-cut-off-1"))[:-12])
        assert way.result("ping") == {}


def test_behind_a_frame_that_is_cut_off_a_person_is_heard_after_three_seconds(site: Site) -> None:
    ways = [BySerial(site), ByConsole(site)]
    with nothing_changes(ways[0]):
        for way in ways:
            way.line.send(framed(request("backup", op="op-cut-off-2"))[:-12])
        assert ways[0].line.read(3.2) == b"", "a frame that goes on nobody answers"
        for way in ways:
            assert "schema 3" in way.line.type("")
            assert "idle" in way.line.type("status")


# ---- 3: a frame that is too long


@byte_lines
@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\nstatus"], ids=["LF", "CR", "more text"])
def test_a_frame_of_3000_bytes_is_refused_once_and_nothing_of_it_is_typed(
    site: Site, kind: type[BySerial], ends: bytes
) -> None:
    way = kind(site)
    with nothing_changes(way):
        way.line.send(b"\x1e" + (b"migrate 3 " * 300) + ends)
        said = way.line.answer(None)
        assert is_error(said, -32002, "TOO_LONG")["data"]["limit"] == 1024
        way.line.send(framed(request("ping")))
        seen = way.line.until(lambda seen: seen if b'"result":{}' in seen else None)
        assert [one.get("id") for one in frames_in(seen)] == [7]
        assert b"migrate" not in seen


def test_a_line_over_its_bound_ends_a_connection(site: Site) -> None:
    way = BySocket(site)
    with nothing_changes(way):
        said = way.say(request("backup", op="op-too-long", label="x" * 4096))
        assert "4096" in is_error(said, -32700, "PARSE")["message"]


# ---- 4: a frame behind half a command


@byte_lines
def test_a_half_typed_command_does_not_survive_a_frame(site: Site, kind: type[BySerial]) -> None:
    way = kind(site)
    way.line.type("")
    with nothing_changes(way):
        way.line.send(b"restore 1")
        way.line.until(lambda seen: b"restore 1" in seen)
        assert way.result("ping") == {}
        assert way.line.type("") == "\r\nagent> "


# ---- 5: a machine's line by hand


@byte_lines
def test_a_request_typed_without_frame_is_told_and_not_run(
    site: Site, kind: type[BySerial]
) -> None:
    way = kind(site)
    way.line.type("")
    with nothing_changes(way):
        seen = way.line.type(request("backup", op="op-pasted-1").decode())
        assert "machine frame without RS or with bad checksum" in seen
        assert "backup" not in seen, "what a machine sends is not echoed"


# ---- 6: the line hears itself


@byte_lines
def test_a_line_wired_to_itself_falls_silent_and_wakes_after_a_second(
    site: Site, kind: type[BySerial]
) -> None:
    way = kind(site)
    with nothing_changes(way):
        line, heard = way.line, 0
        line.send(b"\rwhat\r")
        while data := line.read(0.8):
            heard += len(data)
            assert heard < 20_000
            line.send(data)
        assert line.read(1.2) == b""
        assert "idle" in line.type("status", "idle")
    assert site.end().count("muted") == 1


@byte_lines
def test_what_a_machine_is_told_comes_back_and_is_not_answered_again(
    site: Site, kind: type[BySerial]
) -> None:
    way = kind(site)
    with nothing_changes(way):
        line = way.line
        line.send(b"\x1edamaged\n")
        rounds = 0
        while data := line.read(0.4):
            line.send(data)
            rounds += 1
            assert rounds < 10


# ---- 7: another rate


@byte_lines
def test_noise_of_a_wrong_rate_is_told_once_and_forms_no_command(
    site: Site, kind: type[BySerial]
) -> None:
    way = kind(site)
    way.line.type("")
    with nothing_changes(way):
        noise = bytes(0x80 | byte for byte in hashlib.sha512(b"noise").digest()) * 4
        way.line.send(noise + b"\x00\x00" + noise)
        way.line.send(framed(request("ping")))
        seen = way.line.until(lambda seen: seen if b'"result":{}' in seen else None)
        assert seen.count(b"line noise") == 1
        assert b"8N1" in seen


# ---- 8, 9, 10: the same again, something else under the same name, at the wrong time


@every_way
def test_a_migrate_sent_again_is_the_same_run_also_after_a_power_cut(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    gate = Gate(site.terminal)
    first = way.result("migrate", op="op-migrate-1", to=4)
    assert first["replayed"] is False
    assert site.daemon is not None
    gate.wait(site.daemon.process)
    again = way.result("migrate", op="op-migrate-1", to=4)
    assert (again["run"], again["replayed"]) == (first["run"], True)
    site.restart()
    gate.open()
    way = kind(site)
    again = way.result("migrate", op="op-migrate-1", to=4)
    assert (again["run"], again["replayed"]) == (first["run"], True)
    assert len([row for row in site.rows("calls") if "op-migrate-1" in row]) == 1
    assert site.terminal.read().schema_version == 4


@every_way
def test_an_op_used_for_something_else_is_refused_and_names_the_first_call(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    run = way.result("backup", op="op-used-once")["run"]
    result_of(site.watcher, run)
    with nothing_changes(way):
        for method, params in (("migrate", {"to": 3}), ("prune", {}), ("migrate", {"to": 9})):
            said = way.call(method, op="op-used-once", **params)
            data = is_error(said, -32007, "OP_REUSED")["data"]
            assert (data["method"], data["run"]) == ("backup", run)


@every_way
def test_a_call_without_an_op_is_refused(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        for method, params in (("backup", {}), ("migrate", {"to": 3}), ("cancel", {"run": 1})):
            is_error(way.call(method, **params), -32007, "OP_MISSING")
        for op in ("short", "x" * 37, "with blank", "ünicode-op", 12345678, None):
            is_error(way.call("backup", op=op), -32602, "PARAMS")


@every_way
def test_a_second_call_while_a_run_is_on_is_busy_with_its_number(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    gate = Gate(site.terminal)
    run = way.result("migrate", op="op-at-gate-1", to=4)["run"]
    assert site.daemon is not None
    gate.wait(site.daemon.process)
    calls, digest = site.calls(), site.terminal.sha256()
    admins = (("prune", {}), ("commit", {}), ("restore", {"backup": 1})) if way.is_admin else ()
    for method, params in (("migrate", {"to": 4}), ("backup", {}), *admins):
        said = way.call(method, op="op-at-gate-2", **params)
        assert is_error(said, -32003, "BUSY")["data"]["run"] == run
    is_error(way.call("plan"), -32003, "BUSY")
    assert (site.calls(), site.terminal.sha256()) == (calls, digest)
    gate.open()
    assert result_of(site.watcher, run)["outcome"]["verdict"] == "OK"


@every_way
def test_a_plan_that_is_no_longer_so_is_refused_with_the_one_that_is(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    plan = until(lambda: way.call("plan").get("result"))["plan"]
    gate = Gate(site.terminal)
    with nothing_changes(way):
        said = way.call("migrate", op="op-stale-plan", to=4, plan=plan)
        newer = is_error(said, -32008, "PLAN_CHANGED")["data"]["plan"]
        assert newer != plan
    gate.path.unlink()  # nothing waits there
    run = way.result("migrate", op="op-stale-plan", to=4, plan=newer)["run"]
    assert result_of(site.watcher, run)["outcome"]["verdict"] == "OK"


# ---- 11: a target that is none


@every_way
def test_a_target_that_is_not_the_installed_one_is_refused_with_the_one_that_is(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    with nothing_changes(way):
        for to in (2, 4, 9999):
            error = is_error(way.call("migrate", op="op-target-1", to=to), -32602, "PARAMS")
            assert (error["data"]["param"], error["data"]["allowed"]) == ("to", 3)
            assert ("rollback" in error["message"]) == (to < 3)
        wrongs: list[Any] = ["14", 14.0, 3.0, -1, 10_000, True, None, [], [3], {}, 1 << 52]
        for wrong in wrongs:
            error = is_error(way.call("migrate", op="op-target-2", to=wrong), -32602, "PARAMS")
            assert error["data"]["param"] == "to"
            assert "0 to 9999" in error["data"]["allowed"]


@every_way
def test_a_target_that_json_does_not_know_is_refused(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        for number in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"03", b"+3"):
            body = request("migrate", op="op-target-3", to=77).replace(b"77", number)
            is_error(way.say(body), -32700, "PARSE")


# ---- 12: codes


@byte_lines
def test_a_wrong_code_costs_a_try_and_the_third_locks_through_a_restart(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    with nothing_changes(way):
        told = way.result("challenge", command="restore 1")
        right = code_of(told)
        wrong = [
            code_of(told, command="restore 2"),  # the code for another backup
            code_of(told, counter=told["counter"] + 1),
            code_of(told, key=bytes(32)),
        ]
        left = [is_error(way.call("code", code=one), -32005, "CODE_WRONG") for one in wrong[:2]]
        assert [error["data"]["left"] for error in left] == [2, 1]
        for code in (wrong[2], right, wrong[0]):
            error = is_error(way.call("code", code=code), -32006, "LOCKED")
            assert 590 <= error["data"]["retry_s"] <= 600
        is_error(way.call("challenge", command="restore 1"), -32006, "LOCKED")
        is_error(way.call("restore", op="op-locked-01", backup=1), -32004, "NOT_ALLOWED")
        site.restart()
        way.connect()
        is_error(way.call("code", code=right), -32006, "LOCKED")
        is_error(way.call("challenge", command="restore 1"), -32006, "LOCKED")
        is_error(way.call("restore", op="op-locked-02", backup=1), -32004, "NOT_ALLOWED")


@byte_lines
def test_a_code_is_good_for_its_one_command_once(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    way.may("prune")
    with nothing_changes(way):
        for method, params in (
            ("restore", {"backup": 1}),
            ("rollback", {"to": 2}),
            ("commit", {}),
            ("prune", {"despite_unsettled": True}),
        ):
            said = way.call(method, op="op-other-cmd", **params)
            assert is_error(said, -32004, "NOT_ALLOWED")["data"]["need"] == "admin"
    run = way.result("prune", op="op-its-cmd-1")["run"]
    result_of(site.watcher, run)
    with nothing_changes(way):
        is_error(way.call("prune", op="op-its-cmd-2"), -32004, "NOT_ALLOWED")


@byte_lines
def test_a_code_that_was_used_is_no_code(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    told = way.result("challenge", command="prune")
    way.result("code", code=code_of(told))
    result_of(site.watcher, way.result("prune", op="op-used-code")["run"])
    with nothing_changes(way):
        is_error(way.call("code", code=code_of(told)), -32009, "NO_SUCH")
        newer = way.result("challenge", command="prune")
        assert newer["counter"] == told["counter"] + 1
        is_error(way.call("code", code=code_of(told)), -32005, "CODE_WRONG")
        is_error(way.call("prune", op="op-used-code-2"), -32004, "NOT_ALLOWED")


@byte_lines
def test_what_cannot_be_a_code_costs_no_try(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        told = way.result("challenge", command="prune")
        for text in ("D49P", "UUUU-UUUU", "x" * 64, "D49P-C2W2-AAAA", 49, None, ""):
            error = is_error(way.call("code", code=text), -32602, "PARAMS")
            assert str(text) not in error["message"] or text in ("", None)
        assert way.result("code", code=code_of(told)) == {"ok": True, "command": "prune"}


# ---- 13: a backup that is none


@every_way
def test_a_backup_is_looked_up_by_name_and_never_a_path(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    names = ("../../etc/x", "/etc/passwd", "../agent.db", FIRST_BACKUP + "/../x", "..", "%2e", 99)
    with nothing_changes(way):
        for name in names:
            if way.is_admin:
                said = way.call("restore", op="op-no-backup", backup=name)
            else:  # nobody rings up the desk for what is not there
                said = way.call("challenge", command=f"restore {name}")
            is_error(said, -32009, "NO_SUCH")
        for wrong in ("", 0, -1, 1.0, None, "x" * 65, "a\x00b", "a\nb", True):
            is_error(way.call("restore", op="op-no-backup", backup=wrong), -32602, "PARAMS")


@every_way
@pytest.mark.parametrize("why", ["damaged", "foreign"])
def test_a_damaged_or_foreign_backup_is_not_restored(
    site: Site, kind: type[Way], why: str, tmp_path: Path
) -> None:
    way = kind(site)
    path = site.terminal.backups / FIRST_BACKUP
    if why == "damaged":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        other = new_terminal(tmp_path / "other", seed=2)
        other.configure(device_id="T-0002")
        assert other.boot().code == 0
        shutil.copy(other.backups / FIRST_BACKUP, path)
    digest = site.terminal.sha256()
    way.may(f"restore {FIRST_BACKUP} discard unknown")
    run = way.result("restore", op="op-bad-backup", backup=FIRST_BACKUP, discard="unknown")["run"]
    ended = result_of(site.watcher, run)
    assert ended["state"] == "failed"
    assert ended["outcome"]["code"] == "BACKUP_CORRUPT", ended
    assert site.terminal.sha256() == digest
    assert way.result("ping") == {}


# ---- 14: whoever speaks something else

HTTP = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 99\r\n\r\n"
    + request("backup", op="op-from-a-page")
    + b"\n"
)
TLS = bytes.fromhex("16030100c8010000c40303") + hashlib.sha512(b"hello").digest().replace(
    b"\n", b""
)
STRANGERS = {
    "a web page": HTTP,
    "a TLS hello": TLS.replace(b"\n", b"\r")
    + b"\n"
    + request("backup", op="op-from-tls-1")
    + b"\n",
    "5 MB without LF": b"x" * 5_000_000 + b"\n" + request("backup", op="op-from-5-mb") + b"\n",
    "a shell": b"id\n" + request("backup", op="op-from-shell") + b"\n",
}


@pytest.mark.parametrize("where", ["Unix socket", "TCP"])
@pytest.mark.parametrize("said", list(STRANGERS.values()), ids=list(STRANGERS))
def test_whoever_speaks_something_else_gets_one_error_and_is_cut_off(
    tmp_path: Path, where: str, said: bytes
) -> None:
    site = Site(tmp_path / "terminal")
    port = free_port()
    site.terminal.configure(tcp_port=port)
    site.start()
    try:
        way = BySocket(site)
        with nothing_changes(way):
            stranger = connected(site, port) if where == "TCP" else site.peer().socket
            answers = talk_past(stranger, said)
            assert len(answers) == 1
            is_error(json.loads(answers[0]), -32700, "PARSE")
    finally:
        site.end()
        site.serial.close()


@pytest.mark.parametrize("first", ["ping", "hello", "backup"])
def test_on_tcp_nothing_is_done_before_a_hello_with_the_token(tmp_path: Path, first: str) -> None:
    site = Site(tmp_path / "terminal")
    port = free_port()
    site.terminal.configure(tcp_port=port)
    site.start()
    try:
        way = BySocket(site)
        with nothing_changes(way):
            params: dict[str, Any] = {"proto": [1], "token": "0" * 32} if first == "hello" else {}
            params = {"op": "op-no-token"} if first == "backup" else params
            later = request("backup", op="op-no-token-2") + b"\n"
            answers = talk_past(connected(site, port), request(first, **params) + b"\n" + later)
            assert len(answers) == 1
            is_error(json.loads(answers[0]), -32004, "NOT_ALLOWED")
    finally:
        site.end()
        site.serial.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connected(site: Site, port: int) -> socket.socket:
    def connect() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=20)
        except ConnectionRefusedError:
            return None

    found: socket.socket = until(connect)
    return found


def talk_past(stranger: socket.socket, said: bytes) -> list[bytes]:
    """Send it all, however the agent takes it; the lines that came back before it hung up."""
    stranger.settimeout(20)
    try:
        stranger.sendall(said)
    except (BrokenPipeError, ConnectionResetError):
        pass
    heard = b""
    try:
        while data := stranger.recv(65536):
            heard += data
    except ConnectionResetError:
        pass  # the agent left without reading the rest
    return heard.splitlines()


# ---- 15: sales that would be lost; parameters and texts that are wrong


@every_way
def test_a_restore_that_would_lose_sales_is_refused_with_their_count(
    site: Site, kind: type[Way]
) -> None:
    way = kind(site)
    add_sale(site)
    digest = site.terminal.sha256()
    for op, discard in (("op-loses-1", None), ("op-loses-2", "newer=2,changed=0,gone=0,settled=0")):
        more = {} if discard is None else {"discard": discard}
        way.may("restore 1" if discard is None else f"restore 1 discard {discard}")
        run = way.result("restore", op=op, backup=1, **more)["run"]
        ended = result_of(site.watcher, run)
        assert (ended["state"], ended["outcome"]["code"]) == ("failed", "UNSETTLED"), ended
        assert "1" in ended["outcome"]["message"]
        assert site.terminal.sha256() == digest
    assert way.result("ping") == {}


def add_sale(site: Site) -> None:
    """One more unsettled sale, as the application writes it."""
    connection = sqlite3.connect(site.terminal.pos)
    key, value = connection.execute(
        "SELECT key, value FROM transactions WHERE json_extract(value, '$.status') = 'pending'"
    ).fetchone()
    record = dict(json.loads(value), id=key + "-new")
    connection.execute(
        "INSERT INTO transactions (key, value) VALUES (?, ?)", (key + "-new", json.dumps(record))
    )
    connection.commit()
    connection.close()


WRONG_PARAMS = (
    ("restore", {"op": "op-unknown-1", "backup": 1, "forse": True}),
    ("prune", {"op": "op-unknown-1", "despite-unsettled": True}),
    ("prune", {"op": "op-unknown-1", "despite_unsettled": "true"}),
    ("prune", {"op": "op-unknown-1", "despite_unsettled": 1}),
    ("backup", {"op": "op-unknown-1", "label": "x"}),
    ("rollback", {"op": "op-unknown-1"}),
)
WRONG_COUNTS = ("everything", "newer=-1", "older=1", "newer=", "newer=1.0", ",")


@every_way
def test_parameters_that_are_not_known_or_wrong_are_named(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        for method, params in WRONG_PARAMS:
            is_error(way.call(method, **params), -32602, "PARAMS")


@every_way
def test_a_consent_that_cannot_be_read_is_none(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        for counts in WRONG_COUNTS:
            if way.is_admin:
                said = way.call("restore", op="op-consent-1", backup=1, discard=counts)
            else:
                said = way.call("challenge", command=f"restore 1 discard {counts}")
            is_error(said, -32602, "PARAMS")


NO_REQUESTS = {
    "fifty levels": b'{"jsonrpc":"2.0","id":7,"method":"backup","params":{"op":'
    + b"[" * 50
    + b"]" * 50
    + b"}}",
    "two ops": b'{"jsonrpc":"2.0","id":7,"method":"backup","params":'
    b'{"op":"op-twice-001","op":"op-twice-002"}}',
    "two methods": b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"op":"op-twice-003"},'
    b'"method":"backup"}',
    "a batch": b"[" + request("backup", op="op-in-a-batch") + b"]",
    "no id": b'{"jsonrpc":"2.0","method":"backup","params":{"op":"op-without-id"}}',
    "another version": request("backup", op="op-version-1").replace(b'"2.0"', b'"1.0"'),
    "parameters in a list": b'{"jsonrpc":"2.0","id":7,"method":"backup","params":["op-in-a-list"]}',
    "one member more": request("backup", op="op-member-1").replace(b'{"j', b'{"x":1,"j'),
}


@every_way
def test_what_is_json_and_no_request_is_refused(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        for body in NO_REQUESTS.values():
            is_error(way.say(body), -32600, "REQUEST")
        is_error(way.call("bakcup", op="op-method-1"), -32601, "METHOD")


@every_way
def test_somebody_elses_reply_is_not_answered(site: Site, kind: type[Way]) -> None:
    way = kind(site)
    with nothing_changes(way):
        if isinstance(way, BySocket):
            way.peer.send(b'{"jsonrpc":"2.0","id":7,"result":{"run":3}}\n')
        else:
            assert isinstance(way, BySerial)
            way.line.send(framed(b'{"jsonrpc":"2.0","id":9,"result":{"run":3}}'))
        assert way.call("ping")["result"] == {}
