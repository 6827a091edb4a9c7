"""Event: all that wait are woken, in order, also if it is cleared at once."""
# ruff: noqa: RUF006

import asyncio


async def waits(name, event):
    print(name, "waits")
    print(name, await event.wait())


class Lines:
    """An iterator that is fed from outside."""

    def __init__(self):
        self.event = asyncio.Event()
        self.line = None

    def feed(self, line):
        self.line = line
        self.event.set()

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.event.wait()
        self.event.clear()
        if self.line is None:
            raise StopAsyncIteration
        return self.line


async def feeds(lines):
    for line in ("one", "two", None):
        await asyncio.sleep_ms(1)
        lines.feed(line)


async def main():
    event = asyncio.Event()
    print(event.is_set(), event.set(), event.is_set(), await event.wait(), event.clear())
    tasks = [asyncio.create_task(waits(name, event)) for name in "abc"]
    await asyncio.sleep_ms(0)
    event.set()
    event.clear()
    print("set and cleared", event.is_set())
    for task in tasks:
        await task

    print("--- one of them is cancelled")
    tasks = [asyncio.create_task(waits(name, event)) for name in "def"]
    await asyncio.sleep_ms(0)
    tasks[1].cancel()
    event.set()
    for task in tasks:
        try:
            await task
        except asyncio.CancelledError:
            print("cancelled")

    print("--- a signal between two tasks")
    ping, pong = asyncio.Event(), asyncio.Event()

    async def answers():
        for number in range(3):
            await ping.wait()
            ping.clear()
            print("ping", number)
            pong.set()

    task = asyncio.create_task(answers())
    for number in range(3):
        ping.set()
        await pong.wait()
        pong.clear()
        print("pong", number)
    await task

    print("--- an iterator")
    lines = Lines()
    asyncio.create_task(feeds(lines))
    async for line in lines:
        print(line)


asyncio.run(main())
