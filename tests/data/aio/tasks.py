"""Tasks: awaited once, again, or by several, before and after their end."""
# ruff: noqa: RUF006

import asyncio


async def works(value, ms=0):
    if ms:
        await asyncio.sleep_ms(ms)
    if isinstance(value, Exception):
        raise value
    return value


async def awaits(name, task):
    try:
        print(name, await task)
    except ValueError as error:
        print(name, "ValueError", error.args)


async def is_current(box):
    await asyncio.sleep_ms(0)
    box.append(asyncio.current_task())


async def main():
    for value in (None, 0, "text", (1, 2)):
        task = asyncio.create_task(works(value))
        print(task.done(), await task, task.done(), await task)
    for value in ("many", ValueError("many", 2)):
        task = asyncio.create_task(works(value, 2))
        waiters = [asyncio.create_task(awaits(name, task)) for name in "abc"]
        for waiter in waiters:
            await waiter
        await awaits("after its end", task)

    box = []
    task = asyncio.create_task(is_current(box))
    await task
    print(box[0] is task, asyncio.current_task() is not task, isinstance(task, asyncio.Task))
    print(await works("without a task"))
    for what in (works, 7, None, [1]):
        try:
            asyncio.create_task(what)
        except TypeError as error:
            print(error.args)


def outside():
    try:
        asyncio.current_task()
    except RuntimeError as error:
        print(error.args)


outside()
asyncio.run(main())
outside()
