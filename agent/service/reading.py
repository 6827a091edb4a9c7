"""Files and reports that a peer fetches piece by piece: `read` of the wire protocol.

Names are looked up, never paths. A piece is small enough for the slowest line; the digest of the
whole stands in each, so that whoever put the pieces together knows that they belong together.
"""

from __future__ import annotations

import os
from binascii import b2a_base64

from agent.edges import flash
from agent.ground.codec import encode
from agent.ground.digest import hex_digest
from agent.ground.errors import AgentError, Busy, UsageError
from agent.ground.limits import REPEAT_MS, REPORT_KEPT_MS
from agent.links import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.terminal import Places
    from agent.edges.ledger import Call
    from agent.service.reading_jobs import ReadingJobs
    from agent.service.reports import Reports

PIECE_BYTES = 512
BUNDLE = ("status", "health", "history", "backups", "profile", "log", "quarantine")
REPORTS = (*BUNDLE, "plan", "validate", "verify")


class Reading:
    """What can be read over a line."""

    def __init__(
        self,
        places: Places,
        reports: Reports,
        jobs: ReadingJobs,
        call_of: Callable[[int], Call | None],
    ) -> None:
        self._places = places
        self._reports = reports
        self._jobs = jobs
        self._call_of = call_of
        self._bundle = b""
        self._digested: tuple[Any, str] = (None, "")

    def level_of(self, name: str) -> str:
        """The level that reading it needs: backups hold records, reports hold none."""
        if name.startswith("report/"):
            return "tech" if name[7:] in ("validate", "verify") else "read"
        return "admin" if name.startswith("backups/") else "tech"

    async def piece(self, name: str, off: int, patience_ms: int) -> dict[str, Any]:
        """One piece from `off` on. Raises RemoteError NO_SUCH, and what the report raises."""
        kind, _, rest = name.partition("/")
        if kind == "backups":
            return self._of_backup(name, rest, off)
        if kind == "report" and rest in REPORTS:
            data = await self._reports.ask((rest,), patience_ms, age_of(rest, off > 0))
        elif kind == "result" and rest.isdigit() and len(rest) < 16:
            data = self._of_result(int(rest))
        elif name == "bundle":
            data = await self._whole_bundle(off, patience_ms)
        else:
            raise wire.remote(
                "NO_SUCH", "there are report/VERB, result/RUN, backups/NAME and bundle"
            )
        return _piece(name, data[off : off + PIECE_BYTES], off, len(data), hex_digest(data))

    def _of_result(self, run: int) -> bytes:
        if self._jobs.knows(run):
            return self._jobs.whole(run)
        call = self._call_of(run)
        if call is None or call.state == "started":
            raise wire.remote("NO_SUCH", f"run {run} has no result", run=run)
        return encode(call.outcome).encode()

    def _of_backup(self, name: str, wanted: str, off: int) -> dict[str, Any]:
        from agent.verbs.restore import find_backup

        try:
            path = find_backup(self._places.backups, wanted)
            size = os.stat(path).st_size
            data = flash.read_at(path, off, PIECE_BYTES)
            digest = self._digest_of(path)
        except UsageError as error:
            raise wire.remote("NO_SUCH", error.message) from error
        except OSError as error:
            raise wire.remote("NO_SUCH", f"{wanted} cannot be read: {error.strerror}") from error
        return _piece(name, data, off, size, digest)

    def _digest_of(self, path: str) -> str:
        """Of the whole file, reckoned once: a backup never changes."""
        found = os.stat(path)
        identity = (path, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._digested[0] != identity:
            self._digested = (identity, flash.digest_file(path)[1])
        return self._digested[1]

    async def _whole_bundle(self, off: int, patience_ms: int) -> bytes:
        """Every report in one object, for the desk; whatever one of them says."""
        if off and self._bundle:
            return self._bundle
        parts = []
        for verb in BUNDLE:
            try:
                text = (await self._reports.ask((verb,), patience_ms, REPORT_KEPT_MS)).decode()
            except Busy:
                raise
            except AgentError as error:
                text = encode({"error": error.as_json()})
            parts.append(f'"{verb}":{text}')
        self._bundle = ("{" + ",".join(parts) + "}").encode()
        return self._bundle


def age_of(verb: str, further: bool) -> int:
    """How old a report may be, in ms: a further piece is of the same one, and so is a call that
    comes again on a noisy line; but a plan is a precondition, and worked out each time."""
    if further:
        return REPORT_KEPT_MS
    return 0 if verb == "plan" else REPEAT_MS


def _piece(name: str, data: bytes, off: int, size: int, digest: str) -> dict[str, Any]:
    return {
        "name": name,
        "off": off,
        "data": b2a_base64(data, newline=False).decode(),
        "len": size,
        "sha256": digest,
    }
