"""The loop object: a name for the one loop there is."""
# ruff: noqa: RUF006

import asyncio


async def answers(value):
    await asyncio.sleep_ms(0)
    return value


async def stops(loop):
    for number in range(3):
        print("round", number)
        loop.stop()
        loop.stop()
        await asyncio.sleep_ms(0)
    print("no more rounds")
    loop.stop()


loop = asyncio.get_event_loop()
print(asyncio.get_event_loop(16, 16) is loop, asyncio.get_event_loop(runq_len=1) is loop)
print(loop.run_until_complete(answers(1)))
task = loop.create_task(answers(2))
print(task.done(), loop.run_until_complete(task), task.done())
print(asyncio.run_until_complete(asyncio.create_task(answers(3))))
loop.create_task(stops(loop))
for number in range(4):
    print("run", number)
    loop.run_forever()
print(loop.stop(), loop.close())
print(asyncio.new_event_loop() is loop)

# Without a main task it runs until nothing is left that could wake up.
asyncio.create_task(answers(4))
asyncio.create_task(asyncio.Event().wait())
print(asyncio.run_until_complete())
