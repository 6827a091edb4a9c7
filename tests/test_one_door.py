"""The successor and the switch, rule by rule: each measured loss as a test that brings it back.

Every test plays out what went wrong when its rule was missing, with the real command, real SQLite
clients and real mounts. It needs root, `unshare`, `setpriv` and `strace`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import sqlite3
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import independent_reader as reader
from tests.client import NAME, Client
from tests.terminals import COMMAND, Answer, Gate, Terminal, new_terminal, start_at_gate

MODES = ("delete", "wal")
OUTBOX = "SELECT count(*) FROM outbox"
TRIGGERS = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"


def a_terminal(tmp_path: Path, **recipe: Any) -> Terminal:
    """A small one that does not wait long for an application."""
    recipe.setdefault("records", 60)
    recipe.setdefault("unsettled", 8)
    terminal = new_terminal(tmp_path / "t", **recipe)
    terminal.configure(busy_wait_ms=200)
    return terminal


def sell(terminal: Terminal, key: str) -> None:
    """One acknowledged sale by the application, which then closes the file."""
    with Client(terminal.pos) as client:
        client.ask("open 5")
        assert client.ask(f"sale {key}") == "ok"
        client.ask("close")


def ask(path: Path, query: str) -> list[Any]:
    """Rows from a file that nobody uses, read from a copy of it."""
    with reader.opened(path) as db:
        return db.execute(query).fetchall()


def tree(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Every file and folder: digest, inode and time of last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        plain = path.is_file() and not path.is_symlink()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if plain else ""
        found[str(path)] = (digest, status.st_ino, status.st_mtime_ns)
    return found


def data_of(terminal: Terminal) -> dict[str, tuple[str, int, int]]:
    """The part of the tree that holds money: pos.db and what lies beside it, and the backups."""
    money = (str(terminal.pos), str(terminal.backups) + "/")
    return {path: what for path, what in tree(terminal.data).items() if path.startswith(money)}


def interrupt_at(gate: Gate, run: subprocess.Popen[str]) -> None:
    """Kill the run at the gate and return when its worker has ended as well."""
    gate.wait(run)
    run.kill()
    run.communicate()
    gate.wait_for_death()


def assert_upgraded(terminal: Terminal, answer: Answer, before: reader.Terminal) -> None:
    """The run did it, and the judge from outside agrees about every record."""
    assert answer.code == 0, answer.out + answer.err
    assert answer.json["verdict"] == "OK"
    assert answer.json["app_may_start"] is True
    after = terminal.read()
    reader.expect_migrated(before.stores, after.stores, terminal.device_id)
    assert reader.soundness(terminal.pos) == []
    assert ".next" not in "".join(terminal.listing())


def seal_of(terminal: Terminal) -> dict[str, Any]:
    """What is known of the new file from outside it."""
    found: dict[str, Any] = json.loads((terminal.data / "posagent/seal").read_text())
    return found


# Recovery comes before the first read


def test_sales_that_are_only_in_the_wal_are_in_the_new_file(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path, journal="wal")
    client = Client(terminal.pos)
    client.ask("open 0")
    assert client.ask("sale tx_only_in_wal") == "ok"
    client.send("die")
    client.end()
    assert os.path.getsize(f"{terminal.pos}-wal") > 0
    before = terminal.read()
    assert "tx_only_in_wal" in before.stores["transactions"]
    assert_upgraded(terminal, terminal.boot(), before)


def test_rows_torn_by_a_cut_are_rolled_back_before_anything_reads_them(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path, records=600)
    whole = terminal.read()
    client = Client(terminal.pos)
    client.ask("open 0")
    client.ask("sql PRAGMA cache_size = 2")  # so that changed pages and their journal are written
    assert client.ask("sql BEGIN IMMEDIATE") == "ok"
    torn = "UPDATE transactions SET value = replace(value, '\"currency\"', '\"currencx\"')"
    assert client.ask(f"sql {torn}") == "ok"
    client.send("die")
    client.end()
    journal = Path(f"{terminal.pos}-journal").read_bytes()
    assert journal[:8].strip(b"\0"), "the journal is hot"
    assert b'"currencx"' in terminal.pos.read_bytes(), "torn rows lie in the file"
    assert_upgraded(terminal, terminal.boot(), whole)
    assert not os.path.exists(f"{terminal.pos}-journal")


def test_a_source_is_known_by_all_its_bytes_since_its_header_may_not_change(
    tmp_path: Path,
) -> None:
    terminal = a_terminal(tmp_path, journal="wal")
    gate = Gate(terminal)
    old = terminal.pos.read_bytes()
    interrupt_at(gate, terminal.start("migrate", "--json"))
    with Client(terminal.pos) as client:
        client.ask("open 0")
        key = ask(terminal.pos, "SELECT min(key) FROM transactions WHERE key LIKE 'tx_%'")[0][0]
        change = "replace(value, '\"timestamp\"', '\"timestamq\"')"
        assert client.ask(f"sql UPDATE transactions SET value = {change} WHERE key = '{key}'")
        client.ask("close")
    new = terminal.pos.read_bytes()
    assert old[:100] == new[:100]
    assert len(old) == len(new)
    assert old != new, "the sale was changed, and neither header nor size tell"
    before = terminal.read()
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    value = terminal.read().stores["transactions"][key]
    assert "timestamq" in str(value)
    assert "timestamq" in str(before.stores["transactions"][key])


# The successor


def test_what_an_earlier_successor_left_beside_its_name_does_not_reach_the_next_one(
    tmp_path: Path,
) -> None:
    terminal = a_terminal(tmp_path)
    gate = Gate(terminal)
    interrupt_at(gate, terminal.start("migrate", "--json"))
    wal = Path(f"{terminal.pos}.next-wal")
    assert wal.stat().st_size > 0
    Path(f"{terminal.pos}.next").unlink()
    # Other data: frames of the old successor's pages would now be the wrong ones.
    sell(terminal, "tx_since")
    before = terminal.read()
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    assert reader.soundness(terminal.pos) == []
    assert set(terminal.read().stores["transactions"]) == set(before.stores["transactions"])
    assert ".next" not in "".join(terminal.listing())


def test_a_copy_that_the_cut_left_empty_beside_a_whole_wal_is_begun_anew(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    gate = Gate(terminal)
    interrupt_at(gate, terminal.start("migrate", "--json"))
    assert os.path.getsize(f"{terminal.pos}.next-wal") > 0
    os.truncate(f"{terminal.pos}.next", 0)
    before = terminal.read()
    calls = traced(terminal, "unlink,unlinkat", tmp_path)
    assert reader.soundness(terminal.pos) == []
    assert set(terminal.read().stores["transactions"]) == set(before.stores["transactions"])
    # The file goes first: its -wal alone means nothing, but without it the file would look whole.
    gone = re.findall(r'unlink(?:at)?\(.*/pos\.db\.next(.*?)".* = 0$', calls, re.MULTILINE)
    assert gone.index("") < gone.index("-wal")


def test_an_interrupted_run_goes_on_with_its_own_successor(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    gate = Gate(terminal)
    interrupt_at(gate, terminal.start("migrate", "--json"))
    os.setxattr(f"{terminal.pos}.next", "user.mark", b"this very file")
    assert terminal.boot().code == 0
    assert os.getxattr(terminal.pos, "user.mark") == b"this very file"


def test_triggers_do_not_fire_for_migrated_records_and_come_back_word_for_word(
    tmp_path: Path,
) -> None:
    terminal = a_terminal(tmp_path, extra_tables=True)
    before, outbox = terminal.read(), ask(terminal.pos, OUTBOX)
    triggers = ask(terminal.pos, TRIGGERS)
    assert len(triggers) == 2
    assert_upgraded(terminal, terminal.boot(), before)
    assert ask(terminal.pos, OUTBOX) == outbox, "sales would be sent to the gateway again"
    assert ask(terminal.pos, TRIGGERS) == triggers
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("UPDATE transactions SET value = value WHERE key = (SELECT min(key) FROM balances)")
    db.execute("UPDATE transactions SET value = value WHERE rowid = 1")
    assert db.execute(OUTBOX).fetchone()[0] == outbox[0][0] + 1, "and they work again"
    db.close()


def test_the_new_file_has_the_owner_the_mode_and_the_attributes_of_the_old(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    os.chown(terminal.pos, 1234, 2345)
    os.chmod(terminal.pos, 0o660)
    os.setxattr(terminal.pos, "user.label", b"till one\x00two")
    old = os.stat(terminal.pos)
    assert_upgraded(terminal, terminal.boot(), terminal.read())
    new = os.stat(terminal.pos)
    assert new.st_ino != old.st_ino
    assert (new.st_uid, new.st_gid, new.st_mode) == (1234, 2345, old.st_mode)
    assert os.getxattr(terminal.pos, "user.label") == b"till one\x00two"
    assert os.listxattr(terminal.pos) == ["user.label"]


def test_who_cannot_give_the_new_file_its_owner_is_refused_before_the_backup(
    tmp_path: Path,
) -> None:
    terminal = a_terminal(tmp_path)
    os.chown(terminal.pos, 1234, os.getgid())
    os.chmod(terminal.pos, 0o660)  # it may be read and written, but not given away
    before = data_of(terminal)
    answer = with_powers(terminal, "+lease,+sys_ptrace", "boot", "--json")
    assert answer.code == 1, answer.out
    assert "owner" in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True
    assert data_of(terminal) == before


def with_powers(terminal: Terminal, powers: str, *words: str) -> Answer:
    """The command by a root that has only these of its powers."""
    command = [*few_powers(powers), *COMMAND, "--root", str(terminal.root), *words]
    return Answer(subprocess.run(command, capture_output=True, text=True, timeout=60))


def few_powers(powers: str) -> list[str]:
    """What to put before a command so that root has only these powers."""
    kept = ",".join(["-all", powers] if powers else ["-all"])
    return ["setpriv", f"--bounding-set={kept}", "--inh-caps=-all"]


def traced(terminal: Terminal, calls: str, tmp_path: Path) -> str:
    """One boot, which must end well, and the named system calls of all its processes."""
    log = tmp_path / "calls"
    trace = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=" + calls]
    command = [*trace, *COMMAND, "--root", str(terminal.root), "boot", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text()


# Other processes that hold the file


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "steps",
    [[], ["SELECT count(*) FROM sync"], ["BEGIN", "SELECT 1 FROM sync"], ["BEGIN IMMEDIATE"]],
    ids=["only opened", "idle after a read", "reading", "writing"],
)
def test_a_file_in_use_is_left_alone_and_its_user_is_named(
    tmp_path: Path, mode: str, steps: list[str]
) -> None:
    terminal = a_terminal(tmp_path, journal=mode)
    with Client(terminal.pos) as client:
        client.ask("open 0")
        for statement in steps:
            assert client.ask(f"sql {statement}").startswith("ok")
        before = data_of(terminal)
        answer = terminal.run("migrate", "--json")
        assert answer.code == 5, answer.out
        assert answer.json["error"]["code"] == "BUSY"
        assert f"{NAME} (pid {client.pid})" in answer.json["error"]["message"]
        assert answer.json["app_may_start"] is True, "it runs already, on whole data"
        assert data_of(terminal) == before
        assert terminal.boot().code == 5
    assert terminal.boot().code == 0


def test_a_file_in_use_whose_second_name_a_cut_left_is_not_taken_for_the_old_one(
    tmp_path: Path,
) -> None:
    # Between link and rename both names lead to the file that the application has in use.
    terminal = a_terminal(tmp_path)
    os.link(terminal.pos, f"{terminal.pos}.prev")
    with Client(terminal.pos) as client:
        client.ask("open 0")
        answer = terminal.boot()
        assert answer.code == 5, answer.out
        assert answer.json["app_may_start"] is True


def test_an_agent_that_may_not_see_who_has_the_file_open_still_knows_that_somebody_has(
    tmp_path: Path,
) -> None:
    terminal = a_terminal(tmp_path)
    with Client(terminal.pos) as client:
        client.ask("open 0")
        before = data_of(terminal)
        assert with_powers(terminal, "", "boot", "--json").code == 5
        assert data_of(terminal) == before
    assert with_powers(terminal, "", "boot", "--json").code == 0


def test_holders_that_may_not_be_seen_are_unknown_and_not_absent(tmp_path: Path) -> None:
    # Neither the file's owner nor able to look: the kernel's lease does not answer either.
    terminal = a_terminal(tmp_path)
    os.chown(terminal.pos, 1234, os.getgid())
    os.chmod(terminal.pos, 0o660)
    with Client(terminal.pos) as client:
        client.ask("open 0")
        assert with_powers(terminal, "+chown,+fowner", "boot", "--json").code == 5


def test_a_late_holder_that_may_not_be_seen_is_waited_for_all_the_same(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    terminal.configure(deadline_ms=1000)
    gate = Gate(terminal)
    command = [*few_powers(""), *COMMAND, "--root", str(terminal.root), "boot", "--json"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    gate.wait(run)
    with Client(terminal.pos) as late:
        late.ask("open 0")
        gate.open()
        out, _ = run.communicate()
        assert run.returncode == 12, out
        assert json.loads(out)["app_may_start"] is False
        assert late.ask("sale tx_late") == "busy"


# The switch


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_nothing_is_switched_while_a_side_file_lies_beside_pos_db(
    tmp_path: Path, suffix: str
) -> None:
    # The side files of the old file would be taken for the new one's and tear it.
    terminal = a_terminal(tmp_path, journal="wal" if suffix == "-wal" else "delete")
    client = Client(terminal.pos)
    client.ask("open 0")
    client.ask("sql PRAGMA cache_size = 2")
    if suffix == "-journal":
        client.ask("sql BEGIN IMMEDIATE")
    assert client.ask("sql UPDATE transactions SET value = value || ' '") == "ok"
    client.send("die")
    client.end()
    left = Path(f"{terminal.pos}{suffix}").read_bytes()
    assert left[:8].strip(b"\0")
    run, gate = start_at_gate(terminal, "migrate", "--json")
    before = terminal.read()
    digest, inode = terminal.sha256(), os.stat(terminal.pos).st_ino
    Path(f"{terminal.pos}{suffix}").write_bytes(left)
    gate.open()
    out, _ = run.communicate()
    assert run.returncode == 1, out
    assert f"pos.db{suffix}" in json.loads(out)["error"]["message"]
    assert (terminal.sha256(), os.stat(terminal.pos).st_ino) == (digest, inode)
    Path(f"{terminal.pos}{suffix}").unlink()
    assert terminal.read() == before
    assert terminal.run("migrate").code == 0
    assert reader.soundness(terminal.pos) == []


def test_a_second_name_of_pos_db_left_by_a_cut_before_the_rename_goes(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    before, inode = terminal.read(), os.stat(terminal.pos).st_ino
    os.link(terminal.pos, f"{terminal.pos}.prev")
    assert_upgraded(terminal, terminal.boot(), before)
    assert os.stat(f"{terminal.pos}.prev").st_ino == inode
    assert os.stat(terminal.pos).st_ino != inode
    assert os.stat(terminal.pos).st_nlink == 1


def test_a_second_name_left_by_a_cut_goes_too_when_nothing_is_pending(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    assert terminal.boot().code == 0
    assert terminal.run("commit").code == 0
    os.link(terminal.pos, f"{terminal.pos}.prev")
    assert terminal.boot().code == 0
    assert "pos.db.prev" not in terminal.listing()


def test_a_prev_that_no_seal_names_is_reported_and_never_deleted_or_used(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    before = terminal.read()
    other = Path(f"{terminal.pos}.prev")
    other.write_bytes(b"somebody's file")
    assert_upgraded(terminal, terminal.boot(), before)
    assert Path(f"{other}.unknown").read_bytes() == b"somebody's file"
    assert reader.read_terminal(other) == before
    # With nothing to do it stays where it is, and is told.
    changed = other.read_bytes()[:-1] + b"!"
    other.write_bytes(changed)
    answer = terminal.boot()
    assert answer.code == 0
    assert answer.json["foreign_previous"] is True
    refused = terminal.run("commit", "--json")
    assert refused.json["foreign_previous"] is True
    assert other.read_bytes() == changed


def test_every_write_of_a_run_is_durable_before_the_next_one_counts_on_it(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    lines = traced(terminal, "openat,fsync,fdatasync,rename,link,linkat", tmp_path).splitlines()
    at = 0
    pos, data, state = (re.escape(str(p)) for p in (terminal.pos, terminal.data, terminal.backups))
    state = state[: -len("/backups")]
    for what in (
        rf"fsync\(\d+<{pos}\.next>",  # the copy is durable
        rf"fsync\(\d+<{data}>",  # under its name
        rf'openat\(.*"{pos}\.next-wal", O_RDWR.*O_CREAT',  # and only then the run row
        rf"fsync\(\d+<{pos}\.next>",  # the whole new file
        rf"fsync\(\d+<{state}/seal\.tmp>",  # the seal
        rf'rename\("{state}/seal\.tmp", "{state}/seal"',
        rf"fsync\(\d+<{state}>",
        rf'link(at)?\(.*"{pos}".*"{pos}\.prev"',  # the way back, last thing before
        rf"fsync\(\d+<{data}>",
        rf'rename\("{pos}\.next", "{pos}"\)',  # the switch
        rf"fsync\(\d+<{data}>",
        rf"f(data)?sync\(\d+<{state}/agent\.db",  # history
    ):
        found = [n for n in range(at, len(lines)) if re.search(what, lines[n])]
        assert found, f"after {lines[at - 1]!r} there is no {what}"
        at = found[0] + 1
    between = "\n".join(lines)
    assert between.count(f'rename("{terminal.pos}') == 2, "the probe's rename and the switch"
    renaming = next(line for line in lines if f'rename("{terminal.pos}.next"' in line)
    # The supervisor's calls lie in between as it happens; the worker's order is the promise.
    between = "\n".join(line for line in lines if line.split()[0] == renaming.split()[0])
    link = between.index(f'"{terminal.pos}.prev"')
    rename = between.index(f'rename("{terminal.pos}.next"')
    assert between[link:rename].count("\n") <= 3, "nothing but the folder's fsync comes between"


@pytest.mark.parametrize("left", [".prev", ".next"])
def test_a_missing_pos_db_is_never_created_again(tmp_path: Path, left: str) -> None:
    terminal = a_terminal(tmp_path)
    os.rename(terminal.pos, f"{terminal.pos}{left}")
    before = data_of(terminal)
    answer = terminal.boot()
    assert answer.code == 12, answer.out
    assert answer.json["error"]["code"] == "HELD"
    assert f"pos.db{left}" in answer.json["error"]["message"]
    assert data_of(terminal) == before


# The journal mode


def test_wal_mode_is_given_back_after_the_switch_and_the_seal_knows_it(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path, journal="wal")
    assert_upgraded(terminal, terminal.boot(), terminal.read())
    assert terminal.pos.read_bytes()[18:20] == b"\2\2"
    seal = seal_of(terminal)
    assert seal["sha256"] == terminal.sha256()
    assert seal["size"] == terminal.pos.stat().st_size
    assert seal["wal"] is False
    assert sorted(terminal.listing()) == ["pos.db", "pos.db.prev", "posagent"]
    # So the next boot does not take our own two bytes for the application's first sale.
    assert terminal.boot().json["previous_kept"] is True
    assert "pos.db.prev" in terminal.listing()


def test_delete_mode_stays_delete_mode(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    assert_upgraded(terminal, terminal.boot(), terminal.read())
    assert terminal.pos.read_bytes()[18:20] == b"\1\1"
    assert seal_of(terminal)["sha256"] == terminal.sha256()


# Where pos.db lies


@pytest.mark.parametrize("mode", MODES)
def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path, mode: str) -> None:
    terminal = a_terminal(tmp_path, journal=mode)
    before = terminal.read()
    elsewhere = terminal.root / "flash"
    elsewhere.mkdir()
    os.rename(terminal.pos, elsewhere / "real.db")
    terminal.pos.symlink_to("../flash/real.db")
    answer = terminal.boot()
    assert terminal.pos.is_symlink()
    assert terminal.listing() == ["pos.db", "posagent"]
    assert sorted(os.listdir(elsewhere)) == ["real.db", "real.db.prev"]
    terminal.pos = elsewhere / "real.db"
    assert_upgraded(terminal, answer, before)


def assert_refused(terminal: Terminal, answer: Answer, word: str, code: int = 78) -> None:
    """Nothing was done, and the sentence says why."""
    assert answer.code == code, answer.out + answer.err
    assert word in answer.json["error"]["message"]
    assert answer.json["app_may_start"] is True


def test_a_file_with_a_second_name_is_refused(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    os.link(terminal.pos, terminal.data / "other-name")
    before = data_of(terminal)
    assert_refused(terminal, terminal.boot(), "hard link")
    assert data_of(terminal) == before


def with_mounts(terminal: Terminal, mounts: str, *words: str) -> Answer:
    """The command in a mount namespace of its own."""
    script = ["unshare", "--mount", "sh", "-ec", mounts + '\nexec "$@"', "sh"]
    command = [*script, *COMMAND, "--root", str(terminal.root), *words]
    return Answer(subprocess.run(command, capture_output=True, text=True, timeout=60))


def test_a_file_that_is_a_mount_point_is_refused(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    before = data_of(terminal)
    mounts = f"mount --bind {terminal.pos} {terminal.pos}"
    assert_refused(terminal, with_mounts(terminal, mounts, "boot", "--json"), "mount point")
    assert data_of(terminal) == before


def test_a_file_system_that_is_not_proven_needs_a_word_in_the_profile(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    before = terminal.read()
    upper, work, lower = (terminal.root / name for name in ("upper", "work", "lower"))
    os.rename(terminal.data, upper)
    for folder in (terminal.data, work, lower):
        folder.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mounts = f"mount -t overlay overlay -o {layers} {terminal.data}"
    first = tree(upper)
    assert_refused(terminal, with_mounts(terminal, mounts, "boot", "--json"), "overlay")
    money = [path for path in first if "/pos.db" in path or "/backups/" in path]
    assert {p: tree(upper)[p] for p in money} == {p: first[p] for p in money}
    terminal.configure(unproven_filesystem=True)
    answer = with_mounts(terminal, mounts, "boot", "--json")
    terminal.pos = upper / "pos.db"
    terminal.data = upper
    assert_upgraded(terminal, answer, before)


ALLOW, REFUSE = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000)  # REFUSE + errno
CALL, SECOND = (0x20, 0, 0, 0), (0x20, 0, 0, 24)  # load the call's number, its second argument


def forbid_links() -> None:
    """From here on the kernel refuses hard links to this process, as FAT does."""
    numbers = {"x86_64": (86, 265), "aarch64": (37,)}[os.uname().machine]
    links = [(0x15, len(numbers) - n, 0, call) for n, call in enumerate(numbers)]
    ask_kernel_to_refuse([CALL, *links, ALLOW, (*REFUSE[:3], REFUSE[3] + errno.EPERM)])


def forbid_ofd_locks() -> None:
    """From here on this process is on a kernel from before 2014."""
    fcntl_call = {"x86_64": 72, "aarch64": 25}[os.uname().machine]
    not_there = (*REFUSE[:3], REFUSE[3] + errno.EINVAL)
    locks = [(0x15, 3 - n, 0, 36 + n) for n in range(3)]
    ask_kernel_to_refuse([CALL, (0x15, 0, 4, fcntl_call), SECOND, *locks, ALLOW, not_there])


def ask_kernel_to_refuse(rules: list[tuple[int, int, int, int]]) -> None:
    """A filter over the system calls of this process and all it will start (seccomp(2))."""
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((38, 1, 0, 0, 0), (22, 2, ctypes.c_char_p(program), 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def test_a_system_without_locks_that_hold_is_refused(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    before = data_of(terminal)
    answer = terminal.run("boot", "--json", preexec_fn=forbid_ofd_locks)
    assert answer.code == 78, answer.out
    assert "open-file-description locks" in answer.json["error"]["message"]
    assert data_of(terminal) == before


@pytest.mark.parametrize("mode", MODES)
def test_without_hard_links_the_switch_works_and_there_is_no_prev(
    tmp_path: Path, mode: str
) -> None:
    terminal = a_terminal(tmp_path, journal=mode)
    before = terminal.read()
    answer = terminal.run("boot", "--json", preexec_fn=forbid_links)
    assert_upgraded(terminal, answer, before)
    assert answer.json["previous_kept"] is False
    assert terminal.listing() == ["pos.db", "posagent"]
    assert seal_of(terminal)["reported"] is True
    assert_writes_nothing(terminal, tmp_path)


def test_without_hard_links_a_late_holder_still_keeps_the_application_away(
    tmp_path: Path,
) -> None:
    # The old file has no name any more, but whoever has it open is still there.
    terminal = a_terminal(tmp_path)
    terminal.configure(deadline_ms=1000)
    run, gate = start_at_gate(terminal, "boot", "--json", preexec_fn=forbid_links)
    with Client(terminal.pos) as late:
        late.ask("open 0")
        gate.open()
        out, _ = run.communicate()
        assert run.returncode == 12, out
        assert late.ask("sale tx_late") == "busy"


# The end of the way back, and the boot that has nothing to do


def test_the_commit_verb_drops_the_old_file_and_says_when_there_is_none(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    assert terminal.boot().code == 0
    assert "pos.db.prev" in terminal.listing()
    answer = terminal.run("commit", "--json")
    assert (answer.code, answer.json["committed"]) == (0, True)
    assert "pos.db.prev" not in terminal.listing()
    again = terminal.run("commit", "--json")
    assert (again.code, again.json["verdict"]) == (0, "NOT_REQUIRED")


@pytest.mark.parametrize("mode", MODES)
def test_the_old_file_goes_once_pos_db_was_written_and_a_backup_is_whole_never_before(
    tmp_path: Path, mode: str
) -> None:
    terminal = a_terminal(tmp_path, journal=mode)
    assert terminal.boot().code == 0
    [backup] = terminal.backups.iterdir()
    whole = backup.read_bytes()

    def kept() -> bool:
        assert terminal.boot().code == 0
        return "pos.db.prev" in terminal.listing()

    assert kept(), "nothing was written since"
    sell(terminal, "tx_first")
    backup.unlink()
    assert kept(), "there is no backup"
    backup.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert kept(), "the backup is damaged"
    backup.write_bytes(whole)
    assert not kept()
    assert "tx_first" in terminal.read().stores["transactions"]


def test_a_boot_with_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    terminal = a_terminal(tmp_path)
    assert terminal.boot().code == 0
    assert terminal.run("commit").code == 0
    assert_writes_nothing(terminal, tmp_path)


WRITING = (
    "write,pwrite64,writev,pwritev,fsync,fdatasync,sync,syncfs,rename,renameat,renameat2,link,"
    "linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,truncate,ftruncate,fallocate,chmod,"
    "fchmod,fchmodat,chown,fchown,fchownat,setxattr,fsetxattr,utimensat,openat,creat,fork,vfork,"
    "clone,clone3"
)


def assert_writes_nothing(terminal: Terminal, tmp_path: Path) -> None:
    """The next boot tells its verdict and does nothing else that a disk could notice."""
    before = tree(terminal.root)
    # Not every machine has each of these calls, which is what the question mark says.
    calls = traced(terminal, ",".join(f"?{name}" for name in WRITING.split(",")), tmp_path)
    assert tree(terminal.root) == before
    reading = re.compile(r"\d+ +(openat\(.*O_RDONLY|\+\+\+|write\(1<)")
    odd = [call for call in calls.splitlines() if not reading.match(call) or "O_CREAT" in call]
    assert odd == []


@pytest.mark.parametrize("left", [".next", ".next-wal", ".next-journal", ".prev", "-wal"])
def test_whatever_lies_beside_pos_db_makes_the_boot_look_closer(tmp_path: Path, left: str) -> None:
    terminal = a_terminal(tmp_path)
    assert terminal.boot().code == 0
    assert terminal.run("commit").code == 0
    Path(f"{terminal.pos}{left}").write_bytes(b"left over")
    answer = terminal.boot()
    assert answer.code == 0, answer.out
    if left != ".prev":
        assert terminal.listing() == ["pos.db", "posagent"]
