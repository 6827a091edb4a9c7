"""Every verb answers as documented: help, one JSON object with documented keys, an exit code.

docs/json-output.md and docs/exit-codes.md are read as the promise; the real command is run on
sample terminals and held against them.
"""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.__main__ import main
from agent.cli.arguments import VERBS, help_text
from agent.ground import errors
from agent.service.chronicle import Chronicle
from agent.service.verdict import exit_code
from tests.filesystems import MIB, tmpfs
from tests.terminals import ROOT, Answer, Terminal, new_terminal

JSON_PAGE = (ROOT / "docs/json-output.md").read_text()
EXIT_PAGE = (ROOT / "docs/exit-codes.md").read_text()
README = (ROOT / "README.md").read_text()
PAN = "4111111111111111"


def rows_in(text: str) -> list[list[str]]:
    """The cells of a page's table rows, titles and rulers left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if row[0] not in ("key", "code") and set(row[0]) != {"-"}]


def documented() -> dict[str, set[str]]:
    """Verb to the dotted keys that its section, and the one for every verb, document."""
    sections = re.split(r"^## ", JSON_PAGE, flags=re.MULTILINE)[1:]
    keys = {s.splitlines()[0]: {row[0].strip("`") for row in rows_in(s)} for s in sections}
    common = {key for key in keys.pop("Every verb") if key.startswith("error")}
    by_verb = {verb: own | common for names, own in keys.items() for verb in names.split(", ")}
    for verb in ("commit", "backup", "restore", "rollback", "prune"):  # "As `boot`, and:"
        by_verb[verb] |= by_verb["boot"]
    return by_verb


DOCUMENTED = documented()
CODES = {int(row[0]): row[-1].strip("|` ") for row in rows_in(EXIT_PAGE)}


def keys_of(value: Any, known: set[str], at: str = "") -> set[str]:
    """The dotted keys of an answer, as deep as the page goes."""
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item, known, f"{at}[]")}
    if not isinstance(value, dict):
        return set()
    found = set()
    for name, inner in value.items():
        key = f"{at}.{name}" if at else name
        found.add(key)
        if any(one.startswith((key + ".", key + "[]")) for one in known):
            found |= keys_of(inner, known, key)
    return found


def hold(verb: str, answer: Answer) -> dict[str, Any]:
    """One JSON object in one line, no key undocumented, a listed code, the error's own code."""
    assert answer.out.count("\n") == 1, answer.out
    found = answer.json
    assert isinstance(found, dict)
    assert keys_of(found, DOCUMENTED[verb]) - DOCUMENTED[verb] == set()
    assert answer.code in CODES
    if found.get("error") and verb != "boot":
        assert CODES[answer.code] == found["error"]["code"]
    return found


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A terminal after its upgrade, for tests that only ask."""
    terminal = new_terminal(tmp_path_factory.mktemp("upgraded") / "root")
    assert terminal.boot().code == 0
    return terminal


# The pages


def test_every_verb_has_a_section_and_a_place_in_the_help() -> None:
    assert set(DOCUMENTED) == set(VERBS)
    for verb in VERBS:
        assert verb in help_text("")


def test_the_page_of_codes_lists_exactly_the_errors_there_are() -> None:
    family = {kind.exit_code: kind.code for kind in errors._FAMILY}
    family.update({0: "", errors.EXIT_PARTIAL: ""})
    assert family == CODES


def test_the_readme_lists_the_same_codes() -> None:
    section = README.split("## Exit codes")[1].split("\n## ")[0]
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)] == list(CODES)


def test_the_checks_of_health_are_documented_by_name(upgraded: Terminal) -> None:
    row = next(row for row in rows_in(JSON_PAGE) if row[0] == "`checks[].name`")
    checks = upgraded.run("health", "--json").json["checks"]
    assert re.findall("`([^`]+)`", row[1]) == [check["name"] for check in checks]


def test_a_death_after_the_switch_is_a_warning_and_ends_with_0() -> None:
    chronicle = Chronicle.__new__(Chronicle)
    chronicle.warning = None
    chronicle.own_runs = {"r"}
    chronicle.switched = {
        "run": "r",
        "from_version": 0,
        "to_version": 1,
        "at_ms": 1,
        "clock_trusted": True,
        "before": {"records": {}, "unsettled_records": {}},
        "backup": None,
        "verdict": "OK",
        "left": 0,
        "hold": "",
    }
    failed = {"verdict": "ROLLED_BACK", "error": errors.InternalError("it died").as_json()}
    result = chronicle.with_switch(dict(failed, app_may_start=True))
    assert "error" not in result
    assert result["warning"] == failed["error"]
    assert (result["verdict"], exit_code(result, boot=True)) == ("OK", 0)


# Help and usage


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_fits_the_screen_and_touches_nothing(verb: str, tmp_path: Path) -> None:
    answer = Terminal(tmp_path).run(verb, "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert VERBS[verb].says in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ("statsu",),
        ("status", "--exitcode"),
        ("status", "extra"),
        ("restore",),
        ("new",),
        ("verify", "999"),
        ("restore", "no-such-backup"),
        ("backups", "--root"),
    ],
)
def test_a_wrong_word_ends_with_64_and_one_object(words: tuple[str, ...], tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", records=20, unsettled=5)
    answer = terminal.run(*words, "--json") if words[-1] != "--root" else terminal.run(*words)
    assert answer.code == 64
    if words[-1] != "--root":
        assert answer.json["error"]["code"] == "USAGE"


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("restore", "new")])
def test_without_a_configuration_every_verb_ends_with_78(verb: str, tmp_path: Path) -> None:
    answer = Terminal(tmp_path).run(verb, "--json")
    assert answer.code == 78
    assert hold(verb, answer)["error"]["code"] == "CONFIG"
    assert os.listdir(tmp_path) == []


# A terminal's life, verb by verb


def test_every_verb_answers_one_documented_object_through_a_terminals_life(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    terminal.own_migrations()
    steps: list[tuple[tuple[str, ...], int, str]] = [
        (("status",), 0, ""),
        (("status", "--exit-code"), 3, ""),
        (("plan",), 0, ""),
        (("check",), 0, ""),
        (("backups",), 0, ""),
        (("verify",), 0, ""),
        (("validate",), 0, ""),
        (("history",), 0, ""),
        (("health",), 0, ""),
        (("profile",), 0, ""),
        (("rollback", "--to", "0"), 0, "NOT_REQUIRED"),
        (("quarantine",), 0, ""),
        (("boot",), 0, "OK"),
        (("boot",), 0, "NOT_REQUIRED"),
        (("migrate",), 0, "NOT_REQUIRED"),
        (("rollback", "--to", "0", "--dry-run"), 0, ""),
        (("rollback", "--to", "0"), 0, "OK"),
        (("boot",), 1, "HELD"),
        (("migrate",), 0, "OK"),
        (("rollback", "--to", "4"), 64, "REFUSED"),
        (("rollback", "--to", "4", "--dry-run"), 64, ""),
        (("status", "--exit-code"), 0, ""),
        (("plan",), 0, ""),
        (("backup",), 0, "OK"),
        (("commit",), 0, "OK"),
        (("commit",), 0, "NOT_REQUIRED"),
        (("boot",), 0, "NOT_REQUIRED"),
        (("backups",), 0, ""),
        (("verify", "1"), 0, ""),
        (("verify", "latest"), 0, ""),
        (("validate",), 0, ""),
        (("restore", "1"), 13, "REFUSED"),
        (("restore", "2"), 0, "OK"),
        (("rollback", "--to", "1", "--dry-run"), 0, ""),
        (("rollback", "--to", "1"), 0, "OK"),
        (("prune", "--dry-run"), 0, ""),
        (("prune",), 0, "NOT_REQUIRED"),
        (("migrate",), 0, "OK"),
        (("quarantine",), 0, ""),
        (("history",), 0, ""),
        (("health",), 0, ""),
        (("new", "add_a_field"), 0, ""),
        (("check",), 0, ""),
        (("status", "--exit-code"), 3, ""),
    ]
    for words, code, verdict in steps:
        answer = terminal.run(*words, "--json")
        found = hold(words[0], answer)
        assert answer.code == code, (words, answer.out, answer.err)
        assert found.get("verdict", "") == verdict, (words, answer.out)


FOURTH = """from agent.core.migration import *
VERSION, NAME, QUARANTINE, MIN_READER = 4, "of the test", True, 2

def up(record, context):
    if record.get("odd"):
        raise ValueError
    record["four"] = 4
    return record

STEPS = [
    sql("CREATE TABLE tips (minor INTEGER)", "DROP TABLE tips"),
    set_field("sync", "type", "sale", on_new="remove"),
    each("balances", up, UNDO, fields=["four"]),
]
"""


def insert(terminal: Terminal, statement: str, *given: str) -> None:
    """The application at work."""
    with sqlite3.connect(terminal.pos) as db:
        db.execute(statement, given)
    db.close()


def own_keys(verb: str) -> set[str]:
    """The keys of a verb's own section, what only an error or a death brings left out."""
    boot = DOCUMENTED["boot"] if verb == "rollback" else set()
    return {key for key in DOCUMENTED[verb] - boot if not key.startswith("error")}


def test_each_key_of_a_way_back_and_of_what_was_left_behind_is_answered(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    folder = terminal.own_migrations()
    document = json.loads((folder / "stores.json").read_text())
    (folder / "stores.json").write_text(json.dumps(dict(document, app_reads=[0, 9])))
    assert terminal.boot().code == 0
    fourth = folder / "0004_of_the_test.py"
    fourth.write_text(FOURTH)
    insert(terminal, "INSERT INTO balances VALUES ('odd', '{\"odd\":1}')")
    insert(terminal, "INSERT INTO balances VALUES ('half', '{')")
    seen: dict[str, set[str]] = {"rollback": set(), "quarantine": set(), "plan": set()}

    def ask(*words: str, code: int = 0) -> dict[str, Any]:
        answer = terminal.run(*words, "--json")
        assert answer.code == code, (words, answer.out)
        found = hold(words[0], answer)
        seen.setdefault(words[0], set()).update(keys_of(found, DOCUMENTED[words[0]]))
        return found

    plan = ask("plan")
    assert [a_pass["store"] for a_pass in plan["passes"]] == [None, "sync", "balances"]
    assert plan["passes"][0]["kind"] == "sql"
    assert plan["left_behind"]["balances"] >= 1  # an estimate
    assert plan["unreadable"] == {"balances": 1}
    assert plan["undo"]["rows_estimate"] > 0
    assert plan["undo"]["not_behind"] is None
    assert (plan["migrations"][0]["quarantine"], plan["migrations"][0]["min_reader"]) == (True, 2)
    assert ask("boot", code=14)["quarantined"] == 2
    insert(terminal, "UPDATE balances SET value = '{}' WHERE key = 'odd'")
    insert(terminal, "DELETE FROM balances WHERE key = 'half'")
    assert {row["now"] for row in ask("quarantine")["quarantine"]} == {"changed", "gone"}
    insert(terminal, "INSERT INTO tips VALUES (150)")
    insert(terminal, "INSERT INTO sync VALUES ('new', '{\"type\":\"refund\"}')")
    dry = ask("rollback", "--to", "3", "--dry-run")
    done = ask("rollback", "--to", "3", code=14)  # the next migration forgets the two
    assert (dry["way"], dry["refusal"]) == ("down", None)
    assert done["kept"] == dry["kept"]
    assert [(e["version"], e["what"]) for e in done["kept"]] == [(4, "removed"), (None, "kept")]
    assert done["kept"][0]["first"] == ["sync/new"]
    # Held: an edited file bars the way down, and a sale the backup.
    ask("migrate")
    insert(terminal, "INSERT INTO sync VALUES ('newer', '{}')")
    fourth.write_text(FOURTH + "# edited\n")
    held = ask("rollback", "--to", "3", code=13)
    assert (held["verdict"], held["error"]["facts"]["cause"]) == ("HELD", "NO_WAY_BACK")
    assert "edited" in held["error"]["facts"]["in_the_way"]["message"]
    assert ask("rollback", "--to", "3", "--dry-run", code=13)["refusal"] == held["error"]
    # The next run names it, and what cannot be undone is told before and behind it.
    (folder / "0005_of_the_test.py").write_text(
        "from agent.core.migration import *\nVERSION, NAME = 5, 'of the test'\n"
        "STEPS = [each('sync', lambda record, context: KEEP, fields=['five'])]\n"
    )
    assert ask("plan")["undo"]["not_behind"] == 5
    assert ask("boot")["edited_migrations"] == [fourth.name]
    assert terminal.run("commit").code == 0
    restored = ask("rollback", "--to", "4")
    assert restored["way"] == "restore"
    for verb in ("rollback", "quarantine", "plan"):
        assert own_keys(verb) - seen[verb] == set()
    rows = ask("history")["history"]
    assert [row["state"] for row in rows[-2:]] == ["applied", "rolled_back"]
    facts = {"backup", "before", "quarantined", "despite_unsettled"}
    for row in rows:
        assert set(row["facts"]) == (facts if row["state"] != "failed" else set())


def test_people_get_plain_lines_of_eighty_characters(upgraded: Terminal) -> None:
    verbs = ("status", "backups", "verify", "validate", "history", "health", "profile")
    for verb in (*verbs, "quarantine"):
        answer = upgraded.run(verb)
        assert answer.code == 0, (verb, answer.err)
        assert answer.err == ""
        lines = answer.out.splitlines()
        # A path is not broken: somebody will want to copy it.
        assert [line for line in lines if len(line) > 80 and "/" not in line] == []
        assert answer.out.isascii()
        assert "\x1b" not in answer.out


# backups and verify


def test_damaged_and_foreign_backups_are_told_apart(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    for _ in range(3):
        assert terminal.run("backup").code == 0
    first, second, third = sorted(terminal.backups.iterdir())
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:100])
    (terminal.backups / "holiday.jpg").write_bytes(b"\xff\xd8")
    listed = hold("backups", terminal.run("backups", "--json"))
    assert [row["sequence"] for row in listed["backups"]] == [1, 2, 3]
    # The list reads headers only: what is wrong in the middle is for `verify`.
    assert [row["damaged"] is None for row in listed["backups"]] == [True, False, True]
    assert listed["foreign_files"] == 1
    answer = terminal.run("verify", "--json")
    assert answer.code == 9
    assert hold("verify", answer)["damaged"] == [first.name, second.name]
    for wanted, code in ((first.name, 9), ("2", 9), ("3", 0), ("latest", 0)):
        assert terminal.run("verify", wanted).code == code
    told = terminal.run("verify")
    assert first.name in told.err
    assert second.name in told.err
    assert third.name not in told.err
    words = [line.split()[:2] for line in told.out.splitlines() if not line.startswith(" ")]
    assert words == [[first.name, "DAMAGED"], [second.name, "DAMAGED"], [third.name, "ok"]]


class Meddler(io.StringIO):
    """A standard output that cuts a file off as soon as anything is written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def write(self, text: str) -> int:
        os.truncate(self.path, 100)
        return super().write(text)


def test_verify_tells_each_backup_before_it_reads_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = new_terminal(tmp_path / "root")
    for _ in range(2):
        assert terminal.run("backup").code == 0
    first, second = sorted(terminal.backups.iterdir())
    out = Meddler(second)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["--root", str(terminal.root), "verify"]) == 9
    lines = [line.split()[:2] for line in out.getvalue().splitlines()]
    assert lines[:2] == [[first.name, "ok"], [second.name, "DAMAGED"]]


def test_reporting_on_a_fresh_terminal_makes_no_file(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    before = sorted(str(path) for path in terminal.root.rglob("*"))
    for verb in ("backups", "verify", "validate", "history", "health", "profile", "status"):
        assert terminal.run(verb).code == 0
    assert sorted(str(path) for path in terminal.root.rglob("*")) == before


# validate


def test_validate_names_key_and_reason_and_never_a_body(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", bad_share=0.1)
    with sqlite3.connect(terminal.pos) as db:
        db.execute(
            "INSERT INTO transactions VALUES ('tx_pan', ?)",
            (json.dumps({"status": "pending", "amount": 5, "note": PAN})[:-1],),
        )
    db.close()
    answer = terminal.run("validate", "--json")
    assert answer.code == 10
    found = hold("validate", answer)
    sales = next(entry for entry in found["stores"] if entry["store"] == "transactions")
    assert sales["judged"] is True
    assert sales["unreadable"] == 31
    assert {"store": "transactions", "key": "tx_pan", "reason": found["odd"][-1]["reason"]} in (
        found["odd"]
    )
    people = terminal.run("validate")
    assert people.code == 10
    for text in (answer.out, answer.err, people.out, people.err):
        assert PAN not in text


def test_a_record_of_a_store_that_nobody_judges_is_reported_and_ends_with_0(
    tmp_path: Path,
) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.boot().code == 0
    with sqlite3.connect(terminal.pos) as db:
        db.execute("INSERT INTO balances VALUES ('odd', '{')")
    db.close()
    answer = terminal.run("validate", "--json")
    assert answer.code == 0
    found = hold("validate", answer)
    assert [entry["key"] for entry in found["odd"]] == ["odd"]


def test_a_pending_migration_makes_its_store_judged(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    with sqlite3.connect(terminal.pos) as db:
        db.execute("INSERT INTO balances VALUES ('odd', '{')")
    db.close()
    assert terminal.run("validate").code == 10
    # Files that cannot be loaded judge nothing; the money is judged all the same.
    folder = terminal.own_migrations()
    (folder / "0002_add_transaction_metadata.py").write_text("import nothing_of_that_name\n")
    answer = terminal.run("validate", "--json")
    assert answer.code == 0
    assert "0002" in hold("validate", answer)["plan_not_read"]


def test_a_migration_file_that_never_ends_does_not_hang_validate(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    terminal.configure(deadline_ms=300)
    folder = terminal.own_migrations()
    (folder / "0001_initialize_schema.py").write_text("while True:\n    pass\n")
    answer = terminal.run("validate", "--json")
    assert answer.code == 0
    assert "deadline" in hold("validate", answer)["plan_not_read"]


def test_validate_sees_sales_that_are_only_in_the_wal(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", journal="wal")
    before = hold("validate", terminal.run("validate", "--json"))["unsettled"]["records"]
    application = sqlite3.connect(terminal.pos, isolation_level=None)
    sale = json.dumps({"status": "pending", "amount": 5, "currency": "EUR"})
    application.execute("INSERT INTO transactions VALUES ('tx_new', ?)", (sale,))
    after = hold("validate", terminal.run("validate", "--json"))["unsettled"]["records"]
    application.close()
    assert after == before + 1


@pytest.mark.parametrize(
    ("content", "code"), [(None, 12), (b"", 12), (b"no database at all" * 100, 12)]
)
def test_validate_without_data_that_can_be_read(
    content: bytes | None, code: int, tmp_path: Path
) -> None:
    terminal = new_terminal(tmp_path / "root")
    terminal.pos.unlink()
    if content is not None:
        terminal.pos.write_bytes(content)
    answer = terminal.run("validate", "--json")
    assert answer.code == code
    assert hold("validate", answer)["error"]["code"] == "HELD"


# history and health


def test_history_tells_failures_and_whether_the_clock_was_believed(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    folder = terminal.own_migrations()
    good = (folder / "0003_migrate_user_preferences.py").read_text()
    (folder / "0003_migrate_user_preferences.py").write_text(
        "from agent.core.migration import each\n"
        "VERSION, NAME = 3, 'fails'\n"
        "def up(record, context):\n    raise ValueError(str(record))\n"
        "STEPS = [each('transactions', up, fields=['x'])]\n"
    )
    assert terminal.boot().code == 10
    (folder / "0003_migrate_user_preferences.py").write_text(good)
    assert terminal.boot().code == 0
    rows = hold("history", terminal.run("history", "--json"))["history"]
    assert [(row["state"], row["version"]) for row in rows] == [
        ("failed", None),
        ("applied", 1),
        ("applied", 2),
        ("applied", 3),
    ]
    people = terminal.run("history").out
    assert "VALIDATION_ERROR" in people
    assert "?" in people.splitlines()[1]


def test_a_damaged_diary_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.boot().code == 0
    diary = terminal.data / "posagent/agent.db"
    diary.write_bytes(b"rubbish" * 1000)
    assert terminal.run("history", "--json").code == 1
    answer = terminal.run("health", "--json")
    assert answer.code == 0
    levels = {check["name"]: check["level"] for check in hold("health", answer)["checks"]}
    assert levels["history"] == "warn"
    assert diary.read_bytes() == b"rubbish" * 1000


def level(terminal: Terminal, name: str) -> str:
    """The level of one check."""
    checks = hold("health", terminal.run("health", "--json"))["checks"]
    found: str = next(check["level"] for check in checks if check["name"] == name)
    return found


def test_health_fails_for_what_would_stop_a_run(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.run("health").code == 0
    size = terminal.pos.stat().st_size
    terminal.configure(pos_db_bytes_max=size + 1)
    assert level(terminal, "size") == "warn"
    terminal.configure(pos_db_bytes_max=size - 1)
    assert level(terminal, "size") == "fail"
    terminal.configure(pos_db_bytes_max=1 << 30)
    os.link(terminal.pos, terminal.data / "second-name")
    assert level(terminal, "names") == "fail"
    assert terminal.run("health").code == 1
    (terminal.data / "second-name").unlink()
    terminal.pos.unlink()
    assert level(terminal, "data") == "fail"


def test_health_fails_where_a_run_would_not_fit(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "root", 8 * MIB):  # the profile keeps a reserve of 16
        terminal = new_terminal(tmp_path / "root")
        assert level(terminal, "space") == "fail"
        assert level(terminal, "file system") == "ok"
        assert terminal.run("health").code == 1


def test_health_warns_of_what_lies_where_nothing_should(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root")
    assert terminal.boot().code == 0
    assert level(terminal, "beside") == "ok"
    kept = terminal.pos.with_name("pos.db.prev")
    kept.write_bytes(kept.read_bytes() + b"x")
    assert level(terminal, "beside") == "warn"
    kept.unlink()
    terminal.pos.with_name("pos.db.damaged-1").write_bytes(b"x")
    assert level(terminal, "beside") == "warn"
    (terminal.data / "posagent/seal").write_bytes(b"{")
    assert level(terminal, "seal") == "warn"
    (terminal.data / "posagent/agent.db.damaged").write_bytes(b"x")
    assert level(terminal, "history") == "warn"
    for path in terminal.backups.iterdir():
        path.write_bytes(b"x")
    assert level(terminal, "backups") == "fail"
    terminal.configure(watchdog_device="/dev/no-such-watchdog", watchdog_timeout_s=60)
    assert level(terminal, "watchdog") == "warn"


def test_mount_options_that_weaken_a_flush_are_known() -> None:
    from agent.cli.health_machine import weak_options

    assert weak_options(["rw", "relatime", "data=ordered", "commit=5"]) == []
    assert weak_options(["rw", "data=writeback", "commit=600", "nobarrier"]) == [
        "data=writeback",
        "commit=600",
        "nobarrier",
    ]
