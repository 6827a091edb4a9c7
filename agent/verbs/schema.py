"""Schema statements: rehearsed before anything is built, guarded by SQLite's authorizer, proven.

The shape of a statement was judged when its file was loaded (core/ddl). Here it is compiled, so
what it would really touch is known, and whatever is no further table, index or view is denied.
"""

from __future__ import annotations

from agent.edges.database import (
    SQLITE_ERRORS,
    guard,
    has_store,
    open_memory,
    quoted,
    refused_by_sqlite,
    schema_of,
    unguard,
)
from agent.ground.errors import ValidationError
from agent.verbs import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from sqlite3 import Connection

    from agent.core.ddl import Statement
    from agent.core.plan import Plan
    from agent.core.step import Step

    Schema = dict[tuple[str, str], tuple[str, str | None]]


def run_statement(connection: Connection, step: Step, down: bool) -> str:
    """Do one statement inside the caller's transaction. Answers "" or why nothing was done.

    Raises ValidationError where something else has the name, or where SQLite refuses.
    """
    statement = step.ddl_down if down else step.ddl
    if statement is None:
        return "it may stay"
    why = _nothing_to_do(connection, step, statement, down)
    if why:
        return why
    guard(connection, statement.name)
    try:
        connection.execute(statement.sql)
    except SQLITE_ERRORS as error:
        raise _refused(error, statement) from error
    finally:
        unguard(connection)
    return ""


def _refused(error: Exception, statement: Statement) -> Exception:
    if "not authorized" in str(error) or "prohibited" in str(error):
        return ValidationError(
            f"{statement.describe()}: it would do more than that; SQLite was told to refuse"
        )
    failure = refused_by_sqlite(error, f"doing: {statement.describe()}")
    return ValidationError(failure.message) if failure.code == "FAILED" else failure


def _nothing_to_do(connection: Connection, step: Step, statement: Statement, down: bool) -> str:
    found = connection.execute(
        "SELECT type, sql FROM sqlite_master WHERE lower(name) = lower(?)", (statement.name,)
    ).fetchone()
    kind = statement.kind.lower()
    if statement.verb == "DROP":
        if found is None:
            return "it is gone already"
        if kind == "table" and step.on_new == "keep" and _has_rows(connection, statement):
            if down:
                return f"table {statement.name} holds rows and stays"
            raise ValidationError(_holds_rows(statement))
        return ""
    if statement.verb == "ALTER":
        return "it is there already" if _has_column(connection, statement) else ""
    if found is None:
        return ""
    if found[0] == kind and (statement.if_absent or statement.made(found[1])):
        return "it is there already"
    raise ValidationError(
        f"{statement.describe()}: another {found[0]} has that name; the migration cannot go on"
    )


def _holds_rows(statement: Statement) -> str:
    return (
        f"{statement.describe()}: it holds rows, which no way back could bring again; leave the "
        'table, or say on_new="remove"'
    )


def _has_rows(connection: Connection, statement: Statement) -> bool:
    sql = f"SELECT 1 FROM {quoted(statement.name)} LIMIT 1"
    return connection.execute(sql).fetchone() is not None


def _has_column(connection: Connection, statement: Statement) -> bool:
    columns = connection.execute(f"PRAGMA table_info({quoted(statement.name)})").fetchall()
    return statement.column.lower() in [column[1].lower() for column in columns]


def rehearse(source: Connection, plan: Plan, idle: set[tuple[int, int]] | None = None) -> Schema:
    """The schema that the plan makes of the source's, its statements run for real on an empty copy
    in memory. Raises ValidationError for one that cannot be done, before anything is built. Into
    `idle` come (version, step's number) of those that have nothing to do.

    What depends on rows is not known here: a table that a way back would drop is asked for its rows
    in the source, an index over records that are no JSON fails when it is made.
    """
    before = schema_of(source)
    if not plan.statements():
        return before
    memory = open_memory()
    try:
        for kind in ("table", "index", "view"):
            for (of_kind, name), (_, sql) in before.items():
                if of_kind == kind and sql and not name.startswith("sqlite_"):
                    _copy(memory, sql)
        triggers = {n: sql for (k, n), (_, sql) in before.items() if k == "trigger" and sql}
        known = {name for name, sql in triggers.items() if not _refusal(memory, sql)}
        unwritable = _unwritable(memory)
        for name in known:
            memory.execute(f"DROP TRIGGER {quoted(name)}")
        empty = schema_of(memory)
        there = rows.read_there(source) if plan.down else set()
        for version, step in plan.statements():
            if (version, step.number) in there or _stays(source, step, plan.down):
                continue
            if not plan.down:
                _check_rows(source, step)
            if run_statement(memory, step, plan.down) and idle is not None:
                idle.add((version, step.number))
        made = schema_of(memory)
        for name in sorted(known):
            why = _refusal(memory, triggers[name])
            if why:
                raise ValidationError(f"the application's trigger {name} could not stay: {why}")
        for table, why in _unwritable(memory).items():
            if table not in unwritable:
                raise ValidationError(
                    f"the application could write {table} no more: {why}; a trigger of it needs "
                    "what a statement drops"
                )
    finally:
        memory.close()
    after = dict(before)
    for place in empty.keys() - made.keys():
        del after[place]
    for place, entry in made.items():
        if empty.get(place) != entry:
            after[place] = entry
    return after


def _check_rows(source: Connection, step: Step) -> None:
    """Refuse to drop a table of which the source holds rows, where the step does not say so."""
    assert step.ddl is not None
    if step.ddl.drops_table and step.on_new == "keep":
        try:
            has_rows = _has_rows(source, step.ddl)
        except SQLITE_ERRORS:
            return  # it is not there
        if has_rows:
            raise ValidationError(_holds_rows(step.ddl))


def _copy(memory: Connection, sql: str) -> None:
    """Make one more object, unless it is of a module that is not here: no statement of ours can
    name what such a one makes."""
    _refusal(memory, sql)


def _refusal(memory: Connection, sql: str) -> str:
    """Why SQLite does not take a statement, or ""; it is done where it does."""
    try:
        memory.execute(sql)
    except SQLITE_ERRORS as error:
        return str(error)
    return ""


def _unwritable(memory: Connection) -> dict[str, str]:
    """Tables in the shape of a store that cannot be written, and why: as a rule for a trigger."""
    found: dict[str, str] = {}
    for (name,) in memory.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for sql in (
            f"EXPLAIN INSERT INTO {quoted(name)} (key, value) VALUES ('', '')",
            f"EXPLAIN UPDATE {quoted(name)} SET value = ''",
            f"EXPLAIN DELETE FROM {quoted(name)}",
        ):
            why = _refusal(memory, sql) if has_store(memory, name) else ""
            if why:
                found[name] = why
    return found


def _stays(source: Connection, step: Step, down: bool) -> bool:
    """Whether a way back leaves a table where it is because it holds rows."""
    statement = step.ddl_down if down else None
    if statement is None or (statement.verb, statement.kind, step.on_new) != (
        "DROP",
        "TABLE",
        "keep",
    ):
        return False
    try:
        return _has_rows(source, statement)
    except SQLITE_ERRORS:
        return False  # it is not there


def tables_with_rows(source: Connection, plan: Plan) -> list[tuple[str, str, int]]:
    """The tables that a way back comes to and that hold rows: (name, "kept" or "removed", rows)."""
    found = []
    there = rows.read_there(source)
    for version, step in plan.statements() if plan.down else ():
        statement = step.ddl_down
        if statement is None or not statement.drops_table or (version, step.number) in there:
            continue
        try:
            sql = f"SELECT count(*) FROM {quoted(statement.name)}"
            count = int(source.execute(sql).fetchone()[0])
        except SQLITE_ERRORS:
            continue  # it is not there
        if count:
            found.append((statement.name, "kept" if step.on_new == "keep" else "removed", count))
    return found


def check_stores_made(planned: Schema, stores: Iterable[str], version: int) -> None:
    """Refuse a plan after which stores.json would speak of a table that is not there."""
    tables = {name for kind, name in planned if kind == "table"}
    for store in stores:
        if store not in tables:
            raise ValidationError(
                f"stores.json says that schema {version} has the store {store}, which is not in "
                "pos.db and which no migration makes"
            )
