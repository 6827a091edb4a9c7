"""A step as data, and the few values that steps are written with; core/steps says what it does."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.ddl import Statement


class FromRun:
    """A value that is known only when the run starts and is the same after every reboot."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name.upper()


NOW = FromRun("now")  # milliseconds since 1970, frozen at the run's first start
DEVICE_ID = FromRun("device_id")
FROM_VERSION = FromRun("from_version")  # VERSION - 1 of the migration that holds the step
TO_VERSION = FromRun("version")


class Context:
    """All that a step may know beside its record. Nothing here changes within a run."""

    __slots__ = ("device_id", "from_version", "now", "version")

    def __init__(self, now: int, device_id: str, from_version: int, version: int) -> None:
        self.now = now
        self.device_id = device_id
        self.from_version = from_version
        self.version = version


class Keep:
    """What `up` of an `each` step returns for a record that stays as it is."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP = Keep()


class Undo:
    """As `down` of an `each` step: the agent keeps what `up` changed and puts it back itself."""

    def __repr__(self) -> str:
        return "UNDO"


UNDO = Undo()


class Absent:
    """Stands for "no value" where null is a value."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


class Step:
    """One declared change of one store. Built by the functions below, never by hand."""

    __slots__ = (
        "check",
        "check_down",
        "ddl",
        "ddl_down",
        "default",
        "down",
        "fields",
        "forget",
        "if_exists",
        "if_missing",
        "keeps",
        "key",
        "kind",
        "mapping",
        "number",
        "on_new",
        "other",
        "path",
        "store",
        "target",
        "up",
        "value",
    )

    def __init__(self, kind: str, store: str, **given: Any) -> None:
        self.kind = kind
        self.store = store
        self.path: tuple[str, ...] = given.get("path", ())
        self.target: tuple[str, ...] = given.get("target", ())
        self.value: Any = given.get("value")
        self.if_missing: bool = given.get("if_missing", False)
        self.if_exists: str = given.get("if_exists", "fail")
        self.mapping: list[tuple[Any, Any]] = given.get("mapping", [])
        self.other: Any = given.get("other", "fail")
        self.key: str | None = given.get("key")
        self.up: Callable[[Any, Context], Any] | None = given.get("up")
        self.down: Any = given.get("down")  # a function, UNDO, KEEP or None
        self.check: Callable[[Any], Any] | None = given.get("check")
        self.check_down: Callable[[Any], Any] | None = given.get("check_down")
        self.ddl: Statement | None = given.get("ddl")
        self.ddl_down: Statement | None = given.get("ddl_down")
        self.on_new: str = given.get("on_new", "keep")
        self.forget: bool = given.get("forget", False)
        # Paths whose values this step may change; the proof holds a record to them.
        self.fields: tuple[tuple[str, ...], ...] = given.get("fields", ())
        # Set by the plan: the step's place in its migration, whether what `down` needs is kept, and
        # the value that migrations before gave this field in every record (core/plan).
        self.number = 0
        self.keeps = True
        self.default: Any = ABSENT

    def numbered(self, number: int) -> Step:
        """A copy that knows its place in its migration."""
        step = Step(self.kind, self.store)
        for name in self.__slots__:
            setattr(step, name, getattr(self, name))
        step.number = number
        return step

    @property
    def reversible(self) -> bool:
        """Whether `down` can be derived from the step and what it keeps, or was given."""
        if self.kind == "remove_field":
            return not self.forget
        if self.kind not in ("each", "sql"):
            return True
        if self.ddl is not None and self.ddl.drops_table and self.on_new == "remove":
            return False  # rows of a further table are not kept
        return self.down is not None or self.ddl_down is not None

    def describe(self) -> str:
        """One line for a plan: what is done to what."""
        place = self.store + ("" if self.key is None else f"/{self.key}")
        path = ".".join(self.path)
        if self.kind == "set_field":
            extra = " where missing" if self.if_missing else ""
            return f"set {path} of {place}{extra}"
        if self.kind == "remove_field":
            return f"remove {path} of {place}"
        if self.kind == "rename_field":
            return f"rename {path} of {place} to {'.'.join(self.target)}"
        if self.kind == "map_value":
            return f"map {len(self.mapping)} values of {path} of {place}"
        if self.kind == "move_record":
            return f"move {place} to {self.target[0]}/{self.target[1]}"
        if self.kind == "sql":
            assert self.ddl is not None
            return self.ddl.describe()
        return f"each record of {place}: {', '.join('.'.join(f) for f in self.fields)}"
