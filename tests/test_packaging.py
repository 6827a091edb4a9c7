"""Builds the wheel and upgrades a sample terminal with an installed copy of it, as a terminal does.

The copy runs without site-packages (-S): a device has no ujson wheel, and the checkout that pip
installed as editable must not answer in the copy's place.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What the wheel may put beside other people's packages.
TOP_LEVEL = {"agent", "posctl"}

# Data that the code reads by name at run time; a wheel without it installs and then fails on site.
DATA_FILES = [
    "agent/_data/migrations/0001_initialize_schema.py",
    "agent/_data/migrations/0002_add_transaction_metadata.py",
    "agent/_data/migrations/0003_migrate_user_preferences.py",
    "agent/_data/migrations/stores.json",
]
SCHEMA_VERSION = 3  # the newest shipped migration

# The import name of a distribution, where the two differ.
IMPORT_NAMES = {"pyserial": "serial", "pytest-timeout": "pytest_timeout"}
OURS = {"agent", "tools", "tests", "migrations", "posctl"}
OF_SOME_PYTHONS = {"_sha256", "_sha2", "tomllib"}  # the standard library's, in some versions only


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end without an input; returns what it printed and its exit status."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout with the tools of the virtual environment, offline."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("posagent-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--target", str(folder), str(wheel)),
    )
    assert pip.returncode == 0, pip.stdout + pip.stderr
    return folder


@pytest.fixture
def terminal(tmp_path: Path) -> Path:
    """A sample terminal at schema 0 with 500 records."""
    folder = tmp_path / "terminal"
    made = run(
        *(sys.executable, "-m", "tools.termsim", "new", str(folder), "--profile", "generic"),
        *("--records", "500", "--unsettled", "12", "--seed", "1"),
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def user_version(terminal: Path) -> int:
    """Returns the schema version of a terminal's database, read with our own SQL."""
    with closing(sqlite3.connect(terminal / "data" / "pos.db")) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def test_the_wheel_holds_no_other_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} <= TOP_LEVEL
    assert "agent" in names


def test_the_wheel_holds_the_migrations_and_every_device_profile(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    profiles = {
        f"agent/_data/device_profiles/{path.name}"
        for path in (ROOT / "device_profiles").glob("*.json")
    }
    assert "agent/_data/device_profiles/generic.json" in profiles
    assert sorted({*DATA_FILES, *profiles} - names) == []


def test_the_wheel_holds_no_tests_and_no_compiled_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".pyc") or name.startswith("tests/")] == []


def test_an_installed_copy_upgrades_a_sample_terminal(installed: Path, terminal: Path) -> None:
    assert user_version(terminal) == 0
    booted = run(
        *(sys.executable, "-S", "-B", "-m", "agent", "--root", str(terminal), "boot", "--json"),
        cwd=terminal,
        PYTHONPATH=str(installed),
    )
    assert booted.returncode == 0, booted.stdout + booted.stderr
    assert json.loads(booted.stdout)["verdict"] == "OK"
    assert user_version(terminal) == SCHEMA_VERSION


def test_the_boot_path_runs_by_file_name_without_site_or_environment(
    installed: Path, terminal: Path
) -> None:
    # The unit and the init script start it like this: site alone can cost more than the agent.
    start = (sys.executable, "-I", "-S", "-B", str(installed / "agent" / "__main__.py"))
    first = run(*start, "--root", str(terminal), "boot", "--json", cwd=terminal)
    assert first.returncode == 0, first.stdout + first.stderr
    assert user_version(terminal) == SCHEMA_VERSION
    again = run(*start, "--root", str(terminal), "boot", "--json", cwd=terminal)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout)["verdict"] == "NOT_REQUIRED"


def test_the_posagent_command_of_the_wheel_starts_what_it_names(installed: Path) -> None:
    (entry_points,) = installed.glob("posagent-*.dist-info/entry_points.txt")
    assert "posagent = agent.__main__:console" in entry_points.read_text("utf-8")
    program = "import sys; from agent.__main__ import console; sys.exit(console())"
    ran = run(
        *(sys.executable, "-S", "-B", "-c", program, "--help"),
        cwd=installed,
        PYTHONPATH=str(installed),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "boot" in ran.stdout


def declared_in(wheel: Path) -> set[str]:
    """Returns the import names of what the wheel's metadata requires, extras included."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    required = [
        re.split(r"[^A-Za-z0-9._-]", line.split(": ", 1)[1])[0]
        for line in archive.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    return {IMPORT_NAMES.get(name, name) for name in required}


def imported_by(path: Path) -> set[str]:
    """Returns the top-level names that a file imports, those in functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def comes_from_elsewhere(name: str) -> bool:
    """Tells a package from PyPI, or one that is not there, from the standard library's."""
    if name in OURS or name in OF_SOME_PYTHONS:
        return False
    spec = importlib.util.find_spec(name)
    return spec is None or "site-packages" in str(spec.origin)


def test_every_package_that_is_imported_is_declared(wheel: Path) -> None:
    # What is imported and not declared works on its author's machine only.
    imported = {
        name
        for folder in ("agent", "tools", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for name in imported_by(path)
    }
    needed = {name for name in imported if comes_from_elsewhere(name)}
    assert sorted(needed - declared_in(wheel)) == []


def test_set_up_names_the_debian_packages_where_it_may_not_install_them(tmp_path: Path) -> None:
    # A path without apt-get and sudo; of the programs that tests need, only those of sbin are left.
    for name in ("id", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    ran = run(
        *("/bin/sh", str(ROOT / "tools" / "setup.sh"), "tests"),
        PATH=str(tmp_path),
        PYTHON=sys.executable,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    (sentence,) = ran.stderr.splitlines()
    assert "apt-get install" in sentence
    assert {"strace", "procps", "socat", "util-linux"} <= set(sentence.split())


def test_set_up_refuses_an_interpreter_that_is_not_there() -> None:
    ran = run("/bin/sh", str(ROOT / "tools" / "setup.sh"), "venv", PYTHON="/no/such/python3")
    assert ran.returncode == 1
    assert ran.stderr.startswith("setup: /no/such/python3 is missing or older than Python 3.9")
