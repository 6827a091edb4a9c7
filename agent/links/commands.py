"""The words of the console: a typed line to a method and its parameters, and back.

One table serves both directions, so that the text which a person confirms, which the service desk
signs and which the agent runs is always made from what was understood, never from what was typed.
"""

from __future__ import annotations

from agent.ground.words import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION_MAX = 9999
RUN_MAX = 2**53 - 1  # as for machines: what a double still counts
WORD_CHARS_SHOWN = 40

# What a word stands for, and how an error says what is allowed.
ALLOWED = {
    "run": "the number of a run, such as 17",
    "version": "a schema version from 0 to 9999",
    "backup": "the name or the number of a backup, as `backups` lists them",
    "cursor": "the number behind `next` in the page before",
    "counts": "counts such as newer=2,changed=0,gone=0,settled=0, or unknown",
    "word": "one word",
    "command": "a command that needs a service code, such as restore 41",
    "topic": "a command",
    "code": "the 8 characters that the service desk read out, such as D49P-C2W2",
}
_NUMBERS = {"run": (1, RUN_MAX), "version": (0, VERSION_MAX), "cursor": (0, RUN_MAX)}


class TypingError(Exception):
    """A line that is no command; says what is wrong with it and what is allowed."""


class Slot:
    """One word of a command that becomes one parameter."""

    __slots__ = ("kind", "label", "param", "required")

    def __init__(self, param: str, kind: str, required: bool = True, label: str = "") -> None:
        self.param = param
        self.kind = kind
        self.required = required
        self.label = label or param.upper()


class Command:
    """One command: its words in order, its options (a word and a value), its flags."""

    __slots__ = ("confirmed", "flags", "method", "name", "options", "says", "words")

    def __init__(
        self,
        name: str,
        says: str,
        words: tuple[Slot, ...] = (),
        options: dict[str, Slot] | None = None,
        flags: dict[str, str] | None = None,
        method: str | None = None,
        confirmed: bool = False,
    ) -> None:
        self.name = name
        self.says = says
        self.words = words
        self.options = options or {}
        self.flags = flags or {}
        self.method = name if method is None else method  # "" where the console answers itself
        self.confirmed = confirmed

    def usage(self) -> str:
        """How it is typed: words to fill in are in capitals, what may be left out in brackets."""
        parts = [self.name]
        parts += [slot.label if slot.required else f"[{slot.label}]" for slot in self.words]
        parts += [f"[{word} {slot.label}]" for word, slot in self.options.items()]
        return " ".join(parts + [f"[{word}]" for word in self.flags])


_RUN = (Slot("run", "run"),)
_CURSOR = (Slot("cursor", "cursor", required=False),)
_PLAN = {"plan": Slot("plan", "word", label="ID")}
_CONSENT = {"despite-unsettled": "despite_unsettled"}

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "help", "this list, or one command", (Slot("of", "topic", False, "COMMAND"),), method=""
        ),
        Command("status", "what it is doing, whether the money is safe, what to do"),
        Command("plan", "what an upgrade would do, with what, and what is in the way"),
        Command(
            "migrate",
            "start the upgrade that the next boot would start",
            (Slot("to", "version", required=False),),
            _PLAN,
            _CONSENT,
            confirmed=True,
        ),
        Command(
            "watch", "follow a run; Ctrl-C leaves it alone", (Slot("run", "run", False),), method=""
        ),
        Command("cancel", "stop a run after its current batch", _RUN),
        Command("history", "what was done and what failed", _CURSOR),
        Command("backups", "the backups on flash", _CURSOR),
        Command("backup", "make a backup of the data as it is", confirmed=True),
        Command(
            "restore",
            "replace the data by a backup",
            (Slot("backup", "backup"),),
            {"discard": Slot("discard", "counts", label="COUNTS")},
            confirmed=True,
        ),
        Command(
            "rollback",
            "go back to an earlier schema; newer sales are kept",
            (Slot("to", "version"),),
            _PLAN,
            _CONSENT,
            confirmed=True,
        ),
        Command("commit", "delete the file from before the last upgrade", confirmed=True),
        Command(
            "prune", "delete old backups and old settled records", flags=_CONSENT, confirmed=True
        ),
        Command("verify", "read a backup whole, or all", (Slot("backup", "backup", False),)),
        Command("validate", "judge every record; nothing is changed"),
        Command("quarantine", "records that earlier runs left as they were", _CURSOR),
        Command("health", "storage, flash, clock and watchdog"),
        Command("profile", "the settings in force and why", _CURSOR),
        Command("log", "what came over the lines", _CURSOR),
        Command("result", "what became of a run", _RUN),
        Command("challenge", "ask for a service code", (Slot("command", "command"),)),
        Command("code", "the code that the service desk read out", (Slot("code", "code"),)),
        Command("version", "what is installed here", method="hello"),
    )
}


def split(line: str) -> tuple[Command, list[str], bool]:
    """The command of a line that is not blank, the words behind it, and whether JSON is asked for.

    Raises TypingError for an unknown command.
    """
    words = line.split()
    as_json = len(words) > 1 and words[-1] == "--json"
    verb = words[0].lower()
    if verb not in COMMANDS:
        raise TypingError(
            f"unknown command {_quoted(words[0])} - did you mean "
            f'"{nearest(verb, COMMANDS)}"? (help lists {len(COMMANDS)} commands)'
        )
    return COMMANDS[verb], words[1 : len(words) - as_json], as_json


def parse(command: Command, words: list[str]) -> dict[str, Any]:
    """The parameters that `words` say. Raises TypingError naming the argument and what may be."""
    params: dict[str, Any] = {}
    slots, rest = list(command.words), list(words)
    value: Any
    while rest:
        word = _plain(command, rest.pop(0))
        if word in command.flags:
            name, value = command.flags[word], True
        elif word in command.options:
            slot = command.options[word]
            if not rest:
                raise TypingError(f"{word} needs {slot.label}: {ALLOWED[slot.kind]}")
            name, value = slot.param, _value(slot, rest.pop(0))
        elif slots and slots[0].kind == "command":
            slot = slots.pop(0)
            name, value, rest = slot.param, _command(word, rest), []
        elif slots and slots[0].kind == "code":
            slot = slots.pop(0)  # people type it in groups, apart or with dashes
            name, value, rest = slot.param, " ".join([word, *rest]), []
        elif slots:
            slot = slots.pop(0)
            name, value = slot.param, _value(slot, word)
        else:
            raise TypingError(f"{_quoted(word)} is too much: {command.usage()}")
        if name in params:
            raise TypingError(f"{name} stands twice: {command.usage()}")
        params[name] = value
    for slot in slots:
        if slot.required:
            raise TypingError(f"{slot.label} is missing: {ALLOWED[slot.kind]}")
    return params


def canonical(method: str, params: dict[str, Any]) -> str:
    """The one text of a call, whatever line it came over: what the number on the console and the
    code of the service desk are made from.

    `op` is left out: it tells calls apart that are the same; so is `off`, since a right to read a
    file is one to read it to its end. `understood` makes method and parameters of the text again.
    A method that is no command gets its parameters in the order of their names.
    """
    command = COMMANDS.get(method)
    if command is None:
        others = [str(params[name]) for name in sorted(params) if name not in ("op", "off")]
        return " ".join([method, *others])
    parts = [method]
    parts += [_text(params[slot.param]) for slot in command.words if slot.param in params]
    for word, slot in command.options.items():
        if params.get(slot.param) is not None:
            parts += [word, _text(params[slot.param])]
    parts += [word for word, name in command.flags.items() if params.get(name)]
    return " ".join(parts)


def understood(text: str) -> tuple[str, dict[str, Any]]:
    """Method and parameters of a canonical text. Raises TypingError where it is none."""
    if not text.split():
        raise TypingError("there is no command")
    command, words, _ = split(text)
    return command.method, parse(command, words)


def _plain(command: Command, word: str) -> str:
    """Options and flags may have the dashes that they have on the command line."""
    bare = word[2:] if word.startswith("--") else word
    return bare if bare in command.options or bare in command.flags else word


def _text(value: Any) -> str:
    """A value as one word: a blank in it must not make two arguments of one."""
    return str(value).replace("%", "%25").replace(" ", "%20")


def _value(slot: Slot, word: str) -> Any:
    if slot.kind == "topic":
        if word.lower() not in COMMANDS:
            raise TypingError(
                f'no command {_quoted(word)}; did you mean "{nearest(word, COMMANDS)}"?'
            )
        return word.lower()
    if slot.kind == "backup" and is_whole(word):
        return int(word)
    if slot.kind not in _NUMBERS:
        return word
    low, high = _NUMBERS[slot.kind]
    if not is_whole(word) or not low <= int(word) <= high:
        raise TypingError(f"{slot.label} must be {ALLOWED[slot.kind]}, not {_quoted(word)}")
    return int(word)


def _command(verb: str, words: list[str]) -> str:
    """A command inside a command, as its canonical text."""
    command, words, _ = split(" ".join([verb, *words]))
    if not command.confirmed:
        raise TypingError(f"COMMAND must be {ALLOWED['command']}, not {_quoted(command.name)}")
    return canonical(command.method, parse(command, words))


def _quoted(word: str) -> str:
    """A word as it may stand in an error: printable and of bounded length."""
    text = ascii(word[:WORD_CHARS_SHOWN])[1:-1]
    return f'"{text}"' if len(word) <= WORD_CHARS_SHOWN else f'"{text}..."'


def is_whole(word: str) -> bool:
    """Whether a word is a whole number of at most 16 digits."""
    return word.isascii() and word.isdigit() and len(word) <= 16
