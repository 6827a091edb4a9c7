"""The technician's own keyboard on the terminal's console, over whatever line there is.

Keys go out as they are typed, text comes in as the terminal sends it, less what could act on this
screen: the console of a terminal needs no more than letters, line ends, backspaces and the bell.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from typing import Callable

from agent.edges.raw_terminal import RawTerminal
from posctl.faults import LineLost
from posctl.lines import Line

LEAVE = b"\x1d"  # Ctrl-], as telnet has it: a terminal's console knows no such key
_LOOK_S = 0.05
_LAST_WORDS_S = 0.5  # behind the end of a pipe: so long without a byte, and the answer is whole
_KEYS_MAX = 256
_HARMLESS = frozenset((*range(0x20, 0x7F), 0x07, 0x08, 0x0A, 0x0D))
_ODD_MAX = 8  # as many bytes that are no text tell of a wrong rate; one may be noise


class Cleaner:
    """What a line sends, as it may go to a screen; `is_odd` tells, once, that it is hardly text."""

    def __init__(self) -> None:
        self._odd = 0
        self._told = False

    def clean(self, data: bytes) -> bytes:
        """The bytes that are harmless."""
        kept = bytes(byte for byte in data if byte in _HARMLESS)
        self._odd += sum(byte > 0x7E or byte == 0 for byte in data)
        return kept

    def is_odd(self) -> bool:
        """Whether a word about the baud rate is due."""
        if self._told or self._odd < _ODD_MAX:
            return False
        self._told = True
        return True


def carry(line: Line, keys: int, screen: int, say: Callable[[str], None]) -> None:
    """Until Ctrl-], the end of the keys, or of the line. Raises LineLost."""
    hint = f"this is hardly text; is {line.baud} baud right?" if line.baud else "hardly text"
    cleaner, over = Cleaner(), threading.Event()
    faults: list[LineLost] = []

    def listen() -> None:
        quiet_s = 0.0
        try:
            while quiet_s < _LAST_WORDS_S or not over.is_set():
                data = line.receive(_LOOK_S)
                quiet_s = 0.0 if data else quiet_s + _LOOK_S
                _put(screen, cleaner.clean(data))
                if cleaner.is_odd():
                    say(hint)
        except LineLost as error:
            faults.append(error)
        over.set()

    ear = threading.Thread(target=listen, daemon=True)
    with RawTerminal(keys):
        ear.start()
        for typed in _typed(keys, over):
            line.send(typed)
        over.set()
        ear.join()
    if faults:
        raise faults[0]


def _typed(keys: int, over: threading.Event) -> Iterator[bytes]:
    """What is typed, until Ctrl-], the end, or the line's end."""
    while not over.is_set():
        ready, _, _ = select.select([keys], [], [], _LOOK_S)
        if not ready:
            continue
        try:
            data = os.read(keys, _KEYS_MAX)
        except BlockingIOError:
            continue
        except OSError:
            return
        before, left, _ = data.partition(LEAVE)
        if before:
            yield before
        if left or not data:
            return


def _put(screen: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(screen, data) :]
        except BlockingIOError:
            select.select([], [screen], [])
        except OSError:
            return
