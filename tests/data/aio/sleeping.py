"""`sleep` gives an awaitable that is no coroutine, and its deadline is fixed at the call."""
# ruff: noqa: RUF006

import asyncio


def told(name, error):
    print(name, type(error).__name__, error.args[0])


async def others(names):
    for name in names:
        print("other", name)
        await asyncio.sleep_ms(0)


async def waits(aw):
    return await asyncio.wait_for_ms(aw, 1000)


async def main():
    try:
        asyncio.create_task(asyncio.sleep(1))
    except TypeError as error:
        told("create_task", error)
    for name, aw in (
        ("wait_for", waits(asyncio.sleep_ms(1))),
        ("gather", asyncio.gather(asyncio.sleep_ms(1))),
    ):
        try:
            await aw
        except TypeError as error:
            told(name, error)

    # A deadline that has passed when it is awaited stands before what is due now.
    early = asyncio.sleep_ms(5)
    start = asyncio.ticks()
    while asyncio.ticks() - start < 10:
        pass
    task = asyncio.create_task(others("ab"))
    await early
    print("early")
    await task

    # The same order for no pause and for a negative one.
    tasks = [asyncio.create_task(others(names)) for names in ("cd", "ef")]
    for pause in (0, -1, -1000):
        print("pause", pause)
        await asyncio.sleep(pause)
    for task in tasks:
        await task
    await asyncio.sleep(0.0009)
    print("whole milliseconds only")


try:
    asyncio.run(asyncio.sleep(1))
except TypeError as error:
    told("run", error)
asyncio.run(main())
