"""docs/spec/own-table.md: the rows that travel inside pos.db, read by a second reader.

The reader is made from the page alone: SQLite, JSON, and the words of the migrations' steps. It
works out the records of earlier versions by itself and takes nothing from the agent.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any, Union

import pytest

from tests import independent_reader as reader
from tests.terminals import ROOT, Gate, Terminal, new_terminal

PAGE = (ROOT / "docs/spec/own-table.md").read_text("utf-8")
HEADER = "from agent.core.migration import *\n"
SALE = '{"id":"n","amount":1250,"currency":"EUR","status":"pending"}'
Rows = dict[tuple[str, str], Any]
Path_ = Union[list[str], tuple[str, ...]]

# One migration with every entry there is; the descriptions below say the same to the reader.
FOURTH = """
def up(record, context):
    metadata = record.get("metadata")
    if type(metadata) is dict:
        metadata.pop("version", None)
        metadata["networkStatus"] = [metadata.get("networkStatus"), 10.5]
    return record

STEPS = [
    remove_field("sync", "type"),
    set_field("balances", "timestamp", NOW),
    set_field("balances", "extra.deep", 1),
    set_field("balances", "note", "none", if_missing=True, on_new="remove"),
    map_value("balances", "metadata.source", {"network": "n", "cache": "n"}, other="keep"),
    rename_field("balances", "balance", "money.now"),
    each("transactions", up, UNDO, fields=["metadata"]),
]
"""
STEPS: dict[int, list[tuple[Any, ...]]] = {
    1: [
        step
        for store in reader.STORES
        for step in (("set", store, ["schemaVersion"], 1), ("set", store, ["updatedAt"], "NOW"))
    ],
    2: [
        ("set if missing", "transactions", ["metadata"], "METADATA"),
        ("set", "transactions", ["schemaVersion"], 2),
    ],
    3: [
        ("move", "metadata", "nimipay_preferences", "user_preferences"),
        ("set", "metadata", ["schemaVersion"], 3, "user_preferences"),
    ],
    4: [
        ("remove", "sync", ["type"]),
        ("set", "balances", ["timestamp"], "NOW"),
        ("set", "balances", ["extra", "deep"], 1),
        ("set if missing", "balances", ["note"], "none"),
        ("map", "balances", ["metadata", "source"]),
        ("rename", "balances", ["balance"], ["money", "now"]),
        ("each", "transactions"),
    ],
}


# The second reader


def parsed(text: str) -> Any:
    """JSON with the literal of every number that is no integer, or that Python would not give."""
    return json.loads(
        text,
        parse_float=lambda literal: ("number", literal),
        parse_int=lambda literal: ("number", literal) if literal == "-0" else int(literal),
    )


def compact(value: Any) -> str:
    """A value as its digest is made from: compact, the keys of objects in order."""
    if isinstance(value, dict):
        inside = ",".join(f"{compact(name)}:{compact(value[name])}" for name in sorted(value))
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{','.join(map(compact, value))}]"
    return value[1] if isinstance(value, tuple) else json.dumps(value, ensure_ascii=False)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def rows_of(path: Path) -> Rows:
    """Every row of the table, its value parsed; the columns are those of the page."""
    with reader.opened(path) as db:
        columns = db.execute("PRAGMA table_info(posagent)").fetchall()
        assert [(name, kind) for _, name, kind, *_ in columns] == [
            ("kind", "TEXT"),
            ("key", "TEXT"),
            ("value", "TEXT"),
        ]
        found = db.execute("SELECT kind, key, value, typeof(value) FROM posagent").fetchall()
    assert {kind for *_, kind in found} == {"text"}
    return {(kind, key): parsed(value) for kind, key, value, _ in found}


def of_kind(rows: Rows, kind: str) -> dict[str, Any]:
    return {key: value for (of, key), value in rows.items() if of == kind}


def at(record: Any, path: Path_) -> Any:
    for part in path:
        record = record[part]
    return record


def put(record: Any, path: Path_, value: Any) -> None:
    for part in path[:-1]:
        record = record.setdefault(part, {})
    record[path[-1]] = value


def take(record: Any, path: Path_, depth: int) -> None:
    """Take a field out, and the objects on its way that it leaves empty but the first `depth`."""
    del at(record, path[:-1])[path[-1]]
    for end in range(len(path) - 1, depth, -1):
        if at(record, path[:end]) != {}:
            return
        del at(record, path[: end - 1])[path[end - 1]]


def has(record: Any, path: Path_) -> bool:
    for part in path:
        if not isinstance(record, dict) or part not in record:
            return False
        record = record[part]
    return True


def meant(value: Any, version: int, applied: dict[str, Any]) -> Any:
    """A step's value with what the run knew in place of its name."""
    now = applied["now"]
    if value == "METADATA":
        return {
            "migratedAt": now,
            "originalVersion": version - 1,
            "deviceId": applied["device_id"],
        }
    return now if value == "NOW" else value


def undo(
    step: tuple[Any, ...], record: Any, entry: Any, default: list[Any], value: Any = None
) -> None:
    """One step backwards on one record, by the table of entries of the page."""
    kind, path = step[0], step[2] if len(step) > 2 else []
    if kind == "each":
        for place, old, _ in entry[1] if entry else ():
            put(record, place, old[0]) if old else take(record, place, len(place))
    elif kind == "rename":
        if entry != ["stays"] and has(record, step[3]):
            moved = at(record, step[3])
            take(record, step[3], entry[1] if entry else 0)
            put(record, path, moved)
    elif entry is not None and entry[0] == "was":
        put(record, path, entry[1])
    elif kind in ("remove", "map") or entry == ["there"]:
        return
    elif has(record, path) and (kind == "set" or at(record, path) == value):
        if default and entry is None:
            put(record, path, default[0])
        else:
            take(record, path, entry[1] if entry else 0)


def worked_out(path: Path, to: int) -> reader.Rows:
    """The four stores at an earlier version, as texts of the same values."""
    rows, terminal = rows_of(path), reader.read_terminal(path)
    stores = {store: dict(found) for store, found in terminal.stores.items()}
    for version in range(terminal.schema_version, to, -1):
        applied = rows["applied", f"{version:04d}"]
        kept = of_kind(rows, f"undo:{version:04d}")
        ledgers = {tuple(json.loads(key)): dict(value) for key, value in kept.items()}
        defaults = {number: [value] for number, value in applied["defaults"]}
        for number, step in reversed(list(enumerate(STEPS[version]))):
            if step[0] == "move":
                if ("moved", f"{version:04d}/{number}") in rows:
                    stores[step[1]][step[2]] = stores[step[1]].pop(step[3])
                continue
            value = meant(step[3], version, applied) if step[0].startswith("set") else None
            for key in [step[4]] if len(step) > 4 else list(stores[step[1]]):
                text = stores[step[1]].get(key)
                record = parsed(text) if isinstance(text, str) else None
                if isinstance(record, dict):
                    entry = ledgers.get((step[1], key), {}).get(number)
                    undo(step, record, entry, defaults.get(number, []), value)
                    stores[step[1]][key] = compact(record)
    return stores


def same(found: reader.Rows, expected: reader.Rows) -> None:
    for store in reader.STORES:
        assert found[store].keys() == expected[store].keys()
        for key, text in expected[store].items():
            assert reader.same_value(found[store][key], text), (store, key, found[store][key], text)


# What the page says of each kind

HEX64, HEX32, RUN = r"[0-9a-f]{64}", r"[0-9a-f]{32}", r"[0-9a-f]{12}"
RUN_ROW = {
    "kind": str,
    "run": str,
    "source_size": int,
    "source_sha256": str,
    "plan": str,
    "from_version": int,
    "to_version": int,
    "now": int,
    "clock_trusted": bool,
    "device_id": str,
    "before": dict,
    "counters": dict,
    "backup": (dict, type(None)),
    "wal": bool,
    "app_reads": list,
    "state": str,
    "left": int,
    "checked": bool,
    "despite_unsettled": bool,
}
APPLIED = {
    "checksum": str,
    "run": str,
    "now": int,
    "device_id": str,
    "min_reader": int,
    "keeps_undo": bool,
    "defaults": list,
    "constants": list,
}
LEFT = {"store": str, "key": str, "version": int, "digest": str, "reason": str}


def is_object_of(types: dict[str, Any], value: Any) -> None:
    assert value.keys() == types.keys()
    for name, kind in types.items():
        assert isinstance(value[name], kind), (name, value[name])
        assert kind is bool or not isinstance(value[name], bool), name


def is_ledger(key: str, value: Any) -> None:
    store, record = json.loads(key)
    assert isinstance(store, str)
    assert isinstance(record, str)
    numbers = [number for number, _ in value]
    assert numbers == sorted(set(numbers))
    assert numbers
    for _, entry in value:
        word, given = entry[0], entry[1:]
        if word == "fields":
            for path, old, known in given[0]:
                assert all(isinstance(part, str) for part in path)
                assert len(old) <= 1
                assert re.fullmatch(f"({HEX32})?", known)
        else:
            assert len(given) == {"was": 1, "absent": 1, "there": 0, "stays": 0}[word]
            assert word != "absent" or type(given[0]) is int


def holds(path: Path) -> Rows:
    """OT-1, OT-2, OT-7: the rows of a whole pos.db are of the kinds and types of the page."""
    rows = rows_of(path)
    assert rows["format", ""] == 1
    version = reader.read_terminal(path).schema_version
    for (kind, key), value in rows.items():
        if kind.startswith("undo:"):
            assert re.fullmatch(r"undo:\d{4}", kind)
            is_ledger(key, value)
        elif kind == "applied":
            assert re.fullmatch(r"\d{4}", key)
            is_object_of(APPLIED, value)
            assert re.fullmatch(HEX64, value["checksum"])
            assert re.fullmatch(RUN, value["run"])
        elif kind == "moved":
            assert re.fullmatch(r"\d{4}/\d+", key)
            assert [[type(part) for part in place] for place in value] == [[str, str]] * 2
        elif kind == "there":
            assert re.fullmatch(r"\d{4}/\d+", key)
            assert value is True
        elif kind == "quarantine":
            assert re.fullmatch(HEX32, key)
            is_object_of(LEFT, value)
            assert re.fullmatch(HEX32, value["digest"])
            assert 0 <= value["version"] <= version
        else:
            known = [("format", ""), ("run", "row"), ("run", "cursor"), ("min_reader", "")]
            assert (kind, key) in known
    row = rows["run", "row"]
    is_object_of(RUN_ROW, row)
    assert (row["state"], row["to_version"]) == ("sealed", version)
    assert row["left"] == len(of_kind(rows, "quarantine"))
    reads = [value["min_reader"] for value in of_kind(rows, "applied").values()]
    assert rows.get(("min_reader", ""), 0) == max(reads, default=0)
    return rows


def versions_in(rows: Rows) -> set[int]:
    """The versions that rows of kind applied, undo and moved speak of."""
    found = {int(key[:4]) for kind, key in rows if kind in ("applied", "moved")}
    return found | {int(kind[5:]) for kind, _ in rows if kind.startswith("undo:")}


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """At schema 0, with its own migrations, tables and triggers; the application reads all."""
    made = new_terminal(tmp_path / "t", records=90, unsettled=20, extra_tables=True)
    folder = made.own_migrations()
    document = json.loads((folder / "stores.json").read_text())
    (folder / "stores.json").write_text(json.dumps(dict(document, app_reads=[0, 9])))
    return made


def add(terminal: Terminal, version: int, body: str) -> Path:
    path = terminal.root / "migrations" / f"{version:04d}_of_the_test.py"
    path.write_text(f"{HEADER}VERSION, NAME = {version}, 'of the test'\n{body}\n")
    return path


def sql(terminal: Terminal, statement: str, *given: Any) -> list[Any]:
    """The application, or somebody with an SQLite client, at work."""
    connection = sqlite3.connect(terminal.pos, isolation_level=None)
    try:
        return connection.execute(statement, given).fetchall()
    finally:
        connection.close()


def sell(terminal: Terminal) -> None:
    sql(terminal, "INSERT INTO transactions VALUES ('tx_new', ?)", SALE)


def done(terminal: Terminal, *words: str, code: int = 0) -> dict[str, Any]:
    answer = terminal.run(*words, "--json")
    assert answer.code == code, answer.out + answer.err
    return answer.json


def odd_balances(terminal: Terminal) -> None:
    """Balances for each entry of the page that the sample's own do not need."""
    for key, text in (
        ("empty way", '{"balance":1,"extra":{},"money":{},"note":"there","timestamp":5}'),
        ("renamed", '{"money":{"now":7},"metadata":{"source":"n"}}'),
        ("bare", '"text"'),
    ):
        sql(terminal, "INSERT INTO balances VALUES (?, ?)", key, text)


# The promises


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_migrated_file_has_the_rows_of_the_page_and_no_other(
    tmp_path: Path, journal: str
) -> None:
    """OT-1, OT-2, OT-7."""
    made = new_terminal(tmp_path / "t", records=60, journal=journal, extra_tables=True)
    before = reader.schema_of(made.pos)
    assert made.boot().code == 0
    rows = holds(made.pos)
    assert of_kind(rows, "trigger") == {}
    assert [e for e in reader.schema_of(made.pos) if "posagent" not in str(e)] == before
    assert sorted(of_kind(rows, "applied")) == ["0001", "0002", "0003"]
    for name in sorted(path.name for path in (ROOT / "migrations").glob("0*.py")):
        text = (ROOT / "migrations" / name).read_bytes().strip(b"\n") + b"\n"
        checksum = hashlib.sha256(text).hexdigest()
        assert rows["applied", name[:4]]["checksum"] == checksum
    row = rows["run", "row"]
    assert (row["kind"], row["from_version"], row["wal"]) == ("migrate", 0, journal == "wal")
    assert row["source_sha256"] == reader.file_sha256(made.pos.with_name("pos.db.prev"))


def test_every_record_of_every_earlier_version_is_worked_out_from_the_page_alone(
    terminal: Terminal,
) -> None:
    """OT-3, by values; one plan over three versions, and one over the fourth."""
    odd_balances(terminal)
    at_zero = terminal.read().stores
    assert terminal.boot().code == 0
    at_three = terminal.read().stores
    same(worked_out(terminal.pos, 0), at_zero)
    add(terminal, 4, FOURTH)
    assert terminal.boot().code == 0
    rows = holds(terminal.pos)
    same(worked_out(terminal.pos, 3), at_three)
    same(worked_out(terminal.pos, 0), at_zero)
    ledgers = of_kind(rows, "undo:0004")
    words = {entry[0] for ledger in ledgers.values() for _, entry in ledger}
    assert words == {"was", "absent", "there", "stays", "fields"}
    now = terminal.read().stores
    for key, ledger in ledgers.items():
        store, record = json.loads(key)
        for path, _, known in dict(ledger).get(6, ["", []])[1]:
            new = parsed(str(now[store][record]))
            expected = digest(compact(at(new, path)).encode()) if has(new, path) else ""
            assert known == expected
    # The agent comes to the same by itself.
    sell(terminal)
    assert done(terminal, "rollback", "--to", "0")["way"] == "down"
    back = terminal.read().stores
    assert back["transactions"].pop("tx_new") == SALE
    same(back, at_zero)


@pytest.mark.parametrize("to", [3, 2, 1, 0])
def test_after_a_rollback_nothing_speaks_of_a_version_that_was_taken_back(
    terminal: Terminal, to: int
) -> None:
    """OT-4."""
    add(terminal, 4, FOURTH)
    assert terminal.boot().code == 0
    assert versions_in(rows_of(terminal.pos)) == {1, 2, 3, 4}
    sell(terminal)
    done(terminal, "rollback", "--to", str(to))
    rows = holds(terminal.pos)
    assert versions_in(rows) == set(range(1, to + 1))
    assert rows["run", "row"]["kind"] == "rollback"
    assert rows["min_reader", ""] == to
    # And forward again it is as it was the first time.
    done(terminal, "migrate")
    assert versions_in(holds(terminal.pos)) == {1, 2, 3, 4}


def test_rows_of_a_schema_that_somebody_else_took_back_go_with_the_next_migration(
    terminal: Terminal,
) -> None:
    add(terminal, 4, "STEPS = [remove_field('sync', 'type')]")
    assert terminal.boot().code == 0
    first = rows_of(terminal.pos)
    sql(terminal, "PRAGMA user_version = 3")
    add(terminal, 4, "STEPS = [remove_field('sync', 'action')]")
    assert terminal.boot().code == 0
    rows = holds(terminal.pos)
    assert rows["applied", "0004"]["checksum"] != first["applied", "0004"]["checksum"]
    assert of_kind(rows, "undo:0004").keys() == of_kind(first, "undo:0004").keys()
    assert of_kind(rows, "undo:0004") != of_kind(first, "undo:0004")


@pytest.mark.parametrize("together", [True, False], ids=["one plan", "one after the other"])
def test_behind_a_migration_that_cannot_be_undone_no_ledger_is_left(
    terminal: Terminal, together: bool
) -> None:
    """OT-5."""
    add(terminal, 4, FOURTH)
    if not together:
        assert terminal.boot().code == 0
        assert of_kind(rows_of(terminal.pos), "undo:0004")
    add(terminal, 5, "STEPS = [each('sync', lambda record, context: KEEP, fields=['x'])]")
    add(terminal, 6, "STEPS = [remove_field('sync', 'action')]")
    assert terminal.boot().code == 0
    rows = holds(terminal.pos)
    assert {kind for kind, _ in rows if kind.startswith("undo:")} == {"undo:0006"}
    assert rows["applied", "0005"]["keeps_undo"] is False
    assert rows["applied", "0006"]["keeps_undo"] is True


FAILS = """QUARANTINE = True
def up(record, context):
    if record.get("fails"):
        raise ValueError
    record["done"] = 4
    return record
STEPS = [each("balances", up, UNDO, fields=["done"])]
"""


def left_rows(terminal: Terminal) -> dict[str, int]:
    """Key to version of the records left behind; each row's digests are those of its record."""
    found = {}
    for name, row in of_kind(holds(terminal.pos), "quarantine").items():
        ((value,),) = sql(terminal, "SELECT value FROM balances WHERE key = ?", row["key"])
        data = value if isinstance(value, bytes) else value.encode()
        assert name == digest(f"{row['store']}\0{row['key']}".encode())
        assert row["digest"] == digest(data)
        found[row["key"]] = row["version"]
    return found


def test_a_record_that_was_left_behind_has_its_row_until_it_is_brought_up_changed_or_deleted(
    terminal: Terminal,
) -> None:
    """OT-6."""
    assert terminal.boot().code == 0
    texts = {"half": '{"a":', "fails": '{"fails":true}', "edited": '{"fails":1}', "gone": "{"}
    for key, text in texts.items():
        sql(terminal, "INSERT INTO balances VALUES (?, ?)", key, text)
    sql(terminal, "INSERT INTO balances VALUES ('blob', x'00ff')")
    add(terminal, 4, FAILS)
    assert done(terminal, "boot", code=14)["quarantined"] == 5
    assert left_rows(terminal) == dict.fromkeys([*texts, "blob"], 3)
    # Neither a backup's restore, nor a prune, nor a migration of another store forgets them.
    add(terminal, 5, "STEPS = [remove_field('sync', 'type')]")
    assert done(terminal, "migrate", code=14)["quarantined"] == 5
    sql(terminal, "UPDATE balances SET value = '{}' WHERE key = 'edited'")
    sql(terminal, "DELETE FROM balances WHERE key = 'gone'")
    add(terminal, 6, "STEPS = [set_field('balances', 'six', 6)]")
    assert done(terminal, "migrate", code=14)["quarantined"] == 3
    assert left_rows(terminal) == {"half": 3, "fails": 3, "blob": 3}
    assert sql(terminal, "SELECT value FROM balances WHERE key = 'edited'") == [('{"six":6}',)]
    sell(terminal)
    done(terminal, "rollback", "--to", "5", code=14)
    assert left_rows(terminal) == {"half": 3, "fails": 3, "blob": 3}
    done(terminal, "rollback", "--to", "0", code=14)
    assert left_rows(terminal) == {"half": 0, "blob": 0}
    assert sql(terminal, "SELECT value FROM balances WHERE key = 'half'") == [(texts["half"],)]


def test_a_prune_drops_the_ledgers_of_what_it_deletes_and_no_other_row(terminal: Terminal) -> None:
    """OT-8."""
    path = terminal.root / "migrations/stores.json"
    document = json.loads(path.read_text())
    document["versions"][0]["stores"]["transactions"]["prune"]["keep_newest"] = 10
    path.write_text(json.dumps(document))
    sql(terminal, "DELETE FROM shift_sales")  # a sale that another table names is not pruned
    add(terminal, 4, FOURTH)
    assert terminal.boot().code == 0
    before, sales = holds(terminal.pos), set(terminal.read().stores["transactions"])
    pruned = done(terminal, "prune")["pruned"]["transactions"]["records"]
    after = holds(terminal.pos)
    gone = sales - set(terminal.read().stores["transactions"])
    assert pruned == len(gone) > 10
    kept = {
        (kind, key): value
        for (kind, key), value in before.items()
        if kind != "run" and not (kind.startswith("undo:") and json.loads(key)[1] in gone)
    }
    assert len(kept) < len(before) - 2
    assert {place: v for place, v in after.items() if place[0] != "run"} == kept
    assert after["run", "row"]["kind"] == "prune"
    assert after["run", "row"]["before"]["pruned"] == {"transactions": pruned}


WRITING = (
    ("boot",),
    ("migrate",),
    ("backup",),
    ("prune",),
    ("commit",),
    ("restore", "1"),
    ("rollback", "--to", "3"),
)
ASKING = (("rollback", "--to", "3", "--dry-run"), ("quarantine",), ("prune", "--dry-run"))


@pytest.mark.parametrize("value", ["2", '"two"', "1.5", "true", "[1]"])
def test_a_table_of_another_format_is_refused_and_nothing_is_changed(
    terminal: Terminal, value: str
) -> None:
    """OT-9."""
    add(terminal, 4, "STEPS = [remove_field('sync', 'type')]")
    assert terminal.boot().code == 0
    sql(terminal, "UPDATE posagent SET value = ? WHERE kind = 'format'", value)
    sql(terminal, "UPDATE posagent SET value = 'means something else' WHERE kind <> 'format'")
    add(terminal, 5, "STEPS = [set_field('sync', 'five', 5)]")
    files = [terminal.pos, terminal.pos.with_name("pos.db.prev"), *terminal.backups.iterdir()]
    before = [reader.file_sha256(path) for path in files]
    for words in (*WRITING, *ASKING, ("plan",)):
        answer = terminal.run(*words, "--json")
        assert answer.code == 8, (words, answer.out)
        assert "SCHEMA_TOO_NEW" in answer.out
        assert [reader.file_sha256(path) for path in files] == before, words
    for words in (("status",), ("validate",), ("health",), ("backups",), ("history",)):
        assert terminal.run(*words, "--json").code == 0, words
    # Nor does the application start where it does not read the schema: then that is what counts.
    path = terminal.root / "migrations/stores.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), app_reads=[5, 5])))
    assert terminal.boot().code == 12


def test_a_kind_that_nobody_knows_is_carried_along(terminal: Terminal) -> None:
    """OT-10."""
    assert terminal.boot().code == 0
    sql(terminal, "INSERT INTO posagent VALUES ('of tomorrow', 'k', '{not even JSON')")
    sql(terminal, "INSERT INTO posagent VALUES ('undo:of tomorrow', 'k', '[')")
    add(terminal, 4, "STEPS = [remove_field('sync', 'type')]")
    assert terminal.boot().code == 0
    sell(terminal)
    done(terminal, "rollback", "--to", "2")
    done(terminal, "migrate")
    found = sql(terminal, "SELECT kind, value FROM posagent WHERE kind LIKE '%tomorrow'")
    assert found == [("of tomorrow", "{not even JSON"), ("undo:of tomorrow", "[")]


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE posagent SET value = '{' WHERE kind = 'applied' AND key = '0004'",
        "UPDATE posagent SET value = '[]' WHERE kind = 'applied' AND key = '0004'",
        "UPDATE posagent SET value = '{\"run\":1}' WHERE kind = 'applied' AND key = '0004'",
        "UPDATE posagent SET value = x'ff' WHERE kind = 'applied' AND key = '0004'",
        "DELETE FROM posagent WHERE kind = 'applied' AND key = '0004'",
        "UPDATE posagent SET value = '{' WHERE kind = 'undo:0004'",
        "UPDATE posagent SET value = '[1]' WHERE kind = 'undo:0004'",
        "UPDATE posagent SET value = '[[0,[]]]' WHERE kind = 'undo:0004'",
        "UPDATE posagent SET value = x'ff' WHERE kind = 'undo:0004'",
        "DROP TABLE posagent",
    ],
)
def test_a_row_that_cannot_be_read_never_makes_a_way_back_look_safe(
    terminal: Terminal, spoil: str
) -> None:
    """OT-10."""
    add(terminal, 4, "STEPS = [remove_field('sync', 'type')]")
    assert terminal.boot().code == 0
    sell(terminal)
    sql(terminal, spoil)
    before = terminal.sha256(), terminal.listing()
    for dry in ((), ("--dry-run",)):
        answer = terminal.run("rollback", "--to", "3", "--json", *dry)
        assert answer.code != 0, answer.out
        assert (terminal.sha256(), terminal.listing()) == before
    # The upgrade goes on: what it needs is in the records.
    add(terminal, 5, "STEPS = [set_field('sync', 'five', 5)]")
    done(terminal, "boot")
    assert terminal.read().schema_version == 5


YOUNGER = ("left", "checked", "despite_unsettled")


def as_an_earlier_agent_wrote_it(terminal: Terminal) -> None:
    """What an agent left that knew no way back: bare checksums, a shorter run row, no format."""
    for key, value in sql(terminal, "SELECT key, value FROM posagent WHERE kind = 'applied'"):
        text = json.dumps(json.loads(value)["checksum"])
        sql(terminal, "UPDATE posagent SET value = ? WHERE kind = 'applied' AND key = ?", text, key)
    ((text,),) = sql(terminal, "SELECT value FROM posagent WHERE kind = 'run' AND key = 'row'")
    row = {k: v for k, v in json.loads(text).items() if k not in YOUNGER}
    statement = "UPDATE posagent SET value = ? WHERE kind = 'run' AND key = 'row'"
    sql(terminal, statement, json.dumps(row, separators=(",", ":")))
    sql(terminal, "DELETE FROM posagent WHERE kind NOT IN ('run', 'applied')")


def test_rows_of_an_earlier_agent_are_gone_on_from(terminal: Terminal) -> None:
    """OT-11."""
    assert terminal.boot().code == 0
    as_an_earlier_agent_wrote_it(terminal)
    assert done(terminal, "boot")["verdict"] == "NOT_REQUIRED"
    assert done(terminal, "check")["faults"] == []
    assert done(terminal, "quarantine")["quarantine"] == []
    at_three = terminal.read().stores
    path = add(terminal, 4, FOURTH)
    assert done(terminal, "boot")["verdict"] == "OK"
    same(worked_out(terminal.pos, 3), at_three)
    sell(terminal)
    # Down to where the earlier agent was, and no further.
    before = terminal.sha256()
    held = done(terminal, "rollback", "--to", "2", code=13)
    assert held["verdict"] == "HELD"
    assert "does not say that an agent which keeps what undoing needs" in held["error"]["message"]
    assert "0003_migrate_user_preferences.py" in held["error"]["message"]
    assert terminal.sha256() == before
    assert done(terminal, "rollback", "--to", "3")["way"] == "down"
    back = terminal.read().stores
    assert back["transactions"].pop("tx_new") == SALE
    same(back, at_three)
    # An edited file is told by a bare checksum as well.
    path = next(path.parent.glob("0002_*.py"))
    path.write_text(path.read_text() + "# edited\n")
    assert [fault["file"] for fault in done(terminal, "check", code=11)["faults"]] == [path.name]


def test_the_file_of_an_earlier_agent_is_put_back_where_nothing_was_written(
    terminal: Terminal,
) -> None:
    """OT-11."""
    before = terminal.sha256()
    assert terminal.boot().code == 0
    assert done(terminal, "rollback", "--to", "0")["way"] == "switch back"
    assert terminal.sha256() == before
    assert done(terminal, "migrate")["verdict"] == "OK"
    as_an_earlier_agent_wrote_it(terminal)
    assert done(terminal, "rollback", "--to", "1", code=13)["error"]["facts"]["in_the_way"]


def test_a_successor_that_a_cut_leaves_says_what_is_done_in_it(terminal: Terminal) -> None:
    """OT-12. The cut comes in the second pass, with the first one done."""
    assert terminal.boot().code == 0
    add(terminal, 4, FOURTH)
    gate = Gate(terminal)  # a fifth migration, which waits at the first balance
    path = next((terminal.root / "migrations").glob("0005_*.py"))
    text = path.read_text().replace("import KEEP", "import UNDO, KEEP")
    path.write_text(text.replace("up, fields", "up, UNDO, fields"))
    triggers = [entry for entry in reader.schema_of(terminal.pos) if entry[0] == "trigger"]
    assert triggers
    twin = Terminal(terminal.root.with_name("twin"))
    shutil.copytree(terminal.root, twin.root, ignore=shutil.ignore_patterns("gate-*"))
    run = terminal.start("boot")
    gate.wait(run)
    run.kill()
    gate.wait_for_death()
    run.communicate()
    next_file = terminal.pos.with_name("pos.db.next")
    rows = rows_of(next_file)
    assert rows["format", ""] == 1
    assert rows["run", "row"]["state"] == "open"
    assert sorted(of_kind(rows, "trigger").values()) == sorted(str(entry[-1]) for entry in triggers)
    assert [e for e in reader.schema_of(next_file) if e[0] == "trigger"] == []
    done_now = reader.read_terminal(next_file)
    number, place, count = rows["run", "cursor"]
    assert (number, place, count) == (1, None, len(done_now.stores["sync"]))
    # What is done has its ledger, what is not done has none and is as it was.
    ledgers = {tuple(json.loads(key)) for key in of_kind(rows, "undo:0004")}
    assert twin.boot().code == 0
    whole = {tuple(json.loads(key)) for key in of_kind(rows_of(twin.pos), "undo:0004")}
    assert ledgers == {place for place in whole if place[0] == "sync"}
    old = terminal.read()
    assert done_now.schema_version == old.schema_version
    for store in ("balances", "metadata", "transactions"):
        assert done_now.stores[store] == old.stores[store]
    assert sorted(of_kind(rows, "applied")) == ["0001", "0002", "0003"]
    # The next boot goes on from there, and the whole has every row.
    assert terminal.boot().code == 0
    after = holds(terminal.pos)
    assert {tuple(json.loads(key)) for key in of_kind(after, "undo:0004")} == whole
    assert after["run", "row"]["run"] == rows["run", "row"]["run"]


def test_every_promise_of_the_page_has_a_test_with_its_mark() -> None:
    promised = re.findall(r"^- \*\*(OT-\d+)\*\*", PAGE, re.MULTILINE)
    assert promised == [f"OT-{number}" for number in range(1, len(promised) + 1)]
    own = Path(__file__).read_text("utf-8")
    assert [mark for mark in promised if not re.search(rf"{mark}\b", own)] == []


def test_the_page_lists_every_kind_and_every_key() -> None:
    kinds = re.findall(r"^\| ([a-z_]+(?::NNNN)?) \|", PAGE.split("## Picture")[1], re.MULTILINE)
    for kind in ("format", "run", "trigger", "applied", "undo:NNNN", "moved", "quarantine"):
        assert kind in kinds
    for name in (*RUN_ROW, *APPLIED, *LEFT, "min_reader"):
        assert re.search(rf"\b{name}\b", PAGE), name
