"""`gather`: values in order, the first error, cancels, and one awaiter for each task."""

import asyncio


async def works(name, ms=1, error=None):
    print(name, "starts")
    try:
        await asyncio.sleep_ms(ms)
    except asyncio.CancelledError:
        print(name, "is cancelled")
        raise
    print(name, "ends")
    if error is not None:
        raise error
    return name


def plain(value):
    return (type(value).__name__, value.args) if isinstance(value, BaseException) else value


async def tries(title, *aws, **options):
    print("---", title)
    try:
        print([plain(value) for value in await asyncio.gather(*aws, **options)])
    except (Exception, asyncio.CancelledError) as error:
        print("raised", plain(error))


async def cancelled(title, turns, *aws):
    task = asyncio.create_task(tries(title, *aws))
    for _ in range(turns):
        await asyncio.sleep_ms(0)
    print("cancel", task.cancel())
    await asyncio.sleep_ms(20)
    print("done", task.done())


async def main():
    # Errors that a test leaves alone are told elsewhere: tests/data/aio/untold.py.
    asyncio.get_event_loop().set_exception_handler(lambda loop, context: None)
    await tries("nothing")
    await tries("values in order", works("a", 9), works("b", 3), works("c", 6))
    await tries("errors as values", works("a", 3, OSError(5)), works("b"), return_exceptions=True)
    long = asyncio.create_task(works("long", 10_000))
    await tries("the first error", long, works("b", 1, ValueError("b", 1)))
    print("runs on", not long.done())
    long.cancel()
    await tries("of two errors", works("a", 0, KeyError("a")), works("b", 0, KeyError("b")))

    print("--- one is cancelled")
    task = asyncio.create_task(works("never"))
    task.cancel()
    await tries("as a value", task, works("b"), return_exceptions=True)
    task = asyncio.create_task(works("never"))
    task.cancel()
    await tries("as an error", task, works("b"))
    await asyncio.sleep_ms(10)

    # However many turns go by before it, nothing is left running.
    for turns in range(1, 5):
        await cancelled(f"cancelled after {turns}", turns, works("a", 0), works("b", 5))

    print("--- ended before")
    ok = asyncio.create_task(works("ok", 0))
    bad = asyncio.create_task(works("bad", 0, ValueError("bad", 2)))
    await asyncio.sleep_ms(5)
    await tries("values", ok, ok)
    await tries("error", works("new", 1), ok, bad)
    await tries("error as a value", ok, bad, works("new", 1), return_exceptions=True)
    await asyncio.sleep_ms(5)

    await tries("gathers in a gather", asyncio.gather(works("a"), works("b")), works("c"))

    task = asyncio.create_task(works("gathered", 5))
    gathered = asyncio.create_task(tries("can't wait", task))
    await asyncio.sleep_ms(0)
    try:
        await task
    except RuntimeError as error:
        print("RuntimeError", error.args)
    await gathered
    print("then", await task)

    task = asyncio.create_task(works("awaited", 5))
    waiter = asyncio.create_task(asyncio.wait_for_ms(task, 5_000))
    await asyncio.sleep_ms(0)
    await asyncio.sleep_ms(0)
    await tries("can't gather", task)
    print(await waiter)


asyncio.run(main())
