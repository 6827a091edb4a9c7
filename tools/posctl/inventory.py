"""The inventory: a small file that gives terminals names, so that nobody has to know their ports.

    [till-1]
    port = /dev/ttyUSB0
    baud = 9600
    serial = 0012345

    [kiosk]
    socket = /run/posagent/agent.sock

`serial` is optional and protects from a swapped cable: another terminal there is not worked on.
"""

from __future__ import annotations

import configparser
import os
from typing import NamedTuple

from agent.ground.errors import ConfigError, UsageError
from agent.ground.words import nearest, shown
from posctl.lines import BAUD

KEYS = ("port", "baud", "socket", "serial")
FILE_BYTES_MAX = 1 << 20


class Entry(NamedTuple):
    """One terminal of the inventory. `where` is as `posctl.client.connect` takes it; `serial` is ""
    where any terminal will do."""

    name: str
    where: str
    serial: str


def usual_path() -> str:
    """Where the inventory lies unless somebody names another file."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(home, "posctl", "terminals.ini")


def read_inventory(path: str | None) -> list[Entry]:
    """All entries in the file's order. No file at the usual place is an empty inventory; a named
    one must be there. Raises ConfigError for what cannot be read exactly."""
    if path is None and not os.path.exists(usual_path()):
        return []
    file_name = path or usual_path()
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        with open(file_name, encoding="utf-8") as file:
            parser.read_string(file.read(FILE_BYTES_MAX), file_name)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"the inventory {file_name} cannot be read: {reason}") from error
    except configparser.Error as error:
        reason = " ".join(error.message.split())
        raise ConfigError(f"the inventory {file_name} cannot be read: {reason}") from error
    return [_entry(file_name, parser[name]) for name in parser.sections()]


def entry_named(name: str, path: str | None) -> Entry:
    """The entry of that name. Raises UsageError naming the nearest one."""
    entries = read_inventory(path)
    for entry in entries:
        if entry.name == name:
            return entry
    file_name = path or usual_path()
    if not entries:
        raise UsageError(f"there is no terminal {shown(name)}: {file_name} names none")
    known = nearest(name, [entry.name for entry in entries])
    raise UsageError(f"{file_name} has no terminal {shown(name)}; did you mean {known}?")


def _entry(file_name: str, section: configparser.SectionProxy) -> Entry:
    where = f"{file_name}, [{section.name}]"
    for key in section:
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {shown(key)}; nearest: {nearest(key, KEYS)}")
    port, socket = section.get("port", ""), section.get("socket", "")
    if bool(port) == bool(socket):
        raise ConfigError(f"{where}: needs port or socket, one of them")
    if socket and "baud" in section:
        raise ConfigError(f"{where}: a socket has no baud rate")
    return Entry(section.name, _where(where, section, port, socket), section.get("serial", ""))


def _where(where: str, section: configparser.SectionProxy, port: str, socket: str) -> str:
    if socket:
        return f"socket:{os.path.expanduser(socket)}"
    baud = section.get("baud", str(BAUD))
    if not (baud.isascii() and baud.isdigit()):
        raise ConfigError(f"{where}: baud must be a number such as {BAUD}, not {shown(baud)}")
    return f"{port}@{baud}"
