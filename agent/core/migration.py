"""What a migration file is written with: a few functions that build steps, which are data.

A file sets VERSION, NAME and STEPS and does nothing else: it never opens the database, loops,
commits or reads a clock (docs/writing-migrations.md). Steps can so be shown, costed, fused,
replayed by the proof and undone.
"""

from __future__ import annotations

from agent.core.ddl import statement_of
from agent.core.step import (
    DEVICE_ID,
    FROM_VERSION,
    KEEP,
    NOW,
    TO_VERSION,
    UNDO,
    Context,
    FromRun,
    Keep,
    Step,
    Undo,
)
from agent.ground.codec import Number
from agent.ground.errors import MigrationsRejected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable, Union

    Path = Union[str, Sequence[str]]


# What an author imports from here, and what makes up a migration.
__all__ = [
    "DEVICE_ID",
    "FROM_VERSION",
    "KEEP",
    "NOW",
    "TO_VERSION",
    "UNDO",
    "Context",
    "Migration",
    "Step",
    "each",
    "map_value",
    "migration_from",
    "move_record",
    "remove_field",
    "rename_field",
    "set_field",
    "sql",
]

NESTING_MAX = 32  # levels that one step may add to a record


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


def _untupled(value: Any) -> Any:
    """A dict's key as JSON reads it: a tuple stands for a list."""
    return [_untupled(item) for item in value] if type(value) is tuple else value


def _named(store: str, *keys: str | None) -> None:
    for name in (store, *(key for key in keys if key is not None)):
        if not _is_name(name):
            raise MigrationsRejected(f"{name!r} is no name of a store or record")


def _on_new(word: str) -> str:
    if word not in ("keep", "remove"):
        raise MigrationsRejected(f'on_new={word!r}: it is "keep" or "remove"')
    return word


def set_field(
    store: str,
    path: Path,
    value: Any,
    *,
    if_missing: bool = False,
    key: str | None = None,
    on_new: str = "keep",
) -> Step:
    """Set a field; objects on the way are made where they are missing.

    `value` is anything JSON can say and may hold NOW, DEVICE_ID, FROM_VERSION and TO_VERSION at
    any depth. With `if_missing` a field that is there, null included, stays as it is. With `key`
    only that record is meant. A record that is no object, or a path that leads through something
    that is no object, stays untouched.

    `down` gives the old value back, or takes the field out where there was none. A value that is
    not what was set here was written by the new software: it stays and is reported, or with
    `on_new="remove"` the field of a record that the new software made is taken out.
    """
    path = _path(path)
    _named(store, key)
    if not _fits_json(value):
        raise MigrationsRejected(f"set_field({store}, {'.'.join(path)}): JSON cannot say its value")
    return Step(
        "set_field",
        store,
        path=path,
        value=value,
        if_missing=if_missing,
        key=key,
        on_new=_on_new(on_new),
        fields=(path,),
    )


def remove_field(store: str, path: Path, *, key: str | None = None, forget: bool = False) -> Step:
    """Remove a field; a record without it stays untouched.

    What was there is kept beside the records, so that `down` gives it back; where the new software
    has written the field since, its value stays and is reported. With `forget=True`, for what must
    not be kept anywhere, nothing is, and the step cannot be undone.
    """
    path = _path(path)
    _named(store, key)
    return Step("remove_field", store, path=path, key=key, forget=forget, fields=(path,))


def rename_field(store: str, path: Path, to: Path, *, key: str | None = None) -> Step:
    """Give a field another name or place, its value unread. A record without it stays untouched.

    A record that already has the new field stops the run: one of the two would be lost. `down` does
    the same backwards, also to records that the new software made; one that has both fields by then
    stays as it is and is reported.
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
    on_new: str = "keep",
) -> Step:
    """Replace a field's value by the one that `mapping` names for it.

    A value that `mapping` does not know stops the run, or stays with `other="keep"`. True is not 1
    here. A record without the field stays untouched. `down` maps backwards; where several old
    values lead to one new value, the old one is kept beside the records. A value of the new
    software that no single old value stands for stays and is reported, or with `on_new="remove"` is
    taken out.
    """
    if other not in ("fail", "keep"):
        raise MigrationsRejected(f'other={other!r}: it is "fail" or "keep"')
    path = _path(path)
    _named(store, key)
    pairs = [(_untupled(old), new) for old, new in mapping.items()]
    if not all(_fits_json(part) for pair in pairs for part in pair):
        raise MigrationsRejected(f"map_value({store}, {'.'.join(path)}): JSON cannot say a value")
    return Step(
        "map_value",
        store,
        path=path,
        mapping=pairs,
        other=other,
        key=key,
        on_new=_on_new(on_new),
        fields=(path,),
    )


def move_record(
    store: str,
    key: str,
    *,
    to_key: str,
    to_store: str | None = None,
    if_exists: str = "fail",
) -> Step:
    """Give one record another key, or another store. No such record: nothing to do.

    A record already under the new key stops the run, or with `if_exists="keep"` both stay. `down`
    moves back what was moved here; a record that the new software put under the new key stays there
    and is reported.
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
    down: Callable[[Any, Context], Any] | Undo | None = None,
    check: Callable[[Any], Any] | None = None,
    *,
    fields: Sequence[Path],
    check_down: Callable[[Any], Any] | None = None,
    key: str | None = None,
) -> Step:
    """Change records by a pure function, for what the other steps cannot say.

    `up(record, context)` gets each object of the store and returns the new object, or KEEP.
    `fields` names every path it may change; a change anywhere else stops the run, so does a
    `check(record)` of the new record that raises or returns False.

    `down(record, context)` is the same backwards, for every object of the store by then, records of
    the new software included, and `check_down(record)` judges what it made. With `down=UNDO` the
    agent keeps what `up` changed and puts it back where it is still so. Without `down` the step
    cannot be undone, and so cannot any migration before it.
    """
    paths = tuple(_path(path) for path in fields)
    if not paths:
        raise MigrationsRejected("each() changes nothing if `fields` is empty")
    _named(store, key)
    functions = (None if isinstance(down, Undo) else down, check, check_down)
    if not callable(up) or not all(f is None or callable(f) for f in functions):
        raise MigrationsRejected(
            f"each({store}): up, down, check and check_down must be functions (down may be UNDO)"
        )
    return Step(
        "each",
        store,
        up=up,
        down=down,
        check=check,
        check_down=check_down,
        fields=paths,
        key=key,
    )


def sql(up: str, down: str | Keep | None, *, on_new: str = "keep") -> Step:
    """One schema statement: CREATE or DROP of an INDEX, TABLE or VIEW, ALTER TABLE ... ADD COLUMN.

    Indexes, also on stores, and further tables are what it is for; stores cannot be dropped or
    altered. What is there already in the same words, or under IF NOT EXISTS, or gone already, needs
    nothing. `down` undoes
    it, is KEEP for what may stay (an added column), or None for what cannot be undone. A further
    table that holds rows by then is not dropped but stays and is reported, or with
    `on_new="remove"` goes with what the new software wrote.
    """
    return Step(
        "sql",
        "",
        ddl=statement_of(up),
        down=down if isinstance(down, Keep) else None,
        ddl_down=statement_of(down) if type(down) is str else None,
        on_new=_on_new(on_new),
    )


class Migration:
    """One loaded file: the change from version - 1 to version.

    `min_reader` is the lowest schema version of an application that can read the result, `version`
    itself unless the file says otherwise. `quarantine` tells that a record which cannot be migrated
    is left as it is and does not stop the run.
    """

    __slots__ = (
        "checksum",
        "file",
        "min_reader",
        "name",
        "quarantine",
        "steps",
        "version",
    )

    def __init__(
        self,
        version: int,
        name: str,
        steps: list[Step],
        file: str,
        checksum: str,
        min_reader: int | None = None,
        quarantine: bool = False,
    ) -> None:
        self.version = version
        self.name = name
        self.steps = [step.numbered(number) for number, step in enumerate(steps)]
        self.file = file
        self.checksum = checksum
        self.min_reader = version if min_reader is None else min_reader
        self.quarantine = quarantine

    @property
    def reversible(self) -> bool:
        """Whether every step can be undone."""
        return all(step.reversible for step in self.steps)

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
    if min_reader is not None and (type(min_reader) is not int or not 0 <= min_reader <= version):
        raise refuse(f"MIN_READER must be a schema version from 0 to {version}")
    quarantine = namespace.get("QUARANTINE", False)
    if type(quarantine) is not bool:
        raise refuse("QUARANTINE must be True or False")
    return Migration(version, name, list(steps), file, checksum, min_reader, quarantine)
