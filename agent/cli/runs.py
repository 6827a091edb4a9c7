"""The verbs that start a run: boot, migrate, commit, backup, restore. They end with a verdict."""

from __future__ import annotations

from agent.cli.by_daemon import by_daemon
from agent.cli.output import show, wrap
from agent.core.report import money_line
from agent.edges.announce import Announcer
from agent.edges.config import places_of
from agent.ground.errors import UsageError
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
    consent = bool(command.options.get("--despite-unsettled"))
    job = Job("migrate", config, places_of(config), asked=True, despite_unsettled=consent)
    return _run(command, config, job)


def rollback(command: Command, config: Config) -> int:
    """Back to an earlier version, or only the way there."""
    typed = str(command.options.get("--to", ""))
    if not (typed.isascii() and typed.isdigit() and len(typed) <= 4):
        raise UsageError("rollback needs --to VERSION, a schema version such as 2")
    if command.options.get("--dry-run"):
        from agent.cli.rollback import dry_rollback

        return dry_rollback(command, config, int(typed))
    consent = bool(command.options.get("--despite-unsettled"))
    given = {"to_version": int(typed), "asked": True, "despite_unsettled": consent}
    return _run(command, config, Job("rollback", config, places_of(config), **given))


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


def prune(command: Command, config: Config) -> int:
    """Delete old backups and settled records as the contract allows, or only say which."""
    if command.options.get("--dry-run"):
        from agent.cli.prune import dry_run

        return dry_run(command, config)
    consent = bool(command.options.get("--despite-unsettled"))
    job = Job("prune", config, places_of(config), despite_unsettled=consent)
    return _run(command, config, job)


def _run(command: Command, config: Config, job: Job, boot: bool = False) -> int:
    announcer = Announcer(config.profile.progress_interval_ms, command.json)
    result = None if boot else by_daemon(config, job, announcer)
    if result is None:
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
    elif kind == "prune":
        lines += prune_lines(result)
    elif verdict == "NOT_REQUIRED":
        lines.append(f"NOT_REQUIRED: the data is at schema {result['to_version']}")
    elif kind == "commit":
        lines.append("OK: the earlier file is deleted; the way back is now a restore")
    elif kind == "backup":
        lines += backup_lines(result["backup"])
    else:
        lines.append(
            f"{verdict}: schema {result['from_version']} -> {result['to_version']}, "
            f"{result['records']:,} records, {result['unsettled']:,} unsettled proven unmoved"
        )
        if result["backup"]:
            lines.append(f"backup {result['backup']['name']}, read back and verified")
        if result.get("way") == "switch back":
            lines.append("the file from before the last switch is in place again")
        if result.get("kept"):
            from agent.cli.rollback import kept_lines

            lines += kept_lines(result["kept"])
        if result.get("quarantined"):
            lines.append(
                f"{result['quarantined']:,} records were left as they are; `posagent quarantine` "
                "lists them"
            )
        for name, (was, now) in result.get("counters_lifted", {}).items():
            lines.append(f"counter {name} lifted from {was} to {now}: no number is issued twice")
        if result.get("damaged_file"):
            lines.append(f"the damaged file is kept as {result['damaged_file']}")
    if not result["app_may_start"]:
        lines.append(f"the application must not start: {result['app_must_not_start_because']}")
    elif error is not None:
        lines.append("the application may start on the data as it was")
    return lines


def prune_lines(result: dict[str, Any]) -> list[str]:
    """A prune in words. One whose worker ended behind the switch cannot say how much it was."""
    figures = result.get("pruned", {}).values()
    count, size = (sum(figure[word] for figure in figures) for word in ("records", "bytes"))
    if result["verdict"] == "NOT_REQUIRED":
        lines = ["NOT_REQUIRED: there is no settled record that stores.json gives up"]
    else:
        told = f"{count:,} settled records" if figures else "settled records"
        lines = [
            f"{result['verdict']}: {told} pruned, {result['unsettled']:,} unsettled unchanged",
            f"{size / 1024:,.1f} KiB of records are free for new sales; the file keeps its size",
            f"backup {result['backup']['name']}, read back and verified, still holds them",
        ]
        if not figures:
            del lines[1]
    if result.get("backups_deleted"):
        lines += wrap("backups deleted: ", ", ".join(result["backups_deleted"]))
    return lines


def backup_lines(backup: dict[str, Any]) -> list[str]:
    """One backup in words."""
    return [
        f"OK: backup {backup['name']}, schema {backup['version']}, "
        f"{backup['size_bytes'] / 1048576:.1f} MiB, read back and verified",
        money_line(backup["unsettled"]),
    ]
