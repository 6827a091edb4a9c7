"""Sockets of this machine: a Unix socket in a folder of our own, and loopback when configured.

The folder's mode decides who comes in at all (0750, the socket 0660); the kernel then says who it
is. A path may be longer than a socket's address: the folder is opened, and its descriptor names it.
"""

from __future__ import annotations

import _socket
import os

from agent.edges.flash import make_folder
from agent.ground.errors import ConfigError, sentence_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER_MODE = 0o750
SOCKET_MODE = 0o660
BACKLOG = 16
SO_PEERCRED_BYTES = 12  # struct ucred: pid, uid, gid, 4 bytes each


def listen_local(path: str, gid: int | None) -> Any:
    """A listening socket at `path`, that of an agent which is gone replaced. The caller holds the
    agent's lock, so whoever left a socket there is gone. Raises ConfigError, with nothing changed
    where the folder or the name is not ours."""
    folder = os.path.dirname(path)
    try:
        make_folder(folder, FOLDER_MODE)
        _check_ours(folder)
        _remove_stale(path)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            old = os.umask(0o777 & ~SOCKET_MODE)
            try:
                bind_in(listener, folder, os.path.basename(path))
            finally:
                os.umask(old)
            if gid is not None:
                os.chown(folder, -1, gid)
                os.chown(path, -1, gid)
            os.chmod(folder, FOLDER_MODE)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"the socket {path} cannot be made: {sentence_for(error)}") from error
    return listener


def _check_ours(folder: str) -> None:
    found = os.stat(folder)
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{folder} belongs to user {found.st_uid}, not to the agent; remove it")
    if found.st_mode & 0o002:
        raise ConfigError(f"{folder} may be written by everybody; correct its mode to 0750")


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if found.st_mode & 0o170000 != 0o140000:
        raise ConfigError(f"{path} is there and is no socket; remove it")
    os.unlink(path)


def bind_in(listener: Any, folder: str, name: str) -> None:
    """Bind to a name in a folder, however long the way there is."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def connect_local(path: str, timeout_s: float) -> Any:
    """A connection to the socket at `path`; OSError when nobody listens."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        peer.settimeout(timeout_s)
        peer.connect(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
    except OSError:
        peer.close()
        raise
    finally:
        os.close(fd)
    return peer


def listen_loopback(port: int) -> Any:
    """A listening TCP socket of this machine alone. Raises ConfigError."""
    kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
    listener = _socket.socket(_socket.AF_INET, kind)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port} cannot be used: {sentence_for(error)}") from error
    return listener


def accept(listener: Any) -> Any:
    """The next connection, not blocking, or None when there is none after all."""
    try:
        fd, _ = listener._accept()
    except OSError:
        return None
    peer = _socket.socket(listener.family, _socket.SOCK_STREAM, 0, fileno=fd)
    peer.setblocking(False)
    return peer


def user_of(peer: Any) -> tuple[int, int]:
    """(uid, gid) of the process at the other end, as it was when it connected."""
    found = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, SO_PEERCRED_BYTES)
    numbers = [int.from_bytes(found[at : at + 4], "little", signed=True) for at in (4, 8)]
    return numbers[0], numbers[1]
