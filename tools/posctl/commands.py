"""The words of the command line: every verb with its own words and options, as on a terminal.

Which terminal, and whether the answer is JSON, may stand before the verb or behind it.
"""

from __future__ import annotations

import sys
from typing import Any, Callable

import click
from click.shell_completion import CompletionItem

from agent import __version__
from agent.cli.arguments import VERBS
from agent.ground.errors import AgentError, UsageError
from agent.ground.words import nearest
from posctl import changes, desk, inventory, ports, verbs
from posctl.show import Out
from posctl.visit import PATIENCE_S, Visit

EXIT_USAGE = 64
EXIT_INTERNAL = 70
PROGRAM = "posctl"

Work = Callable[..., int]


def obey(arguments: list[str]) -> int:
    """Do what one command line says; the exit code."""
    try:
        return int(posctl.main(arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
    except click.ClickException as error:
        text = error.format_message().rstrip(".")
        where = f"; see: {_command_in(error)} --help"
        Out("--json" in arguments).error("USAGE", text[:1].lower() + text[1:] + where)
        return EXIT_USAGE
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except (SystemExit, KeyboardInterrupt):
        raise
    except Exception as error:
        Out("--json" in arguments).error("INTERNAL", _fault(error))
        return EXIT_INTERNAL


def _command_in(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return context.command_path if context is not None else PROGRAM


def _fault(error: Exception) -> str:
    """Where and of what kind, without a value of anything."""
    where, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
        where, trace = f"{name}:{trace.tb_lineno}", trace.tb_next
    return f"a fault of posctl: {type(error).__name__} at {where}; report it"


class Verbs(click.Group):
    """The verbs in the order of the table, and for an unknown one the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            known = nearest(args[0], self.commands)
            raise click.UsageError(f"unknown verb {args[0]!r}; did you mean {known}?", ctx)
        return super().resolve_command(ctx, args)


# ---- What may stand before a verb or behind it


def _kept(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Put a value into the visit where one is given."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        visit = ctx.ensure_object(Visit)
        if value is not None and value is not False:
            setattr(visit, name, value)
        return value

    return keep


def _complete_port(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    known = [CompletionItem(port.where, help=port.description) for port in ports.known_ports([])]
    return [item for item in known if item.value.startswith(incomplete)]


def _complete_name(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    try:
        entries = inventory.read_inventory(ctx.find_root().params.get("inventory"))
    except AgentError:
        return []
    return [
        CompletionItem(one.name, help=one.where)
        for one in entries
        if one.name.startswith(incomplete)
    ]


def everywhere(hidden: bool) -> Callable[[Any], Any]:
    """The options that every verb has; behind a verb they are not shown once more."""
    options = (
        click.option(
            "-p", "--port", metavar="PORT[@BAUD]", shell_complete=_complete_port,
            help="The terminal at this serial port; 115200 baud unless it says otherwise.",
        ),
        click.option(
            "-s", "--socket", metavar="SOCKET", type=click.Path(),
            help="The terminal behind this agent's socket.",
        ),
        click.option(
            "-t", "--terminal", "name", metavar="NAME", shell_complete=_complete_name,
            help="The terminal of this name in the inventory.",
        ),
        click.option(
            "--inventory", metavar="FILE", type=click.Path(),
            help="An inventory instead of ~/.config/posctl/terminals.ini.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object."),
        click.option(
            "--timeout", "timeout_s", metavar="SECONDS", type=click.FloatRange(0.01, 3600),
            help="What an agent has for one answer, besides the time on the wire; usually 1.",
        ),
        click.option(
            "--patience", "patience_s", metavar="SECONDS", type=click.FloatRange(0, 86400),
            help=f"How long one that is watched may be out of reach; usually {PATIENCE_S:.0f}.",
        ),
    )  # fmt: skip

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    def with_callbacks(command: Any) -> Any:
        command = decorate(command)
        for param in getattr(command, "__click_params__", []):
            if param.name in _KEPT:
                param.callback = _kept(param.name)
                param.expose_value = False
                param.hidden = hidden
        return command

    return with_callbacks


_KEPT = ("port", "socket", "name", "inventory", "as_json", "timeout_s", "patience_s")


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@everywhere(hidden=False)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def posctl(ctx: click.Context) -> int:
    """Speak with a payment terminal over its serial port or its agent's socket.

    Verbs, options, JSON and exit codes are those of posagent on the terminal; besides: 20 nobody
    answers, 21 the line is too noisy, 22 something else answers, 23 the port cannot be opened.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return EXIT_USAGE
    return 0


def verb(says: str = "") -> Callable[[Work], click.Command]:
    """A verb; what it does is said as on the terminal."""

    def decorate(work: Work) -> click.Command:
        name = work.__name__.rstrip("_")
        help_text = says or _sentence(VERBS[name].says)

        def guarded(ctx: click.Context, **given: Any) -> int:
            visit = ctx.find_root().obj
            assert isinstance(visit, Visit)
            return visit.guarded(lambda: work(visit, **given))

        guarded.__click_params__ = getattr(work, "__click_params__", [])  # type: ignore[attr-defined]
        command = everywhere(hidden=True)(click.pass_context(guarded))
        return posctl.command(name, help=help_text, short_help=help_text)(command)

    return decorate


def _sentence(says: str) -> str:
    return says[:1].upper() + says[1:] + "."


_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
_CODE = click.option(
    "--code", metavar="CODE", help="The service desk's code for just this command."
)
_CONSENT = click.option(
    "--despite-unsettled", is_flag=True, help="Consent where the profile says to settle first."
)
_OP = click.option("--op", metavar="OP", help="The op that was told when the work was begun.")


# ---- The verbs


@verb()
@click.option("--exit-code", is_flag=True, help="Exit 3 when migrations are pending.")
def status(visit: Visit, exit_code: bool) -> int:
    return verbs.status(visit, exit_code)


@verb()
def plan(visit: Visit) -> int:
    return verbs.report(visit, "plan")


@verb("Upgrade to the installed schema: shows the plan, asks, starts it and follows it.")
@_YES
@_CONSENT
@_CODE
def migrate(visit: Visit, yes: bool, despite_unsettled: bool, code: str | None) -> int:
    return changes.migrate(visit, yes, despite_unsettled, code)


@verb("Follow a run to its end: the one that is on, or the one of an op. Ctrl-C leaves it alone.")
@click.argument("run", type=click.IntRange(1), required=False)
@_OP
def watch(visit: Visit, run: int | None, op: str | None) -> int:
    return changes.watch(visit, run, op)


@verb("Stop a run after its current batch: the one that is on, or the one of an op.")
@click.argument("run", type=click.IntRange(1), required=False)
@_OP
def cancel(visit: Visit, run: int | None, op: str | None) -> int:
    return changes.cancel(visit, run, op)


@verb()
def history(visit: Visit) -> int:
    return verbs.report(visit, "history")


@verb()
def backups(visit: Visit) -> int:
    return verbs.report(visit, "backups")


@verb()
@_YES
def backup(visit: Visit, yes: bool) -> int:
    return changes.change(visit, "backup", {}, True, None)


@verb()
@click.argument("backup")
@click.option(
    "--discard", metavar="COUNTS", help=_sentence(VERBS["restore"].options["--discard"][1])
)
@_YES
@_CODE
def restore(visit: Visit, backup: str, discard: str | None, yes: bool, code: str | None) -> int:
    named = int(backup) if backup.isascii() and backup.isdigit() else backup
    return changes.change(visit, "restore", {"backup": named, "discard": discard}, yes, code)


@verb()
@click.option(
    "--to",
    type=click.IntRange(0, 9999),
    required=True,
    metavar="VERSION",
    help="The schema version to go back to.",
)
@click.option("--dry-run", is_flag=True, help="Only on the terminal itself.")
@_YES
@_CONSENT
@_CODE
def rollback(
    visit: Visit, to: int, dry_run: bool, yes: bool, despite_unsettled: bool, code: str | None
) -> int:
    _not_here(dry_run, f"rollback --to {to} --dry-run")
    params = {"to": to, "despite_unsettled": despite_unsettled}
    return changes.change(visit, "rollback", params, yes, code)


@verb()
@click.option("--dry-run", is_flag=True, help="Only on the terminal itself.")
@_YES
@_CONSENT
@_CODE
def prune(visit: Visit, dry_run: bool, yes: bool, despite_unsettled: bool, code: str | None) -> int:
    _not_here(dry_run, "prune --dry-run")
    params = {"despite_unsettled": despite_unsettled}
    return changes.change(visit, "prune", params, yes, code)


def _not_here(asked: bool, words: str) -> None:
    if asked:
        raise UsageError(f"this is not asked over a line; on the terminal: `posagent {words}`")


@verb()
@_YES
@_CODE
def commit(visit: Visit, yes: bool, code: str | None) -> int:
    return changes.change(visit, "commit", {}, yes, code)


@verb()
@click.argument("backup", required=False)
def verify(visit: Visit, backup: str | None) -> int:
    return verbs.verify(visit, backup)


@verb()
def validate(visit: Visit) -> int:
    return verbs.validate(visit)


@verb()
def quarantine(visit: Visit) -> int:
    return verbs.report(visit, "quarantine")


@verb()
def health(visit: Visit) -> int:
    return verbs.report(visit, "health")


@verb()
def profile(visit: Visit) -> int:
    return verbs.report(visit, "profile")


@verb()
def log(visit: Visit) -> int:
    return verbs.report(visit, "log")


@verb("Every report in one file, for the service desk; no record and no key is in it.")
@click.argument("file", type=click.Path(dir_okay=False), required=False)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def bundle(visit: Visit, file: str | None, force: bool) -> int:
    return verbs.bundle(visit, file, force)


@verb("Your keyboard on the terminal's console; Ctrl-] leaves it.")
def console(visit: Visit) -> int:
    return verbs.console(visit)


@verb("The serial ports of this machine, and who answers there.")
@click.argument("names", nargs=-1, metavar="[PORT[@BAUD]]...")
@click.option("--list", "only_list", is_flag=True, help="Only list them; open none.")
def ports_(visit: Visit, names: tuple[str, ...], only_list: bool) -> int:
    entries = inventory.read_inventory(visit.inventory)
    chosen = [ports.Port(name, "") for name in names] or ports.known_ports(entries)
    with visit.out.busy("asking who is there"):
        said = ports.look(chosen, entries, greet=not only_list)
    visit.out.show(said, ports.parts_of(said))
    return 0


@verb("The service desk's answer to what a terminal's console printed, from a key file.")
@click.argument("spoken", nargs=-1, metavar="[SN SERIAL '#COUNTER' NONCE COMMAND...]")
@click.option("--fleet-key", metavar="FILE", help="The fleet's key; - for standard input.")
@click.option("--device-key", metavar="FILE", help="This terminal's key; - for standard input.")
def code(
    visit: Visit, spoken: tuple[str, ...], fleet_key: str | None, device_key: str | None
) -> int:
    if (fleet_key is None) == (device_key is None):
        raise UsageError("give --fleet-key FILE or --device-key FILE, one of them")
    path, what = (device_key, "device") if fleet_key is None else (fleet_key, "fleet")
    assert path is not None
    if path == "-" and not spoken:
        raise UsageError("standard input is the key's; give what was read out as words")
    key = desk.read_key(path, what)
    typed = sys.stdin.isatty()
    text = " ".join(spoken) or visit.asked("as the terminal printed it: " if typed else "") or ""
    if desk.lacks_command(text):
        text = f"{text} {visit.asked('for: ' if typed else '') or ''}"
    heard = desk.spoken_of(text)
    visit.out.show(*desk.answer(heard, desk.code_of(heard, key, fleet_key is not None)))
    return 0


__all__ = ["obey", "posctl"]
