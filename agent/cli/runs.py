"""The verbs that start a run: boot, migrate, commit, backup, restore. They end with a verdict."""

from __future__ import annotations

from agent.cli.output import show
from agent.core.report import money_line
from agent.edges.announce import Announcer
from agent.edges.config import places_of
from agent.service.supervisor import Supervisor
from agent.service.verdict import exit_code
from agent.verbs.restore import find_backup, parse_discard
from agent.worker.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.cli.arguments import Command
    from agent.edges.config import Config


def run_boot(command: Command, config: Config) -> int:
    """The long way of a boot."""
    return _run(command, config, Job("migrate", config, places_of(config)), boot=True)


def migrate(command: Command, config: Config) -> int:
    """Somebody asks for it: a plan that was given up gets a new count."""
    return _run(command, config, Job("migrate", config, places_of(config), asked=True))


def commit(command: Command, config: Config) -> int:
    """Delete `.prev`."""
    return _run(command, config, Job("commit", config, places_of(config)))


def backup(command: Command, config: Config) -> int:
    """A verified backup of the data as it is."""
    return _run(command, config, Job("backup", config, places_of(config)))


def restore(command: Command, config: Config) -> int:
    """Replace the data by a backup, with consent to exactly what that loses."""
    typed = command.options.get("--discard")
    job = Job(
        "restore",
        config,
        places_of(config),
        restore_from=find_backup(config.backups_dir, command.words[0]),
        discard=None if typed is None else parse_discard(typed),
    )
    return _run(command, config, job)


def _run(command: Command, config: Config, job: Job, boot: bool = False) -> int:
    announcer = Announcer(config.profile.progress_interval_ms, command.json)
    result = Supervisor(config, announcer).run(job)
    code = exit_code(result, boot)
    show(result, verdict_lines(result, job.kind), command.json)
    return code


def verdict_lines(result: dict[str, Any], kind: str) -> list[str]:
    """The end of a run in a few lines: verdict, money, backup, what to do."""
    verdict = result["verdict"]
    error = result.get("error")
    lines = []
    if error is not None:
        lines.append(f"{verdict}: {error['code']}: {error['message']}")
    elif verdict == "NOT_REQUIRED" and kind == "commit":
        lines.append("NOT_REQUIRED: there is no earlier file to give up")
    elif verdict == "NOT_REQUIRED":
        lines.append(f"NOT_REQUIRED: the data is at schema {result['to_version']}")
    elif kind == "commit":
        lines.append("OK: the earlier file is deleted; the way back is now a restore")
    elif kind == "backup":
        lines += backup_lines(result["backup"])
    else:
        lines.append(
            f"OK: schema {result['from_version']} -> {result['to_version']}, "
            f"{result['records']:,} records, {result['unsettled']:,} unsettled proven unmoved"
        )
        if result["backup"]:
            lines.append(f"backup {result['backup']['name']}, read back and verified")
        for name, (was, now) in result.get("counters_lifted", {}).items():
            lines.append(f"counter {name} lifted from {was} to {now}: no number is issued twice")
        if result.get("damaged_file"):
            lines.append(f"the damaged file is kept as {result['damaged_file']}")
    if not result["app_may_start"]:
        lines.append(f"the application must not start: {result['app_must_not_start_because']}")
    elif error is not None:
        lines.append("the application may start on the data as it was")
    return lines


def backup_lines(backup: dict[str, Any]) -> list[str]:
    """One backup in words."""
    return [
        f"OK: backup {backup['name']}, schema {backup['version']}, "
        f"{backup['size_bytes'] / 1048576:.1f} MiB, read back and verified",
        money_line(backup["unsettled"]),
    ]
