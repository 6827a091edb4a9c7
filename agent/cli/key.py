"""`key`: the service key, by which a technician without a network is told from anybody else.

Rules: a key comes from a file or from standard input, never from the command line, where the list
of processes and the shell's history would keep it; no key appears in any answer, only its
fingerprint. A fleet key is read, used once and not kept: a stolen terminal gives away its own key
and no other.
"""

from __future__ import annotations

from agent.cli.output import show
from agent.edges import keyfile
from agent.ground.errors import EXIT_OK, ConfigError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cli.arguments import Command
    from agent.edges.config import Config

_HEX_DIGITS = "0123456789abcdefABCDEF"
_KEY_LIKE_CHARS = 32  # half a key on the command line is as bad as a whole one


def key(command: Command, config: Config) -> int:
    """Show whether there is a service key; or set it, derive it, remove it."""
    asked = [name for name in ("--set", "--fleet", "--remove") if name in command.options]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} do not go together")
    changed = bool(asked)
    if asked and asked[0] == "--remove":
        changed = keyfile.remove_key(config.state_dir)
    elif asked:
        _set(config, asked[0] == "--fleet", command.options[asked[0]])
    _show(command, config, changed)
    return EXIT_OK


def _set(config: Config, is_fleet: bool, path: str) -> None:
    _refuse_a_typed_key(path)
    if config.device_id is None:
        raise ConfigError(
            f"{config.path} has no 'device_id'; a key belongs to one terminal, so name it first",
            path=config.path,
            key="device_id",
        )
    given = keyfile.read_given(path)
    if is_fleet:
        from agent.links.access import device_key

        given = device_key(given, config.device_id)
    keyfile.write_key(config.state_dir, given)


def _refuse_a_typed_key(path: str) -> None:
    if len(path) >= _KEY_LIKE_CHARS and not path.strip(_HEX_DIGITS):
        raise UsageError(
            "a key is never typed on the command line, where others can read it; that one is "
            "spent: make another, and give its file or - for standard input"
        )


def _show(command: Command, config: Config, changed: bool) -> None:
    found = keyfile.read_key(config.state_dir)
    mark = None if found is None else keyfile.fingerprint(found)
    result = {
        "serial": config.device_id,
        "present": found is not None,
        "fingerprint": mark,
        "changed": changed,
    }
    told = "none: nobody is admin on a line" if mark is None else f"present, fingerprint {mark}"
    lines = [
        f"serial       {config.device_id or 'none: set device_id in ' + config.path}",
        f"service key  {told}",
    ]
    if changed:
        lines.append("`posagent run` uses it from its next start on.")
    show(result, lines, command.json)
