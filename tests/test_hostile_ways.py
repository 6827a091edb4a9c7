"""What an attack on the ways back, on undo, quarantine and statements has found, each as a promise.

The real command on sample terminals; the application is an ordinary SQLite client, and whoever can
write pos.db can write into our own table too.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests import killing
from tests.client import Client
from tests.terminals import COMMAND, Answer, Terminal, new_terminal

USES = "from agent.core.migration import *\n"
SALE = '{"amount":777,"currency":"EUR","status":"pending"}'


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return new_terminal(tmp_path / "t", records=60, unsettled=10)


def add(terminal: Terminal, version: int, body: str, **stores: Any) -> None:
    """One more migration, and keys of stores.json."""
    folder = terminal.own_migrations()
    text = f"{USES}VERSION, NAME = {version}, 'of the test'\n{body}\n"
    (folder / f"{version:04d}_of_the_test.py").write_text(text)
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, 9]
    document.update(stores)
    (folder / "stores.json").write_text(json.dumps(document))


def sql(terminal: Terminal, statement: str, *given: Any) -> list[Any]:
    connection = sqlite3.connect(terminal.pos, isolation_level=None)
    try:
        return connection.execute(statement, given).fetchall()
    finally:
        connection.close()


def put(terminal: Terminal, key: str, value: str, store: str = "transactions") -> None:
    sql(terminal, f"INSERT OR REPLACE INTO {store} VALUES (?, ?)", key, value)


def rollback(terminal: Terminal, to: int, *words: str) -> Answer:
    return terminal.run("rollback", "--to", str(to), "--json", *words)


def record(terminal: Terminal, key: str, store: str = "transactions") -> Any:
    return terminal.read().stores[store].get(key)


def test_a_sale_made_before_the_wal_mode_was_given_back_is_no_part_of_the_switch(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10, journal="wal")
    terminal.configure(busy_wait_ms=100, deadline_ms=1000)
    seal = terminal.data / "posagent/seal"
    assert terminal.boot().code == 0
    # As after a boot that a late holder kept from giving the mode back.
    sql(terminal, "PRAGMA journal_mode=DELETE")
    owed = json.loads(seal.read_text())
    owed.update(wal=True, size=terminal.pos.stat().st_size, sha256=terminal.sha256())
    seal.write_text(json.dumps(owed))
    put(terminal, "tx_new", SALE)
    assert terminal.boot().code == 0
    answer = rollback(terminal, 0)
    assert (answer.code, answer.json["way"]) == (0, "down"), answer.out
    assert record(terminal, "tx_new") == SALE


def test_a_seal_that_says_wal_after_a_sale_hides_no_sale(terminal: Terminal) -> None:
    assert terminal.boot().code == 0
    put(terminal, "tx_new", SALE)
    seal = terminal.data / "posagent/seal"
    seal.write_text(seal.read_text().replace('"wal":false', '"wal":true'))
    assert terminal.boot().code == 0
    assert rollback(terminal, 0).json["way"] == "down"
    assert record(terminal, "tx_new") == SALE


def test_an_object_that_was_there_and_that_a_later_step_adds_to_is_given_back_as_it_was(
    terminal: Terminal,
) -> None:
    add(terminal, 4, "STEPS = [set_field('sync', 'tip', {'amount': 0}, if_missing=True)]")
    add(terminal, 5, "STEPS = [set_field('sync', 'tip.currency', 'EUR')]")
    put(terminal, "tx_tip", '{"tip":{"amount":0}}', "sync")
    add(terminal, 6, "STEPS = [map_value('sync', 'm', {1: {'a': 1}}, other='keep')]")
    add(terminal, 7, "STEPS = [set_field('sync', 'm.b', 2)]")
    put(terminal, "tx_map", '{"m":{"a":1}}', "sync")
    assert terminal.run("check").code == 0
    assert terminal.boot().code == 0
    put(terminal, "tx_new", SALE)
    assert rollback(terminal, 0).json["way"] == "down"
    assert reader.same_value(record(terminal, "tx_tip", "sync"), '{"tip":{"amount":0}}')
    assert reader.same_value(record(terminal, "tx_map", "sync"), '{"m":{"a":1}}')


def test_what_the_application_deleted_does_not_come_back(terminal: Terminal) -> None:
    add(
        terminal,
        4,
        "def up(record, context):\n"
        "    if type(record.get('card')) is dict:\n"
        "        record['card'].pop('x', None)\n"
        "    return record\n"
        "STEPS = [remove_field('metadata', 'card.token'),"
        " each('metadata', up, UNDO, fields=['card'])]",
    )
    put(terminal, "gone", '{"card":{"token":"abc","x":1,"kept":2}}', "metadata")
    put(terminal, "here", '{"card":{"token":"abc","x":1,"kept":2}}', "metadata")
    assert terminal.boot().code == 0
    put(terminal, "gone", "{}", "metadata")
    found = rollback(terminal, 0).json
    assert record(terminal, "gone", "metadata") == "{}"
    back = record(terminal, "here", "metadata")
    assert reader.same_value(back, '{"card":{"token":"abc","x":1,"kept":2}}')
    assert [entry["first"] for entry in found["kept"]] == [["metadata/gone"]] * 2


def test_a_pruned_record_that_had_moved_leaves_nothing_to_a_new_one_of_its_name(
    terminal: Terminal,
) -> None:
    stores = json.loads((terminal.own_migrations() / "stores.json").read_text())["versions"]
    stores[0]["stores"]["transactions"]["prune"]["keep_newest"] = 0
    add(
        terminal,
        4,
        "STEPS = [set_field('transactions', 'fee', 0), "
        "move_record('transactions', 'tx_a', to_key='tx_b')]",
        versions=stores,
    )
    put(terminal, "tx_a", '{"amount":1,"currency":"EUR","status":"completed","fee":7}')
    assert terminal.boot().code == 0
    assert terminal.run("prune").code == 0
    assert record(terminal, "tx_b") is None
    new = '{"amount":9,"currency":"EUR","status":"pending","fee":0}'
    put(terminal, "tx_b", new)
    assert rollback(terminal, 3).json["way"] == "down"
    assert record(terminal, "tx_a") is None
    assert reader.same_value(
        record(terminal, "tx_b"), '{"amount":9,"currency":"EUR","status":"pending"}'
    )


@pytest.mark.parametrize("way", ["up", "down", "on the table"])
def test_a_statement_that_an_application_s_trigger_needs_undone_is_refused_before_a_build(
    terminal: Terminal, way: str
) -> None:
    """Else the application could save no sale any more, with a verdict of OK."""
    make, drop = '"CREATE TABLE audit (key TEXT)"', '"DROP TABLE audit"'
    trigger = (
        "CREATE TRIGGER noted AFTER INSERT ON transactions BEGIN"
        " INSERT INTO audit VALUES (new.key); DELETE FROM audit; END"
    )
    if way == "on the table":
        trigger = "CREATE TRIGGER noted AFTER INSERT ON audit BEGIN SELECT 1; END"
    if way == "down":
        add(terminal, 4, f"STEPS = [sql({make}, {drop})]")
        assert terminal.boot().code == 0
        sql(terminal, trigger)
        put(terminal, "tx_new", SALE)
        before = terminal.sha256()
        dry, answer = rollback(terminal, 3, "--dry-run"), rollback(terminal, 3)
        assert dry.code == answer.code == 13, dry.out + answer.out
    else:
        sql(terminal, "CREATE TABLE audit (key TEXT)")
        sql(terminal, trigger)
        add(terminal, 4, f"STEPS = [sql({drop}, {make})]")
        before = terminal.sha256()
        answer = terminal.boot()
        assert answer.code == 10, answer.out
        assert list(terminal.backups.glob("*")) == []
    words = "noted" if way == "on the table" else "the application could write transactions no more"
    assert words in answer.json["error"]["message"]
    assert terminal.sha256() == before
    put(terminal, "tx_newer", SALE)


def test_a_trigger_on_the_agents_own_table_is_set_off_by_no_run(terminal: Terminal) -> None:
    assert terminal.boot().code == 0
    sql(
        terminal,
        "CREATE TRIGGER evil AFTER INSERT ON posagent BEGIN"
        " UPDATE transactions SET value = '{}'; END",
    )
    put(terminal, "tx_new", SALE)
    before = terminal.read().stores["transactions"]
    assert rollback(terminal, 2).code == 0
    after = terminal.read().stores["transactions"]
    assert after.keys() == before.keys()
    assert after["tx_new"] == SALE
    assert sum(value == "{}" for value in after.values()) == 0


def test_rows_that_a_way_down_drops_are_announced_and_told(terminal: Terminal) -> None:
    make, drop = '"CREATE TABLE tips (key TEXT)"', '"DROP TABLE tips"'
    add(terminal, 4, f"STEPS = [sql({make}, {drop}, on_new='remove')]")
    assert terminal.boot().code == 0
    sql(terminal, "INSERT INTO tips VALUES ('a'), ('b')")
    expected = [
        {"version": None, "step": "table tips", "what": "removed", "records": 2, "first": []}
    ]
    assert rollback(terminal, 3, "--dry-run").json["kept"] == expected
    assert rollback(terminal, 3).json["kept"] == expected


def test_a_move_that_is_not_undone_is_told(terminal: Terminal) -> None:
    assert terminal.boot().code == 0
    put(terminal, "nimipay_preferences", '{"theme":"old"}', "metadata")
    found = rollback(terminal, 2).json
    assert [(entry["version"], entry["what"], entry["first"]) for entry in found["kept"]][-1] == (
        3,
        "kept",
        ["metadata/user_preferences"],
    )
    assert record(terminal, "nimipay_preferences", "metadata") == '{"theme":"old"}'


def test_after_a_cut_rollback_nothing_is_done_forward_in_its_place(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.own_migrations()
    assert terminal.boot().code == 0
    put(terminal, "tx_new", SALE)
    add(terminal, 4, "STEPS = [remove_field('sync', 'type', forget=True)]")
    command = [*COMMAND, "--root", str(terminal.root), "rollback", "--to", "1", "--json"]
    at = 'mark {"state":"migrating"'
    cut = killing.trace(command, tmp_path / "cut", victim="supervisor", at=at)
    assert cut.killed, cut.moments
    told = terminal.run("status").out
    assert "a rollback was asked for" in told
    answer = terminal.boot()
    assert answer.json["app_may_start"], answer.out
    assert "a rollback was asked for" in answer.json["error"]["message"]
    assert terminal.read().schema_version == 3
    assert rollback(terminal, 1).code == 0
    assert record(terminal, "tx_new") == SALE
    # Once it has ended, whatever way, what was pending is pending again.
    assert terminal.run("migrate").code == 0
    assert terminal.read().schema_version == 4


def test_a_rollback_that_is_held_holds_nothing_forward(terminal: Terminal) -> None:
    add(terminal, 4, "STEPS = [remove_field('sync', 'type', forget=True)]")
    assert terminal.boot().code == 0
    put(terminal, "tx_new", SALE)
    add(terminal, 5, "STEPS = []")
    assert rollback(terminal, 3).code == 13
    assert terminal.boot().code == 0
    assert terminal.read().schema_version == 5


def test_a_fields_name_is_shown_without_a_cards_number(terminal: Terminal) -> None:
    add(
        terminal,
        4,
        "def up(record, context):\n"
        "    for card in record.get('cards', {}).values():\n"
        "        card['x'] = 1\n"
        "    return record\n"
        "STEPS = [each('sync', up, UNDO, fields=['y'])]",
    )
    put(terminal, "s", '{"cards":{"4111111111111111":{}}}', "sync")
    answer = terminal.boot()
    assert answer.code == 10
    assert "cards.411111******1111.x" in answer.out
    told = answer.out + terminal.run("history").out + terminal.run("status").out
    told += "".join(
        path.read_bytes().decode("latin-1")
        for path in (terminal.root / "run").rglob("*")
        if path.is_file()
    )
    assert "4111111111111111" not in told


@pytest.mark.parametrize("made_by", ["a migration", "the application", "nobody"])
def test_a_store_can_be_added_with_a_version(terminal: Terminal, made_by: str) -> None:
    versions = json.loads((terminal.own_migrations() / "stores.json").read_text())["versions"]
    newer = json.loads(json.dumps(versions[0]))
    newer["since"] = 4
    newer["stores"]["refunds"] = {
        "unsettled": [{"every_record": True}],
        "amount": "amount",
        "currency": "currency",
    }
    create = "CREATE TABLE refunds (key TEXT PRIMARY KEY, value TEXT)"
    statement = f"sql({create!r}, 'DROP TABLE refunds')" if made_by == "a migration" else ""
    add(terminal, 4, f"STEPS = [{statement}]", versions=[versions[0], newer])
    if made_by == "the application":
        sql(terminal, create)
        put(terminal, "r1", '{"amount":5,"currency":"EUR"}', "refunds")
    unsettled = terminal.run("status", "--json").json["money"]["records"]
    before = terminal.sha256()
    answer = terminal.boot()
    if made_by == "nobody":
        assert answer.code == 10, answer.out
        assert "has the store refunds, which is not in pos.db" in answer.json["error"]["message"]
        assert terminal.sha256() == before
        return
    assert answer.code == 0, answer.out
    put(terminal, "r2", '{"amount":7,"currency":"EUR"}', "refunds")
    status = terminal.run("status", "--json").json
    assert status["money"]["records"] == unsettled + (1 if made_by == "a migration" else 2)
    # On the way back the refunds stay where they are, for whoever reads them.
    found = rollback(terminal, 3).json
    assert found["way"] == "down", found
    assert sql(terminal, "SELECT value FROM refunds WHERE key = 'r2'") == [
        ('{"amount":7,"currency":"EUR"}',)
    ]
    assert terminal.run("migrate").code == 0


GARBAGE = [
    ("undo:\u00b2", "x", "1"),
    ("applied", "\u00b2\u00b2\u00b2\u00b2", "1"),
    ("applied", "0002", '{"checksum":"x","run":"r","now":1e999}'),
    ("applied", "0002", "[]"),
    ("moved", "\u00b2/\u00b2", "true"),
    ("moved", "0003/0", "garbage"),
    ("there", "/", "true"),
    ("run", "row", '{"run":[]}'),
    ("run", "row", "7"),
    ("run", "cursor", '{"a":1}'),
    (
        "quarantine",
        "x",
        '{"store":"nope","key":"4111111111111111","version":0,"digest":"","reason":"r"}',
    ),
    ("quarantine", "x", '{"store":7}'),
    ("min_reader", "", '"three"'),
    ("trigger", "000000", '"DROP TABLE transactions"'),
    ("pruned", "sales", "-1000"),
    ("nonsense", "x", "y"),
]


@pytest.mark.parametrize(("kind", "key", "value"), GARBAGE)
@pytest.mark.parametrize("verb", ["migrate", "rollback", "prune", "reading"])
def test_garbage_in_the_agents_own_table_moves_no_money_and_is_no_fault_of_the_agent(
    at_three: Terminal, tmp_path: Path, kind: str, key: str, value: str, verb: str
) -> None:
    terminal = Terminal(tmp_path / "copy")
    shutil.copytree(at_three.root, terminal.root, symlinks=True)
    sql(terminal, "INSERT OR REPLACE INTO posagent VALUES (?, ?, ?)", kind, key, value)
    before = terminal.read().stores["transactions"]
    if verb == "reading":
        for words in (("status",), ("plan",), ("quarantine",), ("validate",), ("history",)):
            answer = terminal.run(*words, "--json")
            assert answer.code in (0, 1), answer.out
            assert "4111111111111111" not in answer.out
        return
    if verb == "migrate":
        add(terminal, 4, "STEPS = [set_field('sync', 'tries', 0)]")
        answer = terminal.run("migrate", "--json")
    elif verb == "prune":
        answer = terminal.run("prune", "--json")
    else:
        answer = rollback(terminal, 2)
    assert answer.code in (0, 1, 10, 13, 14), answer.out
    after = terminal.read().stores["transactions"]
    if verb != "rollback":
        assert after == before
    assert after.keys() == before.keys()
    assert after["tx_new"] == SALE


@pytest.fixture(scope="module")
def at_three(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    terminal = new_terminal(tmp_path_factory.mktemp("three") / "t", records=40, unsettled=5)
    terminal.own_migrations()
    assert terminal.boot().code == 0
    put(terminal, "tx_new", SALE)
    return terminal


@pytest.mark.parametrize(
    "change",
    [
        {"back": {"run": []}},
        {"back": {"run": "x", "to_version": 3, "size": 0, "sha256": "", "hold": "", "names": []}},
        {"back": 7},
        {"given_up": 5},
        {"given_up": [5]},
        {"size": "many"},
        {"wal": 1},
        {"run": None},
    ],
    ids=str,
)
def test_a_seal_with_other_types_is_no_seal(
    at_three: Terminal, tmp_path: Path, change: dict[str, Any]
) -> None:
    terminal = Terminal(tmp_path / "copy")
    shutil.copytree(at_three.root, terminal.root, symlinks=True)
    seal = terminal.data / "posagent/seal"
    given = json.loads(seal.read_text())
    if isinstance(change.get("back"), dict):
        change["back"].update(size=terminal.pos.stat().st_size, sha256=terminal.sha256())
    seal.write_text(json.dumps({**given, **change}))
    assert terminal.boot().code == 0
    answer = rollback(terminal, 1)
    assert (answer.code, answer.json["way"]) == (0, "down"), answer.out
    assert record(terminal, "tx_new") == SALE


def test_a_late_opener_is_waited_for_also_by_a_switch_back(terminal: Terminal) -> None:
    terminal.configure(busy_wait_ms=100)
    assert terminal.boot().code == 0
    with Client(terminal.pos) as client:
        assert client.ask("open 0") == "ok"
        assert client.ask("sql SELECT count(*) FROM transactions").startswith("ok")
        answer = rollback(terminal, 0)
        assert answer.code == 5, answer.out
    assert rollback(terminal, 0).json["way"] == "switch back"


MOVES = (
    "STEPS = [remove_field('sync', 'note')]",
    "STEPS = [move_record('sync', 'k1', to_key='k2')]",
)


@pytest.mark.parametrize("mover", ["there", "deleted"])
def test_what_was_kept_for_a_record_that_moved_is_given_to_no_other_under_its_old_name(
    terminal: Terminal, mover: str
) -> None:
    add(terminal, 4, MOVES[0])
    add(terminal, 5, MOVES[1])
    put(terminal, "k1", '{"id":"A","note":"of A"}', "sync")
    assert terminal.boot().code == 0
    put(terminal, "k1", '{"id":"B"}', "sync")
    if mover == "deleted":
        sql(terminal, "DELETE FROM sync WHERE key = 'k2'")
    before = terminal.sha256()
    dry, answer = rollback(terminal, 3, "--dry-run"), rollback(terminal, 3)
    assert dry.code == answer.code == 13, dry.out + answer.out
    assert "sync/k1 is another record" in answer.json["error"]["message"]
    assert terminal.sha256() == before
    # Not in two hops either; and once the name is free, the way is.
    assert rollback(terminal, 4).code == 13
    sql(terminal, "DELETE FROM sync WHERE key = 'k1'")
    assert rollback(terminal, 4).code == 0
    if mover == "deleted":
        put(terminal, "k1", '{"id":"C"}', "sync")
    assert rollback(terminal, 3).code == 0
    found = json.loads(record(terminal, "k1", "sync"))
    left = ("C", None) if mover == "deleted" else ("A", "of A")
    assert (found["id"], found.get("note")) == left


def test_a_newcomer_under_a_name_on_a_moved_records_way_is_not_moved_in_its_place(
    terminal: Terminal,
) -> None:
    add(terminal, 4, "STEPS = [move_record('sync', 'a', to_key='b')]")
    add(terminal, 5, "STEPS = [move_record('sync', 'b', to_key='c')]")
    put(terminal, "a", '{"id":"A"}', "sync")
    assert terminal.boot().code == 0
    put(terminal, "b", '{"id":"B"}', "sync")
    for to in (3, 4):
        assert "sync/b is another record" in rollback(terminal, to).json["error"]["message"]
    sql(terminal, "DELETE FROM sync WHERE key = 'b'")
    assert rollback(terminal, 3).code == 0
    assert json.loads(record(terminal, "a", "sync"))["id"] == "A"


@pytest.mark.parametrize("step", ["set_field('sync', 'v', 1, key='k1')", MOVES[1][9:-1]])
def test_a_step_for_one_record_means_the_very_key_whatever_the_tables_collation(
    terminal: Terminal, step: str
) -> None:
    rows = sql(terminal, "SELECT key, value FROM sync")
    sql(terminal, "DROP TABLE sync")
    sql(terminal, "CREATE TABLE sync (key TEXT PRIMARY KEY COLLATE NOCASE, value TEXT)")
    for key, value in rows:
        put(terminal, key, value, "sync")
    put(terminal, "K1", '{"id":"other"}', "sync")
    add(terminal, 4, f"STEPS = [{step}]")
    assert terminal.boot().code == 0
    assert json.loads(record(terminal, "K1", "sync")).get("v") is None
    assert record(terminal, "k2", "sync") is None
    put(terminal, "tx_new", SALE)
    assert rollback(terminal, 0).json["way"] == "down"
    assert record(terminal, "K1", "sync") == '{"id":"other"}'
