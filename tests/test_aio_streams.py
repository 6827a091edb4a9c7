"""Streams, `gather` and `Lock`: what MicroPython's own programs do not show.

The lines are real: Unix and TCP sockets, terminals, pyserial. Order is made by turns and events.
"""

from __future__ import annotations

import errno
import os
import pty
import resource
import select
import socket
import struct
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import aio
from agent.aio import stream as stream_module
from agent.aio.stream import ACCEPT_PAUSE_MS, LINE_BYTES_MAX, OUT_BYTES_MAX
from agent.aio.task import loop

ROOT = Path(__file__).parent.parent


class HandClock:
    """Time that passes only when the loop has nothing to do before its next deadline."""

    def __init__(self) -> None:
        self.now = 1_000
        self.polls = 0

    def now_ms(self) -> int:
        return self.now

    def poll(self, poller: select.poll, wait_ms: int) -> list[tuple[int, int]]:
        self.polls += 1
        found = poller.poll(0 if wait_ms >= 0 else 10_000)  # waiting for ever is a failed test
        if found or wait_ms == 0:
            return found
        assert wait_ms > 0, "nothing is going to happen"
        self.now += wait_ms
        return poller.poll(0)


@pytest.fixture(autouse=True)
def clock() -> Iterator[HandClock]:
    """Also holds that a test leaves no descriptor open and nothing waited on."""
    hand = HandClock()
    before = open_fds()
    aio.new_event_loop()
    aio.use_clock(hand.now_ms, hand.poll)
    yield hand
    assert aio.shutdown(1_000) == 0
    assert loop.io.waits == {}
    aio.use_clock()
    aio.get_event_loop().set_exception_handler(None)
    assert open_fds() == before


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def streams() -> tuple[aio.Stream, aio.Stream]:
    """Both ends of one line."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    return aio.Stream(ends[0]), aio.Stream(ends[1])


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await aio.sleep_ms(0)


async def cancelled(task: aio.Task) -> None:
    task.cancel()
    with pytest.raises(aio.CancelledError):
        await task


# --- One reader, one writer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        lambda line: line.read(),
        lambda line: line.read(5),
        lambda line: line.readinto(bytearray(5)),
        lambda line: line.readexactly(5),
        lambda line: line.readline(),
    ],
    ids=["read to the end", "read", "readinto", "readexactly", "readline"],
)
def test_second_reader_of_a_stream_is_refused_at_once_and_the_first_goes_on(read: Any) -> None:
    async def main() -> bytes:
        ours, theirs = streams()
        first = aio.create_task(ours.readline())
        await turns()
        with pytest.raises(RuntimeError, match="a reader already"):
            await read(ours)
        assert not first.done()
        await theirs.awrite(b"for the first\n")
        line: bytes = await first
        await ours.wait_closed()
        await theirs.wait_closed()
        return line

    assert aio.run(main()) == b"for the first\n"


def test_second_reader_is_refused_also_when_the_first_is_woken_and_not_yet_on_its_way() -> None:
    async def main() -> None:
        ours, theirs = streams()
        first = aio.create_task(ours.readline())
        await turns()
        theirs.write(b"woken\n")
        await turns(1)  # poll has woken it, and our turn comes before its own
        assert loop.io.waits == {}
        assert not first.done()
        with pytest.raises(RuntimeError, match="a reader already"):
            await ours.readline()
        assert await first == b"woken\n"
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


def test_second_writer_that_waits_is_refused_and_what_it_wrote_is_sent_by_the_first() -> None:
    async def main() -> None:
        ours, theirs = streams()
        ours.write(b"a" * 50_000)
        first = aio.create_task(ours.drain())
        await turns()
        assert not first.done()
        ours.write(b"b" * 10)
        with pytest.raises(RuntimeError, match="a writer already"):
            await ours.drain()
        assert await theirs.readexactly(50_010) == b"a" * 50_000 + b"b" * 10
        await first
        assert not ours.out_buf
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


def test_cancelled_reader_leaves_the_line_to_the_next_one() -> None:
    async def main() -> bytes:
        ours, theirs = streams()
        task = aio.create_task(ours.readexactly(10))
        await turns()
        await cancelled(task)
        assert loop.io.waits == {}
        await theirs.awrite(b"ten bytes!")
        got = await ours.read(100)
        await ours.wait_closed()
        await theirs.wait_closed()
        return got

    assert aio.run(main()) == b"ten bytes!"


def test_cancelled_drain_sends_no_byte_twice() -> None:
    text = b"".join(b"%06d" % number for number in range(10_000))

    async def main() -> None:
        ours, theirs = streams()
        ours.write(text)
        got = b""
        while len(got) < 30_000:
            task = aio.create_task(ours.drain())
            await turns()
            got += await theirs.read(2_000)
            await turns(1)
            if not task.done():
                await cancelled(task)
        task = aio.create_task(ours.drain())
        got += await theirs.readexactly(len(text) - len(got))
        await task
        assert got == text
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


# --- What waits in memory is bounded --------------------------------------------------------------


def test_peer_that_does_not_read_gets_no_more_than_the_bound_and_one_write() -> None:
    async def main() -> None:
        ours, theirs = streams()
        sent = 0
        while len(ours.out_buf) <= OUT_BYTES_MAX:
            ours.write(b"x" * 1_000)
            sent += 1_000
        with pytest.raises(OSError, match="does not read") as caught:
            ours.write(b"x")
        assert caught.value.errno == errno.ENOBUFS
        assert OUT_BYTES_MAX < len(ours.out_buf) <= OUT_BYTES_MAX + 1_000
        # Nothing of the refused write was taken, and nothing of the others is lost.
        task = aio.create_task(ours.drain())
        assert await theirs.readexactly(sent) == b"x" * sent
        await task
        ours.write(b"y")
        assert await theirs.read(10) == b"y"
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


def test_one_write_may_be_larger_than_the_bound() -> None:
    async def main() -> None:
        ours, theirs = streams()
        ours.write(b"z" * (4 * OUT_BYTES_MAX))
        task = aio.create_task(ours.drain())
        assert len(await theirs.readexactly(4 * OUT_BYTES_MAX)) == 4 * OUT_BYTES_MAX
        await task
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


def test_line_without_an_end_is_an_error_and_not_a_full_memory() -> None:
    async def main() -> None:
        ours, theirs = streams()

        async def floods() -> None:
            while True:
                await theirs.awrite(b"x" * 10_000)

        task = aio.create_task(floods())
        with pytest.raises(ValueError, match=str(LINE_BYTES_MAX)):
            await ours.readline()
        await cancelled(task)
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


# --- Reading --------------------------------------------------------------------------------------


WAYS = ("readline", "read", "readexactly", "readinto")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(min_size=1, max_size=700), max_size=8),
    st.lists(st.tuples(st.sampled_from(WAYS), st.integers(0, 900)), max_size=12),
)
def test_bytes_arrive_whole_and_in_order_however_they_are_cut_and_read(
    pieces: list[bytes], asks: list[tuple[str, int]]
) -> None:
    async def sends(line: aio.Stream) -> None:
        for piece in pieces:
            await line.awrite(piece)
            await turns(1)
        await line.wait_closed()

    async def one(line: aio.Stream, way: str, size: int) -> bytes:
        if way == "readline":
            got = await line.readline()
            assert got.count(b"\n") == got.endswith(b"\n")
            return got
        if way == "read":
            got = await line.read(size)
            assert len(got) <= size
            return got
        if way == "readinto":
            buffer = bytearray(size)
            return bytes(buffer[: await line.readinto(buffer)])
        return await line.readexactly(size)

    async def main() -> bytes:
        ours, theirs = streams()
        task = aio.create_task(sends(theirs))
        got = b""
        for way, size in asks:
            if way != "readexactly" or len(got) + size <= sum(map(len, pieces)):
                got += await one(ours, way, size)
        got += await ours.read()
        await task
        assert [await ours.read(), await ours.read(1), await ours.readline()] == [b"", b"", b""]
        await ours.wait_closed()
        return got

    assert aio.run(main()) == b"".join(pieces)


def test_asking_for_no_bytes_is_answered_without_waiting_for_some() -> None:
    async def main() -> None:
        ours, theirs = streams()
        assert await ours.read(0) == b""
        assert await ours.readexactly(0) == b""
        assert await ours.readinto(bytearray()) == 0
        await ours.wait_closed()
        await theirs.wait_closed()

    aio.run(main())


def test_readexactly_at_the_end_is_an_end_of_file_error() -> None:
    async def main() -> None:
        ours, theirs = streams()
        await theirs.awrite(b"four")
        await theirs.wait_closed()
        with pytest.raises(EOFError):
            await ours.readexactly(5)
        await ours.wait_closed()

    aio.run(main())


def test_close_wakes_who_waits_with_an_error_and_closing_again_does_nothing() -> None:
    async def main() -> list[int | None]:
        ours, theirs = streams()
        ours.write(b"a" * 50_000)
        tasks = [aio.create_task(ours.read(1)), aio.create_task(ours.drain())]
        await turns()
        ours.close()
        await turns()
        assert not tasks[0].done()
        await ours.wait_closed()
        await ours.wait_closed()
        numbers = []
        for task in [*tasks, aio.create_task(ours.read(1))]:
            with pytest.raises(OSError, match="descriptor") as caught:
                await task
            numbers.append(caught.value.errno)
        await theirs.wait_closed()
        return numbers

    assert aio.run(main()) == [errno.EBADF] * 3


# --- Terminal lines -------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a raw line on which a read answers b"" for "nothing yet"."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    attributes = termios.tcgetattr(slave)
    attributes[6][termios.VMIN] = attributes[6][termios.VTIME] = 0
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    yield master, slave
    for fd in (master, slave):
        try:
            os.close(fd)
        except OSError:
            pass


def stolen_by(other: Any, line: Any) -> Any:
    """A terminal whose bytes another process took between poll and read, once."""

    class Stolen:
        fileno, write, readinto, close = line.fileno, line.write, line.readinto, line.close

        def __init__(self) -> None:
            self.left = 1

        def read(self, n: int) -> Any:
            if self.left:
                self.left = 0
                other()
            return line.read(n)

    return Stolen()


def test_empty_read_of_a_terminal_is_not_its_end_and_a_hang_up_is(
    terminal: tuple[int, int],
) -> None:
    master, slave = terminal
    os.set_blocking(slave, False)
    port = os.fdopen(os.dup(slave), "r+b", buffering=0)

    async def main() -> list[bytes]:
        line = aio.Stream(stolen_by(lambda: os.read(slave, 100), port))
        os.write(master, b"for another process\n")
        task = aio.create_task(line.readline())
        await turns()
        assert not task.done()
        os.write(master, b"status\nleft over")
        got = [await task]
        os.close(master)
        # Bytes before the hang-up may be gone with it; that it ends is what counts.
        got.append((await line.read())[:0])
        assert await line.read() == b""
        await line.wait_closed()
        return got

    assert aio.run(main()) == [b"status\n", b""]


def test_pyserial_port_as_a_stream(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    port = serial.Serial(os.ttyname(slave), 115_200, timeout=0, write_timeout=0)

    async def main() -> None:
        line = aio.Stream(port)
        task = aio.create_task(line.readline())
        await turns()
        os.write(master, b"stat")
        await turns()
        os.write(master, b"us\nmore")
        assert await task == b"status\n"
        assert await line.read(100) == b"more"
        await line.awrite(b"answer\n")
        assert os.read(master, 100) == b"answer\n"
        await line.wait_closed()
        assert not port.is_open

    aio.run(main())


# --- Connecting -----------------------------------------------------------------------------------


def test_unix_server_takes_a_path_and_no_port(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def serves(reader: aio.Stream, writer: aio.Stream) -> None:
        assert reader is writer
        writer.write(b"you said " + await reader.readline())
        await writer.drain()
        await writer.wait_closed()

    async def main() -> bytes:
        async with await aio.start_server(serves, path, None):
            reader, writer = await aio.open_connection(path, None)
            await writer.awrite(b"hello\n")
            answer = await reader.read()
            await writer.wait_closed()
            return answer

    assert aio.run(main()) == b"you said hello\n"


def test_port_where_nobody_listens_is_an_error_of_open_connection(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, but not listening
        with pytest.raises(ConnectionRefusedError):
            aio.run(aio.open_connection("127.0.0.1", port))
    with pytest.raises(FileNotFoundError):
        aio.run(aio.open_connection(str(tmp_path / "none"), None))


def test_cancelled_connection_attempt_leaves_no_socket() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        ahead = [socket.socket() for _ in range(3)]
        for sock in ahead:  # until the kernel answers no more
            sock.setblocking(False)
            sock.connect_ex(address)

        async def main() -> None:
            task = aio.create_task(aio.open_connection(*address))
            await turns()
            assert not task.done()
            await cancelled(task)

        aio.run(main())
        for sock in ahead:
            sock.close()


def test_unix_server_that_is_behind_is_an_error_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ahead:
        listener.bind(path)
        listener.listen(0)
        ahead.connect(path)
        with pytest.raises(BlockingIOError):
            aio.run(aio.open_connection(path, None))


def test_tls_is_refused_and_not_left_out_silently() -> None:
    with pytest.raises(NotImplementedError, match="TLS"):
        aio.run(aio.open_connection("127.0.0.1", 1, True))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="TLS"):
        aio.run(aio.start_server(never, "127.0.0.1", 1, ssl=object()))  # type: ignore[arg-type]


async def never(reader: aio.Stream, writer: aio.Stream) -> None:
    raise AssertionError("nobody connects here")


def test_server_cancelled_while_it_starts_leaves_no_socket(tmp_path: Path) -> None:
    async def main() -> None:
        for count in range(4):
            path = str(tmp_path / f"socket{count}")
            task = aio.create_task(aio.start_server(never, path, None))
            await turns(count)
            if task.done():
                server = await task
                server.close()
                await server.wait_closed()
            else:
                await cancelled(task)

    aio.run(main())


def test_shutdown_ends_servers_and_runs_the_finally_of_each_connection(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    steps: list[str] = []

    async def serves(reader: aio.Stream, writer: aio.Stream) -> None:
        try:
            await reader.read()
        finally:
            await writer.awrite(b"closing")
            await writer.wait_closed()
            steps.append("closed")

    async def main() -> socket.socket:
        await aio.start_server(serves, path, None)
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
        await turns(4)
        return peer

    peer = aio.run(main())
    assert aio.shutdown() == 0
    assert [steps, peer.recv(100), peer.recv(100)] == [["closed"], b"closing", b""]
    peer.close()


def test_handler_that_is_none_ends_the_server_and_closes_both_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def main() -> None:
        server = await aio.start_server(None, path, None)  # type: ignore[arg-type]
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            with pytest.raises(TypeError):
                await server.wait_closed()
            assert peer.recv(1) == b""

    aio.run(main())


def test_server_without_descriptors_pauses_instead_of_spinning(
    tmp_path: Path, clock: HandClock
) -> None:
    path = str(tmp_path / "socket")
    served: list[int] = []

    async def serves(reader: aio.Stream, writer: aio.Stream) -> None:
        served.append(clock.now)
        await writer.wait_closed()

    async def main() -> int:
        server = await aio.start_server(serves, path, None)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            polls = clock.polls
            resource.setrlimit(resource.RLIMIT_NOFILE, (peer.fileno(), hard))
            try:
                await aio.sleep_ms(10 * ACCEPT_PAUSE_MS)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            polls = clock.polls - polls
            assert served == []
            await aio.sleep_ms(2 * ACCEPT_PAUSE_MS)
            assert len(served) == 1
            server.close()
            await server.wait_closed()
        return polls

    assert aio.run(main()) <= 30


def test_peer_that_resets_ends_its_own_connection_only(tmp_path: Path) -> None:
    errors: list[type] = []

    async def serves(reader: aio.Stream, writer: aio.Stream) -> None:
        try:
            while True:
                line = await reader.readline()
                if not line:
                    break
                await writer.awrite(line)
        except OSError as error:
            errors.append(type(error))
        finally:
            await writer.wait_closed()

    async def main() -> bytes:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        server = await aio.start_server(serves, "127.0.0.1", port)
        reader, writer = await aio.open_connection("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as rude:
            await turns()
            linger = struct.pack("ii", 1, 0)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await turns(5)
        await writer.awrite(b"still here\n")
        answer = await reader.readline()
        await writer.wait_closed()
        await turns(5)
        server.close()
        await server.wait_closed()
        return answer

    assert aio.run(main()) == b"still here\n"
    assert errors == [ConnectionResetError]


# --- gather, Lock and the end ---------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-2, 30), st.booleans()), max_size=12), st.booleans())
def test_gather_answers_in_the_order_of_its_arguments(
    parts: list[tuple[int, bool]], keep_errors: bool
) -> None:
    async def part(number: int, ms: int, fails: bool) -> int:
        await aio.sleep_ms(ms)
        if fails:
            raise LookupError(number)
        return number

    async def main() -> None:
        tasks = [aio.create_task(part(number, *rest)) for number, rest in enumerate(parts)]
        failed = sorted((max(0, ms), n) for n, (ms, fails) in enumerate(parts) if fails)
        if failed and not keep_errors:
            with pytest.raises(LookupError) as caught:
                await aio.gather(*tasks)
            assert caught.value.args[0] == failed[0][1]
        else:
            got = await aio.gather(*tasks, return_exceptions=keep_errors)
            numbers = [x.args[0] if isinstance(x, LookupError) else x for x in got]
            assert numbers == [*range(len(parts))]
        await aio.gather(*tasks, return_exceptions=True)  # they may be gathered again
        assert all(task.done() and task.gatherer is None for task in tasks)

    aio.run(main())


def test_task_that_could_not_be_gathered_leaves_the_others_free() -> None:
    async def part(number: int) -> int:
        await aio.sleep_ms(number)
        return number

    async def main() -> int:
        free, awaited = aio.create_task(part(5)), aio.create_task(part(9))
        waiter = aio.create_task(aio.wait_for_ms(awaited, 1_000))
        await turns()
        with pytest.raises(RuntimeError, match="can't gather"):
            await aio.gather(free, awaited)
        with pytest.raises(RuntimeError, match="can't gather"):
            await aio.gather(free, free)
        with pytest.raises(RuntimeError, match="can't gather"):
            await aio.gather(aio.current_task())
        first: int = await free
        second: int = await waiter
        return first + second

    assert aio.run(main()) == 14


def test_error_that_gather_raised_is_not_reported_as_one_that_nobody_awaited() -> None:
    reported: list[Any] = []
    aio.get_event_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def fails() -> None:
        raise ValueError

    async def main() -> None:
        for early in (False, True):
            task = aio.create_task(fails())
            await turns(early)
            with pytest.raises(ValueError):  # noqa: PT011
                await aio.gather(task)
            await turns()

    aio.run(main())
    assert reported == []


@pytest.mark.parametrize("how", ["gather", "wait_for"])
def test_shutdown_cancels_a_task_once_also_through_who_waits_for_it(how: str) -> None:
    steps: list[str] = []

    async def holds() -> None:
        try:
            await aio.Event().wait()
        finally:
            await aio.sleep_ms(20)  # a second cancel would end it here
            steps.append("finally")

    async def waits(task: aio.Task) -> None:
        if how == "gather":
            await aio.gather(task)
        else:
            await aio.wait_for_ms(task, 60_000)

    async def main() -> None:
        # Older and younger than who waits for it: both orders of being asked to end.
        tasks = [aio.create_task(holds()) for _ in range(2)]
        for task in tasks:
            aio.create_task(waits(task))
        aio.create_task(waits(aio.create_task(holds())))
        await turns()

    aio.run(main())
    assert aio.shutdown() == 0
    assert steps == ["finally"] * 3


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.none() | st.integers(0, 12)),
        min_size=1,
        max_size=8,
    )
)
def test_lock_has_one_holder_and_is_free_in_the_end_whoever_gives_up(
    plans: list[tuple[int, int, int | None]],
) -> None:
    holders: list[int] = []

    async def takes(lock: aio.Lock, number: int, wait: int, hold: int) -> None:
        await turns(wait)
        async with lock:
            assert holders == []
            holders.append(number)
            try:
                await turns(hold)
            finally:
                holders.remove(number)

    async def main() -> None:
        lock = aio.Lock()
        tasks = [
            aio.create_task(takes(lock, number, wait, hold))
            for number, (wait, hold, _) in enumerate(plans)
        ]
        for turn in range(13):
            for task, (_, _, gives_up) in zip(tasks, plans):
                if gives_up == turn:
                    task.cancel()
            await turns(1)
        await aio.gather(*tasks, return_exceptions=True)
        assert not lock.locked()
        async with lock:
            pass

    aio.run(main())


# --- What is loaded -------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules);"
        f"{statement}; print(*set(sys.modules) - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program, str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(ran.stdout.split())


HEAVY = "asyncio selectors socket ssl enum typing re signal collections functools stringprep"


def test_streams_are_loaded_when_they_are_first_asked_for_and_bring_nothing_heavy() -> None:
    without = loaded_by("from agent import aio; aio.Lock, aio.gather, aio.wait_readable")
    assert not {"_socket", "agent.aio.stream", "agent.aio.alias"} & without
    using = (
        "from agent import aio; from agent.aio.stream import _find;"
        "aio.open_connection; _find('localhost', 1); aio.as_asyncio()"
    )
    with_streams = loaded_by(using)
    assert {"_socket", "agent.aio.stream", "asyncio.stream"} <= with_streams
    assert not {name for name in HEAVY.split() if name != "asyncio"} & with_streams


def test_every_public_name_is_there_and_no_other_is_made_up() -> None:
    for name in aio.__all__:
        assert getattr(aio, name) is not None
    assert aio.StreamReader is aio.StreamWriter is aio.Stream is stream_module.Stream
    with pytest.raises(AttributeError, match="no attribute 'Queue'"):
        aio.Queue  # type: ignore[attr-defined]  # noqa: B018
    assert aio.cur_task is None  # type: ignore[attr-defined]
