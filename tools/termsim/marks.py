"""The service manager's end of a daemon: it hears each mark of progress, and can count them.

A daemon tells systemd of every mark of a run (NOTIFY_SOCKET); so a power cut can come at a certain
one without anything in the agent knowing of it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable

DATAGRAM_BYTES_MAX = 4096
_numbers = itertools.count(1)


class Marks:
    """Calls `then` at mark `number` from `begin` on. A `with` block; None listens to nothing."""

    def __init__(self, number: int | None, then: Callable[[], None]) -> None:
        self._number = number or 0
        self._left = 0  # nothing is counted yet
        self._then = then
        self._socket: socket.socket | None = None
        self.environment: dict[str, str] = {}
        if number is not None:
            # A name without a file: it vanishes with the server, and no folder's path is too long.
            name = f"termsim-{os.getpid()}-{next(_numbers)}"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(f"\0{name}")
            self.environment["NOTIFY_SOCKET"] = f"@{name}"

    def __enter__(self) -> Marks:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def begin(self) -> None:
        """Count what comes from now on."""
        if self._socket is not None:
            self._hear()
        self._left = self._number

    def _hear(self) -> None:
        """Take all that waits: the kernel keeps ten, and the daemon does not wait for us."""
        assert self._socket is not None
        try:
            while True:
                self._count(self._socket.recv(DATAGRAM_BYTES_MAX))
        except BlockingIOError:
            pass

    def _count(self, message: bytes) -> None:
        if message.startswith(b"EXTEND_TIMEOUT_USEC=") and b"STATUS=" in message and self._left:
            self._left -= 1
            if not self._left:
                self._then()
