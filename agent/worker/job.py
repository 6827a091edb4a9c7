"""What a worker is asked to do; made by the supervisor before the fork."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.terminal import Places
    from agent.edges.config import Config
    from agent.edges.filelock import FileLock


class Job:
    """What a worker is asked to do, made by the supervisor before the fork.

    `kind` is "migrate", "restore", "backup", "commit" or "settle"; `asked` tells that a person
    asked for it, which lifts a plan's being given up.
    """

    __slots__ = (
        "agent_version",
        "asked",
        "attempts",
        "config",
        "discard",
        "given_up",
        "kind",
        "known_runs",
        "lock",
        "old_lock",
        "places",
        "restore_from",
        "run",
    )

    def __init__(self, kind: str, config: Config, places: Places, **given: Any) -> None:
        self.kind = kind
        self.config = config
        self.places = places
        self.asked: bool = given.get("asked", False)
        self.restore_from: str = given.get("restore_from", "")
        self.discard: Any = given.get("discard")
        self.agent_version: str = given.get("agent_version", "")
        self.attempts = 0
        self.given_up: dict[str, str] = {}
        self.known_runs: set[str] = set()
        self.run = ""
        self.lock: FileLock | None = None
        # On the file that a worker replaced before it died; None until that has happened.
        self.old_lock: FileLock | None = None
