"""The service desk's end of a code: what a technician reads out, answered from a key file.

Rules: a key comes from a file or from standard input, never from the command line, where the list
of processes and the shell's history would keep it; nothing here prints a key or what might be one.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any, NamedTuple

from agent.edges import keyfile
from agent.ground.errors import ConfigError, UsageError
from agent.links import access
from agent.links.commands import TypingError, canonical, understood
from agent.links.console_text import losses, sentence
from posctl.show import BAD, GOOD, Fact, Part, clean

SPOKEN_CHARS_MAX = 1000
_SPOKEN = re.compile(
    r"(?:read to the desk:)?\s*(?:SN\s+)?(?P<serial>\S.*?)\s+#\s*(?P<counter>\d{1,15})\s+"
    r"(?P<nonce>[0-9A-Za-z]{4}[ -]?[0-9A-Za-z]{4})(?:\s+(?:for:\s*)?(?P<command>\S.*))?",
    re.IGNORECASE,
)
_EXAMPLE = "SN 0012345  #7  K7QM-2XPD  restore 41"
_KEY_DIGITS = 32  # half a key on the command line is as bad as a whole one


class Spoken(NamedTuple):
    """What a code is bound to, as the terminal told it."""

    serial: str
    counter: int
    nonce: str
    command: str


def spoken_of(text: str) -> Spoken:
    """What was read out: the console's line, or in JSON what `challenge` or a refused call answers.
    Raises UsageError, which repeats nothing of it."""
    text = text.strip()
    if len(text) > SPOKEN_CHARS_MAX:
        raise UsageError("that is too long to be what a terminal's console prints")
    found = _of_object(text) if text.startswith("{") else _of_line(text)
    if found is None:
        raise UsageError(f"give what the terminal's console prints, such as {_EXAMPLE!r}")
    return found


def lacks_command(text: str) -> bool:
    """Whether it is the first of two lines: a long command stands in one of its own."""
    found = _SPOKEN.fullmatch(text.strip())
    return found is not None and found["command"] is None


def _of_line(text: str) -> Spoken | None:
    found = _SPOKEN.fullmatch(text)
    if found is None or found["command"] is None:
        return None
    command = " ".join(found["command"].split())
    return Spoken(found["serial"], int(found["counter"]), found["nonce"], command)


def _of_object(text: str) -> Spoken | None:
    try:
        said = json.loads(text)
        if "error" in said:  # the whole answer of a call that needs a code
            said = said["error"]["facts"]["challenge"]
        values = (said["serial"], said["counter"], said["nonce"], said["command"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_whole = type(values[1]) is int and all(type(values[at]) is str for at in (0, 2, 3))
    return Spoken(*values) if is_whole else None


def read_key(path: str, what: str) -> bytes:
    """The key in a file that only its owner may read, or on standard input for "-". Raises
    UsageError for a key that was typed, ConfigError for a file that is none."""
    if len(path) >= _KEY_DIGITS and not path.strip("0123456789abcdefABCDEF"):
        raise UsageError(
            "a key is never typed on the command line, where others can read it; that one is "
            f"spent. Give the file of the {what} key, or - for standard input"
        )
    if path != "-":
        _check_private(path, what)
    return keyfile.read_given(path)


def _check_private(path: str, what: str) -> None:
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is no possible path"
        raise ConfigError(f"the {what} key's file cannot be read: {reason}") from error
    if mode & 0o077:
        raise ConfigError(
            f"the {what} key's file is open to others (mode {mode:04o}); `chmod 600` it, and make "
            "another key if somebody may have read this one"
        )


def code_of(spoken: Spoken, key: bytes, is_fleet: bool) -> str:
    """The code to read out. Raises UsageError for parts that cannot be a challenge's."""
    try:
        own = access.device_key(key, spoken.serial) if is_fleet else key
        return access.code_for(own, spoken.serial, spoken.counter, spoken.nonce, spoken.command)
    except ValueError as error:
        raise UsageError(f"this cannot be a challenge: {error}") from error


def answer(spoken: Spoken, code: str) -> tuple[dict[str, Any], list[Part]]:
    """The answer for programs and for the desk, which sees what it allows before it reads out."""
    result = {
        "serial": spoken.serial,
        "counter": spoken.counter,
        "command": spoken.command,
        "code": code,
    }
    does, lost = meaning(spoken.command)
    parts: list[Part] = [
        Fact("terminal", f"{clean(spoken.serial)}, challenge #{spoken.counter}"),
        Fact("allows", clean(spoken.command)),
        Fact("", does),
    ]
    if lost:
        parts.append(Fact("loses", lost, BAD))
    parts.append(Fact("code", code, GOOD))
    return result, [*parts, Fact("", "good once, for exactly this command on this terminal")]


def meaning(command: str) -> tuple[str, str]:
    """(what the command does, what it loses or "") in words."""
    try:
        method, params = understood(command)
    except TypingError:
        return "this release knows no such command; ask what it does before you read out a code", ""
    if canonical(method, params) != command:
        return "this is not written as a terminal writes it; have it read out again", ""
    discard = params.get("discard")
    return sentence(method, params), losses(discard) if discard is not None else ""
