"""Older software meets newer data: it works, or it refuses; it never misreads.

The older software is the same agent with fewer migrations and the older application's stores.json,
as it is after a firmware slot was rolled back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.terminals import Terminal, new_terminal


def newer(tmp_path: Path, lines: str = "", **recipe: Any) -> Terminal:
    """A terminal whose data a newer software has brought to schema 4, under older software."""
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10, **recipe)
    folder = terminal.own_migrations()
    new_file = folder / "0004_adds_a_field.py"
    new_file.write_text(
        "from agent.core.migration import set_field\n"
        f"VERSION, NAME = 4, 'adds a field'\n{lines}\n"
        "STEPS = [set_field('sync', 'tries', 0)]\n"
    )
    _app_reads(terminal, [0, 4])
    assert terminal.boot().code == 0
    new_file.unlink()
    _app_reads(terminal, [0, 3])
    return terminal


def _app_reads(terminal: Terminal, bounds: list[int]) -> None:
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    document["app_reads"] = bounds
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("min_reader", [0, 3])
def test_newer_data_that_names_an_older_reader_lets_the_older_application_start(
    tmp_path: Path, min_reader: int, journal: str
) -> None:
    terminal = newer(tmp_path, f"MIN_READER = {min_reader}", journal=journal)
    before = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 8
    assert answer.json["error"]["code"] == "SCHEMA_TOO_NEW"
    assert answer.json["app_may_start"] is True
    assert terminal.sha256() == before
    told = terminal.run("status", "--json").json
    assert told["app_may_start"] is True
    assert told["doing"]["too_new"] is True


@pytest.mark.parametrize("lines", ["", "MIN_READER = 4"])
def test_newer_data_without_an_older_reader_keeps_the_older_application_out(
    tmp_path: Path, lines: str
) -> None:
    terminal = newer(tmp_path, lines)
    before = terminal.sha256()
    answer = terminal.boot()
    assert answer.code == 12
    assert (
        "schema 4 and the application reads 0 to 3" in (answer.json["app_must_not_start_because"])
    )
    assert terminal.sha256() == before
    assert terminal.run("status", "--json").json["app_may_start"] is False


def test_the_strictest_of_the_applied_migrations_decides_who_reads(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    folder = terminal.own_migrations()
    for version, reader in ((4, 4), (5, 0)):
        (folder / f"{version:04d}_x.py").write_text(
            f"VERSION, NAME, MIN_READER, STEPS = {version}, 'x', {reader}, []\n"
        )
    _app_reads(terminal, [0, 5])
    assert terminal.boot().code == 0
    for path in folder.glob("000[45]_x.py"):
        path.unlink()
    _app_reads(terminal, [0, 3])
    assert terminal.boot().code == 12
    # Once the stricter one is taken back, by the software that has it, the other decides.
    (folder / "0004_x.py").write_text("VERSION, NAME, MIN_READER, STEPS = 4, 'x', 0, []\n")


@pytest.mark.parametrize("verb", ["migrate", "rollback --to 1", "prune", "backup", "plan"])
def test_whatever_is_asked_for_on_newer_data_changes_no_record(tmp_path: Path, verb: str) -> None:
    terminal = newer(tmp_path)
    before = terminal.sha256()
    answer = terminal.run(*verb.split(), "--json")
    assert answer.code == (0 if verb == "backup" else 8), answer.out
    assert terminal.sha256() == before


@pytest.mark.parametrize("value", ["-1", "5", "True", "'3'", "2.0"])
def test_a_reader_that_is_no_version_of_the_file_or_before_is_refused(
    tmp_path: Path, value: str
) -> None:
    terminal = new_terminal(tmp_path / "t", records=60, unsettled=10)
    (terminal.own_migrations() / "0004_x.py").write_text(
        f"VERSION, NAME, STEPS = 4, 'x', []\nMIN_READER = {value}\n"
    )
    answer = terminal.run("check", "--json")
    assert answer.code == 11
    assert "MIN_READER must be a schema version from 0 to 4" in answer.out
