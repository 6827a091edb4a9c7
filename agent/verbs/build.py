"""Building the successor: one read of the source feeds backup and copy, then the run row goes in.

The order is the promise. The copy is durable and was read back before the run row says that a run
began; until then a next boot finds a successor without a row and deletes it.
"""

from __future__ import annotations

import os

from agent.core.terminal import Places, RunRow
from agent.edges import database, flash
from agent.edges.database import SQLITE_ERRORS, refused_by_sqlite
from agent.ground.digest import sha256
from agent.ground.errors import AgentError, StorageFull
from agent.ground.limits import BYTES_PER_MARK, CHUNK_BYTES
from agent.verbs import applied, rows
from agent.verbs.quota import copy_ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Callable

    from agent.core.plan import Plan
    from agent.verbs.backup import BackupWriter


def create_next(places: Places) -> int:
    """An open, empty successor with nothing left beside its name."""
    flash.delete(places.next)
    database.remove_side_files(places.next)
    return os.open(places.next, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def copy_source(
    places: Places, into: int, backup: BackupWriter | None, mark: Callable[[int], None]
) -> tuple[int, str]:
    """Read the locked source once: into the successor (unless `into` is negative), into the
    backup, into its digest.

    Answers (size, SHA-256): the source's identity. Nothing is durable yet.
    """
    digest = sha256()
    size = 0
    source = os.open(places.pos, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for chunk in flash.read_chunks(source):
            digest.update(chunk)
            if into >= 0:
                flash.write_all(into, chunk)
            if backup is not None:
                backup.add_chunk(chunk)
            size += len(chunk)
            if size % BYTES_PER_MARK == 0:
                mark(size)
    except OSError as error:
        raise flash.refused(error, "copying pos.db") from error
    finally:
        os.close(source)
    return size, digest.hexdigest()


def settle_copy(places: Places, fd: int) -> None:
    """Make the copy durable under its name, with the owner and mode the application needs."""
    try:
        like = places.pos if os.path.lexists(places.pos) else places.folder
        copy_ownership(like, fd)
        os.fsync(fd)
        flash.sync_folder(places.folder)
    except OSError as error:
        raise flash.refused(error, "making the copy durable") from error


def compare_copy(places: Places, mark: Callable[[int], None]) -> None:
    """Read the copy back from flash and compare it with its source, byte for byte."""
    source = os.open(places.pos, os.O_RDONLY | os.O_CLOEXEC)
    copy = os.open(places.next, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flash.drop_cache(copy)
        offset = 0
        while True:
            expected = os.pread(source, CHUNK_BYTES, offset)
            if os.pread(copy, CHUNK_BYTES, offset) != expected:
                raise StorageFull(f"flash gave back other bytes than were written at {offset}")
            if not expected:
                return
            offset += len(expected)
            if offset % BYTES_PER_MARK == 0:
                mark(offset)
    finally:
        os.close(copy)
        os.close(source)


def start_run(connection: Connection, row: RunRow) -> None:
    """The successor's first commit: our run row, and every trigger put aside.

    A trigger that fires for every migrated record would send the sales again, and one on another
    table may be set off by one on a store, under whatever spelling of its name. From here on the
    file says whose it is, so a next boot resumes it.
    """
    try:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        database.begin(connection)
        # First of all: one on our own table would be set off by our own rows.
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {database.quoted(name)}")
        rows.make_table(connection)
        for kind in ("run", "trigger"):
            rows.remove(connection, kind)
        if row.kind == "migrate":
            rows.forget_above(connection, row.from_version)  # of a version that somebody took back
        rows.write_run(connection, row)
        for number, (_, sql) in enumerate(triggers):
            rows.write(connection, "trigger", f"{number:06d}", sql)
        database.commit(connection)
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "writing the run row") from error


def end_run(connection: Connection, places: Places, row: RunRow, plan: Plan | None) -> None:
    """The successor's last commit - triggers word for word, version, sealed row - and its close.

    One transaction: a successor that says "sealed" has everything. Afterwards it is one plain file
    on flash without anything beside it. Without a plan a file keeps what it says was applied.
    """
    try:
        database.begin(connection)
        triggers = rows.values(connection, "trigger")
        rows.remove(connection, "trigger")
        if plan is not None:
            applied.note_plan(connection, row, plan)
        connection.execute(f"PRAGMA user_version = {row.to_version:d}")
        row.state = "sealed"
        row.left = rows.count_quarantined(connection)
        rows.write_run(connection, row)
        for sql in triggers:  # last of all, for the same reason
            connection.execute(sql)
        database.commit(connection)
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "closing the new file") from error
    close_next(connection, places)


def close_next(connection: Connection, places: Places) -> None:
    """Make the successor one plain file on flash, out of WAL mode, with nothing beside it."""
    try:
        database.leave_wal(connection, places.next)
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "closing the new file") from error
    sync_file(places.next)


def sync_file(path: str) -> None:
    """Make a file durable and forget its pages, so that the proof reads what flash holds."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        flash.drop_cache(fd)
    except OSError as error:
        raise flash.refused(error, f"making {path} durable") from error
    finally:
        os.close(fd)


def forget_pages(path: str) -> None:
    """Make the next reads of a file that nobody writes come from flash."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flash.drop_cache(fd)
    finally:
        os.close(fd)


def check_writable(connection: Connection, stores: set[str]) -> None:
    """Refuse a schema that this SQLite cannot work on: unknown functions or collations.

    Every statement the run will make is compiled once; nothing is executed.
    """
    for store in stores:
        for sql in (
            f"EXPLAIN UPDATE {database.quoted(store)} SET value = '' WHERE key = ''",
            f"EXPLAIN INSERT INTO {database.quoted(store)} (key, value) VALUES ('', '')",
            f"EXPLAIN DELETE FROM {database.quoted(store)} WHERE key = ''",
        ):
            try:
                connection.execute(sql).fetchall()
            except SQLITE_ERRORS as error:
                raise AgentError(
                    f"{store} cannot be written with this SQLite: {error}; the application's own "
                    "functions or collations are not known here"
                ) from error
