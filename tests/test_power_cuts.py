"""Power cuts of a real kernel: ext4 is cut off from its device in the middle of a real boot.

Killing a process loses nothing, since the page cache survives it. So the file system is shut down
(FS_IOC_SHUTDOWN) right behind a counted system call, everyone is killed, and the image is mounted
again, with a new boot id. Before the next boot pos.db is the recovered source or the complete new
file, and nothing that was told is taken back; after it all is as if there had been no cut. UBIFS
and F2FS need kernel modules of their own and are not tried here.

`python -m tests.test_power_cuts CASE` replays one case; that line is printed when one fails.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from tests import filesystems as fs
from tests import independent_reader as reader
from tests import killing, second_reader
from tests.terminals import COMMAND, ROOT, Terminal
from tests.test_kills import (
    HEAD,
    LEFT_IN_DATA,
    LEFT_IN_STATE,
    NEWER_SALE,
    check_touched_once,
    contents,
    history_of,
    leave_sales_in_wal,
    recovered_sha256,
    touched_terminal,
)

SEED = 20_260_102
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
IMAGE_BYTES = 32 * fs.MIB  # what a small run asks for, with its reserve, and not much more

# How terminals mount their data. The log every 5 s or never within a run; the rule that flushes a
# file before a rename replaces another, which hides a missing fsync, on or off; data in the log.
MOUNTS = (
    "data=ordered",
    "data=journal",
    "commit=600",
    "commit=600,noauto_da_alloc",
    "commit=600,noauto_da_alloc,data=writeback,nobarrier",
)
# What the file system's log has brought to the device: only what was synced, or all names at once.
LOGS = ("drop", "flush")
SWITCH = "rename pos.db.next pos.db"


def journal_mode(pos: Path) -> bytes:
    """The two bytes of the header that say 2 for WAL and 1 for a journal."""
    with open(pos, "rb") as file:
        return file.read(20)[18:]


class Plan:
    """One terminal as an image, one command on it, and how an uninterrupted run of it ends."""

    def __init__(self, name: str, folder: Path, agent: Path = ROOT) -> None:
        self.name = name
        self.folder = folder
        self.words = ["boot", "--json"]
        self.command = [*COMMAND[:-1], str(agent / "agent/__main__.py")]
        template = touched_terminal(
            folder / "template",
            journal="wal" if name == "wal" else "delete",
            layout="without-rowid" if name == "wal" else "rowid",
        )
        if name == "wal":
            leave_sales_in_wal(template)
        if name == "restore":
            self._prepare_restore(template)
        self.source = recovered_sha256(template.pos)
        self.others = contents(template.pos)["others"]
        self.history = len(history_of(template)) if name == "restore" else 0
        fs.Partition.make(folder / "data.img", IMAGE_BYTES, template.data)
        self.moments = {}
        for who in ("worker", "supervisor"):
            done = Terminal(folder / f"whole-{who}")
            shutil.copytree(template.root, done.root)
            command = [*self.command, "--root", str(done.root), *self.words]
            traced = killing.trace(command, done.root / "seen", watch=who, kind="change")
            assert traced.code == 0, traced.out
            self.moments[who] = traced.moments
        self.after = contents(done.pos)
        self.mode = journal_mode(done.pos)
        assert self.after["unsound"] == []
        shutil.rmtree(template.data)
        (folder / "plan").write_bytes(pickle.dumps(self))

    def _prepare_restore(self, terminal: Terminal) -> None:
        """A migrated terminal with a backup of that state and one sale since, to be discarded."""
        assert terminal.boot().code == 0
        assert terminal.run("backup", "--json").code == 0
        db = sqlite3.connect(terminal.pos, isolation_level=None)
        db.execute("INSERT INTO transactions VALUES (?, ?)", NEWER_SALE)
        db.close()
        self.words = ["restore", "2", "--discard", "newer=1", "--json"]

    def seeded(self, count: int) -> list[str]:
        """Cases with one cut, with two and with three, at moments of a seeded draw.

        Page writes are many and alike, so they are a third; each mount and each fate of the log
        comes up in turn.
        """
        rng = random.Random(f"{SEED}/{self.name}")
        return [
            self._case(rng, 3 if number % 10 == 9 else 2 if number % 3 == 2 else 1, number)
            for number in range(count)
        ]

    def _case(self, rng: random.Random, cuts: int, number: int) -> str:
        words = [self.name, MOUNTS[number % len(MOUNTS)], LOGS[number // len(MOUNTS) % 2]]
        for _ in range(cuts):
            who = "supervisor" if rng.random() < 0.15 else "worker"
            moments = self.moments[who]
            rare = [n for n, m in enumerate(moments, 1) if not m.startswith("pwrite64")]
            pages = [n for n, m in enumerate(moments, 1) if m.startswith("pwrite64")]
            at = rng.choice(pages if rng.random() < 0.33 else rare)
            words.append(f"{who}:{at}")
        return " ".join(words)


class Case:
    """One terminal that is cut at given moments. `run` answers what is wrong, or ""."""

    def __init__(self, plan: Plan, folder: Path, text: str) -> None:
        self.plan = plan
        self.text = text
        _, options, self.log, *self.cuts = text.split()
        self.terminal = Terminal(folder / "root")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(plan.folder / "template", self.terminal.root)
        image = folder / "data.img"
        subprocess.run(
            ["cp", "--sparse=always", str(plan.folder / "data.img"), str(image)], check=True
        )
        self.partition = fs.Partition(image, self.terminal.data, options)
        # What has happened to this terminal so far, for whoever reads a failure.
        self.told: list[str] = []
        self.must_be_new = False
        self.boot_ids: list[str] = []

    def run(self) -> str:
        """Cut, judge, and so on; then boot to the end and judge that."""
        self.partition.mount()
        try:
            for number, cut in enumerate(self.cuts):
                self._cut(self.plan.words if number == 0 else ["boot", "--json"], cut)
                self._judge_cut()
            self._recover()
            self._judge_end()
        except AssertionError as wrong:
            return self._failure(str(wrong)[:600])
        except Exception as error:
            return self._failure(f"{type(error).__name__}: {error}")
        finally:
            self.partition.unmount()
        return ""

    def _failure(self, text: str) -> str:
        return f"python -m tests.test_power_cuts {self.text}: after {self.told}: {text}"

    def _new_boot(self) -> None:
        """The kernel names another boot, and what lay in memory is gone."""
        self.boot_ids.append(str(uuid.UUID(int=random.Random(len(self.boot_ids)).getrandbits(128))))
        BOOT_ID.write_text(self.boot_ids[-1] + "\n")
        shutil.rmtree(self.terminal.root / "run", ignore_errors=True)

    def _cut(self, words: list[str], cut: str) -> None:
        """Run a command into a power cut; one that ends before is cut right after its end."""
        self._new_boot()
        who, _, at = cut.partition(":")
        at = at.replace("_", " ")
        kind = "any" if at.startswith("mark") else "change"
        command = [*self.plan.command, "--root", str(self.terminal.root), *words]
        traced = killing.trace(
            command,
            self.terminal.root / "seen",
            watch=who,
            kind=kind,
            at=at,
            cut=self.terminal.data,
            flush_log=self.log == "flush",
        )
        if not traced.killed:
            assert traced.code == 0, f"{words[0]} ended with {traced.code}: {traced.out}"
            killing.shut_down(self.terminal.data, self.log == "flush")
        self.told.append(f"{words[0]} cut behind {traced.at if traced.killed else 'its end'!r}")
        status = self.terminal.root / "run/posagent/status.json"
        said = [traced.out, status.read_text() if status.exists() else ""]
        if any('"verdict":"OK"' in text for text in said):
            self.must_be_new = True
        self.partition.unmount()
        self.partition.mount()

    def _judge_cut(self) -> None:
        """Before any boot: the file is one of the two, and what was told is true."""
        terminal, plan = self.terminal, self.plan
        state = terminal.data / "posagent"
        if (state / "agent.db").exists() and self._applied():
            self.must_be_new = True
        if recovered_sha256(terminal.pos) == plan.source:
            assert not self.must_be_new, "it was told to be done, and the old file is there"
        else:
            assert contents(terminal.pos) == plan.after, "neither old nor new"
            assert '"sealed"' in _run_row(terminal.pos), "the new file is not sealed"
            self.must_be_new = True  # what a boot has found, the next one finds
        for path in terminal.backups.glob("*.posbak"):
            second_reader.read(path.read_bytes())
        if (state / "seal").exists():
            json.loads((state / "seal").read_text())

    def _applied(self) -> bool:
        with reader.opened(self.terminal.data / "posagent/agent.db") as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master")]
        if "history" not in tables:
            return False  # cut while the diary was made
        return any(r["state"] == "applied" for r in history_of(self.terminal)[self.plan.history :])

    def _recover(self) -> None:
        """Boot until it ends. A restore is asked for again where the old file is still there."""
        self._command("boot", "--json")
        self._judge_left()
        if self.plan.name == "restore" and not self.must_be_new:
            assert reader.file_sha256(self.terminal.pos) == self.plan.source, "a boot changed it"
            self._command(*self.plan.words)
        settled = reader.file_sha256(self.terminal.pos)
        verdict = self._command("boot", "--json")
        assert verdict == "NOT_REQUIRED", f"there was more to do: {verdict}"
        assert reader.file_sha256(self.terminal.pos) == settled, "a boot with nothing to do wrote"

    def _command(self, *words: str) -> str:
        self._new_boot()
        command = [*self.plan.command, "--root", str(self.terminal.root), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{words[0]} ended with {done.returncode}: {done.stdout}"
        verdict: str = json.loads(done.stdout)["verdict"]
        self.told.append(f"{words[0]}: {verdict}")
        return verdict

    def _judge_left(self) -> None:
        names = {path.name for path in self.terminal.data.iterdir()} - {"lost+found"}
        assert names <= LEFT_IN_DATA, f"left behind: {names - LEFT_IN_DATA}"
        names = {path.name for path in (self.terminal.data / "posagent").iterdir()}
        assert names <= LEFT_IN_STATE, f"left behind: {names - LEFT_IN_STATE}"
        assert not list(self.terminal.backups.glob("*.tmp"))

    def _judge_end(self) -> None:
        terminal, plan = self.terminal, self.plan
        restored = plan.name == "restore"
        found = contents(terminal.pos)
        assert found["version"] == HEAD
        for what, expected in plan.after.items():
            assert found[what] == expected, f"{what} differs from the uninterrupted run"
        assert journal_mode(terminal.pos) == plan.mode, "the journal mode differs"
        if not restored:
            check_touched_once(terminal.pos)
            assert found["others"] == plan.others, "an extra table changed"
        self._judge_left()
        assert json.loads((terminal.data / "posagent/seal").read_text())["wal"] is False
        backups = sorted(terminal.backups.iterdir())
        assert 1 <= len(backups) <= (3 if restored else 1), backups
        for path in backups:
            second_reader.read(path.read_bytes())
        rows = history_of(terminal)[plan.history :]
        assert len({row["run"] for row in rows}) == 1, f"history: {rows}"
        assert {row["verdict"] for row in rows} == {"OK"}, f"history: {rows}"
        versions = [row["version"] for row in rows]
        assert versions == ([None] if restored else [1, 2, 3, 4]), versions


def _run_row(pos: Path) -> str:
    with reader.opened(pos) as db:
        return str(db.execute("SELECT * FROM posagent").fetchall()).replace("\\", "")


# --- running cases, each half in a process with mounts of its own --------------------------------


def run_cases(plans: list[Plan], cases: list[str], halves: int = 2) -> list[str]:
    """All of them, two at a time; every failure is one line that replays it."""
    folders = {plan.name: str(plan.folder) for plan in plans}
    running = []
    for half in range(halves):
        words = [sys.executable, "-m", "tests.test_power_cuts", "--cases"]
        run = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert run.stdin is not None
        json.dump([folders, f"cases-{half}", cases[half::halves]], run.stdin)
        run.stdin.close()
        running.append(run)
    wrong: list[str] = []
    for run in running:
        assert run.stdout is not None
        with run.stdout:
            text = run.stdout.read()
        assert run.wait() == 0, text
        wrong += json.loads(text)
    return wrong


def judge_cases(folders: dict[str, str], name: str, cases: list[str]) -> list[str]:
    """What is wrong with each of them, in this process, which gets mounts of its own."""
    fs.own_mounts()
    plans = {key: pickle.loads(Path(at, "plan").read_bytes()) for key, at in folders.items()}
    wrong = []
    with tempfile.NamedTemporaryFile() as file, fs.bound(BOOT_ID, Path(file.name)):
        for text in cases:
            plan = plans[text.split()[0]]
            wrong.append(Case(plan, plan.folder / name, text).run())
    return [line for line in wrong if line]


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Each plan once for all tests of this file."""
    return {name: Plan(name, tmp_path_factory.mktemp(name)) for name in ("plain", "wal", "restore")}


def check(plans: dict[str, Plan], cases: list[str]) -> None:
    """Every case ends well."""
    wrong = run_cases(list(plans.values()), cases)
    assert not wrong, "\n" + "\n".join(wrong)


SEEDED = {"plain": 30, "wal": 30, "restore": 24}


@pytest.mark.parametrize("name", list(SEEDED))
def test_a_cut_at_a_seeded_moment_ends_as_if_it_had_not_been(
    plans: dict[str, Plan], name: str
) -> None:
    """Also where the boot that repairs it is cut again, and the one after that."""
    cases = plans[name].seeded(SEEDED[name])
    assert len(set(cases)) == SEEDED[name]
    check(plans, cases)


def test_a_cut_right_behind_the_rename_leaves_one_of_the_two_files_whole(
    plans: dict[str, Plan],
) -> None:
    """Before the folder is synced nobody knows which; both are legal, nothing in between is."""
    behind = "worker:" + SWITCH.replace(" ", "_")
    cases = [
        f"{name} {options} {log} {behind}"
        for number, (options, log) in enumerate((o, log) for o in MOUNTS for log in LOGS)
        for name in (list(plans)[number % 3],)
    ]
    check(plans, cases)


def test_a_cut_behind_every_change_from_the_seal_on_ends_well(plans: dict[str, Plan]) -> None:
    """A sealed successor is taken up again, and the journal mode stays the application's: where
    that is WAL, it is given back behind the switch."""
    cases = []
    for name, last in (("plain", SWITCH), ("wal", plans["wal"].moments["worker"][-1])):
        moments = plans[name].moments["worker"]
        begin = moments.index("create seal.tmp")
        end = len(moments) - moments[::-1].index(last)
        cases += [f"{name} {MOUNTS[3]} {LOGS[at % 2]} worker:{at}" for at in range(begin, end + 1)]
    assert "unlink pos.db-journal" in moments[begin:], "the mode was not given back"
    check(plans, cases)


def test_what_was_told_is_there_after_a_cut_at_once(plans: dict[str, Plan]) -> None:
    """The command has ended with OK, and the power goes before anybody else syncs anything."""
    check(plans, [f"{name} {MOUNTS[-1]} drop worker:never" for name in plans])


def test_cuts_at_the_same_place_at_every_boot_never_give_the_plan_up(
    plans: dict[str, Plan],
) -> None:
    """A cut says nothing about the plan: the boot id tells it from a worker that died."""
    early = "worker:create_pos.db.next"
    check(plans, [f"{name} commit=600 drop {' '.join([early] * 5)}" for name in ("plain", "wal")])


# Each takes away what makes one thing durable: (file, words, words instead) per change. To ask for
# a cache to be dropped makes the kernel begin to write, which may hide that nobody waits for it.
NO_WRITING = ("edges/flash.py", "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)", "pass")
PLANTED = {
    "the new file": (
        ("edges/database.py", '"synchronous=NORMAL"', '"synchronous=OFF"'),
        ("edges/database.py", '"PRAGMA synchronous=FULL"', '"PRAGMA synchronous=OFF"'),
        ("verbs/build.py", "os.fsync(fd)", "pass"),
        NO_WRITING,
    ),
    "the seal": (
        ("edges/flash.py", "        os.fsync(fd)\n    except B", "        pass\n    except B"),
    ),
    "the backup": (("verbs/backup.py", "os.fsync(fd)", "pass"), NO_WRITING),
    "the folder": (
        ("edges/flash.py", "        os.fsync(fd)\n    finally", "        pass\n    finally"),
        ("edges/state.py", '"PRAGMA synchronous=FULL"', '"PRAGMA synchronous=OFF"'),
    ),
}
SEEN_AT = {
    "the new file": ("flush", "worker:" + SWITCH.replace(" ", "_")),
    "the seal": ("flush", "worker:rename_seal.tmp_seal"),
    "the backup": ("flush", "worker:rename_000001-v0.posbak.tmp_000001-v0.posbak"),
    "the folder": ("drop", "worker:never"),
}


@pytest.mark.parametrize("what", list(PLANTED))
def test_an_agent_that_forgets_a_sync_is_found_out(tmp_path: Path, what: str) -> None:
    """Otherwise the tests above could be blind. The diary's syncs bring ext4's whole log along, so
    a forgotten folder shows only in an agent that forgets the diary as well."""
    agent = tmp_path / "faulty"
    shutil.copytree(ROOT / "agent", agent / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    (agent / "device_profiles").symlink_to(ROOT / "device_profiles")
    for name, words, instead in PLANTED[what]:
        path = agent / "agent" / name
        assert words in path.read_text(), f"{name} does not say {words}"
        path.write_text(path.read_text().replace(words, instead))
    plan = Plan("plain", tmp_path, agent)
    log, cut = SEEN_AT[what]
    wrong = run_cases([plan], [f"plain {MOUNTS[3]} {log} {cut}"], halves=1)
    assert len(wrong) == 1, f"a forgotten sync of {what} was not seen"


def main(words: list[str]) -> None:
    """Replay one case and keep what it leaves."""
    if words == ["--cases"]:
        print(json.dumps(judge_cases(*json.load(sys.stdin))))
        return
    plan = Plan(words[0], Path(tempfile.mkdtemp(prefix="cuts-")))
    wrong = judge_cases({plan.name: str(plan.folder)}, "case", [" ".join(words)])
    print(*(wrong or ["it ended well"]), plan.folder, sep="\n")


if __name__ == "__main__":
    from tests.test_power_cuts import main as run_main  # a Plan in a file is this module's

    run_main(sys.argv[1:])
