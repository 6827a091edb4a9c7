"""Restore: what it would lose is counted and consented to, and nothing half-done is ever left.

Counts are exact, counters never go back, a backup that is not whole is refused, and data that
cannot be read is replaced only when a person says "unknown" and then keeps a name. Judged by the
independent reader and by the second reader of backups.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.stores import Contract
from agent.edges import database
from agent.verbs import restore
from tests import filesystems as fs
from tests import independent_reader as reader
from tests import killing, second_reader
from tests.terminals import COMMAND, Answer, Terminal, new_terminal


def sale(key: str, status: str = "pending", stan: int = 50) -> str:
    """One more sale as the application writes it."""
    return json.dumps({"id": key, "currency": "EUR", "amount": 5, "status": status, "stan": stan})


def change(terminal: Terminal, *statements: str) -> None:
    """What the application does to its data."""
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def set_counters(terminal: Terminal, stan: int, receipt: int) -> None:
    """The application has handed these numbers out."""
    text = json.dumps({"stan": stan, "receipt": receipt})
    change(terminal, f"UPDATE metadata SET value = '{text}' WHERE key = 'counters'")


def counters(terminal: Terminal) -> dict[str, int]:
    """The numbers that the application goes on from."""
    raw = terminal.read().stores["metadata"]["counters"]
    assert isinstance(raw, str)
    found: dict[str, int] = json.loads(raw)
    return {name: found[name] for name in ("stan", "receipt")}


def all_but_counters(terminal: Terminal) -> dict[str, dict[str, Any]]:
    """Every record, the one with the counters left out."""
    stores = {name: dict(rows) for name, rows in terminal.read().stores.items()}
    stores["metadata"].pop("counters", None)
    return stores


def history(terminal: Terminal) -> list[dict[str, Any]]:
    """The diary's history, read by SQLite alone."""
    db = sqlite3.connect(terminal.data / "posagent" / "agent.db")
    db.row_factory = sqlite3.Row
    rows = [dict(row) for row in db.execute("SELECT * FROM history ORDER BY seq")]
    db.close()
    return rows


def nothing_half_made(terminal: Terminal) -> None:
    """No successor, no unfinished backup."""
    for folder, _, names in os.walk(terminal.data):
        wrong = [name for name in names if ".next" in name or name.endswith((".tmp", ".probe"))]
        assert not wrong, f"{wrong} in {folder}"


def refused(terminal: Terminal, code: int, word: str, *words: str) -> Answer:
    """A restore that must change nothing, and its answer."""
    before = {p: p.read_bytes() for p in terminal.data.glob("pos.db*")}
    answer = terminal.run("restore", *words, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (code, word), answer.out + answer.err
    assert {p: p.read_bytes() for p in terminal.data.glob("pos.db*")} == before
    nothing_half_made(terminal)
    return answer


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A terminal at schema 0 with one backup of just that data."""
    terminal = new_terminal(tmp_path_factory.mktemp("template") / "t", records=60, unsettled=8)
    assert terminal.run("backup").code == 0
    return terminal


@pytest.fixture
def terminal(template: Terminal, tmp_path: Path) -> Terminal:
    """A copy of it."""
    shutil.copytree(template.root, tmp_path / "t")
    copy = Terminal(tmp_path / "t")
    copy.device_id = template.device_id
    return copy


# --- what would be lost --------------------------------------------------------------------------

OLD_SETTLED = 'SELECT key FROM transactions WHERE value LIKE \'%"status":"completed"%\''
OLD_SETTLED += " AND key LIKE 'tx%' ORDER BY key"
FIRST = '(SELECT min(key) FROM transactions WHERE value LIKE \'%"status":"pending"%\' '
FIRST += "AND key LIKE 'tx%')"


def settled_sales(count: int) -> list[str]:
    """So many new sales, settled already."""
    return [
        f"INSERT INTO transactions VALUES ('tx_s{n}', '{sale(f'tx_s{n}', 'completed')}')"
        for n in range(count)
    ]


class Since(NamedTuple):
    """What the application did after the backup, and the losses that a restore must count."""

    name: str
    statements: tuple[str, ...]
    newer: int = 0
    changed: int = 0
    gone: int = 0
    settled: int = 0


SINCE = (
    Since("a new sale", (f"INSERT INTO transactions VALUES ('tx_n', '{sale('tx_n')}')",), newer=1),
    Since(
        "a new failed sale",
        (f"INSERT INTO transactions VALUES ('failed_n', '{sale('n', 'completed')}')",),
        newer=1,
    ),
    Since("a new sync entry", ("INSERT INTO sync VALUES ('tx_n', '{}')",), newer=1),
    Since(
        "a sale that changed its amount",
        (
            "UPDATE transactions SET value = replace(value, '\"amount\":', '\"amount\":9') "
            f"WHERE key = {FIRST}",
        ),
        changed=1,
    ),
    Since(
        "a sale that was settled",
        (
            "UPDATE transactions SET value = replace(value, '\"pending\"', '\"completed\"') "
            f"WHERE key = {FIRST}",
        ),
        gone=1,
    ),
    Since("a sale that was removed", (f"DELETE FROM transactions WHERE key = {FIRST}",), gone=1),
    Since(
        "a longer queue",
        (
            "UPDATE transactions SET value = substr(value, 1, length(value) - 1) || ',{}]' "
            "WHERE key = 'transaction-queue'",
        ),
        changed=1,
    ),
    Since("a new settled sale", (*settled_sales(1),), settled=1),
    Since(
        "as many settled sales made as deleted",
        (f"DELETE FROM transactions WHERE key IN ({OLD_SETTLED} LIMIT 5)", *settled_sales(5)),
        settled=5,
    ),
    Since(
        "fewer settled sales made than deleted",
        (f"DELETE FROM transactions WHERE key IN ({OLD_SETTLED} LIMIT 9)", *settled_sales(2)),
        settled=2,
    ),
    Since(
        "a settled sale under another key",
        (f"UPDATE transactions SET key = upper(key) WHERE key IN ({OLD_SETTLED} LIMIT 1)",),
        settled=1,
    ),
    Since(
        "a settled sale of no whole amount",
        (
            "INSERT INTO transactions VALUES "
            '(\'tx_n\', \'{"amount":10.50,"currency":"EUR","status":"completed"}\')',
        ),
        settled=1,
    ),
    Since(
        "a sale that was settled, and a new one that was",
        (
            "UPDATE transactions SET value = replace(value, '\"pending\"', '\"completed\"') "
            f"WHERE key = {FIRST}",
            *settled_sales(1),
        ),
        gone=1,
        settled=1,
    ),
    Since(
        "a record that nobody can read",
        ("INSERT INTO transactions VALUES ('tx_n', 'no JSON')",),
        newer=1,
    ),
    Since(
        "all at once",
        (
            f"INSERT INTO transactions VALUES ('tx_n', '{sale('tx_n')}')",
            f"INSERT INTO transactions VALUES ('tx_o', '{sale('tx_o')}')",
            "INSERT INTO sync VALUES ('tx_n', '{}')",
            f"DELETE FROM transactions WHERE key = {FIRST}",
            f"DELETE FROM transactions WHERE key = {FIRST}",
            "UPDATE transactions SET value = '[]' WHERE key = 'transaction-queue'",
            f"DELETE FROM transactions WHERE key IN ({OLD_SETTLED} LIMIT 4)",
            *settled_sales(3),
        ),
        newer=3,
        changed=1,
        gone=2,
        settled=3,
    ),
)


@pytest.mark.parametrize("since", SINCE, ids=lambda since: since.name)
def test_unsettled_sales_made_since_are_counted_and_lost_only_by_exact_consent(
    terminal: Terminal, since: Since
) -> None:
    at_backup = all_but_counters(terminal)
    change(terminal, *since.statements)
    present = terminal.pos.read_bytes()
    lost = {word: getattr(since, word) for word in ("newer", "changed", "gone", "settled")}
    consent = ",".join(f"{word}={count}" for word, count in lost.items() if count)
    answer = refused(terminal, 13, "UNSETTLED", "latest")
    assert answer.json["error"]["facts"] == lost
    assert f"--discard {consent}" in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True
    one_more = ",".join(f"{word}={count + 1}" for word, count in lost.items())
    for wrong in (one_more, "newer=0", "unknown"):
        refused(terminal, 13, "UNSETTLED", "latest", "--discard", wrong)
    assert [row["code"] for row in history(terminal)[-1:]] == ["UNSETTLED"]
    done = terminal.run("restore", "latest", "--discard", consent, "--json")
    assert done.code == 0, done.out
    assert done.json["discarded"] == lost
    assert all_but_counters(terminal) == at_backup
    # What was there before is in a backup of its own, taken first.
    newest = max(terminal.backups.glob("*.posbak"))
    assert second_reader.read(newest.read_bytes()).image == present
    assert newest.name == done.json["backup"]["name"]
    last = history(terminal)[-1]
    assert (last["kind"], last["state"], last["run"]) == ("restore", "applied", done.json["run"])
    nothing_half_made(terminal)


# A settled sale with another amount is in the backup all the same; the others are no sales.
NOTHING_NEW = (
    f"UPDATE transactions SET value = replace(value, '\"amount\":', '\"amount\":9') "
    f"WHERE key IN ({OLD_SETTLED} LIMIT 1)",
    f"DELETE FROM transactions WHERE key IN ({OLD_SETTLED} LIMIT 3 OFFSET 1)",
    "INSERT INTO transactions VALUES ('note', '\"amount\"')",
    'INSERT INTO transactions VALUES (\'void\', \'{"amount":null,"status":"completed"}\')',
    "INSERT INTO metadata VALUES ('total', '{\"amount\":5}')",
)


def test_with_nothing_to_discard_a_restore_needs_no_consent_and_refuses_a_needless_one(
    terminal: Terminal,
) -> None:
    at_backup = terminal.read()
    change(terminal, "DELETE FROM balances", *NOTHING_NEW)
    answer = refused(terminal, 13, "UNSETTLED", "latest", "--discard", "newer=1")
    assert "leave --discard away" in answer.json["error"]["message"]
    done = terminal.run("restore", "latest", "--json")
    nothing = dict.fromkeys(("newer", "changed", "gone", "settled"), 0)
    assert (done.code, done.json["discarded"]) == (0, nothing)
    assert done.json["counters_lifted"] == {}
    assert terminal.read() == at_backup
    assert reader.soundness(terminal.pos) == []


def test_the_backup_of_another_terminal_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    other = new_terminal(tmp_path / "other", records=60, unsettled=5, seed=99)
    assert other.run("backup").code == 0
    shutil.copyfile(other.backups / "000001-v0.posbak", terminal.backups / "000002-v0.posbak")
    answer = refused(terminal, 9, "BACKUP_CORRUPT", "latest")
    assert answer.json["error"]["facts"] == {"own": terminal.device_id, "theirs": other.device_id}


# --- settled sales -------------------------------------------------------------------------------


def settled_lost(terminal: Terminal, name: str) -> dict[str, int]:
    """The losses that a restore names; only settled sales are among them."""
    facts: dict[str, int] = refused(terminal, 13, "UNSETTLED", name).json["error"]["facts"]
    assert not any(facts[word] for word in restore.LOSSES), facts
    return facts


def test_thousands_of_new_settled_sales_are_counted_one_by_one(terminal: Terminal) -> None:
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) "
    change(
        terminal,
        f"DELETE FROM transactions WHERE key IN ({OLD_SETTLED})",
        f"{numbers} INSERT INTO transactions SELECT 'tx_' || i, '{sale('n', 'completed')}' FROM n",
    )
    assert settled_lost(terminal, "1")["settled"] == 9000
    traced = killing.trace(
        [*COMMAND, "--root", str(terminal.root), "restore", "1", "--json"], terminal.root / "seen"
    )
    names = [text for text in traced.moments if "pos.db.next" in text]
    made, deleted = (traced.moments.index(text) for text in (names[0], names[-1]))
    counting = [text for text in traced.moments[made:deleted] if text.startswith("mark")]
    assert len(counting) >= 4, "signs of life while they are looked up"
    assert {json.loads(text[5:]).get("state", "checking") for text in counting} == {"checking"}
    done = terminal.run("restore", "1", "--discard", "settled=9000", "--json")
    assert done.code == 0, done.out


def test_a_settled_sale_that_a_migration_moved_counts_as_forgotten(terminal: Terminal) -> None:
    change(terminal, f"INSERT INTO transactions VALUES ('tx_m', '{sale('m', 'completed')}')")
    assert terminal.boot().code == 0
    assert terminal.run("backup").code == 0
    add_migration(terminal, 4, 'move_record("transactions", "tx_m", to_key="tx_moved")')
    assert terminal.boot().json["to_version"] == 4
    assert settled_lost(terminal, "latest")["settled"] == 1
    done = terminal.run("restore", "latest", "--discard", "settled=1", "--json")
    assert done.code == 0, done.out
    assert {"tx_m", "tx_moved"} & terminal.read().stores["transactions"].keys() == {"tx_m"}


def add_migration(terminal: Terminal, version: int, step: str) -> None:
    """One more migration of one step; the application reads its result."""
    folder = terminal.own_migrations()
    (folder / f"{version:04d}_of_the_test.py").write_text(
        "from agent.core.migration import *\n"
        f"VERSION, NAME = {version}, 'of the test'\nSTEPS = [{step}]\n"
    )
    document = json.loads((folder / "stores.json").read_text())
    document["app_reads"] = [0, version]
    (folder / "stores.json").write_text(json.dumps(document))


def everything(root: Path) -> dict[str, tuple[int, int, str]]:
    """Every file on flash with its inode, time and digest, the diary's left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith("agent.db"):
            seen = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = (seen.st_ino, seen.st_mtime_ns, digest)
    return found


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_refusal_leaves_every_byte_but_the_diarys(tmp_path: Path, journal: str) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=8, journal=journal)
    assert terminal.boot().code == 0
    assert terminal.run("backup").code == 0
    change(terminal, *settled_sales(2))
    before, listing = everything(terminal.data), terminal.listing()
    refused(terminal, 13, "UNSETTLED", "latest")
    assert everything(terminal.data) == before
    assert terminal.listing() == listing
    assert [row["code"] for row in history(terminal)[-1:]] == ["UNSETTLED"]
    assert terminal.boot().json["verdict"] == "NOT_REQUIRED"


def test_without_the_space_for_it_nothing_is_written_to_count_what_would_be_lost(
    tmp_path: Path,
) -> None:
    with fs.tmpfs(tmp_path / "flash", 24 << 20) as flash:
        terminal = new_terminal(flash / "t", records=60, unsettled=8)
        assert terminal.run("backup").code == 0
        change(terminal, *settled_sales(2))
        terminal.configure(reserve_bytes=32 << 20)
        words = [*COMMAND, "--root", str(terminal.root), "restore", "latest", "--json"]
        traced = killing.trace(words, tmp_path / "seen")
    assert (traced.code, traced.json["error"]["code"]) == (6, "STORAGE_ERROR"), traced.out
    assert not [text for text in traced.moments if "pos.db.next" in text or ".probe" in text]


def test_killed_while_what_would_be_lost_is_counted_it_leaves_what_the_next_boot_deletes(
    tmp_path: Path,
) -> None:
    template = new_terminal(tmp_path / "template", records=60, unsettled=8)
    assert template.boot().code == 0
    assert template.run("backup").code == 0
    assert template.run("commit").code == 0
    change(template, *settled_sales(2))
    present = template.pos.read_bytes()

    def cut(name: str, **given: Any) -> tuple[Terminal, killing.Traced]:
        root = tmp_path / name
        shutil.copytree(template.root, root)
        words = [*COMMAND, "--root", str(root), "restore", "2", "--json"]
        return Terminal(root), killing.trace(words, root / "seen", **given)

    moments = cut("whole")[1].moments
    made, deleted = (moments.index(f"{word} pos.db.next") for word in ("create", "unlink"))
    calls = range(made, deleted + 3)
    # Page writes are many and alike.
    calls_once = [n for n in calls if n in (made, deleted) or moments[n] != moments[n - 1]]
    assert len(calls_once) > 6
    for number, victim in [(n, v) for n in calls_once for v in ("worker", "supervisor")]:
        terminal, traced = cut(f"{number}-{victim}", at=number + 1, victim=victim)
        assert traced.killed, traced.replay
        assert terminal.pos.read_bytes() == present, traced.replay
        if victim == "worker":  # its supervisor has looked at the flash again
            nothing_half_made(terminal)
        assert terminal.boot().json["verdict"] == "NOT_REQUIRED", traced.replay
        nothing_half_made(terminal)
        assert terminal.listing() == ["pos.db", "posagent"], traced.replay
        assert terminal.pos.read_bytes() == present, traced.replay
        assert settled_lost(terminal, "2")["settled"] == 2, traced.replay
        shutil.rmtree(terminal.root)


def test_cut_behind_the_image_of_a_backup_it_is_never_taken_for_a_successor_to_resume(
    tmp_path: Path,
) -> None:
    """pos.db is the very file that the run migrated whose row is in the backup."""
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=8)
    before = terminal.pos.read_bytes()
    assert terminal.boot().code == 0
    assert terminal.run("backup").code == 0
    assert terminal.run("rollback", "--to", "0", "--json").json["way"] == "switch back"
    assert terminal.pos.read_bytes() == before
    words = [*COMMAND, "--root", str(terminal.root), "restore", "2", "--json"]
    at = "fsync pos.db.next"
    traced = killing.trace(words, tmp_path / "seen", victim="supervisor", at=at)
    assert traced.killed, traced.out
    assert terminal.boot().json["verdict"] == "HELD"
    assert terminal.listing() == ["pos.db", "posagent"]
    assert terminal.pos.read_bytes() == before


def contract(**stores: dict[str, Any]) -> Contract:
    """A contract of these stores alone."""
    return Contract({"since": 0, "stores": stores})


SALES = {"unsettled": [{"field": "status", "values": ["pending"]}], "amount": "amount"}
ARCHIVE = {"amount": "amount"}
KEYS = st.sampled_from(["a", "A", "b", "é", "a\0", "a\0b", "", b"a", b"\xff", None])
SETTLED = ('{"amount":1}', '{"amount":10.50,"status":"done"}')
NO_SALES = ("{}", "[]")
TEXTS = st.sampled_from([*SETTLED, *NO_SALES, '{"amount":1,"status":"pending"}', "no JSON"])
ROWS = st.lists(st.tuples(KEYS, TEXTS), max_size=12, unique_by=lambda row: row[0])


def make_file(path: Path, sales: list[Any], archive: list[Any], declared: str) -> None:
    """A file with two stores; b"\\xff" stands for a text that is no UTF-8, b"a" for a BLOB."""
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous=OFF")
    for name, rows in (("sales", sales), ("archive", archive)):
        db.execute(f"CREATE TABLE {name} (key TEXT {declared}, value TEXT)")
        for key, text in rows:
            given = "CAST(? AS TEXT)" if key == b"\xff" else "?"
            db.execute(f"INSERT OR IGNORE INTO {name} VALUES ({given}, ?)", (key, text))
    db.commit()
    db.close()


def records_in(path: Path, store: str) -> dict[tuple[str, bytes], str]:
    """Every record by the type and the bytes of its key."""
    db = sqlite3.connect(path)
    rows = db.execute(f"SELECT typeof(key), hex(key), value FROM {store}").fetchall()
    db.close()
    return {(kind, bytes.fromhex(name)): text for kind, name, text in rows}


def is_utf_8(key: tuple[str, bytes]) -> bool:
    """Whether a key is a text that everybody reads alike."""
    return key[0] == "text" and key[1] != b"\xff"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, ROWS, ROWS, ROWS, st.sampled_from(["PRIMARY KEY", "PRIMARY KEY COLLATE NOCASE"]))
def test_of_any_records_exactly_the_settled_sales_count_that_the_image_has_no_key_of(
    tmp_path_factory: pytest.TempPathFactory,
    sales: list[Any],
    archive: list[Any],
    sales_kept: list[Any],
    archive_kept: list[Any],
    declared: str,
) -> None:
    """A store with rules counts what nobody can read as unsettled; one without has no other place
    to count it. What has no text for a key is no record that an application could have written."""
    folder = tmp_path_factory.getbasetemp() / "counted"
    folder.mkdir(exist_ok=True)
    now, then = folder / "now.db", folder / "then.db"
    make_file(now, sales, archive, declared)
    make_file(then, sales_kept, archive_kept, declared)
    texts = records_in(now, "sales")
    sold = {key for key in texts if is_utf_8(key) and texts[key] in SETTLED}
    texts = records_in(now, "archive")
    odd = {key for key in texts if key[0] == "text" and not is_utf_8(key)}
    archived = {key for key in texts if is_utf_8(key) and texts[key] not in NO_SALES} | odd
    new = len(sold - records_in(then, "sales").keys())
    both = contract(sales=SALES, archive=ARCHIVE)
    kept = records_in(then, "archive").keys()
    assert counted(now, then, both, both) == new + len(archived - kept)
    # Where the image is of a schema without the store, it has none of its sales.
    assert counted(now, then, both, contract(sales=SALES)) == new + len(archived)


def counted(now: Path, then: Path, rules: Contract, kept: Contract) -> int:
    """What `restore` would name."""
    current, image = (database.open_source(str(path), 65536) for path in (now, then))
    try:
        return restore.forgotten(current, image, rules, kept, (65536, 64), lambda *_: None)
    finally:
        current.close()
        image.close()


# --- counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_backup", "now", "after"),
    [
        ((60, 1060), (75, 1090), (75, 1090)),
        ((60, 1060), (60, 1060), (60, 1060)),
        ((70, 1070), (65, 1065), (70, 1070)),  # somebody set them back meanwhile: never lower
        ((999990, 1060), (12, 1100), (12, 1100)),  # STAN began again after 999999
    ],
)
def test_counters_are_lifted_to_the_highest_number_used_and_never_lowered(
    terminal: Terminal, at_backup: tuple[int, int], now: tuple[int, int], after: tuple[int, int]
) -> None:
    (terminal.backups / "000001-v0.posbak").unlink()
    change(
        terminal,
        "UPDATE transactions SET value = json_remove(value, '$.stan', '$.receipt') "
        "WHERE json_type(value) = 'object'",
    )
    set_counters(terminal, *at_backup)
    assert terminal.run("backup").code == 0
    set_counters(terminal, *now)
    done = terminal.run("restore", "latest", "--json")
    assert done.code == 0, done.out
    assert counters(terminal) == dict(zip(("stan", "receipt"), after))
    lifted = {
        name: [was, to] for name, was, to in zip(("stan", "receipt"), at_backup, after) if was != to
    }
    assert done.json["counters_lifted"] == lifted


def test_a_number_that_only_a_sale_shows_lifts_its_counter_too(terminal: Terminal) -> None:
    was = counters(terminal)
    text = sale("tx_n", "completed", was["stan"] + 40)
    change(terminal, f"INSERT INTO transactions VALUES ('tx_n', '{text}')")
    assert terminal.run("restore", "latest", "--discard", "settled=1").code == 0
    assert counters(terminal)["stan"] == was["stan"] + 40


@pytest.mark.parametrize("number", [1 << 63, 10**30 - 1])
def test_a_counter_beyond_what_sqlite_counts_to_comes_back_like_any_other(
    terminal: Terminal, number: int
) -> None:
    set_counters(terminal, 60, number - 1)
    assert terminal.run("backup").code == 0
    set_counters(terminal, 60, number)
    assert terminal.run("verify").code == 0
    done = terminal.run("restore", "latest", "--json")
    assert done.code == 0, done.out
    assert done.json["counters_lifted"] == {"receipt": [number - 1, number]}
    assert counters(terminal)["receipt"] == number


@pytest.mark.parametrize("number", [-1, 10**30, 10**400], ids=["negative", "large", "larger"])
def test_a_number_that_no_counter_reaches_is_in_no_backup_and_bars_no_restore(
    terminal: Terminal, number: int
) -> None:
    text = f'{{"amount":5,"currency":"EUR","status":"completed","receipt":{number}}}'
    change(terminal, f"INSERT INTO transactions VALUES ('tx_odd', '{text}')")
    set_counters(terminal, 60, number)
    assert terminal.run("backup").code == 0
    newest = max(terminal.backups.glob("*.posbak"))
    held = second_reader.read(newest.read_bytes()).header["counters"]
    assert all(0 <= value < 10**30 for value in held.values()), held
    at_backup = all_but_counters(terminal)
    done = terminal.run("restore", "latest", "--json")
    assert done.code == 0, done.out
    assert all_but_counters(terminal) == at_backup


@pytest.mark.parametrize("value", ["'no JSON'", "NULL", "x'00'", "'7'", '\'{"stan":"x"}\''])
def test_a_counters_record_that_nobody_can_read_is_left_alone(
    terminal: Terminal, value: str
) -> None:
    change(terminal, f"UPDATE metadata SET value = {value} WHERE key = 'counters'")
    (terminal.backups / "000001-v0.posbak").unlink()
    assert terminal.run("backup").code == 0
    at_backup = terminal.read()
    done = terminal.run("restore", "latest", "--json")
    assert done.code == 0, done.out
    assert terminal.read() == at_backup


# --- an older schema -----------------------------------------------------------------------------


def test_data_brought_back_to_an_older_schema_is_migrated_again_only_on_request(
    terminal: Terminal,
) -> None:
    at_backup = terminal.read()
    assert terminal.boot().code == 0
    assert terminal.read().schema_version == 3
    answer = refused(terminal, 13, "UNSETTLED", "1")
    lost = answer.json["error"]["facts"]
    assert lost["settled"] == 0, "every record has another form, and none is new"
    consent = ",".join(f"{word}={count}" for word, count in lost.items())
    assert terminal.run("restore", "1", "--discard", consent).code == 0
    assert terminal.read() == at_backup
    for _ in range(2):
        sha256 = terminal.sha256()
        held = terminal.boot()
        assert (held.code, held.json["verdict"]) == (1, "HELD"), held.out
        assert held.json["app_may_start"] is True
        assert "posagent migrate" in held.json["error"]["message"]
        assert terminal.sha256() == sha256
    assert terminal.run("migrate").code == 0
    reader.expect_migrated(at_backup.stores, terminal.read().stores, terminal.device_id)


# --- data that cannot be read --------------------------------------------------------------------


def overwrite_page(pos: Path) -> None:
    """A page of the records is noise."""
    db = sqlite3.connect(pos)
    root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'transactions'").fetchone()
    db.close()
    with open(pos, "r+b") as file:
        file.seek((root[0] - 1) * 4096)
        file.write(random.Random(7).randbytes(4096))


def statement(sql: str) -> Callable[[Path], None]:
    """Spoil pos.db by SQL."""

    def spoil(pos: Path) -> None:
        db = sqlite3.connect(pos, isolation_level=None)
        db.execute(sql)
        db.close()

    return spoil


DAMAGE: dict[str, Callable[[Path], object]] = {
    "noise": lambda pos: pos.write_bytes(random.Random(7).randbytes(9000)),
    "nothing": lambda pos: pos.write_bytes(b""),
    "half": lambda pos: os.truncate(pos, pos.stat().st_size // 2),
    "a page of noise": overwrite_page,
    "no stores": lambda pos: (pos.unlink(), statement("CREATE TABLE other (a)")(pos)),
    "a store missing": statement("DROP TABLE metadata"),
    "a negative schema": statement("PRAGMA user_version = -7"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_data_that_cannot_be_read_is_replaced_only_by_unknown_and_is_kept(
    terminal: Terminal, name: str
) -> None:
    at_backup = terminal.read()
    os.chown(terminal.pos, 4321, 1234)
    terminal.pos.chmod(0o640)
    DAMAGE[name](terminal.pos)
    os.chown(terminal.pos, 4321, 1234)
    terminal.pos.chmod(0o640)
    damaged = terminal.pos.read_bytes()
    for words in ((), ("--discard", "newer=1")):
        answer = terminal.run("restore", "latest", "--json", *words)
        assert answer.code in (10, 12), answer.out
        assert "--discard unknown" in answer.json["error"]["message"]
        assert terminal.pos.read_bytes() == damaged
        nothing_half_made(terminal)
    done = terminal.run("restore", "latest", "--discard", "unknown", "--json")
    assert done.code == 0, done.out
    assert done.json["app_may_start"] is True
    assert terminal.read() == at_backup
    found = terminal.pos.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4321, 1234, 0o640)
    assert found.st_nlink == 1
    kept = terminal.data / "pos.db.damaged-1"
    assert done.json["damaged_file"] == str(kept)
    assert kept.read_bytes() == damaged
    assert history(terminal)[-1]["kind"] == "restore"
    nothing_half_made(terminal)
    assert terminal.boot().json["verdict"] == "HELD"  # brought back, so not migrated unasked
    assert terminal.run("migrate").code == 0


def test_a_damaged_file_beside_the_one_of_the_last_switch_is_replaced_without_waiting(
    terminal: Terminal,
) -> None:
    """To look whose `.prev` it is, the damaged file is opened; a descriptor left open on it would
    be waited for as if the application still had the old file."""
    assert terminal.boot().code == 0
    assert (terminal.data / "pos.db.prev").exists()
    assert terminal.run("backup").code == 0
    terminal.pos.write_bytes(b"no database " * 5000)
    done = terminal.run("restore", "latest", "--discard", "unknown", "--json")
    assert done.code == 0, done.out
    assert done.json["late_holders"] == []
    assert terminal.read().schema_version == 3


def test_data_that_can_be_read_is_never_replaced_as_unknown(terminal: Terminal) -> None:
    change(terminal, f"INSERT INTO transactions VALUES ('tx_n', '{sale('tx_n')}')")
    refused(terminal, 13, "UNSETTLED", "latest", "--discard", "unknown")


@pytest.mark.parametrize("left", ["", "pos.db.prev", "pos.db.next"])
def test_a_missing_pos_db_is_restored_by_unknown_alone(terminal: Terminal, left: str) -> None:
    at_backup = terminal.read()
    os.chown(terminal.data, 4321, 1234)
    terminal.data.chmod(0o770)
    whole = terminal.pos.read_bytes()
    if left:
        terminal.pos.rename(terminal.data / left)
    else:
        terminal.pos.unlink()
    answer = refused(terminal, 12, "HELD", "latest") if left != "pos.db.next" else None
    if answer is not None:
        assert "--discard unknown" in answer.json["error"]["message"]
    assert not terminal.pos.exists()
    done = terminal.run("restore", "latest", "--discard", "unknown", "--json")
    assert done.code == 0, done.out
    assert terminal.read() == at_backup
    found = terminal.pos.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4321, 1234, 0o660)
    if left:  # perhaps the last whole data there is: it keeps a name
        kept = [p for p in terminal.data.glob("pos.db.*") if p.read_bytes() == whole]
        assert len(kept) == 1
    nothing_half_made(terminal)
    again = terminal.run("restore", "latest", "--json")
    assert again.code == 0, again.out


# --- backups that are none -----------------------------------------------------------------------


def test_a_backup_with_any_byte_flipped_or_cut_off_is_refused(terminal: Terminal) -> None:
    path = terminal.backups / "000001-v0.posbak"
    whole = path.read_bytes()
    rng = random.Random(3)
    spoilt = [b"", whole[:4], whole[: len(whole) // 2], whole[:-1], whole + b"x", whole * 2]
    for at in (0, 9, *rng.sample(range(len(whole)), 8), len(whole) - 1):
        spoilt.append(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    spoilt.append(terminal.pos.read_bytes())
    spoilt.append(rng.randbytes(5000))
    for data in spoilt:
        path.write_bytes(data)
        answer = refused(terminal, 9, "BACKUP_CORRUPT", "latest")
        assert path.name in answer.json["error"]["message"]
        assert path.read_bytes() == data
    change(terminal, "DROP TABLE sync")  # also where nothing could be counted
    refused(terminal, 9, "BACKUP_CORRUPT", "latest", "--discard", "unknown")
    path.write_bytes(whole)
    assert terminal.run("restore", "latest", "--discard", "unknown").code == 0


def test_a_backup_of_a_newer_schema_needs_the_newer_software(terminal: Terminal) -> None:
    folder = terminal.own_migrations()
    assert terminal.boot().code == 0
    assert terminal.run("backup").code == 0
    (folder / "0003_migrate_user_preferences.py").unlink()
    answer = refused(terminal, 8, "SCHEMA_TOO_NEW", "latest")
    assert "schema 3" in answer.json["error"]["message"]
    # The older one suits the software that is there now.
    assert "--discard" in refused(terminal, 13, "UNSETTLED", "1").json["error"]["message"]


# --- by which name -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["000001-v0.posbak", "1", "000001", "latest"])
def test_a_backup_is_found_by_name_by_number_and_as_the_latest(
    terminal: Terminal, name: str
) -> None:
    done = terminal.run("restore", name, "--json")
    assert done.code == 0, done.out
    assert done.json["restored"]["name"] == "000001-v0.posbak"


@pytest.mark.parametrize(
    "name", ["2", "000001-v1.posbak", "lates", "../000001-v0.posbak", "²", "9" * 5000, ""]
)
def test_an_unknown_backup_is_usage_with_the_nearest_name(terminal: Terminal, name: str) -> None:
    answer = refused(terminal, 64, "USAGE", name)
    assert "000001-v0.posbak" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "counts", ["newr=1", "newer", "newer=", "newer=-1", "newer=x", "newer=²", "newer=" + "9" * 5000]
)
def test_counts_that_are_none_are_usage(terminal: Terminal, counts: str) -> None:
    refused(terminal, 64, "USAGE", "latest", "--discard", counts)


# --- every shape of file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        {"extra_tables": True},
        {"free_share": 0.4},
        {"journal": "wal"},
        {"layout": "without-rowid", "keys": "time"},
        {"page_size": 1024, "extra_tables": True, "journal": "wal"},
        {"page_size": 65536},
    ],
    ids=str,
)
def test_whatever_its_shape_the_restored_file_equals_what_was_backed_up(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    terminal = new_terminal(tmp_path / "t", records=300, unsettled=12, **recipe)
    terminal.configure(backup_count=1)
    at_backup, tables = terminal.read(), reader.other_tables(terminal.pos)
    schema, header = reader.schema_of(terminal.pos), terminal.pos.read_bytes()[:24]
    assert terminal.run("backup").code == 0
    set_counters(terminal, 400_000, 400_000)
    change(terminal, "DELETE FROM balances", "CREATE TABLE left_over (a)", "PRAGMA user_version=2")
    done = terminal.run("restore", "1", "--json")
    assert done.code == 0, done.out
    after = terminal.read()
    assert after.schema_version == 0
    assert all_but_counters(terminal) == {
        **at_backup.stores,
        "metadata": {k: v for k, v in at_backup.stores["metadata"].items() if k != "counters"},
    }
    assert counters(terminal) == {"stan": 400_000, "receipt": 400_000}
    ours = {"posagent"}
    assert [row for row in reader.schema_of(terminal.pos) if row[2] not in ours] == schema
    found = reader.other_tables(terminal.pos)
    assert {name: found[name] for name in found.keys() - ours} == tables  # no trigger fired
    assert terminal.pos.read_bytes()[:24] == header  # page size and journal mode
    assert reader.soundness(terminal.pos) == []


# --- a restore that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("readable", [True, False])
def test_a_restore_that_flash_spoils_changes_nothing(
    terminal: Terminal, tmp_path: Path, readable: bool
) -> None:
    words = ["restore", "000001-v0.posbak", "--json"]
    if not readable:
        terminal.pos.write_bytes(random.Random(7).randbytes(9000))
        words += ["--discard", "unknown"]
    before = terminal.pos.read_bytes()
    answer = fs.run_with_faults(
        terminal,
        tmp_path / "calls",
        "pread64:poke_exit=@arg2=DEADBEEF:when=1",
        [(terminal.data / "pos.db.next").resolve()],
        *words,
    )
    assert "INJECTED" in (tmp_path / "calls").read_text()
    assert answer.code in (1, 6, 12), answer.out
    assert answer.json["error"]
    assert terminal.pos.read_bytes() == before
    assert terminal.listing() == ["pos.db", "posagent"]
    assert terminal.pos.stat().st_nlink == 1
    assert terminal.run(*words).code == 0
