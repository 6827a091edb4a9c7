"""Restore: what it would lose is counted and consented to, and nothing half-done is ever left.

Counts are exact, counters never go back, a backup that is not whole is refused, and data that
cannot be read is replaced only when a person says "unknown" and then keeps a name. Judged by the
independent reader and by the second reader of backups.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import filesystems as fs
from tests import independent_reader as reader
from tests import second_reader
from tests.terminals import Answer, Terminal, new_terminal


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

FIRST = '(SELECT min(key) FROM transactions WHERE value LIKE \'%"status":"pending"%\' '
FIRST += "AND key LIKE 'tx%')"


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
        settled=1,
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
        ),
        newer=3,
        changed=1,
        gone=2,
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


def test_with_nothing_to_discard_a_restore_needs_no_consent_and_refuses_a_needless_one(
    terminal: Terminal,
) -> None:
    at_backup = terminal.read()
    change(terminal, "DELETE FROM balances")
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
