"""Trying every step on sample records, for `check`: what a step cannot do is told to its author.

The samples are made from stores.json and from what the steps name; no terminal's data is used.
"""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.steps import StepFault, apply_step, changed_paths, undeclared_change
from agent.core.undo import undo_step
from agent.ground.codec import decode, encode, same_value
from agent.ground.errors import ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.migration import Migration
    from agent.core.step import Step
    from agent.core.stores import Contract, Contracts

    Mark = Callable[[str], None]

SAMPLE_NOW_MS = 1_767_225_600_000


class Found:
    """Faults refuse the files; warnings say what an author should know. Each is told once."""

    def __init__(self) -> None:
        self.faults: list[dict[str, str]] = []
        self.warnings: list[dict[str, str]] = []
        self.stopped: set[Step] = set()  # steps of which a run's stop was told already

    def fault(self, file: str, message: str) -> None:
        _once(self.faults, file, message)

    def warn(self, file: str, message: str) -> None:
        _once(self.warnings, file, message)


def _once(told: list[dict[str, str]], file: str, message: str) -> None:
    message = message[len(file) + 2 :] if message.startswith(f"{file}: ") else message
    if not any(one["file"] == file and one["message"] == message for one in told):
        told.append({"file": file, "message": message})


def samples_of(contract: Contract, store: str, steps: list[Step]) -> list[Any]:
    """Small records as a store may hold them: what is no object, an empty object, one with the
    fields of stores.json, and those with every field the steps name as number, text, list, object.
    """
    rules = contract.stores[store]
    plain: dict[str, Any] = {"nested": {"deep": {"list": [1, {"a": None}]}}, "größe": "10,50 €"}
    for path in rules.timestamps:
        _put(plain, path, SAMPLE_NOW_MS)
    for path, value in ((rules.amount, 1050), (rules.currency, "EUR")):
        if path:
            _put(plain, path, value)
    for kind, path, values, _ in rules.rules:
        if kind == "field":
            _put(plain, path, values[0])
    found: list[Any] = ["a bare string", [1, "two"], 7, None, {}, plain]
    kinds: tuple[Any, ...] = (1050, "text", [1, 2], {"a": 1}, None)
    for value in kinds:
        record = _copy(plain)
        for step in steps:
            for path in (step.path, *(step.fields if step.kind == "each" else ())):
                if path:
                    _put(record, path, value)
        found.append(record)
    for step in steps:
        if step.kind == "map_value":
            for old, _ in step.mapping:
                record = _copy(plain)
                _put(record, step.path, list(old) if type(old) is tuple else old)
                found.append(record)
    return found


def _put(record: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        inner = record.get(part)
        if type(inner) is not dict:
            inner = record[part] = {}
        record = inner
    # A copy: put in at two paths of a record, one in the other, it would hold itself.
    record.setdefault(path[-1], _copy(value))


def _copy(record: Any) -> Any:
    return decode(encode(record))


def try_steps(migrations: list[Migration], contracts: Contracts, found: Found, mark: Mark) -> None:
    """Every step on every sample, in order; then all of them again on what came out."""
    by_store: dict[str, list[tuple[Migration, Step]]] = {}
    for migration in migrations:
        for step in migration.steps:
            if step.kind not in ("move_record", "sql"):
                by_store.setdefault(step.store, []).append((migration, step))
    for store, steps in by_store.items():
        contract = contracts.at(steps[0][0].version - 1)
        if store not in contract.stores:
            continue
        records = samples_of(contract, store, [step for _, step in steps])
        for again in (False, True):
            for migration, step in steps:
                mark(f"trying {migration.file}: {step.describe()}")
                records = _try_step(migration, step, records, again, found)


def _try_step(
    migration: Migration, step: Step, records: list[Any], again: bool, found: Found
) -> list[Any]:
    """The records after one step; one that the step cannot be done to stays as it was."""
    context = migration.context(SAMPLE_NOW_MS, "device")
    after, stopped, objects = [], [], 0
    for record in records:
        before, changed, ledger = _copy(record), _copy(record), Ledger()
        objects += type(record) is dict
        try:
            said = apply_step(step, step.key or "a-key", changed, context, ledger)
            changed = _copy(changed)
        except ValidationError as error:
            if _is_always_wrong(error, step):
                found.fault(migration.file, _reason(error))
            elif _is_unexpected(error, step):
                stopped.append(_reason(error))
            after.append(before)
            continue
        except (ValueError, TypeError) as error:
            found.fault(migration.file, f"{step.describe()}: its result is no JSON ({error})")
            after.append(before)
            continue
        outside = undeclared_change(before, changed, step.fields)
        if outside is not None or (not said and not same_value(before, changed)):
            found.fault(migration.file, f"{step.describe()}: it changes more than it declares")
        elif step.reversible and not again:
            _try_back(migration, step, before, changed, ledger, found)
        after.append(changed)
    if stopped and step not in found.stopped:
        found.stopped.add(step)
        which = "already migrated sample records" if again else "sample records"
        text = f"{stopped[0]}; a run stops at such a record ({len(stopped)} of {objects} {which})"
        if len(stopped) == objects and not again:
            found.fault(migration.file, text)
        else:
            found.warn(migration.file, text)
    return after


def _try_back(
    migration: Migration, step: Step, before: Any, after: Any, ledger: Ledger, found: Found
) -> None:
    """`down` after `up` must give the record back."""
    back = _copy(after)
    context = migration.context(SAMPLE_NOW_MS, "device")
    try:
        undo_step(step, step.key or "a-key", back, context, ledger)
        paths = changed_paths(before, back)
    except ValidationError as error:
        found.fault(migration.file, f"down() cannot undo what up() made: {_reason(error)}")
        return
    if paths:
        names = ", ".join(sorted(".".join(path) or "the record" for path in paths))
        found.fault(
            migration.file,
            f"{step.describe()}: down() after up() does not give back {names}; down=UNDO keeps it",
        )


def _is_always_wrong(error: ValidationError, step: Step) -> bool:
    """Whether it says something of the step itself and not of a record that does not fit."""
    cause = error.__cause__
    return (
        step.kind == "each" and isinstance(cause, StepFault) and not str(cause).startswith("its ")
    )


def _is_unexpected(error: ValidationError, step: Step) -> bool:
    """A mapping that does not know a value, or a name taken already, is what was asked for."""
    return step.kind == "each" or not isinstance(error.__cause__, StepFault)


def _reason(error: ValidationError) -> str:
    return error.message.partition(": ")[2]
