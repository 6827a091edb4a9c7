"""A serial port that real programs open by its name: one pty pair, and what a pty lacks.

Rules: nothing here waits. Linux only, as ptys with names and inotify are.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import termios
import tty

IN_CLOSE = 0x8 | 0x10  # linux/inotify.h: IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
EVENTS_BYTES = 4096
UNSET_SPEED = termios.B38400  # what a pty has until a program sets another one
SPEEDS = {
    9600: termios.B9600,
    19200: termios.B19200,
    38400: termios.B38400,
    57600: termios.B57600,
    115200: termios.B115200,
}
_LIBC = ctypes.CDLL(None)


class Port:
    """A pty pair: `name` is the device that a program opens, `fd` the wire's end of it.

    The device is kept open here, so that a program that comes and goes hangs up nothing. That a
    program wanted it for itself (TIOCEXCL) would outlive the program on a pty, other than on a real
    port; whoever minds that calls `let_in` when there is something to read from `watch()`.
    """

    def __init__(self) -> None:
        self.fd, self._device = pty.openpty()
        tty.setraw(self._device)
        os.set_blocking(self.fd, False)
        self.name = os.ttyname(self._device)
        self._closings = -1

    def take(self, count: int) -> bytes:
        """What the program has sent, at most so much; b"" when there is nothing."""
        try:
            return os.read(self.fd, count)
        except BlockingIOError:
            return b""

    def give(self, data: bytes) -> int:
        """Hand bytes to the program; how many were lost because it did not read those before."""
        lost = len(data)
        while lost:
            try:
                lost -= os.write(self.fd, data[-lost:])
            except BlockingIOError:
                break
        return lost

    def is_at(self, baud: int) -> bool:
        """Whether the program set this speed, or none."""
        speed = termios.tcgetattr(self._device)[5]
        return speed in (UNSET_SPEED, SPEEDS[baud])

    def watch(self) -> int:
        """A descriptor that says when a program has closed the device; -1 where there is none."""
        self._closings = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._closings >= 0:
            _LIBC.inotify_add_watch(self._closings, os.fsencode(self.name), IN_CLOSE)
        return self._closings

    def let_in(self) -> None:
        """Somebody closed the device, and so does not want it for himself any more."""
        try:
            while self._closings >= 0 and os.read(self._closings, EVENTS_BYTES):
                pass
        except BlockingIOError:
            pass
        fcntl.ioctl(self._device, termios.TIOCNXCL)

    def flush(self) -> None:
        """Lose what the program sent and what it has not read."""
        termios.tcflush(self._device, termios.TCIOFLUSH)
        while self.take(EVENTS_BYTES):
            pass

    def close(self) -> None:
        """The device vanishes; a program that has it open is hung up on."""
        for fd in (self._device, self.fd, self._closings):
            if fd >= 0:
                os.close(fd)
