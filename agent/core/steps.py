"""What each declared step does to one decoded record: the plain Python reading.

The proof replays these on the old record and compares with the new one, so they are the meaning of
a step; any faster way must give the same. A reading changes the record in place and tells whether
it did. Nothing here knows a file, a store's table or a clock.
"""

from __future__ import annotations

from agent.core.migration import Context, FromRun, Keep, Step
from agent.ground.codec import decode, encode, same_value
from agent.ground.errors import ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_MISSING = object()


class StepFault(ValueError):
    """Why a step cannot be done, in words that hold nothing of the record."""


def filled(value: Any, context: Context) -> Any:
    """`value` with the run's own values in place of their names; always a fresh copy."""
    if isinstance(value, FromRun):
        return getattr(context, value.name)
    if isinstance(value, dict):
        return {k: filled(v, context) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(v, context) for v in value]
    return value


def field(record: Any, path: tuple[str, ...]) -> Any:
    """The value at `path`, or None where there is none."""
    found = _get(record, path)
    return None if found is _MISSING else found


def field_reader(path: tuple[str, ...]) -> Callable[[Any], Any]:
    """`field` for one path and many records; most paths have one part and need no loop."""
    if len(path) != 1:
        return lambda record: field(record, path)
    name = path[0]
    return lambda record: record.get(name) if type(record) is dict else None


def _get(record: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if type(record) is not dict or part not in record:
            return _MISSING
        record = record[part]
    return record


def _parent(record: dict[str, Any], path: tuple[str, ...], make: bool) -> dict[str, Any] | None:
    """The object that holds the last part of `path`; None where the way is barred or missing."""
    for part in path[:-1]:
        inner = record.get(part, _MISSING)
        if inner is _MISSING and make:
            inner = record[part] = {}
        if type(inner) is not dict:
            return None
        record = inner
    return record


def _set_field(step: Step, record: dict[str, Any], context: Context) -> bool:
    if step.if_missing and _get(record, step.path) is not _MISSING:
        return False
    parent = _parent(record, step.path, make=True)
    if parent is None:
        return False
    value = step.value
    if type(value) not in (int, str, bool):
        value = filled(value, context)
    parent[step.path[-1]] = value
    return True


def _remove_field(step: Step, record: dict[str, Any], context: Context) -> bool:
    parent = _parent(record, step.path, make=False)
    return parent is not None and parent.pop(step.path[-1], _MISSING) is not _MISSING


def _rename_field(step: Step, record: dict[str, Any], context: Context) -> bool:
    value = _get(record, step.path)
    if value is _MISSING:
        return False
    if _get(record, step.target) is not _MISSING:
        raise StepFault(f"it has both {'.'.join(step.path)} and {'.'.join(step.target)}")
    parent = _parent(record, step.path, make=False)
    target = _parent(record, step.target, make=True)
    if parent is None or target is None:
        raise StepFault(f"{'.'.join(step.target)} leads through something that is no object")
    if parent is target:  # in its place: the order of the other fields stays
        renamed = {step.target[-1] if k == step.path[-1] else k: v for k, v in parent.items()}
        parent.clear()
        parent.update(renamed)
    else:
        target[step.target[-1]] = parent.pop(step.path[-1])
    return True


def _map_value(step: Step, record: dict[str, Any], context: Context) -> bool:
    value = _get(record, step.path)
    if value is _MISSING:
        return False
    known = [new for old, new in step.mapping if same_value(old, value)]
    if not known:
        if step.other == "keep":
            return False
        raise StepFault(f"the mapping does not know the value of {'.'.join(step.path)}")
    parent = _parent(record, step.path, make=False)
    assert parent is not None
    parent[step.path[-1]] = filled(known[0], context)
    return not same_value(value, known[0])


def _each(step: Step, record: dict[str, Any], context: Context) -> bool:
    assert step.up is not None
    before = decode(encode(record))
    answer = step.up(record, context)
    if isinstance(answer, Keep):
        record.clear()
        record.update(before)  # what up() did to it before it said KEEP does not count
        return False
    if type(answer) is not dict:
        raise StepFault(f"up() returned {type(answer).__name__}, not an object or KEEP")
    try:
        text = encode(answer)
        text.encode()  # half a surrogate pair has no place on flash
        after = decode(text)
    except (TypeError, ValueError, RecursionError):
        raise StepFault("what up() returned is no JSON value") from None
    outside = undeclared_change(before, after, step.fields)
    if outside is not None:
        raise StepFault(f"up() changed {'.'.join(outside)}, which `fields` does not declare")
    if step.check is not None and step.check(decode(text)) is False:
        raise StepFault("its check() failed")
    # The record goes on as it will be read from flash: a tuple is a list for the next step too, and
    # nothing in it is shared with the author's own objects.
    record.clear()
    record.update(after)
    return not same_value(before, after)


_READINGS = {
    "set_field": _set_field,
    "remove_field": _remove_field,
    "rename_field": _rename_field,
    "map_value": _map_value,
    "each": _each,
}


def apply_step(step: Step, key: str, record: Any, context: Context) -> bool:
    """Do one step to one record in place; whether it changed.

    A record that is no object is legal and passes untouched. Raises ValidationError naming the
    record and the reason, never its content.
    """
    if type(record) is not dict or (step.key is not None and step.key != key):
        return False
    try:
        return _READINGS[step.kind](step, record, context)
    except MemoryError:
        raise
    except BaseException as error:  # an author may raise anything
        # Words of the author's or of Python's may quote the record; only the place is told.
        reason = str(error) if type(error) is StepFault else _place_of(error)
        raise ValidationError(
            f"{step.store}/{shown(key)}: {reason} ({step.describe()})",
            store=step.store,
            key=shown(key),
        ) from error


def _place_of(error: BaseException) -> str:
    where, trace = "the step", error.__traceback__
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} in {where}"


def changed_paths(before: Any, after: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The longest paths whose values differ between two decoded records.

    An object that came or went counts by what is in it, so that a field declared inside it does
    not cover the others.
    """
    if (type(before) is dict and type(after) is dict) or (
        (before is _MISSING and type(after) is dict and after)
        or (after is _MISSING and type(before) is dict and before)
    ):
        left: Any = {} if before is _MISSING else before
        right: Any = {} if after is _MISSING else after
        found: list[tuple[str, ...]] = []
        for part in left.keys() | right.keys():
            found += changed_paths(left.get(part, _MISSING), right.get(part, _MISSING), (*at, part))
        return found
    if before is _MISSING or after is _MISSING or not same_value(before, after):
        return [at]
    return []


def _declared(path: tuple[str, ...], fields: tuple[tuple[str, ...], ...]) -> bool:
    return any(path[: len(declared)] == declared for declared in fields)


def undeclared_change(
    before: Any, after: Any, fields: tuple[tuple[str, ...], ...]
) -> tuple[str, ...] | None:
    """One changed path that no declared field covers, or None."""
    for path in changed_paths(before, after):
        if not _declared(path, fields):
            return path
    return None


def shown(key: Any) -> str:
    """A record's key as it may appear in a message: bounded, printable, no card's number."""
    text = key if isinstance(key, str) else repr(key)
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= 60 else text[:57] + "..."
    return _without_card_numbers(text)


def _without_card_numbers(text: str) -> str:
    """Digits that could be a card's number, masked but for its first six and last four.

    14 to 19 digits with a right check digit (ISO/IEC 7812-1); 13 would hide every time in
    milliseconds, and 13-digit numbers are no longer issued.
    """
    out: list[str] = []
    run = ""
    for char in text + " ":
        if char.isascii() and char.isdigit():
            run += char
            continue
        if 14 <= len(run) <= 19 and _check_digit_fits(run):
            run = run[:6] + "*" * (len(run) - 10) + run[-4:]
        out.append(run + char)
        run = ""
    return "".join(out)[:-1]


def _check_digit_fits(digits: str) -> bool:
    """The Luhn check of ISO/IEC 7812-1, annex B."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
