"""`rollback --to N`: three ways back, none of which loses a sale made since.

The real command on sample terminals with migrations of the test's own; an ordinary SQLite client
plays the application, and the independent reader says what is there.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests import killing
from tests.terminals import COMMAND, Terminal, new_terminal

HEADER = "from agent.core.migration import *\n"
NEW_SALE = '{"id":"n","amount":1250,"rate":10.50,"currency":"EUR","status":"pending"}'


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return new_terminal(tmp_path / "t", records=120, unsettled=30)


def add_migration(terminal: Terminal, version: int, body: str) -> Path:
    """One more migration file; the application reads every version."""
    folder = terminal.own_migrations()
    path = folder / f"{version:04d}_of_the_test.py"
    path.write_text(f"{HEADER}VERSION, NAME = {version}, 'of the test'\n{body}\n")
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, 9]
    (folder / "stores.json").write_text(json.dumps(document))
    return path


def sql(terminal: Terminal, statement: str, *given: Any) -> list[Any]:
    """The application at work: an ordinary client, closed again."""
    connection = sqlite3.connect(terminal.pos, isolation_level=None)
    try:
        return connection.execute(statement, given).fetchall()
    finally:
        connection.close()


def sell(terminal: Terminal, key: str, value: str = NEW_SALE) -> None:
    sql(terminal, "INSERT INTO transactions VALUES (?, ?)", key, value)


def rolled_back(terminal: Terminal, to: int, *words: str) -> dict[str, Any]:
    answer = terminal.run("rollback", "--to", str(to), "--json", *words)
    assert answer.code == 0, answer.out + answer.err
    assert answer.json["verdict"] == "OK", answer.out
    return answer.json


def held(terminal: Terminal, to: int, code: int) -> dict[str, Any]:
    """A rollback that is held, with everything as it was and nothing left behind."""
    before, listing, backups = (
        terminal.sha256(),
        terminal.listing(),
        sorted(terminal.backups.iterdir()),
    )
    dry = terminal.run("rollback", "--to", str(to), "--dry-run", "--json")
    answer = terminal.run("rollback", "--to", str(to), "--json")
    assert (answer.code, dry.code) == (code, code), answer.out + dry.out
    assert answer.json["verdict"] == "HELD"
    assert answer.json["app_may_start"]
    assert terminal.sha256() == before
    assert terminal.listing() == listing
    assert sorted(terminal.backups.iterdir()) == backups
    error: dict[str, Any] = answer.json["error"]
    assert dry.json["refusal"]["message"] == error["message"]
    return error


def values(terminal: Terminal, store: str = "transactions") -> dict[str, Any]:
    return terminal.read().stores[store]


def same_values(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys whose values differ, or that only one side has."""
    return sorted(
        key
        for key in one.keys() | other.keys()
        if key not in one or key not in other or not reader.same_value(one[key], other[key])
    )


def test_with_nothing_written_since_the_old_file_is_put_back_byte_for_byte(
    terminal: Terminal,
) -> None:
    before = terminal.sha256()
    assert terminal.boot().code == 0
    dry = terminal.run("rollback", "--to", "0", "--dry-run", "--json")
    assert (dry.code, dry.json["way"]) == (0, "switch back")
    found = rolled_back(terminal, 0)
    assert found["way"] == "switch back"
    assert terminal.sha256() == before
    assert terminal.listing() == ["pos.db", "posagent"]
    # What was taken back is not done again unasked, and is when it is asked for.
    boot = terminal.boot()
    assert boot.json["app_may_start"]
    assert "brought back on request" in boot.json["error"]["message"]
    assert terminal.sha256() == before
    assert terminal.run("migrate").code == 0
    assert terminal.read().schema_version == 3


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("to", [2, 1, 0])
def test_after_one_run_over_three_versions_each_of_them_can_be_reached_with_the_sales_since(
    tmp_path: Path, to: int, journal: str
) -> None:
    terminal = new_terminal(tmp_path / "t", records=120, unsettled=30, journal=journal)
    before = {store: values(terminal, store) for store in reader.STORES}
    money = reader.money(terminal.pos)
    folder = terminal.own_migrations()
    # What this version looks like, by a twin that goes no further.
    twin = Terminal(tmp_path / "twin")
    shutil.copytree(terminal.root, twin.root, symlinks=True)
    for name in ("0001", "0002", "0003")[to:]:
        next((twin.root / "migrations").glob(f"{name}_*.py")).unlink()
    twin.boot()
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    assert rolled_back(terminal, to)["way"] == "down"
    found = terminal.read()
    assert found.schema_version == to
    now = dict(found.stores["transactions"])
    assert now.pop("tx_new") == NEW_SALE
    for store in reader.STORES:
        expected = before[store] if to == 0 else _without_times(twin.read().stores[store])
        have = now if store == "transactions" else found.stores[store]
        assert not same_values(have if to == 0 else _without_times(have), expected), store
    made = reader.money(terminal.pos)
    assert {c: made[c] for c in money if c != "EUR"} == {c: money[c] for c in money if c != "EUR"}
    assert len(list(folder.glob("0*.py"))) == 3


def _without_times(records: dict[str, Any]) -> dict[str, Any]:
    """Records without the two fields that hold when they were migrated."""
    made = {}
    for key, text in records.items():
        value = json.loads(text)
        if isinstance(value, dict):
            value.pop("updatedAt", None)
            if isinstance(value.get("metadata"), dict):
                value["metadata"].pop("migratedAt", None)
        made[key] = json.dumps(value)
    return made


def test_what_the_application_wrote_since_stays_and_is_reported(terminal: Terminal) -> None:
    assert terminal.boot().code == 0
    old, edited = list(values(terminal))[5:7]
    record = json.loads(values(terminal)[edited])
    record.update(status="completed", updatedAt=record["updatedAt"] + 5)
    text = json.dumps(record)
    sql(terminal, "UPDATE transactions SET value = ? WHERE key = ?", text, edited)
    sell(terminal, "tx_new", '{"amount":1,"currency":"EUR","status":"pending","schemaVersion":9}')
    dry = terminal.run("rollback", "--to", "0", "--dry-run", "--json").json
    found = rolled_back(terminal, 0)
    assert found["kept"] == dry["kept"]
    told = {(entry["version"], entry["step"]): entry for entry in found["kept"]}
    assert told[1, "set updatedAt of transactions"]["records"] == 1
    assert told[1, "set updatedAt of transactions"]["first"] == [f"transactions/{edited}"]
    assert told[2, "set schemaVersion of transactions"]["first"] == ["transactions/tx_new"]
    after = json.loads(values(terminal)[edited])
    assert after["status"] == "completed"
    assert after["updatedAt"] == record["updatedAt"]
    assert "schemaVersion" not in after
    assert "schemaVersion" not in json.loads(values(terminal)[old])
    assert json.loads(values(terminal)["tx_new"])["schemaVersion"] == 9


IRREVERSIBLE = """
def up(record, context):
    record["total"] = 1
    return record
STEPS = [each("balances", up, fields=["total"])]
"""
FAILS = """
def up(record, context):
    record["total"] = 1
    return record
def down(record, context):
    if record.get("broken"):
        raise ValueError("4111111111111111")
    record.pop("total", None)
    return record
STEPS = [each("transactions", up, down, fields=["total"])]
"""
FAILS_ITS_CHECK = FAILS.replace(
    'down, fields=["total"]', 'down, fields=["total"], check_down=lambda r: "broken" not in r'
).replace('record.get("broken")', "False")


def test_behind_a_step_that_cannot_be_undone_the_backup_is_restored_if_nothing_is_newer(
    terminal: Terminal,
) -> None:
    add_migration(terminal, 4, IRREVERSIBLE)
    before = {store: values(terminal, store) for store in reader.STORES}
    assert terminal.boot().code == 0
    assert terminal.run("commit").code == 0
    dry = terminal.run("rollback", "--to", "0", "--dry-run", "--json").json
    assert dry["way"] == "restore"
    assert rolled_back(terminal, 0)["way"] == "restore"
    assert {store: values(terminal, store) for store in reader.STORES} == before
    rows = terminal.run("history", "--json").json["history"]
    assert [row["state"] for row in rows[-4:]] == ["rolled_back"] * 4
    assert terminal.boot().json["app_may_start"]
    assert terminal.read().schema_version == 0


def test_behind_a_step_that_cannot_be_undone_newer_sales_hold_the_way_back(
    terminal: Terminal,
) -> None:
    add_migration(terminal, 4, IRREVERSIBLE)
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    error = held(terminal, 3, 13)
    assert error["code"] == "UNSETTLED"
    assert "0004_of_the_test.py cannot be undone" in error["message"]
    assert "each record of balances" in error["message"]


def test_without_a_backup_a_step_that_cannot_be_undone_holds_the_way_back(
    terminal: Terminal,
) -> None:
    add_migration(terminal, 4, IRREVERSIBLE)
    assert terminal.boot().code == 0
    assert terminal.run("commit").code == 0
    for path in terminal.backups.iterdir():
        path.unlink()
    assert "cannot be undone" in held(terminal, 0, 13)["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [(FAILS, "ValueError in 0004_of_the_test.py"), (FAILS_ITS_CHECK, "its check_down() failed")],
    ids=["down", "check_down"],
)
def test_a_down_that_fails_on_one_record_holds_the_way_back_before_anything_is_built(
    terminal: Terminal, body: str, words: str
) -> None:
    add_migration(terminal, 4, body)
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    assert rolled_back(terminal, 3)["way"] == "down"
    assert terminal.run("migrate").code == 0
    sell(terminal, "tx_broken", '{"amount":1,"currency":"EUR","status":"pending","broken":1}')
    error = held(terminal, 3, 13)
    assert words in error["message"]
    assert "tx_broken" in error["message"]
    assert "4111" not in json.dumps(error)


def test_a_file_that_was_edited_after_it_was_applied_holds_the_way_back(terminal: Terminal) -> None:
    path = add_migration(terminal, 4, "STEPS = [remove_field('sync', 'type')]")
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    text = path.read_text()
    path.write_text(text.replace("'type'", "'action'"))
    assert "was edited after it was applied" in held(terminal, 3, 13)["message"]
    path.write_text(text)
    assert rolled_back(terminal, 3)["way"] == "down"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 64),
        (("--to",), 64),
        (("--to", "x"), 64),
        (("--to", "-1"), 64),
        (("--to", "99999"), 64),
        (("--to", "4"), 64),
        (("--to", "3"), 0),
        (("--to", "3", "now"), 64),
    ],
)
def test_a_version_that_no_rollback_leads_to_is_refused_or_needs_nothing(
    terminal: Terminal, words: tuple[str, ...], code: int
) -> None:
    assert terminal.boot().code == 0
    before = terminal.sha256()
    answer = terminal.run("rollback", *words, "--json")
    assert answer.code == code, answer.out
    if not code:
        assert answer.json["verdict"] == "NOT_REQUIRED"
    assert terminal.sha256() == before


def test_data_that_is_newer_than_the_software_is_told_where_its_way_back_is(
    terminal: Terminal,
) -> None:
    folder = terminal.own_migrations()
    assert terminal.boot().code == 0
    next(folder.glob("0003_*.py")).unlink()
    before = terminal.sha256()
    answer = terminal.run("rollback", "--to", "1", "--json")
    assert answer.code == 8
    assert "install it, roll back, then install the older one" in answer.json["error"]["message"]
    assert terminal.sha256() == before


def test_a_dry_run_leaves_the_root_byte_for_byte(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    before = _bytes_below(terminal.root)
    for to in (0, 1, 2, 3):
        assert terminal.run("rollback", "--to", str(to), "--dry-run").code == 0
    assert _bytes_below(terminal.root) == before


def _bytes_below(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


STATEMENTS = """
STEPS = [
    sql("CREATE INDEX sales_by_status ON transactions (json_extract(value, '$.status'))",
        "DROP INDEX sales_by_status"),
    sql("CREATE TABLE IF NOT EXISTS tips (key TEXT PRIMARY KEY, minor INTEGER)", "DROP TABLE tips"),
    sql("ALTER TABLE tips ADD COLUMN currency TEXT", KEEP),
    sql("CREATE VIEW big_tips AS SELECT * FROM tips WHERE minor > 100", "DROP VIEW big_tips"),
    set_field("transactions", "tipped", False),
]
"""


def schema(terminal: Terminal) -> set[str]:
    return {name for kind, name, *_ in reader.schema_of(terminal.pos)}


def test_indexes_and_further_tables_come_and_go_and_a_table_with_rows_stays(
    terminal: Terminal,
) -> None:
    add_migration(terminal, 4, STATEMENTS)
    before = schema(terminal)
    assert terminal.boot().code == 0
    assert {"sales_by_status", "tips", "big_tips"} <= schema(terminal)
    sell(terminal, "tx_new")
    assert rolled_back(terminal, 3)["kept"] == []
    assert schema(terminal) - {"posagent"} == before
    assert terminal.run("migrate").code == 0
    sql(terminal, "INSERT INTO tips VALUES ('tx_new', 150, 'EUR')")
    found = rolled_back(terminal, 3)
    assert [entry["step"] for entry in found["kept"]] == ["table tips"]
    assert sql(terminal, "SELECT * FROM tips") == [("tx_new", 150, "EUR")]
    assert "big_tips" not in schema(terminal)
    # Forward again the table is there already, and what it holds stays.
    assert terminal.run("migrate").code == 0
    assert sql(terminal, "SELECT * FROM big_tips") == [("tx_new", 150, "EUR")]


def test_a_record_that_moved_goes_back_unless_the_new_software_put_its_own_there(
    terminal: Terminal,
) -> None:
    before = values(terminal, "metadata")
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    rolled_back(terminal, 2)
    assert "nimipay_preferences" in values(terminal, "metadata")
    assert "user_preferences" not in values(terminal, "metadata")
    # The old software takes its preferences away, and the new software makes new ones.
    sql(terminal, "DELETE FROM metadata WHERE key = 'nimipay_preferences'")
    assert terminal.run("migrate").code == 0
    sql(terminal, "INSERT INTO metadata VALUES ('user_preferences', '{\"theme\":\"new\"}')")
    rolled_back(terminal, 0)
    after = values(terminal, "metadata")
    assert after.pop("user_preferences") == '{"theme":"new"}'
    before.pop("nimipay_preferences")
    assert not same_values(after, before)


def marks_of(terminal: Terminal, command: list[str], out: Path) -> list[str]:
    copy = Terminal(out / "all")
    shutil.copytree(terminal.root, copy.root, symlinks=True)
    done = killing.trace(
        [*command, "--root", str(copy.root), "rollback", "--to", "0", "--json"],
        out / "trace",
        kind="mark",
    )
    return done.moments


@pytest.mark.parametrize("newer", [False, True], ids=["switch back", "down"])
def test_power_gone_at_any_mark_of_a_rollback_leaves_the_old_data_or_the_new_whole(
    terminal: Terminal, tmp_path: Path, newer: bool
) -> None:
    original = terminal.read()
    assert terminal.boot().code == 0
    if newer:
        sell(terminal, "tx_new")
    upgraded = terminal.sha256()
    moments = marks_of(terminal, COMMAND, tmp_path / "list")
    assert len(moments) > 3
    seen = set()
    for at in range(1, len(moments) + 1):
        copy = Terminal(tmp_path / f"cut-{at}")
        shutil.copytree(terminal.root, copy.root, symlinks=True)
        words = [*COMMAND, "--root", str(copy.root), "rollback", "--to", "0", "--json"]
        cut = killing.trace(words, tmp_path / f"out-{at}", victim="supervisor", kind="mark", at=at)
        boot = copy.boot()
        assert boot.json["app_may_start"], (cut.replay, boot.out)
        assert not os.path.exists(f"{copy.pos}.next"), cut.replay
        found = copy.read()
        seen.add(found.schema_version)
        if found.schema_version == 3:
            assert copy.sha256() == upgraded, cut.replay
            assert rolled_back(copy, 0)["to_version"] == 0
            found = copy.read()
        assert found.schema_version == 0, cut.replay
        states = [row["state"] for row in copy.run("history", "--json").json["history"]]
        assert states.count("rolled_back") == 3, cut.replay
        for store in reader.STORES:
            now = dict(found.stores[store])
            if newer and store == "transactions":
                assert now.pop("tx_new") == NEW_SALE, cut.replay
            assert not same_values(now, original.stores[store]), cut.replay
    assert seen == {0, 3}


def test_a_rollback_that_the_profile_wants_settled_first_needs_consent(terminal: Terminal) -> None:
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    terminal.configure(unsettled_guard="refuse")
    before = terminal.sha256()
    answer = terminal.run("rollback", "--to", "1", "--json")
    assert (answer.code, answer.json["error"]["code"]) == (13, "UNSETTLED")
    assert terminal.sha256() == before
    assert rolled_back(terminal, 1, "--despite-unsettled")["way"] == "down"


def test_the_application_must_not_start_on_a_version_it_does_not_read(terminal: Terminal) -> None:
    folder = terminal.own_migrations()
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [3, 3]
    (folder / "stores.json").write_text(json.dumps(document))
    assert terminal.boot().code == 0
    answer = terminal.run("rollback", "--to", "1", "--json")
    assert answer.code == 0
    assert not answer.json["app_may_start"]
    assert "reads 3 to 3" in answer.json["app_must_not_start_because"]


@pytest.mark.parametrize(
    "row", ["{half", "{}", "[[0]]", '[[0,["was"]]]', '[["0",["was",1]]]', "[[0,[]]]", "7", "x" * 99]
)
def test_a_ledger_that_cannot_be_read_holds_the_way_back(terminal: Terminal, row: str) -> None:
    add_migration(terminal, 4, "STEPS = [remove_field('transactions', 'currency')]")
    add_migration(terminal, 4, "STEPS = [remove_field('balances', 'balance')]")
    assert terminal.boot().code == 0
    sell(terminal, "tx_new")
    key = sql(terminal, "SELECT min(key) FROM posagent WHERE kind = 'undo:0004'")[0][0]
    statement = "UPDATE posagent SET value = ? WHERE kind = 'undo:0004' AND key = ?"
    sql(terminal, statement, row, key)
    error = held(terminal, 3, 13)
    assert "needs cannot be read any more" in error["message"]
    assert json.loads(key)[1][:9] in error["message"]


def test_what_people_read_says_the_way_and_what_is_kept(terminal: Terminal) -> None:
    assert terminal.boot().code == 0
    sell(terminal, "tx_new", '{"amount":1,"currency":"EUR","status":"pending","schemaVersion":9}')
    out = terminal.run("rollback", "--to", "2", "--dry-run").out
    assert "way back: `down` on a successor, which keeps what was sold since" in out
    out = terminal.run("rollback", "--to", "1").out
    assert "OK: schema 3 -> 1" in out
    assert "values in 1 records are kept as they were written since (0002: set" in out
    out = terminal.run("history").out
    assert "rollback  3 -> 2  rolled_back" in out


assert sys.version_info >= (3, 9)
