"""What each declared step does to one decoded record: the plain Python reading.

The proof replays these on the old record and compares with the new one, so they are the meaning of
a step; any faster way must give the same. A reading changes the record in place, tells whether it
did, and notes in a ledger what the way back (core/undo) cannot work out. Nothing here knows a file,
a store's table or a clock.
"""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.step import ABSENT, Context, FromRun, Keep, Step, Undo
from agent.ground.codec import decode, encode, same_value
from agent.ground.digest import hex_digest
from agent.ground.errors import ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


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
    found = value_at(record, path)
    return None if found is ABSENT else found


def field_reader(path: tuple[str, ...]) -> Callable[[Any], Any]:
    """`field` for one path and many records; most paths have one part and need no loop."""
    if len(path) != 1:
        return lambda record: field(record, path)
    name = path[0]
    return lambda record: record.get(name) if type(record) is dict else None


def value_at(record: Any, path: tuple[str, ...]) -> Any:
    """The value at `path`, or ABSENT."""
    for part in path:
        if type(record) is not dict or part not in record:
            return ABSENT
        record = record[part]
    return record


def parent_of(record: dict[str, Any], path: tuple[str, ...], make: bool) -> dict[str, Any] | None:
    """The object that holds the last part of `path`; None where the way is barred or missing."""
    for part in path[:-1]:
        inner = record.get(part, ABSENT)
        if inner is ABSENT and make:
            inner = record[part] = {}
        if type(inner) is not dict:
            return None
        record = inner
    return record


def empty_parents(record: dict[str, Any], path: tuple[str, ...]) -> int:
    """How many parts of `path` are objects of which the innermost is empty; 0 where it is not.

    An empty object that was there must be told from one that a step made on its way.
    """
    depth = 0
    for part in path[:-1]:
        inner = record.get(part)
        if type(inner) is not dict:
            break
        record, depth = inner, depth + 1
    return depth if depth and not record else 0


def _set_field(step: Step, record: dict[str, Any], context: Context, ledger: Ledger) -> bool:
    old = value_at(record, step.path)
    if old is not ABSENT and step.if_missing:
        if same_value(old, filled(step.value, context)):
            # A copy: the value stays in the record, where a later step may change it.
            ledger.add(context.version, step, ["was", filled(old, context)])
        elif step.on_new == "remove":
            ledger.add(context.version, step, ["there"])
        return False
    depth = empty_parents(record, step.path) if len(step.path) > 1 else 0
    parent = parent_of(record, step.path, make=True)
    if parent is None:
        return False
    if old is ABSENT:
        if depth or step.default is not ABSENT:
            ledger.add(context.version, step, ["absent", depth])
    elif step.default is ABSENT or not same_value(old, step.default):
        ledger.add(context.version, step, ["was", old])
    value = step.value
    if type(value) not in (int, str, bool):
        value = filled(value, context)
    parent[step.path[-1]] = value
    return True


def _remove_field(step: Step, record: dict[str, Any], context: Context, ledger: Ledger) -> bool:
    old = value_at(record, step.path)
    if old is ABSENT:
        return False
    parent = parent_of(record, step.path, make=False)
    assert parent is not None
    del parent[step.path[-1]]
    ledger.add(context.version, step, ["was", old])
    return True


def _rename_field(step: Step, record: dict[str, Any], context: Context, ledger: Ledger) -> bool:
    value, taken = value_at(record, step.path), value_at(record, step.target)
    if value is ABSENT:
        if taken is not ABSENT:
            ledger.add(context.version, step, ["stays"])
        return False
    if taken is not ABSENT:
        raise StepFault(f"it has both {'.'.join(step.path)} and {'.'.join(step.target)}")
    depth = empty_parents(record, step.target)
    parent = parent_of(record, step.path, make=False)
    target = parent_of(record, step.target, make=True)
    if parent is None or target is None:
        raise StepFault(f"{'.'.join(step.target)} leads through something that is no object")
    if depth:
        ledger.add(context.version, step, ["absent", depth])
    move_field(parent, step.path[-1], target, step.target[-1])
    return True


def move_field(parent: dict[str, Any], name: str, target: dict[str, Any], to: str) -> None:
    """Give a value another place, in one object in the place it had among the others."""
    if parent is target:
        renamed = {to if k == name else k: v for k, v in parent.items()}
        parent.clear()
        parent.update(renamed)
    else:
        target[to] = parent.pop(name)


def mapped_from(step: Step, value: Any, context: Context) -> list[Any]:
    """The old values that the mapping turns into this new one."""
    return [old for old, new in step.mapping if same_value(filled(new, context), value)]


def _map_value(step: Step, record: dict[str, Any], context: Context, ledger: Ledger) -> bool:
    value = value_at(record, step.path)
    if value is ABSENT:
        return False
    known = [new for old, new in step.mapping if same_value(old, value)]
    if not known and step.other != "keep":
        raise StepFault(f"the mapping does not know the value of {'.'.join(step.path)}")
    after = filled(known[0], context) if known else value
    ways = mapped_from(step, after, context)
    if not (len(ways) == 1 and same_value(ways[0], value)) and (known or ways):
        ledger.add(context.version, step, ["was", filled(value, context)])
    if not known:
        return False
    parent = parent_of(record, step.path, make=False)
    assert parent is not None
    parent[step.path[-1]] = after
    return not same_value(value, after)


def _each(step: Step, record: dict[str, Any], context: Context, ledger: Ledger) -> bool:
    assert step.up is not None
    before = called(step, "up", step.up, step.check, record, context)
    if before is None:
        return False
    if isinstance(step.down, Undo):
        changes = changes_between(before, record)
        if changes:
            ledger.add(context.version, step, ["fields", changes])
    return not same_value(before, record)


def called(
    step: Step,
    word: str,
    function: Callable[[Any, Context], Any],
    check: Callable[[Any], Any] | None,
    record: dict[str, Any],
    context: Context,
) -> Any:
    """Let an author's function change the record; the record before, or None where it was kept.

    Raises StepFault for what may not be: an undeclared change, no JSON value, a failed check.
    """
    before = decode(encode(record))
    answer = function(record, context)
    if isinstance(answer, Keep):
        record.clear()
        record.update(before)  # what was done to it before KEEP was said does not count
        return None
    if type(answer) is not dict:
        raise StepFault(f"{word}() returned {type(answer).__name__}, not an object or KEEP")
    try:
        text = encode(answer)
        text.encode()  # half a surrogate pair has no place on flash
        after = decode(text)
    except (TypeError, ValueError, RecursionError):
        raise StepFault(f"what {word}() returned is no JSON value") from None
    outside = undeclared_change(before, after, step.fields)
    if outside is not None:
        raise StepFault(f"{word}() changed {shown_path(outside)}, which `fields` does not declare")
    if check is not None and check(decode(text)) is False:
        raise StepFault("its check() failed" if word == "up" else "its check_down() failed")
    # The record goes on as it will be read from flash: a tuple is a list for the next step too, and
    # nothing in it is shared with the author's own objects.
    record.clear()
    record.update(after)
    return before


def changes_between(
    before: dict[str, Any], after: dict[str, Any], at: tuple[str, ...] = ()
) -> list[list[Any]]:
    """What is to be put back to get from `after` to `before`: [path, [old value] or [], digest of
    the new value or ""], one for each field that came, went or changed, by its shortest path."""
    found: list[list[Any]] = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name, ABSENT), after.get(name, ABSENT)
        if type(old) is dict and type(new) is dict:
            found += changes_between(old, new, (*at, name))
        elif old is ABSENT or new is ABSENT or not same_value(old, new):
            found.append([[*at, name], [] if old is ABSENT else [old], digest_of(new)])
    return found


def digest_of(value: Any) -> str:
    """What a value is known by where it need not be kept: equal for equal values alone."""
    return "" if value is ABSENT else hex_digest(encode(_sorted(value)).encode())[:32]


def _sorted(value: Any) -> Any:
    """The value with every object's keys in order, which says nothing in JSON."""
    if type(value) is dict:
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if type(value) is list else value


_READINGS = {
    "set_field": _set_field,
    "remove_field": _remove_field,
    "rename_field": _rename_field,
    "map_value": _map_value,
    "each": _each,
}


def apply_step(
    step: Step, key: str, record: Any, context: Context, ledger: Ledger | None = None
) -> bool:
    """Do one step to one record in place; whether it changed. What its undoing needs goes into the
    ledger.

    A record that is no object is legal and passes untouched. Raises ValidationError naming the
    record and the reason, never its content.
    """
    if type(record) is not dict or (step.key is not None and step.key != key):
        return False
    try:
        return _READINGS[step.kind](step, record, context, ledger or Ledger())
    except MemoryError:
        raise
    except BaseException as error:  # an author may raise anything
        raise fault_of(step, key, error) from error


def fault_of(step: Step, key: str, error: BaseException) -> ValidationError:
    """Our error for whatever a step raised. Words of the author's or of Python's may quote the
    record; only the place is told of those."""
    reason = str(error) if type(error) is StepFault else _place_of(error)
    return ValidationError(
        f"{step.store}/{shown(key)}: {reason} ({step.describe()})",
        store=step.store,
        key=shown(key),
    )


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
        (before is ABSENT and type(after) is dict and after)
        or (after is ABSENT and type(before) is dict and before)
    ):
        left: Any = {} if before is ABSENT else before
        right: Any = {} if after is ABSENT else after
        found: list[tuple[str, ...]] = []
        for part in left.keys() | right.keys():
            found += changed_paths(left.get(part, ABSENT), right.get(part, ABSENT), (*at, part))
        return found
    if before is ABSENT or after is ABSENT or not same_value(before, after):
        return [at]
    return []


def _declared(path: tuple[str, ...], fields: tuple[tuple[str, ...], ...]) -> bool:
    return any(path[: len(declared)] == declared for declared in fields)


def undeclared_change(
    before: Any, after: Any, fields: tuple[tuple[str, ...], ...]
) -> tuple[str, ...] | None:
    """One changed path that no declared field covers, or None.

    An empty object on the way to a declared field says nothing: it is what stays of a field that
    one step set and a later one removed.
    """
    for path in changed_paths(before, after):
        if not _declared(path, fields) and not _is_way(path, before, after, fields):
            return path
    return None


def _is_way(
    path: tuple[str, ...], before: Any, after: Any, fields: tuple[tuple[str, ...], ...]
) -> bool:
    """Whether no more than an empty object on the way to a declared field came or went."""
    ends = (value_at(before, path), value_at(after, path))
    return all(end is ABSENT or end == {} for end in ends) and any(
        declared[: len(path)] == path for declared in fields
    )


# Digits in a row that may be a card's number (ISO/IEC 7812-1). 13 would hide every time in
# milliseconds, and 13-digit numbers are no longer issued.
CARD_DIGITS_MIN = 14
SHOWN_CHARS_MAX = 60
SENTENCE_CHARS_MAX = 400


def shown(key: Any) -> str:
    """A record's key as it may appear in a message: bounded, printable, no card's number."""
    text = key if isinstance(key, str) else repr(key)
    # Masked before it is cut: a number that the cut shortens would no longer be known as one.
    text = _without_card_numbers(text[: 16 * SHOWN_CHARS_MAX])
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def shown_words(text: str) -> str:
    """A sentence from a file that others can write, as it may be shown again."""
    text = _without_card_numbers(text[:SENTENCE_CHARS_MAX])
    return "".join(c if c.isprintable() else "?" for c in text)


def shown_path(path: tuple[str, ...]) -> str:
    """A field's path as it may appear in a message: a name may be a card's number as well."""
    return shown(".".join(path))


def _without_card_numbers(text: str) -> str:
    """Long rows of digits, masked but for their first six and last four.

    Blanks and dashes between digits count as nothing, digits of any script as digits; whether a
    check digit fits is not asked, since whatever stands behind a number would undo it.
    """
    out: list[str] = []
    row: list[str] = []
    for char in text + "\0":
        if char.isdecimal() or (row and char in " -"):
            row.append(char)
            continue
        tail: list[str] = []
        while row and not row[-1].isdecimal():
            tail.insert(0, row.pop())
        out += [*_masked(row), *tail, char]
        row = []
    return "".join(out)[:-1]


def _masked(row: list[str]) -> list[str]:
    places = [place for place, char in enumerate(row) if char.isdecimal()]
    if len(places) >= CARD_DIGITS_MIN:
        for place in places[6:-4]:
            row[place] = "*"
    return row
