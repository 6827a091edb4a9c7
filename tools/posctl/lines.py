"""A serial port or a socket as bytes: opened for us alone, read with a time limit, closed.

Every way in which that fails is told once, here, with what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import NamedTuple

import serial

from agent.edges.holders import holders_of
from posctl.faults import LineLost, PortError

__all__ = [
    "BAUD",
    "Line",
    "LineLost",
    "Place",
    "PortError",
    "SerialLine",
    "SocketLine",
    "open_line",
    "place_of",
]

BAUD = 115_200  # what device profiles say unless they say otherwise
_BAUD_MAX = 4_000_000
_WRITE_S = 3.0  # a request of the greatest length takes a second at 9600 baud
_READ_BYTES = 4096
_PATH_BYTES_MAX = 107  # of a socket's address


class Place(NamedTuple):
    """Where a terminal is: `kind` is `serial` or `socket`."""

    kind: str
    path: str
    baud: int = BAUD

    def __str__(self) -> str:
        return f"socket:{self.path}" if self.kind == "socket" else f"{self.path}@{self.baud}"


def place_of(where: str) -> Place:
    """`/dev/ttyUSB0`, `/dev/ttyUSB0@9600` or `socket:/run/posagent/agent.sock` as a place."""
    kind, colon, path = where.partition(":")
    if colon and kind == "socket":
        return Place("socket", path)
    path, at, baud = where.rpartition("@")
    if not at or os.path.lexists(where):
        return Place("serial", where)
    if not (baud.isascii() and baud.isdigit() and 0 < int(baud) <= _BAUD_MAX):
        raise PortError("baud", f"{baud!r} is no baud rate; behind @ stands one, such as 115200")
    return Place("serial", path, int(baud))


def open_line(place: Place) -> Line:
    """The line of a place. Raises PortError."""
    return SocketLine(place.path) if place.kind == "socket" else SerialLine(place.path, place.baud)


class Line:
    """Bytes to a terminal and back. `baud` is 0 where there is no rate; `is_exact` tells that no
    byte gets lost or changed on the way."""

    name: str
    baud: int
    is_exact: bool

    def send(self, data: bytes) -> None:
        """All of it, or what the other end takes. Raises LineLost."""
        raise NotImplementedError

    def receive(self, wait_s: float) -> bytes:
        """What comes within that time, as soon as something comes; b"" for nothing. Raises
        LineLost."""
        raise NotImplementedError

    def close(self) -> None:
        """Give it back; one that is gone is closed all the same."""
        raise NotImplementedError


class SerialLine(Line):
    """A serial port, 8N1 without flow control, which no other program can open meanwhile."""

    is_exact = False

    def __init__(self, path: str, baud: int = BAUD) -> None:
        self.name = path
        self.baud = baud
        if os.name == "posix":
            _check_is_port(path)
        try:
            # Exclusive: locked before it is set up, so that nobody else's rate and bytes are lost.
            self._port = serial.Serial(
                path, baud, timeout=0, write_timeout=_WRITE_S, exclusive=True
            )
        except (OSError, ValueError) as error:  # a SerialException is an OSError
            raise _not_opened(path, error) from error
        _claim(self._port)

    def send(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except serial.SerialTimeoutException:
            self._drop_unsent()  # nobody takes it; the next frame must not queue up behind it
        except OSError as error:
            raise self._lost() from error

    def receive(self, wait_s: float) -> bytes:
        try:
            self._port.timeout = max(wait_s, 0)
            data: bytes = self._port.read(1)
            if data:
                data += self._port.read(min(self._port.in_waiting, _READ_BYTES))
            return data
        except OSError as error:
            raise self._lost() from error

    def close(self) -> None:
        try:
            _claim(self._port, False)  # a port that stays open elsewhere would stay refused
            self._port.close()
        except OSError:
            pass

    def _drop_unsent(self) -> None:
        try:
            self._port.reset_output_buffer()
        except Exception as error:  # termios.error is no OSError
            raise self._lost() from error

    def _lost(self) -> LineLost:
        return LineLost(f"{self.name} is gone: the cable was pulled, or its adapter; plug it in")


def _claim(port: serial.Serial, mine: bool = True) -> None:
    """Keep those out, too, who do not ask for the lock; or let them in again."""
    if os.name == "posix":
        import fcntl
        import termios

        try:
            fcntl.ioctl(port.fileno(), termios.TIOCEXCL if mine else termios.TIOCNXCL)
        except OSError:
            pass  # some drivers have none; the lock stays


def _check_is_port(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        gone = f" (it leads to {os.readlink(path)}, which is gone)" if os.path.islink(path) else ""
        raise PortError(
            "missing",
            f"there is no port {path}{gone}; plug the cable in, `posctl ports` lists what is there",
        ) from None
    except OSError as error:
        raise _not_opened(path, error) from error
    if stat.S_ISSOCK(mode):
        raise PortError("kind", f"{path} is a socket; say so: `posctl -s {path}`")
    if not stat.S_ISCHR(mode):
        raise PortError("kind", f"{path} is no serial port; `posctl ports` lists those there are")


def _not_opened(path: str, error: Exception) -> PortError:
    """The sentence for a port that would not open."""
    code = getattr(error, "errno", None)
    if code in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK):
        return PortError("busy", f"{path} is busy: {_holders(path)}")
    if code in (errno.EACCES, errno.EPERM):
        return PortError("denied", _denied(path))
    if code == errno.ENOENT:
        return PortError("missing", f"{path} is gone again; plug the cable in")
    text = str(error)
    if "Could not configure" in text or "Inappropriate ioctl" in text:
        return PortError(
            "kind", f"{path} is no serial port, or none is behind it; see `posctl ports`"
        )
    if isinstance(error, ValueError):
        return PortError("baud", f"{path} does not know this baud rate")
    reason = os.strerror(code) if isinstance(code, int) else text
    return PortError("other", f"{path} cannot be opened: {reason}")


def _holders(path: str) -> str:
    """Who has it, as far as this user may see."""
    try:
        found = os.stat(path)
        known, _ = holders_of((found.st_dev, found.st_ino), (os.getpid(),))
    except OSError:
        known = {}
    names = sorted({repr(holder) for holder in known.values()})
    who = ", ".join(names) or "another program"
    return f"{who} has it open; close that first"


def _denied(path: str) -> str:
    """Whom it is for, and how to become one of them."""
    import grp
    import pwd

    try:
        found = os.stat(path)
        user = pwd.getpwuid(os.geteuid()).pw_name
    except (OSError, KeyError):
        return f"{path} may not be opened by this user"
    try:
        group, members = (entry := grp.getgrgid(found.st_gid)).gr_name, entry.gr_mem
    except KeyError:
        group, members = str(found.st_gid), []
    if found.st_mode & 0o060 != 0o060:
        return f"{path} may not be opened by {user}: its mode is {found.st_mode & 0o777:04o}"
    if user in members:
        return f"{path} is for group {group}, of which {user} is a member from the next login on"
    return (
        f"{path} is for group {group} and {user} is not in it; "
        f"`sudo usermod -aG {group} {user}`, then log in again"
    )


class SocketLine(Line):
    """The agent's socket on this machine."""

    baud = 0
    is_exact = True

    def __init__(self, path: str, wait_s: float = 5.0) -> None:
        self.name = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(wait_s)
            _connect(self._socket, path)
        except OSError as error:
            self._socket.close()
            raise _not_connected(path, error) from error

    def send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(_WRITE_S)
            self._socket.sendall(data)
        except socket.timeout:
            raise LineLost(f"the agent behind {self.name} takes no more; is it stopped?") from None
        except OSError:
            pass  # it hung up; why it did may have been said before, and `receive` tells the rest

    def receive(self, wait_s: float) -> bytes:
        try:
            self._socket.settimeout(max(wait_s, 0.001))  # 0 would be another mode
            data = self._socket.recv(_READ_BYTES)
        except socket.timeout:
            return b""
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        return data

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For whoever waits for several things at once."""
        return self._socket.fileno()

    def _lost(self) -> LineLost:
        return LineLost(f"the agent behind {self.name} hung up; it may be starting again")


def _connect(connection: socket.socket, path: str) -> None:
    """Connect, however long the way is: a socket's address is short, a descriptor's is too."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        connection.connect(path)
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _not_connected(path: str, error: OSError) -> PortError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return PortError("missing", f"there is no socket {path}; start `posagent run` there")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PortError("denied", _denied(path))
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        is_socket = True
    if not is_socket:
        return PortError("kind", f"{path} is no socket; a serial port is named by `posctl -p`")
    if error.errno == errno.ECONNREFUSED:
        return PortError("missing", f"nobody listens at {path}; start `posagent run` there")
    return PortError("other", f"{path} cannot be opened: {error.strerror or error}")
