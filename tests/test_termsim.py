"""The sample terminals and the reader that judges them, each held against the other.

Whatever later tests say about money rests on these two, so a wrong figure in either must show here.
Terminals are small; that a million records stay cheap is a matter for the benches.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import independent_reader as reader
from tools.termsim import BAD_KINDS, Recipe, RecipeError, Summary, make_terminal
from tools.termsim.__main__ import main

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = Recipe(records=600, unsettled=40, seed=7)
DEVICE_ID = "device_1_abc"
NOW = 1_999_999_999_999


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Summary]:
    """Makes terminals from RECIPE with changes, each in a folder of its own."""
    made: list[Path] = []

    def make(**changes: object) -> Summary:
        made.append(tmp_path / f"terminal{len(made)}")
        return make_terminal(made[-1], replace(RECIPE, **changes))  # type: ignore[arg-type]

    return make


def in_order(summary: Summary, store: str, order: str) -> list[tuple[str, object]]:
    """All rows of a store of a file that nobody else uses."""
    db = sqlite3.connect(summary.db_path)
    try:
        db.text_factory = bytes
        return db.execute(f"SELECT key, value FROM {store} ORDER BY {order}").fetchall()
    finally:
        db.close()


def pragma(summary: Summary, name: str) -> object:
    db = sqlite3.connect(summary.db_path)
    try:
        return db.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        db.close()


def as_tuples(entries: dict[str, dict[str, int]]) -> dict[str, tuple[int, int]]:
    return {currency: (entry["count"], entry["sum"]) for currency, entry in entries.items()}


# --- the generator -------------------------------------------------------------------------------


def test_same_arguments_give_the_same_rows_and_another_seed_gives_others(
    make: Callable[..., Summary],
) -> None:
    first, again, other = (make(bad_share=0.05, extra_tables=True, seed=seed) for seed in (7, 7, 8))
    for store in reader.STORES:
        assert in_order(first, store, "rowid") == in_order(again, store, "rowid")
    assert in_order(first, "transactions", "rowid") != in_order(other, "transactions", "rowid")
    assert reader.other_tables(first.db_path) == reader.other_tables(again.db_path)
    assert reader.file_sha256(first.db_path) == reader.file_sha256(again.db_path)


def test_the_shape_of_the_file_changes_no_record(make: Callable[..., Summary]) -> None:
    plain = make()
    shaped = make(layout="without-rowid", journal="wal", free_share=0.3, page_size=1024)
    assert reader.read_terminal(plain.db_path) == reader.read_terminal(shaped.db_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"records": 0, "unsettled": 0},
        {"records": 3, "unsettled": 3},
        {"unsettled": 600},
        {"unsettled": 0, "bad_share": 1.0},
        {"bad_share": 0.2, "keys": "time", "extra_tables": True, "layout": "without-rowid"},
        {"journal": "wal", "free_share": 0.5},
    ],
    ids=str,
)
def test_the_money_truth_is_what_the_independent_reader_finds(
    make: Callable[..., Summary], changes: dict[str, object]
) -> None:
    summary = make(**changes)
    found = reader.unsettled(summary.db_path)
    sales = [where for where in found if where.key.startswith("tx_") and where.store != "sync"]
    assert len(sales) == summary.recipe.unsettled == summary.unsettled["sales"]
    assert len(found) == summary.unsettled["all"]
    assert reader.money(summary.db_path) == as_tuples(summary.money["total"])
    assert reader.money(summary.db_path, unsettled_only=True) == as_tuples(
        summary.money["unsettled"]
    )
    terminal = reader.read_terminal(summary.db_path)
    assert terminal.schema_version == 0
    assert {store: len(rows) for store, rows in terminal.stores.items()} == summary.records
    assert reader.unsettled_of(terminal.stores) == found
    assert reader.money_of(terminal.stores) == reader.money(summary.db_path)
    assert len(reader.odd_records(summary.db_path)) == summary.recipe.bad
    assert reader.soundness(summary.db_path) == []


def test_counters_are_the_highest_numbers_used(make: Callable[..., Summary]) -> None:
    summary = make()
    stores = reader.read_terminal(summary.db_path).stores
    written = reader.parse(stores["metadata"]["counters"])
    assert {name: reader.integer(value) for name, value in written.items()} == summary.counters
    used = reader.highest_used(stores)
    assert used == {name: summary.counters[name] for name in ("stan", "receipt")}


def test_records_have_the_shapes_the_gateway_wrote(make: Callable[..., Summary]) -> None:
    summary = make(records=3000)
    stores = {
        store: {key: reader.parse(raw) for key, raw in rows.items()}
        for store, rows in reader.read_terminal(summary.db_path).stores.items()
    }
    sales = [value for key, value in stores["transactions"].items() if key.startswith("tx_")]
    assert 330 <= summary.transaction_bytes_mean <= 380
    assert len({sale["currency"] for sale in sales}) == 4
    assert {sale["status"] for sale in sales} == {"pending", "processing", "completed", "failed"}
    refunds = [sale for sale in sales if sale["type"] == "refund"]
    keys = stores["transactions"].keys()
    assert refunds
    assert all(refund["amount"].literal.startswith("-") for refund in refunds)
    assert all(refund["originalId"] in keys for refund in refunds)
    assert 0.88 <= sum("metadata" in sale for sale in sales) / len(sales) <= 0.92
    assert len(stores["transactions"]["transaction-queue"]) == 3
    assert stores["metadata"]["device_id"] == summary.device_id
    assert summary.device_id.startswith("device_")
    assert "theme" in stores["metadata"]["nimipay_preferences"]
    assert all("isStale" in balance["metadata"] for balance in stores["balances"].values())
    for key, entry in stores["sync"].items():
        assert entry["data"] == stores["transactions"][key[len("tx_") :]]
        assert entry["data"]["status"] in ("pending", "processing")
    text = "\n".join(str(raw) for _, raw in in_order_text(summary))
    for piece in ("10.50", "1e3", ":-0,", "0.10", '\\"', "\\\\", "\\/", "\\ud83d\\ude00", "🍕"):
        assert piece in text
    big = [int(sale["baseUnits"].literal) for sale in sales if "baseUnits" in sale]
    assert max(big) > 2**64
    assert min(big) < -(2**63)
    assert 2**63 in big


def in_order_text(summary: Summary) -> Iterator[tuple[str, reader.Raw]]:
    yield from reader.read_terminal(summary.db_path).stores["transactions"].items()


def test_records_are_as_compact_as_json_stringify_writes_them(make: Callable[..., Summary]) -> None:
    """Escapes and literals aside, which stringify would not write but other writers do."""
    for _, raw in in_order_text(make()):
        assert isinstance(raw, str)
        if "\\" not in raw:
            compact = json.dumps(json.loads(raw), ensure_ascii=False, separators=(",", ":"))
            assert raw.count(" ") == compact.count(" ")
            assert raw.count('":') == compact.count('":')


def test_random_keys_come_in_another_order_than_rows_and_time_keys_in_the_same(
    make: Callable[..., Summary],
) -> None:
    def keys(summary: Summary, order: str) -> list[str]:
        rows = in_order(summary, "transactions", order)
        return [key for key, _ in rows if key.startswith(b"tx_")]  # type: ignore[arg-type]

    random, by_time = make(keys="random"), make(keys="time")
    assert keys(random, "rowid") != keys(random, "key")
    assert keys(by_time, "rowid") == keys(by_time, "key")


def test_layout_journal_and_page_size_are_as_asked(make: Callable[..., Summary]) -> None:
    plain, other = make(), make(layout="without-rowid", journal="wal", page_size=8192)
    for summary, without in ((plain, False), (other, True)):
        tables = {name: sql for kind, name, _, sql in reader.schema_of(summary.db_path) if sql}
        assert set(tables) == set(reader.STORES)
        assert all(("WITHOUT ROWID" in sql) is without for sql in tables.values())
    assert (pragma(plain, "journal_mode"), pragma(plain, "page_size")) == ("delete", 4096)
    assert (pragma(other, "journal_mode"), pragma(other, "page_size")) == ("wal", 8192)
    assert [path.name for path in other.db_path.parent.iterdir() if path.is_file()] == ["pos.db"]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_free_pages_make_up_the_share_that_was_asked_for(
    make: Callable[..., Summary], share: float
) -> None:
    summary = make(records=5000, free_share=share)
    assert pragma(summary, "freelist_count") == summary.free_pages
    assert abs(summary.free_pages / summary.pages - share) < 0.02
    assert make(records=500).free_pages == 0


def test_extra_tables_come_with_triggers_that_fire_and_keys_that_hold(
    make: Callable[..., Summary],
) -> None:
    summary = make(extra_tables=True)
    kinds = {(kind, name) for kind, name, _, _ in reader.schema_of(summary.db_path)}
    assert {
        ("trigger", "resend_changed_sale"),
        ("trigger", "resend_gone_setting"),
        ("index", "shift_sales_by_key"),
        ("view", "open_shifts"),
    } <= kinds
    before = reader.other_tables(summary.db_path)
    assert before["outbox"][0] == 4, "making the terminal must not have fired a trigger"
    assert before["shift_sales"][0] == 600
    db = sqlite3.connect(summary.db_path, isolation_level=None)
    try:
        db.execute("UPDATE transactions SET value = value WHERE key = 'transaction-queue'")
        db.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("DELETE FROM transactions WHERE key IN (SELECT tx_key FROM shift_sales)")
    finally:
        db.close()
    assert reader.other_tables(summary.db_path)["outbox"][0] == 5


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_each_kind_of_bad_record_is_odd_to_the_reader(
    make: Callable[..., Summary], kind: str
) -> None:
    summary = make(records=40, unsettled=30, bad_share=0.1, bad_kinds=(kind,))
    odd = reader.odd_records(summary.db_path)
    assert summary.bad == {kind: 4}
    # A record of a megabyte is sound JSON: only a limit makes it bad.
    assert len(odd) == (0 if kind == "too_large" else 4)
    sizes = [len(raw or "") for _, raw in in_order_text(summary)]
    assert (max(sizes) > 1 << 20) is (kind == "too_large")
    found = reader.unsettled(summary.db_path)
    assert not {key for _, key, _ in odd} & {where.key for where in found}


def test_preferences_can_be_left_out(make: Callable[..., Summary]) -> None:
    stores = reader.read_terminal(make(preferences=False).db_path).stores
    assert "nimipay_preferences" not in stores["metadata"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unsettled": 601}, "do not fit"),
        ({"bad_share": 0.95}, "do not fit"),
        ({"records": -1, "unsettled": 0}, "negative"),
        ({"bad_share": 1.5}, "from 0 to 1"),
        ({"free_share": 1.0}, "from 0 to 0.95"),
        ({"page_size": 1000}, "power of two"),
        ({"layout": "heap"}, "layout is one of"),
        ({"bad_kinds": ("rotten",)}, "rotten"),
    ],
    ids=str,
)
def test_an_impossible_recipe_is_refused_before_anything_is_written(
    tmp_path: Path, make: Callable[..., Summary], changes: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        make(**changes)
    assert list(tmp_path.iterdir()) == []


# --- the command ---------------------------------------------------------------------------------

ARGUMENTS = ["--profile", "linux-nand-128", "--records", "50", "--unsettled", "5", "--seed", "3"]


def test_the_command_makes_a_root_folder_and_prints_one_object(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "terminal"
    more = ["--set", "max_attempts=3", "--set", 'serial={"speed":9600}', "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.termsim", "new", str(root), *ARGUMENTS, *more],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    )
    printed = json.loads(done.stdout)
    assert printed["unsettled"]["sales"] == 5
    assert as_tuples(printed["money"]["total"]) == reader.money(root / "data" / "pos.db")
    assert json.loads((root / "etc/posagent/config.json").read_text()) == {
        "profile": "linux-nand-128",
        "max_attempts": 3,
        "serial": {"speed": 9600},
    }
    assert (root / "data/posagent/backups").is_dir()
    assert (root / "run/posagent").is_dir()


@pytest.mark.parametrize("there", ["a file in the folder", "a file instead of the folder"])
def test_a_folder_in_use_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    root = tmp_path / "terminal"
    mine = root
    if there == "a file in the folder":
        root.mkdir()
        mine = root / "mine"
    mine.write_text("keep me")
    assert main(["new", str(root), *ARGUMENTS]) == 64
    assert str(root) in capsys.readouterr().err
    assert mine.read_text() == "keep me"
    assert not root.is_dir() or list(root.iterdir()) == [mine]


@pytest.mark.parametrize(
    "more",
    [["--layout", "heap"], ["--set", "profile"], ["--set", "a=b"], ["--bad-records", "7"], ["-x"]],
    ids=" ".join,
)
def test_wrong_arguments_end_with_the_usage_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    code: object
    try:
        code = main(["new", str(tmp_path / "terminal"), *ARGUMENTS, *more])
    except SystemExit as ended:
        code = ended.code
    assert code == 64
    assert capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_summary_for_people_names_the_money(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", str(tmp_path / "terminal"), *ARGUMENTS]) == 0
    said = capsys.readouterr().out
    assert "unsettled: 5 sales, 3 queued, 2 failed, 2 to retry" in said
    assert "EUR" in said


# --- the reader ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text_a", "text_b", "same"),
    [
        ('{"a":1,"b":[true,null]}', '{ "b" : [true, null], "a" : 1 }', True),
        ('"\\u00e9\\/"', '"é/"', True),
        ("10.50", "10.5", False),
        ("-0", "0", False),
        ("1e3", "1000", False),
        ("18446744073709551617", "18446744073709551616", False),
        ("1", "true", False),
        ("1", '"1"', False),
        ("[1]", "1", False),
        ('["1"]', "1", False),
        ("[1,2]", "[2,1]", False),
        ('{"a":1,"a":1}', '{"a":1}', False),
        ('{"a":1,"a":2}', '{"a":2,"a":1}', False),
        ('{"a":1, "a":2}', '{"a":1,"a":2}', True),
        ("[NaN]", "[NaN]", True),
        ("[NaN]", "[ NaN]", False),
        ('"x"', b'"x"', False),
        (None, None, True),
        (None, "null", False),
    ],
)
def test_values_are_the_same_only_to_the_last_digit(
    text_a: reader.Raw, text_b: reader.Raw, same: bool
) -> None:
    assert reader.same_value(text_a, text_b) is same
    assert reader.same_value(text_b, text_a) is same


@pytest.mark.parametrize(
    "raw",
    [
        *("", "{", "[1,]", "NaN", "[-Infinity]", "1 2", '{"a":1}\0', "01", '"\t"', '"\\ud800"'),
        *("\udcff", "[" * 1000 + "]" * 1000, b"{}", None),
    ],
    ids=lambda raw: repr(raw)[:20],
)
def test_what_readers_could_take_differently_is_no_json(raw: reader.Raw) -> None:
    with pytest.raises(reader.NotJson):
        reader.parse(raw)


def test_sales_that_lie_only_in_the_wal_are_read_and_nothing_is_written(
    make: Callable[..., Summary],
) -> None:
    """The application was cut off: its last sale is in the -wal, and the main file has not seen it.

    A child ends without closing its connection, as power loss would end it.
    """
    summary = make(journal="wal")
    child = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "db.execute('INSERT INTO transactions VALUES (?, ?)', sys.argv[2:])\n"
        "os._exit(0)\n"
    )
    sale = '{"currency":"CHF","amount":7,"status":"pending"}'
    subprocess.run([sys.executable, "-c", child, str(summary.db_path), "tx_late", sale], check=True)
    folder = summary.db_path.parent

    def state() -> dict[str, tuple[str, int]]:
        files = [path for path in folder.iterdir() if path.is_file()]
        return {path.name: (reader.file_sha256(path), path.stat().st_mtime_ns) for path in files}

    before = state()
    assert "pos.db-wal" in before
    assert reader.money(summary.db_path, unsettled_only=True)["CHF"] == (1, 7)
    assert state() == before


def test_a_read_only_file_is_read_through_a_symbolic_link(
    make: Callable[..., Summary], tmp_path: Path
) -> None:
    summary = make()
    summary.db_path.chmod(0o444)
    link = tmp_path / "link.db"
    link.symlink_to(summary.db_path)
    assert reader.money(link) == as_tuples(summary.money["total"])


def test_reading_does_not_drop_the_locks_this_process_holds(make: Callable[..., Summary]) -> None:
    summary = make()
    db = sqlite3.connect(summary.db_path, isolation_level=None)
    try:
        db.execute("BEGIN EXCLUSIVE")
        reader.read_terminal(summary.db_path)
        reader.file_sha256(summary.db_path)
        child = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN')"
        child += ".execute('SELECT count(*) FROM sync')"
        done = subprocess.run(
            [sys.executable, "-c", child, os.fspath(summary.db_path)], stderr=subprocess.PIPE
        )
        assert b"locked" in done.stderr
    finally:
        db.close()


def migrated(before: reader.Rows) -> reader.Rows:
    """Schema 3 by plain text surgery, so that every literal stays as it was."""
    after: reader.Rows = {}
    for store, rows in before.items():
        after[store] = {}
        for key, raw in rows.items():
            name = "user_preferences" if key == "nimipay_preferences" else key
            if not isinstance(raw, str) or not raw.startswith("{"):
                after[store][name] = raw
                continue
            version = 2 if store == "transactions" else 3 if name != key else 1
            more = f',"schemaVersion":{version},"updatedAt":{NOW}'
            if store == "transactions" and '"metadata":{' not in raw:
                more += f',"metadata":{{"migratedAt":{NOW},"originalVersion":1,'
                more += f'"deviceId":"{DEVICE_ID}"}}'
            after[store][name] = raw[:-1] + more + "}"
    return after


def test_the_end_state_of_the_shipped_migrations_is_accepted(make: Callable[..., Summary]) -> None:
    for changes in ({}, {"preferences": False}, {"records": 0, "unsettled": 0}):
        before = reader.read_terminal(make(**changes).db_path).stores
        assert reader.expect_migrated(before, migrated(before), DEVICE_ID) == NOW


def edit(store: str, key: str, old: str, new: str) -> Callable[[reader.Rows], None]:
    """Replace text within the first record whose key begins with `key` and which holds `old`."""

    def damage(rows: reader.Rows) -> None:
        for found, raw in rows[store].items():
            if found.startswith(key) and isinstance(raw, str) and old in raw:
                rows[store][found] = raw.replace(old, new, 1)
                return
        raise LookupError(f"no {store}/{key} holds {old}")

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edit("transactions", "tx_", '"schemaVersion":2', '"schemaVersion":1'), "schemaVersion"),
        (edit("transactions", "tx_", '"taxRate":10.50', '"taxRate":10.5'), "items"),
        (edit("transactions", "tx_", '"tip":-0,', '"tip":0,'), "tip"),
        (edit("transactions", "tx_", '"amount":', '"amount":1'), "amount"),
        (edit("transactions", "tx_", '"storedAt":1', '"storedAt":2'), "metadata"),
        (edit("transactions", "tx_", DEVICE_ID, "[object Object]"), "metadata"),
        (edit("transactions", "tx_", '"originalVersion":1', '"originalVersion":0'), "metadata"),
        (edit("transactions", "failed_", '"status":"failed"', '"status":"done"'), "status"),
        (edit("transactions", "transaction-queue", "[", "[ "), "untouched"),
        (edit("transactions", "tx_", '"retries":0', '"retries":0,"extra":1'), "extra"),
        (edit("transactions", "tx_", '{"id"', '{"id":1,"id"'), "twice"),
        (edit("metadata", "device_id", '"', '" '), "untouched"),
        (edit("metadata", "user_preferences", '"schemaVersion":3', '"schemaVersion":1'), "schema"),
        (edit("balances", "NIM", f'"updatedAt":{NOW}', '"updatedAt":"now"'), "updatedAt"),
        (
            edit("balances", "NIM", f'"updatedAt":{NOW}', f'"updatedAt":{NOW + 1}'),
            "different times",
        ),
        (edit("sync", "tx_", '"action"', '"deed"'), "action"),
        (lambda rows: rows["sync"].pop(next(iter(rows["sync"]))), "is gone"),
        (lambda rows: rows["metadata"].update(nimipay_preferences="{}"), "came from nowhere"),
    ],
)
def test_every_kind_of_damage_to_the_end_state_is_noticed(
    make: Callable[..., Summary], damage: Callable[[reader.Rows], None], said: str
) -> None:
    before = reader.read_terminal(make(records=200).db_path).stores
    after = migrated(before)
    damage(after)
    with pytest.raises(reader.Mismatch, match=said):
        reader.expect_migrated(before, after, DEVICE_ID)


def test_a_time_before_the_newest_known_one_is_noticed(make: Callable[..., Summary]) -> None:
    before = reader.read_terminal(make().db_path).stores
    after: reader.Rows = {
        store: {
            key: raw.replace(str(NOW), "86400000") if isinstance(raw, str) else raw
            for key, raw in rows.items()
        }
        for store, rows in migrated(before).items()
    }
    with pytest.raises(reader.Mismatch, match="newest known"):
        reader.expect_migrated(before, after, DEVICE_ID)


def test_the_reader_and_the_generator_import_nothing_of_the_agent() -> None:
    child = (
        "import sys, tests.independent_reader, tools.termsim.__main__\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'agent'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", child], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.strip() == b"[]"
