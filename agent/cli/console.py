"""`console`: the technician's console on standard input and output, for a line that getty owns.

The daemon is at the other end; this process only carries bytes, and puts the terminal into raw mode
so that each key arrives as it is typed. Ctrl-] ends it, as does a hang-up.
"""

from __future__ import annotations

import os

from agent import aio
from agent.edges import process
from agent.edges.raw_terminal import RawTerminal
from agent.ground.errors import EXIT_OK, Busy, UsageError
from agent.links.client import connect
from agent.links.peer import HungUp, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command
    from agent.edges.config import Config

LAST_ANSWER_MS = 1000
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
    told = aio.ThreadSafeFlag()
    try:
        with RawTerminal(0), process.Signals(told.set):
            aio.run(_carry(Peer(0, 1), Peer(connection), told))
    finally:
        aio.shutdown()
        os.close(connection)
    return EXIT_OK


async def _carry(person: Peer, daemon: Peer, told: aio.ThreadSafeFlag) -> None:
    """Until one end hangs up, somebody says stop, or Ctrl-] was typed."""
    over = aio.Event()
    aio.create_task(_answers(daemon, person, over))
    aio.create_task(_keys(person, daemon, over))
    aio.create_task(_stop(told, over))
    await over.wait()


async def _keys(person: Peer, daemon: Peer, over: aio.Event) -> None:
    try:
        while True:
            data = await person.read()
            if LEAVE in data:
                break
            daemon.write(data)
            await daemon.drained()
    except HungUp:
        # A script's last line: what it asked for is still to be answered.
        await aio.sleep_ms(LAST_ANSWER_MS)
    finally:
        over.set()


async def _answers(daemon: Peer, person: Peer, over: aio.Event) -> None:
    try:
        while True:
            person.write(await daemon.read())
            await person.drained()
    except HungUp:
        pass
    finally:
        over.set()


async def _stop(told: aio.ThreadSafeFlag, over: aio.Event) -> None:
    await told.wait()
    over.set()
