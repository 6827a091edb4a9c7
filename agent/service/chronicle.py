"""What goes into the diary: attempts counted before their work, ends of runs, plans given up."""

from __future__ import annotations

import os

from agent.core import decide
from agent.edges import clock, database, holders
from agent.edges.state import Diary
from agent.ground import limits
from agent.ground.errors import AgentError
from agent.verbs.switch import read_seal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.terminal import Places

# Refusals that a technician will ask about later; the same one is noted once, not at every boot.
NOTED = ("STORAGE_ERROR", "UNSETTLED")


class Chronicle:
    """The diary, and what this process has seen of a switch."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.diary = Diary(os.path.join(places.state, "agent.db"))
        self.boot_id = holders.boot_id()
        # The runs of this call; a switch told on the way may be that of an earlier one.
        self.own_runs: set[str] = set()
        # What the worker told of a switch reached during this call, or None.
        self.switched: dict[str, Any] | None = None
        # What went wrong after the switch, where it is too late to fail.
        self.warning: dict[str, Any] | None = None

    def spent(self, plan: str, without_progress_max: int) -> str:
        """Why the plan is to be given up, or "" while another attempt is due."""
        return decide.attempts_spent(
            self.diary.attempts(plan, self.boot_id),
            without_progress_max,
            limits.ATTEMPTS_TOTAL_MAX,
        )

    def given_up(self) -> dict[str, str]:
        """Plans that are not tried unasked; a damaged diary is helped out by the seal."""
        known = self.diary.given_up()
        if self.diary.set_aside:
            seal = read_seal(self.places)
            for plan in seal.given_up if seal is not None else ():
                known.setdefault(plan, "known from before the diary was damaged")
                self.diary.give_up(plan, known[plan])
        return known

    def failed(self, job_kind: str, run: str, result: dict[str, Any], target: int | None) -> None:
        """Write the end of a failed run. A diary that refuses is noted in the result."""
        error = result["error"]
        try:
            header = database.read_header(self.places.pos)
        except OSError:
            header = None
        version = header.user_version if header is not None else None
        row = {
            "run": run,
            "kind": job_kind,
            "state": "failed",
            "from_version": version,
            "to_version": target,
            "verdict": result["verdict"],
            "code": error["code"],
            "message": error["message"],
            "at_ms": clock.wall_ms(),
            "clock_trusted": 0,
            "boot_id": self.boot_id,
        }
        try:
            last = self.diary.history(1) if error["code"] in NOTED else []
            same = ("kind", "code", "from_version", "to_version")
            if not any(all(entry[name] == row[name] for name in same) for entry in last):
                self.diary.write_history([row])
        except AgentError as failure:
            result["diary"] = failure.as_json()

    def finished(self, said: dict[str, Any]) -> None:
        """Make a finished run durable in the diary: one row per migration, in one commit."""
        shared = {
            "run": said["run"],
            "kind": said["kind"],
            "state": "rolled_back" if said["kind"] == "rollback" else "applied",
            "from_version": said["from_version"],
            "to_version": said["to_version"],
            "verdict": said["verdict"],
            "at_ms": said["at_ms"],
            "clock_trusted": int(said["clock_trusted"]),
            "boot_id": self.boot_id,
            "facts": {
                "backup": said["backup"],
                "before": said["before"],
                "quarantined": said["left"],
                "despite_unsettled": said["despite_unsettled"],
            },
        }
        rows = [dict(shared, version=int(name[:4]), name=name[:-3]) for name in said["names"]] or [
            shared
        ]
        self.switched = said
        try:
            if not self.diary.knows_run(said["run"]):
                self.diary.write_history(rows)
            if said["hold"]:
                self.diary.give_up(said["hold"], "brought back on request")
        except AgentError as error:
            # The switch is done whatever the diary says; the next boot reads it from pos.db.
            self.warning = error.as_json()
        finally:
            self.diary.close()

    def _is_its_end(self, said: dict[str, Any], error: dict[str, Any] | None) -> bool:
        """Whether what happened besides is no more than a warning to a switch that was reached: to
        one of this call, or to an earlier one that holds the very plan back."""
        if error is None or said["run"] in self.own_runs:
            return True
        return bool(said["hold"]) and error.get("facts", {}).get("plan") == said["hold"]

    def with_switch(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result of a run whose switch was reached, whoever died after it: it is done."""
        said = self.switched
        if self.warning is not None:
            result = dict(result, warning=self.warning)
        if said is None or (result["verdict"] in ("OK", "PARTIAL") and "run" in result):
            return result
        if not self._is_its_end(said, result.get("error")):
            return result
        done = {name: value for name, value in result.items() if name != "error"}
        return dict(
            done,
            verdict=said["verdict"],
            warning=result.get("error", self.warning),
            run=said["run"],
            from_version=said["from_version"],
            to_version=said["to_version"],
            timestamp=said["at_ms"],
            clock_trusted=said["clock_trusted"],
            records=sum(said["before"]["records"].values()),
            unsettled=sum(said["before"]["unsettled_records"].values()),
            backup=said["backup"],
            quarantined=said["left"],
        )
