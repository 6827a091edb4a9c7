"""The service key on flash: one line of 64 hexadecimal digits that only its owner may read.

Rules: nothing here puts a key, or a path that might be a mistyped key, into a sentence; a key that
others can read or replace is refused, since whoever knows it can make any code.
"""

from __future__ import annotations

import os
import stat

from agent.edges import flash
from agent.ground.errors import AgentError, ConfigError
from agent.ground.hmac import hmac_sha256

KEY_BYTES = 32
FILE_BYTES_MAX = 256  # a key, a line end, and room to tell a wrong file from a key
NAME = "service.key"
_HEX_DIGITS = b"0123456789abcdefABCDEF"


def key_path(state_dir: str) -> str:
    """Where the key of a terminal lies."""
    return f"{state_dir}/{NAME}"


def read_key(state_dir: str) -> bytes | None:
    """The service key of this terminal, or None where there is none.

    Raises ConfigError when what lies there cannot be used; without a key nobody is admin on a line,
    and everything else goes on.
    """
    path = key_path(state_dir)
    try:
        fd = flash.open_regular(path)
        try:
            check_owner(path, os.fstat(fd))
            data = os.read(fd, FILE_BYTES_MAX + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; set the key again") from error
    return parse_key(data, path)


def parse_key(data: bytes, name: str) -> bytes:
    """The key in the text of a key file. Raises ConfigError, which tells `name` and no digit."""
    text = data.strip(b" \t\r\n")
    if len(text) != 2 * KEY_BYTES or text.strip(_HEX_DIGITS):
        raise ConfigError(f"{name} must hold {2 * KEY_BYTES} hexadecimal digits and nothing else")
    key = bytes.fromhex(text.decode("ascii"))
    if key == key[:1] * KEY_BYTES:
        raise ConfigError(f"{name} holds one byte over and over; a key is made of random bytes")
    return key


def write_key(state_dir: str, key: bytes) -> None:
    """Make `key` the service key, durably.

    A power cut leaves the old key or the new one, whole; in between a copy of the new one may lie
    beside it, just as unreadable to others.
    """
    try:
        flash.make_folder(state_dir)
        flash.replace_file(key_path(state_dir), key.hex().encode() + b"\n", 0o600)
    except OSError as error:
        raise flash.refused(error, "writing the service key") from error


def remove_key(state_dir: str) -> bool:
    """Delete the service key, durably; whether there was one."""
    path = key_path(state_dir)
    try:
        left = flash.delete(path + ".tmp")
        found = flash.delete(path)
        if found or left:
            flash.sync_folder(state_dir)
    except OSError as error:
        raise flash.refused(error, "deleting the service key") from error
    return found


def fingerprint(key: bytes) -> str:
    """Eight digits by which two people can tell that they have the same key."""
    return hmac_sha256(key, b"fingerprint")[:4].hex()


def read_given(path: str) -> bytes:
    """The key in a file that somebody named, "-" for standard input. Raises AgentError."""
    try:
        data = _read_input() if path == "-" else flash.read_file(path, FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"the key file cannot be read: {error.strerror}") from error
    except ValueError:  # a NUL in the path
        raise ConfigError("the key file cannot be read: its name is no possible path") from None
    except AgentError:
        raise ConfigError("the key file is larger than a key") from None
    return parse_key(data, "standard input" if path == "-" else "the key file")


def _read_input() -> bytes:
    data = b""
    while len(data) <= FILE_BYTES_MAX:
        more = os.read(0, FILE_BYTES_MAX + 1 - len(data))
        if not more:
            break
        data += more
    return data


def check_owner(path: str, found: os.stat_result) -> None:
    """Refuse a key that others can read, or whose file they can replace. Raises ConfigError."""
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path} is open to others than its owner, so the key is spent; set another one"
        )
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to another user, who can replace it; set the key again")
