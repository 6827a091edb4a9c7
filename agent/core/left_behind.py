"""Quarantine: records that a migration could not do and that were left byte for byte as they were.

Each has a row of its own in pos.db: store, key, the schema version it is still at, its digest and
the reason. Later plans bring it from its own version or leave it again; a record that the
application has changed since is an ordinary one of the file's version. Nothing here does I/O.
"""

from __future__ import annotations

from agent.core.ledger import Ledger
from agent.core.meaning import Move, run_pass
from agent.core.steps import apply_step, shown
from agent.ground.codec import decode, encode
from agent.ground.digest import sha256
from agent.ground.errors import ValidationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from agent.core.plan import Pass, Plan
    from agent.core.step import Step
    from agent.core.stores import Contracts

# More bad records than this say that the migration is wrong, or the data as a whole.
LEFT_BEHIND_MAX = 1000


def record_digest(store: str, key: Any, value: Any) -> bytes:
    """32 bytes that name a record (first half) and its value (second half)."""
    return record_name(store, key) + bytes(sha256(_bytes_of(value)).digest()[:16])


def record_name(store: str, key: Any) -> bytes:
    """The half of a digest that names a record."""
    return bytes(sha256(store.encode() + b"\0" + _bytes_of(key)).digest()[:16])


def _bytes_of(value: Any) -> bytes:
    """What flash holds of a text or BLOB; for what should be neither, its type and value."""
    if type(value) is str:
        return value.encode("utf-8", "surrogateescape")
    return value if type(value) is bytes else f"\0{type(value).__name__} {value!r}".encode()


class Left:
    """One record left behind. `key` is as it may be shown; `version` is what the record is at."""

    __slots__ = ("digest", "key", "reason", "store", "version")

    def __init__(self, store: str, key: str, version: int, digest: str, reason: str) -> None:
        self.store = store
        self.key = key
        self.version = version
        self.digest = digest
        self.reason = reason

    def as_json(self) -> dict[str, Any]:
        """Plain values for the row and for reports."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, given: Any) -> Left | None:
        """The row again, or None when it is none this agent can read."""
        try:
            left = cls(**{name: given[name] for name in cls.__slots__})
        except (KeyError, TypeError):
            return None
        texts = (left.store, left.key, left.digest, left.reason)
        right = all(type(text) is str for text in texts) and type(left.version) is int
        return left if right and left.version >= 0 else None


class LeftBehind:
    """All of a file's rows, for looking records up while a store is walked."""

    __slots__ = ("_rows",)

    def __init__(self, rows: dict[str, Left]) -> None:
        """`rows` are by the hex of the record's name, the first half of its digest."""
        self._rows: dict[str, dict[str, Left]] = {}
        for name, row in rows.items():
            self._rows.setdefault(row.store, {})[name] = row

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def names(self, store: str) -> list[str]:
        """The names of a store's rows."""
        return list(self._rows.get(store, ()))

    def named(self, store: str, name: str) -> Left:
        """One row by its name."""
        return self._rows[store][name]

    def rows(self) -> list[Left]:
        """All rows, store by store."""
        return [row for rows in self._rows.values() for row in rows.values()]

    def in_store(self, store: str) -> bool:
        """Whether any record of the store was left behind; most often none was."""
        return store in self._rows

    def of(self, store: str, key: Any, value: Any) -> Left | None:
        """The row of this very record, unchanged since; None for any other."""
        rows = self._rows.get(store)
        if rows is None:
            return None
        row = rows.get(record_name(store, key).hex())
        if row is None or row.digest != record_digest(store, key, value).hex()[32:]:
            return None
        return row


class Stopped:
    """How far one record came in a pass: its text then, its version, what its way back needs, and
    why it came no further."""

    __slots__ = ("ledger", "reason", "text", "version")

    def __init__(self, text: str, version: int, ledger: Ledger, reason: str) -> None:
        self.text = text
        self.version = version
        self.ledger = ledger
        self.reason = reason


def judged(plan: Plan, contracts: Contracts, may_leave_unsettled: bool) -> set[str]:
    """The stores in which a record that cannot be read stops the run."""
    found = plan.stores()
    for store in sorted(found):
        rules = contracts.at(plan.from_version).stores.get(store)
        if plan.down:
            may_be_odd = others_stay(plan, store)
        else:
            may_be_odd = _may_leave(plan, store)
            if rules is not None and rules.rules and not may_leave_unsettled:
                may_be_odd = False
        if may_be_odd:
            found = found - {store}
    return found


def others_stay(plan: Plan, store: str) -> bool:
    """Whether migrations that all declare quarantine name single records of a store and no more.
    The others may hold anything: the way up has not looked at them, and so the way down does not.
    """
    for migration in plan.migrations:
        steps = [step for step in migration.steps if store in stores_of(step)]
        if steps and (not migration.quarantine or any(step.key is None for step in steps)):
            return False
    return True


def stores_of(step: Step) -> tuple[str, ...]:
    """The stores that a step reads or writes."""
    return (step.store, step.target[0]) if step.kind == "move_record" else (step.store,)


def _may_leave(plan: Plan, store: str) -> bool:
    """Whether each migration that has to do with a store declares quarantine, as far as the first
    one that looks at every record of it: what cannot be read was left behind then."""
    for migration in plan.migrations:
        steps = [step for step in migration.steps if store in stores_of(step)]
        if steps and not migration.quarantine:
            return False
        if any(step.key is None for step in steps):
            return True
    return True


def as_far_as(
    plan: Plan, a_pass: Pass, key: str, text: str, check: Callable[[str], None], depth_max: int
) -> Stopped:
    """Bring one record through a pass a migration at a time, until one that declares quarantine
    cannot do it. The record stays as it was before that migration.

    `check(text)` raises ValidationError for a record that grew too large. Raises the
    ValidationError of a migration that does not declare quarantine.
    """
    noted = Ledger()
    for version in a_pass.versions():
        ledger = Ledger()
        try:
            record = decode(text, depth_max)
            changed = False
            for of_version, step in a_pass.steps:
                if of_version == version:
                    context = plan.contexts[version]
                    changed = apply_step(step, key, record, context, ledger) or changed
            after = encode(record) if changed else text
            if changed:
                check(after)
        except ValidationError as error:
            if not plan.quarantines(version):
                raise
            return Stopped(text, version - 1, noted, error.message)
        text = after
        noted.entries.update(ledger.entries)
    raise AssertionError("the pass as a whole failed and each migration of it did not")


def first_version(a_pass: Pass, key: str) -> int:
    """The first migration of a pass that has a step for this record."""
    for version, step in a_pass.steps:
        if step.key is None or step.key == key:
            return version
    return a_pass.steps[0][0]


def first_naming(plan: Plan, store: str, key: Any) -> int | None:
    """The first migration that has a step for this record, on the way up; None where the plan has
    nothing to do with it: of a store of which steps name single records, the others stay as they
    are at every version, whatever they hold."""
    for a_pass in plan.passes:
        for version, step in a_pass.steps if a_pass.store == store else ():
            if step.kind != "sql" and _fits(step, key):
                return version
    return None


def _fits(step: Step, key: Any) -> bool:
    return step.key is None or step.key == key


def fails_behind(
    plan: Plan, number: int, text: str, check: Callable[[str], None], depth_max: int
) -> str:
    """Why a migration cannot do a record at the place to which its move, pass `number`, takes it;
    "" where it can. Half a migration is none: such a record is not moved either."""
    a_pass = plan.passes[number]
    version, place = a_pass.steps[0][0], Move(a_pass).target
    record = decode(text, depth_max)
    changed = False
    try:
        for later in plan.passes[number + 1 :]:
            for of_version, step in later.steps:
                if of_version != version or step.store != place[0] or not _fits(step, place[1]):
                    continue
                if step.kind == "move_record":
                    place = Move(later).target
                elif apply_step(step, place[1], record, plan.contexts[version]):
                    changed = True
        if changed:
            check(encode(record))
    except ValidationError as error:
        return error.message
    return ""


def brought_up(plan: Plan, store: str, key: str, record: Any, at: int, ledger: Ledger) -> bool:
    """Give a left record the steps between its own version and the plan's, in place; whether it
    changed. Raises ValidationError where it still cannot be done, and for a record that has been
    given another place since: it stays where it is."""
    changed = False
    for migration in plan.earlier:
        if migration.version <= at:
            continue
        for step in migration.steps:
            if step.kind == "move_record" and (step.store, step.key) == (store, key):
                raise ValidationError(f"{store}/{shown(key)}: {step.describe()}")
            if step.store == store and step.kind not in ("move_record", "sql"):
                context = plan.contexts[migration.version]
                changed = apply_step(step, key, record, context, ledger) or changed
    return changed


def replay_left(
    plan: Plan,
    store: str,
    key: str,
    text: str,
    moved: set[int],
    check: Callable[[str], None],
    depth_max: int,
    is_left: Callable[[str, str, str], Any] | None = None,
    ledgers: dict[tuple[str, str], Ledger] | None = None,
) -> tuple[str, str, str, int | None]:
    """The plan's meaning, upwards, for one old record that may be left behind on the way: (store,
    key, text, its version if it was left). `is_left(store, key, text)` tells of a record that is
    not among the `moved` because the new file says that it was left; `ledgers` take what the way
    back needs of what it had.

    The long way round: pass by pass, with the text between them.
    """
    ledgers = {} if ledgers is None else ledgers
    for number, a_pass in enumerate(plan.passes):
        if a_pass.kind == "move":
            move = Move(a_pass)
            if move.source != (store, key):
                continue
            version = a_pass.steps[0][0]
            judged = number in moved or (is_left is not None and is_left(store, key, text))
            judged = judged and plan.quarantines(version)
            if judged and fails_behind(plan, number, text, check, depth_max):
                return store, key, text, version - 1
            if number in moved:
                store, key = move.target
        elif a_pass.kind != "sql" and a_pass.store == store:
            if a_pass.kind == "pick" and key not in a_pass.keys:
                continue
            ledger, all_of_it = Ledger(), ledgers.setdefault((store, key), Ledger())
            try:
                record = decode(text, depth_max)
                if run_pass(a_pass, key, record, plan.contexts, ledger):
                    after = encode(record)
                    check(after)
                    text = after
            except ValidationError:
                stopped = as_far_as(plan, a_pass, key, text, check, depth_max)
                all_of_it.join(stopped.ledger)
                return store, key, stopped.text, stopped.version
            all_of_it.join(ledger)
    return store, key, text, None
