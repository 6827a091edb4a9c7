"""The two that reset or restart a terminal when nothing moves: /dev/watchdog and systemd.

Both are fed on marks of progress only, by the supervisor, never by a timer: what feeds a watchdog
by the clock defeats it.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WDIOC_SETTIMEOUT = 0xC0045706  # linux/watchdog.h: _IOWR('W', 6, int)


class Watchdog:
    """The hardware watchdog of the profile, or nothing where there is none."""

    __slots__ = ("_fd", "timeout_s")

    def __init__(self, device: str | None, timeout_s: int | None) -> None:
        self._fd = -1
        self.timeout_s = timeout_s if device is not None else None
        if device is None:
            return
        try:
            self._fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return  # another program feeds it; its deadline is then that program's affair
        if timeout_s is not None:
            try:
                fcntl.ioctl(self._fd, WDIOC_SETTIMEOUT, timeout_s.to_bytes(4, "little"))
            except OSError:
                pass  # a driver with a fixed timeout

    @property
    def armed(self) -> bool:
        """Whether a device is open and must be fed."""
        return self._fd >= 0

    def feed(self) -> None:
        """Tell the hardware that there was progress."""
        if self._fd >= 0:
            try:
                os.write(self._fd, b"\0")
            except OSError:
                pass  # it will bite, which is what it is for

    def close(self) -> None:
        """Disarm it properly: without the V the driver takes the close for a crash."""
        if self._fd >= 0:
            try:
                os.write(self._fd, b"V")
            except OSError:
                pass
            os.close(self._fd)
            self._fd = -1


class Notifier:
    """systemd's notification socket, where the unit set one."""

    __slots__ = ("_socket", "_target")

    def __init__(self, address: str | None) -> None:
        self._socket: Any = None
        self._target = address or ""
        if not address:
            return
        import _socket

        if address.startswith("@"):
            self._target = "\0" + address[1:]
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, text: str) -> None:
        """One datagram; a manager that does not listen is no reason to stop."""
        if self._socket is not None:
            try:
                self._socket.sendto(text.encode(), self._target)
            except OSError:
                pass

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
