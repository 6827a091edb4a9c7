"""The table of methods: what each takes, whom it serves, whether it changes anything.

One table for machines, console and documents. Judging parameters is strict, since a typing error
that is passed over in silence may be the one that mattered: a parameter that is not known is an
error, and so is "14" or 14.0 where 14 is meant.
"""

from __future__ import annotations

from agent.ground.words import nearest, shown
from agent.links.wire import remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.links.wire import RemoteError

OP_CHARS_MIN = 8
OP_CHARS_MAX = 36
_OP_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

VERSION_MAX = 9999  # four digits in a migration's file name
NUMBER_MAX = (1 << 53) - 1  # cursors and runs: what a double still counts
EVENTS = ("progress", "state", "alarm")


class Param:
    """One parameter: its kind with the bounds of that kind, and whether it must be there.

    Kinds: `op`, `version`, `int` (low, high), `ints` (a list of 1 to 8 such), `text` (chars_max),
    `flag`, `words` (a list of choices), `any_of` (alternatives). What `is_secret` is never told
    back, not even in part.
    """

    __slots__ = (
        "alternatives",
        "chars_max",
        "choices",
        "high",
        "is_secret",
        "kind",
        "low",
        "required",
    )

    def __init__(
        self,
        kind: str,
        required: bool = True,
        low: int = 0,
        high: int = NUMBER_MAX,
        chars_max: int = 64,
        choices: tuple[str, ...] = (),
        alternatives: tuple[Param, ...] = (),
        is_secret: bool = False,
    ) -> None:
        self.kind = kind
        self.required = required
        self.low = low
        self.high = VERSION_MAX if kind == "version" else high
        self.chars_max = chars_max
        self.choices = choices
        self.alternatives = alternatives
        self.is_secret = is_secret

    def allows(self) -> str:
        """What may stand there, as the end of the sentence "it must be"."""
        if self.kind == "op":
            return f"a text of {OP_CHARS_MIN} to {OP_CHARS_MAX} of A-Z a-z 0-9 _ -"
        if self.kind in ("version", "int"):
            end = "on" if self.high == NUMBER_MAX else f"to {self.high}"
            return f"a whole number from {self.low} {end}"
        if self.kind == "ints":
            return f"a list of 1 to 8 whole numbers from {self.low} to {self.high}"
        if self.kind == "text":
            return f"a text of 1 to {self.chars_max} printable ASCII characters"
        if self.kind == "words":
            return f"a list of some of {', '.join(self.choices)}, each once"
        if self.kind == "any_of":
            return " or ".join([one.allows() for one in self.alternatives])
        return "true or false"

    def fits(self, value: Any) -> bool:
        """Whether the value may stand there; True is no number and 14.0 is not 14."""
        kind = self.kind
        if kind == "any_of":
            return any(one.fits(value) for one in self.alternatives)
        if kind in ("version", "int"):
            return type(value) is int and self.low <= value <= self.high
        if kind == "flag":
            return type(value) is bool
        if kind in ("ints", "words"):
            return type(value) is list and self._fits_list(value)
        return type(value) is str and self._fits_text(value)

    def _fits_list(self, values: list[Any]) -> bool:
        if self.kind == "ints":
            whole = all(type(one) is int and self.low <= one <= self.high for one in values)
            return whole and 1 <= len(values) <= 8
        known = all(type(one) is str and one in self.choices for one in values)
        return known and 0 < len(values) == len(set(values))

    def _fits_text(self, text: str) -> bool:
        if self.kind == "op":
            length_fits = OP_CHARS_MIN <= len(text) <= OP_CHARS_MAX
            return length_fits and all(char in _OP_CHARS for char in text)
        return 1 <= len(text) <= self.chars_max and text.isascii() and text.isprintable()


class Method:
    """One method: its name, whom it serves, its parameters, and what it does in one sentence.

    `changes`: it starts a run or changes something, needs `op`, and is carried out once for it.
    `one_of`: of these parameters exactly one is needed.
    """

    __slots__ = ("changes", "level", "name", "one_of", "params", "says")

    def __init__(
        self,
        name: str,
        level: str,
        says: str,
        /,
        *,
        changes: bool = False,
        one_of: tuple[str, ...] = (),
        **params: Param,
    ) -> None:
        self.name = name
        self.level = level
        self.says = says
        self.changes = changes
        self.one_of = one_of
        self.params = {"op": _OP, **params} if changes else params

    def as_json(self) -> dict[str, Any]:
        """What `describe` tells of it; it fits a reply on a serial line."""
        return {
            "method": self.name,
            "level": self.level,
            "changes": self.changes,
            "says": self.says,
            "params": {
                name: {"required": param.required, "allowed": param.allows()}
                for name, param in self.params.items()
            },
        }


def _number(low: int = 0, high: int = NUMBER_MAX, required: bool = True) -> Param:
    return Param("int", required, low, high)


def _text(chars_max: int, required: bool = True, is_secret: bool = False) -> Param:
    return Param("text", required, chars_max=chars_max, is_secret=is_secret)


_OP = Param("op")
_CURSOR = _number(required=False)
_RUN = _number(1)
_TO = Param("version")
_MAY = Param("flag", required=False)
_PLAN = _text(64, required=False)
_BACKUP_FORMS = (_number(1, 999_999_999), _text(64))  # its number, or its name in the folder


def _backup(required: bool) -> Param:
    return Param("any_of", required, alternatives=_BACKUP_FORMS)


_ALL = (
    Method(
        "hello", "read", "Agrees on a protocol version and tells what this agent is and allows.",
        proto=Param("ints", low=1, high=99), client=_text(40, False),
        token=_text(128, False, is_secret=True),
    ),
    Method(
        "describe", "read", "Names the methods, or tells what one takes and does.",
        method=_text(32, False),
    ),
    Method("ping", "read", "Answers, and nothing else."),
    Method("status", "read", "What is going on, whether the money is safe, what to do."),
    Method("plan", "read", "What the next run would do, what it needs and whether that is there.",
           cursor=_CURSOR),
    Method("history", "read", "What runs have done, newest first.", cursor=_CURSOR),
    Method("backups", "read", "The backups on this terminal, newest first.", cursor=_CURSOR),
    Method("log", "read", "What was asked over lines and how it ended, newest first.",
           cursor=_CURSOR),
    Method("quarantine", "read", "The records that migrations left as they were.", cursor=_CURSOR),
    Method("health", "read", "Checks of storage, flash, clock and watchdog.",
           cursor=_CURSOR),
    Method("profile", "read", "The device profile in force.", cursor=_CURSOR),
    Method("result", "read", "What became of a call or a run.", one_of=("op", "run"),
           op=Param("op", required=False), run=_number(1, required=False)),
    Method(
        "subscribe", "read", "Sends events of these kinds from now on; answers with the status.",
        events=Param("words", choices=EVENTS), min_ms=_number(0, 3_600_000, required=False),
    ),
    Method("unsubscribe", "read", "Sends no more events."),
    Method("console", "read", "Makes this connection a console; sockets only."),
    Method("validate", "tech", "Starts a check of all records; changes nothing."),
    Method("verify", "tech", "Starts a check of one backup, or of all; changes nothing.",
           backup=_backup(required=False)),
    Method("backup", "tech", "Makes a backup.", changes=True),
    Method("migrate", "tech", "Starts the upgrade to the installed target.", changes=True,
           to=_TO, plan=_PLAN, despite_unsettled=_MAY),
    Method("cancel", "tech", "Stops a run after its current batch; the data stays as it was.",
           changes=True, run=_RUN),
    Method("read", "tech", "Reads a piece of a file that the agent offers.",
           name=_text(64), off=_number(0, (1 << 32) - 1)),
    Method("challenge", "tech", "Asks for what the service desk needs to allow one command.",
           command=_text(200)),
    Method("code", "tech", "Brings the service desk's code, good for one command.",
           code=_text(128, is_secret=True)),
    Method("commit", "admin", "Deletes the old file that a switch back would need.", changes=True),
    Method("restore", "admin", "Starts putting a backup in the place of the data.", changes=True,
           backup=_backup(required=True), discard=_text(80, required=False)),
    Method("rollback", "admin", "Starts the return to an earlier version.", changes=True,
           to=_TO, plan=_PLAN, despite_unsettled=_MAY),
    Method("prune", "admin", "Starts deleting old backups and old settled records.", changes=True,
           despite_unsettled=_MAY),
)  # fmt: skip
METHODS = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """The method of that name; RemoteError METHOD naming the nearest one."""
    method = METHODS.get(name)
    if method is None:
        known = nearest(name, METHODS)
        raise remote("METHOD", f"no method {shown(name)}; nearest: {known}", nearest=known)
    return method


def check_params(method: Method, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters as given, judged; RemoteError PARAMS says which one is wrong and what may be.

    A changing method without `op` gets OP_MISSING: nothing could tell its repeat from a new call.
    """
    for name in params:
        if name not in method.params:
            raise _unknown(method, name)
    for name, param in method.params.items():
        if name in params:
            if not param.fits(params[name]):
                raise _wrong(name, param, params[name])
        elif param.required:
            raise _missing(method, name, param)
    if method.one_of and sum([name in params for name in method.one_of]) != 1:
        names = " or ".join(method.one_of)
        raise remote("PARAMS", f"{method.name} needs exactly one of {names}", param=names)
    return dict(params)


def _unknown(method: Method, name: str) -> RemoteError:
    if not method.params:
        return remote("PARAMS", f"{method.name} takes no parameters, not {shown(name)}")
    known = nearest(name, method.params)
    return remote(
        "PARAMS", f"{method.name} has no parameter {shown(name)}; nearest: {known}", nearest=known
    )


def _wrong(name: str, param: Param, value: Any) -> RemoteError:
    allowed = param.allows()
    got = "" if param.is_secret else f", not {_named(value)}"
    return remote("PARAMS", f"{name} must be {allowed}{got}", param=name, allowed=allowed)


def _missing(method: Method, name: str, param: Param) -> RemoteError:
    kind = "OP_MISSING" if param.kind == "op" else "PARAMS"
    allowed = param.allows()
    return remote(kind, f"{method.name} needs {name}: {allowed}", param=name, allowed=allowed)


def _named(value: Any) -> str:
    """A value of bounded length in an error's sentence, as JSON has it where that is short."""
    if value is None or type(value) is bool:
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is str:
        return f"the text {shown(value)}"
    if type(value) is list:
        return "this list"
    return "an object" if type(value) is dict else repr(value)
