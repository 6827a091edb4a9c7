"""From pending migrations to passes: which steps run over which store in one walk.

All pending migrations form one plan. Between two barriers (a record that moves) the steps over one
store share one pass, in their order: steps see one record at a time, so the result equals doing
the migrations one by one, with one rewrite of each record instead of several.
"""

from __future__ import annotations

from agent.core.steps import apply_step
from agent.ground.digest import hex_digest
from agent.ground.errors import MigrationsRejected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.migration import Context, Migration, Step
    from agent.core.stores import Contracts


# The meaning of the steps (core/steps). It rises with every change of what a step does to a record,
# so that a successor begun by another agent is not continued with other readings.
READINGS = 1


class Pass:
    """One walk over one store, or the move of one record.

    `kind` is "walk" (every record), "pick" (only the records in `keys`) or "move". `steps` holds
    (migration's version, step) in order.
    """

    __slots__ = ("keys", "kind", "steps", "store")

    def __init__(self, kind: str, store: str, steps: list[tuple[int, Step]]) -> None:
        self.kind = kind
        self.store = store
        self.steps = steps
        self.keys = sorted({s.key for _, s in steps if s.key is not None})

    def describe(self) -> str:
        """One line for people."""
        return "; ".join(step.describe() for _, step in self.steps)


class Plan:
    """What has to be done to bring data from one version to another, and its digest."""

    __slots__ = ("digest", "from_version", "migrations", "passes", "to_version")

    def __init__(self, migrations: list[Migration], from_version: int, digest: str) -> None:
        self.migrations = migrations
        self.from_version = from_version
        self.to_version = migrations[-1].version if migrations else from_version
        self.digest = digest
        self.passes = passes_of(migrations)

    def contexts(self, now: int, device_id: str) -> dict[int, Context]:
        """The context of each migration's steps, by version."""
        return {m.version: m.context(now, device_id) for m in self.migrations}

    def stores(self) -> set[str]:
        """The stores whose records the plan reads or writes."""
        touched = {p.store for p in self.passes}
        return touched | {p.steps[0][1].target[0] for p in self.passes if p.kind == "move"}

    def store_groups(self) -> dict[str, str]:
        """Stores between which records move, each under the name of its group."""
        groups: dict[str, str] = {}
        for a_pass in self.passes:
            if a_pass.kind == "move" and a_pass.steps[0][1].target[0] != a_pass.store:
                a, b = a_pass.store, a_pass.steps[0][1].target[0]
                old = {groups.get(a, a), groups.get(b, b)}
                members = {a, b} | {s for s, name in groups.items() if name in old}
                for member in members:
                    groups[member] = "+".join(sorted(members))
        return groups


def plan_digest(checksums: list[str], stores_checksum: str, from_version: int) -> str:
    """What a plan is known by: it changes when a file of it, stores.json, the start or the meaning
    of the steps changes.

    It can be worked out without executing a migration file.
    """
    parts = [f"readings {READINGS}", str(from_version), stores_checksum, *checksums]
    return hex_digest("\n".join(parts).encode())


def passes_of(migrations: list[Migration]) -> list[Pass]:
    """The passes of a plan in the order they run."""
    passes: list[Pass] = []
    segment: dict[str, list[tuple[int, Step]]] = {}

    def flush() -> None:
        for store, steps in segment.items():
            picked = all(step.key is not None for _, step in steps)
            passes.append(Pass("pick" if picked else "walk", store, steps))
        segment.clear()

    for migration in migrations:
        for step in migration.steps:
            if step.kind == "move_record":
                flush()
                passes.append(Pass("move", step.store, [(migration.version, step)]))
            else:
                segment.setdefault(step.store, []).append((migration.version, step))
    flush()
    return passes


def check_plan(plan: Plan, contracts: Contracts) -> None:
    """Refuse a plan that touches what is no store, or a store that must stay byte for byte.

    Raises MigrationsRejected.
    """
    for migration in plan.migrations:
        contract = contracts.at(migration.version - 1)
        for step in migration.steps:
            for name in (step.store, step.target[0] if step.kind == "move_record" else step.store):
                store = contract.stores.get(name)
                if store is None:
                    raise MigrationsRejected(
                        f"{migration.file}: {name} is not a store of stores.json"
                    )
                if store.bytes_exact:
                    raise MigrationsRejected(
                        f"{migration.file}: {name} is kept byte for byte and cannot be migrated"
                    )


def run_pass(a_pass: Pass, key: str, record: Any, contexts: dict[int, Context]) -> bool:
    """All steps of one pass on one decoded record in place; whether it changed."""
    changed = False
    for version, step in a_pass.steps:
        if apply_step(step, key, record, contexts[version]):
            changed = True
    return changed


def moves_done(plan: Plan, present: dict[tuple[str, str], bool]) -> set[int]:
    """Numbers of the move passes that do move a record, given which of their keys exist before.

    Raises ValueError where a move would put one record over another.
    """
    present = dict(present)
    done: set[int] = set()
    for number, a_pass in enumerate(plan.passes):
        if a_pass.kind != "move":
            continue
        step = a_pass.steps[0][1]
        source, target = (step.store, str(step.key)), (step.target[0], step.target[1])
        if not present.get(source):
            continue
        if present.get(target):
            if step.if_exists == "keep":
                continue
            raise ValueError(f"{'/'.join(source)} cannot move: {'/'.join(target)} is there")
        present[source], present[target] = False, True
        done.add(number)
    return done


def move_keys(plan: Plan) -> list[tuple[str, str]]:
    """Every (store, key) that a move of the plan names."""
    keys: list[tuple[str, str]] = []
    for a_pass in plan.passes:
        if a_pass.kind == "move":
            step = a_pass.steps[0][1]
            keys += [(step.store, str(step.key)), (step.target[0], step.target[1])]
    return keys


def replay(
    plan: Plan,
    store: str,
    key: str,
    record: Any,
    contexts: dict[int, Context],
    moved: set[int],
) -> tuple[str, str, bool, tuple[tuple[str, ...], ...]]:
    """The plan's meaning for one old record: (store, key, changed, declared fields), the record
    changed in place. `moved` comes from `moves_done` on the old data.
    """
    changed = False
    fields: list[tuple[str, ...]] = []
    for number, a_pass in enumerate(plan.passes):
        if a_pass.store != store:
            continue
        if a_pass.kind == "move":
            if number in moved and a_pass.steps[0][1].key == key:
                store, key = a_pass.steps[0][1].target
            continue
        if run_pass(a_pass, key, record, contexts):
            changed = True
        fields += [f for _, step in a_pass.steps for f in step.fields]
    return store, key, changed, tuple(fields)
