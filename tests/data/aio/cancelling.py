"""A cancel goes to the task that is awaited; an ended task answers False; none cancels itself."""

import asyncio


async def works(name, swallow=False):
    print(name, "starts")
    try:
        await asyncio.sleep_ms(10_000)
    except asyncio.CancelledError:
        print(name, "is cancelled")
        if not swallow:
            raise
    print(name, "goes on")
    return name


async def awaits(name, task):
    try:
        print(name, "got", await task)
    except asyncio.CancelledError:
        print(name, "is cancelled too")
        raise
    finally:
        print(name, "finally")


async def ended(task):
    try:
        print("value", await task)
    except asyncio.CancelledError as error:
        print("cancelled", error.args)
    print("done", task.done(), "cancel", task.cancel())


async def chain(swallow):
    print("--- chain", swallow)
    inner = asyncio.create_task(works("inner", swallow))
    middle = asyncio.create_task(awaits("middle", inner))
    outer = asyncio.create_task(awaits("outer", middle))
    await asyncio.sleep_ms(1)
    print("cancel", outer.cancel())
    for task in (inner, middle, outer):
        await ended(task)


async def main():
    print("--- before its first turn")
    task = asyncio.create_task(works("early"))
    print("cancel", task.cancel(), task.cancel())
    await ended(task)

    await chain(False)
    await chain(True)

    print("--- itself")
    try:
        asyncio.current_task().cancel()
    except RuntimeError as error:
        print(error.args)

    print("--- between its end and the turn of who awaits it")
    task = asyncio.create_task(works("quick", True))
    waiter = asyncio.create_task(awaits("waiter", task))
    await asyncio.sleep_ms(1)
    task.cancel()
    await asyncio.sleep_ms(0)
    print("cancel", waiter.cancel())
    await ended(waiter)

    print("--- except Exception is no net for it")
    task = asyncio.create_task(nets())
    await asyncio.sleep_ms(1)
    task.cancel()
    await ended(task)


async def nets():
    try:
        await asyncio.sleep_ms(10_000)
    except Exception:
        print("caught")


asyncio.run(main())
