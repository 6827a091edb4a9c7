"""The serial line with noise on it: every value right, every call that changes something done once.

The daemon is one process, the client and the cable between the two ptys another. The ledger and
the history are read with sqlite3 from outside.
"""

from __future__ import annotations

import json
import select
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.daemons import Daemon, SocketPeer, framed, frames_in, terminal_with_line
from tests.line_client import LineClient, NoAnswer
from tests.noise import Cable, Noise
from tests.terminals import Terminal

TIMEOUT_S = 0.06  # a frame whose ends were lost costs this much; the rate of a pty costs nothing
QUIET_S = 0.3  # an agent answers at once, so after this long nothing goes round any more
ECHO_BYTES_MAX = 4000  # a banner, three errors and their echoes; without an end it is megabytes
STATUSES, RUNS = 300, 60
# What moves by itself between two looks: age of the count, and what else is written to this disk.
MOVING = ("counted_s", "free_kib")


def still(status: dict[str, Any]) -> dict[str, Any]:
    """The part of a status that stays until somebody changes something."""
    return {name: value for name, value in status.items() if name not in MOVING}


def asked(client: LineClient, method: str, **params: Any) -> dict[str, Any]:
    """The answer to a call that only reads; after eight sends it is a new call."""
    while True:
        try:
            return client.result(method, **params)
        except NoAnswer:
            continue


def run_of(client: LineClient, method: str, op: str, **params: Any) -> int:
    """The run that `op` began. After eight sends `result` tells whether it did; then again."""
    while True:
        try:
            started = client.result(method, op=op, **params)
            assert "noop" not in started, "it was done before it was asked for"
            return int(started["run"])
        except NoAnswer:
            pass
        try:
            said = client.call("result", op=op)
            if "result" in said:
                return int(said["result"]["run"])
            assert said["error"]["data"]["kind"] == "NO_SUCH", said
        except NoAnswer:
            pass


def ended(client: LineClient, run: int) -> dict[str, Any]:
    """The end of a run, asked for over the line."""
    while True:
        found = asked(client, "result", run=run)
        if found["state"] != "running":
            return found


def rows(terminal: Terminal, sql: str) -> list[tuple[Any, ...]]:
    """Rows of agent.db, read by nobody of ours."""
    path = f"file:{terminal.data}/posagent/agent.db?mode=ro"
    connection = sqlite3.connect(path, uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def ways() -> Iterator[tuple[str, int]]:
    """Back to 2 and up to 3 again, thirty times: each run changes the data and is noted."""
    for number in range(RUNS):
        yield ("migrate", 3) if number % 2 else ("rollback", 2)


@pytest.fixture
def noisy(tmp_path: Path) -> Iterator[tuple[Terminal, SocketPeer, Cable]]:
    """A terminal at rest whose line damages two bytes in a thousand, both ways."""
    terminal, line = terminal_with_line(tmp_path, records=40, unsettled=5)
    terminal.configure(serial_access="open")
    with Daemon(terminal) as daemon, Cable(line.master, share=0.002, seed=1) as cable:
        yield terminal, daemon.ready(), cable
    line.close()


def test_with_two_bytes_in_a_thousand_damaged_300_answers_are_right_and_60_ops_are_60_runs(
    noisy: tuple[Terminal, SocketPeer, Cable],
) -> None:
    terminal, socket, cable = noisy
    client = LineClient(cable.name, TIMEOUT_S)
    first = rows(terminal, "SELECT max(seq) FROM history")[0][0]
    calls: list[tuple[int, str, str, str]] = []
    right = 0
    for number, (method, to) in enumerate(ways()):
        op = f"noise-{number:04d}"
        run = run_of(client, method, op, to=to)
        end = ended(client, run)
        assert (end["op"], end["state"], end["outcome"]["to_version"]) == (op, "done", to)
        calls.append((run, op, method, "done"))
        # Each run moves `seq` and the schema, so an answer from before it is not like one behind.
        for _ in range(STATUSES // RUNS):
            before = still(socket.result("status"))
            found = still(asked(client, "status"))
            # It may be this very look that counted anew what the run has changed.
            right += found in (before, still(socket.result("status")))
    assert right == STATUSES
    ledger = "SELECT run, op, method, state FROM calls WHERE op IS NOT NULL ORDER BY run"
    assert rows(terminal, ledger) == calls
    assert len({run for run, *_ in calls}) == RUNS
    assert rows(
        terminal,
        "SELECT method, count(*) FROM audit WHERE link = 'serial' AND outcome = 'accepted' "
        "GROUP BY method ORDER BY method",
    ) == [("migrate", RUNS // 2), ("rollback", RUNS // 2)]
    done = rows(terminal, f"SELECT kind, verdict FROM history WHERE seq > {first} ORDER BY seq")
    assert done == [(method, "OK") for method, _ in ways()]
    # The line was as bad as the name of this test says, and the client was heard all the same.
    assert cable.spoilt > STATUSES
    assert client.sends > STATUSES + 2 * RUNS
    client.close()


def test_on_a_line_that_damages_most_frames_nothing_is_done_twice_and_nothing_else_is_done(
    noisy: tuple[Terminal, SocketPeer, Cable],
) -> None:
    terminal, socket, cable = noisy
    for noise in cable.noises:
        noise.share = 0.01
    client = LineClient(cable.name, TIMEOUT_S)
    asked_for, got = [], 0
    for number in range(12):
        op = f"storm-{number:04d}"
        asked_for.append(op)
        try:
            got += "result" in client.call("prune", op=op)
        except NoAnswer:
            pass  # it may have been done or not, and no more than once
    for noise in cable.noises:
        noise.share = 0.0
    ended(client, 1)
    known = [op for (op,) in rows(terminal, "SELECT op FROM calls WHERE op IS NOT NULL")]
    assert set(known) <= set(asked_for)
    assert len(known) >= got
    accepted = "SELECT count(*) FROM audit WHERE link = 'serial' AND outcome = 'accepted'"
    assert rows(terminal, accepted) == [(len(known),)]
    assert socket.result("status")["schema"] == 3
    client.close()


def test_whatever_noise_alone_types_starts_nothing_and_the_next_frame_is_heard(
    noisy: tuple[Terminal, SocketPeer, Cable],
) -> None:
    terminal, _, cable = noisy
    before = terminal.sha256()
    hiss = Noise(0.15, "hiss")  # some of the lines come through whole, so the numbers are asked for
    for noise in cable.noises:
        noise.share = 0.0
    client = LineClient(cable.name, TIMEOUT_S)
    words = b"migrate\rrestore 1\rprune\rbackup\rcode AAAA-AAAA\r4471\r"
    for _ in range(60):
        client.raw(hiss.spoil(words))
        assert asked(client, "status")["run"] is None
    assert rows(terminal, "SELECT count(*) FROM calls WHERE op IS NOT NULL") == [(0,)]
    assert terminal.sha256() == before
    client.close()


@pytest.mark.parametrize("first", [b"\r", b"\rhelp\r", b"\rrestore 1 discard newer=2\r"])
def test_a_line_that_hears_itself_falls_silent_starts_nothing_and_still_hears_frames(
    tmp_path: Path, first: bytes
) -> None:
    terminal, line = terminal_with_line(tmp_path, records=40, unsettled=5)
    with Daemon(terminal) as daemon:
        daemon.ready()
        line.send(first)
        came = 0
        while echo := line.read(QUIET_S):
            came += len(echo)
            assert came < ECHO_BYTES_MAX, line.seen
            line.send(echo)
        assert b"unknown command" in line.seen
        reply = line.call("ping")
        assert reply["result"] == {}
        line.send(framed(json.dumps(reply).encode()))  # its own reply is no request
        assert line.read(QUIET_S) == b""
    line.close()
    assert rows(terminal, "SELECT count(*) FROM calls WHERE op IS NOT NULL") == [(0,)]


def test_two_terminals_wired_to_each_other_fall_silent(tmp_path: Path) -> None:
    one, its_line = terminal_with_line(tmp_path / "one", records=40, unsettled=5)
    two, other_line = terminal_with_line(tmp_path / "two", records=40, unsettled=5)
    with Daemon(one) as first, Daemon(two) as second:
        first.ready()
        second.ready()
        its_line.send(b"\r")
        came = 0
        lines = {its_line.master: (its_line, other_line), other_line.master: (other_line, its_line)}
        while ready := select.select(list(lines), [], [], QUIET_S)[0]:
            for fd in ready:
                source, target = lines[fd]
                said = source.read()
                came += len(said)
                target.send(said)
            assert came < ECHO_BYTES_MAX, (its_line.seen, other_line.seen)
        assert its_line.call("ping")["result"] == {}
        assert other_line.call("ping")["result"] == {}
    its_line.close()
    other_line.close()


def test_at_9600_baud_a_status_takes_its_time_and_is_right(
    tmp_path: Path,
) -> None:
    terminal, line = terminal_with_line(tmp_path, records=40, unsettled=5)
    terminal.configure(serial_baud=9600)
    with Daemon(terminal) as daemon, Cable(line.master, baud=9600) as cable:
        socket = daemon.ready()
        client = LineClient(cable.name, timeout_s=3.0)
        assert still(client.result("status")) == still(socket.result("status"))
        assert client.sends == 1
        client.close()
    line.close()


@given(st.binary(max_size=300), st.lists(st.integers(1, 9), max_size=40), st.floats(0, 1))
def test_noise_does_not_depend_on_how_the_bytes_are_cut(
    data: bytes, cuts: list[int], share: float
) -> None:
    whole, pieces = Noise(share, 7), Noise(share, 7)
    expected, found, rest = whole.spoil(data), b"", data
    for size in cuts:
        found += pieces.spoil(rest[:size])
        rest = rest[size:]
    assert found + pieces.spoil(rest) == expected
    assert whole.spoilt <= len(data)
    assert Noise(0.0, 7).spoil(data) == data


@given(st.binary(min_size=1, max_size=200), st.integers())
def test_a_line_with_damage_in_every_byte_carries_no_frame(body: bytes, seed: int) -> None:
    assert frames_in(Noise(1.0, seed).spoil(framed(b'{"id":1}' + body.hex().encode()))) == []
