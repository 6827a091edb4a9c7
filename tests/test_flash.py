"""Durable files: the order of calls that makes them so, and what flash answers when it errs.

The order is read from the system calls themselves, made by a real process under strace.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.edges import flash
from agent.ground.errors import AgentError, StorageFull
from agent.ground.limits import CHUNK_BYTES
from tests import filesystems as fs
from tests.terminals import ROOT


def calls_of(code: str, log: Path, *more: str) -> list[str]:
    """The calls that change something, in order, that a process makes which runs `code`."""
    trace = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,write,mkdir,openat"
    command = ["strace", "-y", "-o", str(log), "-e", trace, "-e", "signal=none", *more]
    subprocess.run(
        [*command, sys.executable, "-I", "-S", "-B", "-c", code],
        check=False,
        capture_output=True,
        timeout=60,
    )
    found = []
    for line in log.read_text().splitlines():
        if "O_RDONLY" not in line and "ENOENT" not in line and "EEXIST" not in line:
            found.append(line)
    return found


def script(body: str, folder: Path) -> str:
    """A program that works in `folder` with the module under test."""
    return (
        f"import sys, os\nsys.path.insert(0, {str(ROOT)!r})\nfrom agent.edges import flash\n"
        f"os.chdir({str(folder)!r})\nhere = {str(folder)!r}\n{body}\n"
    )


def names_of(lines: list[str], folder: Path) -> list[str]:
    """Each call as its name and the last part of the path it is about."""
    found = []
    for line in lines:
        if str(folder) not in line:
            continue
        name = line.partition("(")[0]
        path = re.findall(rf"{re.escape(str(folder))}[^\">]*", line)[-1]
        found.append(f"{name} {path[len(str(folder)) :].lstrip('/') or '.'}")
    return found


def test_a_replaced_file_is_written_synced_renamed_and_its_folder_synced(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "seal").write_bytes(b"old")
    (folder / "seal.tmp").write_bytes(b"left by a cut, and longer than what is written now")
    code = script("flash.replace_file(here + '/seal', b'new', 0o600)", folder)
    assert names_of(calls_of(code, tmp_path / "log"), folder) == [
        "unlink seal.tmp",
        "openat seal.tmp",
        "write seal.tmp",
        "fsync seal.tmp",
        "rename seal",
        "fsync .",
    ]
    assert (folder / "seal").read_bytes() == b"new"
    assert (folder / "seal").stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder) == ["seal"]


def test_a_file_whose_fsync_failed_is_thrown_away_and_never_synced_again(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "seal").write_bytes(b"old")
    body = (
        "for _ in range(2):\n"
        "    try: flash.replace_file(here + '/seal', b'new')\n"
        "    except OSError: pass"
    )
    more = ("-e", "inject=fsync:error=EIO:when=1")
    log = names_of(calls_of(script(body, folder), tmp_path / "log", *more), folder)
    assert log[:4] == ["openat seal.tmp", "write seal.tmp", "fsync seal.tmp", "unlink seal.tmp"]
    assert log[4:6] == ["openat seal.tmp", "write seal.tmp"]  # the second is another file
    assert (folder / "seal").read_bytes() == b"new"


def test_a_published_file_costs_no_flush(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    code = script("flash.publish_file(here + '/status', b'{}')", folder)
    assert names_of(calls_of(code, tmp_path / "log"), folder) == [
        "openat status.tmp",
        "write status.tmp",
        "rename status",
    ]


def test_every_new_folder_has_its_name_made_durable(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    code = script("flash.make_folder(here + '/a/b')\nflash.make_folder(here + '/a/b')", folder)
    assert names_of(calls_of(code, tmp_path / "log"), folder) == [
        "mkdir a",
        "fsync .",
        "mkdir a/b",
        "fsync a",
    ]


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        flash.make_folder(str(tmp_path / "file"))


def test_every_byte_is_written_although_the_kernel_takes_fewer_at_a_time() -> None:
    data = os.urandom(300_000)  # more than a pipe holds, so that os.write stops short
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        flash.write_all(write_end, memoryview(data))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == data
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17])
def test_a_digest_is_of_every_byte_and_marks_each_chunk(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    marks: list[int] = []
    found = flash.digest_file(str(path), marks.append)
    assert found == (size, hashlib.sha256(data).hexdigest())
    assert marks == [*range(CHUNK_BYTES, size, CHUNK_BYTES), *([size] if size else [])]
    fd = os.open(path, os.O_RDONLY)
    assert b"".join(flash.read_chunks(fd)) == data
    os.close(fd)


def test_a_small_file_that_is_large_is_refused_and_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert flash.read_file(str(path), 5) == b"12345"
    with pytest.raises(AgentError, match="larger than 4 bytes"):
        flash.read_file(str(path), 4)
    with pytest.raises(FileNotFoundError):
        flash.read_file(str(tmp_path / "none"), 4)


def test_deleting_tells_whether_there_was_anything(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert flash.delete(str(path)) is True
    assert flash.delete(str(path)) is False


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageFull),
        (errno.EIO, StorageFull),
        (errno.EACCES, AgentError),
        (errno.ENOENT, AgentError),
    ],
)
def test_what_flash_refuses_is_a_storage_error_and_the_rest_is_named(
    number: int, kind: type[AgentError]
) -> None:
    error = flash.refused(OSError(number, os.strerror(number), "/data/x"), "making a test")
    assert type(error) is kind
    assert "making a test" in error.message


def test_free_bytes_are_those_that_a_write_really_gets(tmp_path: Path) -> None:
    with fs.ext4(tmp_path / "m", 16 * fs.MIB) as point:
        free = flash.free_bytes(str(point))
        with open(point / "more", "wb") as file, pytest.raises(OSError, match="No space"):
            os.posix_fallocate(file.fileno(), 0, free + fs.MIB)
        (point / "more").unlink()
        with open(point / "fits", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 64 * 1024)
        assert flash.free_bytes(str(point)) <= 64 * 1024
        assert flash.total_bytes(str(point)) > free


def test_the_file_system_is_the_last_one_mounted_there_whatever_its_name(tmp_path: Path) -> None:
    with fs.tmpfs(tmp_path / "with space\tand\\more", fs.MIB) as point:
        file = point / "file"
        file.touch()
        assert flash.file_system_of(str(file)) == ("tmpfs", str(point), False)
        assert flash.file_system_of(str(point)) == ("tmpfs", str(point), True)
        with fs.bound(file, ROOT / "README.md"):
            kind, at, mounted = flash.file_system_of(str(file))
            assert (at, mounted) == (str(file), True)
            assert kind != "tmpfs"
        with fs.ext4(tmp_path / "other", 16 * fs.MIB):
            assert flash.file_system_of(str(tmp_path / "other" / "x"))[0] == "ext4"
    # A name that only begins alike is another folder.
    assert flash.file_system_of(str(point) + "2")[1] != str(point)
