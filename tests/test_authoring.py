"""`check` and `new`: every fault told at once, sample records tried, nothing ever written over.

Also holds docs/writing-migrations.md to the code: every step it shows is executed and does to its
record what the page says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agent.cli.new import snake_case
from agent.core.migration import Context, Step
from agent.core.steps import apply_step
from agent.ground.codec import decode, encode
from agent.ground.errors import ValidationError
from tests.independent_reader import same_value
from tests.terminals import ROOT, Terminal, new_terminal

USES = "from agent.core.migration import *\n"


@pytest.fixture
def author(tmp_path: Path) -> Terminal:
    """An author's folder: a configuration and migrations, but no terminal's data."""
    etc = tmp_path / "etc/posagent"
    etc.mkdir(parents=True)
    (etc / "config.json").write_text('{"profile": "generic"}')
    terminal = Terminal(tmp_path)
    terminal.own_migrations()
    return terminal


def write(author: Terminal, name: str, text: str) -> None:
    (author.root / "migrations" / name).write_text(text)


def checked(author: Terminal, code: int) -> dict[str, Any]:
    answer = author.run("check", "--json")
    assert answer.code == code, answer.out + answer.err
    return answer.json


def test_the_shipped_migrations_have_no_fault_and_no_warning(author: Terminal) -> None:
    found = checked(author, 0)
    assert (found["faults"], found["warnings"]) == ([], [])
    assert len(found["files"]) == 3


HANGS = {
    "while it is loaded": "while True:\n    pass\n",
    "in a step": USES
    + "def up(record, context):\n    while True:\n        pass\n"
    + "VERSION, NAME, STEPS = 4, 'hangs', [each('balances', up, fields=['a'])]\n",
}


@pytest.mark.parametrize("text", HANGS.values(), ids=HANGS)
def test_a_migration_that_hangs_is_a_timeout_that_names_it(author: Terminal, text: str) -> None:
    config = author.root / "etc/posagent/config.json"
    config.write_text(json.dumps(dict(json.loads(config.read_text()), deadline_ms=500)))
    write(author, "0004_hangs.py", text)
    error = checked(author, 7)["error"]
    assert error["code"] == "TIMEOUT"
    assert "0004_hangs.py" in error["message"]


ENDS = {
    "import os\nos._exit(0)\n": (11, "exit 0"),
    "import os\nos.kill(os.getpid(), 11)\n": (11, "signal 11"),
    "x = bytearray(1 << 40)\n": (7, "memory"),
}


@pytest.mark.parametrize("text", ENDS, ids=["leaves", "crashes", "eats memory"])
def test_a_migration_that_ends_its_process_is_told_and_ends_nothing_else(
    author: Terminal, text: str
) -> None:
    write(author, "0004_ends.py", text)
    code, word = ENDS[text]
    message = checked(author, code)["error"]["message"]
    assert word in message
    assert "0004_ends.py" in message


def test_every_fault_is_told_at_once(author: Terminal) -> None:
    (author.root / "migrations/0002_add_transaction_metadata.py").unlink()
    write(author, "0003_again.py", "VERSION, NAME, STEPS = 4, 'x', []\n")
    write(author, "Helper.py", "")
    write(author, "0005_syntax.py", "VERSION = \n")
    write(author, "0006_imports.py", "import nowhere_at_all\n")
    write(
        author,
        "0007_stores.py",
        f"{USES}VERSION, NAME = 7, 'x'\n"
        "STEPS = [set_field('sales', 'a', 1), set_field('exact', 'a', 1), "
        "set_field('syncs', 'a', 1)]\n",
    )
    path = author.root / "migrations/stores.json"
    contract = json.loads(path.read_text())
    contract["versions"][0]["stores"]["exact"] = {"bytes_exact": True}
    path.write_text(json.dumps(contract))
    told = [f"{fault['file']}: {fault['message']}" for fault in checked(author, 11)["faults"]]
    for words in (
        "Helper.py: is no name",
        "0003_again.py: version 3 stands twice",
        "0003_migrate_user_preferences.py: version 3 stands twice",
        "version 2 is missing",
        "version 4 is missing",
        "0003_again.py: VERSION is 4",
        "0005_syntax.py: 0005_syntax.py, line 1",
        "0006_imports.py: ModuleNotFoundError",
        "0007_stores.py: sales is not a store",
        "0007_stores.py: exact is kept byte for byte",
        "0007_stores.py: syncs is not a store",
    ):
        assert any(words in one for one in told), (words, told)
    assert len(told) == 11, told


def test_faults_of_stores_json_do_not_hide_those_of_the_files(author: Terminal) -> None:
    write(author, "stores.json", "{}")
    write(author, "0004_syntax.py", "VERSION = \n")
    assert {fault["file"] for fault in checked(author, 11)["faults"]} == {
        "stores.json",
        "0004_syntax.py",
    }


FUNCTIONS = [
    # what up() does, whether it is a fault, what is told
    ("record['other'] = 1; return record", True, "changed other"),
    ("record['a'] = {1, 2}; return record", True, "no JSON value"),
    ("return None", True, "NoneType"),
    ("return no_such_name", True, "line 4"),
    ("raise SystemExit(0)", True, "line 4"),
    ("record['a'] = record['amount'] * 2; return record", False, "a run stops at such a record"),
    ("record['a'] = 1; return record", None, ""),
    ("return KEEP", None, ""),
]


@pytest.mark.parametrize(("body", "fault", "word"), FUNCTIONS)
def test_a_function_is_tried_on_sample_records(
    author: Terminal, body: str, fault: bool | None, word: str
) -> None:
    write(
        author,
        "0004_each.py",
        f"{USES}VERSION, NAME = 4, 'x'\ndef up(record, context):\n    {body}\n"
        "STEPS = [each('transactions', up, fields=['a'])]\n",
    )
    found = checked(author, 11 if fault else 0)
    told = found["faults"] if fault else found["warnings"]
    told = [one["message"] for one in told if one["file"] == "0004_each.py"]
    assert [word in one for one in told] == ([True] if word else []), told


def test_a_mapping_that_knows_its_values_and_a_rename_are_no_reason_to_warn(
    author: Terminal,
) -> None:
    write(
        author,
        "0004_map.py",
        f"{USES}VERSION, NAME = 4, 'x'\n"
        "STEPS = [map_value('balances', 'state', {'a': 'b', 1: None}),"
        " rename_field('balances', 'old', 'new.place'), remove_field('balances', 'nested.deep')]\n",
    )
    found = checked(author, 0)
    assert [w["file"] for w in found["warnings"]] == ["stores.json"]  # app_reads ends at 3


def test_an_edited_file_that_a_terminal_applied_is_a_fault(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path, journal="wal")
    folder = terminal.own_migrations()
    assert terminal.boot().code == 0
    before = terminal.sha256(), terminal.listing()
    assert checked(terminal, 0)["faults"] == []
    path = folder / "0002_add_transaction_metadata.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # a checkout may do that
    assert checked(terminal, 0)["faults"] == []
    path.write_text(path.read_text() + "# edited\n")
    faults = checked(terminal, 11)["faults"]
    assert [fault["file"] for fault in faults] == ["0002_add_transaction_metadata.py"]
    assert "edited" in faults[0]["message"]
    assert (terminal.sha256(), terminal.listing()) == before


def test_a_pos_db_that_is_none_is_a_warning_only(author: Terminal) -> None:
    author.data.mkdir()
    author.pos.write_bytes(b"none")
    assert [w["file"] for w in checked(author, 0)["warnings"]] == ["pos.db"]


def test_new_writes_the_next_file_and_check_finds_no_fault_in_it(author: Terminal) -> None:
    answer = author.run("new", "add_tip")
    path = author.root / "migrations/0004_add_tip.py"
    assert (answer.code, answer.out) == (0, f"{path}\n")
    found = checked(author, 0)
    assert [w["file"] for w in found["warnings"]] == ["0004_add_tip.py", "stores.json"]
    assert author.run("new", "add_tip_again", "--json").json == {
        "path": str(author.root / "migrations/0005_add_tip_again.py"),
        "version": 5,
    }


NAMES = [
    ("AddTip", "add_tip"),
    ("add-tip", "add_tip"),
    ("Add tip!", "add_tip"),
    ("_add__tip_", "add_tip"),
    ("../etc/passwd", "etc_passwd"),
    ("trinkgeld_für_alle", "trinkgeld_f_r_alle"),
    ("x" * 99, "x" * 60),
    ("!!!", ""),
]


@pytest.mark.parametrize(("name", "better"), NAMES)
def test_a_name_that_no_migration_has_is_refused_with_a_better_one(
    author: Terminal, name: str, better: str
) -> None:
    before = sorted((author.root / "migrations").iterdir())
    answer = author.run("new", name)
    assert answer.code == 64
    assert (f'did you mean "{better}"?' in answer.err) is bool(better)
    assert sorted((author.root / "migrations").iterdir()) == before
    assert snake_case(better) == better


def test_new_never_writes_over_a_file_and_not_into_a_folder_with_a_fault(author: Terminal) -> None:
    assert author.run("new", "migrate_user_preferences").code == 64
    (author.root / "migrations/0004_tip.py").symlink_to("elsewhere")
    assert author.run("new", "tip").code == 64
    (author.root / "migrations/0006_x.py").write_text("")
    assert author.run("new", "tip_two").code == 11
    assert not (author.root / "migrations/elsewhere").exists()


# The page for authors

PAGE = (ROOT / "docs/writing-migrations.md").read_text("utf-8")
# A python block with steps, and the table of records below it: | before | after |.
EXAMPLES = re.findall(
    r"```python\n((?:(?!```)[^\n]*\n)+)```\n\n\| before \| after \|\n\|[-| ]+\|\n((?:\|[^\n]*\n)+)",
    PAGE,
)


def test_the_page_shows_every_step() -> None:
    shown = "".join(code for code, _ in EXAMPLES)
    for kind in ("set_field", "remove_field", "rename_field", "map_value", "each", "move_record"):
        assert f"{kind}(" in shown + PAGE, kind
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(("code", "table"), EXAMPLES)
def test_what_the_page_shows_is_what_the_steps_do(code: str, table: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"{USES}{code}", namespace)
    steps: list[Step] = namespace["STEPS"]
    for line in table.strip().splitlines():
        before, after = (cell.strip().strip("`") for cell in line.strip("|").split(" | "))
        record = decode(before)
        try:
            for step in steps:
                apply_step(step, step.key or "tx_1", record, Context(1767225600000, "pos-7", 3, 4))
        except ValidationError:
            assert after.startswith("the run stops"), (before, after)
            continue
        assert same_value(encode(record), after), (encode(record), after)
