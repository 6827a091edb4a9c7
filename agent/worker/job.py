"""What a worker is asked to do; made by the supervisor before the fork."""

from __future__ import annotations

from agent.ground.limits import ATTEMPTS_WITHOUT_PROGRESS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.filelock import FileLock


class Job:
    """What a worker is asked to do, made by the supervisor before the fork.

    `kind` is "migrate", "rollback", "restore", "prune", "backup", "commit" or "settle"; `asked`
    tells that a person asked for it, which lifts a plan's being given up.
    """

    __slots__ = (
        "agent_version",
        "asked",
        "attempts",
        "backup_enabled",
        "config",
        "despite_unsettled",
        "discard",
        "given_up",
        "kind",
        "known_runs",
        "lock",
        "old_lock",
        "places",
        "restore_from",
        "retry_attempts",
        "run",
        "spares_other_schemas",
        "to_version",
        "validate_data",
    )

    def __init__(self, kind: str, config: Config, places: Places, **given: Any) -> None:
        self.kind = kind
        self.config = config
        self.places = places
        self.asked: bool = given.get("asked", False)
        self.restore_from: str = given.get("restore_from", "")
        self.discard: Any = given.get("discard")
        # Consent to a run that the profile would refuse while sales are unsettled.
        self.despite_unsettled: bool = given.get("despite_unsettled", False)
        self.to_version: int = given.get("to_version", 0)  # of a rollback
        # Attempts that may end at one place before the plan is given up.
        self.retry_attempts: int = given.get("retry_attempts", ATTEMPTS_WITHOUT_PROGRESS_MAX)
        # Without one, `.prev` is the only way back; asked for only where the profile permits it.
        self.backup_enabled: bool = given.get("backup_enabled", True)
        # Whether the authors' checks are made; the proof is made in any case.
        self.validate_data: bool = given.get("validate_data", True)
        self.agent_version: str = given.get("agent_version", "")
        # Of a backup: it deletes older ones of its own schema only.
        self.spares_other_schemas: bool = given.get("spares_other_schemas", False)
        self.attempts = 0
        self.given_up: dict[str, str] = {}
        self.known_runs: set[str] = set()
        self.run = ""
        self.lock: FileLock | None = None
        # On the file that a worker replaced before it died; None until that has happened.
        self.old_lock: FileLock | None = None
