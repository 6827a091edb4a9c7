"""A peer that breaks off: the next read or write is told, as an OSError."""

import asyncio
import sys

HOST, PORT = "127.0.0.1", int(sys.argv[1])
SOL_SOCKET, SO_LINGER = 1, 13  # as Linux numbers them; MicroPython has no names for them
BREAK_OFF = b"\x01\0\0\0\0\0\0\0"  # linger for no time: closing sends a reset


async def told(name, aw):
    try:
        print(name, await aw)
    except OSError as error:
        print(name, "OSError", error.args[0])


async def serves(reader, writer):
    print(await reader.readline())
    gone = asyncio.Event()
    breaks_off.append(gone)
    await gone.wait()
    await told("read", reader.read(100))
    # After the first error the line is as good as closed.
    await told("read again", reader.read(100))
    try:
        writer.write(b"x")
        await writer.drain()
        print("written")
    except OSError as error:
        print("write OSError", error.args[0])
    await writer.wait_closed()
    served.set()


breaks_off = []
served = asyncio.Event()


async def main():
    async with await asyncio.start_server(serves, HOST, PORT):
        _, writer = await asyncio.open_connection(HOST, PORT)
        writer.s.setsockopt(SOL_SOCKET, SO_LINGER, BREAK_OFF)
        await writer.awrite(b"hello\nhalf a ")
        while not breaks_off:
            await asyncio.sleep_ms(1)
        await writer.wait_closed()
        breaks_off[0].set()
        await served.wait()
        try:
            writer.write(b"x")
            await writer.drain()
        except OSError as error:
            print("closed by us: OSError", error.args[0])


asyncio.run(main())
