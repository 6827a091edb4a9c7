"""A reader that gave up is gone: what comes later is for the next one, and nothing is lost."""

import asyncio
import sys

HOST, PORT = "127.0.0.1", int(sys.argv[1])


async def serves(reader, writer):
    while True:
        request = await reader.readexactly(2)
        print("server", request)
        if request == b"no":
            break
        await asyncio.sleep_ms(10)
        await writer.awrite(request.upper() + b"\n")
    await writer.wait_closed()


async def limited(reader, ms):
    try:
        return await asyncio.wait_for_ms(reader.readline(), ms)
    except asyncio.TimeoutError:
        return "nothing yet"


async def main():
    server = await asyncio.start_server(serves, HOST, PORT)
    async with server:
        reader, writer = await asyncio.open_connection(HOST, PORT)
        print(await limited(reader, 2))
        await writer.awrite(b"ab")
        print(await limited(reader, 5_000))
        print(await limited(reader, 2), await limited(reader, 2))

        task = asyncio.create_task(reader.read(100))
        await asyncio.sleep_ms(1)
        print("cancel", task.cancel())
        try:
            await task
        except asyncio.CancelledError:
            print("cancelled")
        await writer.awrite(b"cd")
        print(await reader.read(100))

        # One reads while the other writes, on the same stream.
        task = asyncio.create_task(reader.readline())
        await asyncio.sleep_ms(1)
        await writer.awrite(b"ef")
        print(await task)
        await writer.awrite(b"no")
        print(await reader.read())
        await writer.wait_closed()


asyncio.run(main())
