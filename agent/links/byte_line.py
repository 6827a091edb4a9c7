"""One byte line on which machine frames and a person's console share the bytes.

It serves a serial port, and whoever asked for the console on a socket or on standard input. Frames
are answered in frames, keys by the console, and nothing is sent that nobody asked for.
"""

from __future__ import annotations

from agent.ground.limits import PATIENCE_MS
from agent.links import wire
from agent.links.console import Console
from agent.links.console_text import noise_line
from agent.links.editor import Editor
from agent.links.peer import HungUp
from agent.links.receiver import Receiver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.links.peer import Peer
    from agent.links.session import Session

NAKS_PER_S = 5
EDITOR_LOOK_MS = 20_000  # so often a half-typed line is asked whether it is too old
_CUTS = (0x0D, 0x0A, 0x03)


class ByteLine:
    """One peer from its first byte to its hang-up."""

    def __init__(
        self,
        peer: Peer,
        make_session: Callable[[Callable[[str, dict[str, Any]], bool]], Session],
        facts: Any,
        note: Callable[[str], None],
    ) -> None:
        self._peer = peer
        # Two who share one line: what the one subscribed to is not for the other.
        self._machine = make_session(self._told_machine)
        self._session = make_session(self._told_person)
        self._note = note
        self._facts = facts
        self._console = Console(self._session.call, self._print, facts)
        self._editor = Editor(self._console.complete)
        self._editor.silent = True
        self._receiver = Receiver(self._editor.is_empty)
        self._naks: list[int] = []

    async def serve(self, first: bytes = b"") -> None:
        """Until the peer hangs up; `first` are bytes that came already."""
        try:
            while True:
                now = self._session.service.now_ms()
                data, first = first or await self._peer.read(self._wait_ms(now)), b""
                now = self._session.service.now_ms()
                self._editor.expire(now)
                if data:
                    for what, given in self._receiver.feed(data, now):
                        await self._take(what, given)
                        await self._peer.drained()
                else:
                    self._receiver.tick(now)
                await self._peer.drained()
        except HungUp:
            pass
        finally:
            self._session.unsubscribe()
            self._machine.unsubscribe()

    def _wait_ms(self, now: int) -> int | None:
        due = self._receiver.due_ms()
        if due is not None:
            return max(due - now, 1)
        return None if self._editor.is_empty() else EDITOR_LOOK_MS

    async def _take(self, what: str, given: bytes) -> None:
        if what == "frame":
            await self._frame(given)
        elif what == "keys":
            await self._keys(given)
        elif what == "drop_line":
            self._editor.drop()
        elif what == "stray":
            self._console.stray()
            self._prompt()
        else:
            self._nak(what)

    async def _frame(self, body: bytes) -> None:
        reply = await self._machine.answer(body, ascii_only=True)
        if reply is not None:
            self._peer.write(wire.frame(reply))

    def _nak(self, what: str) -> None:
        """Tell that a frame was damaged or too long, a few times a second at most."""
        now = self._session.service.now_ms()
        self._naks = [at for at in self._naks if now - at < 1000]
        if len(self._naks) >= NAKS_PER_S:
            return
        self._naks.append(now)
        if what == "too_long":
            limit = wire.SERIAL_REQUEST_BYTES_MAX
            error = wire.remote("TOO_LONG", f"a frame has at most {limit} bytes", limit=limit)
        else:
            error = wire.remote("BAD_CRC", "a frame came damaged; send it again")
        self._peer.write(wire.frame(wire.error_body(None, error)))

    async def _keys(self, keys: bytes) -> None:
        """Feed the editor a line at a time, so that each answer stands behind its own echo."""
        start = 0
        for at, byte in enumerate(keys):
            if byte in _CUTS:
                await self._keys_of_one_line(keys[start : at + 1])
                # What is pasted is answered as fast as it is read: an answer may be a hundred
                # times as long as its line.
                await self._peer.drained()
                start = at + 1
        if start < len(keys):
            await self._keys_of_one_line(keys[start:])

    async def _keys_of_one_line(self, keys: bytes) -> None:
        now, mute = self._session.service.now_ms(), self._console.mute
        if mute.is_on(now):
            mute.feed(now)
            return
        echo, events = self._editor.feed(keys, now)
        if echo:
            self._peer.write(echo)
        for what, text in events:
            muted = mute.times
            if what == "line":
                if not self._console.greeted:
                    await self._facts.look_again(PATIENCE_MS)  # the banner counts what is unsettled
                await self._console.line(text)
            elif what == "interrupt":
                await self._console.interrupt()
            elif self._console.greeted:
                self._print(noise_line(self._session.baud) + "\n")
            else:
                continue  # nobody has asked for anything yet
            if mute.times != muted:
                self._note("the line says nothing but noise or its own echo; it is muted")
                self._editor.drop()
            self._prompt()

    def _prompt(self) -> None:
        self._print(self._console.prompt())

    def _print(self, text: str) -> None:
        if text:
            self._peer.write(text.replace("\n", "\r\n").encode("ascii", "replace"))

    def _told_machine(self, method: str, params: dict[str, Any]) -> bool:
        return self._peer.offer(wire.frame(wire.notification_body(method, params)))

    def _told_person(self, method: str, params: dict[str, Any]) -> bool:
        if method == "progress" and not self._peer.is_clear():
            return False  # `watch` on a line that nobody reads would be kept for the whole run
        self._console.notify(method, params)
        return True
