"""Schema statements: known by their shape, held by SQLite's authorizer, tried before a run."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.ddl import statement_of
from agent.core.migration import KEEP, Migration, Step, sql
from agent.core.plan import Plan
from agent.edges.database import guard, unguard
from agent.ground.errors import AgentError, MigrationsRejected, ValidationError
from agent.verbs import schema
from tests import independent_reader as reader
from tests.terminals import Terminal, new_terminal

STORES = ("transactions", "metadata")


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for store in STORES:
        connection.execute(f"CREATE TABLE {store} (key TEXT PRIMARY KEY, value TEXT)")
    connection.execute("""INSERT INTO transactions VALUES ('tx', '{"status":"open"}')""")
    return connection


@pytest.mark.parametrize(
    ("text", "verb", "kind", "name", "table"),
    [
        ("CREATE TABLE t (a)", "CREATE", "TABLE", "t", "t"),
        ("create table if not exists t (a);", "CREATE", "TABLE", "t", "t"),
        ("CREATE UNIQUE INDEX i ON t (a)", "CREATE", "INDEX", "i", "t"),
        ("CREATE INDEX IF NOT EXISTS i ON t (a) WHERE a > 1", "CREATE", "INDEX", "i", "t"),
        ("CREATE VIEW v (x) AS SELECT 1", "CREATE", "VIEW", "v", "v"),
        ('CREATE TABLE "odd ""name" (a)', "CREATE", "TABLE", 'odd "name', 'odd "name'),
        ("CREATE TABLE [odd name] (a)", "CREATE", "TABLE", "odd name", "odd name"),
        ("CREATE TABLE `t` (a TEXT DEFAULT 'x;y')", "CREATE", "TABLE", "t", "t"),
        ("/* why */ DROP TABLE t -- because", "DROP", "TABLE", "t", "t"),
        ("DROP INDEX IF EXISTS i", "DROP", "INDEX", "i", "i"),
        ("ALTER TABLE t ADD COLUMN b TEXT", "ALTER", "TABLE", "t", "t"),
        ("ALTER TABLE t ADD b", "ALTER", "TABLE", "t", "t"),
    ],
)
def test_a_statement_is_known_by_what_it_makes_changes_or_drops(
    text: str, verb: str, kind: str, name: str, table: str
) -> None:
    found = statement_of(text)
    assert (found.verb, found.kind, found.name, found.table) == (verb, kind, name, table)
    assert found.describe()


REFUSED = [
    "",
    "   ",
    ";",
    "UPDATE transactions SET value = ''",
    "DELETE FROM transactions",
    "INSERT INTO t VALUES (1)",
    "REPLACE INTO t VALUES (1)",
    "SELECT 1",
    "WITH x AS (SELECT 1) DELETE FROM t",
    "ATTACH 'other.db' AS other",
    "DETACH other",
    "VACUUM",
    "VACUUM INTO 'copy.db'",
    "PRAGMA user_version = 9",
    "REINDEX",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "EXPLAIN DROP TABLE t",
    "CREATE TEMP TABLE t (a)",
    "CREATE TEMPORARY VIEW v AS SELECT 1",
    "CREATE VIRTUAL TABLE t USING fts5(a)",
    "CREATE TRIGGER x AFTER UPDATE ON transactions BEGIN DELETE FROM transactions; END",
    "CREATE TABLE t AS SELECT * FROM transactions",
    "CREATE TABLE other.t (a)",
    "DROP TABLE main.t",
    "DROP TRIGGER x",
    "DROP TABLE t; DROP TABLE transactions",
    "DROP TABLE t;;",
    "ALTER TABLE t RENAME TO u",
    "ALTER TABLE t RENAME COLUMN a TO b",
    "ALTER TABLE t DROP COLUMN a",
    "CREATE TABLE sqlite_mine (a)",
    "CREATE TABLE posagent (a)",
    "CREATE INDEX i ON PosAgent (kind)",
    "CREATE TABLE t (a",
    "CREATE TABLE 't (a)",
    "CREATE TABLE t\ud800 (a)",
    "CREATE TABLE t (" + "a" * 9000 + ")",
]


@pytest.mark.parametrize("text", REFUSED)
def test_any_other_statement_is_refused_when_its_file_is_loaded(text: str) -> None:
    with pytest.raises(MigrationsRejected):
        sql(text, None)
    with pytest.raises(MigrationsRejected):
        sql("CREATE TABLE t (a)", text)


@given(st.text(alphabet="CREATEDROPTABLINXVW t();\"'[]`.-/*\n,", max_size=60))
def test_no_text_at_all_is_more_than_refused(text: str) -> None:
    try:
        found = statement_of(text)
    except MigrationsRejected:
        return
    assert found.verb in ("CREATE", "DROP", "ALTER")


SNEAKY = [
    # What a shape alone would let through, and what the guard denies as SQLite compiles it.
    "DROP TABLE transactions",
    "DELETE FROM transactions",
    "UPDATE transactions SET value = ''",
    "INSERT INTO transactions VALUES ('x', 'y')",
    "CREATE TRIGGER x AFTER UPDATE ON transactions BEGIN DELETE FROM metadata; END",
    "CREATE TABLE u (a)",
    "DROP INDEX kept",
    "ALTER TABLE transactions RENAME TO gone",
    "ALTER TABLE transactions ADD COLUMN b",
    "ATTACH ':memory:' AS other",
    "PRAGMA user_version = 9",
    "CREATE TEMP TABLE mine (a)",
    "CREATE VIRTUAL TABLE mine USING fts5(a)",
]


@pytest.mark.parametrize("text", SNEAKY)
def test_the_guard_lets_a_statement_touch_its_own_object_alone(text: str) -> None:
    connection = database()
    connection.execute("CREATE INDEX kept ON metadata (key)")
    before = list(connection.iterdump())
    guard(connection, "mine")
    with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|prohibited|no such module"):
        connection.execute(text)
    unguard(connection)
    assert list(connection.iterdump()) == before
    connection.execute("CREATE TABLE u (a)")  # the guard is gone


def plan_of(*steps: Step, down: bool = False) -> Plan:
    migration = Migration(1, "m", list(steps), "0001_m.py", "")
    return Plan([migration], 1 if down else 0, "", down)


def test_a_rehearsal_gives_the_schema_and_touches_no_file() -> None:
    connection = database()
    before = list(connection.iterdump())
    plan = plan_of(
        sql("CREATE TABLE t (a, b UNIQUE)", "DROP TABLE t"),
        sql("CREATE INDEX i ON transactions (json_extract(value, '$.status'))", "DROP INDEX i"),
        sql("ALTER TABLE t ADD COLUMN c", KEEP),
    )
    made = schema.rehearse(connection, plan)
    assert list(connection.iterdump()) == before
    assert {name for _, name in made} >= {"t", "i", "transactions", "metadata"}
    assert "c" in str(made["table", "t"][1])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([sql("CREATE INDEX i ON nowhere (a)", None)], "no such table"),
        ([sql("CREATE TABLE t (a, a)", None)], "duplicate column"),
        ([sql("CREATE VIEW metadata AS SELECT 1", None)], "another table has that name"),
        ([sql("CREATE TABLE t (a)", None), sql("CREATE TABLE t (b)", None)], "another table"),
        ([sql("CREATE INDEX i ON metadata (nothere(value))", None)], "no such function"),
    ],
)
def test_a_statement_that_cannot_be_done_is_told_before_anything_is_built(
    steps: list[Step], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        schema.rehearse(database(), plan_of(*steps))


def test_what_is_there_in_the_same_words_or_gone_already_needs_nothing() -> None:
    connection = database()
    make = sql("CREATE TABLE t (a TEXT)", "DROP TABLE t")
    assert schema.run_statement(connection, make, False) == ""
    assert schema.run_statement(connection, sql("create  table T(a text);", None), False)
    assert schema.run_statement(connection, make, True) == ""
    assert schema.run_statement(connection, make, True) == "it is gone already"
    add = sql("ALTER TABLE metadata2 ADD COLUMN x", KEEP)
    with pytest.raises(AgentError):
        schema.run_statement(connection, add, False)


@pytest.mark.parametrize("down", ["DROP TABLE transactions", None])
def test_a_store_is_no_table_of_a_migrations(tmp_path: Path, down: str | None) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    up = "CREATE TABLE TRANSACTIONS (a)" if down is None else "CREATE TABLE t (a)"
    add(terminal, f"STEPS = [sql({up!r}, {down!r})]")
    before = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 11
    assert "is a store, whose table no migration makes, changes or drops" in answer.out
    assert terminal.sha256() == before
    assert terminal.run("check").code == 11


def add(terminal: Terminal, body: str) -> None:
    folder = terminal.own_migrations()
    (folder / "0004_sql.py").write_text(
        f"from agent.core.migration import *\nVERSION, NAME = 4, 'sql'\n{body}\n"
    )
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, 4]
    (folder / "stores.json").write_text(json.dumps(document))


def test_an_index_over_json_fails_on_a_record_that_is_none_and_leaves_the_old_data(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    terminal_sql(terminal, "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT)")
    terminal_sql(terminal, "INSERT INTO notes VALUES ('n', '{half')")
    add(terminal, "STEPS = [sql(\"CREATE INDEX i ON notes (json_extract(value, '$.a'))\", None)]")
    before = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 10, answer.out
    assert "a value that is no JSON is in the way" in answer.json["error"]["message"]
    assert answer.json["app_may_start"]
    assert terminal.sha256() == before


def test_a_statement_that_cannot_be_done_is_refused_before_a_backup_is_taken(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    add(terminal, 'STEPS = [sql("CREATE INDEX i ON nowhere (a)", None)]')
    before = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 10
    assert terminal.sha256() == before
    assert list(terminal.backups.glob("*")) == []
    assert any("nowhere" in r["message"] for r in terminal.run("plan", "--json").json["refusals"])


def test_a_table_that_holds_rows_is_dropped_only_where_the_step_says_so(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    terminal_sql(terminal, "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT)")
    terminal_sql(terminal, "INSERT INTO notes VALUES ('n', 'one')")
    again = '"DROP TABLE notes", "CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT)"'
    add(terminal, f"STEPS = [sql({again})]")
    before = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 10, answer.out
    assert "it holds rows, which no way back could bring again" in answer.json["error"]["message"]
    assert terminal.sha256() == before
    assert list(terminal.backups.glob("*")) == []
    add(terminal, f'STEPS = [sql({again}, on_new="remove")]')
    assert terminal.boot().code == 0
    terminal_sql(terminal, "INSERT INTO transactions VALUES ('tx_new', '{}')")
    held = terminal.run("rollback", "--to", "3", "--json")
    assert "cannot be undone: drop table notes" in held.json["error"]["message"]


def test_what_was_there_before_a_statement_is_not_taken_away_on_its_way_back(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    terminal_sql(terminal, "CREATE INDEX mine ON sync (key)")
    terminal_sql(terminal, "CREATE TABLE notes (key TEXT)")
    before = set(reader.schema_of(terminal.pos))
    add(
        terminal,
        """STEPS = [
    sql("CREATE INDEX mine ON sync (key)", "DROP INDEX mine"),
    sql("CREATE TABLE IF NOT EXISTS notes (key TEXT)", "DROP TABLE notes"),
    sql("DROP TABLE IF EXISTS nothing", "CREATE TABLE nothing (key TEXT)"),
]""",
    )
    assert terminal.boot().code == 0
    terminal_sql(terminal, "INSERT INTO transactions VALUES ('tx_new', '{}')")
    answer = terminal.run("rollback", "--to", "3", "--json")
    assert (answer.code, answer.json["way"]) == (0, "down"), answer.out
    after = {row for row in reader.schema_of(terminal.pos) if row[1] != "posagent"}
    assert after == before


def test_an_application_s_triggers_and_views_outlive_a_migration_with_statements(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10, extra_tables=True)
    before = set(reader.schema_of(terminal.pos))
    add(terminal, 'STEPS = [sql("CREATE TABLE t (a PRIMARY KEY, b UNIQUE)", "DROP TABLE t")]')
    assert terminal.boot().code == 0
    made = set(reader.schema_of(terminal.pos)) - before
    assert {row[1] for row in made} - {"posagent"} == {
        "t",
        "sqlite_autoindex_t_1",
        "sqlite_autoindex_t_2",
    }
    assert before <= set(reader.schema_of(terminal.pos))


def terminal_sql(terminal: Terminal, statement: str) -> list[Any]:
    connection = sqlite3.connect(terminal.pos, isolation_level=None)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()
