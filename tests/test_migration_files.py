"""The migrations folder: what is refused in it, each as data, and what its files are known by.

Nothing here is repaired or skipped: a terminal with half a set of migrations must not start one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.edges.migration_files import MigrationFiles, migration_names
from agent.ground.errors import MigrationsRejected

SHIPPED = Path(__file__).resolve().parent.parent / "migrations"
FIRST, SECOND, THIRD = (
    "0001_initialize_schema.py",
    "0002_add_transaction_metadata.py",
    "0003_migrate_user_preferences.py",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped migrations."""
    copy = tmp_path / "migrations"
    shutil.copytree(SHIPPED, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def write(name: str, text: str | bytes) -> Callable[[Path], object]:
    """A fault: a file with this text."""
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data)


def body(version: object = 4, name: object = "x", steps: str = "[]", more: str = "") -> str:
    return f"VERSION, NAME, STEPS = {version!r}, {name!r}, {steps}\n{more}\n"


USES = "from agent.core.migration import *\n"
FOURTH = "0004_x.py"


def fourth(steps: str) -> Callable[[Path], object]:
    """A fault: a fourth file with these steps."""
    return write(FOURTH, USES + body(steps=steps))


FAULTS = [
    ("no folder", shutil.rmtree, "cannot be read"),
    ("folder is a file", lambda f: (shutil.rmtree(f), f.write_text("")), "cannot be read"),
    ("gap", lambda f: (f / SECOND).unlink(), "version 2 is missing"),
    ("first missing", lambda f: (f / FIRST).unlink(), "version 1 is missing"),
    ("duplicate", write("0002_other.py", body(2)), "version 2 stands twice"),
    ("gap at the end", write("0005_x.py", body(5)), "version 4 is missing"),
    ("version 0", write("0000_x.py", body(0)), "version 0 stands twice"),
    ("capitals", write("0004_Add.py", body()), "0004_Add.py is no name"),
    ("dash", write("0004-add.py", body()), "is no name"),
    ("three digits", write("004_add.py", body()), "is no name"),
    ("no words", write("0004_.py", body()), "is no name"),
    ("helper file", write("helpers.py", ""), "helpers.py is no name"),
    ("other digits", write("٠٠٠٤_x.py", body()), "is no name"),
    ("folder named like a file", lambda f: (f / FOURTH).mkdir(), "0004_x.py cannot be read"),
    ("dangling link", lambda f: (f / FOURTH).symlink_to("nowhere"), "0004_x.py cannot be read"),
    ("too large", write(FOURTH, b"#" * (1 << 20) + b"\n" + body().encode()), "larger than"),
    ("syntax error", write(FOURTH, "VERSION = 4\nNAME = 'x\n"), "0004_x.py, line 2: "),
    ("no UTF-8", write(FOURTH, b"VERSION = 4\nNAME = '\xff'\n"), "0004_x.py"),
    ("NUL", write(FOURTH, b"VERSION = 4\0"), "0004_x.py"),
    ("import of nothing", write(FOURTH, "import nowhere_at_all\n"), "No module named"),
    ("raises", write(FOURTH, "VERSION = 4\n1 / 0\n"), "ZeroDivisionError"),
    ("ends the process", write(FOURTH, "raise SystemExit(0)\n"), "SystemExit"),
    ("empty", write(FOURTH, ""), "sets no VERSION"),
    ("wrong version", write(FOURTH, body(3)), "VERSION is 3 but the file's number is 4"),
    ("version as text", write(FOURTH, body("4")), "VERSION is '4'"),
    ("version true", write(FOURTH, body(True)), "VERSION is True"),
    ("no name", write(FOURTH, "VERSION, STEPS = 4, []\n"), "NAME must be"),
    ("empty name", write(FOURTH, body(name="")), "NAME must be"),
    ("no steps", write(FOURTH, "VERSION, NAME = 4, 'x'\n"), "STEPS must be"),
    ("steps of text", write(FOURTH, body(steps="['set']")), "STEPS must be"),
    ("one step, no list", fourth("set_field('sync', 'a', 1)"), "STEPS must"),
    ("no path", fourth("[set_field('sync', '', 1)]"), "no path to a field"),
    ("no store", fourth("[set_field('sale', 'a', 1)]"), "sale is not a store"),
    ("no argument", fourth("[set_field('sync')]"), "TypeError"),
    ("CONSERVE", write(FOURTH, body(more="CONSERVE = ['a']")), "CONSERVE is not known"),
    ("MIN_READER", write(FOURTH, body(more="MIN_READER = 'new'")), "MIN_READER"),
    ("no stores.json", lambda f: (f / "stores.json").unlink(), "stores.json cannot be read"),
    ("stores.json empty", write("stores.json", ""), "stores.json cannot be read"),
    ("stores.json a list", write("stores.json", "[]"), "must be an object"),
    ("stores.json no UTF-8", write("stores.json", b"\xff"), "stores.json cannot be read"),
    ("stores.json twice a key", write("stores.json", '{"format":1,"format":1}'), "twice"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "word"), [row[1:] for row in FAULTS], ids=[r[0] for r in FAULTS])
def test_a_folder_with_a_fault_is_refused_with_the_file_and_the_reason(
    folder: Path, fault: Callable[[Path], object], word: str
) -> None:
    fault(folder)
    with pytest.raises(MigrationsRejected) as caught:
        MigrationFiles(str(folder)).load(0)
    assert word in caught.value.message, caught.value.message


def test_what_may_lie_beside_the_files_is_none_of_our_business(folder: Path) -> None:
    for name in ("README.md", ".0004_x.py.swp", ".hidden.py", "__init__.py", "0004_x.py~"):
        (folder / name).write_text("")
    (folder / "__pycache__").mkdir()
    assert migration_names(str(folder)) == [FIRST, SECOND, THIRD]
    assert MigrationFiles(str(folder)).head == 3


def test_only_pending_files_are_executed(folder: Path) -> None:
    (folder / FIRST).write_text("raise SystemExit('an applied file must not run again')")
    plan = MigrationFiles(str(folder)).load(1)
    assert [m.version for m in plan.migrations] == [2, 3]


def test_a_version_that_no_file_leads_to_is_refused(folder: Path) -> None:
    with pytest.raises(MigrationsRejected, match="schema -1"):
        MigrationFiles(str(folder)).load(-1)


CHANGES = [
    ("a value", lambda data: data.replace(b"VERSION = 2", b"VERSION = 2 "), True),
    ("a comment", lambda data: data + b"# why\n", True),
    (
        "blanks within a text",
        lambda data: data.replace(b"untouched and", b"untouched and \n"),
        True,
    ),
    ("line ends of a checkout", lambda data: data.replace(b"\n", b"\r\n"), False),
    ("empty lines at the end", lambda data: data + b"\n\n", False),
    ("nothing", lambda data: data, False),
]


@pytest.mark.parametrize(
    ("change", "another"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_a_plan_is_known_by_what_python_sees_of_its_files(
    folder: Path, change: Callable[[bytes], bytes], another: bool
) -> None:
    before = MigrationFiles(str(folder))
    (folder / SECOND).write_bytes(change((folder / SECOND).read_bytes()))
    after = MigrationFiles(str(folder))
    assert (before.checksums[1] != after.checksums[1]) is another
    assert (before.digest(0) != after.digest(0)) is another
    # A file that is applied already is no part of what is pending.
    assert before.digest(2) == after.digest(2)


def test_a_change_of_stores_json_is_another_plan(folder: Path) -> None:
    before = MigrationFiles(str(folder)).digest(1)
    text = (folder / "stores.json").read_text()
    (folder / "stores.json").write_text(text.replace('"pending", "processing"', '"pending"'))
    assert MigrationFiles(str(folder)).digest(1) != before


def test_a_folder_that_may_not_be_read_is_refused_in_words(folder: Path) -> None:
    """The reason is a name without a file behind it, which no user may read, root included."""
    os.symlink(folder / "loop", folder / "loop")
    with pytest.raises(MigrationsRejected, match="cannot be read"):
        MigrationFiles(str(folder / "loop"))


def test_the_shipped_migrations_are_one_plan(folder: Path) -> None:
    files = MigrationFiles(str(folder))
    plan = files.load(0)
    assert (plan.from_version, plan.to_version, files.head) == (0, 3, 3)
    assert plan.digest == files.digest(0)
    assert [m.checksum for m in plan.migrations] == files.checksums
