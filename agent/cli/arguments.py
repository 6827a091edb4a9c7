"""The command line as data: every verb, its words and options, and the help made from them."""

from __future__ import annotations

from agent.ground.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Verb:
    """One verb: what it does, its words (a trailing ? means optional) and its own options.

    An option maps its name to (word for its value or "" for a switch, what it does).
    """

    __slots__ = ("options", "says", "words")

    def __init__(
        self,
        says: str,
        words: tuple[str, ...] = (),
        options: dict[str, tuple[str, str]] | None = None,
    ) -> None:
        self.says = says
        self.words = words
        self.options = options or {}


EVERYWHERE = {
    "--root": ("DIR", "put DIR before every path"),
    "--config": ("FILE", "read this configuration instead of /etc/posagent/config.json"),
    "--json": ("", "answer with one JSON object"),
    "--help": ("", "show this help"),
}

VERBS = {
    "boot": Verb("bring the data to the installed schema, as the terminal does at start"),
    "run": Verb("the same, then stay and answer on the socket and the serial line"),
    "console": Verb("the technician's console on standard input and output"),
    "status": Verb(
        "what is going on, is the money safe, may it be unplugged, what to do",
        options={"--exit-code": ("", "exit 3 when migrations are pending")},
    ),
    "plan": Verb("what a migration would do, need and take; changes nothing"),
    "migrate": Verb(
        "run the pending migrations now, also those that were given up",
        options={
            "--despite-unsettled": (
                "",
                "consent where the profile says to settle first; history notes it",
            )
        },
    ),
    "rollback": Verb(
        "go back to an earlier schema without losing what was sold since",
        options={
            "--to": ("VERSION", "the schema version to go back to"),
            "--dry-run": ("", "say which way leads there and what it would keep; changes nothing"),
            "--despite-unsettled": ("", "consent, as for migrate"),
        },
    ),
    "commit": Verb("give up the way back: delete the file from before the last switch"),
    "backup": Verb("take a verified backup now"),
    "backups": Verb("list the backups"),
    "restore": Verb(
        "replace the data by a backup",
        ("BACKUP",),
        {
            "--discard": (
                "COUNTS",
                "consent to a loss: newer=N,changed=N,gone=N,settled=N; or unknown",
            )
        },
    ),
    "verify": Verb("check backups from the first byte to the last", ("BACKUP?",)),
    "quarantine": Verb("list the records that could not be migrated and were left as they are"),
    "validate": Verb("read every record of the data and report what is odd; changes nothing"),
    "prune": Verb(
        "delete old backups, and settled records as stores.json allows",
        options={
            "--dry-run": ("", "only say what would be deleted; changes nothing"),
            "--despite-unsettled": ("", "consent, as for migrate"),
        },
    ),
    "history": Verb("what was done, and what failed"),
    "log": Verb("who asked for what on the lines, and what was refused"),
    "health": Verb("check storage, file system, clock, watchdog and the agent's own files"),
    "profile": Verb("show the device profile in force"),
    "key": Verb(
        "show whether a service key is set, or set it; the key itself is never shown",
        options={
            "--set": ("FILE", "take the key from FILE, or - for standard input"),
            "--fleet": ("FILE", "derive the key from the fleet's key, which is not kept"),
            "--remove": ("", "delete the key; then nobody is admin on a line"),
        },
    ),
    "check": Verb("check the migration files, for authors and CI"),
    "new": Verb("write a new migration file", ("NAME",)),
}


class Command:
    """A parsed command line."""

    __slots__ = ("config", "json", "options", "root", "verb", "words")

    def __init__(self) -> None:
        self.verb = ""
        self.root = ""
        self.config: str | None = None
        self.json = False
        self.words: list[str] = []
        self.options: dict[str, Any] = {}


def parse(arguments: list[str]) -> Command:
    """Read a command line. Raises UsageError with the nearest known word."""
    command = Command()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        name, equals, value = word.partition("=")
        if word.startswith("--") and word != "--":
            own = VERBS[command.verb].options if command.verb else {}
            option = EVERYWHERE.get(name) or own.get(name)
            if name == "--version" and not command.verb:
                command.verb = "version"
                return command
            if option is None:
                raise UsageError(_unknown("option", name, (*EVERYWHERE, *own)))
            if option[0] and not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"{name} needs {option[0]}")
                value = rest.pop(0)
            if not option[0] and equals:
                raise UsageError(f"{name} takes no value")
            _take(command, name, value if option[0] else True)
        elif not command.verb:
            if word not in VERBS:
                raise UsageError(_unknown("verb", word, tuple(VERBS)))
            command.verb = word
        else:
            command.words.append(word)
    if command.options.get("--help") or not command.verb:
        return command
    expected = VERBS[command.verb].words
    needed = [w for w in expected if not w.endswith("?")]
    if len(command.words) < len(needed):
        raise UsageError(f"{command.verb} needs {needed[len(command.words)]}")
    if len(command.words) > len(expected):
        if command.verb == "key":  # the word may be a key, which no sentence repeats
            raise UsageError("key takes no words; see: posagent key --help")
        raise UsageError(f'{command.verb} does not take "{command.words[len(expected)]}"')
    return command


def _take(command: Command, name: str, value: Any) -> None:
    if name == "--root":
        command.root = value
    elif name == "--config":
        command.config = value
    elif name == "--json":
        command.json = True
    else:
        command.options[name] = value


def _unknown(what: str, word: str, known: tuple[str, ...]) -> str:
    from agent.ground.words import nearest, shown

    return f"unknown {what} {shown(word)}; did you mean {nearest(word, known)}?"


def help_text(verb: str) -> str:
    """The help of one verb, or of all."""
    from agent.cli.output import wrap

    if verb in VERBS:
        entry = VERBS[verb]
        words = " ".join(f"[{w[:-1]}]" if w.endswith("?") else w for w in entry.words)
        lines = [f"posagent [--root DIR] [--config FILE] {verb} {words}".rstrip()]
        lines += ["", *wrap("", entry.says), ""]
        lines += _option_lines({**entry.options, **EVERYWHERE})
    else:
        lines = ["posagent [--root DIR] [--config FILE] VERB [--json]", ""]
        for name, entry in VERBS.items():
            lines += wrap(f"  {name:11}", entry.says)
        lines += ["", *_option_lines({**EVERYWHERE, "--version": ("", "show the version")})]
    return "\n".join(lines) + "\n"


def _option_lines(options: dict[str, tuple[str, str]]) -> list[str]:
    from agent.cli.output import wrap

    lines = []
    for name, (value, says) in options.items():
        lines += wrap(f"  {(name + ' ' + value).rstrip():23}", says)
    return lines
