"""The browser gateway's MigrationManager: each call of its guide, as a coroutine on `agent.aio`.

It judges the options, names the job and hands back what the service answers; the work is done by
the same worker behind the same one door. What differs from the guide, and why, is told in
docs/from-the-browser-guide.md. The configuration is read anew by each call.
"""

from __future__ import annotations

import os

from agent.core.profile import setting_named
from agent.edges.config import load_config, places_of
from agent.ground.errors import ConfigError, MigrationsRejected, TimedOut, UsageError
from agent.ground.limits import ATTEMPTS_TOTAL_MAX
from agent.service.embedded import (
    Answer,
    check_flag,
    check_loop,
    leave_open_file_alone,
    own_memory_bytes,
    quick_check_ms,
    run_embedded,
    told,
    whole_number,
    within_watchdog,
)
from agent.worker.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Union

    from agent.edges.config import Config
    from agent.service.embedded import Progress

    Discard = Union[dict[str, int], str, None]

VERSION_MAX = 9999  # file names of migrations have four digits


class MigrationManager:
    """The migrations and backups of one terminal.

    `root` and `config` are `--root` and `--config` of the command. Every call is awaited in a
    program on `agent.aio`, or given to `aio.run`; elsewhere it raises UsageError. There is one run
    at a time: a second one raises Busy, whoever began the first.
    """

    __slots__ = ("_config_path", "_root")

    def __init__(
        self, root: str | os.PathLike[str] = "", config: str | os.PathLike[str] | None = None
    ) -> None:
        self._root = os.fspath(root)
        self._config_path = None if config is None else os.fspath(config)

    # Running

    async def migrate(
        self,
        batch_size: int = 100,
        backup_enabled: bool = True,
        validate_data: bool = True,
        retry_attempts: int = 3,
        timeout: int = 30_000,
        despite_unsettled: bool = False,
        progress: Progress | None = None,
    ) -> Answer:
        """Bring the data to the installed schema, as `posagent migrate` does.

        `batch_size` caps the profile's rows of a batch. `timeout` is the longest time in ms without
        a mark of progress; a watchdog of the profile may shorten it. After `retry_attempts` deaths
        at the same place the plan is given up. `despite_unsettled` is consent to a run that the
        profile refuses while sales are unsettled. `progress` is told (state, store, done, total).

        Raises AgentError with the data as it was, whatever had been done by then; the error's
        `result` holds verdict and `app_may_start`. Cancelled, it is as after a power cut.
        """
        config = self._begin("migrate")
        profile = config.profile
        check_flag("backup_enabled", backup_enabled)
        check_flag("validate_data", validate_data)
        check_flag("despite_unsettled", despite_unsettled)
        rows = whole_number("batch_size", batch_size, 1)
        attempts = whole_number("retry_attempts", retry_attempts, 1, ATTEMPTS_TOTAL_MAX)
        deadline = setting_named("deadline_ms")
        deadline_ms = whole_number("timeout", timeout, deadline.low, deadline.high)
        if profile.backup_enabled_required and not backup_enabled:
            raise ConfigError(
                f"the profile {profile.id} permits no run without a backup; leave "
                "backup_enabled=False away, or set backup_enabled_required to false in "
                f"{config.path}",
                key="backup_enabled_required",
            )
        profile.batch_rows_max = min(rows, profile.batch_rows_max)
        profile.deadline_ms = within_watchdog(profile, deadline_ms)
        job = Job(
            "migrate",
            config,
            places_of(config),
            asked=True,
            retry_attempts=attempts,
            backup_enabled=backup_enabled,
            validate_data=validate_data,
            despite_unsettled=despite_unsettled,
        )
        return await run_embedded(job, progress)

    async def rollback(self, to: int, despite_unsettled: bool = False) -> Answer:
        """Return to an earlier schema version by the first way that loses nothing newer: the old
        file again, `down`, or the backup. Raises AgentError where none is open; the data is as it
        was. The plan that is taken back is not migrated again unasked.
        """
        config = self._begin("rollback")
        check_flag("despite_unsettled", despite_unsettled)
        version = whole_number("to", to, 0, VERSION_MAX)
        job = Job(
            "rollback",
            config,
            places_of(config),
            asked=True,
            to_version=version,
            despite_unsettled=despite_unsettled,
        )
        return await run_embedded(job)

    async def create_backup(self) -> Answer:
        """A verified backup of the data as it is; answers its row of `get_available_backups`."""
        config = self._begin("backup")
        result = await run_embedded(Job("backup", config, places_of(config)))
        return Answer(result.backup, damaged=None)

    async def restore_from_backup(self, name: str | None = None, discard: Discard = None) -> Answer:
        """Put a backup in the data's place: the one of this name or number, else the newest.

        Raises Unsettled with the counts in its `facts` where that would lose sales, unless
        `discard` names exactly these counts: {"newer": 2}, "newer=2", or "unknown" over data that
        cannot be read. What was there before is backed up first, and no counter goes back.
        """
        from agent.verbs.restore import find_backup, parse_discard

        config = self._begin("restore")
        if name is not None and not isinstance(name, str):
            raise UsageError(f"name must be a text or None; it is {told(name)}")
        if isinstance(discard, dict):
            discard = ",".join(f"{word}={count}" for word, count in discard.items())
        elif discard is not None and not isinstance(discard, str):
            raise UsageError(f"discard must be counts, a text or None; it is {told(discard)}")
        job = Job(
            "restore",
            config,
            places_of(config),
            restore_from=find_backup(config.backups_dir, "latest" if name is None else name),
            discard=None if discard is None else parse_discard(discard),
        )
        return await run_embedded(job)

    async def prune_old_data(
        self, dry_run: bool = False, despite_unsettled: bool = False
    ) -> Answer:
        """Delete backups beyond the profile's number, then settled records as stores.json gives
        them up; never an unsettled one, whatever a clock says. A dry run only says which."""
        config = self._begin("prune")
        check_flag("dry_run", dry_run)
        check_flag("despite_unsettled", despite_unsettled)
        places = places_of(config)
        if not dry_run:
            return await run_embedded(
                Job("prune", config, places, despite_unsettled=despite_unsettled)
            )
        from agent.service.apart import answer_apart
        from agent.service.dry_prune import foreseen

        leave_open_file_alone(places)
        return Answer(await answer_apart(config, lambda mark: foreseen(config, mark)))

    # Asking

    async def get_current_version(self) -> int:
        """The schema version of the data: 0 before the first migration."""
        from agent.service.validation import header_of

        places = places_of(self._begin("status"))
        leave_open_file_alone(places)
        return header_of(places).user_version

    async def get_migration_history(self) -> list[Answer]:
        """What was done and what failed, newest last; no diary is an empty history."""
        from agent.edges import quiet

        config = self._begin("history")
        nothing: list[dict[str, Any]] = []
        rows = quiet.read_diary(
            os.path.join(config.state_dir, "agent.db"), lambda diary: diary.history(), nothing
        )
        return [_history_entry(row) for row in rows]

    async def get_available_backups(self) -> list[Answer]:
        """The backups by what their headers say, newest last."""
        from agent.verbs.backup_list import listed

        return [Answer(row) for row in listed(self._begin("backups").backups_dir)]

    async def validate_local_state(self) -> bool:
        """Whether every record that matters can be read and the file is sound, as `validate` tells
        at length. Raises AgentError where that cannot be told now; nothing is written."""
        from agent.service import validation

        config = self._begin("validate")
        places = places_of(config)
        leave_open_file_alone(places)
        config.profile.deadline_ms += quick_check_ms(places)
        return await validation.is_valid(config)

    async def validate_migration(self, migration: Any) -> bool:
        """Whether `posagent check` finds no fault in one migration, and where it was applied, its
        file is still the one that was.

        `migration` is its version, or has one: a migration, or an entry of the history.
        """
        from agent.service.apart import answer_apart
        from agent.verbs.check import is_valid

        config = self._begin("check")
        version = _version_of(migration)
        if version is None:
            return False
        try:
            said = await answer_apart(
                config, lambda mark: {"valid": is_valid(config, version, mark)}
            )
        except (MigrationsRejected, TimedOut):
            return False  # it ends the process it is executed in, or never ends
        return bool(said["valid"])

    async def quarantined(self) -> list[Answer]:
        """The records that runs left as they were: store, key, the version they have, the reason,
        and what became of them since ("left", "changed" or "gone"). Never a body."""
        from agent.edges.quiet import until_a_run
        from agent.service.apart import answer_apart
        from agent.verbs.left_list import left_list

        config = self._begin("quarantine")
        places = places_of(config)
        leave_open_file_alone(places)
        ask = until_a_run(places.lock)

        def listed(mark: Callable[[str], None]) -> dict[str, Any]:
            def goes_on(*_: Any) -> None:
                mark("reading the records")
                ask()

            return {"quarantine": left_list(places, goes_on)}

        said = await answer_apart(config, listed)
        return [Answer(row) for row in said["quarantine"]]

    async def storage_estimate(self) -> Answer:
        """`usage` of data, backups and diary, and `quota`: that and what is free above the reserve
        that a run leaves to the application. In bytes, of the data partition."""
        from agent.verbs.storage import estimate

        config = self._begin("health")
        return Answer(estimate(places_of(config), config.profile.reserve_bytes))

    def _begin(self, verb: str) -> Config:
        """The configuration, for this call to change; raises UsageError where it cannot run."""
        check_loop(verb)
        config = load_config(self._root, self._config_path)
        config.profile.ram_budget_bytes += own_memory_bytes()
        return config


def _version_of(migration: Any) -> int | None:
    version = migration
    if isinstance(migration, dict):
        version = migration.get("version")
    elif hasattr(migration, "version"):
        version = migration.version
    return version if type(version) is int and version > 0 else None


def _history_entry(row: dict[str, Any]) -> Answer:
    entry = Answer(row)
    entry["status"] = entry.pop("state")
    entry["timestamp"] = entry.pop("at_ms")
    return entry
