"""What the daemon is held against: other programs that serve or switch tasks, as plain as can be.

Started as programs of their own, `python -I -S reference_lines.py WAY ...`:

- `asyncio SOCKET LINE ANSWER`: the standard library's streams and `json` answer `status`; LINE, a
  terminal, is open and read as well
- `echo SOCKET ANSWER`: one `select.poll`, one read, one write per call, and no JSON at all
- `echo-agent SOCKET ANSWER`: the same echo on the agent's own loop and line
- `switches-asyncio COUNT`, `switches-agent COUNT`: ten tasks that only pause, and the CPU they took

ANSWER is a file with the daemon's own answer. A server sends READY=1 once it listens.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from types import ModuleType
    from typing import Any, Callable

READ_BYTES = 4096
TASKS = 10


def serve_asyncio(path: str, line: str, answer_file: str) -> None:
    """Answer each line with the daemon's status, its free space looked up anew each time."""
    import asyncio
    import json

    with open(answer_file, encoding="ascii") as file:
        status: dict[str, Any] = json.load(file)["result"]
    data = os.path.dirname(answer_file)

    def answer_to(request: dict[str, Any]) -> dict[str, Any]:
        space = os.statvfs(data)
        result = dict(status, free_kib=space.f_bavail * space.f_frsize // 1024)
        return {"jsonrpc": "2.0", "id": request["id"], "result": result}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readline():
            text = json.dumps(answer_to(json.loads(request)), separators=(",", ":"))
            writer.write(text.encode() + b"\n")
            await writer.drain()
        writer.close()

    async def serve() -> None:
        port = os.open(line, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(port, os.read, port, READ_BYTES)
        server = await asyncio.start_unix_server(talk, path)
        _say_ready()
        await server.serve_forever()

    asyncio.run(serve())


def serve_echo(path: str, answer_file: str) -> None:
    """Send the same bytes for each line that comes, to one peer after the other."""
    import select
    import socket

    with open(answer_file, "rb") as file:
        answer = file.read()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    _say_ready()
    while True:
        connection, _ = listener.accept()
        fd = connection.fileno()
        os.set_blocking(fd, False)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while True:
            poller.poll()
            data = os.read(fd, READ_BYTES)
            if not data:
                break
            if data.endswith(b"\n"):
                os.write(fd, answer)
        connection.close()


def serve_agent_echo(path: str, answer_file: str) -> None:
    """The same by what carries the daemon's bytes, without anything that understands them."""
    import _socket

    _find_agent()
    from agent import aio
    from agent.edges.local_socket import accept
    from agent.links.peer import HungUp, Peer

    with open(answer_file, "rb") as file:
        answer = file.read()

    async def serve() -> None:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(1)
        _say_ready()
        while True:
            await aio.wait_readable(listener.fileno())
            connection = accept(listener)
            peer = Peer(connection.fileno())
            try:
                while (await peer.read()).endswith(b"\n"):
                    peer.write(answer)
                    await peer.drained()
            except HungUp:
                peer.forget()
            connection.close()

    aio.run(serve())


def _find_agent() -> None:
    sys.path.insert(0, os.path.abspath(__file__ + "/../../.."))


def _say_ready() -> None:
    import _socket

    told = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    told.connect(os.environ["NOTIFY_SOCKET"])
    told.send(b"READY=1")
    told.close()


def switches_asyncio(count: str) -> None:
    """Print the CPU seconds of so many turns on the standard library's loop."""
    import asyncio

    _print_switches(asyncio, int(count))


def switches_agent(count: str) -> None:
    """The same on the agent's own."""
    _find_agent()
    from agent import aio

    _print_switches(aio, int(count))


def _print_switches(library: ModuleType, count: int) -> None:
    import time

    async def pause(times: int) -> None:
        for _ in range(times):
            await library.sleep(0)

    async def all_of_them() -> float:
        begun = time.process_time()
        tasks = [library.create_task(pause(count // TASKS)) for _ in range(TASKS)]
        for task in tasks:
            await task
        return time.process_time() - begun

    print(library.run(all_of_them()))


WAYS: dict[str, Callable[..., None]] = {
    "asyncio": serve_asyncio,
    "echo": serve_echo,
    "echo-agent": serve_agent_echo,
    "switches-asyncio": switches_asyncio,
    "switches-agent": switches_agent,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](*sys.argv[2:])
