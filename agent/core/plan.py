"""From migrations to passes: which steps run over which store in one walk, on the way up or down.

All pending migrations form one plan. Between two barriers (a record that moves, a schema statement)
the steps over one store share one pass, in their order: steps see one record at a time, so the
result equals doing the migrations one by one, with one rewrite of each record instead of several.
The way down is the same backwards.
"""

from __future__ import annotations

from agent.core.applied import bind
from agent.core.ledger import Ledger
from agent.core.meaning import Move
from agent.core.step import Context
from agent.ground.digest import hex_digest
from agent.ground.errors import MigrationsRejected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from agent.core.applied import Applied, Constants
    from agent.core.migration import Migration
    from agent.core.step import Step
    from agent.core.stores import Contracts

    # What a record's ledger is when a pass begins: an empty one on the way up.
    LedgerOf = Callable[[str, str], Ledger]


# The meaning of the steps (core/steps) and of what is kept for their way back. It rises with every
# change of either, so that a successor begun by another agent is not continued with other readings.
READINGS = 2


class Pass:
    """One walk over one store, the move of one record, or one schema statement.

    `kind` is "walk" (every record), "pick" (only the records in `keys`), "move" or "sql". `steps`
    holds (migration's version, step) in order. `split` are the versions that had an earlier pass
    over this store in the same plan, so that their ledger rows may be there already.
    """

    __slots__ = ("down", "keys", "kind", "split", "steps", "store")

    def __init__(
        self, kind: str, store: str, steps: list[tuple[int, Step]], down: bool = False
    ) -> None:
        self.kind = kind
        self.store = store
        self.steps = steps
        self.down = down
        self.keys = sorted({s.key for _, s in steps if s.key is not None})
        self.split: set[int] = set()

    def versions(self) -> list[int]:
        """The migrations that have steps in the pass, in the order they run."""
        return list(dict.fromkeys(version for version, _ in self.steps))

    def describe(self) -> str:
        """One line for people."""
        return "; ".join(step.describe() for _, step in self.steps)


class Plan:
    """What has to be done to bring data from one version to another, and its digest.

    `migrations` rise by version also where `down`; `contexts` are there once it is bound to a run.
    """

    __slots__ = (
        "constants",
        "contexts",
        "digest",
        "down",
        "earlier",
        "from_version",
        "irreversible",
        "migrations",
        "passes",
        "to_version",
    )

    def __init__(
        self, migrations: list[Migration], from_version: int, digest: str, down: bool = False
    ) -> None:
        self.migrations = migrations
        self.from_version = from_version
        self.to_version = from_version
        if migrations:
            self.to_version = migrations[0].version - 1 if down else migrations[-1].version
        self.digest = digest
        self.down = down
        self.passes = passes_of(migrations, down)
        self.contexts: dict[int, Context] = {}
        # What every record has after each version (core/applied).
        self.constants: dict[int, Constants] = {}
        # Files of versions before the plan, for records that were left behind then.
        self.earlier: list[Migration] = []
        # Nobody can go back behind the highest version that cannot be undone: it keeps nothing.
        self.irreversible = max((m.version for m in migrations if not m.reversible), default=0)
        for migration in migrations:
            for step in migration.steps:
                step.keeps = migration.version > self.irreversible

    def bind(self, now: int, device_id: str, applied: dict[int, Applied]) -> dict[int, Context]:
        """Tie the plan to a run: the context of each migration's steps, by version.

        On the way down these are the contexts of the runs that applied the versions, and so they
        are for `earlier` versions.
        """
        contexts = {m.version: m.context(now, device_id) for m in self.migrations}
        for migration in (*(self.migrations if self.down else ()), *self.earlier):
            known = applied.get(migration.version)
            for step in migration.steps if migration in self.earlier else ():
                step.keeps = migration.version > self.irreversible and (
                    known is not None and known.keeps_undo
                )
            if known is not None and known.run:
                contexts[migration.version] = migration.context(known.now, known.device_id)
                for step in migration.steps:
                    if step.number in known.defaults:
                        step.default = known.defaults[step.number]
            else:
                contexts.setdefault(migration.version, migration.context(now, device_id))
        if not self.down:
            before = applied.get(self.from_version)
            constants = before.constants if before is not None else {}
            self.constants = bind(self.migrations, contexts, constants)
        self.contexts = contexts
        return contexts

    def stores(self) -> set[str]:
        """The stores whose records the plan reads or writes."""
        touched = {p.store for p in self.passes if p.kind != "sql"}
        return touched | {p.steps[0][1].target[0] for p in self.passes if p.kind == "move"}

    def statements(self) -> list[tuple[int, Step]]:
        """The schema statements in the order they run."""
        return [p.steps[0] for p in self.passes if p.kind == "sql"]

    def quarantines(self, version: int) -> bool:
        """Whether this migration leaves a record behind that cannot be migrated."""
        return any(m.quarantine for m in self.migrations if m.version == version)

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


def plan_digest(
    checksums: list[str], stores_checksum: str, from_version: int, down: bool = False
) -> str:
    """What a plan is known by: it changes when a file of it, stores.json, the start, the direction
    or the meaning of the steps changes.

    It can be worked out without executing a migration file.
    """
    way = ["down"] if down else []
    parts = [f"readings {READINGS}", *way, str(from_version), stores_checksum, *checksums]
    return hex_digest("\n".join(parts).encode())


def passes_of(migrations: list[Migration], down: bool = False) -> list[Pass]:
    """The passes of a plan in the order they run."""
    passes: list[Pass] = []
    segment: dict[str, list[tuple[int, Step]]] = {}

    def flush() -> None:
        for store, steps in segment.items():
            picked = all(step.key is not None for _, step in steps)
            a_pass = Pass("pick" if picked else "walk", store, steps, down)
            earlier = {v for p in passes if p.store == store for v in p.versions()}
            a_pass.split = earlier & set(a_pass.versions())
            passes.append(a_pass)
        segment.clear()

    for migration in reversed(migrations) if down else migrations:
        for step in reversed(migration.steps) if down else migration.steps:
            if step.kind in ("move_record", "sql"):
                flush()
                kind = "move" if step.kind == "move_record" else "sql"
                passes.append(Pass(kind, step.store, [(migration.version, step)], down))
            else:
                segment.setdefault(step.store, []).append((migration.version, step))
    flush()
    return passes


def check_plan(plan: Plan, contracts: Contracts) -> None:
    """Refuse a plan that touches what is no store, or a store that must stay byte for byte, or a
    table under a store's name. Raises MigrationsRejected.
    """
    for migration in plan.migrations:
        before = contracts.at(migration.version - 1)
        for step in migration.steps:
            if step.kind == "sql":
                # A table that becomes a store with this version may be made, and dropped again.
                _check_statements(migration, step, set(before.stores))
                continue
            for name in (step.store, step.target[0] if step.kind == "move_record" else step.store):
                store = before.stores.get(name)
                if store is None:
                    raise MigrationsRejected(
                        f"{migration.file}: {name} is not a store of stores.json"
                    )
                if store.bytes_exact:
                    raise MigrationsRejected(
                        f"{migration.file}: {name} is kept byte for byte and cannot be migrated"
                    )
        if migration.quarantine:
            check_quarantine(migration)


def _check_statements(migration: Migration, step: Step, stores: set[str]) -> None:
    taken = {name.lower() for name in stores}
    for statement in (step.ddl, step.ddl_down):
        if statement is not None and statement.name.lower() in taken:
            raise MigrationsRejected(
                f"{migration.file}: {statement.describe()}: it is a store, whose table no "
                "migration makes, changes or drops"
            )


def check_quarantine(migration: Migration) -> None:
    """A record that one step of a migration cannot do must not have had the others already."""
    alone = passes_of([migration])
    seen: set[str] = set()
    for number, a_pass in enumerate(alone):
        if a_pass.kind == "move":
            move = Move(a_pass)
            if has_step(alone[:number], *move.source) and has_step(alone[number:], *move.target):
                raise MigrationsRejected(
                    f"{migration.file}: with QUARANTINE the steps for a record that moves must "
                    "stand on one side of its move_record; make two migrations"
                )
        if a_pass.kind in ("walk", "pick"):
            if a_pass.store in seen:
                raise MigrationsRejected(
                    f"{migration.file}: with QUARANTINE all steps over {a_pass.store} must stand "
                    "on one side of move_record and sql steps; make two migrations"
                )
            seen.add(a_pass.store)


def has_step(passes: list[Pass], store: str, key: str) -> bool:
    """Whether any walk or pick among passes does something to a record."""
    return any(
        p.store == store and any(step.key in (None, key) for _, step in p.steps)
        for p in passes
        if p.kind in ("walk", "pick")
    )
