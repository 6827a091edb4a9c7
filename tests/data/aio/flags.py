"""ThreadSafeFlag: one waiter, and waiting clears it."""

import asyncio


async def waits(name, flag):
    print(name, "waits")
    await flag.wait()
    print(name, "goes on")


async def main():
    flag = asyncio.ThreadSafeFlag()
    flag.set()
    flag.set()
    await flag.wait()
    print("set before")

    task = asyncio.create_task(waits("a", flag))
    await asyncio.sleep_ms(0)
    print("done", task.done())
    flag.set()
    await task

    flag.set()
    flag.clear()
    try:
        await asyncio.wait_for_ms(flag.wait(), 5)
    except asyncio.TimeoutError:
        print("cleared by hand")

    flag.set()
    await asyncio.wait_for_ms(waits("b", flag), 5_000)
    try:
        await asyncio.wait_for_ms(flag.wait(), 5)
    except asyncio.TimeoutError:
        print("cleared by waiting")

    task = asyncio.create_task(waits("c", flag))
    await asyncio.sleep_ms(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")
    flag.set()
    await waits("d", flag)


asyncio.run(main())
