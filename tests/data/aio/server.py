"""Streams over TCP: every way to read, both ways to write, and how a server ends."""

import asyncio
import sys

HOST, PORT = "127.0.0.1", int(sys.argv[1])


async def serves(reader, writer):
    print("peer", type(writer.get_extra_info("peername")) is not str, reader is writer)
    while True:
        line = await reader.readline()
        print("server", line)
        if not line.endswith(b"\n"):
            break
        writer.write(b"echo ")
        writer.write(line)
        await writer.drain()
        if line == b"bye\n":
            await writer.awrite("0123456789abcdef", 3, 4)
            await writer.awritestr("text")
            await writer.awrite(b"tail", 2)
            break
    writer.close()
    await writer.wait_closed()
    print("server closed")
    served.set()


async def asks():
    reader, writer = await asyncio.open_connection(HOST, PORT)
    writer.write("first\n")
    await writer.drain()
    print(await reader.readline())
    await writer.awrite(b"sec")
    await asyncio.sleep_ms(5)
    await writer.awrite(b"ond\n")
    print(await reader.readexactly(9), await reader.read(2))
    buffer = bytearray(20)
    await writer.awrite(b"third\n")
    count = await reader.readinto(buffer)
    print(count, buffer)
    writer.write(b"bye\n")
    await writer.drain()
    print(await reader.readexactly(0), await reader.read())
    print(await reader.read(), await reader.read(5), await reader.readline())
    try:
        await reader.readexactly(1)
    except EOFError as error:
        print("EOFError", error.args)
    print(await reader.readinto(buffer))
    await writer.aclose()


async def gives_up():
    _, writer = await asyncio.open_connection(HOST, PORT)
    await writer.awrite(b"no end")
    writer.close()
    await writer.wait_closed()


served = asyncio.Event()


async def main():
    server = await asyncio.start_server(serves, HOST, PORT)
    try:
        await asyncio.start_server(serves, HOST, PORT)
    except OSError:
        print("taken")
    async with server:
        for client in (asks, gives_up):
            await client()
            await served.wait()
            served.clear()
    print("server ended")

    server = await asyncio.start_server(serves, HOST, PORT, backlog=1)
    server.close()
    print(await server.wait_closed(), await server.wait_closed())

    # A wait for its end passes a cancel on to the server, and is told of it.
    async def waits():
        server = await asyncio.start_server(serves, HOST, PORT)
        await server.wait_closed()

    for turns in range(4):
        task = asyncio.create_task(waits())
        for _ in range(turns):
            await asyncio.sleep_ms(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            print("cancelled after", turns)
    try:
        reader, _ = await asyncio.open_connection(HOST, PORT)
        await reader.read(1)
    except OSError:
        print("nobody there")


asyncio.run(main())
