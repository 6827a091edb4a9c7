"""The way back of each step: what `down` makes of one decoded record.

A value goes back only where it still is what `up` wrote, which is known from the step, the frozen
context of the run that applied it, and the entry kept for the record. Whatever else stands there
was written since by the new software: it stays, and the ledger reports it. So `down` after `up`
gives back every value, and nothing newer is lost.
"""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.step import ABSENT, Context, Step, Undo
from agent.core.steps import (
    StepFault,
    called,
    digest_of,
    fault_of,
    filled,
    mapped_from,
    move_field,
    parent_of,
    value_at,
)
from agent.ground.codec import decode, encode, same_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a reading answers beside True and False, and (whether that changed the record, the report).
KEPT, REMOVED, KEPT_IN_PART = "kept", "removed", "kept in part"
_MEANING = {KEPT: (False, KEPT), REMOVED: (True, REMOVED), KEPT_IN_PART: (True, KEPT)}


def undo_step(step: Step, key: str, record: Any, context: Context, ledger: Ledger) -> bool:
    """Undo one step on one record in place; whether it changed.

    `context` is that of the run that applied the step. Raises ValidationError as `apply_step` does.
    """
    if type(record) is not dict or (step.key is not None and step.key != key):
        return False
    try:
        said = _READINGS[step.kind](step, record, context, ledger.entry(context.version, step))
    except MemoryError:
        raise
    except BaseException as error:  # an author may raise anything
        raise fault_of(step, key, error) from error
    if type(said) is not str:
        return bool(said)
    changed, report = _MEANING[said]
    ledger.reports.append((context.version, step.number, report))
    return changed


def _set_field(
    step: Step, record: dict[str, Any], context: Context, entry: list[Any] | None
) -> bool | str:
    current = value_at(record, step.path)
    if entry == ["there"]:
        return False
    if current is ABSENT:
        return KEPT if entry is not None and entry[0] == "was" else False
    if not same_value(current, filled(step.value, context)):
        if entry is None and step.on_new == "remove":
            take_out(record, step.path, 0)
            return REMOVED
        # With if_missing it may as well have been there before: nothing to tell.
        return False if entry is None and step.if_missing else KEPT
    if entry is not None and entry[0] == "was":
        return _put(record, step.path, entry[1], context)
    if entry is None and step.default is not ABSENT:
        return _put(record, step.path, step.default, context)
    take_out(record, step.path, entry[1] if entry is not None else 0)
    return True


def _remove_field(
    step: Step, record: dict[str, Any], context: Context, entry: list[Any] | None
) -> bool | str:
    if entry is None:
        return False
    if value_at(record, step.path) is not ABSENT or _is_gone(record, step.path):
        return KEPT
    return _put(record, step.path, entry[1], context)


def _rename_field(
    step: Step, record: dict[str, Any], context: Context, entry: list[Any] | None
) -> bool | str:
    if value_at(record, step.target) is ABSENT or entry == ["stays"]:
        return False
    if value_at(record, step.path) is not ABSENT or _is_barred(record, step.path):
        return KEPT
    parent = parent_of(record, step.path, make=True)
    target = parent_of(record, step.target, make=False)
    assert parent is not None
    assert target is not None
    move_field(target, step.target[-1], parent, step.path[-1])
    _drop_empty(record, step.target, entry[1] if entry is not None else 0)
    return True


def _map_value(
    step: Step, record: dict[str, Any], context: Context, entry: list[Any] | None
) -> bool | str:
    current = value_at(record, step.path)
    if current is ABSENT:
        return False if entry is None else KEPT
    ways = mapped_from(step, current, context)
    if entry is not None:
        old = entry[1]
        known = [filled(new, context) for before, new in step.mapping if same_value(before, old)]
        wrote = known[0] if known else old
        return _put(record, step.path, old, context) if same_value(current, wrote) else KEPT
    if len(ways) == 1:
        return _put(record, step.path, ways[0], context)
    if not ways and step.other == "keep":
        return False
    if step.on_new == "remove":
        take_out(record, step.path, len(step.path))
        return REMOVED
    return KEPT


def _each(
    step: Step, record: dict[str, Any], context: Context, entry: list[Any] | None
) -> bool | str:
    if not isinstance(step.down, Undo):
        if step.down is None:
            raise StepFault("it cannot be undone")
        before = called(step, "down", step.down, step.check_down, record, context)
        return before is not None and not same_value(before, record)
    changed = kept = False
    for path, old, wrote in entry[1] if entry is not None else ():
        path = tuple(path)
        if digest_of(value_at(record, path)) != wrote or (old and _is_gone(record, path)):
            kept = True
        elif old:
            changed = bool(_put(record, path, old[0], context)) or changed
        else:
            parent = parent_of(record, path, make=False)
            assert parent is not None
            del parent[path[-1]]
            changed = True
    if step.check_down is not None and step.check_down(decode(encode(record))) is False:
        raise StepFault("its check_down() failed")
    if kept:
        return KEPT_IN_PART if changed else KEPT
    return changed


_READINGS = {
    "set_field": _set_field,
    "remove_field": _remove_field,
    "rename_field": _rename_field,
    "map_value": _map_value,
    "each": _each,
}


def _is_barred(record: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Whether something that is no object lies on the way to a field."""
    inner: Any = record
    for part in path[:-1]:
        inner = inner.get(part, ABSENT)
        if inner is ABSENT:
            return False
        if type(inner) is not dict:
            return True
    return False


def _is_gone(record: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Whether the object that held a field is gone, or something else by now: `up` left it, so the
    application has taken it away, and the field with it."""
    return len(path) > 1 and type(value_at(record, path[:-1])) is not dict


def _put(record: dict[str, Any], path: tuple[str, ...], value: Any, context: Context) -> bool | str:
    """Put a value where it was; KEPT where something that is no object is in the way by now."""
    if _is_barred(record, path):
        return KEPT
    parent = parent_of(record, path, make=True)
    assert parent is not None
    old = parent.get(path[-1], ABSENT)
    # A copy: what is put into several records must not be shared between them.
    parent[path[-1]] = filled(value, context)
    return old is ABSENT or not same_value(old, value)


def take_out(record: dict[str, Any], path: tuple[str, ...], depth: int) -> None:
    """Take a field out, and the objects on the way that it leaves empty but the first `depth`."""
    parent = parent_of(record, path, make=False)
    assert parent is not None
    del parent[path[-1]]
    _drop_empty(record, path, depth)


def _drop_empty(record: dict[str, Any], path: tuple[str, ...], depth: int) -> None:
    for end in range(len(path) - 1, depth, -1):
        parent = parent_of(record, path[:end], make=False)
        if parent is None or parent.get(path[end - 1]) != {}:
            return
        del parent[path[end - 1]]
