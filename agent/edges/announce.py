"""Shows a run to people and programs: a live line or plain lines, and status.json by rename."""

from __future__ import annotations

import os
import sys

from agent.core import states
from agent.core.report import Meter, Snapshot
from agent.edges.clock import steady_ms
from agent.edges.flash import make_folder, publish_file
from agent.ground.codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATUS_INTERVAL_MS = 250  # status.json lies in memory; a reader sees a run move
LIVE_INTERVAL_MS = 100


class Announcer:
    """Tells what the supervisor learns. `quiet` keeps the terminal silent, as under --json."""

    def __init__(self, interval_ms: int, quiet: bool) -> None:
        self._meter = Meter(steady_ms())
        self._live = not quiet and sys.stderr.isatty()
        self._quiet = quiet
        self._interval_ms = LIVE_INTERVAL_MS if self._live else interval_ms
        self._shown_ms = 0
        self._shown_state = ""
        self._published_ms = 0
        self._unpublished = False
        self._status = ""
        self._width = 0

    @property
    def snapshot(self) -> Snapshot:
        """Where the run is."""
        return self._meter.now

    def restart_meter(self) -> None:
        """Another run begins: its percent and its time left start anew."""
        self._meter = Meter(steady_ms())

    def publish_to(self, path: str) -> None:
        """Keep status.json up to date from here on, where its folder can be made."""
        try:
            make_folder(os.path.dirname(path), 0o750)
        except OSError:
            return
        self._status = path

    def mark(self, state: str, store: str, done: int, total: int) -> None:
        """One mark of progress."""
        at = steady_ms()
        snapshot = self._meter.mark(state, store, done, total, at)
        if state in states.FINAL:
            return
        self._unpublished = True
        self._publish_mark(at)
        changed = state != self._shown_state and not self._live
        if not self._quiet and (changed or at - self._shown_ms >= self._interval_ms):
            self._shown_ms, self._shown_state = at, state
            self._show(snapshot.line(), lasting=not self._live)

    def _publish_mark(self, at: int) -> None:
        """The last mark, as often as somebody could want it; one that waits is not forgotten."""
        if self._unpublished and at - self._published_ms >= STATUS_INTERVAL_MS:
            self._published_ms, self._unpublished = at, False
            now = self._meter.now
            self._publish({"state": now.state, "app_may_start": False, "progress": now.as_json()})

    def tick(self) -> None:
        """Time went by without a mark: people must not take a long call for a dead program."""
        self._publish_mark(steady_ms())
        if not self._quiet and not self._live and self._shown_state:
            at = steady_ms()
            if at - self._shown_ms >= self._interval_ms:
                self._shown_ms = at
                self._show(self._meter.now.line(), lasting=True)

    def note(self, text: str) -> None:
        """Something that happened and stays visible."""
        if not self._quiet:
            self._show(text, lasting=True)

    def stuck(self, text: str) -> None:
        """The run cannot go on and cannot end."""
        self.note(text)

    def end(self, result: dict[str, Any]) -> None:
        """The verdict: the last thing published."""
        if self._live and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
        self._unpublished = False
        state = states.FAILED if "error" in result else states.DONE
        if result["verdict"] == "HELD":
            state = states.HELD
        self._publish(dict(result, state=state))

    def _show(self, text: str, lasting: bool) -> None:
        line = text + "\n"
        if self._live:
            line = "\r" + text.ljust(self._width) + ("\n" if lasting else "")
            self._width = 0 if lasting else len(text)
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except OSError:
            self._quiet = True  # nobody reads it any more; the run goes on

    def _publish(self, values: dict[str, Any]) -> None:
        if self._status:
            try:
                publish_file(self._status, encode(values).encode() + b"\n", 0o640)
            except OSError:
                pass  # a full or vanished /run is no reason to stop a run; the next word may fit
