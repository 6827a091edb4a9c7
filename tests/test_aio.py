"""The scheduler: MicroPython's semantics, waits for descriptors, signals and children, and the end.
Time is turned by hand; what comes from outside (signals, children, pipes) is real.
"""

from __future__ import annotations

import errno
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import aio
from agent.aio import child as child_module
from agent.aio import core
from agent.aio.task import loop


class HandClock:
    """Time that passes only when the loop has nothing to do before its next deadline."""

    def __init__(self) -> None:
        self.now = 1_000
        self.polls = 0
        self.asleep: list[Any] = []  # called, once each, when the loop is about to wait for ever

    def now_ms(self) -> int:
        return self.now

    def poll(self, poller: select.poll, wait_ms: int) -> list[tuple[int, int]]:
        self.polls += 1
        found = poller.poll(0)
        if found or wait_ms == 0:
            return found
        if wait_ms > 0:
            self.now += wait_ms
            return poller.poll(0)
        while self.asleep:
            self.asleep.pop(0)()
        return poller.poll(-1)


@pytest.fixture(autouse=True)
def clock() -> Iterator[HandClock]:
    hand = HandClock()
    aio.new_event_loop()
    aio.use_clock(hand.now_ms, hand.poll)
    yield hand
    aio.shutdown(0)
    aio.use_clock()
    aio.get_event_loop().set_exception_handler(None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def reported() -> list[BaseException]:
    errors: list[BaseException] = []
    aio.get_event_loop().set_exception_handler(
        lambda _, context: errors.append(context["exception"])
    )
    return errors


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def watched() -> dict[int, Any]:
    return dict(loop.io.waits)


# --- The semantics that differ from CPython's asyncio ---------------------------------------------


def test_sleep_is_no_coroutine_so_it_cannot_become_a_task() -> None:
    with pytest.raises(TypeError, match="coroutine expected"):
        aio.create_task(aio.sleep(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutine expected"):
        aio.run(aio.sleep_ms(1))  # type: ignore[arg-type]

    async def limited() -> None:
        await aio.wait_for(aio.sleep(1), 2)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="coroutine expected"):
        aio.run(limited())


def test_sleep_takes_whole_milliseconds(clock: HandClock) -> None:
    async def main() -> None:
        await aio.sleep(0.0259)

    aio.run(main())
    assert clock.now == 1_025
    with pytest.raises(TypeError, match="whole milliseconds"):
        aio.sleep_ms(1.5)  # type: ignore[arg-type]


def test_deadline_is_fixed_when_sleep_is_called_not_when_it_is_awaited(clock: HandClock) -> None:
    async def main() -> list[int]:
        early = aio.sleep_ms(100)
        await aio.sleep_ms(70)
        await early
        seen = [clock.now]
        await early  # it is over for good
        return [*seen, clock.now]

    assert aio.run(main()) == [1_100, 1_100]


def test_negative_and_zero_sleeps_take_turns_in_order_of_arrival(clock: HandClock) -> None:
    turns: list[str] = []

    async def worker(name: str, pause: int) -> None:
        for _ in range(3):
            turns.append(name)
            await aio.sleep_ms(pause)

    async def main() -> None:
        tasks = [aio.create_task(worker(name, pause)) for name, pause in zip("abc", (0, -5, 0))]
        for task in tasks:
            await task

    aio.run(main())
    assert "".join(turns) == "abcabcabc"
    assert clock.now == 1_000


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 20)), max_size=30))
def test_tasks_run_in_order_of_millisecond_then_arrival(pauses: list[tuple[int, int]]) -> None:
    hand = HandClock()
    aio.new_event_loop()
    aio.use_clock(hand.now_ms, hand.poll)
    arrivals: list[tuple[int, int]] = []
    turns: list[tuple[int, int]] = []

    async def sleeper(pause: int) -> None:
        mark = (hand.now + max(0, pause), len(arrivals))
        arrivals.append(mark)
        await aio.sleep_ms(pause)
        turns.append(mark)

    async def twice(first: int, second: int) -> None:
        await sleeper(first)
        await sleeper(second)

    async def main() -> None:
        for task in [aio.create_task(twice(*pair)) for pair in pauses]:
            await task

    aio.run(main())
    assert len(turns) == 2 * len(pauses)
    assert turns == sorted(arrivals)


def test_run_leaves_other_tasks_as_they_are_and_the_next_run_goes_on_with_them() -> None:
    steps: list[str] = []

    async def other() -> None:
        try:
            steps.append("one")
            await aio.sleep_ms(50)
            steps.append("two")
        finally:
            steps.append("finally")

    async def start() -> None:
        aio.create_task(other())
        await aio.sleep_ms(10)

    async def wait() -> str:
        await aio.sleep_ms(100)
        return "done"

    aio.run(start())
    assert steps == ["one"]
    assert aio.run(wait()) == "done"
    assert steps == ["one", "two", "finally"]


def test_main_task_that_nobody_can_wake_waits_until_a_signal_handler_does(clock: HandClock) -> None:
    flag = aio.ThreadSafeFlag()
    old = signal.signal(signal.SIGUSR1, lambda *_: flag.set())
    clock.asleep.append(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        aio.run(flag.wait())
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert clock.asleep == []


def test_cancel_of_a_task_that_awaits_another_goes_to_that_other_task() -> None:
    seen: list[str] = []

    async def inner() -> str:
        try:
            await aio.Event().wait()
        except aio.CancelledError:
            seen.append("inner")
        return "inner went on"

    async def outer(task: aio.Task) -> None:
        seen.append(await task)

    async def main() -> None:
        task = aio.create_task(inner())
        waiter = aio.create_task(outer(task))
        await aio.sleep_ms(1)
        assert waiter.cancel()
        await waiter

    aio.run(main())
    assert seen == ["inner", "inner went on"]


def test_cancel_of_an_ended_task_is_false_and_a_task_cannot_cancel_itself() -> None:
    async def main() -> None:
        task = aio.create_task(aio.Event().wait())
        assert not task.done()
        assert task.cancel()
        with pytest.raises(aio.CancelledError):
            await task
        assert task.done()
        assert task.cancel() is False
        with pytest.raises(RuntimeError, match="can't cancel self"):
            aio.current_task().cancel()

    aio.run(main())


def test_cancelled_error_passes_except_exception_and_time_out_passes_except_oserror() -> None:
    assert not issubclass(aio.CancelledError, Exception)
    assert not issubclass(aio.TimeoutError, OSError)


def test_cancel_reaches_a_task_that_never_had_a_turn() -> None:
    ran: list[str] = []

    async def never() -> None:
        ran.append("turn")

    async def main() -> None:
        task = aio.create_task(never())
        task.cancel()
        with pytest.raises(aio.CancelledError):
            await task

    aio.run(main())
    assert ran == []


def test_cancelled_waiter_of_an_event_does_not_use_up_the_event() -> None:
    async def main() -> str:
        event = aio.Event()
        first, second = aio.create_task(event.wait()), aio.create_task(event.wait())
        await aio.sleep_ms(1)
        first.cancel()
        event.set()
        event.clear()
        assert await second is True
        assert not event.is_set()
        with pytest.raises(aio.CancelledError):
            await first
        return "second woke"

    assert aio.run(main()) == "second woke"


def test_tasks_that_would_wait_for_each_other_are_told() -> None:
    async def main() -> None:
        async def back(task: aio.Task) -> None:
            await task

        task = aio.create_task(back(aio.current_task()))
        with pytest.raises(RuntimeError, match="can't wait"):
            await task
        with pytest.raises(RuntimeError, match="can't wait"):
            await aio.current_task()

    aio.run(main())


def test_exception_nobody_awaited_reaches_the_handler_at_the_next_turn(
    reported: list[BaseException],
) -> None:
    async def fails() -> None:
        raise ValueError("lost")

    async def main() -> None:
        task = aio.create_task(fails())
        await aio.sleep_ms(0)
        assert reported == []
        await aio.sleep_ms(0)
        assert [str(error) for error in reported] == ["lost"]
        with pytest.raises(ValueError, match="lost"):  # later it is still there, but told once
            await task

    aio.run(main())
    assert len(reported) == 1


def test_exception_awaited_in_time_is_not_reported(reported: list[BaseException]) -> None:
    async def fails() -> None:
        raise ValueError("found")

    async def main() -> None:
        task = aio.create_task(fails())
        await aio.sleep_ms(0)
        with pytest.raises(ValueError, match="found"):
            await task
        await aio.sleep_ms(5)

    aio.run(main())
    assert reported == []


def test_default_handler_prints_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    async def fails() -> None:
        raise ValueError("printed")

    async def main() -> None:
        aio.create_task(fails())
        await aio.sleep_ms(5)

    aio.run(main())
    printed = capfd.readouterr().err
    assert printed.startswith("Task exception wasn't retrieved\nfuture: ")
    assert "ValueError: printed" in printed


def test_exception_of_the_main_task_comes_out_of_run() -> None:
    async def main() -> None:
        raise KeyError("main")

    with pytest.raises(KeyError):
        aio.run(main())
    with pytest.raises(RuntimeError, match="no running event loop"):
        aio.current_task()


def test_system_exit_in_any_task_ends_the_run() -> None:
    async def leave() -> None:
        sys.exit(3)

    async def main() -> None:
        task = aio.create_task(leave())
        await task

    with pytest.raises(SystemExit):
        aio.run(main())
    assert aio.shutdown() == 0


def test_run_inside_run_is_refused() -> None:
    async def nothing() -> None:
        pass

    async def main() -> None:
        inner = nothing()
        with pytest.raises(RuntimeError, match="running already"):
            aio.run(inner)
        with pytest.raises(RuntimeError, match="running already"):
            aio.new_event_loop()
        with pytest.raises(RuntimeError, match="running already"):
            aio.shutdown()
        inner.close()
        assert len(loop.alive) == 1

    aio.run(main())


def test_loop_object_runs_for_ever_until_stop() -> None:
    runner = aio.get_event_loop(16, 16)
    assert aio.new_event_loop() is runner
    steps: list[str] = []

    async def work() -> None:
        steps.append("work")
        await aio.sleep_ms(10)
        runner.stop()
        runner.stop()

    runner.create_task(work())
    runner.run_forever()
    assert steps == ["work"]
    assert core.cur_task is None

    async def answer() -> int:
        assert core.cur_task is aio.current_task()
        return 42

    assert runner.run_until_complete(answer()) == 42
    assert aio.run_until_complete() is None
    runner.close()


def test_without_a_main_task_the_loop_ends_when_nothing_can_wake_a_task(clock: HandClock) -> None:
    async def stuck() -> None:
        await aio.Event().wait()

    async def brief() -> None:
        await aio.sleep_ms(30)

    aio.create_task(stuck())
    aio.create_task(brief())
    aio.run_until_complete()
    assert clock.now == 1_030


def test_wait_for_answers_the_value_or_raises_at_the_limit(clock: HandClock) -> None:
    ended: list[str] = []

    async def takes(ms: int) -> int:
        try:
            await aio.sleep_ms(ms)
        finally:
            ended.append(f"{ms} at {clock.now}")
        return ms

    async def main() -> None:
        assert await aio.wait_for_ms(takes(20), 50) == 20
        assert await aio.wait_for(takes(30), None) == 30
        with pytest.raises(aio.TimeoutError):
            await aio.wait_for(takes(9_000), 0.1)
        assert clock.now == 1_150

    aio.run(main())
    assert ended == ["20 at 1020", "30 at 1050", "9000 at 1150"]
    assert len(loop.queue) == 0


def test_wait_for_times_out_even_if_the_inner_task_swallows_the_cancel() -> None:
    async def stubborn() -> str:
        try:
            await aio.sleep_ms(100)
        except aio.CancelledError:
            pass
        return "ignored"

    async def main() -> None:
        with pytest.raises(aio.TimeoutError):
            await aio.wait_for_ms(stubborn(), 10)

    aio.run(main())


def test_cancel_of_wait_for_cancels_the_inner_task_without_awaiting_its_end() -> None:
    steps: list[str] = []

    async def inner() -> None:
        try:
            await aio.sleep_ms(1_000)
        except aio.CancelledError:
            await aio.sleep_ms(100)
            steps.append("inner")

    async def outer() -> None:
        try:
            await aio.wait_for_ms(inner(), 500)
        finally:
            steps.append("outer")

    async def main() -> None:
        task = aio.create_task(outer())
        await aio.sleep_ms(10)
        task.cancel()
        await aio.sleep_ms(200)

    aio.run(main())
    assert steps == ["outer", "inner"]


def test_cancel_that_comes_back_to_the_task_that_asks_is_refused() -> None:
    async def waits(task: aio.Task) -> None:
        await task

    async def asks() -> None:
        await aio.sleep_ms(1)
        with pytest.raises(RuntimeError, match="can't cancel self"):
            tasks[-1].cancel()

    async def main() -> None:
        tasks.append(aio.create_task(asks()))
        tasks.append(aio.create_task(waits(tasks[-1])))
        tasks.append(aio.create_task(waits(tasks[-1])))
        await tasks[-1]

    tasks: list[aio.Task] = []
    aio.run(main())
    assert [task.done() for task in tasks] == [True] * 3


def test_end_of_the_inner_task_cuts_no_later_sleep_of_a_cancelled_waiter_short(
    clock: HandClock,
) -> None:
    async def inner() -> None:
        try:
            await aio.sleep_ms(10_000)
        finally:
            await aio.sleep_ms(50)

    async def outer() -> int:
        try:
            await aio.wait_for_ms(inner(), 5_000)
        except aio.CancelledError:
            await aio.sleep_ms(1_000)
        return clock.now

    async def main() -> int:
        task = aio.create_task(outer())
        await aio.sleep_ms(10)
        task.cancel()
        ended: int = await task
        return ended

    assert aio.run(main()) == 2_010


def test_cancel_wins_over_a_result_of_the_same_moment() -> None:
    async def inner(event: aio.Event) -> str:
        await event.wait()
        return "result"

    async def main() -> None:
        event = aio.Event()
        task = aio.create_task(inner(event))
        limited = aio.create_task(aio.wait_for_ms(task, 500))
        await aio.sleep_ms(10)
        event.set()
        limited.cancel()
        with pytest.raises(aio.CancelledError):
            await limited

    aio.run(main())


def test_wait_for_passes_on_what_the_inner_task_raises() -> None:
    async def fails() -> None:
        raise LookupError("inner")

    async def main() -> None:
        with pytest.raises(LookupError, match="inner"):
            await aio.wait_for_ms(fails(), 100)

    aio.run(main())


# --- Waiting for descriptors ----------------------------------------------------------------------


def test_reader_and_writer_share_a_descriptor_and_each_hears_its_own_event() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)

        async def main() -> list[int]:
            reader = aio.create_task(aio.wait_readable(ours.fileno()))
            await aio.sleep_ms(1)
            wrote = await aio.wait_writable(ours.fileno())
            assert not reader.done()
            theirs.send(b"x")
            return [wrote, await reader]

        assert aio.run(main()) == [select.POLLOUT, select.POLLIN]
    assert watched() == {}


@pytest.mark.parametrize("wait", [aio.wait_readable, aio.wait_writable])
def test_second_waiter_on_one_side_is_refused_at_once(wait: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        while wait is aio.wait_writable:  # a full line, so that the first waiter stays
            try:
                ours.send(b"x" * 65_536)
            except BlockingIOError:
                break

        async def main() -> None:
            first = aio.create_task(wait(ours.fileno()))
            await aio.sleep_ms(1)
            with pytest.raises(RuntimeError, match="already"):
                await wait(ours.fileno())
            assert not first.done()
            first.cancel()
            with pytest.raises(aio.CancelledError):
                await first

        aio.run(main())
    assert watched() == {}


def test_cancelled_waiter_is_gone_from_poll(pipe: tuple[int, int], clock: HandClock) -> None:
    inner, outer = pipe

    async def main() -> int:
        task = aio.create_task(aio.wait_readable(inner))
        await aio.sleep_ms(1)
        assert inner in watched()
        task.cancel()
        assert watched() == {}
        with pytest.raises(aio.CancelledError):
            await task
        os.write(outer, b"for nobody")
        polls = clock.polls
        await aio.sleep_ms(100)
        assert clock.polls - polls == 1  # a descriptor left in poll would have ended it early
        return await aio.wait_readable(inner)

    assert aio.run(main()) == select.POLLIN


def test_wait_for_leaves_nothing_in_poll_after_the_limit(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        with pytest.raises(aio.TimeoutError):
            await aio.wait_for_ms(aio.wait_readable(pipe[0]), 20)

    aio.run(main())
    assert watched() == {}


def test_descriptor_closed_under_its_waiter_wakes_it_once_with_an_error(
    clock: HandClock,
) -> None:
    inner, outer = os.pipe()

    async def main() -> None:
        task = aio.create_task(aio.wait_readable(inner))
        await aio.sleep_ms(1)
        os.close(inner)
        with pytest.raises(OSError, match="closed") as caught:
            await task
        assert caught.value.errno == errno.EBADF
        assert watched() == {}
        polls = clock.polls
        await aio.sleep_ms(100)
        assert clock.polls - polls == 1
        with pytest.raises(OSError, match="Bad file"):
            await aio.wait_readable(inner)

    aio.run(main())
    os.close(outer)


def test_reused_number_neither_wakes_the_old_waiter_as_if_nothing_were_nor_bars_a_new_one() -> None:
    async def main() -> None:
        old_inner, old_outer = os.pipe()
        old = aio.create_task(aio.wait_readable(old_inner))
        await aio.sleep_ms(1)
        new_inner, new_outer = os.pipe()
        os.dup2(new_inner, old_inner)  # closes the old file and takes its number in one step
        new = aio.create_task(aio.wait_readable(old_inner))
        with pytest.raises(OSError, match="closed") as caught:
            await old
        assert caught.value.errno == errno.EBADF
        assert not new.done()
        os.write(new_outer, b"x")
        assert await new == select.POLLIN
        for fd in (old_inner, old_outer, new_inner, new_outer):
            os.close(fd)

    aio.run(main())


def test_event_of_a_reused_number_ends_the_old_wait_with_an_error() -> None:
    async def main() -> None:
        old_inner, old_outer = os.pipe()
        old = aio.create_task(aio.wait_readable(old_inner))
        await aio.sleep_ms(1)
        new_inner, new_outer = os.pipe()
        os.dup2(new_inner, old_inner)
        os.write(new_outer, b"not for the old reader")
        with pytest.raises(OSError, match="closed"):
            await old
        for fd in (old_inner, old_outer, new_inner, new_outer):
            os.close(fd)

    aio.run(main())
    assert watched() == {}


def test_released_descriptor_ends_both_waits_before_it_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        try:
            while True:
                ours.send(b"x" * 65_536)
        except BlockingIOError:
            pass

        async def main() -> list[int]:
            tasks = [
                aio.create_task(aio.wait_readable(ours.fileno())),
                aio.create_task(aio.wait_writable(ours.fileno())),
            ]
            await aio.sleep_ms(1)
            aio.release_fd(ours.fileno())
            assert watched() == {}
            errors: list[Any] = []
            for task in tasks:
                with pytest.raises(OSError, match="closed") as caught:
                    await task
                errors.append(caught.value.errno)
            return errors

        assert aio.run(main()) == [errno.EBADF] * 2


def test_hang_up_is_in_the_mask_and_told_after_the_last_bytes() -> None:
    inner, outer = os.pipe()
    os.write(outer, b"last words")
    os.close(outer)

    async def main() -> list[int]:
        before = await aio.wait_readable(inner)
        assert os.read(inner, 100) == b"last words"
        after = await aio.wait_readable(inner)
        assert os.read(inner, 100) == b""
        return [before & select.POLLIN, before & select.POLLHUP, after]

    assert aio.run(main()) == [select.POLLIN, select.POLLHUP, select.POLLHUP]
    os.close(inner)


def test_empty_read_of_a_serial_line_comes_without_the_hang_up_mask() -> None:
    """A raw line with VMIN=0 reads b"" for "nothing yet": only the mask tells it from the end."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    attributes = tty.tcgetattr(slave)  # type: ignore[attr-defined]
    attributes[6][tty.VMIN] = attributes[6][tty.VTIME] = 0  # type: ignore[attr-defined]
    tty.tcsetattr(slave, tty.TCSANOW, attributes)  # type: ignore[attr-defined]

    async def main() -> None:
        assert os.read(slave, 100) == b""
        with pytest.raises(aio.TimeoutError):
            await aio.wait_for_ms(aio.wait_readable(slave), 50)
        os.write(master, b"status\n")
        mask = await aio.wait_readable(slave)
        assert not mask & (select.POLLHUP | select.POLLERR)
        assert os.read(slave, 100) == b"status\n"
        os.close(master)
        assert await aio.wait_readable(slave) & select.POLLHUP
        assert os.read(slave, 100) == b""

    try:
        aio.run(main())
    finally:
        os.close(slave)


def test_timer_fires_beside_a_flood_of_input(pipe: tuple[int, int], clock: HandClock) -> None:
    os.write(pipe[1], b"never read")  # ready for ever
    reads = 0

    async def flood() -> None:
        nonlocal reads
        while True:
            await aio.wait_readable(pipe[0])
            reads += 1
            clock.now += 1 if reads % 10 == 0 else 0

    async def main() -> int:
        aio.create_task(flood())
        await aio.sleep_ms(50)
        return clock.now

    assert aio.run(main()) == 1_050
    assert reads == 500


def test_input_is_served_beside_tasks_that_never_pause(pipe: tuple[int, int]) -> None:
    turns = 0

    async def spin() -> None:
        nonlocal turns
        while True:
            turns += 1
            await aio.sleep_ms(0)

    async def main() -> int:
        for _ in range(20):
            aio.create_task(spin())
        await aio.sleep_ms(0)
        os.write(pipe[1], b"x")
        before = turns
        await aio.wait_readable(pipe[0])
        return turns - before

    assert aio.run(main()) <= 60  # three rounds of the twenty


def test_wait_longer_than_poll_can_count_is_cut_into_days(clock: HandClock) -> None:
    async def main() -> None:
        await aio.sleep(60 * 60 * 24 * 30)

    aio.run(main())
    assert clock.now == 1_000 + 60 * 60 * 24 * 30 * 1_000
    assert clock.polls >= 30


# --- Signals, flags and threads -------------------------------------------------------------------


def test_sigterm_from_outside_wakes_a_loop_that_waits_for_ever(clock: HandClock) -> None:
    flag = aio.ThreadSafeFlag()
    go_inner, go_outer = os.pipe()
    old = signal.signal(signal.SIGTERM, lambda *_: flag.set())
    pid = os.fork()
    if pid == 0:
        os.read(go_inner, 1)
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(0)
    clock.asleep.append(lambda: os.write(go_outer, b"x"))
    try:
        aio.run(flag.wait())
    finally:
        signal.signal(signal.SIGTERM, old)
        os.close(go_inner)
        os.close(go_outer)
    assert os.waitpid(pid, 0)[1] == 0


def test_wake_up_descriptor_is_given_back_and_no_descriptor_is_left(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    before = open_fds()
    old = signal.set_wakeup_fd(pipe[1])

    async def fails() -> None:
        raise ValueError

    async def works() -> int:
        return len(open_fds() - before)

    try:
        assert aio.run(works()) == 2  # the loop's own pipe
        with pytest.raises(ValueError):  # noqa: PT011
            aio.run(fails())
        aio.shutdown()
    finally:
        assert signal.set_wakeup_fd(old) == pipe[1]
    assert open_fds() == before


def test_more_signals_than_the_bell_holds_only_ring_once_more() -> None:
    flag = aio.ThreadSafeFlag()
    rings = 0

    async def main() -> None:
        nonlocal rings
        waiter = aio.create_task(flag.wait())
        await aio.sleep_ms(0)
        for _ in range(70_000):  # more than a pipe takes
            flag.set()
        await waiter
        rings += 1

    aio.run(main())
    assert rings == 1


def test_flag_clears_itself_keeps_what_was_set_before_and_takes_one_waiter() -> None:
    async def main() -> None:
        flag = aio.ThreadSafeFlag()
        flag.set()
        await flag.wait()
        flag.set()
        flag.clear()
        first = aio.create_task(flag.wait())
        await aio.sleep_ms(1)
        assert not first.done()
        with pytest.raises(RuntimeError, match="waiter already"):
            await flag.wait()
        first.cancel()
        with pytest.raises(aio.CancelledError):
            await first
        flag.set()
        await flag.wait()

    aio.run(main())
    assert not loop.flags


def test_flag_set_by_another_thread_wakes_the_loop(clock: HandClock) -> None:
    flag = aio.ThreadSafeFlag()
    thread = threading.Thread(target=flag.set)
    clock.asleep.append(thread.start)
    aio.run(flag.wait())
    thread.join()


def test_loop_runs_in_a_thread_that_may_not_hear_signals() -> None:
    async def main() -> None:
        await aio.sleep_ms(5)
        ended.append("ended")

    ended: list[str] = []
    thread = threading.Thread(target=lambda: aio.run(main()))
    thread.start()
    thread.join()
    assert ended == ["ended"]


# --- Children -------------------------------------------------------------------------------------


@pytest.fixture(params=["pidfd", "SIGCHLD"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hear of a child's end; the second is what old kernels leave us."""
    if request.param == "SIGCHLD":
        monkeypatch.setattr(child_module, "_open_pidfd", lambda pid: -1)
    else:
        own = child_module._open_pidfd(os.getpid())
        assert own >= 0, "this kernel has no pidfd"
        os.close(own)
    return str(request.param)


def fork_child(code: int) -> tuple[int, int]:
    """A child that ends with `code` once the pipe it reads from is written to."""
    inner, outer = os.pipe()
    pid = os.fork()
    if pid == 0:
        aio.detach_after_fork()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(outer)
        os.read(inner, 1)
        os._exit(code)
    os.close(inner)
    return pid, outer


def test_end_of_a_child_wakes_its_waiter_with_the_status(way: str, clock: HandClock) -> None:
    before, handler = open_fds(), signal.getsignal(signal.SIGCHLD)
    pid, go = fork_child(7)
    clock.asleep.append(lambda: os.close(go))
    status = aio.run(aio.child_ended(pid))
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 7
    assert open_fds() == before
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_killed_child_is_told_by_its_signal_and_an_ended_one_is_found(
    way: str, clock: HandClock
) -> None:
    async def main() -> list[Any]:
        first, go_first = fork_child(0)
        second, go_second = fork_child(3)
        os.close(go_second)
        os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)  # ended, not yet reaped
        tasks = [aio.create_task(aio.child_ended(pid)) for pid in (first, second)]
        clock.asleep.append(lambda: os.kill(first, signal.SIGKILL))
        statuses = [await task for task in tasks]
        os.close(go_first)
        return statuses

    killed, ended = aio.run(main())
    assert os.WTERMSIG(killed) == signal.SIGKILL
    assert os.WEXITSTATUS(ended) == 3


def test_cancelled_wait_for_a_child_can_be_begun_again(way: str) -> None:
    async def main() -> int:
        pid, go = fork_child(5)
        with pytest.raises(aio.TimeoutError):
            await aio.wait_for_ms(aio.child_ended(pid), 30)
        first = aio.create_task(aio.child_ended(pid))
        await aio.sleep_ms(1)
        with pytest.raises(RuntimeError, match="already"):
            await aio.child_ended(pid)
        os.close(go)
        return os.WEXITSTATUS(await first)

    before = open_fds()
    assert aio.run(main()) == 5
    assert open_fds() == before


def test_somebody_elses_child_is_an_error(way: str) -> None:
    with pytest.raises(ChildProcessError):
        aio.run(aio.child_ended(os.getpid()))


def test_earlier_sigchld_handler_goes_on_hearing(clock: HandClock) -> None:
    heard: list[int] = []
    old = signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
    pid, go = fork_child(0)
    clock.asleep.append(lambda: os.close(go))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child_module, "_open_pidfd", lambda pid: -1)
            assert aio.run(aio.child_ended(pid)) == 0
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert heard == [signal.SIGCHLD]


def test_signals_of_a_forked_child_do_not_ring_in_the_parent(clock: HandClock) -> None:
    async def main() -> int:
        pid = os.fork()
        if pid == 0:
            aio.detach_after_fork()
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        return await aio.child_ended(pid)

    assert aio.run(main()) == 0


# --- The end --------------------------------------------------------------------------------------


def test_shutdown_runs_every_finally_also_one_that_awaits(pipe: tuple[int, int]) -> None:
    steps: list[str] = []
    never = aio.Event()

    async def holds(name: str, what: Any) -> None:
        try:
            await what()
        finally:
            await aio.sleep_ms(20)
            steps.append(name)

    async def main() -> None:
        task = aio.create_task(holds("event", never.wait))
        aio.create_task(holds("reader", lambda: aio.wait_readable(pipe[0])))
        aio.create_task(holds("sleeper", lambda: aio.sleep_ms(60_000)))
        aio.create_task(holds("awaiter", lambda: task))
        aio.create_task(holds("flag", aio.ThreadSafeFlag().wait))
        await aio.sleep_ms(5)

    aio.run(main())
    assert steps == []
    assert aio.shutdown() == 0
    assert sorted(steps) == ["awaiter", "event", "flag", "reader", "sleeper"]
    assert steps.index("event") < steps.index("awaiter")
    assert watched() == {}
    assert [len(loop.alive), len(loop.flags), len(loop.queue)] == [0, 0, 0]


def test_shutdown_ends_a_task_that_went_on_after_the_cancel_of_what_it_awaited() -> None:
    steps: list[str] = []

    async def outer(task: aio.Task) -> None:
        try:
            await task
        except aio.CancelledError:
            steps.append("went on")
        await aio.Event().wait()

    async def main() -> None:
        aio.create_task(outer(aio.create_task(aio.Event().wait())))
        await aio.sleep_ms(5)

    aio.run(main())
    assert aio.shutdown() == 0
    assert steps == ["went on"]


def test_shutdown_closes_hard_what_does_not_end_and_says_how_many(clock: HandClock) -> None:
    steps: list[str] = []

    async def stubborn() -> None:
        try:
            while True:
                try:
                    await aio.sleep_ms(100)
                except aio.CancelledError:
                    steps.append("no")
        finally:
            steps.append("finally")

    async def main() -> None:
        aio.create_task(stubborn())
        await aio.sleep_ms(5)

    aio.run(main())
    assert aio.shutdown(limit_ms=1_000) == 1
    assert steps == ["no", "no", "finally"]
    assert clock.now == 2_005
    assert aio.shutdown() == 0


def test_shutdown_tells_of_errors_in_finally_blocks(reported: list[BaseException]) -> None:
    async def breaks() -> None:
        try:
            await aio.Event().wait()
        finally:
            raise OSError("close failed")

    async def main() -> None:
        aio.create_task(breaks())
        await aio.sleep_ms(5)

    aio.run(main())
    assert aio.shutdown() == 0
    assert [str(error) for error in reported] == ["close failed"]


def test_shutdown_after_an_interrupt_ends_the_main_task_too(clock: HandClock) -> None:
    steps: list[str] = []

    async def main() -> None:
        try:
            await aio.Event().wait()
        finally:
            steps.append("finally")

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.asleep.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        aio.run(main())
    assert steps == []
    assert aio.shutdown() == 0
    assert steps == ["finally"]


def test_package_imports_alone_and_none_of_the_heavy_modules() -> None:
    heavy = "asyncio selectors socket collections types functools typing enum re signal heapq"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); import agent.aio; "
        "print(*[name for name in sys.argv[2].split() if name in set(sys.modules) - before])"
    )
    root = str(Path(__file__).parent.parent)
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, root, heavy],
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == ""
    assert found.stderr == ""
