"""Every row of the table of the next boot, made for real on flash and booted, judged from outside.

The states are made by killing worker and supervisor at the exact call, or by leaving the files as a
cut leaves them; names carry the row's mark (docs/boot-table.md). The judge imports nothing of
`agent` but the table itself, to know that no row lacks a test, and the plan's digest where a file
has to be forged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agent.core import decide
from agent.edges.migration_files import MigrationFiles
from tests import independent_reader as reader
from tests import killing
from tests.terminals import COMMAND, ROOT, Terminal, new_terminal

SALE = (
    "tx_9999_newer",
    '{"amount":1250,"currency":"EUR","status":"pending","timestamp":1767300000000}',
)
SEALED = "rename seal.tmp seal"
LINKED = "link pos.db pos.db.prev"
RENAMED = "rename pos.db.next pos.db"
COPIED = "fsync pos.db.next"
MIGRATING = 'mark {"state":"migrating","store":"transactions","done":128'
PROVING = 'mark {"state":"proving"'


def small(root: Path, **recipe: Any) -> Terminal:
    """A terminal at schema 0 whose migration takes several batches."""
    terminal = new_terminal(root, extra_tables=True, **recipe)
    terminal.own_migrations()
    terminal.configure(batch_rows_max=64)
    return terminal


def cut(terminal: Terminal, at: str) -> None:
    """Boot, and have worker and supervisor die at this moment of the worker."""
    command = [*COMMAND, "--root", str(terminal.root), "boot", "--json"]
    traced = killing.trace(command, terminal.root / "cut", victim="supervisor", at=at)
    assert traced.killed, f"it ended with {traced.code} and never came to {at}: {traced.moments}"


def rows_before(terminal: Terminal) -> reader.Rows:
    """The stores as they are now."""
    return terminal.read().stores


def history(terminal: Terminal) -> list[tuple[str, int, str]]:
    """(run, version, verdict) of what was applied."""
    with reader.opened(terminal.data / "posagent/agent.db") as db:
        return db.execute(
            "SELECT run, version, verdict FROM history WHERE state = 'applied' ORDER BY seq"
        ).fetchall()


def run_row(path: Path) -> dict[str, Any]:
    """The run row inside a file, by our own SQL."""
    with reader.opened(path) as db:
        text = db.execute("SELECT value FROM posagent WHERE kind = 'run' AND key = 'row'")
        found: dict[str, Any] = json.loads(text.fetchone()[0])
        return found


def boots_to_the_end(terminal: Terminal, before: reader.Rows, source: str) -> int:
    """One boot ends with the migrated data, the old file as .prev, one history, nothing left over.
    Answers the run's frozen time."""
    answer = terminal.boot()
    assert answer.code == 0, answer.out + answer.err
    assert answer.json["app_may_start"] is True
    assert answer.json["verdict"] == "OK"
    now = reader.expect_migrated(before, terminal.read().stores, terminal.device_id)
    assert terminal.listing() == ["pos.db", "pos.db.prev", "posagent"]
    assert reader.file_sha256(f"{terminal.pos}.prev") == source
    assert not os.path.samefile(terminal.pos, f"{terminal.pos}.prev")
    assert reader.soundness(terminal.pos) == []
    applied = history(terminal)
    assert [row[1:] for row in applied] == [(v, "OK") for v in (1, 2, 3)], applied
    assert {row[0] for row in applied} == {run_row(terminal.pos)["run"]}
    assert list(terminal.backups.glob("*.tmp")) == []
    return now


def idle(terminal: Terminal) -> dict[str, Any]:
    """One boot that has nothing to do, and says so."""
    before = terminal.sha256()
    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"]) == (0, "NOT_REQUIRED"), answer.out
    assert terminal.sha256() == before
    return answer.json


# --- pos.db missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [(".prev",), (".next",), (".prev", ".next"), ()], ids=str)
def test_nb_1_a_missing_pos_db_is_held_and_nothing_is_put_in_its_place(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    terminal = small(tmp_path / "t")
    for tail in left:
        shutil.copyfile(terminal.pos, f"{terminal.pos}{tail}")
    terminal.pos.unlink()
    before = terminal.listing()
    answer = terminal.boot()
    assert answer.code == 12, answer.out
    assert answer.json["verdict"] == "HELD"
    assert answer.json["app_may_start"] is False
    assert terminal.listing() == before
    for tail in left:
        assert f"pos.db{tail}" in answer.json["error"]["message"]


# --- around the rename ---------------------------------------------------------------------------


def test_nb_2_a_cut_between_link_and_rename_unlinks_the_twin_and_goes_on(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    cut(terminal, LINKED)
    assert os.path.samefile(terminal.pos, f"{terminal.pos}.prev")
    assert terminal.sha256() == source
    run = run_row(terminal.data / "pos.db.next")["run"]
    boots_to_the_end(terminal, before, source)
    assert history(terminal)[0][0] == run, "the sealed successor was proven again, not built anew"


def test_nb_2_a_twin_without_a_successor_is_unlinked(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    os.link(terminal.pos, f"{terminal.pos}.prev")
    boots_to_the_end(terminal, before, source)


def test_nb_3_a_cut_after_the_rename_writes_the_history_that_was_owed(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    cut(terminal, RENAMED)
    assert history(terminal) == []
    switched = terminal.sha256()
    boots_to_the_end(terminal, before, source)
    assert terminal.sha256() == switched, "the new file was whole and is left alone"
    idle(terminal)
    assert len(history(terminal)) == 3


def test_nb_3_a_diary_that_is_gone_gets_the_run_from_the_sealed_row(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    assert terminal.boot().code == 0
    (terminal.data / "posagent/agent.db").unlink()
    boots_to_the_end(terminal, before, source)
    idle(terminal)


@pytest.mark.parametrize("diary", [True, False], ids=["diary", "no diary"])
def test_nb_4_a_switch_back_cut_after_its_rename_is_told_and_not_done_forward_again(
    tmp_path: Path, diary: bool
) -> None:
    terminal = small(tmp_path / "t")
    source = terminal.sha256()
    assert terminal.boot().code == 0
    command = [*COMMAND, "--root", str(terminal.root), "rollback", "--to", "0", "--json"]
    at = "rename pos.db.prev pos.db"
    traced = killing.trace(command, tmp_path / "cut", victim="supervisor", at=at)
    assert traced.killed, traced.moments
    assert terminal.sha256() == source
    if not diary:
        for path in (terminal.data / "posagent").glob("agent.db*"):
            path.unlink()
    answer = terminal.boot()
    assert (answer.code, answer.json["verdict"], answer.json["to_version"]) == (0, "OK", 0)
    assert answer.json["app_may_start"]
    held = terminal.boot()
    assert held.json["app_may_start"]
    assert "brought back on request" in held.json["error"]["message"]
    assert terminal.sha256() == source
    assert terminal.listing() == ["pos.db", "posagent"]
    rows = terminal.run("history", "--json").json["history"]
    back = [row for row in rows if row["state"] == "rolled_back"]
    assert [(row["version"], row["verdict"]) for row in back] == [(3, "OK"), (2, "OK"), (1, "OK")]
    assert len({row["run"] for row in back}) == 1


def test_nb_4_a_switch_back_cut_before_its_rename_has_not_happened(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    upgraded = terminal.sha256()
    command = [*COMMAND, "--root", str(terminal.root), "rollback", "--to", "0", "--json"]
    traced = killing.trace(command, tmp_path / "cut", victim="supervisor", at=SEALED)
    assert traced.killed, traced.moments
    idle(terminal)
    assert terminal.sha256() == upgraded
    assert len(history(terminal)) == 3
    assert terminal.run("rollback", "--to", "0", "--json").json["way"] == "switch back"


@pytest.mark.parametrize("kept", [True, False], ids=["prev", "no-prev"])
def test_nb_5_a_cut_before_the_wal_mode_was_given_back_gives_it_back(
    tmp_path: Path, kept: bool
) -> None:
    terminal = small(tmp_path / "t", journal="wal")
    before, source = rows_before(terminal), terminal.sha256()
    cut(terminal, "pwrite64 pos.db-journal")
    assert len(history(terminal)) == 3
    with open(terminal.pos, "rb") as file:
        assert file.read(20)[18:] == b"\1\1", "the new file is in rollback mode yet"
    if not kept:
        (terminal.data / "pos.db.prev").unlink()
    answer = terminal.boot()
    assert (answer.code, answer.json["app_may_start"]) == (0, True), answer.out
    with open(terminal.pos, "rb") as file:
        assert file.read(20)[18:] == b"\2\2"
    assert terminal.listing() == ["pos.db", *(["pos.db.prev"] if kept else []), "posagent"]
    if kept:
        assert reader.file_sha256(f"{terminal.pos}.prev") == source
    reader.expect_migrated(before, terminal.read().stores, terminal.device_id)
    assert reader.soundness(terminal.pos) == []
    idle(terminal)
    assert len(history(terminal)) == 3


# --- a successor that is of no use ---------------------------------------------------------------


def without_row(terminal: Terminal) -> None:
    cut(terminal, COPIED)


def empty_with_a_whole_wal(terminal: Terminal) -> None:
    """The copy was not durable, its -wal was."""
    cut(terminal, MIGRATING)
    assert (terminal.data / "pos.db.next-wal").stat().st_size > 0
    os.truncate(f"{terminal.pos}.next", 0)


def sale_made_since(terminal: Terminal) -> None:
    """The application ran between the cut and this boot."""
    cut(terminal, MIGRATING)
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES (?, ?)", SALE)
    db.close()


def sale_changed_in_place(terminal: Terminal) -> None:
    """Size and header stay what they are: only the digest of the whole file tells."""
    cut(terminal, MIGRATING)
    data = terminal.pos.read_bytes()
    assert data.count(b'"status":"pending"') > 1
    terminal.pos.write_bytes(data.replace(b'"status":"pending"', b'"status":"sending"', 1))


def sealed_and_sale_made_since(terminal: Terminal) -> None:
    cut(terminal, SEALED)
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES (?, ?)", SALE)
    db.close()


def plan_edited(terminal: Terminal) -> None:
    cut(terminal, MIGRATING)
    path = terminal.root / "migrations/0002_add_transaction_metadata.py"
    path.write_text(path.read_text() + "# corrected\n")


def contract_edited(terminal: Terminal) -> None:
    cut(terminal, MIGRATING)
    path = terminal.root / "migrations/stores.json"
    path.write_text(path.read_text().replace("1500", "1501"))


def rubbish(terminal: Terminal) -> None:
    (terminal.data / "pos.db.next").write_bytes(b"no database at all" * 1000)


def only_side_files(terminal: Terminal) -> None:
    cut(terminal, MIGRATING)
    (terminal.data / "pos.db.next").unlink()


def row_of_a_restore(terminal: Terminal) -> None:
    """A restore was cut; nobody asks for it again."""
    assert terminal.run("backup", "--json").code == 0
    command = [*COMMAND, "--root", str(terminal.root), "restore", "1", "--json"]
    traced = killing.trace(command, terminal.root / "cut", victim="supervisor", at=PROVING)
    assert traced.killed, traced.out


@pytest.mark.parametrize(
    "make",
    [
        without_row,
        empty_with_a_whole_wal,
        sale_made_since,
        sale_changed_in_place,
        sealed_and_sale_made_since,
        plan_edited,
        contract_edited,
        rubbish,
        only_side_files,
        row_of_a_restore,
    ],
    ids=lambda make: make.__name__,
)
def test_nb_6_a_strange_successor_is_deleted_and_the_run_begins_anew(
    tmp_path: Path, make: Any
) -> None:
    terminal = small(tmp_path / "t")
    make(terminal)
    assert [name for name in terminal.listing() if name.startswith("pos.db.next")]
    stale = ""
    if make not in (without_row, rubbish, only_side_files, empty_with_a_whole_wal):
        stale = run_row(terminal.data / "pos.db.next")["run"]
    before, source = rows_before(terminal), terminal.sha256()
    boots_to_the_end(terminal, before, source)
    assert history(terminal)[0][0] != stale


def test_nb_9_a_damaged_successor_is_begun_anew_in_the_same_boot(tmp_path: Path) -> None:
    """Its row is whole and names this source, so it is resumed; then SQLite finds pages missing."""
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    cut(terminal, MIGRATING)
    os.truncate(f"{terminal.pos}.next", 40_960)
    boots_to_the_end(terminal, before, source)


# --- nothing to be done --------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [3, 2])
def test_nb_7_a_newer_schema_is_left_alone(tmp_path: Path, reads: int) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    (terminal.root / "migrations/0003_migrate_user_preferences.py").unlink()
    stores = terminal.root / "migrations/stores.json"
    stores.write_text(
        stores.read_text().replace('"app_reads": [0, 3]', f'"app_reads": [0, {reads}]')
    )
    before, names = terminal.sha256(), terminal.listing()
    answer = terminal.boot()
    assert answer.json["error"]["code"] == "SCHEMA_TOO_NEW"
    assert answer.json["app_may_start"] is (reads == 3)
    assert answer.code == (8 if reads == 3 else 12)
    assert (terminal.sha256(), terminal.listing()) == (before, names)


def test_nb_8_a_plan_given_up_leaves_the_old_data_in_use(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    shutil.copy(ROOT / "migrations/0003_migrate_user_preferences.py", tmp_path / "good.py")
    bad = terminal.root / "migrations/0003_migrate_user_preferences.py"
    bad.write_text(
        "from agent.core.migration import each\n"
        "def up(record, context):\n    raise ValueError('no')\n"
        "VERSION, NAME = 3, 'fails'\nSTEPS = [each('transactions', up, fields=['x'])]\n"
    )
    source = terminal.sha256()
    before = rows_before(terminal)
    for _ in range(3):
        answer = terminal.boot()
        assert answer.code == 10, answer.out
    attempts = attempts_of(terminal)
    answer = terminal.boot()
    assert answer.json["verdict"] == "HELD", answer.out
    assert answer.json["error"]["facts"]["cause"] == "GIVEN_UP"
    assert answer.json["app_may_start"] is True
    assert attempts_of(terminal) == attempts, "it was not tried again"
    assert terminal.sha256() == source
    assert terminal.listing() == ["pos.db", "posagent"]
    shutil.copy(tmp_path / "good.py", bad)
    boots_to_the_end(terminal, before, source)


def attempts_of(terminal: Terminal) -> int:
    with reader.opened(terminal.data / "posagent/agent.db") as db:
        return int(db.execute("SELECT count(*) FROM attempts").fetchone()[0])


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        'mark {"state":"migrating","total"',
        MIGRATING,
        "unlink pos.db.next-wal",
        PROVING,
        "create seal.tmp",
        SEALED,
    ],
)
def test_nb_9_a_successor_of_the_same_source_and_plan_is_resumed(tmp_path: Path, at: str) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    cut(terminal, at)
    assert terminal.sha256() == source
    row = run_row(terminal.data / "pos.db.next")
    now = boots_to_the_end(terminal, before, source)
    assert (now, run_row(terminal.pos)["run"]) == (row["now"], row["run"]), "frozen, not begun anew"
    assert len(list(terminal.backups.iterdir())) == 1


def test_nb_10_an_older_pos_db_is_brought_to_the_installed_schema(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    boots_to_the_end(terminal, rows_before(terminal), terminal.sha256())
    idle(terminal)


@pytest.mark.parametrize(
    "at", ["create 000001-v0.posbak.tmp", "rename 000001-v0.posbak.tmp 000001-v0.posbak"]
)
def test_nb_10_a_cut_before_the_run_row_begins_anew_with_the_backup_if_it_is_whole(
    tmp_path: Path, at: str
) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    cut(terminal, at)
    kept = {path.name: path.stat().st_mtime_ns for path in terminal.backups.glob("*.posbak")}
    boots_to_the_end(terminal, before, source)
    found = {path.name: path.stat().st_mtime_ns for path in terminal.backups.iterdir()}
    assert len(found) == 1
    assert not kept or found == kept, "the backup of the first attempt is used again"


def test_nb_11_a_successor_beside_data_at_the_target_is_deleted(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    shutil.copyfile(terminal.pos, f"{terminal.pos}.next")
    row = run_row(terminal.pos)
    row.update(
        from_version=3,
        state="open",
        plan=MigrationFiles(str(terminal.root / "migrations")).digest(3),
        source_size=terminal.pos.stat().st_size,
        source_sha256=terminal.sha256(),
    )
    db = sqlite3.connect(f"{terminal.pos}.next", isolation_level=None)
    db.execute("UPDATE posagent SET value = ? WHERE key = 'row'", (json.dumps(row),))
    db.close()
    idle(terminal)
    assert terminal.listing() == ["pos.db", "pos.db.prev", "posagent"]


@pytest.mark.parametrize("backup", ["whole", "damaged", "gone"])
def test_nb_12_a_first_sale_on_the_new_schema_commits_if_a_verified_backup_is_there(
    tmp_path: Path, backup: str
) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    idle(terminal)
    assert (terminal.data / "pos.db.prev").exists(), "nothing was written since"
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES (?, ?)", SALE)
    db.close()
    (path,) = terminal.backups.iterdir()
    if backup == "damaged":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif backup == "gone":
        path.unlink()
    idle(terminal)
    kept = ["pos.db.prev"] if backup != "whole" else []
    assert terminal.listing() == ["pos.db", *kept, "posagent"]
    assert SALE[0] in rows_before(terminal)["transactions"]


def test_nb_13_a_target_version_that_somebody_else_wrote_is_no_run(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("PRAGMA user_version = 3")
    db.close()
    foreign = b"somebody's file"
    (terminal.data / "pos.db.prev").write_bytes(foreign)
    said = idle(terminal)
    assert (said["written_by_others"], said["foreign_previous"]) == (True, True)
    assert (terminal.data / "pos.db.prev").read_bytes() == foreign
    (terminal.data / "pos.db.prev").unlink()
    idle(terminal)


def test_nb_13_a_switch_sets_a_foreign_previous_file_aside(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t")
    before, source = rows_before(terminal), terminal.sha256()
    foreign = b"somebody's file"
    (terminal.data / "pos.db.prev").write_bytes(foreign)
    assert terminal.boot().code == 0
    assert terminal.listing() == ["pos.db", "pos.db.prev", "pos.db.prev.unknown", "posagent"]
    assert (terminal.data / "pos.db.prev.unknown").read_bytes() == foreign
    assert reader.file_sha256(f"{terminal.pos}.prev") == source
    reader.expect_migrated(before, rows_before(terminal), terminal.device_id)


@pytest.mark.parametrize("written", [False, True])
def test_nb_13_the_next_switch_replaces_the_previous_file_of_the_last(
    tmp_path: Path, written: bool
) -> None:
    terminal = small(tmp_path / "t")
    assert terminal.boot().code == 0
    if written:
        db = sqlite3.connect(terminal.pos, isolation_level=None)
        db.execute("INSERT INTO transactions VALUES (?, ?)", SALE)
        db.close()
    source = terminal.sha256()
    (terminal.root / "migrations/0004_more.py").write_text(
        "from agent.core.migration import set_field\n"
        "VERSION, NAME = 4, 'more'\nSTEPS = [set_field('sync', 'more', True)]\n"
    )
    stores = terminal.root / "migrations/stores.json"
    stores.write_text(stores.read_text().replace('"app_reads": [0, 3]', '"app_reads": [0, 4]'))
    assert terminal.boot().code == 0
    assert terminal.read().schema_version == 4
    assert reader.file_sha256(f"{terminal.pos}.prev") == source
    assert terminal.listing() == ["pos.db", "pos.db.prev", "posagent"]
    assert [row[1] for row in history(terminal)] == [1, 2, 3, 4]


def test_every_row_of_the_table_has_a_test_here() -> None:
    held = {f"NB-{n}" for name in globals() for n in re.findall(r"^test_nb_(\d+)_", name)}
    assert held == {row.mark for row in decide.ROWS}
