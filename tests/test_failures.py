"""Failures made by a real migration file, a real file system or the kernel's own answers.

After each: pos.db is what it was or the whole new file, the exit code is the listed one, history
says why, nothing half-made lies about; and with the fault gone the next boot finishes. An
independent reader judges. No case uses a switch in the product.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import filesystems as fs
from tests import independent_reader as reader
from tests import second_reader
from tests.terminals import Answer, Terminal, new_terminal

PAN = "4111111111111111"
MIB = fs.MIB
# The least that a profile may ask for, so that small file systems are ample or not by the data.
LEAN = {
    "reserve_bytes": 1 * MIB,
    "journal_bytes_max": 256 * 1024,
    "batch_bytes_max": 64 * 1024,
    "batch_rows_max": 50,
}


class Before:
    """What a terminal held before a fault, to be held against what is there after it."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.sha256 = terminal.sha256()
        self.rows = terminal.read().stores
        self.unsettled = reader.unsettled(terminal.pos)

    def is_kept(self) -> None:
        """pos.db is byte for byte what it was, and nothing half-made lies about."""
        assert self.terminal.sha256() == self.sha256
        self.nothing_half_made()

    def nothing_half_made(self) -> None:
        """No successor, no probe, no unfinished file."""
        for folder, _, names in os.walk(self.terminal.data):
            wrong = [n for n in names if n.endswith((".tmp", ".probe", ".probe2")) or ".next" in n]
            assert not wrong, f"{wrong} in {folder}"

    def is_kept_or_migrated(self) -> bool:
        """pos.db is byte for byte old, or whole and new; whether it is new."""
        if self.terminal.sha256() == self.sha256:
            return False
        self.is_migrated()
        return True

    def is_migrated(self) -> None:
        """pos.db is what the shipped migrations make of the old one, sound as a file."""
        now = self.terminal.read()
        assert now.schema_version == 3
        reader.expect_migrated(self.rows, now.stores, self.terminal.device_id)
        assert reader.soundness(self.terminal.pos) == []

    def next_boot_finishes(self) -> None:
        """With the fault gone: one boot, the new schema, and history with every migration."""
        answer = self.terminal.boot()
        assert answer.code == 0, answer.out
        self.is_migrated()
        self.nothing_half_made()
        applied = [row for row in history(self.terminal) if row["state"] == "applied"]
        assert [row["version"] for row in applied] == [1, 2, 3]


def history(terminal: Terminal) -> list[dict[str, Any]]:
    """The diary's history rows, read by SQLite alone."""
    path = terminal.data / "posagent" / "agent.db"
    if not path.exists():
        return []
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in db.execute("SELECT * FROM history ORDER BY seq")]
    finally:
        db.close()


def says_why(terminal: Terminal, answer: Answer) -> None:
    """History's last row has the code and the sentence that the command ended with."""
    last = history(terminal)[-1]
    error = answer.json["error"]
    assert (last["state"], last["code"]) == ("failed", error["code"])
    assert last["message"] == error["message"]


def add_migration(terminal: Terminal, steps: str, code: str = "") -> Path:
    """A fourth migration file behind the shipped three."""
    path = terminal.own_migrations() / "0004_goes_wrong.py"
    path.write_text(
        "from agent.core.migration import *\n"
        f"{code}\nVERSION, NAME = 4, 'goes wrong'\nSTEPS = [{steps}]\n"
    )
    return path


# --- migrations that fail ------------------------------------------------------------------------


class Wrong(NamedTuple):
    """A migration that must stop its run: its step, the code and words of the refusal."""

    name: str
    steps: str
    code: str = ""
    says: str = ""
    exit_code: int = 10


EACH = "each('transactions', up, fields=['note'])"
WRONG = (
    Wrong("a step that raises", EACH, "def up(r, c): raise RuntimeError(str(r))", "RuntimeError"),
    Wrong(
        "a step whose error quotes the record",
        EACH,
        f"def up(r, c): return int('{PAN} of ' + r['id'])",
        "ValueError in 0004_goes_wrong.py, line 2",
    ),
    Wrong("a step that ends the process", EACH, "def up(r, c): raise SystemExit(0)", "SystemExit"),
    Wrong("a step that returns nothing", EACH, "def up(r, c): pass", "returned NoneType"),
    Wrong("a step that makes NaN", EACH, "def up(r, c): return {**r, 'note': float('nan')}"),
    Wrong("a step that makes no JSON", EACH, "def up(r, c): return {**r, 'note': {1, 2}}"),
    Wrong(
        "a step that nests too deep",
        EACH,
        "def up(r, c):\n    n = []\n    for _ in range(2000): n = [n]\n    return {**r, 'note': n}",
    ),
    Wrong(
        "a check that fails",
        "each('transactions', up, check=check, fields=['note'])",
        "def up(r, c): return {**r, 'note': 1}\ndef check(r): return r['note'] == 2",
        "check() failed",
    ),
    Wrong(
        "a check that raises",
        "each('transactions', up, check=check, fields=['note'])",
        "def up(r, c): return {**r, 'note': 1}\ndef check(r): assert False, r",
        "AssertionError",
    ),
    Wrong(
        "a field that was not declared",
        EACH,
        "def up(r, c): return {**r, 'amount': 1}",
        "amount, which `fields` does not declare",
    ),
    Wrong(
        "the amount of a settled sale",
        "each('transactions', up, fields=['amount'])",
        "def up(r, c):\n"
        "    return {**r, 'amount': r['amount'] + 1} if r['status'] == 'completed' else KEEP",
        "the money would move",
    ),
    Wrong(
        "amounts of two sales exchanged across currencies",
        "each('transactions', up, fields=['currency'])",
        "def up(r, c): return {**r, 'currency': 'EUR'} if r['status'] == 'completed' else KEEP",
        "the money would move",
    ),
    Wrong(
        "an unsettled sale becomes settled",
        "map_value('transactions', 'status', {'pending': 'completed'}, other='keep')",
        says="unsettled",
    ),
    Wrong(
        "a settled sale becomes unsettled",
        "map_value('transactions', 'status', {'completed': 'pending'}, other='keep')",
        says="unsettled",
    ),
    Wrong(
        "a step that gives other values each time",
        "each('transactions', up, fields=['note'])",
        "import os\ndef up(r, c): return {**r, 'note': os.urandom(4).hex()}",
        "is not what the plan makes of it",
    ),
    Wrong(
        "a value that the mapping does not know",
        "map_value('transactions', 'status', {'pending': 'open'})",
        says="does not know the value of status",
    ),
    Wrong(
        "a name that is taken",
        "rename_field('transactions', 'id', 'amount')",
        says="both id and amount",
    ),
    Wrong(
        "a record that is moved onto another",
        "move_record('metadata', 'device_id', to_key='counters')",
        says="metadata/counters is there",
    ),
    Wrong(
        "records that outgrow the room that was checked",
        "set_field('transactions', 'filler', 'x' * 60000)",
        exit_code=6,
    ),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_migration_that_goes_wrong_leaves_everything_as_it_was(
    tmp_path: Path, wrong: Wrong
) -> None:
    terminal = new_terminal(tmp_path / "t", records=120)
    path = add_migration(terminal, wrong.steps, wrong.code)
    before = Before(terminal)
    answer = terminal.boot()
    assert answer.code == wrong.exit_code, answer.out + answer.err
    assert answer.json["app_may_start"] is True
    assert wrong.says in answer.json["error"]["message"]
    assert answer.err == ""
    assert PAN not in answer.out
    before.is_kept()
    says_why(terminal, answer)
    path.unlink()
    before.next_boot_finishes()
    for file in (terminal.data / "posagent").glob("agent.db*"):
        assert PAN.encode() not in file.read_bytes()


# --- space ---------------------------------------------------------------------------------------


def test_a_run_is_refused_before_any_byte_when_space_for_any_part_is_lacking(
    tmp_path: Path,
) -> None:
    with fs.ext4(tmp_path / "flash", 48 * MIB) as flash:
        terminal = new_terminal(flash / "t", records=2000)
        terminal.configure(**LEAN)
        before = Before(terminal)
        filler = flash / "filler"
        fs.fill(filler, 512 * 1024)
        first = terminal.boot()
        assert (first.code, first.json["error"]["code"]) == (6, "STORAGE_ERROR")
        need = first.json["error"]["facts"]
        parts = ("successor_bytes", "journal_bytes", "backup_bytes", "reserve_bytes")
        assert need["total_bytes"] == sum(need[part] for part in parts)
        for part in parts:
            fs.fill(filler, need["total_bytes"] - need[part] // 2)
            free = fs.free_bytes(flash)
            answer = terminal.boot()
            assert answer.code == 6, (part, answer.out)
            assert answer.json["app_may_start"] is True
            assert str(need["total_bytes"]) in answer.json["error"]["message"]
            before.is_kept()
            assert list(terminal.backups.iterdir()) == []
            assert fs.free_bytes(flash) >= free - 64 * 1024
        assert [row["code"] for row in history(terminal)] == ["STORAGE_ERROR"]
        fs.fill(filler, need["total_bytes"] + 256 * 1024)
        before.next_boot_finishes()


def test_backups_on_a_file_system_of_their_own_need_room_there(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t", records=2000)
    terminal.configure(**LEAN)
    before = Before(terminal)
    with fs.tmpfs(terminal.backups, 1 * MIB):
        answer = terminal.boot()
        assert answer.code == 6, answer.out
        before.is_kept()
        assert list(terminal.backups.iterdir()) == []
        says_why(terminal, answer)
    with fs.tmpfs(terminal.backups, 4 * MIB):
        before.next_boot_finishes()


def test_from_too_small_to_ample_each_size_of_flash_gives_the_old_data_or_the_new(
    tmp_path: Path,
) -> None:
    template = new_terminal(tmp_path / "template", records=1500)
    template.configure(**LEAN)
    size = template.pos.stat().st_size
    ends = []
    for step in range(2, 21, 2):
        with fs.tmpfs(tmp_path / "flash", size + 128 * 1024 + step * 256 * 1024) as flash:
            shutil.copytree(template.root, flash / "t")
            terminal = Terminal(flash / "t")
            terminal.device_id = template.device_id
            before = Before(terminal)
            free = fs.free_bytes(flash)
            answer = terminal.boot()
            ends.append(answer.code)
            assert answer.code in (0, 6), answer.out
            assert before.is_kept_or_migrated() is (answer.code == 0)
            before.nothing_half_made()
            if answer.code == 6:
                assert list(terminal.backups.iterdir()) == []
                assert fs.free_bytes(flash) >= free - 160 * 1024  # the diary
    assert ends == sorted(ends, reverse=True)
    assert {0, 6} == set(ends)


FILL = (
    "import os\n"
    "seen = [0]\n"
    "def up(r, c):\n"
    "    seen[0] += 1\n"
    "    if seen[0] == {at} and os.path.exists({switch!r}):\n"
    "        with open({filler!r}, 'wb', 0) as file:\n"
    "            try:\n"
    "                while file.write(bytes(4096)): pass\n"
    "            except OSError: pass\n"
    "    return {{**r, 'note': 'x' * 300}}\n"
)


@pytest.mark.parametrize("at", [1, 60, 119])
def test_flash_that_others_fill_in_mid_run_ends_the_run_and_not_the_data(
    tmp_path: Path, at: int
) -> None:
    with fs.tmpfs(tmp_path / "flash", 24 * MIB) as flash:
        terminal = new_terminal(flash / "t", records=120)
        terminal.configure(**LEAN)
        filler, switch = flash / "filler", tmp_path / "switch"
        switch.touch()
        code = FILL.format(at=at, switch=str(switch), filler=str(filler))
        path = add_migration(terminal, EACH, code)
        before = Before(terminal)
        answer = terminal.boot()
        assert (answer.code, answer.json["error"]["code"]) == (6, "STORAGE_ERROR"), answer.out
        assert answer.json["app_may_start"] is True
        assert filler.exists()
        before.is_kept()
        assert terminal.boot().code == 6
        before.is_kept()
        filler.unlink()
        path.unlink()
        before.next_boot_finishes()


# --- a file system that goes away ----------------------------------------------------------------


def test_flash_that_turns_read_only_in_mid_run_keeps_the_old_data(tmp_path: Path) -> None:
    with fs.ext4(tmp_path / "flash", 48 * MIB) as flash:
        terminal = new_terminal(flash / "t", records=120)
        trigger = fs.error_trigger(flash)
        add_migration(
            terminal,
            EACH,
            f"def up(r, c):\n    open({str(trigger)!r}, 'w').write('posagent test')\n"
            "    return {**r, 'note': 1}\n",
        )
        before = Before(terminal)
        fs.sync(flash)  # what the application wrote earlier is on flash
        answer = terminal.boot()
        assert answer.code == 6, answer.out
        assert "traceback" not in answer.err.lower()
        assert terminal.sha256() == before.sha256
        assert answer.json["app_may_start"] is True
        # Nothing can be written there now, and the agent says so instead of failing otherwise.
        again = terminal.boot()
        assert (again.code, again.json["error"]["code"]) == (6, "STORAGE_ERROR"), again.out
        assert "read" in again.json["error"]["message"]
        # A technician checks the file system; the next mount is writable.
        image = flash.with_name(flash.name + ".img")
        copy = tmp_path / "copy.img"
        shutil.copyfile(image, copy)
    with fs.repaired_ext4(tmp_path / "flash", copy):
        (terminal.root / "migrations" / "0004_goes_wrong.py").unlink()
        before.next_boot_finishes()


def test_a_read_only_file_system_is_named_and_left_alone(tmp_path: Path) -> None:
    with fs.tmpfs(tmp_path / "flash", 48 * MIB) as flash:
        terminal = new_terminal(flash / "t", records=60)
        before = Before(terminal)
        fs.remount(flash, "ro")
        answer = terminal.boot()
        fs.remount(flash, "rw")
        assert (answer.code, answer.json["error"]["code"]) == (6, "STORAGE_ERROR"), answer.out
        assert "read-only" in answer.json["error"]["message"]
        assert answer.json["app_may_start"] is True
        before.is_kept()
        before.next_boot_finishes()


def test_a_data_folder_that_is_moved_away_in_mid_run_gets_nothing_new(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t", records=120)
    away = tmp_path / "t" / "away"
    add_migration(
        terminal,
        EACH,
        f"import os\ndef up(r, c):\n    if not os.path.exists({str(away)!r}):\n"
        f"        os.rename({str(terminal.data)!r}, {str(away)!r})\n    return KEEP\n",
    )
    before = Before(terminal)
    answer = terminal.boot()
    assert answer.code == 12, answer.out  # there is no pos.db where the application looks
    assert answer.json["app_may_start"] is False
    assert "traceback" not in answer.err.lower()
    assert not terminal.pos.exists()
    shutil.rmtree(terminal.data, ignore_errors=True)
    away.rename(terminal.data)
    assert terminal.sha256() == before.sha256
    (terminal.root / "migrations" / "0004_goes_wrong.py").unlink()
    before.next_boot_finishes()


# --- a device that errs --------------------------------------------------------------------------


class Fault(NamedTuple):
    """A system call on one path that the kernel answers with an error, and the code expected."""

    calls: str
    path: str
    when: str = "1"
    code: int = 6
    may_be_new: bool = False


BACKUP = "posagent/backups/000001-v0.posbak.tmp"
FAULTS = (
    Fault("fsync,fdatasync:error=EIO", "pos.db.next"),
    Fault("fsync,fdatasync:error=EIO", "pos.db.next", "2"),
    Fault("fsync,fdatasync:error=EIO", "pos.db.next", "3"),
    Fault("fsync,fdatasync:error=EIO", "pos.db.next-wal"),
    Fault("fsync,fdatasync:error=EIO", BACKUP),
    Fault("fsync,fdatasync:error=EIO", "posagent/backups"),
    Fault("fsync,fdatasync:error=EIO", "posagent/seal.tmp"),
    Fault("fsync,fdatasync:error=EIO", "posagent/agent.db"),
    Fault("fsync,fdatasync:error=EIO", "posagent/agent.db-wal"),
    Fault("fsync,fdatasync:error=EIO", ".", "1"),
    Fault("fsync,fdatasync:error=EIO", ".", "2"),
    Fault("fsync,fdatasync:error=EIO", ".", "3"),
    # Of the folder, behind the rename: the new file is in place, and the next boot says so.
    Fault("fsync,fdatasync:error=EIO", ".", "4", 12, may_be_new=True),
    Fault("write,pwrite64:error=ENOSPC", BACKUP, "2+"),
    Fault("write,pwrite64:error=ENOSPC", "pos.db.next", "2+"),
    Fault("write,pwrite64:error=EIO", "pos.db.next-wal", "2+"),
    Fault("write,pwrite64:error=ENOSPC", "posagent/seal.tmp", "1+"),
    Fault("write,pwrite64:error=ENOSPC", "posagent/agent.db-wal", "1+"),
    # Read back: refused by the device, cut short, and with other bytes than were written.
    Fault("pread64:error=EIO", BACKUP, "1+", 9),
    Fault("pread64:retval=0", BACKUP, "4", 9),
    Fault("pread64:poke_exit=@arg2=DEADBEEF", BACKUP, "3", 9),
    Fault("pread64:poke_exit=@arg2=DEADBEEF", "pos.db.next", "1"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.calls} on {f.path} at {f.when}")
def test_a_device_that_errs_stops_the_run_with_old_data_or_whole_new_data(
    tmp_path: Path, fault: Fault
) -> None:
    terminal = new_terminal(tmp_path / "t", records=120)
    before = Before(terminal)
    source = terminal.pos.read_bytes()
    log = tmp_path / "calls"
    path = (terminal.data / fault.path).resolve()
    inject = f"{fault.calls}:when={fault.when}"
    answer = fs.run_with_faults(terminal, log, inject, [path], "boot", "--json")
    assert "INJECTED" in log.read_text(), "the fault met nothing"
    assert "traceback" not in answer.err.lower()
    assert answer.code == fault.code, answer.out
    assert before.is_kept_or_migrated() <= fault.may_be_new
    before.nothing_half_made()
    # What flash refused to sync never gets the name under which it would be believed.
    if fault.path == BACKUP:
        assert list(terminal.backups.iterdir()) == []
    if fault.path == "posagent/seal.tmp":
        assert not (terminal.data / "posagent" / "seal").exists()
    for backup in terminal.backups.glob("*.posbak"):
        assert second_reader.read(backup.read_bytes()).image == source
    before.next_boot_finishes()
