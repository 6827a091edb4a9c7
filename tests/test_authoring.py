"""`check` and `new`: every fault told at once, sample records tried, nothing ever written over.

Also holds docs/writing-migrations.md to the code: every step it shows is executed, upwards and
back, and does to its record, its schema or its terminal what the page says.
"""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agent.cli.new import snake_case
from agent.core.applied import Applied
from agent.core.ledger import Ledger
from agent.core.meaning import run_pass
from agent.core.migration import Migration, Step
from agent.core.plan import Plan, check_plan
from agent.edges.migration_files import read_contracts
from agent.ground.codec import decode, encode
from agent.ground.errors import MigrationsRejected, ValidationError
from agent.verbs import schema
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
        "STEPS = [each('transactions', up, UNDO, fields=['a'])]\n",
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
CODE = r"```python\n((?:(?!```)[^\n]*\n)+)```\n\n"
NOW_MS, DEVICE = 1767225600000, "pos-7"


def tables(titles: str, before: str = "") -> list[tuple[str, list[list[str]]]]:
    """(the code above, rows of cells) of each table of the page with these titles."""
    pattern = rf"{before}\| {re.escape(titles)} \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)"
    found = []
    for match in re.finditer(pattern, PAGE):
        code, lines = ("", match[1]) if not before else (match[1], match[2])
        cells = [[c.strip() for c in line[1:-1].split("|")] for line in lines.splitlines()]
        found.append((code, cells))
    return found


def plain(cell: str) -> str:
    """A cell without the marks of code."""
    return cell.strip("`")


# A python block with steps, and the table of records below it.
EXAMPLES = tables("before | after | kept", CODE)
((_, NEWER),) = tables("step | before | written since | after `down` | told")
((_, STATEMENTS),) = tables("step | there before | after `up` | after `down`")
((_, REFUSED),) = tables("refused | because")
((QUARANTINED, LISTED),) = tables("before | after | listed", CODE)
((_, READERS),) = tables("in force | `MIN_READER` of 0004 | the application starts")


def named(code: str) -> dict[str, Any]:
    """What a file that holds this code sets."""
    namespace: dict[str, Any] = {}
    exec(f"{USES}{code}", namespace)
    return namespace


class Way:
    """One migration to version 4 and back, over records of the page."""

    def __init__(self, steps: list[Step]) -> None:
        self.migration = Migration(4, "of the page", steps, "0004_of_the_page.py", "sum")
        self.up_plan = Plan([self.migration], 3, "")
        self.up_plan.bind(NOW_MS, DEVICE, {})
        constants = self.up_plan.constants[4]
        applied = Applied("sum", "run", NOW_MS, DEVICE, 4, True, {}, constants)
        self.down_plan = Plan([self.migration], 4, "", down=True)
        self.down_plan.bind(0, "another", {4: applied})

    def up(self, text: str) -> tuple[str, str]:
        """The record after, and the row kept for it, or ""."""
        record, ledger = decode(text), Ledger()
        self._through(self.up_plan, record, ledger)
        kept = ledger.as_rows().get(4)
        return encode(record), "" if kept is None else encode(kept)

    def down(self, text: str, kept: str) -> tuple[str, list[str]]:
        """The record brought back with what was kept for it, and what that reports."""
        record, ledger = decode(text), Ledger()
        if kept:
            ledger.take(4, decode(kept))
        self._through(self.down_plan, record, ledger)
        return encode(record), [what for _, _, what in ledger.reports]

    def _through(self, plan: Plan, record: Any, ledger: Ledger) -> None:
        for a_pass in plan.passes:
            run_pass(a_pass, "tx_1", record, plan.contexts, ledger)


def test_the_page_shows_every_step() -> None:
    shown = "".join(code for code, _ in EXAMPLES)
    for kind in ("set_field", "remove_field", "rename_field", "map_value", "each", "move_record"):
        assert f"{kind}(" in shown + PAGE, kind
    assert len(EXAMPLES) >= 6
    assert len(NEWER) >= 15
    assert len(STATEMENTS) >= 8
    assert len(REFUSED) >= 8


@pytest.mark.parametrize(("code", "rows"), EXAMPLES)
def test_what_the_page_shows_is_what_the_steps_do(code: str, rows: list[list[str]]) -> None:
    way = Way(named(code)["STEPS"])
    assert way.migration.reversible
    for before, after, kept in (map(plain, row) for row in rows):
        if after == "the run stops":
            with pytest.raises(ValidationError):
                way.up(before)
            continue
        found, row = way.up(before)
        assert same_value(found, after), (before, found)
        assert row == kept, (before, row)
        back, reports = way.down(found, row)
        assert same_value(back, before), (before, back)
        assert reports == []


@pytest.mark.parametrize(("step", "before", "since", "after", "told"), NEWER)
def test_what_is_written_since_fares_as_the_page_says(
    step: str, before: str, since: str, after: str, told: str
) -> None:
    way = Way([eval(plain(step), named(""))])
    kept = "" if before == "new" else way.up(plain(before))[1]
    back, reports = way.down(plain(since), kept)
    assert same_value(back, plain(after)), back
    assert reports == ([told] if told else [])


def test_what_up_writes_stays_where_nothing_was_written_since() -> None:
    """The rows of the table above begin with what `up` left, or with a record it never saw."""
    for step, before, *_ in NEWER:
        if before != "new":
            way = Way([eval(plain(step), named(""))])
            text, kept = way.up(plain(before))
            assert same_value(way.down(text, kept)[0], plain(before)), step


def objects(connection: sqlite3.Connection) -> str:
    """Names of what is there beside the store and what SQLite makes by itself."""
    names = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    found = [name for (name,) in names if name != "transactions" and "sqlite_" not in name]
    return ", ".join(found)


@pytest.mark.parametrize(("step", "there", "after", "back"), STATEMENTS)
def test_a_statement_of_the_page_does_what_it_says(
    step: str, there: str, after: str, back: str
) -> None:
    statement: Step = eval(plain(step), named(""))
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE transactions (key TEXT PRIMARY KEY, value TEXT)")
    connection.execute("INSERT INTO transactions VALUES ('no JSON', '{')")
    if there:
        connection.execute(plain(there))
    if after == "the run stops":
        with pytest.raises(ValidationError):
            schema.run_statement(connection, statement, down=False)
        return
    nothing_done = schema.run_statement(connection, statement, down=False)
    assert objects(connection) == plain(after)
    assert statement.reversible is (back != "cannot be undone")
    if statement.reversible:
        if not nothing_done:  # as a run does, which notes it
            schema.run_statement(connection, statement, down=True)
        assert objects(connection) == plain(back)


def loaded(statement: str) -> None:
    """What loading a file with this statement does."""
    step = named("")["sql"](statement, None)
    plan = Plan([Migration(4, "x", [step], "0004_x.py", "")], 3, "")
    check_plan(plan, read_contracts(str(ROOT / "migrations")))


@pytest.mark.parametrize(("statement", "_why"), REFUSED)
def test_a_statement_that_the_page_calls_refused_is(statement: str, _why: str) -> None:
    for text in (plain(statement), plain(statement).lower(), f"-- harmless\n{plain(statement)}"):
        with pytest.raises(MigrationsRejected):
            loaded(text)
    loaded("CREATE TABLE fine (a)")


@pytest.mark.parametrize("on_new", ["keep", "remove"])
def test_a_table_with_rows_stays_unless_the_page_says_otherwise(on_new: str) -> None:
    step = named("")["sql"]("CREATE TABLE tips (minor INTEGER)", "DROP TABLE tips", on_new=on_new)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.run_statement(connection, step, down=False)
    connection.execute("INSERT INTO tips VALUES (150)")
    schema.run_statement(connection, step, down=True)
    assert objects(connection) == ("tips" if on_new == "keep" else "")


def test_an_index_over_json_keeps_out_what_is_none_unless_it_says_where() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE transactions (key TEXT PRIMARY KEY, value TEXT)")
    index = "CREATE INDEX i ON transactions (json_extract(value, '$.a'))"
    schema.run_statement(connection, named("")["sql"](index, None), down=False)
    with pytest.raises(sqlite3.Error):
        connection.execute("INSERT INTO transactions VALUES ('a', '{')")
    connection.execute("DROP INDEX i")
    connection.execute("INSERT INTO transactions VALUES ('a', '{')")
    with pytest.raises(ValidationError):
        schema.run_statement(connection, named("")["sql"](index, None), down=False)
    index += " WHERE json_valid(value)"
    schema.run_statement(connection, named("")["sql"](index, None), down=False)
    connection.execute("INSERT INTO transactions VALUES ('b', '{')")


# The same page on a terminal


@pytest.fixture
def at_three(tmp_path: Path) -> Terminal:
    """A terminal with its own migrations, at schema 3, whose application reads every version."""
    terminal = new_terminal(tmp_path / "at-three", records=60, unsettled=10)
    folder = terminal.own_migrations()
    reads(folder, [0, 9])
    assert terminal.boot().code == 0
    return terminal


def reads(folder: Path, versions: list[int]) -> None:
    path = folder / "stores.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), app_reads=versions)))


def ask(terminal: Terminal, statement: str, *given: Any) -> list[Any]:
    """The application at work: an ordinary client, closed again."""
    connection = sqlite3.connect(terminal.pos, isolation_level=None)
    try:
        return connection.execute(statement, given).fetchall()
    finally:
        connection.close()


def test_a_quarantine_of_the_page_leaves_what_it_says(at_three: Terminal) -> None:
    ask(at_three, "DELETE FROM balances")
    for number, (before, *_) in enumerate(LISTED):
        ask(at_three, "INSERT INTO balances VALUES (?, ?)", f"b{number}", plain(before))
    write(at_three, "0004_of_the_page.py", f"{USES}VERSION, NAME = 4, 'x'\n{QUARANTINED}")
    listed = sum(bool(row[2]) for row in LISTED)
    plan = at_three.run("plan", "--json").json
    assert plan["unreadable"]["balances"] + plan["left_behind"]["balances"] >= listed
    answer = at_three.boot()
    assert (answer.code, answer.json["verdict"]) == (14, "PARTIAL")
    assert answer.json["quarantined"] == listed
    told = {row["key"]: row for row in at_three.run("quarantine", "--json").json["quarantine"]}
    now = dict(ask(at_three, "SELECT key, value FROM balances"))
    for number, (_, after, words) in enumerate(LISTED):
        row = told.get(f"b{number}")
        assert words == ("" if row is None else f"at {row['version']}, {row['now']}")
        assert now[f"b{number}"] == plain(after)


def test_a_quarantine_with_a_barrier_in_between_is_refused(at_three: Terminal) -> None:
    write(
        at_three,
        "0004_barrier.py",
        f"{USES}VERSION, NAME, QUARANTINE = 4, 'x', True\n"
        "STEPS = [set_field('balances', 'a', 1), move_record('metadata', 'x', to_key='y'), "
        "set_field('balances', 'b', 1)]\n",
    )
    for verb in ("plan", "boot"):
        answer = at_three.run(verb)
        assert answer.code == 11
        assert "must stand on one side of move_record and sql steps" in answer.out + answer.err


@pytest.mark.parametrize(("force", "min_reader", "starts"), READERS)
def test_older_software_starts_on_newer_data_where_the_page_says_so(
    at_three: Terminal, force: str, min_reader: str, starts: str
) -> None:
    low, high, data = map(int, re.findall(r"\d+", force))
    line = "" if min_reader == "none" else f"MIN_READER = {min_reader}\n"
    path = at_three.root / "migrations/0004_of_the_page.py"
    path.write_text(f"VERSION, NAME, STEPS = {data}, 'x', []\n{line}")
    assert at_three.boot().code == 0
    path.unlink()
    reads(path.parent, [low, high])
    answer = at_three.boot()
    assert answer.json["app_may_start"] is (starts == "yes")
    assert answer.code == (8 if starts == "yes" else 12)
    assert answer.json["error"]["code"] == "SCHEMA_TOO_NEW"


def test_what_is_removed_is_kept_and_what_cannot_be_undone_keeps_nothing(
    at_three: Terminal,
) -> None:
    """The page: removing is not erasing."""
    kept = "SELECT count(*) FROM posagent WHERE kind LIKE 'undo:%' AND value LIKE '%secret%'"
    ask(at_three, "INSERT INTO balances VALUES ('b', '{\"note\":\"secret\"}')")
    write(
        at_three,
        "0004_removes.py",
        f"{USES}VERSION, NAME, STEPS = 4, 'x', [remove_field('balances', 'note')]\n",
    )
    assert at_three.boot().code == 0
    assert ask(at_three, kept) == [(1,)]
    write(
        at_three,
        "0005_cannot_be_undone.py",
        f"{USES}VERSION, NAME = 5, 'x'\n"
        "STEPS = [each('balances', lambda record, context: KEEP, fields=['note'])]\n",
    )
    assert at_three.boot().code == 0
    assert ask(at_three, kept) == [(0,)]
