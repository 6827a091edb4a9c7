"""The lock that keeps the application out: held against real SQLite clients in other processes.

The first test shows what is wrong with the obvious lock, so that nobody goes back to it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

import pytest

from agent.edges.filelock import FileLock, try_lock
from agent.ground.limits import LOCK_BYTES, LOCK_OFFSET
from tests.client import Client

MODES = ("delete", "wal")


def new_db(folder: Path, mode: str = "delete") -> Path:
    """A pos.db with one store and one row."""
    path = folder / "pos.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.execute("CREATE TABLE transactions (key TEXT PRIMARY KEY, value TEXT)")
    db.execute("INSERT INTO transactions VALUES ('tx_0', '{}')")
    db.close()
    return path


def locked(path: Path) -> FileLock:
    """The lock, which must be free."""
    lock = try_lock(str(path))
    assert lock is not None
    return lock


def sell(path: Path) -> str:
    """What another process is answered when it opens the file and sells."""
    with Client(path) as client:
        client.ask("open 0")
        return client.ask("sale tx_1")


def read_and_close(path: Path) -> None:
    """What any library in this process may do with the file at any time."""
    with open(path, "rb") as file:
        file.read(100)


def test_a_posix_lock_is_gone_once_anything_here_closes_the_file(tmp_path: Path) -> None:
    path = new_db(tmp_path)
    with open(path, "rb+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCK_BYTES, LOCK_OFFSET, os.SEEK_SET)
        assert sell(path) == "busy"
        read_and_close(path)
        assert sell(path) == "ok"  # acknowledged under a lock, and lost with the old file


def test_our_lock_survives_opens_and_closes_of_other_descriptors(tmp_path: Path) -> None:
    path = new_db(tmp_path)
    lock = locked(path)
    read_and_close(path)
    os.close(os.dup(lock.fd))
    assert sell(path) == "busy"
    lock.close()
    assert sell(path) == "ok"


@pytest.mark.parametrize("mode", MODES)
def test_under_our_lock_another_process_can_neither_write_nor_read(
    tmp_path: Path, mode: str
) -> None:
    path = new_db(tmp_path, mode)
    lock = locked(path)
    with Client(path) as client:
        client.ask("open 0")
        assert client.ask("sale tx_1") == "busy"
        assert client.ask("sql SELECT count(*) FROM transactions") == "busy"
        assert not os.path.exists(f"{path}-wal") or not os.path.getsize(f"{path}-wal")
        lock.close()
        assert client.ask("sql SELECT count(*) FROM transactions") == "ok [[1]]"


@pytest.mark.parametrize("gives_up", [False, True], ids=["ends", "closes the lock first"])
def test_our_lock_survives_the_end_of_a_child_that_shares_it(
    tmp_path: Path, gives_up: bool
) -> None:
    path = new_db(tmp_path)
    lock = locked(path)
    pid = os.fork()
    if pid == 0:
        if gives_up:
            lock.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert sell(path) == "busy"
    lock.close()


def test_our_lock_lives_in_a_child_when_the_parent_has_closed_it(tmp_path: Path) -> None:
    # So the worker that stays behind keeps the old file locked after its supervisor has ended.
    path = new_db(tmp_path)
    lock = locked(path)
    end, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    lock.close()
    assert sell(path) == "busy"
    os.close(ours)
    os.waitpid(pid, 0)
    assert sell(path) == "ok"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "steps",
    [
        ["BEGIN", "SELECT count(*) FROM transactions"],
        ["BEGIN IMMEDIATE"],
        ["BEGIN EXCLUSIVE"],
        ["BEGIN", "INSERT INTO transactions VALUES ('tx_2', '{}')"],
    ],
    ids=["reader", "reserved", "exclusive", "writer"],
)
def test_a_reader_or_a_writer_keeps_our_lock_away_and_is_not_disturbed(
    tmp_path: Path, mode: str, steps: list[str]
) -> None:
    path = new_db(tmp_path, mode)
    with Client(path) as client:
        client.ask("open 0")
        for statement in steps:
            assert client.ask(f"sql {statement}").startswith("ok")
        assert try_lock(str(path)) is None
        assert client.ask("sql COMMIT") == "ok"
        assert client.ask("sale tx_3") == "ok"
        client.ask("close")
        locked(path).close()


def test_a_wal_client_between_two_sales_keeps_our_lock_away(tmp_path: Path) -> None:
    path = new_db(tmp_path, "wal")
    with Client(path) as client:
        client.ask("open 0")
        assert client.ask("sale tx_1") == "ok"
        assert try_lock(str(path)) is None


def test_two_agents_cannot_hold_it_at_once(tmp_path: Path) -> None:
    path = new_db(tmp_path)
    lock = locked(path)
    assert try_lock(str(path)) is None
    lock.close()
    locked(path).close()


def test_the_lock_names_the_inode_and_stays_with_it_through_a_rename(tmp_path: Path) -> None:
    path = new_db(tmp_path)
    lock = locked(path)
    os.rename(path, tmp_path / "moved.db")
    found = os.stat(tmp_path / "moved.db")
    assert lock.inode == (found.st_dev, found.st_ino)
    assert sell(tmp_path / "moved.db") == "busy"
    lock.close()
    lock.close()  # a second time does no harm
