"""What somebody found who attacked the daemon's lines and knew only its promises."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import (
    Daemon,
    Line,
    SocketPeer,
    framed,
    frames_in,
    result_of,
    terminal_with_line,
    until,
)
from tests.terminals import Gate, Terminal

KEY = bytes(range(32))
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Terminal, Line, Daemon, SocketPeer]]:
    """A terminal with a key and a line, its daemon at rest, and an admin on the socket."""
    terminal, line = terminal_with_line(tmp_path / "t")
    state = terminal.data / "posagent"
    state.mkdir(exist_ok=True)
    (state / "service.key").write_text(KEY.hex() + "\n")
    (state / "service.key").chmod(0o600)
    with Daemon(terminal) as daemon:
        yield terminal, line, daemon, daemon.ready()
    line.close()


def code_for(challenge: dict[str, Any]) -> str:
    """The desk's answer, worked out from the specification alone."""
    nonce = challenge["nonce"].replace("-", "")
    parts = ("posagent service code", challenge["serial"], str(challenge["counter"]), nonce)
    text = "\0".join((*parts, challenge["command"]))
    mac = int.from_bytes(hmac.new(KEY, text.encode(), hashlib.sha256).digest()[:5], "big")
    return "".join(ALPHABET[mac >> shift & 31] for shift in range(35, -1, -5))


def give_right(line: Line, command: str) -> None:
    """A code for one command, brought by the serial line."""
    challenge = line.call("challenge", command=command)["result"]
    assert line.call("code", code=code_for(challenge))["result"]["command"] == command


def op(number: int) -> str:
    return f"operation-{number}"


def ended(peer: SocketPeer, method: str, number: int, **params: Any) -> dict[str, Any]:
    """A call that starts a run, and the run's end."""
    return result_of(peer, peer.result(method, op=op(number), **params)["run"])


def test_a_right_is_for_the_line_that_brought_it(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    terminal.configure(tcp_port=None, serial_access="tech")
    (terminal.data / "posagent").mkdir(exist_ok=True)
    key = terminal.data / "posagent/service.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    with Daemon(terminal) as daemon:
        admin = daemon.ready()
        admin.call("console")
        # The connection is a console now, with no more rights than the serial line.
        give_right(line, "commit")
        request = {"jsonrpc": "2.0", "id": 5, "method": "commit", "params": {"op": op(1)}}
        body = json.dumps(request).encode()
        admin.send(framed(body))
        seen = b""
        while not frames_in(seen):
            seen += admin.socket.recv(4096)
        assert frames_in(seen)[0]["error"]["data"]["kind"] == "NOT_ALLOWED"
        assert line.call("commit", op=op(2))["result"]["run"] > 0
    line.close()


def test_an_option_in_the_place_of_a_backup_is_no_backup(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    _, line, _, _ = served
    for wanted in ("--config=/etc/shadow", "--root=/", "-h", "--help"):
        said = line.call("verify", backup=wanted)
        assert said["error"]["data"]["kind"] == "NO_SUCH", said


def test_cancel_is_heard_from_the_first_moment_of_a_run(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    terminal, _, daemon, peer = served
    asking = daemon.peer()
    asking.send(b'{"jsonrpc":"2.0","id":1,"method":"plan"}\n')
    run = peer.result("rollback", op=op(1), to=1)["run"]
    assert peer.result("cancel", op=op(2), run=run)["state"] == "stopping"
    assert result_of(peer, run)["state"] == "interrupted"
    assert terminal.read().schema_version == 3
    said = json.loads(asking.line())
    assert said.get("result") or said["error"]["data"]["kind"] == "BUSY", said


def test_cancel_does_not_take_the_op_of_another_call(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    _, _, _, peer = served
    run = peer.result("backup", op=op(1))["run"]
    assert peer.call("cancel", op=op(1), run=run)["error"]["data"]["kind"] == "OP_REUSED"
    result_of(peer, run)


def test_without_a_code_no_backup_of_another_schema_is_deleted(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    terminal.configure(backup_count=1)
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        run = line.call("backup", op=op(1))["result"]["run"]
        assert result_of(peer, run)["state"] == "done"
        kept = sorted(path.name for path in terminal.backups.iterdir())
        assert kept == ["000001-v0.posbak", "000002-v3.posbak"]
    line.close()


def test_status_knows_the_newest_backup_as_soon_as_its_run_has_ended(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    terminal, _, _, peer = served
    assert peer.result("status")["backup"] == "000001-v0.posbak"
    ended(peer, "backup", 1)
    until(lambda: peer.result("status")["backup"] == "000002-v3.posbak")
    for path in terminal.backups.iterdir():
        path.unlink()
    until(lambda: peer.result("status")["backup"] is None)


def test_status_sees_new_migrations_and_a_ruined_file(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    folder = terminal.own_migrations()
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert peer.result("status")["target"] == 3
        (folder / "0004_note.py").write_text(
            "from agent.core.migration import set_field\n"
            "VERSION, NAME = 4, 'note'\nSTEPS = [set_field('sync', 'noted', True)]\n"
        )
        until(lambda: peer.result("status")["target"] == 4)
        terminal.pos.write_bytes(b"no database at all" * 100)
        until(lambda: peer.result("status")["app_may_start"] is False)
        assert peer.result("status")["schema"] is None
    line.close()


def test_each_reading_job_has_a_number_of_its_own_and_keeps_its_answer(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    terminal, _, _, peer = served
    runs = []
    for _ in range(10):
        runs.append(peer.result("verify", backup=1)["run"])
        assert result_of(peer, runs[-1])["state"] == "done"
    assert len(set(runs)) == 10
    good = peer.result("validate")["run"]
    assert result_of(peer, good)["outcome"]["verdict"] == "OK"
    db = sqlite3.connect(terminal.pos)
    db.execute("INSERT INTO transactions VALUES ('half', '{\"status\":')")
    db.commit()
    db.close()
    bad = result_of(peer, peer.result("validate")["run"])
    assert (bad["state"], bad["outcome"]["verdict"]) == ("failed", "REFUSED")
    assert result_of(peer, good)["outcome"]["verdict"] == "OK"


def test_a_plan_that_was_held_back_can_be_started_from_the_console(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        assert ended(peer, "rollback", 1, to=1)["state"] == "done"
        db = sqlite3.connect(terminal.data / "posagent/agent.db")
        db.execute("INSERT OR REPLACE INTO given_up SELECT plan, 'three deaths' FROM attempts")
        db.commit()
        db.close()
        line.type("")
        asked = line.type("migrate", until="to start: ")
        number = asked.rpartition("Type ")[2].split()[0]
        line.type(number)
        until(lambda: peer.result("status")["schema"] == 3)
    line.close()


def test_a_line_names_the_backup_that_it_means(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    _, line, _, peer = served
    for wanted in ("latest", 99, "../../etc/passwd"):
        assert peer.call("restore", op=op(9), backup=wanted)["error"]["data"]["kind"] == "NO_SUCH"
        said = line.call("challenge", command=f"restore {wanted}")
        assert said["error"]["data"]["kind"] == "NO_SUCH", said


def test_a_backup_read_over_a_line_has_the_digest_of_the_whole(
    served: tuple[Terminal, Line, Daemon, SocketPeer],
) -> None:
    terminal, _, _, peer = served
    data, size = b"", 1
    while len(data) < size:
        piece = peer.result("read", name="backups/000001-v0.posbak", off=len(data))
        data, size = data + b64decode(piece["data"]), piece["len"]
    assert data == (terminal.backups / "000001-v0.posbak").read_bytes()
    assert hashlib.sha256(data).hexdigest() == piece["sha256"]


def test_what_a_killed_daemon_had_done_is_not_called_undone(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        run = peer.result("commit", op=op(1))["run"]
        until(lambda: not os.path.exists(f"{terminal.pos}.prev"))
        daemon.process.kill()
        daemon.process.wait()
    with Daemon(terminal) as daemon:
        peer = daemon.ready()
        found = peer.result("result", op=op(1))
        assert found["run"] == run
        assert found["state"] == "done" or "nothing was changed" not in str(found["outcome"])
    line.close()


def test_texts_from_outside_never_make_status_too_long_for_a_line(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    db = sqlite3.connect(terminal.pos)
    db.execute("INSERT INTO transactions VALUES (?, '{')", ("\U0001f4a3" * 80,))
    db.commit()
    db.close()
    with Daemon(terminal) as daemon:
        daemon.ready()
        assert line.call("status")["result"]["last_error"]["code"] == "VALIDATION_ERROR"
        assert "result" in line.call("subscribe", events=["progress", "state", "alarm"])
    line.close()


def test_the_marks_of_a_slow_step_reach_status_json(tmp_path: Path) -> None:
    terminal, line = terminal_with_line(tmp_path / "t")
    gate = Gate(terminal)
    with Daemon(terminal) as daemon:
        gate.wait(daemon.process)
        path = terminal.root / "run/posagent/status.json"
        until(lambda: json.loads(path.read_text())["state"] == "migrating")
        gate.open()
        peer = daemon.ready()
        assert peer.result("status")["state"] == "idle"
    line.close()
