"""The diary: what was written is there after a power cut, and whatever lies in its place is no
reason to stop.

Real files and real SQLite; another connection judges what is on flash.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.edges.state import Diary
from agent.ground.errors import AgentError, StorageFull
from agent.ground.limits import HISTORY_ROWS_MAX
from tests import filesystems as fs


def row(run: str, **more: Any) -> dict[str, Any]:
    """A history row as the supervisor writes it."""
    return {
        "run": run,
        "kind": "migrate",
        "state": "applied",
        "verdict": "OK",
        "at_ms": 7,
        "clock_trusted": 0,
        "boot_id": "b",
        "facts": {"money": [1, 2]},
        **more,
    }


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    """A diary that is not there yet, in a folder that is not there yet."""
    return Diary(str(tmp_path / "state" / "agent.db"))


def test_reading_makes_no_file(diary: Diary) -> None:
    assert diary.history() == []
    assert diary.runs() == set()
    assert diary.given_up() == {}
    assert diary.attempts("p", "b") == []
    assert diary.last_message("p") == "it said nothing"
    assert not os.path.exists(os.path.dirname(diary.path))


def test_what_was_written_is_on_flash_when_the_call_returns(diary: Diary) -> None:
    diary.write_history([row("r1", version=1, name="one"), row("r1", version=2, name="two")])
    diary.give_up("plan", "why")
    # Another process reads it while this one still holds its connection.
    other = sqlite3.connect(diary.path)
    assert other.execute("SELECT run, version FROM history").fetchall() == [("r1", 1), ("r1", 2)]
    assert other.execute("SELECT plan, why FROM given_up").fetchall() == [("plan", "why")]
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    found = diary.history()
    assert [entry["name"] for entry in found] == ["one", "two"]
    assert found[0]["facts"] == {"money": [1, 2]}
    assert found[0]["clock_trusted"] is False
    assert [entry["name"] for entry in diary.history(1)] == ["two"]


def test_rows_of_one_call_are_there_all_or_not_at_all(diary: Diary) -> None:
    with pytest.raises(AgentError):
        diary.write_history([row("r1"), row("r2", verdict=None)])
    assert diary.history() == []
    diary.write_history([row("r3")])
    assert diary.runs() == {"r3"}


def test_only_a_run_that_was_applied_is_known(diary: Diary) -> None:
    diary.write_history([row("failed", state="failed"), row("applied")])
    assert diary.runs() == {"applied"}
    assert diary.knows_run("applied")
    assert not diary.knows_run("failed")  # its switch may have been cut right after the rename


def test_history_and_attempts_are_bounded_and_keep_the_newest(diary: Diary) -> None:
    diary.write_history([row(f"r{n}") for n in range(HISTORY_ROWS_MAX + 20)])
    found = diary.history()
    assert len(found) == HISTORY_ROWS_MAX
    assert found[-1]["run"] == f"r{HISTORY_ROWS_MAX + 19}"
    db = sqlite3.connect(diary.path)
    db.executemany("INSERT INTO attempts (plan, boot_id) VALUES ('p', ?)", [("b",)] * 600)
    db.commit()
    db.close()
    diary.begin_attempt("p", "b")
    assert len(diary.attempts("p", "b")) == HISTORY_ROWS_MAX


def test_attempts_say_how_each_ended_and_begin_anew_after_a_good_end(diary: Diary) -> None:
    first = diary.begin_attempt("p", "boot 1")
    diary.begin_attempt("q", "boot 1")
    assert diary.attempts("p", "boot 1") == [("boot 1", 0, "died")]
    assert diary.attempts("p", "boot 2") == [("boot 1", 0, "cut")]  # another boot: power went
    diary.end_attempt(first, 40, "failed", "because")
    diary.end_attempt(diary.begin_attempt("p", "boot 2"), 41, "refused", "no space")
    assert diary.attempts("p", "boot 2") == [("boot 1", 40, "failed")]
    assert diary.last_message("p") == "no space"
    diary.begin_attempt("p", "boot 2")
    diary.came_as_far_as("p", 99)
    diary.came_as_far_as("p", 50)  # a place never goes back
    assert diary.attempts("p", "boot 3")[-1] == ("boot 2", 99, "cut")
    diary.end_attempt(diary.begin_attempt("p", "boot 3"), 100, "done")
    assert diary.attempts("p", "boot 3") == []


def test_a_plan_that_was_given_up_gets_a_new_count_when_somebody_asks(diary: Diary) -> None:
    diary.begin_attempt("p", "b")
    diary.give_up("p", "first")
    diary.give_up("p", "second")
    assert diary.given_up() == {"p": "second"}
    diary.forgive("p")
    assert diary.given_up() == {}
    assert diary.attempts("p", "b") == []


def noise(path: Path) -> None:
    """No database at all."""
    path.write_bytes(random.Random(5).randbytes(20_000))


def noise_behind_the_header(path: Path) -> None:
    """A database whose pages are gone."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + random.Random(5).randbytes(len(data) - 4096))


def not_utf8(path: Path) -> None:
    """A text that is none, as a flipped bit makes it; SQLite's own check does not see it."""
    db = sqlite3.connect(path)
    db.execute("UPDATE history SET message = CAST(x'ff' AS TEXT)")
    db.execute("UPDATE history SET run = CAST(x'ff' AS TEXT)")
    db.commit()
    db.close()


def as_folder(path: Path) -> None:
    """A folder that is not empty."""
    path.unlink()
    (path / "inside").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [noise, noise_behind_the_header, not_utf8, as_folder])
def test_what_is_no_diary_is_set_aside_whoever_asks_first(
    diary: Diary, spoil: Callable[[Path], None]
) -> None:
    path = Path(diary.path)
    for _ in range(3):  # also where one was set aside before
        diary.write_history([row(f"r{n}") for n in range(100)])
        diary.close()
        spoil(path)
        reading = Diary(diary.path)
        assert reading.runs() == set()
        assert reading.set_aside == "damaged"
        reading.close()
        diary.write_history([row("new")])
        assert diary.runs() == {"new"}


def test_a_damage_that_shows_when_writing_is_set_aside_too(diary: Diary) -> None:
    diary.write_history([row(f"r{n}") for n in range(100)])
    diary.close()
    noise(Path(diary.path))
    diary.write_history([row("new")])
    assert diary.set_aside == "damaged"
    assert diary.runs() == {"new"}


def test_a_newer_diary_is_kept_for_the_newer_software(diary: Diary) -> None:
    diary.write_history([row("old")])
    diary.close()
    db = sqlite3.connect(diary.path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    assert diary.runs() == set()
    assert diary.set_aside == "newer"
    kept = sqlite3.connect(diary.path + ".newer")
    assert kept.execute("SELECT run FROM history").fetchall() == [("old",)]
    kept.close()


def test_a_diary_that_flash_refuses_is_an_error_and_is_not_set_aside(tmp_path: Path) -> None:
    with fs.tmpfs(tmp_path / "flash", 1 << 20) as flash:
        diary = Diary(str(flash / "agent.db"))
        diary.write_history([row("kept")])
        fs.fill(flash / "filler", 0)
        with pytest.raises(StorageFull):
            diary.write_history([row(f"r{n}", message="x" * 3000) for n in range(50)])
        diary.close()
        fs.remount(flash, "ro")
        with pytest.raises(StorageFull):
            diary.write_history([row("refused")])
        fs.remount(flash, "rw")
        (flash / "filler").unlink()
        assert diary.runs() == {"kept"}
        assert diary.set_aside == ""
        diary.close()


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    diary = Diary(str(tmp_path / "file" / "agent.db"))
    with pytest.raises(AgentError):
        diary.write_history([row("r")])
