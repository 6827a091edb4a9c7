"""Prune: old backups and settled records go as stores.json allows, and nothing else ever does.

Which records must go is worked out here in plain Python from the independent reader's view of the
old file; the real command has to agree, record by record, and all else has to be the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.stores import Contracts
from agent.core.terminal import RunRow
from agent.edges import database
from agent.ground.errors import MigrationsRejected, ValidationError
from agent.verbs import prune, prune_proof, rows, survey
from tests import filesystems as fs
from tests import independent_reader as reader
from tests import killing, second_reader
from tests.client import Client
from tests.terminals import COMMAND, ROOT, Answer, Terminal, new_terminal
from tests.test_kills import LEFT_IN_DATA, LEFT_IN_STATE, contents, history_of, recovered_sha256
from tests.test_verbs import DOCUMENTED, keys_of

KEEP = 20


def rules_of(terminal: Terminal, **rule: Any) -> dict[str, Any]:
    """Change the prune rule of `transactions`; answers the rule in force."""
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    found: dict[str, Any] = document["versions"][0]["stores"]["transactions"]["prune"]
    found.update(rule)
    path.write_text(json.dumps(document))
    return found


def small(root: Path, keep: int = KEEP, **recipe: Any) -> Terminal:
    """A terminal at schema 0 that keeps few records, and deletes them in several batches."""
    terminal = new_terminal(root, **{"records": 90, "unsettled": 8, **recipe})
    rules_of(terminal, keep_newest=keep)
    terminal.configure(batch_rows_max=7)
    return terminal


def change(terminal: Terminal, *statements: str, given: tuple[object, ...] = ()) -> None:
    """What the application does to its data."""
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    for statement in statements:
        db.execute(statement, given if "?" in statement else ())
    db.close()


def put(terminal: Terminal, key: str, **fields: Any) -> None:
    """One more record in `transactions`."""
    sql = "INSERT INTO transactions (key, value) VALUES (?, ?)"
    change(terminal, sql, given=(key, json.dumps(fields)))


def plain(raw: reader.Raw) -> Any:
    """The value of a record that every reader understands alike, else None."""
    try:
        value = reader.parse(raw)
    except reader.NotJson:
        return None
    return None if reader.has_duplicate_key(value) else value


def must_go(pos: Path, keep: int, field: str = "status", word: str = "completed") -> set[str]:
    """The keys that a prune has to delete, by the words of stores.json and nothing of `agent`."""
    with reader.opened(pos) as db:
        sql = db.execute("SELECT sql FROM sqlite_master WHERE name = 'transactions'").fetchone()[0]
        order = "key" if "WITHOUT ROWID" in sql.upper() else "rowid"
        found = db.execute(f"SELECT key, value FROM transactions ORDER BY {order}").fetchall()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        referred = set()
        if "shift_sales" in tables:
            referred = {key for (key,) in db.execute("SELECT tx_key FROM shift_sales")}
        own = db.execute("SELECT value FROM metadata WHERE key = 'counters'").fetchone()
    values = {key: plain(raw) for key, raw in found}
    fitting = [
        key for key, value in values.items() if isinstance(value, dict) and value.get(field) == word
    ]
    stores: reader.Rows = {"transactions": dict(found)}
    needed = {where.key for where in reader.unsettled_of(stores)} | referred
    known = plain(own[0]) if own is not None else None
    for counter, highest in reader.highest_used(stores).items():
        said = reader.integer(known.get(counter)) if isinstance(known, dict) else None
        if said is None or highest > said:
            needed |= {
                key
                for key, value in values.items()
                if isinstance(value, dict) and reader.integer(value.get(counter)) == highest
            }
    return set(fitting[: len(fitting) - keep] if keep else fitting) - needed


def documented(answer: Answer) -> dict[str, Any]:
    """The answer; every key of it is documented."""
    known = DOCUMENTED["prune"] | DOCUMENTED["boot"]
    assert answer.out.count("\n") == 1, answer.out
    assert keys_of(answer.json, known) - known == set()
    return answer.json


def pruned(terminal: Terminal, gone: set[str]) -> dict[str, Any]:
    """One prune that deletes exactly these keys; everything else is judged to be as it was."""
    before, tables = terminal.read(), reader.other_tables(terminal.pos)
    schema, header = reader.schema_of(terminal.pos), terminal.pos.read_bytes()[:24]
    unsettled = reader.unsettled(terminal.pos)
    order = in_order(terminal.pos)
    source = recovered_sha256(terminal.pos)
    answer = terminal.run("prune", "--json")
    assert answer.code == 0, answer.out + answer.err
    result = documented(answer)
    after = terminal.read()
    sales = before.stores["transactions"]
    assert sales.keys() - after.stores["transactions"].keys() == gone
    left = {key: raw for key, raw in sales.items() if key not in gone}
    assert after == before._replace(stores={**before.stores, "transactions": left})
    assert in_order(terminal.pos) == [row for row in order if row[1] not in gone]
    assert reader.unsettled(terminal.pos) == unsettled
    ours = {"posagent"}
    found = reader.other_tables(terminal.pos)
    assert {n: found[n] for n in found.keys() - ours} == {
        n: tables[n] for n in tables.keys() - ours
    }
    assert [row for row in reader.schema_of(terminal.pos) if row[2] not in ours] == [
        row for row in schema if row[2] not in ours
    ]
    assert terminal.pos.read_bytes()[:24] == header  # page size and journal mode
    assert reader.soundness(terminal.pos) == []
    size = sum(len(str(sales[key]).encode()) for key in gone)
    assert result["pruned"] == {"transactions": {"records": len(gone), "bytes": size}}
    assert result["kept"] == {"transactions": len(left)}
    assert result["app_may_start"] is True
    assert list(terminal.data.glob("pos.db.next*")) == []
    if not gone:
        assert result["verdict"] == "NOT_REQUIRED"
        assert reader.file_sha256(terminal.pos) == source
        return result
    assert result["verdict"] == "OK"
    assert result["records"] == sum(map(len, after.stores.values()))
    assert reader.file_sha256(f"{terminal.pos}.prev") == source
    newest = second_reader.read((terminal.backups / result["backup"]["name"]).read_bytes())
    assert newest.end["source"]["sha256"] == source
    last = history_of(terminal)[-1]
    assert (last["kind"], last["state"], last["run"]) == ("prune", "applied", result["run"])
    assert json.loads(last["facts"])["before"]["pruned"] == {"transactions": len(gone)}
    return result


def in_order(pos: Path) -> list[tuple[Any, str]]:
    """(rowid, key) of every sale in the order of the table; no rowid where there is none."""
    with reader.opened(pos) as db:
        try:
            return db.execute("SELECT rowid, key FROM transactions ORDER BY rowid").fetchall()
        except sqlite3.OperationalError:
            return db.execute("SELECT 0, key FROM transactions ORDER BY key").fetchall()


def everything(root: Path) -> dict[str, tuple[Any, ...]]:
    """Every file and folder with its bytes and times."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (seen.st_ino, seen.st_mode, seen.st_mtime_ns, data)
    return found


# --- which records go ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"layout": "without-rowid"},
        {"layout": "without-rowid", "keys": "time", "journal": "wal"},
        {"extra_tables": True, "records": 1200, "keys": "time"},
        {"page_size": 512, "free_share": 0.4},
        {"page_size": 65536, "journal": "wal"},
        {"bad_share": 0.2},
    ],
    ids=str,
)
def test_whatever_the_file_exactly_the_oldest_beyond_the_newest_go(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    terminal = small(tmp_path / "t", **recipe)
    gone = must_go(terminal.pos, KEEP)
    assert len(gone) > 25
    money = reader.money_of(terminal.read().stores) if not recipe.get("bad_share") else {}
    of_gone: reader.Rows = {
        "transactions": {key: terminal.read().stores["transactions"][key] for key in gone}
    }
    pruned(terminal, gone)
    if money:
        less, left = reader.money_of(of_gone), reader.money(terminal.pos)
        for currency, (count, total) in money.items():
            n, amount = less.get(currency, (0, 0))
            assert left.get(currency, (0, 0)) == (count - n, total - amount)
    pruned(terminal, set())  # there is nothing left to do


def test_an_unsettled_record_stays_though_the_rule_fits_it(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    rule = {"field": "type", "values": ["sale"], "keep_newest": 0}
    rules_of(terminal, **rule)
    for key in ("failed_new", "retry_new", "transaction-queue-not"):
        put(terminal, key, type="sale", status="completed", amount=5, currency="EUR")
    change(terminal, "DELETE FROM transactions WHERE key = 'transaction-queue'")
    put(terminal, "transaction-queue", type="sale", status="completed")
    gone = must_go(terminal.pos, 0, "type", "sale")
    assert "transaction-queue-not" in gone
    assert not gone & {"failed_new", "retry_new", "transaction-queue"}
    fitting = [
        key
        for key, raw in terminal.read().stores["transactions"].items()
        if isinstance(plain(raw), dict) and plain(raw).get("type") == "sale"
    ]
    assert len(fitting) - len(gone) >= 8, "pending sales fit the rule as well"
    pruned(terminal, gone)


@pytest.mark.parametrize("text", ['{"status":["completed"]}', '"completed"', "[]", "{}", "null"])
def test_what_does_not_say_that_it_is_settled_stays(tmp_path: Path, text: str) -> None:
    terminal = small(tmp_path / "t", keep=0)
    change(terminal, "INSERT INTO transactions VALUES ('odd', ?)", given=(text,))
    gone = must_go(terminal.pos, 0)
    assert "odd" not in gone
    pruned(terminal, gone)


def test_true_is_not_1_and_a_word_in_another_spelling_is_the_same_word(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    rules_of(terminal, field="state.done", values=[1, "yes"], keep_newest=0)
    texts = ('{"done":1}', '{"done":true}', '{"done":1.0}', '{"done":"y\\u0065s"}', '{"done":"1"}')
    for number, text in enumerate(texts):
        sql = "INSERT INTO transactions VALUES (?, ?)"
        change(terminal, sql, given=(f"k{number}", f'{{"state":{text}}}'))
    pruned(terminal, {"k0", "k3"})


def test_a_store_without_a_rule_loses_nothing(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    del document["versions"][0]["stores"]["transactions"]["prune"]
    path.write_text(json.dumps(document))
    before = terminal.sha256()
    answer = documented(terminal.run("prune", "--json"))
    assert (answer["verdict"], answer["pruned"], answer["kept"]) == ("NOT_REQUIRED", {}, {})
    assert terminal.sha256() == before
    assert list(terminal.backups.glob("*")) == []


# --- what newer means ----------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0, -1, 1 << 62, 253_402_300_799_999, "tomorrow", None])
def test_no_time_in_a_record_has_a_say(tmp_path: Path, time: Any) -> None:
    """A clock at 1970, or centuries ahead, when the oldest and the newest sales were made."""
    terminal = small(tmp_path / "t")
    expected = must_go(terminal.pos, KEEP)
    every_time = "json_set(value, '$.timestamp', json(?), '$.updatedAt', json(?))"
    for part in ("ASC", "DESC"):
        keys = f"SELECT key FROM transactions WHERE key LIKE 'tx%' ORDER BY rowid {part} LIMIT 30"
        sql = f"UPDATE transactions SET value = {every_time} WHERE key IN ({keys})"
        change(terminal, sql, given=(json.dumps(time), json.dumps(time)))
    assert must_go(terminal.pos, KEEP) == expected
    pruned(terminal, expected)


def test_the_order_is_that_of_rowid_and_not_of_keys_or_times(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", records=0, unsettled=0, keep=2)
    change(terminal, "DELETE FROM transactions")
    for rowid, name in ((7, "a"), (3, "e"), (-5, "c"), (1 << 62, "b"), (4, "d")):
        text = json.dumps({"status": "completed", "timestamp": 10 - rowid})
        sql = "INSERT INTO transactions (rowid, key, value) VALUES (?, ?, ?)"
        change(terminal, sql, given=(rowid, name, text))
    pruned(terminal, {"c", "e", "d"})


def test_without_a_rowid_the_order_is_that_of_the_key(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", records=0, unsettled=0, keep=2, layout="without-rowid")
    for name in ("c", "a", "d", "b"):
        put(terminal, name, status="completed", timestamp=ord("z") - ord(name))
    pruned(terminal, {"a", "b"})


# --- what is needed still ------------------------------------------------------------------------


def test_the_only_sale_that_shows_a_counters_highest_number_stays(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", keep=0)
    put(terminal, "tx_high", status="completed", stan=500_000, receipt=7)
    put(terminal, "tx_last", status="completed", stan=12, receipt=9_000_000)
    gone = must_go(terminal.pos, 0)
    assert not gone & {"tx_high", "tx_last"}
    pruned(terminal, gone)
    change(terminal, "UPDATE metadata SET value = '{\"stan\":5}' WHERE key = 'counters'")
    gone = must_go(terminal.pos, 0)
    assert gone == set()
    pruned(terminal, gone)


def test_a_counter_that_says_it_itself_keeps_no_sale(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", keep=0)
    text = json.dumps({"stan": 999_990, "receipt": 9_000_000})
    change(terminal, "UPDATE metadata SET value = ? WHERE key = 'counters'", given=(text,))
    # The STAN has begun again after 999999: the small number is the later one.
    put(terminal, "tx_wrapped", status="completed", stan=500)
    put(terminal, "tx_plain", status="completed", stan=999_990, receipt=9_000_000)
    gone = must_go(terminal.pos, 0)
    assert {"tx_wrapped", "tx_plain"} <= gone
    pruned(terminal, gone - {"tx_wrapped"})


@pytest.mark.parametrize("own", [None, "'no JSON'", "NULL"])
def test_where_a_counter_says_nothing_the_sale_with_its_number_stays(
    tmp_path: Path, own: str | None
) -> None:
    terminal = small(tmp_path / "t", keep=0)
    change(
        terminal,
        "DELETE FROM metadata WHERE key = 'counters'"
        if own is None
        else f"UPDATE metadata SET value = {own} WHERE key = 'counters'",
    )
    gone = must_go(terminal.pos, 0)
    stores = terminal.read().stores["transactions"]
    assert len([k for k in stores if k not in gone and plain(stores[k])]) > 0
    pruned(terminal, gone)


@pytest.mark.parametrize(
    "table",
    [
        "(sale TEXT REFERENCES transactions(key))",
        "(sale REFERENCES Transactions ON DELETE CASCADE)",
        "(id INTEGER PRIMARY KEY, sale TEXT, FOREIGN KEY (sale) REFERENCES transactions (key))",
    ],
)
def test_a_sale_that_another_table_refers_to_stays(tmp_path: Path, table: str) -> None:
    terminal = small(tmp_path / "t")
    gone = must_go(terminal.pos, KEEP)
    chosen = sorted(gone)[::3]
    change(terminal, f"CREATE TABLE notes {table}", "INSERT INTO notes (sale) VALUES (NULL)")
    for key in chosen:
        change(terminal, "INSERT INTO notes (sale) VALUES (?)", given=(key,))
    pruned(terminal, gone - set(chosen))


def test_no_trigger_fires_and_each_is_there_again(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", extra_tables=True, records=1100)
    change(
        terminal,
        "CREATE TRIGGER  tell_gone AFTER DELETE ON transactions BEGIN "
        "INSERT INTO outbox (tx_key, kind) VALUES (old.key, 'gone'); END",
    )
    gone = must_go(terminal.pos, KEEP)
    assert gone
    pruned(terminal, gone)  # which compares the outbox and the schema


# --- before and after ----------------------------------------------------------------------------


def test_the_backup_from_before_holds_everything_and_a_restore_brings_it_back(
    tmp_path: Path,
) -> None:
    terminal = small(tmp_path / "t")
    before = terminal.read()
    result = pruned(terminal, must_go(terminal.pos, KEEP))
    put(terminal, "tx_new", status="pending", amount=5, currency="EUR")
    answer = terminal.run("restore", result["backup"]["name"], "--json")
    assert (answer.code, answer.json["error"]["facts"]["newer"]) == (13, 1), answer.out
    done = terminal.run("restore", result["backup"]["name"], "--discard", "newer=1", "--json")
    assert done.code == 0, done.out
    assert terminal.read() == before


def test_a_restore_of_a_backup_from_before_counts_the_sales_that_were_settled_since(
    tmp_path: Path,
) -> None:
    """There are fewer settled sales than in the backup, and three of them are not in it."""
    terminal = small(tmp_path / "t")
    result = pruned(terminal, must_go(terminal.pos, KEEP))
    for number in range(3):
        put(terminal, f"new_{number}", status="completed", amount=5, currency="EUR")
    for _ in range(2):
        answer = terminal.run("restore", result["backup"]["name"], "--json")
        assert (answer.code, answer.json["error"]["code"]) == (13, "UNSETTLED"), answer.out
        assert answer.json["error"]["facts"]["settled"] == 3
        # A backup and a prune later it is the same three.
        assert terminal.run("backup").code == 0
        rules_of(terminal, keep_newest=10)
        assert terminal.run("prune").code == 0
    answer = terminal.run("restore", "2", "--json")
    assert answer.code == 0, answer.out


def test_pending_migrations_stay_pending_and_the_next_boot_runs_them(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    gone = must_go(terminal.pos, KEEP)
    assert pruned(terminal, gone)["to_version"] == 0
    before = terminal.read()
    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"], answer.json["to_version"]) == (0, "OK", 3)
    reader.expect_migrated(before.stores, terminal.read().stores, terminal.device_id)
    kinds = [row["kind"] for row in history_of(terminal)]
    assert kinds == ["prune", "migrate", "migrate", "migrate"]
    pruned(terminal, must_go(terminal.pos, KEEP))  # at the new schema as well
    assert terminal.boot().json["verdict"] == "NOT_REQUIRED"


def test_history_reads_well_and_people_are_told_what_they_got(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    gone = must_go(terminal.pos, KEEP)
    told = terminal.run("prune")
    assert told.code == 0
    first, second, third = told.out.splitlines()
    assert first.startswith(f"OK: {len(gone):,} settled records pruned, ")
    assert first.endswith("unsettled unchanged")
    assert "free for new sales; the file keeps its size" in second
    assert third.startswith("backup 000001-v0.posbak, read back and verified")
    assert max(map(len, told.out.splitlines())) <= 80
    line = terminal.run("history").out.splitlines()[1]
    assert line.split()[-6:] == ["prune", "0", "->", "0", "applied", "OK"]
    assert terminal.run("prune").out.startswith("NOT_REQUIRED: there is no settled record")


# --- a dry run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["nobody", "delete", "wal"])
def test_a_dry_run_foretells_the_run_and_leaves_the_root_byte_for_byte(
    tmp_path: Path, how: str
) -> None:
    terminal = small(tmp_path / "t", journal="wal" if how == "wal" else "delete")
    terminal.configure(backup_count=3)
    for _ in range(3):
        assert terminal.run("backup").code == 0
    terminal.configure(backup_count=2)
    with Client(terminal.pos) as application:
        if how != "nobody":
            assert application.ask("open 0") == "ok"
            assert application.ask("sale tx_new") == "ok"
        before = everything(terminal.root)
        found = documented(terminal.run("prune", "--dry-run", "--json"))
        told = terminal.run("prune", "--dry-run")
        assert everything(terminal.root) == before
    assert (told.code, told.err) == (0, "")
    assert max(map(len, told.out.splitlines())) <= 80
    assert told.out.endswith("nothing was changed\n")
    gone = must_go(terminal.pos, KEEP)
    done = pruned(terminal, gone)
    for word in ("pruned", "kept", "backups_deleted"):
        assert found[word] == done[word], word
    assert found["dry_run"] is True
    assert found["unsettled"]["records"] == done["unsettled"]


def test_a_dry_run_that_cannot_know_says_so(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", journal="wal")
    application = Client(terminal.pos)
    assert application.ask("open 0") == "ok"
    assert application.ask("sale tx_new") == "ok"
    application.send("die")
    application.end()
    (terminal.data / "pos.db-shm").unlink()  # as after a power cut: nobody shares the file now
    before = everything(terminal.root)
    answer = terminal.run("prune", "--dry-run", "--json")
    assert answer.code == 1
    assert "wait for recovery" in answer.json["error"]["message"]
    assert everything(terminal.root) == before
    terminal.pos.unlink()
    assert terminal.run("prune", "--dry-run", "--json").json["error"]["code"] == "HELD"


# --- old backups ---------------------------------------------------------------------------------


def with_backups(terminal: Terminal, count: int) -> list[Path]:
    """So many backups, of which one is to stay."""
    terminal.configure(backup_count=count)
    for _ in range(count):
        assert terminal.run("backup").code == 0
    terminal.configure(backup_count=1)
    return sorted(terminal.backups.iterdir())


def spoil(path: Path) -> None:
    """Flash has lost a bit of it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_where_no_record_may_go_old_backups_go_all_the_same(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", keep=10_000)
    first, second, last = with_backups(terminal, 3)
    assert pruned(terminal, set())["backups_deleted"] == [first.name, second.name]
    assert list(terminal.backups.iterdir()) == [last]
    assert pruned(terminal, set())["backups_deleted"] == []


def test_the_last_backup_that_is_whole_stays_however_old_it_is(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", keep=10_000)
    first, second, third, last = with_backups(terminal, 4)
    spoil(third)
    spoil(last)
    found = documented(terminal.run("prune", "--dry-run", "--json"))
    assert pruned(terminal, set())["backups_deleted"] == [first.name, third.name]
    assert found["backups_deleted"] == [first.name, third.name]
    assert sorted(terminal.backups.iterdir()) == [second, last]


def test_where_no_backup_is_whole_none_is_deleted(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", keep=10_000)
    there = with_backups(terminal, 3)
    for path in there:
        spoil(path)
    assert pruned(terminal, set())["backups_deleted"] == []
    assert sorted(terminal.backups.iterdir()) == there


# --- refused -------------------------------------------------------------------------------------


def refused(terminal: Terminal, code: int, word: str, *words: str) -> dict[str, Any]:
    """A prune that must change nothing, backups included; its error."""
    kept = [p for p in terminal.data.rglob("*") if p.name.startswith(("pos.db", "0"))]
    before = {p: p.read_bytes() for p in kept if p.is_file()}
    answer = terminal.run("prune", *words, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (code, word), answer.out + answer.err
    assert {p: p.read_bytes() for p in before} == before
    assert list(terminal.data.glob("pos.db.next*")) == []
    found: dict[str, Any] = answer.json["error"]
    return found


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_data_of_newer_software_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    terminal = small(tmp_path / "t")
    with_backups(terminal, 2)
    change(terminal, "PRAGMA user_version = 9")
    refused(terminal, 8, "SCHEMA_TOO_NEW", *words)


def test_data_that_cannot_be_read_costs_no_backup(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    with_backups(terminal, 2)
    change(terminal, "DROP TABLE sync")
    refused(terminal, 10, "VALIDATION_ERROR")


def test_a_terminal_that_is_to_settle_first_is_not_pruned_before(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    terminal.configure(unsettled_guard="refuse")
    assert "--despite-unsettled" in refused(terminal, 13, "UNSETTLED")["message"]
    gone = must_go(terminal.pos, KEEP)
    assert terminal.run("prune", "--despite-unsettled").code == 0
    assert not gone & terminal.read().stores["transactions"].keys()


def test_while_the_application_has_the_file_a_prune_is_busy(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    terminal.configure(busy_wait_ms=0)
    with Client(terminal.pos) as application:
        assert application.ask("open 0") == "ok"
        assert application.ask("sql BEGIN IMMEDIATE") == "ok"
        refused(terminal, 5, "BUSY")


def test_a_full_flash_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    made = small(tmp_path / "made", records=2000)
    with fs.tmpfs(tmp_path / "t", 40 << 20) as point:
        shutil.copytree(made.root, point / "root")
        terminal = Terminal(point / "root")
        fs.fill(point / "filler", 17 << 20)
        refused(terminal, 6, "STORAGE_ERROR")
        (point / "filler").unlink()
        pruned(terminal, must_go(terminal.pos, KEEP))


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("pwrite64:error=ENOSPC:when=9", (6,)),
        ("fsync:error=EIO:when=1", (6,)),
        ("pread64:poke_exit=@arg2=DEADBEEF:when=1", (1, 6, 10)),
    ],
)
def test_a_prune_that_flash_spoils_changes_nothing(
    tmp_path: Path, fault: str, codes: tuple[int, ...]
) -> None:
    terminal = small(tmp_path / "t")
    gone, before = must_go(terminal.pos, KEEP), terminal.sha256()
    spoilt = [(terminal.data / name).resolve() for name in ("pos.db.next", "pos.db.next-wal")]
    log = tmp_path / "calls"
    answer = fs.run_with_faults(terminal, log, fault, spoilt, "prune", "--json")
    assert "INJECTED" in log.read_text()
    assert answer.code in codes, answer.out
    assert terminal.sha256() == before
    assert terminal.listing() == ["pos.db", "posagent"]
    pruned(terminal, gone)


PRUNE = "prune of transactions"
BAD_RULES = [
    ({"keep_newst": 5}, 'did you mean "keep_newest"'),
    ({"value": ["a"]}, 'did you mean "values"'),
    ({"keep_newest": -1}, f"keep_newest of {PRUNE} must be 0 or more"),
    ({"keep_newest": "5"}, "whole number"),
    ({"keep_newest": True}, "whole number"),
    ({"keep_newest": None}, "whole number"),
    ({"field": ""}, "must be a text"),
    ({"field": None}, "must be a text"),
    ({"field": "a..b"}, "no path"),
    ({"values": []}, "must be texts"),
    ({"values": [1.5]}, "must be texts"),
    ({"values": [None]}, "must be texts"),
    ({"values": "completed"}, "must be a list"),
    ({"values": ["completed", "pending"]}, 'gives up "pending", which is unsettled'),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "says"), BAD_RULES, ids=str)
def test_a_rule_that_can_be_meant_in_two_ways_is_refused(rule: dict[str, Any], says: str) -> None:
    document = json.loads((ROOT / "migrations/stores.json").read_text())
    document["versions"][0]["stores"]["transactions"]["prune"].update(rule)
    with pytest.raises(MigrationsRejected, match=r"stores\.json") as caught:
        Contracts(document, "")
    assert says in caught.value.message, caught.value.message


@pytest.mark.parametrize("given", [None, [], "completed", {"field": "status"}, {}])
def test_half_a_rule_is_refused(given: Any) -> None:
    document = json.loads((ROOT / "migrations/stores.json").read_text())
    document["versions"][0]["stores"]["transactions"]["prune"] = given
    with pytest.raises(MigrationsRejected, match="prune of transactions"):
        Contracts(document, "")


def test_a_bad_rule_stops_the_command_before_anything(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    rules_of(terminal, values=["completed", "processing"])
    for words in ((), ("--dry-run",)):
        assert "processing" in refused(terminal, 11, "MIGRATIONS_REJECTED", *words)["message"]


# --- cuts ----------------------------------------------------------------------------------------


class Cuts:
    """One terminal, one prune of it, and how an uninterrupted one ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = small(folder / "template", records=70)
        assert self.template.boot().code == 0
        assert self.template.run("commit").code == 0
        self.gone = must_go(self.template.pos, KEEP)
        self.source = self.template.sha256()
        self.history = len(history_of(self.template))
        whole = self.copy("whole")
        traced = self.trace(whole)
        assert traced.code == 0, traced.out
        self.marks = [m for m in traced.moments if m.startswith("mark")]
        self.after = contents(whole.pos)

    def copy(self, name: str) -> Terminal:
        """A fresh copy of the terminal."""
        shutil.copytree(self.template.root, self.folder / name)
        return Terminal(self.folder / name)

    def trace(self, terminal: Terminal, **given: Any) -> killing.Traced:
        """The real command, perhaps with a death."""
        command = [*COMMAND, "--root", str(terminal.root), "prune", "--json"]
        return killing.trace(command, terminal.root / "seen", keep=terminal.pos, **given)

    def case(self, victim: str, kind: str, at: int) -> str:
        """Kill once and boot: old or new, whole; then prune to the end. What is wrong, or ""."""
        terminal = self.copy(f"{victim}-{kind}-{at}")
        try:
            traced = self.trace(terminal, victim=victim, kind=kind, at=at)
            assert traced.killed, f"it ended before, with {traced.code}"
            seen = terminal.root / "seen/pos.db"
            new = recovered_sha256(seen) != self.source
            assert not new or contents(seen) == self.after, "neither old nor new"
            self._recover(terminal, traced, new)
        except AssertionError as wrong:
            return f"{victim} {kind} {at} ({traced.at}): {str(wrong)[:600]}"
        shutil.rmtree(terminal.root)
        return ""

    def _recover(self, terminal: Terminal, traced: killing.Traced, new: bool) -> None:
        if traced.out and new:
            assert traced.json["verdict"] == "OK", traced.out
        answer = terminal.boot()
        assert answer.code == 0, answer.out
        assert terminal.listing() in (["pos.db", "posagent"], ["pos.db", "pos.db.prev", "posagent"])
        again = documented(terminal.run("prune", "--json"))
        assert again["verdict"] == ("NOT_REQUIRED" if new else "OK"), again
        assert contents(terminal.pos) == self.after
        applied = [row for row in history_of(terminal)[self.history :] if row["state"] == "applied"]
        assert [row["kind"] for row in applied] == ["prune"]
        assert {p.name for p in terminal.data.iterdir()} <= LEFT_IN_DATA
        assert {p.name for p in (terminal.data / "posagent").iterdir()} <= LEFT_IN_STATE
        for path in terminal.backups.iterdir():
            second_reader.read(path.read_bytes())


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Cuts:
    """The same for all tests of this file."""
    return Cuts(tmp_path_factory.mktemp("cuts"))


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_a_kill_behind_every_mark_leaves_old_or_new_whole(cuts: Cuts, victim: str) -> None:
    commits = [m for m in cuts.marks if '"state":"migrating","store":"transactions"' in m]
    assert len(commits) > len(cuts.gone) // 7, "a mark for each commit"
    with ThreadPoolExecutor(2) as pool:
        cases = [(victim, "mark", n) for n in range(1, len(cuts.marks) + 1)]
        wrong = [line for line in pool.map(lambda c: cuts.case(*c), cases) if line]
    assert not wrong, "\n".join(wrong)


def test_a_cut_behind_the_rename_gets_its_history_and_holds_no_plan_back(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    gone = must_go(terminal.pos, KEEP)
    before = terminal.read()
    command = [*COMMAND, "--root", str(terminal.root), "prune", "--json"]
    at = "rename pos.db.next pos.db"
    traced = killing.trace(command, terminal.root / "cut", victim="supervisor", at=at)
    assert traced.killed
    assert not (terminal.data / "posagent/agent.db").exists()
    left = terminal.read().stores
    assert before.stores["transactions"].keys() - left["transactions"].keys() == gone
    answer = terminal.boot()  # writes the history that is owed, and runs what is pending
    assert (answer.code, answer.json["verdict"], answer.json["to_version"]) == (0, "OK", 3)
    found = history_of(terminal)
    assert [row["kind"] for row in found] == ["prune", "migrate", "migrate", "migrate"]
    assert {row["verdict"] for row in found} == {"OK"}
    facts = json.loads(found[0]["facts"])
    assert facts["before"]["pruned"] == {"transactions": len(gone)}
    reader.expect_migrated(left, terminal.read().stores, terminal.device_id)


def test_a_worker_that_dies_behind_the_rename_has_done_it(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    gone = must_go(terminal.pos, KEEP)
    command = [*COMMAND, "--root", str(terminal.root), "prune", "--json"]
    traced = killing.trace(
        command, terminal.root / "cut", victim="worker", at="rename pos.db.next pos.db"
    )
    assert traced.killed
    assert (traced.code, traced.json["verdict"]) == (0, "OK"), traced.out
    assert len(must_go(terminal.pos, KEEP)) == 0
    assert len(history_of(terminal)) == 1
    assert gone


# --- our own rows --------------------------------------------------------------------------------


def test_what_our_table_keeps_of_a_record_goes_with_it_and_nothing_else_does(
    tmp_path: Path,
) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    gone = must_go(terminal.pos, KEEP)
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    sql = "INSERT OR REPLACE INTO posagent VALUES (?, ?, ?)"
    for version in ("0002", "0003"):
        for store, records in terminal.read().stores.items():
            for key in records:
                place = json.dumps([store, key], ensure_ascii=False, separators=(",", ":"))
                db.execute(sql, (f"undo:{version}", place, "[]"))
    db.execute(sql, ("undo:0003", '["transactions","not there"]', "[]"))
    db.execute(sql, ("undo:0003", "no JSON", "[]"))
    db.execute(sql, ("undone", '["transactions","x"]', "[]"))
    db.close()
    before = own_rows(terminal)
    pruned(terminal, gone)
    lost = {(kind, key) for kind, key, _ in before} - {(k, n) for k, n, _ in own_rows(terminal)}
    assert lost == {
        (f"undo:{version}", json.dumps(["transactions", key], separators=(",", ":")))
        for version in ("0002", "0003")
        for key in gone
    }
    assert set(own_rows(terminal)) <= set(before)


@pytest.mark.parametrize("changed", ["", " "])
def test_a_record_in_quarantine_stays_also_when_it_was_changed_since(
    tmp_path: Path, changed: str
) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    gone = must_go(terminal.pos, KEEP)
    key = min(gone)
    text = str(terminal.read().stores["transactions"][key])
    name = hashlib.sha256(b"transactions\0" + key.encode()).hexdigest()[:32]
    digest = hashlib.sha256(f"{text}{changed}".encode()).hexdigest()[:32]
    left = {"store": "transactions", "key": key, "version": 1, "digest": digest, "reason": ""}
    sql = "INSERT INTO posagent VALUES ('quarantine', ?, ?)"
    change(terminal, sql, given=(name, json.dumps(left)))
    before = own_rows(terminal)
    answer = terminal.run("prune", "--json")
    assert (answer.code, answer.json["verdict"]) == (14, "PARTIAL"), answer.out
    sales = terminal.read().stores["transactions"]
    assert sales[key] == text
    assert gone & sales.keys() == {key}
    assert own_rows(terminal) == before
    told = terminal.run("prune")
    assert told.out.startswith("NOT_REQUIRED"), told.out


def own_rows(terminal: Terminal) -> list[tuple[str, str, str]]:
    """Our table without the rows of the run."""
    with reader.opened(terminal.pos) as db:
        kinds = "('run', 'trigger', 'format')"
        return db.execute(f"SELECT * FROM posagent WHERE kind NOT IN {kinds}").fetchall()


# --- any records at all --------------------------------------------------------------------------


def contract_of(keep: int) -> Contracts:
    """A small application: sales with a rule of each kind, and a counter of their numbers."""
    sales = {
        "unsettled": [{"key_prefix": "failed_"}, {"field": "status", "values": ["pending"]}],
        "amount": "amount",
        "currency": "currency",
        "prune": {"field": "status", "values": ["done", 1], "keep_newest": keep},
    }
    used = {"store": "sales", "field": "stan"}
    counter = {"name": "stan", "store": "meta", "key": "counters", "field": "stan", "used_in": used}
    version = {"since": 0, "stores": {"sales": sales, "meta": {}}, "counters": [counter]}
    return Contracts({"format": 1, "app_reads": [0, 0], "versions": [version]}, "")


class Made:
    """A file with these sales, what a prune has to leave of them, and the prune of a copy."""

    def __init__(self, folder: Path, sales: list[tuple[str, Any]], **given: Any) -> None:
        self.contract = contract_of(given.get("keep", 2)).at(0)
        self.old, self.new = folder / "old.db", folder / "new.db"
        for path in folder.iterdir():
            path.unlink()
        db = sqlite3.connect(self.old, isolation_level=None)
        layout = " WITHOUT ROWID" if given.get("without_rowid") else ""
        for store in ("sales", "meta"):
            db.execute(f"CREATE TABLE {store} (key TEXT PRIMARY KEY, value TEXT){layout}")
        db.execute("CREATE TABLE notes (sale REFERENCES sales)")
        db.execute("CREATE TABLE posagent (kind, key, value, PRIMARY KEY (kind, key))")
        db.executemany("INSERT OR REPLACE INTO sales VALUES (?, ?)", sales)
        db.executemany("INSERT INTO notes VALUES (?)", [(k,) for k in given.get("referred", ())])
        text = json.dumps({"stan": given.get("stan", 100)})
        db.execute("INSERT INTO meta VALUES ('counters', ?)", (text,))
        order = "key" if layout else "rowid"
        self.read = f"SELECT key, value FROM sales ORDER BY {order}"
        self.sales = db.execute(self.read).fetchall()
        db.close()
        self.expected = self._left(given)

    def _left(self, given: dict[str, Any]) -> list[str]:
        """The plain meaning of the rule, in as many words."""
        keep, stays = given.get("keep", 2), []
        values = {key: plain(value) for key, value in self.sales}
        stans = [reader.integer(v.get("stan")) for v in values.values() if isinstance(v, dict)]
        highest = max([given.get("stan", 100), *(stan for stan in stans if stan is not None)])
        for place, (key, _) in enumerate(self.sales):
            value = values[key]
            newer = [values[k] for k, _ in self.sales[place + 1 :]]
            shows = isinstance(value, dict) and reader.integer(value.get("stan")) == highest
            if (
                not fits(value)
                or key.startswith("failed_")
                or key in given.get("referred", ())
                or sum(map(fits, newer)) < keep
                or (shows and highest != given.get("stan", 100))
            ):
                stays.append(key)
        return stays

    def pruned(self, *tampering: str) -> list[str]:
        """Prune a copy, tamper with it, prove it; the keys that are left."""
        mark, limits = (lambda *_: None), (65536, 64)
        shutil.copyfile(self.old, self.new)
        old = database.open_source(str(self.old), 65536)
        found = survey.survey(old, self.contract, set(), limits, mark)
        figures = prune.figures(old, self.contract, found.counters, limits, mark)
        new = database.open_successor(str(self.new), 65536, 65536, 1 << 30)
        rows.make_table(new)
        chosen = prune.prunable(old, self.contract, "sales", found.counters, limits, mark)
        counts = list(prune.delete(new, "sales", chosen, (3, 1 << 20)))
        assert sum(counts) == figures["sales"]["records"]
        for statement in tampering:
            new.execute(statement)
        database.leave_wal(new, str(self.new))
        row = run_row(found, figures["sales"]["records"])
        new = database.open_source(str(self.new), 65536)
        try:
            prune_proof.prove_pruned(old, new, self.contract, row, found, limits, mark)
            return [key for key, _ in new.execute(self.read)]
        finally:
            old.close()
            new.close()


def fits(value: Any) -> bool:
    """Whether a sale is done, by either word for it."""
    said = value.get("status") if isinstance(value, dict) else None
    return said == "done" or said == reader.Number("1")


def run_row(found: survey.Survey, gone: int) -> RunRow:
    """What the proof is told of the counting before."""
    given: dict[str, Any] = dict.fromkeys(RunRow.__slots__)
    given.update(
        before=dict(found.tally.as_json(), pruned={"sales": gone}),
        counters=found.counters,
        to_version=0,
    )
    return RunRow(**given)


KEYS = st.sampled_from([*"abcdefghijklmnop", "failed_1", "failed_2", "é", "_", "A"])
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["done", "done", "done", "pending", "open", 1, True, 1.0, None]),
        "stan": st.sampled_from([1, 2, 100, 101, 102, True, "102"]),
        "amount": st.sampled_from([5, -3, 10.5, "5", None]),
        "currency": st.sampled_from(["EUR", "NIM", 7, "a long name"]),
    },
)
ODD = st.sampled_from(
    [None, b"\x00\xff", "no JSON", '"done"', "[]", '{"status":"done","status":"done"}', "", 7]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(KEYS, RECORDS.map(json.dumps) | ODD), max_size=24),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([1, 100, 101, 102, 1000]),
    st.lists(KEYS, max_size=3),
)
def test_of_any_records_exactly_those_stay_that_a_plain_reading_of_the_rule_keeps(
    tmp_path_factory: pytest.TempPathFactory,
    sales: list[tuple[str, Any]],
    keep: int,
    without_rowid: bool,
    stan: int,
    referred: list[str],
) -> None:
    folder = tmp_path_factory.getbasetemp() / "generated"
    folder.mkdir(exist_ok=True)
    made = Made(folder, sales, keep=keep, without_rowid=without_rowid, stan=stan, referred=referred)
    assert made.pruned() == made.expected


TAMPERING = [
    ("DELETE FROM sales WHERE key = (SELECT max(key) FROM sales)", "against its rule"),
    ("DELETE FROM sales WHERE key = 'failed_1'", "against its rule"),
    ("UPDATE sales SET value = replace(value, '5', '6') WHERE key = 'failed_1'", "against its"),
    ("UPDATE sales SET value = value || ' ' WHERE key = 'open'", "against its rule"),
    ("UPDATE sales SET value = CAST(value AS BLOB) WHERE key = 'open'", "against its rule"),
    ("UPDATE sales SET rowid = 1000 WHERE key = 'open'", "against its rule"),
    ("INSERT INTO sales VALUES ('a', '{\"status\":\"done\"}')", "would grow"),
    ("INSERT INTO sales (rowid, key) VALUES (0, 'a')", "against its rule"),
    ("UPDATE meta SET value = '{}'", "table meta, which no step names, would change"),
    ("DELETE FROM notes", "table notes, which no step names, would change"),
    ("DROP TABLE notes", "the schema would change: notes"),
    ("CREATE INDEX more ON sales(value)", "the schema would change: more"),
    ("DELETE FROM posagent WHERE kind = 'applied'", "posagent would change"),
    ("DELETE FROM posagent WHERE key = '[\"sales\",\"open\"]'", "posagent would change"),
    ("INSERT INTO posagent VALUES ('undo:0001', '[\"sales\",\"s0\"]', '[]')", "posagent would"),
    ("INSERT INTO posagent VALUES ('zzz', '', '')", "posagent would grow"),
    ("PRAGMA user_version = 1", "says version 1"),
    ("PRAGMA application_id = 7", "application_id would change"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "says"), TAMPERING, ids=lambda text: text[:40])
def test_the_proof_stops_at_anything_that_the_rule_does_not_give_up(
    tmp_path: Path, statement: str, says: str
) -> None:
    sales = [(f"s{n}", json.dumps({"status": "done", "amount": n})) for n in range(9)]
    sales[3:3] = [("failed_1", '{"amount":5}'), ("open", '{"status":"open"}')]
    made = Made(tmp_path, sales, keep=3, referred=["s1"])
    with sqlite3.connect(made.old) as db:
        for key in ("s0", "s8", "open"):
            place = json.dumps(["sales", key], separators=(",", ":"))
            db.execute("INSERT INTO posagent VALUES ('undo:0001', ?, '[]')", (place,))
        db.execute("INSERT INTO posagent VALUES ('applied', '0001', '{}')")
    db.close()
    assert made.pruned() == made.expected
    assert "s0" not in made.expected
    with pytest.raises(ValidationError) as caught:
        made.pruned(statement)
    assert says in caught.value.message, caught.value.message
