"""Kill -9 of worker and supervisor: after every mark of progress and at seeded moments.

Whatever instant it was, pos.db is the recovered source until the rename and the complete new file
after it, and the next boot ends where an uninterrupted one ends. A migration that is deliberately
not idempotent tells a record that was done twice. `python -m tests.test_kills PLAN WATCH VICTIM
KIND AT` replays one case; that line is printed when one fails.
"""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests import killing, second_reader
from tests.terminals import COMMAND, Terminal, new_terminal

SEED = 20_260_101
HEAD = 4
TOUCHED = '''"""Not idempotent on purpose: a record that is done twice says 2."""
from agent.core.migration import each

def up(record, context):
    record["touched"] = record.get("touched", 0) + 1
    return record

VERSION, NAME = 4, "count each record once"
STEPS = [each(s, up, fields=["touched"]) for s in ("transactions", "balances", "metadata", "sync")]
'''
# A file is there that tells, or nothing: what a finished run may leave on the data partition.
LEFT_IN_DATA = {"pos.db", "pos.db.prev", "posagent"}
LEFT_IN_STATE = {"agent.db", "backups", "lock", "seal"}
NEWER_SALE = (
    "tx_9999_newer",
    '{"amount":1250,"currency":"EUR","status":"pending","timestamp":1767300000000}',
)


def touched_terminal(root: Path, **recipe: Any) -> Terminal:
    """A small terminal whose plan ends with the migration above, in several batches."""
    terminal = new_terminal(root, extra_tables=True, **recipe)
    (terminal.own_migrations() / "0004_touch_each_record.py").write_text(TOUCHED)
    stores = terminal.root / "migrations/stores.json"
    stores.write_text(stores.read_text().replace('"app_reads": [0, 3]', '"app_reads": [0, 4]'))
    terminal.configure(batch_rows_max=64)
    return terminal


def leave_sales_in_wal(terminal: Terminal) -> None:
    """What an application that lost power leaves: committed sales that only the -wal holds."""
    aside = terminal.root / "aside"
    aside.mkdir()
    writer = sqlite3.connect(terminal.pos, isolation_level=None)
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("INSERT INTO transactions VALUES (?, ?)", NEWER_SALE)
    for tail in ("", "-wal"):
        shutil.copyfile(f"{terminal.pos}{tail}", aside / f"pos.db{tail}")
    writer.close()
    for name in ("pos.db", "pos.db-wal"):
        (aside / name).replace(terminal.data / name)
    aside.rmdir()


def recovered_sha256(pos: Path) -> str:
    """The digest of what SQLite makes of a file and what lies beside it, worked out on a copy."""
    if not any(pos.with_name(pos.name + tail).exists() for tail in ("-wal", "-journal")):
        return reader.file_sha256(pos)
    with tempfile.TemporaryDirectory() as folder:
        for tail in ("", "-wal", "-journal"):
            if pos.with_name(pos.name + tail).exists():
                shutil.copyfile(f"{pos}{tail}", f"{folder}/pos.db{tail}")
        db = sqlite3.connect(f"{folder}/pos.db")
        db.execute("SELECT count(*) FROM sqlite_master").fetchall()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.close()
        return reader.file_sha256(f"{folder}/pos.db")


def history_of(terminal: Terminal) -> list[dict[str, Any]]:
    """The diary's history, read with our own SQL."""
    with reader.opened(terminal.data / "posagent/agent.db") as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM history ORDER BY seq")]


def contents(pos: Path) -> dict[str, Any]:
    """All that a run must leave the same in every attempt; its frozen time is written as NOW."""
    found = reader.read_terminal(pos)
    stamp = reader.parse(found.stores["balances"][min(found.stores["balances"])]).get("updatedAt")
    now = stamp.literal if stamp is not None else "never"
    others = reader.other_tables(pos)
    others.pop("posagent", None)
    return {
        "version": found.schema_version,
        "stores": {
            store: {
                key: value.replace(now, "NOW") if isinstance(value, str) else value
                for key, value in rows.items()
            }
            for store, rows in found.stores.items()
        },
        "others": others,
        "schema": reader.schema_of(pos),
        "unsound": reader.soundness(pos),
    }


class Plan:
    """One terminal, one command on it, and how an uninterrupted run of it ends."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.words = ["boot", "--json"]
        self.template = touched_terminal(
            folder / "template",
            journal="wal" if name == "wal" else "delete",
            layout="without-rowid" if name == "wal" else "rowid",
        )
        if name == "wal":
            leave_sales_in_wal(self.template)
        if name == "restore":
            self._prepare_restore()
        self.source = recovered_sha256(self.template.pos)
        self.before = contents(self.template.pos)
        self.history = len(history_of(self.template)) if name == "restore" else 0
        self.moments = {}
        for who in ("worker", "supervisor"):
            done = self.copy(f"whole-{who}")
            traced = self.trace(done, watch=who)
            assert traced.code == 0, traced.out
            self.moments[who] = traced.moments
        self.after = contents(done.pos)
        assert self.after["unsound"] == []

    def _prepare_restore(self) -> None:
        """A migrated terminal with a backup of that state and one sale since, to be discarded."""
        terminal = self.template
        assert terminal.boot().code == 0
        assert terminal.run("backup", "--json").code == 0
        db = sqlite3.connect(terminal.pos, isolation_level=None)
        db.execute("INSERT INTO transactions VALUES (?, ?)", NEWER_SALE)
        db.close()
        self.words = ["restore", "2", "--discard", "newer=1", "--json"]

    def copy(self, name: str) -> Terminal:
        """A fresh copy of the terminal."""
        root = self.folder / name
        shutil.copytree(self.template.root, root)
        return Terminal(root)

    def trace(self, terminal: Terminal, **given: Any) -> killing.Traced:
        command = [*COMMAND, "--root", str(terminal.root), *self.words]
        return killing.trace(command, terminal.root / "seen", keep=terminal.pos, **given)

    def case(self, watch: str, victim: str, kind: str, at: int) -> str:
        """Kill once, let it recover, judge it; what is wrong, or ""."""
        terminal = self.copy(f"{watch}-{victim}-{kind}-{at}")
        line = f"python -m tests.test_kills {self.name} {watch} {victim} {kind} {at}"
        try:
            traced = self.trace(terminal, watch=watch, victim=victim, kind=kind, at=at)
            assert traced.killed, f"it ended before, with {traced.code}"
            self._judge_death(terminal, traced)
            self._recover(terminal, traced)
            self._judge_end(terminal)
        except AssertionError as wrong:
            return f"{line}: {str(wrong)[:600]}"
        except Exception as error:
            return f"{line}: {type(error).__name__}: {error}"
        shutil.rmtree(terminal.root)
        return ""

    def _judge_death(self, terminal: Terminal, traced: killing.Traced) -> None:
        """Until the switch the recovered source, after it the complete new file."""
        seen = terminal.root / "seen/pos.db"
        self.switched = recovered_sha256(seen) != self.source
        if self.switched:
            assert contents(seen) == self.after, f"at {traced.at}: neither old nor new"

    def _recover(self, terminal: Terminal, traced: killing.Traced) -> None:
        """Boot until it ends. A restore is asked for again where the old file is still there."""
        if self.name != "restore":
            if traced.code >= 0:  # the supervisor lived on and made a second attempt
                assert traced.code == 0, f"at {traced.at}: {traced.out}"
            else:
                answer = terminal.boot()
                assert answer.code == 0, f"at {traced.at}: {answer.out}{answer.err}"
        else:
            answer = terminal.boot()
            assert answer.code == 0, f"at {traced.at}: {answer.out}{answer.err}"
            left = [p.name for p in (terminal.data / "posagent/backups").glob("*.tmp")]
            assert not left, f"at {traced.at}: {left} after the next boot"
            if reader.file_sha256(terminal.pos) == self.source:
                answer = terminal.run(*self.words)
                assert answer.code == 0, f"at {traced.at}: {answer.out}{answer.err}"
            else:
                assert "nothing was changed" not in traced.out, f"at {traced.at}: {traced.out}"
        settled = reader.file_sha256(terminal.pos)
        answer = terminal.boot()
        assert (answer.code, answer.json["verdict"]) == (0, "NOT_REQUIRED"), answer.out
        assert reader.file_sha256(terminal.pos) == settled, "a boot with nothing to do wrote"

    def _judge_end(self, terminal: Terminal) -> None:
        found = contents(terminal.pos)
        assert found["version"] == HEAD
        for what, expected in self.after.items():
            assert found[what] == expected, f"{what} differs from the uninterrupted run"
        if self.name != "restore":
            check_touched_once(terminal.pos)
            assert found["others"] == self.before["others"], "an extra table changed"
        names = {path.name for path in terminal.data.iterdir()}
        assert names <= LEFT_IN_DATA, f"left behind: {names - LEFT_IN_DATA}"
        names = {path.name for path in (terminal.data / "posagent").iterdir()}
        assert names <= LEFT_IN_STATE, f"left behind: {names - LEFT_IN_STATE}"
        backups = sorted(terminal.backups.iterdir())
        assert 1 <= len(backups) <= (3 if self.name == "restore" else 1), backups
        for path in backups:
            second_reader.read(path.read_bytes())
        rows = history_of(terminal)[self.history :]
        if self.name == "restore":  # the one that died is told too, where its supervisor lived
            died = [row for row in rows if row["state"] == "failed"]
            assert [row["kind"] for row in died] in ([], ["restore"]), died
            rows = [row for row in rows if row["state"] != "failed"]
        assert len({row["run"] for row in rows}) == 1, f"history: {rows}"
        assert {row["verdict"] for row in rows} == {"OK"}, f"history: {rows}"
        versions = [row["version"] for row in rows]
        assert versions == ([None] if self.name == "restore" else [1, 2, 3, 4]), versions

    def cases(self, cases: list[tuple[str, str, str, int]]) -> None:
        """All of them, two at a time; every failure is one line that replays it."""
        with ThreadPoolExecutor(2) as pool:
            wrong = [line for line in pool.map(lambda c: self.case(*c), cases) if line]
        assert not wrong, "\n" + "\n".join(wrong)

    def marks(self, victim: str) -> list[tuple[str, str, str, int]]:
        """A case behind every mark of progress."""
        count = sum(text.startswith("mark") for text in self.moments["worker"])
        return [("worker", victim, "mark", n) for n in range(1, count + 1)]

    def seeded(self, count: int) -> list[tuple[str, str, str, int]]:
        """Cases at random moments: half kill the worker, half the supervisor, of these again half
        in the supervisor's own calls. Page writes are many and alike, so they are half at most."""
        rng = random.Random(f"{SEED}/{self.name}")
        found: list[tuple[str, str, str, int]] = []
        for watch, victim, until in (
            ("supervisor", "supervisor", count // 4),
            ("worker", "supervisor", count // 2),
            ("worker", "worker", count),
        ):
            changes = [m for m in self.moments[watch] if not m.startswith("mark")]
            if watch == "supervisor":
                changes = changes[:-8]  # its last calls come or not as time passes
            rare = [n for n, m in enumerate(changes, 1) if not m.startswith("pwrite64")]
            pages = [n for n, m in enumerate(changes, 1) if m.startswith("pwrite64")]
            wanted = until - len(found)
            chosen = rng.sample(rare, min(wanted - min(wanted // 2, len(pages)), len(rare)))
            chosen += rng.sample(pages, min(wanted - len(chosen), len(pages)))
            found += [(watch, victim, "change", n) for n in chosen]
        return found


def check_touched_once(pos: Path) -> None:
    """Every object record says 1, no other value was touched."""
    counted = 0
    for store, rows in reader.read_terminal(pos).stores.items():
        for key, raw in rows.items():
            value = reader.parse(raw)
            if isinstance(value, dict):
                assert value["touched"] == reader.Number("1"), f"{store}/{key}: {value['touched']}"
                counted += 1
    assert counted > 300


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Each plan once for all tests of this file."""
    return {name: Plan(name, tmp_path_factory.mktemp(name)) for name in ("plain", "wal", "restore")}


@pytest.mark.parametrize("name", ["plain", "restore"])
@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_a_kill_behind_every_mark_of_progress_ends_as_if_it_had_not_been(
    plans: dict[str, Plan], name: str, victim: str
) -> None:
    marks = "".join(m for m in plans[name].moments["worker"] if m.startswith("mark"))
    states = {"checking", "backing_up", "building", "proving", "switching", "done"}
    states |= {"migrating"} if name == "plain" else set()
    assert states == set(re.findall('"state":"([a-z_]+)"', marks)), "a state without a mark"
    cases = plans[name].marks(victim)
    plans[name].cases(cases)


def test_a_kill_at_every_write_of_one_batch_does_its_records_once(plans: dict[str, Plan]) -> None:
    """Rows and cursor are one commit: between two of its page writes there is no half of it."""
    plan = plans["plain"]
    changes, at_mark = 0, []
    for text in plan.moments["worker"]:
        if text.startswith('mark {"state":"migrating","store":"transactions"'):
            at_mark.append(changes)
        changes += not text.startswith("mark")
    begin, end = at_mark[-3:-1]  # the last walk is the one with the step that counts
    assert 10 < end - begin < 60
    plan.cases([("worker", "worker", "change", n) for n in range(begin + 1, end + 1)])


SEEDED = {"plain": 80, "wal": 40, "restore": 80}
PART = 40


@pytest.mark.parametrize(
    ("name", "part"), [(name, n) for name in SEEDED for n in range(SEEDED[name] // PART)]
)
def test_a_kill_at_a_seeded_moment_ends_as_if_it_had_not_been(
    plans: dict[str, Plan], name: str, part: int
) -> None:
    cases = plans[name].seeded(SEEDED[name])
    assert len(cases) == SEEDED[name] == len(set(cases))
    plans[name].cases(cases[part * PART : (part + 1) * PART])


def test_restores_that_are_cut_again_and_again_keep_the_backup_they_restore(
    tmp_path: Path,
) -> None:
    """Each begins by backing up what is there; that must not push out what is to come back."""
    terminal = touched_terminal(tmp_path / "t")
    terminal.configure(backup_count=1)
    before = contents(terminal.pos)
    assert terminal.run("backup", "--json").code == 0
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("INSERT INTO transactions VALUES (?, ?)", NEWER_SALE)
    db.close()
    words = ["restore", "1", "--discard", "newer=1", "--json"]
    command = [*COMMAND, "--root", str(terminal.root), *words]
    for _ in range(4):
        traced = killing.trace(command, tmp_path / "cut", victim="supervisor", at="create seal.tmp")
        assert traced.killed, traced.out
        assert len(list(terminal.backups.iterdir())) == 2, "one of the present serves all attempts"
    answer = terminal.run(*words)
    assert answer.code == 0, answer.out
    assert contents(terminal.pos)["stores"] == before["stores"]


def main(words: list[str]) -> None:
    """Replay one case and keep what it leaves."""
    name, watch, victim, kind, at = words
    plan = Plan(name, Path(tempfile.mkdtemp(prefix="kills-")))
    print(plan.case(watch, victim, kind, int(at)) or "it ended well", plan.folder, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
