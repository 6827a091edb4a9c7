"""`console`: the technician's console on standard input and output, for a line that getty owns.

The daemon is at the other end; this process only carries bytes, and puts the terminal into raw mode
so that each key arrives as it is typed. Ctrl-] ends it, as does a hang-up.
"""

from __future__ import annotations

import os

from agent import aio
from agent.edges.raw_terminal import RawTerminal
from agent.ground.errors import EXIT_OK, Busy, UsageError
from agent.links.client import connect
from agent.links.peer import HungUp, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command
    from agent.edges.config import Config

LEAVE = b"\x1d"  # Ctrl-], as telnet has it: the daemon's console knows no such key


def console(command: Command, config: Config) -> int:
    """Carry bytes until one end hangs up. Raises Busy when no daemon runs."""
    if command.json:
        raise UsageError("the console is for people; it has --json behind each of its commands")
    client = connect(config.run_dir + "/agent.sock")
    if client is None:
        raise Busy("no agent runs on this terminal; start `posagent run`")
    client.call("console", {})
    connection = client.hand_over()
    os.set_blocking(connection, False)
    try:
        with RawTerminal(0):
            aio.run(_carry(Peer(0, 1), Peer(connection)))
    finally:
        aio.shutdown()
        os.close(connection)
    return EXIT_OK


async def _carry(person: Peer, daemon: Peer) -> None:
    over = aio.Event()
    for source, target in ((person, daemon), (daemon, person)):
        aio.create_task(_copy(source, target, over))
    await over.wait()


async def _copy(source: Peer, target: Peer, over: aio.Event) -> None:
    try:
        while True:
            data = await source.read()
            if source.fd == 0 and LEAVE in data:
                break
            target.write(data)
            await target.drained()
    except HungUp:
        pass
    finally:
        over.set()
