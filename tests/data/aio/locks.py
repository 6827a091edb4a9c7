"""Lock: given from one to the next in the order of asking, also past those who gave up."""

import asyncio


async def loops(name, lock, order):
    for _ in range(3):
        async with lock:
            order.append(name)
            await asyncio.sleep_ms(0)


async def takes(name, lock):
    try:
        print(name, "asks")
        print(name, "has it", await lock.acquire())
    except asyncio.CancelledError:
        print(name, "gives up")
        raise
    await asyncio.sleep_ms(1)
    lock.release()
    print(name, "gave it back")


async def ends(task):
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled")


async def main():
    lock = asyncio.Lock()
    print(lock.locked(), await lock.acquire(), lock.locked(), lock.release(), lock.locked())
    try:
        lock.release()
    except RuntimeError as error:
        print(error.args)

    order = []
    tasks = [asyncio.create_task(loops(name, lock, order)) for name in "abc"]
    for task in tasks:
        await task
    print(order)

    async with lock as got:
        print("with", got, lock.locked())
    try:
        async with lock:
            raise ValueError
    except ValueError:
        print("given back", not lock.locked())

    # Cancelled while it waits, and cancelled when it was promised the lock already.
    for promised in (False, True):
        print("--- promised", promised)
        await lock.acquire()
        tasks = [asyncio.create_task(takes(name, lock)) for name in "def"]
        await asyncio.sleep_ms(0)
        if promised:
            lock.release()
            print("between", lock.locked())
        tasks[0].cancel()
        if not promised:
            lock.release()
        for task in tasks:
            await ends(task)
        print(lock.locked())


asyncio.run(main())
