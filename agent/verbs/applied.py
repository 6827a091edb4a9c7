"""What the last commit of a run says of the versions that are applied from then on."""

from __future__ import annotations

from agent.core.applied import Applied
from agent.core.step import ABSENT
from agent.ground.codec import encode
from agent.ground.errors import ValidationError
from agent.verbs import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection

    from agent.core.migration import Migration
    from agent.core.plan import Plan
    from agent.core.terminal import RunRow


def note_plan(connection: Connection, row: RunRow, plan: Plan) -> None:
    """Note what a plan applied, or took back, inside the caller's transaction.

    Ledgers go once their version can no longer be rolled back to: on the way down with the version,
    on the way up with a migration above it that cannot be undone.
    """
    if plan.down:
        rows.forget_above(connection, plan.to_version)
        rows.lower_quarantined(connection, plan.to_version)
    else:
        for migration in plan.migrations:
            rows.write_applied(connection, migration.version, _applied(migration, row, plan))
        if plan.irreversible:
            rows.forget_undo(connection, lambda version: version <= plan.irreversible)
            for version, known in rows.read_applied(connection).items():
                if version <= plan.irreversible and known.keeps_undo:
                    known.keeps_undo = False
                    rows.write_applied(connection, version, known)
    readers = [found.min_reader for found in rows.read_applied(connection).values()]
    rows.write(connection, "min_reader", "", max(readers, default=0))


def check_noted(
    connection: Connection, plan: Plan, moved: set[int], idle: set[tuple[int, int]]
) -> None:
    """Hold a new file to what a way back needs beside the ledgers: what was applied, which records
    moved (`moved` are numbers of passes), which statements had nothing to do.

    Raises ValidationError.
    """
    row, known = rows.read_run(connection), rows.read_applied(connection)
    versions = {migration.version for migration in plan.migrations}
    for migration in plan.migrations:
        found = known.get(migration.version)
        expected = None if row is None else _applied(migration, row, plan).as_json()
        if found is None or encode(found.as_json()) != encode(expected):
            raise ValidationError(f"what was applied by {migration.file} would not be noted")
    steps = {number: a_pass.steps[0] for number, a_pass in enumerate(plan.passes)}
    moves = {(v, step.number) for n, (v, step) in steps.items() if n in moved and step.keeps}
    kept = {(v, step.number) for v, step in plan.statements() if step.keeps}
    for found_steps, wanted, what in (
        (rows.read_moved(connection), moves, "which records moved"),
        (rows.read_there(connection), idle & kept, "which statements had nothing to do"),
    ):
        if {step for step in found_steps if step[0] in versions} != wanted:
            raise ValidationError(f"{what} would not be noted")


def _applied(migration: Migration, row: RunRow, plan: Plan) -> Applied:
    return Applied(
        migration.checksum,
        row.run,
        row.now,
        row.device_id,
        migration.min_reader,
        migration.version > plan.irreversible,
        {s.number: s.default for s in migration.steps if s.default is not ABSENT},
        plan.constants[migration.version],
    )
