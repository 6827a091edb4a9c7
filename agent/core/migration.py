"""What a migration file is written with: a few functions that build steps, which are data.

A file sets VERSION, NAME and STEPS and does nothing else: it never opens the database, loops,
commits or reads a clock (docs/writing-migrations.md). Steps can so be shown, costed, replayed by
the proof and, later, fused, compiled to SQL and undone.
"""

from __future__ import annotations

from agent.ground.codec import Number
from agent.ground.errors import MigrationsRejected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable, Union

    Path = Union[str, Sequence[str]]


NESTING_MAX = 32  # levels that one step may add to a record


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


class Step:
    """One declared change of one store. Built by the functions below, never by hand."""

    __slots__ = (
        "check",
        "down",
        "fields",
        "if_exists",
        "if_missing",
        "key",
        "kind",
        "mapping",
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
        self.down: Callable[[Any, Context], Any] | None = given.get("down")
        self.check: Callable[[Any], Any] | None = given.get("check")
        # Paths whose values this step may change; the proof holds a record to them.
        self.fields: tuple[tuple[str, ...], ...] = given.get("fields", ())

    @property
    def reversible(self) -> bool:
        """Whether `down` can be derived from the step alone or was given by its author."""
        if self.kind == "each":
            return self.down is not None
        return self.kind in ("rename_field", "move_record")

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
        return f"each record of {place}: {', '.join('.'.join(f) for f in self.fields)}"


def _path(path: Path) -> tuple[str, ...]:
    parts = tuple(path.split(".")) if isinstance(path, str) else tuple(path)
    if not 0 < len(parts) <= NESTING_MAX or not all(_is_name(part) for part in parts):
        raise MigrationsRejected(f"{path!r} is no path to a field")
    return parts


def _is_name(text: Any) -> bool:
    """Whether it can name a store, a record or a field: text, not empty, with a UTF-8 form."""
    return isinstance(text, str) and text != "" and _fits_json(text)


def _fits_json(value: Any, depth: int = 0) -> bool:
    """Whether JSON can say the value, the run's own values (NOW and the like) included."""
    if type(value) is str:
        return not any("\ud800" <= char <= "\udfff" for char in value)
    if type(value) is float:
        return value - value == 0  # neither NaN nor infinite
    if type(value) is dict:
        return depth < NESTING_MAX and all(
            type(k) is str and _fits_json(k) and _fits_json(v, depth + 1) for k, v in value.items()
        )
    if type(value) in (list, tuple):
        return depth < NESTING_MAX and all(_fits_json(v, depth + 1) for v in value)
    return type(value) in (int, bool, type(None), FromRun, Number)


def _named(store: str, *keys: str | None) -> None:
    for name in (store, *(key for key in keys if key is not None)):
        if not _is_name(name):
            raise MigrationsRejected(f"{name!r} is no name of a store or record")


def set_field(
    store: str, path: Path, value: Any, *, if_missing: bool = False, key: str | None = None
) -> Step:
    """Set a field; objects on the way are made where they are missing.

    `value` is anything JSON can say and may hold NOW, DEVICE_ID, FROM_VERSION and TO_VERSION at
    any depth. With `if_missing` a field that is there, null included, stays as it is. With `key`
    only that record is meant. A record that is no object, or a path that leads through something
    that is no object, stays untouched.
    """
    path = _path(path)
    _named(store, key)
    if not _fits_json(value):
        raise MigrationsRejected(f"set_field({store}, {'.'.join(path)}): JSON cannot say its value")
    return Step(
        "set_field", store, path=path, value=value, if_missing=if_missing, key=key, fields=(path,)
    )


def remove_field(store: str, path: Path, *, key: str | None = None) -> Step:
    """Remove a field; a record without it stays untouched. What was there is gone with the run."""
    path = _path(path)
    _named(store, key)
    return Step("remove_field", store, path=path, key=key, fields=(path,))


def rename_field(store: str, path: Path, to: Path, *, key: str | None = None) -> Step:
    """Give a field another name or place, its value unread. A record without it stays untouched.

    A record that already has the new field stops the run: one of the two would be lost.
    """
    path, target = _path(path), _path(to)
    _named(store, key)
    if path[: len(target)] == target[: len(path)]:
        raise MigrationsRejected(
            f"rename_field({store}): one of {'.'.join(path)} and {'.'.join(target)} is in the other"
        )
    return Step("rename_field", store, path=path, target=target, key=key, fields=(path, target))


def map_value(
    store: str,
    path: Path,
    mapping: dict[Any, Any],
    *,
    other: str = "fail",
    key: str | None = None,
) -> Step:
    """Replace a field's value by the one that `mapping` names for it.

    A value that `mapping` does not know stops the run, or stays with `other="keep"`. True is not 1
    here. A record without the field stays untouched.
    """
    if other not in ("fail", "keep"):
        raise MigrationsRejected(f'other={other!r}: it is "fail" or "keep"')
    path = _path(path)
    _named(store, key)
    pairs = list(mapping.items())
    if not all(_fits_json(part) for pair in pairs for part in pair):
        raise MigrationsRejected(f"map_value({store}, {'.'.join(path)}): JSON cannot say a value")
    return Step("map_value", store, path=path, mapping=pairs, other=other, key=key, fields=(path,))


def move_record(
    store: str,
    key: str,
    *,
    to_key: str,
    to_store: str | None = None,
    if_exists: str = "fail",
) -> Step:
    """Give one record another key, or another store. No such record: nothing to do.

    A record already under the new key stops the run, or with `if_exists="keep"` both stay.
    """
    if if_exists not in ("fail", "keep"):
        raise MigrationsRejected(f'if_exists={if_exists!r}: it is "fail" or "keep"')
    target = (to_store or store, to_key)
    _named(store, key, *target)
    if target == (store, key):
        raise MigrationsRejected(f"move_record({store}, {key}): it is there already")
    return Step("move_record", store, key=key, target=target, if_exists=if_exists)


def each(
    store: str,
    up: Callable[[Any, Context], Any],
    down: Callable[[Any, Context], Any] | None = None,
    check: Callable[[Any], Any] | None = None,
    *,
    fields: Sequence[Path],
    key: str | None = None,
) -> Step:
    """Change records by a pure function, for what the other steps cannot say.

    `up(record, context)` gets each object of the store and returns the new object, or KEEP.
    `fields` names every path it may change; a change anywhere else stops the run, so does a
    `check(record)` of the new record that raises or returns False.
    """
    paths = tuple(_path(path) for path in fields)
    if not paths:
        raise MigrationsRejected("each() changes nothing if `fields` is empty")
    _named(store, key)
    if not callable(up) or not all(f is None or callable(f) for f in (down, check)):
        raise MigrationsRejected(f"each({store}): up, down and check must be functions")
    return Step("each", store, up=up, down=down, check=check, fields=paths, key=key)


class Migration:
    """One loaded file: the change from version - 1 to version."""

    __slots__ = ("checksum", "conserve", "file", "min_reader", "name", "steps", "version")

    def __init__(
        self,
        version: int,
        name: str,
        steps: list[Step],
        file: str,
        checksum: str,
        min_reader: int | None = None,
        conserve: Sequence[str] = (),
    ) -> None:
        self.version = version
        self.name = name
        self.steps = steps
        self.file = file
        self.checksum = checksum
        self.min_reader = min_reader
        self.conserve = tuple(conserve)

    def context(self, now: int, device_id: str) -> Context:
        """What this migration's steps may know."""
        return Context(now, device_id, self.version - 1, self.version)


def migration_from(namespace: dict[str, Any], version: int, file: str, checksum: str) -> Migration:
    """Check what an executed file has set. Raises MigrationsRejected naming file and fault."""

    def refuse(fault: str) -> MigrationsRejected:
        return MigrationsRejected(f"{file}: {fault}", file=file)

    if "VERSION" not in namespace:
        raise refuse("it sets no VERSION")
    declared, name, steps = (namespace.get(word) for word in ("VERSION", "NAME", "STEPS"))
    if type(declared) is not int or declared != version:
        raise refuse(f"VERSION is {declared!r} but the file's number is {version}")
    if not isinstance(name, str) or not name:
        raise refuse("NAME must be a text that says what the migration does")
    if not isinstance(steps, (list, tuple)) or not all(isinstance(s, Step) for s in steps):
        raise refuse("STEPS must be a list of steps made by the functions of agent.core.migration")
    conserve = namespace.get("CONSERVE", ())
    if conserve:
        raise refuse("CONSERVE is not known to this agent; count and sums are conserved always")
    min_reader = namespace.get("MIN_READER")
    if min_reader is not None and type(min_reader) is not int:
        raise refuse("MIN_READER must be a schema version")
    return Migration(version, name, list(steps), file, checksum, min_reader)
