"""Plans: fused passes mean the same as the migrations one by one, and `plan` tells before a run.

The reference is the plainest there is: one migration after the other, one step after the other,
over every record of a dict. The verb is run on sample terminals, whose root must stay byte for byte
as it was.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.meaning import move_keys, moves_done, replay, run_pass
from agent.core.migration import (
    KEEP,
    NOW,
    Migration,
    Step,
    each,
    map_value,
    move_record,
    remove_field,
    rename_field,
    set_field,
)
from agent.core.plan import Plan, check_plan, passes_of, plan_digest
from agent.core.steps import apply_step
from agent.core.stores import Contracts
from agent.ground.codec import decode, encode
from agent.ground.errors import MigrationsRejected, ValidationError
from tests import filesystems
from tests.independent_reader import same_value
from tests.terminals import Terminal, new_terminal

Data = dict[tuple[str, str], Any]
NOW_MS = 1_800_000_000_000


def plan_of(*steps_by_version: list[Step]) -> Plan:
    """A plan from 0 of migrations with these steps."""
    migrations = [
        Migration(version, f"m{version}", steps, f"{version:04d}_m.py", "")
        for version, steps in enumerate(steps_by_version, 1)
    ]
    return Plan(migrations, 0, "digest")


def move(step: Step, data: Data) -> None:
    """A move_record, in place."""
    source, target = (step.store, str(step.key)), (step.target[0], step.target[1])
    if source in data and target not in data:
        data[target] = data.pop(source)
    elif source in data and step.if_exists == "fail":
        raise ValidationError("two at one place")


def one_by_one(plan: Plan, data: Data) -> Data:
    """The reference: every step over every record before the next step begins."""
    data = {place: decode(text) for place, text in data.items()}
    contexts = plan.bind(NOW_MS, "device-1", {})
    for migration in plan.migrations:
        for step in migration.steps:
            if step.kind == "move_record":
                move(step, data)
                continue
            for (store, key), record in data.items():
                if store == step.store:
                    apply_step(step, key, record, contexts[migration.version])
                    # As between two runs: written and read again.
                    data[store, key] = decode(encode(record))
    return {place: encode(record) for place, record in data.items()}


def fused(plan: Plan, data: Data) -> Data:
    """The same by passes, as the batches do it: only what changed is written."""
    data = dict(data)
    contexts = plan.bind(NOW_MS, "device-1", {})
    for a_pass in plan.passes:
        if a_pass.kind == "move":
            move(a_pass.steps[0][1], data)
            continue
        for place, text in list(data.items()):
            if place[0] == a_pass.store and (a_pass.kind == "walk" or place[1] in a_pass.keys):
                record = decode(text)
                if run_pass(a_pass, place[1], record, contexts):
                    data[place] = encode(record)
    return data


def replayed(plan: Plan, data: Data) -> Data:
    """The same by the proof's reading, record by record."""
    contexts = plan.bind(NOW_MS, "device-1", {})
    moved = moves_done(plan, dict.fromkeys(data, True))
    after: Data = {}
    for (store, key), text in data.items():
        record = decode(text)
        new_store, new_key, changed, _ = replay(plan, store, key, record, contexts, moved)
        assert (new_store, new_key) not in after, "two records at one place"
        after[new_store, new_key] = encode(record) if changed else text
    return after


def tuple_of(record: Any, context: Any) -> Any:
    return {**record, "b": (record.get("a"), context.version)}


def count_up(record: Any, context: Any) -> Any:
    """Deliberately not idempotent."""
    count = record.get("c")
    record["c"] = count + 1 if type(count) is int else 0
    return record


FIELDS = ["a", "b", "a.b", "b.a", "c"]
STORES = ["s", "t"]
KEYS = ["k1", "k2", "k3"]
FIELD, STORE = st.sampled_from(FIELDS), st.sampled_from(STORES)
KEY = st.none() | st.sampled_from(KEYS)
MAPPING = {1: 2, "x": NOW, None: [], 2: "x"}
STEP = st.one_of(
    st.builds(
        set_field,
        STORE,
        FIELD,
        st.sampled_from([1, True, None, "x", NOW, {"b": NOW}, [1]]),
        if_missing=st.booleans(),
        key=KEY,
    ),
    st.builds(remove_field, STORE, FIELD, key=KEY),
    st.builds(rename_field, STORE, st.sampled_from(["a", "c"]), st.sampled_from(["b", "d.e"])),
    st.builds(map_value, STORE, FIELD, st.just(MAPPING), other=st.just("keep"), key=KEY),
    st.builds(
        each,
        STORE,
        st.sampled_from([tuple_of, count_up, lambda r, c: KEEP]),
        fields=st.just(["b", "c"]),
        key=KEY,
    ),
    st.builds(
        move_record,
        STORE,
        st.sampled_from(KEYS),
        to_key=st.sampled_from(["k4", "k5"]),
        to_store=STORE,
        if_exists=st.sampled_from(["fail", "keep"]),
    ),
)
RECORD = st.sampled_from(
    [
        "{}",
        '{"a":1}',
        '{"a":{"b":10.50}}',
        '{"b":true,"c":3}',
        '{"c":1e3}',
        '"text"',
        "[]",
        "null",
        '{"a":null,"b":"x"}',
        '{"a":{"b":1},"b":{"a":-0}}',
    ]
)


@given(
    st.lists(st.lists(STEP, max_size=4), min_size=1, max_size=3),
    st.dictionaries(st.tuples(STORE, st.sampled_from(KEYS)), RECORD, max_size=5),
)
def test_passes_and_replay_equal_the_migrations_one_by_one(
    steps: list[list[Step]], data: Data
) -> None:
    plan = plan_of(*steps)
    try:
        expected = one_by_one(plan, data)
    except ValidationError:
        # Passes look at records in another order, but what cannot be done cannot be done.
        with pytest.raises(ValidationError):
            fused(plan, data)
        return
    for way in (fused, replayed):
        found = way(plan, data)
        assert found.keys() == expected.keys(), way.__name__
        for place, text in expected.items():
            assert same_value(found[place], text), (way.__name__, place, found[place], text)


def test_steps_over_one_store_share_a_pass_up_to_a_move() -> None:
    plan = plan_of(
        [set_field("s", "a", 1), set_field("t", "a", 1)],
        [
            set_field("s", "b", 1),
            move_record("s", "k1", to_key="k4"),
            set_field("s", "c", 1, key="k4"),
        ],
        [set_field("s", "d", 1, key="k5")],
    )
    assert [(p.kind, p.store, [v for v, _ in p.steps]) for p in plan.passes] == [
        ("walk", "s", [1, 2]),
        ("walk", "t", [1]),
        ("move", "s", [2]),
        ("pick", "s", [2, 3]),
    ]
    assert plan.passes[3].keys == ["k4", "k5"]


MOVES = [
    # name, moves (source key, target key, if_exists), keys there, moved, refused
    ("simple", [("a", "b", "fail")], "a", {0}, False),
    ("nothing there", [("a", "b", "fail")], "c", set(), False),
    ("taken", [("a", "b", "fail")], "ab", set(), True),
    ("taken, both stay", [("a", "b", "keep")], "ab", set(), False),
    ("a chain", [("a", "b", "fail"), ("b", "c", "fail")], "a", {0, 1}, False),
    ("room is made first", [("b", "c", "fail"), ("a", "b", "fail")], "ab", {0, 1}, False),
    (
        "an exchange",
        [("a", "x", "fail"), ("b", "a", "fail"), ("x", "b", "fail")],
        "ab",
        {0, 1, 2},
        False,
    ),
    ("once only", [("a", "b", "fail"), ("a", "c", "fail")], "a", {0}, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "moves", "there", "moved", "refused"), MOVES)
def test_moves_are_simulated_as_they_will_run(
    name: str, moves: list[tuple[str, str, str]], there: str, moved: set[int], refused: bool
) -> None:
    plan = plan_of([move_record("s", a, to_key=b, if_exists=how) for a, b, how in moves])
    present = {("s", key): True for key in there}
    if refused:
        with pytest.raises(ValueError, match="cannot move"):
            moves_done(plan, present)
        return
    assert moves_done(plan, present) == moved
    assert set(move_keys(plan)) == {("s", k) for a, b, _ in moves for k in (a, b)}
    data: Data = {("s", key): f'"{key}"' for key in there}
    assert replayed(plan, data) == one_by_one(plan, data)


def test_stores_between_which_records_move_are_judged_together() -> None:
    plan = plan_of(
        [move_record("s", "a", to_key="a", to_store="t"), move_record("u", "a", to_key="b")],
        [move_record("t", "b", to_key="b", to_store="v")],
    )
    assert plan.store_groups() == dict.fromkeys("stv", "s+t+v")
    assert plan.stores() == set("stuv")


def test_a_plan_is_another_one_when_anything_of_it_changes() -> None:
    digests = [
        plan_digest(["a", "b"], "c", 0),
        plan_digest(["b", "a"], "c", 0),
        plan_digest(["a"], "c", 0),
        plan_digest(["a", "b", "d"], "c", 0),
        plan_digest(["a", "b"], "d", 0),
        plan_digest(["a", "b"], "c", 1),
        plan_digest(["ab"], "c", 0),
    ]
    assert len(set(digests)) == len(digests)
    assert plan_digest(["a", "b"], "c", 0) == digests[0]


def test_steps_on_no_store_and_on_a_store_kept_byte_for_byte_are_refused() -> None:
    contracts = Contracts(
        {
            "format": 1,
            "app_reads": [0, 9],
            "versions": [
                {"since": 0, "stores": {"s": {}, "keep": {"bytes_exact": True}}},
                {"since": 1, "stores": {"s": {}, "keep": {"bytes_exact": True}, "late": {}}},
            ],
        },
        "",
    )
    check_plan(plan_of([set_field("s", "a", 1)], [set_field("late", "a", 1)]), contracts)
    for step, word in (
        (set_field("t", "a", 1), "not a store"),
        (set_field("late", "a", 1), "not a store"),
        (set_field("keep", "a", 1), "byte for byte"),
        (move_record("s", "a", to_key="a", to_store="keep"), "byte for byte"),
        (move_record("s", "a", to_key="a", to_store="x"), "not a store"),
    ):
        with pytest.raises(MigrationsRejected, match=word):
            check_plan(plan_of([step]), contracts)


def test_steps_given_to_a_plan_are_not_changed_by_running_it() -> None:
    value = {"list": [NOW]}
    plan = plan_of([set_field("s", "a", value), set_field("s", "a.more", 1)])
    before = copy.deepcopy([p.describe() for p in passes_of(plan.migrations)])
    fused(plan, {("s", "k1"): "{}", ("s", "k2"): "{}"})
    assert value == {"list": [NOW]}
    assert [p.describe() for p in plan.passes] == before


# The verb


def whole_root(root: Path) -> dict[str, Any]:
    """Every name under a root with its content, mode and time of change."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        status = os.lstat(path)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (content, status.st_mode, status.st_mtime_ns, status.st_nlink)
    return found


def planned(terminal: Terminal, code: int = 0) -> dict[str, Any]:
    """What `plan` answers, seeing that it changes nothing."""
    before = whole_root(terminal.root)
    answer = terminal.run("plan", "--json")
    assert answer.code == code, answer.out + answer.err
    assert whole_root(terminal.root) == before
    return answer.json


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("layout", ["rowid", "without-rowid"])
def test_plan_tells_what_a_run_then_does(tmp_path: Path, journal: str, layout: str) -> None:
    terminal = new_terminal(
        tmp_path, journal=journal, layout=layout, overrides={"batch_rows_max": 100}
    )
    plan = planned(terminal)
    assert (plan["from_version"], plan["to_version"], plan["refusals"]) == (0, 3, [])
    assert [m["version"] for m in plan["migrations"]] == [1, 2, 3]
    assert [(p["kind"], p["store"]) for p in plan["passes"]][4:] == [
        ("move", "metadata"),
        ("pick", "metadata"),
    ]
    walked = plan["passes"][0]
    assert walked["records"] == len(terminal.read().stores["transactions"])
    assert walked["batches"] >= -(-walked["records"] // 100)
    space = plan["space"]
    assert space["file_bytes"] == terminal.pos.stat().st_size
    assert space["total_bytes"] > 2 * space["file_bytes"] + space["backup_bytes"]
    assert plan["flash_written_bytes_estimate"] > space["file_bytes"]
    assert plan["time_ms_estimate"] > 0
    run = terminal.boot().json
    assert run["records"] == sum(p["records"] for p in plan["passes"][:4])
    assert run["unsettled"] == plan["unsettled"]["records"]
    kept = terminal.backups / run["backup"]["name"]
    assert kept.stat().st_size <= space["backup_bytes"] + 32 * run["unsettled"]
    after = planned(terminal)
    assert (after["from_version"], after["passes"], after["refusals"]) == (3, [], [])


def test_plan_leaves_a_live_wal_alone_and_says_that_its_figures_are_older(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path, journal="wal")
    count = len(terminal.read().stores["transactions"])
    db = sqlite3.connect(terminal.pos)
    db.execute("INSERT INTO transactions VALUES ('tx_new', '{\"status\":\"pending\"}')")
    db.commit()
    wal = Path(f"{terminal.pos}-wal").read_bytes()
    db.close()
    Path(f"{terminal.pos}-wal").write_bytes(wal)  # as a power cut leaves it
    with sqlite3.connect(f"file:{terminal.pos}?immutable=1", uri=True) as main:
        there = main.execute("SELECT count(*) FROM transactions").fetchone()[0]
    plan = planned(terminal)
    assert plan["passes"][0]["records"] == there >= count
    assert any("without the application's last writes" in note for note in plan["notes"])


def test_plan_leaves_a_hot_journal_alone_and_says_so(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path)
    journal = Path(f"{terminal.pos}-journal")
    db = sqlite3.connect(terminal.pos, isolation_level=None)
    db.execute("PRAGMA cache_size=5")
    db.execute("BEGIN")
    db.execute("UPDATE transactions SET value = value || ' '")  # spilled: half of it is in the file
    torn = terminal.pos.read_bytes(), journal.read_bytes()
    db.execute("ROLLBACK")
    db.close()
    for path, content in zip((terminal.pos, journal), torn):
        path.write_bytes(content)
    plan = planned(terminal)
    assert any("-journal holds content" in note for note in plan["notes"])
    assert terminal.boot().code == 0


def test_plan_reads_beside_an_application_and_names_it(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path, journal="wal")
    db = sqlite3.connect(terminal.pos)
    try:
        db.execute("INSERT INTO transactions VALUES ('tx_new', '{\"status\":\"pending\"}')")
        db.commit()
        digest = terminal.sha256()
        plan = terminal.run("plan", "--json").json
        assert terminal.sha256() == digest
        assert plan["passes"][0]["records"] == len(terminal.read().stores["transactions"])
        assert any("is open in" in note for note in plan["notes"])
    finally:
        db.close()


def one_refusal(terminal: Terminal, code: int, word: str) -> dict[str, Any]:
    refusals = planned(terminal, code)["refusals"]
    assert refusals[0]["code"] == word, refusals
    return dict(refusals[0])


def test_plan_names_each_record_that_cannot_be_read(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path, bad_share=0.02, bad_kinds=("truncated", "nan", "blob"))
    plan = planned(terminal, 10)
    assert plan["unreadable"] == {"transactions": 6}
    assert 1 <= len(plan["refusals"]) <= 6
    assert all(r["code"] == "VALIDATION_ERROR" for r in plan["refusals"])


def test_plan_says_what_a_run_would_be_refused_for(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path)
    terminal.configure(unsettled_guard="refuse")
    refusal = one_refusal(terminal, 13, "UNSETTLED")
    assert refusal["facts"]["records"] == terminal.boot().json["error"]["facts"]["records"]
    terminal.configure(unsettled_guard="preserve", pos_db_bytes_max=65536)
    one_refusal(terminal, 6, "STORAGE_ERROR")
    terminal.configure(pos_db_bytes_max=1 << 30)
    os.link(terminal.pos, tmp_path / "another name")
    one_refusal(terminal, 78, "CONFIG")
    (tmp_path / "another name").unlink()
    with sqlite3.connect(terminal.pos) as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    one_refusal(terminal, 8, "SCHEMA_TOO_NEW")


def test_plan_and_run_need_the_same_space(tmp_path: Path) -> None:
    with filesystems.tmpfs(tmp_path / "terminal", 24 << 20) as root:
        terminal = new_terminal(root)
        terminal.configure(reserve_bytes=4096)
        assert planned(terminal)["refusals"] == []
        terminal.configure(reserve_bytes=32 << 20)
        refusal = one_refusal(terminal, 6, "STORAGE_ERROR")
        facts = terminal.boot().json["error"]["facts"]
        assert refusal["facts"]["needed_bytes"] == facts["needed_bytes"]
        terminal.configure(reserve_bytes=4096)
        assert terminal.boot().code == 0


def test_plan_tries_the_steps_on_some_records(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path)
    (terminal.own_migrations() / "0004_fails.py").write_text(
        "from agent.core.migration import each\n"
        "VERSION, NAME = 4, 'fails'\n"
        "STEPS = [each('transactions', lambda r, c: r['nowhere'], fields=['a'])]\n"
    )
    refusal = one_refusal(terminal, 10, "VALIDATION_ERROR")
    assert "KeyError" in refusal["message"] or "0004_fails.py, line 3" in refusal["message"]


@pytest.mark.parametrize("where", ["while it is loaded", "in a step"])
def test_plan_does_not_wait_for_ever_for_a_migration_that_hangs(tmp_path: Path, where: str) -> None:
    terminal = new_terminal(tmp_path)
    terminal.configure(deadline_ms=500)
    text = "while True:\n    pass\n"
    if where == "in a step":
        text = (
            "from agent.core.migration import each\n"
            "def up(record, context):\n    while True:\n        pass\n"
            "VERSION, NAME = 4, 'hangs'\n"
            "STEPS = [each('balances', up, fields=['a'])]\n"
        )
    (terminal.own_migrations() / "0004_hangs.py").write_text(text)
    error = planned(terminal, 7)["error"]
    assert error["code"] == "TIMEOUT"
    assert ("balances" if where == "in a step" else "loading") in error["message"]


def test_plan_tells_of_a_plan_that_was_given_up(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path)
    (terminal.own_migrations() / "0004_dies.py").write_text(
        "import os\n"
        "from agent.core.migration import each\n"
        "VERSION, NAME = 4, 'dies'\n"
        "def up(record, context):\n"
        "    os._exit(9) if os.path.exists('/proc/self/fd') and DIES else None\n"
        "    return record\n"
        "DIES = not __import__('sys').argv[-2:] == ['plan', '--json']\n"
        "STEPS = [each('transactions', up, fields=['a'])]\n"
    )
    assert terminal.boot().code == 1
    refusal = one_refusal(terminal, 1, "FAILED")
    assert refusal["facts"]["cause"] == "GIVEN_UP"


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 100])
def test_plan_on_what_is_no_database_says_so(tmp_path: Path, content: bytes | None) -> None:
    terminal = new_terminal(tmp_path)
    terminal.pos.unlink()
    if content is not None:
        terminal.pos.write_bytes(content)
    one_refusal(terminal, 12, "HELD")
