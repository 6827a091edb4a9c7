"""`run` ends with its main task; the others stay as they are and go on in the next one."""
# ruff: noqa: RUF006

import asyncio


async def ticker(name):
    try:
        for number in range(7):
            print(name, number)
            await asyncio.sleep_ms(0)
    finally:
        print(name, "finally")


async def main(value, turns):
    for turn in range(turns):
        print("main turn", turn)
        await asyncio.sleep_ms(0)
    return value


async def starts():
    asyncio.create_task(ticker("tick"))
    return await main("first", 2)


async def raises():
    await asyncio.sleep_ms(0)
    raise ValueError("from main", 3)


print(asyncio.run(starts()))
print("between")
print(asyncio.run(main("second", 3)))
try:
    asyncio.run(raises())
except ValueError as error:
    print(error.args)
print(asyncio.run(main(None, 1)))
print(asyncio.run(main("the last", 4)))
asyncio.new_event_loop()
print(asyncio.run(main("nobody ticks", 1)))
