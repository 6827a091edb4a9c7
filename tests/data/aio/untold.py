"""The error of a task that nobody awaited reaches the handler at the task's next turn, once."""
# ruff: noqa: RUF006

import asyncio

loop = asyncio.get_event_loop()


def handler(the_loop, context):
    print("handler", context["message"], context["exception"].args)
    print("future", isinstance(context["future"], asyncio.Task), the_loop is loop)


async def raises(number, ms=0):
    if ms:
        await asyncio.sleep_ms(ms)
    raise ValueError("task", number)


async def main():
    print(loop.get_exception_handler())
    loop.set_exception_handler(handler)
    print(loop.get_exception_handler() is handler)

    first = asyncio.create_task(raises(1))
    asyncio.create_task(raises(2))
    for turn in range(3):
        print("turn", turn)
        await asyncio.sleep_ms(0)
    try:
        await first
    except ValueError as error:
        print("awaited later", error.args)

    print("--- awaited in time")
    task = asyncio.create_task(raises(3))
    await asyncio.sleep_ms(0)
    try:
        await task
    except ValueError as error:
        print("caught", error.args)
    try:
        await task
    except ValueError as error:
        print("and again", error.args)

    print("--- a cancelled task is no error")
    task = asyncio.create_task(raises(4, 1_000))
    await asyncio.sleep_ms(0)
    task.cancel()
    for _ in range(3):
        await asyncio.sleep_ms(0)

    print("--- called by hand")
    loop.call_exception_handler({"message": "m", "exception": ValueError("x", 0), "future": task})
    loop.set_exception_handler(None)
    print(loop.get_exception_handler())


asyncio.run(main())
