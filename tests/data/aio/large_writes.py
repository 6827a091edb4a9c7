"""More than a line takes at once: `write` keeps it, and `drain` lets others run meanwhile."""

import asyncio
import sys

HOST, PORT = "127.0.0.1", int(sys.argv[1])
SOL_SOCKET, SO_SNDBUF = 1, 7  # as Linux numbers them; MicroPython has no names for them
SMALL = b"\x00\x08\x00\x00"  # so the kernel takes little at once
UNIT = bytes(range(251))
UNITS = 1_200


class Blocked:
    """A line that takes three bytes, then nothing."""

    def __init__(self):
        self.took = b""

    def write(self, data):
        if self.took:
            return None
        self.took = bytes(data[:3])
        return 3


async def counts(turns):
    while True:
        turns[0] += 1
        await asyncio.sleep_ms(0)


async def serves(reader, writer):
    total = 0
    while True:
        data = await reader.read(20_000)
        if not data:
            break
        start = total % len(UNIT)
        if data != (UNIT * (len(data) // len(UNIT) + 2))[start : start + len(data)]:
            print("damaged at", total)
        total += len(data)
    print("server got", total)
    await writer.wait_closed()
    served.set()


async def sends():
    _, writer = await asyncio.open_connection(HOST, PORT)
    turns = [0]
    task = asyncio.create_task(counts(turns))
    writer.s.setsockopt(SOL_SOCKET, SO_SNDBUF, SMALL)
    writer.write(UNIT * UNITS)
    print("kept", len(writer.out_buf) > 0)
    before = turns[0]
    await writer.drain()
    print("others ran", turns[0] > before)
    before = turns[0]
    await writer.drain()
    print("also when all was sent", turns[0] > before)
    task.cancel()
    await writer.wait_closed()


served = asyncio.Event()


async def main():
    line = Blocked()
    stream = asyncio.StreamWriter(line, {"name": "a line"})
    print(stream.get_extra_info("name"), stream.s is line)
    stream.write(b"abcdef")
    stream.write(b"ghi")
    print(line.took, bytes(stream.out_buf))
    try:
        asyncio.StreamReader(line).get_extra_info("peername")
    except KeyError as error:
        print("KeyError", error.args)
    async with await asyncio.start_server(serves, HOST, PORT):
        await sends()
        await served.wait()


asyncio.run(main())
