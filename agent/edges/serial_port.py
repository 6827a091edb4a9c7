"""The service port: opened by pyserial, 8N1 without flow control, for us alone.

pyserial is loaded when a port is configured and not before. Where it is missing the port stays
closed and the reason is told; a terminal upgrades itself without one.
"""

from __future__ import annotations

import os
import stat

from agent.ground.errors import ConfigError, sentence_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SerialPort:
    """An open port; `fd` is its descriptor, not blocking."""

    __slots__ = ("_port", "fd")

    def __init__(self, port: Any) -> None:
        self._port = port
        self.fd: int = port.fileno()

    def close(self) -> None:
        """Close the port; one that has vanished is closed all the same."""
        try:
            self._port.close()
        except OSError:
            pass


def open_port(path: str, baud: int) -> SerialPort:
    """Open the port exclusively. Raises ConfigError: missing, no terminal device, busy."""
    import termios

    try:
        import serial
    except ImportError as error:
        raise ConfigError(
            f"pyserial is not installed, so {path} stays closed; install it, or set library_dir"
        ) from error
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            raise ConfigError(f"{path} is no terminal device; correct serial_device")
        try:
            port = serial.Serial(path, baud, timeout=0, write_timeout=0, exclusive=True)
        except termios.error as error:  # it went away while it was being set up
            raise OSError(*error.args[:2]) from error
    except serial.SerialException as error:
        cause = error.__context__
        if isinstance(cause, BlockingIOError):
            raise ConfigError(f"{path} is busy: another program has it") from error
        if "Could not configure" in str(error) or "not a tty" in str(error).lower():
            raise ConfigError(f"{path} is no terminal device; correct serial_device") from error
        raise ConfigError(f"{path} cannot be opened: {error.strerror or error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {sentence_for(error)}") from error
    _claim(port)
    return SerialPort(port)


def _claim(port: Any) -> None:
    """Keep others out who do not ask for the lock that pyserial takes: they are refused an open."""
    import fcntl
    import termios

    try:
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
    except OSError:
        pass  # some gadget drivers have none; the lock stays
