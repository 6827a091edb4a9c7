"""`wait_for`: the limit is an error, whatever the inner task does with its cancel."""

import asyncio


async def works(name, ms, swallow=False):
    print(name, "starts")
    try:
        await asyncio.sleep_ms(ms)
    except asyncio.CancelledError:
        print(name, "is cancelled")
        if not swallow:
            raise
    print(name, "ends")
    return name


async def raises():
    await asyncio.sleep_ms(0)
    raise KeyError("inner")


async def tries(title, aw, limit, wait=asyncio.wait_for_ms):
    print("---", title)
    try:
        print("value", await wait(aw, limit))
    except asyncio.TimeoutError:
        print("time is up")
    except asyncio.CancelledError:
        print("cancelled")
        raise
    except KeyError as error:
        print("KeyError", error.args)


async def cancels(title, aw, turns):
    task = asyncio.create_task(tries(title, aw, 5_000))
    for _ in range(turns):
        await asyncio.sleep_ms(0)
    print("cancel", task.cancel())
    try:
        await task
        print("went on")
    except asyncio.CancelledError:
        print("so it ended")
    await asyncio.sleep_ms(5)


async def main():
    await tries("in time", works("a", 1), 5_000)
    await tries("in seconds", works("b", 1), 5.0, asyncio.wait_for)
    await tries("no limit", works("c", 1), None)
    await tries("no limit in seconds", works("d", 1), None, asyncio.wait_for)
    await tries("too late", works("e", 5_000), 5)
    await tries("too late in seconds", works("f", 5_000), 0.005, asyncio.wait_for)
    await tries("swallowed", works("g", 5_000, True), 5)
    await tries("an error", raises(), 5_000)
    await tries("an event", asyncio.Event().wait(), 5)
    await tries("a flag", asyncio.ThreadSafeFlag().wait(), 5)
    task = asyncio.create_task(works("h", 1))
    await tries("a task", task, 5_000)
    await tries("an ended task", task, 5_000)
    await tries("one in the other", asyncio.wait_for_ms(works("i", 5_000), 4_000), 5)
    # However many turns go by before it, a cancel is not lost.
    for turns in range(1, 6):
        await cancels(f"cancelled after {turns}", works("j", 0), turns)
    await cancels("cancelled, inner swallows", works("k", 5_000, True), 3)


asyncio.run(main())
