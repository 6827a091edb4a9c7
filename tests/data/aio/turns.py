"""One queue in order of (millisecond, arrival): who asks first is served first."""

import asyncio


async def steps(name, pauses):
    for pause in pauses:
        print(name, pause)
        await asyncio.sleep_ms(pause)
    print(name, "ends")


async def main():
    tasks = [
        asyncio.create_task(steps("one", (0, 0, 0))),
        asyncio.create_task(steps("two", (-7, -7, -7))),
        asyncio.create_task(steps("late", (40,))),
        asyncio.create_task(steps("early", (15,))),
        asyncio.create_task(steps("three", ())),
    ]
    print("main")
    for task in tasks:
        await task
        print("main awaited one")


asyncio.run(main())
