"""Records that a migration cannot do and was allowed to leave: byte for byte, listed, counted.

The real command on sample terminals with migrations of the test's own; an ordinary SQLite client
plays the application, and the independent reader says what is there. Scenario A11, one bad record,
comes first. `python -m tests.test_quarantine SEED ...` replays cases of the seeded test.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.edges import database
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import ValidationError
from agent.verbs import moving, rows
from agent.verbs.prove import prove_migration
from tests import independent_reader as reader
from tests import killing
from tests.terminals import COMMAND, Answer, Terminal, new_terminal
from tools.termsim.shapes import LARGE_BYTES, spoil

KINDS = (
    "truncated",
    "duplicate_key",
    "nan",
    "blob",
    "deep",
    "lone_surrogate",
    "nul",
    "not_utf8",
    "null",
    "empty",
    "huge",
)
PLAIN = '{"amount":1250,"currency":"EUR","status":"completed","rate":10.50}'
PENDING = PLAIN.replace("completed", "pending")
LIMITS = (LARGE_BYTES, 64)  # the largest record in bytes and its deepest nesting, of `generic`
PARTIAL = (14, "PARTIAL")


def counts(number: int, store: str = "balances", needs: str = "", more: str = "") -> str:
    """A migration that numbers each record, and fails on those whose `bad` names it."""
    look = f"    record[{needs!r}]\n" if needs else ""
    return (
        "def up(record, context):\n"
        f"{look}"
        f"    if {number} in record.get('bad', ()): raise ValueError(record)\n"
        f"    record['v{number}'] = len(record)\n"
        "    return record\n"
        f"STEPS = [each({store!r}, up, UNDO, fields=['v{number}']){more}]\n"
    )


def small(root: Path, *bodies: str, quarantine: Iterable[int] = (), **recipe: Any) -> Terminal:
    """A terminal at schema 0 with these migrations alone."""
    terminal = new_terminal(root, **{"records": 40, "unsettled": 6, **recipe})
    for path in terminal.own_migrations().glob("[0-9]*.py"):
        path.unlink()
    for version, body in enumerate(bodies, 1):
        install(terminal, version, body, version in set(quarantine))
    return terminal


def install(terminal: Terminal, version: int, body: str, quarantine: bool = False) -> Path:
    """One more migration, in place of one that is there; the application reads every version."""
    folder = terminal.own_migrations()
    path = folder / f"{version:04d}_of_the_test.py"
    path.write_text(
        f"from agent.core.migration import *\nVERSION, NAME = {version}, 'of the test'\n{body}\n"
        + ("QUARANTINE = True\n" if quarantine else "")
    )
    stores = json.loads((folder / "stores.json").read_text())
    stores["app_reads"] = [0, 9]
    (folder / "stores.json").write_text(json.dumps(stores))
    return path


def twin_of(terminal: Terminal, name: str) -> Terminal:
    """A copy of the whole terminal as it is now."""
    twin = Terminal(terminal.root.parent / name)
    shutil.copytree(terminal.root, twin.root)
    return twin


def sql(terminal: Terminal, statement: str, *given: Any) -> list[Any]:
    """The application at work: an ordinary client, closed again."""
    with closing(sqlite3.connect(terminal.pos, isolation_level=None)) as db:
        return db.execute(statement, given).fetchall()


def put(terminal: Terminal, store: str, key: Any, value: Any, as_text: bool = False) -> None:
    """Write a record; bytes become a BLOB, or with `as_text` a text of just those bytes."""
    sql(terminal, f"INSERT OR REPLACE INTO {store} VALUES (?, ?)", key, value)
    if as_text:
        sql(terminal, f"UPDATE {store} SET value = CAST(value AS TEXT) WHERE key = ?", key)


def put_bad(terminal: Terminal, store: str, key: str, kind: str, text: str = PLAIN) -> None:
    put(terminal, store, key, spoil(kind, text), kind == "not_utf8")


def ended(answer: Answer, code: int, verdict: str) -> dict[str, Any]:
    """The answer of a run that ended like that."""
    assert (answer.code, answer.json["verdict"]) == (code, verdict), answer.out + answer.err
    return answer.json


def partial(terminal: Terminal, count: int, *words: str) -> dict[str, Any]:
    """A run that leaves so many records behind, and says so."""
    result = ended(terminal.run(*(words or ("boot",)), "--json"), *PARTIAL)
    assert result["quarantined"] == count == len(listed(terminal))
    assert result["app_may_start"]
    return result


def complete(terminal: Terminal, *words: str) -> dict[str, Any]:
    """A run that leaves nothing behind."""
    result = ended(terminal.run(*(words or ("boot",)), "--json"), 0, "OK")
    assert result["quarantined"] == 0
    assert listed(terminal) == {}
    return result


def stopped(terminal: Terminal, code: int, words: str) -> dict[str, Any]:
    """A boot that changes nothing, for a reason in which these words stand."""
    before, names = terminal.sha256(), terminal.listing()
    answer = terminal.boot()
    assert answer.code == code, answer.out
    error: dict[str, Any] = answer.json["error"]
    assert words in error["message"], error
    assert (terminal.sha256(), terminal.listing()) == (before, names)
    assert answer.json["app_may_start"]
    return error


def listed(terminal: Terminal) -> dict[tuple[str, str], dict[str, Any]]:
    """What `posagent quarantine` lists, by store and key as they are shown."""
    answer = terminal.run("quarantine", "--json")
    assert answer.code == 0, answer.out
    found = answer.json["quarantine"]
    assert all(row.keys() == {"store", "key", "version", "reason", "now"} for row in found)
    return {(row["store"], row["key"]): row for row in found}


def versions(terminal: Terminal) -> dict[str, int]:
    """The listed records that are as they were left, "store/key" to the version they are at."""
    found = listed(terminal)
    return {"/".join(place): r["version"] for place, r in found.items() if r["now"] == "left"}


def own_rows(pos: Path, kinds: str = "kind = 'quarantine'") -> list[tuple[str, str, str]]:
    """Rows of our table, read with our own SQL."""
    with reader.opened(pos) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'posagent'").fetchone():
            return []
        select = f"SELECT kind, key, value FROM posagent WHERE {kinds} ORDER BY kind, key"
        return db.execute(select).fetchall()


def of(terminal: Terminal, store: str, key: str) -> reader.Raw:
    return terminal.read().stores[store][key]


def value_of(terminal: Terminal, store: str, key: str) -> dict[str, Any]:
    """A record's value; numbers as their literals."""
    found: dict[str, Any] = json.loads(
        str(of(terminal, store, key)), parse_int=str, parse_float=str
    )
    return found


def changed(one: dict[str, reader.Raw], other: dict[str, reader.Raw]) -> list[str]:
    """The keys whose values differ, or that only one side has."""
    return sorted(
        key
        for key in one.keys() | other.keys()
        if key not in one or key not in other or not reader.same_value(one[key], other[key])
    )


# --- A11: one bad record -------------------------------------------------------------------------


def test_a11_one_bad_record_does_not_stop_the_run_and_is_neither_dropped_nor_defaulted(
    tmp_path: Path,
) -> None:
    body = counts(1, "transactions", needs="timestamp")
    terminal = small(tmp_path / "t", body, quarantine=[1], records=2000, unsettled=40)
    terminal.configure(quarantine_unsettled=True)
    keys = [key for (key,) in sql(terminal, "SELECT key FROM transactions ORDER BY rowid")]
    half, lacking = keys[1776], keys[1801]
    whole = str(of(terminal, "transactions", half))
    put_half = "UPDATE transactions SET value = ? WHERE key = ?"
    sql(terminal, put_half, whole[: len(whole) // 2], half)
    sql(terminal, put_half, PLAIN, lacking)
    before, unsettled = terminal.read().stores, reader.unsettled(terminal.pos)
    money = reader.money(terminal.pos)

    result = partial(terminal, 2)
    assert (result["records"], result["to_version"]) == (sum(map(len, before.values())), 1)
    after = terminal.read().stores
    assert {k: after["transactions"][k] for k in (half, lacking)} == {
        k: before["transactions"][k] for k in (half, lacking)
    }
    others = [k for k in keys if k not in (half, lacking, "transaction-queue")]
    assert all('"v1":' in str(after["transactions"][key]) for key in others)
    assert reader.money(terminal.pos) == money
    assert reader.unsettled(terminal.pos).keys() == unsettled.keys()

    found = listed(terminal)
    assert {key: (row["version"], row["now"]) for (_, key), row in found.items()} == {
        half: (0, "left"),
        lacking: (0, "left"),
    }
    assert "KeyError in 0001_of_the_test.py" in found["transactions", lacking]["reason"]
    told = terminal.run("quarantine").out + terminal.run("quarantine", "--json").out
    assert half in told
    assert "1250" not in told, "no body, nor a part of one, is told"
    assert whole[: len(whole) // 2] not in told

    settled = terminal.sha256()
    assert ended(terminal.boot(), 0, "NOT_REQUIRED")
    assert terminal.sha256() == settled, "running again changes nothing"

    install(terminal, 2, "STEPS = [set_field('transactions', 'second', True)]")
    partial(terminal, 2)
    again = terminal.read().stores["transactions"]
    assert [again[k] for k in (half, lacking)] == [
        before["transactions"][k] for k in (half, lacking)
    ]
    put(terminal, "transactions", "tx_newer", PENDING)
    partial(terminal, 1, "rollback", "--to", "0")  # what can be read is an ordinary record again
    back = terminal.read().stores["transactions"]
    assert back.pop("tx_newer") == PENDING
    assert changed(before["transactions"], back) == []
    assert versions(terminal) == {f"transactions/{half}": 0}


# --- every kind of defect ------------------------------------------------------------------------


class Way(NamedTuple):
    """How a migration comes to a record, with the shape of a migration that does."""

    name: str
    body: str

    def migration(self, store: str) -> str:
        return self.body.replace("STORE", repr(store)).replace("KINDS", repr(KINDS))


WAYS = (
    Way("walked", "STEPS = [set_field(STORE, 'seen', True)]"),
    Way("walked, not only appended to", "STEPS = [rename_field(STORE, 'rate', 'quote')]"),
    Way("picked", "STEPS = [set_field(STORE, 'seen', True, key='bad_' + kind) for kind in KINDS]"),
    Way("moved", "STEPS = [move_record(STORE, 'bad_' + kind, to_key=kind) for kind in KINDS]"),
    Way(
        "moved and picked",
        "STEPS = [move_record(STORE, 'bad_' + kind, to_key=kind) for kind in KINDS]\n"
        "STEPS += [set_field(STORE, 'seen', True, key=kind) for kind in KINDS]",
    ),
)


@pytest.mark.parametrize(
    ("store", "layout"), [("balances", "rowid"), ("transactions", "without-rowid")]
)
@pytest.mark.parametrize("way", WAYS, ids=[way.name for way in WAYS])
def test_a_record_with_any_defect_stays_byte_for_byte_where_it_is(
    tmp_path: Path, way: Way, store: str, layout: str
) -> None:
    body = way.migration(store)
    terminal = small(tmp_path / "t", body, quarantine=[1], layout=layout)
    # A record that nobody can read may be unsettled, where any of its store is.
    terminal.configure(quarantine_unsettled=store != "balances", batch_rows_max=16)
    for kind in KINDS:
        put_bad(terminal, store, f"bad_{kind}", kind)
    before = terminal.read().stores[store]
    unsettled = reader.unsettled(terminal.pos)
    partial(terminal, len(KINDS))
    after = terminal.read().stores[store]
    assert {k: v for k, v in after.items() if k.startswith("bad_")} == {
        k: v for k, v in before.items() if k.startswith("bad_")
    }
    assert not after.keys() & set(KINDS)
    assert versions(terminal) == {f"{store}/bad_{kind}": 0 for kind in KINDS}
    assert reader.unsettled(terminal.pos).keys() == unsettled.keys()
    # A later plan, and the way back, leave them as well.
    install(terminal, 2, f"STEPS = [set_field({store!r}, 'second', 2)]")
    partial(terminal, len(KINDS))
    put(terminal, "metadata", "newer", "{}")
    partial(terminal, len(KINDS), "rollback", "--to", "0")
    assert changed(before, terminal.read().stores[store]) == []
    assert versions(terminal) == {f"{store}/bad_{kind}": 0 for kind in KINDS}


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2], WAYS[3]], ids=["walked", "picked", "moved"])
def test_without_the_declaration_a_record_with_any_defect_stops_the_run(
    tmp_path: Path, way: Way
) -> None:
    template = small(tmp_path / "t", way.migration("balances"))
    for kind in KINDS:
        terminal = twin_of(template, kind)
        put_bad(terminal, "balances", f"bad_{kind}", kind)
        where = "is text that is not UTF-8" if kind == "not_utf8" else f"balances/bad_{kind}"
        assert stopped(terminal, 10, where)["code"] == "VALIDATION_ERROR"
        assert own_rows(terminal.pos) == []


def test_a_store_of_which_only_single_records_are_named_keeps_the_others_whatever_they_hold(
    tmp_path: Path,
) -> None:
    for number, step in enumerate(
        (
            "set_field('transactions', 'seen', 1, key='named')",
            "move_record('transactions', 'named', to_key='moved')",
            "move_record('transactions', 'named', to_store='balances', to_key='moved')",
        )
    ):
        terminal = small(tmp_path / str(number), f"STEPS = [{step}]", quarantine=[1])
        terminal.configure(quarantine_unsettled=True)
        put(terminal, "transactions", "named", PLAIN)
        for kind in KINDS:
            put_bad(terminal, "transactions", f"bad_{kind}", kind)
        if number == 2:  # else the sale would leave the money's store
            put(terminal, "transactions", "named", "{}")
        before = terminal.read().stores["transactions"]
        complete(terminal)
        after = terminal.read().stores["transactions"]
        assert {k: v for k, v in after.items() if k not in ("named", "moved")} == {
            k: v for k, v in before.items() if k != "named"
        }
        put(terminal, "metadata", "newer", "{}")
        complete(terminal, "rollback", "--to", "0")
        assert terminal.read().stores["transactions"] == before
        # A migration without the declaration asks for each of them, after this one as with it.
        install(terminal, 2, "STEPS = [set_field('transactions', 'second', 2, key='named')]")
        answer = terminal.run("migrate", "--json")
        assert (answer.code, terminal.read().schema_version) == (10, 0), answer.out


@pytest.mark.parametrize("layout", ["rowid", "without-rowid"])
def test_a_key_that_is_no_text_or_no_utf8_is_left_like_any_other_record(
    tmp_path: Path, layout: str
) -> None:
    body = "STEPS = [set_field('transactions', 'seen', True)]"
    terminal = small(tmp_path / "t", body, quarantine=[1], layout=layout)
    terminal.configure(quarantine_unsettled=True, batch_rows_max=1)  # each ends a batch
    for number in range(3):
        put(terminal, "transactions", b"zz\xfe%d" % number, PLAIN)
        insert = "INSERT INTO transactions VALUES (CAST(? AS TEXT), ?)"
        sql(terminal, insert, b"zz\xff%d" % number, PLAIN)
    select = "SELECT CAST(key AS BLOB), value FROM transactions WHERE key >= 'zz'"
    before = sql(terminal, select)
    partial_ended = ended(terminal.boot(), *PARTIAL)
    assert (partial_ended["quarantined"], len(before)) == (6, 6)
    assert sql(terminal, select) == before
    reasons = {row["reason"] for row in terminal.run("quarantine", "--json").json["quarantine"]}
    assert reasons == {"its key is bytes, not text", "it is text that is not UTF-8"}
    put(terminal, "metadata", "newer", "{}")
    assert ended(terminal.run("rollback", "--to", "0", "--json"), *PARTIAL)["quarantined"] == 6
    assert sql(terminal, select) == before


def test_a_record_that_a_step_would_make_too_large_is_left_as_it_was(tmp_path: Path) -> None:
    bodies = ("STEPS = [set_field('balances', 'first', 1)]", counts(2))
    for number, body in enumerate(bodies, 1):
        terminal = small(tmp_path / str(number), body.replace("2", "1"), quarantine=[1])
        terminal.configure(record_bytes_max=65536)
        put(terminal, "balances", "large", json.dumps({"pad": "x" * 65526}, separators=(",", ":")))
        before = of(terminal, "balances", "large")
        partial(terminal, 1)
        assert of(terminal, "balances", "large") == before
        reason = listed(terminal)["balances", "large"]["reason"]
        assert reason == "its value is larger than 65536 bytes"


def test_more_than_a_thousand_bad_records_stop_the_run(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1), quarantine=[1])
    with closing(sqlite3.connect(terminal.pos)) as db:
        bad = ((f"bad_{n}", '{"bad":[1]}') for n in range(1001))
        db.executemany("INSERT INTO balances VALUES (?, ?)", bad)
        db.commit()
    error = stopped(terminal, 10, "more than 1000 records cannot be migrated")
    assert "balances/bad_1000" in error["message"]
    sql(terminal, "DELETE FROM balances WHERE key = 'bad_1000'")
    partial(terminal, 1000)


def test_a_key_that_looks_like_a_card_number_is_masked_wherever_it_is_told(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1), quarantine=[1])
    put(terminal, "balances", "card 4111111111111111: x", '{"bad":[1],"pan":"5500005555555559"}')
    result = partial(terminal, 1)
    (row,) = listed(terminal).values()
    assert row["key"] == "card 411111******1111: x"
    told = [terminal.run(*words).out for words in (("quarantine",), ("history", "--json"))]
    told += [json.dumps(row), json.dumps(result), repr(own_rows(terminal.pos, "1"))]
    for number in ("4111111111111111", "5500005555555559"):
        assert not any(number in text for text in told)


# --- several migrations at once ------------------------------------------------------------------


def test_a_record_that_only_the_second_of_three_cannot_do_is_as_the_first_one_made_it(
    tmp_path: Path,
) -> None:
    terminal = small(tmp_path / "t", counts(1), counts(2), counts(3), quarantine=[2])
    put(terminal, "balances", "odd", '{"bad": [2], "rate": 10.50}')
    twin = twin_of(terminal, "twin")
    for version in (2, 3):
        next((twin.root / "migrations").glob(f"{version:04d}_*.py")).unlink()
    complete(twin)
    partial(terminal, 1)
    assert of(terminal, "balances", "odd") == of(twin, "balances", "odd")
    assert value_of(terminal, "balances", "odd") == {"bad": ["2"], "rate": "10.50", "v1": "2"}
    assert versions(terminal) == {"balances/odd": 1}
    others = [k for k in terminal.read().stores["balances"] if k != "odd"]
    assert all({"v1", "v2", "v3"} <= value_of(terminal, "balances", k).keys() for k in others)


def test_an_unsettled_record_left_in_a_later_pass_may_be_spaced_as_its_application_wrote_it(
    tmp_path: Path,
) -> None:
    first = (
        "STEPS = [set_field('transactions', 'first', 1), sql('CREATE INDEX i ON sync(key)', None)]"
    )
    second = "STEPS = [rename_field('transactions', 'rate', 'quote')]"
    terminal = small(tmp_path / "t", first, second, quarantine=[2])
    terminal.configure(quarantine_unsettled=True)
    put(terminal, "transactions", "odd", '{"status": "pending", "rate": 1, "quote": 2}')
    partial(terminal, 1)
    assert of(terminal, "transactions", "odd") == (
        '{"status": "pending", "rate": 1, "quote": 2,"first":1}'
    )
    assert versions(terminal) == {"transactions/odd": 1}


def test_a_record_that_a_migration_without_the_declaration_cannot_do_stops_the_run(
    tmp_path: Path,
) -> None:
    terminal = small(tmp_path / "t", counts(1), counts(2), counts(3), quarantine=[2])
    for number in (1, 3):
        put(terminal, "balances", "odd", f'{{"bad":[{number}]}}')
        stopped(terminal, 10, f"balances/odd: ValueError in {number:04d}_of_the_test.py")
    # What the second has left, the third does not come to.
    put(terminal, "balances", "odd", '{"bad":[2,3]}')
    partial(terminal, 1)
    assert versions(terminal) == {"balances/odd": 1}


@pytest.mark.parametrize(
    "steps",
    [
        "set_field('balances', 'a', 1), sql('CREATE INDEX i ON sync(value)', None), "
        "set_field('balances', 'b', 2)",
        "set_field('balances', 'a', 1, key='x'), move_record('sync', 'x', to_key='y'), "
        "remove_field('balances', 'b', key='y')",
        "set_field('balances', 'a', 1, key='x'), "
        "move_record('balances', 'x', to_store='metadata', to_key='y'), "
        "set_field('metadata', 'b', 2, key='y')",
        "set_field('balances', 'a', 1), "
        "move_record('balances', 'x', to_store='metadata', to_key='y'), "
        "set_field('metadata', 'b', 2)",
    ],
)
def test_a_migration_that_could_do_half_a_record_may_not_declare_it(
    tmp_path: Path, steps: str
) -> None:
    terminal = small(tmp_path / "t", f"STEPS = [{steps}]", quarantine=[1])
    error = stopped(terminal, 11, "with QUARANTINE")
    assert error["code"] == "MIGRATIONS_REJECTED"
    assert terminal.run("plan", "--json").code == 11
    install(terminal, 1, f"STEPS = [{steps}]")
    complete(terminal)


def test_the_declaration_is_yes_or_no(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1) + "QUARANTINE = 'yes'\n")
    stopped(terminal, 11, "QUARANTINE must be True or False")


def test_a_record_that_its_migration_cannot_do_behind_a_move_is_not_moved(tmp_path: Path) -> None:
    body = counts(1, more="").replace("STEPS = [", "STEPS = [MOVE, ")
    move = "move_record('balances', 'old', to_key='new')"
    terminal = small(tmp_path / "t", body.replace("MOVE", move), quarantine=[1])
    put(terminal, "balances", "old", '{"bad":[1]}')
    partial(terminal, 1)
    found = terminal.read().stores["balances"]
    assert ("new" in found, found["old"]) == (False, '{"bad":[1]}')
    assert versions(terminal) == {"balances/old": 0}
    put(terminal, "metadata", "newer", "{}")
    complete(terminal, "rollback", "--to", "0")
    assert of(terminal, "balances", "old") == '{"bad":[1]}'
    put(terminal, "balances", "old", "{}")
    complete(terminal, "migrate")
    assert value_of(terminal, "balances", "new") == {"v1": "0"}


@pytest.mark.parametrize("kind", ["", "not_utf8", "null"])
def test_a_record_left_after_a_move_goes_back_with_it(tmp_path: Path, kind: str) -> None:
    move = "STEPS = [move_record('balances', 'old', to_key='new')]"
    terminal = small(tmp_path / "t", counts(1), move)
    put(terminal, "balances", "old", '{"bad":[3]}')
    complete(terminal)
    if kind:  # the application half-writes it at version 2
        put_bad(terminal, "balances", "new", kind)
    as_left = of(terminal, "balances", "new")
    install(terminal, 3, counts(3), quarantine=True)
    partial(terminal, 1)
    assert (of(terminal, "balances", "new"), versions(terminal)) == (as_left, {"balances/new": 2})
    put(terminal, "metadata", "newer", "{}")
    if kind:
        partial(terminal, 1, "rollback", "--to", "1")
    else:
        complete(terminal, "rollback", "--to", "1")
    found = terminal.read().stores["balances"]
    assert ("new" in found, found["old"]) == (False, as_left)
    assert versions(terminal) == ({"balances/old": 1} if kind else {})


# --- fused or one by one: the same ---------------------------------------------------------------

STORES = ("balances", "transactions", "sync")


def a_migration(rng: random.Random, version: int) -> str:
    """Some steps over the stores, most of which some records cannot take."""
    text, steps = "", []
    for number in range(10 * version, 10 * version + rng.randint(1, 3)):
        store = rng.choice(STORES)
        key = f", key='k{rng.randint(1, 3)}'" if rng.random() < 0.3 else ""
        text += (
            f"def up{number}(record, context):\n"
            f"    if {number} in record.get('bad', ()): raise ValueError\n"
            f"    record['v{number}'] = len(record)\n"
            "    return record\n"
        )
        a, b = rng.sample("stpq", 2)
        old, new = rng.sample(("k1", "k2", "k3", "k4"), 2)
        steps.append(
            rng.choice(
                (
                    f"each({store!r}, up{number}, UNDO, fields=['v{number}']{key})",
                    f"each({store!r}, up{number}, UNDO, fields=['v{number}']{key})",
                    f"set_field({store!r}, {a!r}, {number}{key})",
                    f"map_value({store!r}, {a!r}, {{0: 1, 1: 0}}, other='fail'{key})",
                    f"rename_field({store!r}, {a!r}, {b!r}{key})",
                    f"remove_field({store!r}, {a!r}{key})",
                    f"move_record({store!r}, {old!r}, to_key={new!r}, if_exists='keep')",
                    f"sql('CREATE INDEX i{number} ON sync(value)', 'DROP INDEX i{number}')",
                )
            )
        )
    return f"{text}STEPS = [{', '.join(steps)}]\n"


def a_record(rng: random.Random, may_be_odd: bool) -> Any:
    """A record that some of the steps cannot take, now and then one that nobody can read."""
    record: dict[str, Any] = {"status": rng.choice(("completed", "pending")), "amount": 5}
    record["bad"] = rng.sample([10 * v + n for v in range(1, 4) for n in range(3)], 2)
    record.update({name: rng.choice((0, 1)) for name in "stpq" if rng.random() < 0.3})
    text = json.dumps(dict(record, currency="EUR"), separators=rng.choice(((",", ":"), None)))
    return spoil(rng.choice(KINDS[:-1]), text) if may_be_odd and rng.random() < 0.2 else text


class Pair:
    """The same terminal twice: `fused` gets all migrations at once, `single` one by one."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = random.Random(f"quarantine/{seed}")
        self.head = rng.randint(2, 3)
        self.to = rng.randint(0, self.head - 1)
        declared = {v for v in range(1, self.head + 1) if rng.random() < 0.8}
        bodies = [a_migration(rng, version) for version in range(1, self.head + 1)]
        layout = rng.choice(("rowid", "without-rowid"))
        self.fused = small(folder / "fused", *bodies, quarantine=declared, layout=layout, records=9)
        self.fused.configure(quarantine_unsettled=True, batch_rows_max=rng.choice((1, 3, 99)))
        for store in STORES:
            sql(self.fused, f"DELETE FROM {store}")
            for key in ("k1", "k2", "k3", "a", "b", "c"):
                value = a_record(rng, key < "k")
                not_utf8 = isinstance(value, bytes) and b"\xff" in value
                put(self.fused, store, key, value, not_utf8)
        self.before = everything(self.fused)
        self.single = twin_of(self.fused, "single")

    def upgraded(self) -> list[Answer]:
        """The last answer of each."""
        folder, later = self.single.root / "migrations", self.single.root / "later"
        later.mkdir()
        for path in folder.glob("[0-9]*.py"):
            path.rename(later / path.name)
        for path in sorted(later.iterdir()):
            path.rename(folder / path.name)
            answer = self.single.boot()
            if answer.code not in (0, 14):
                break
        return [self.fused.boot(), answer]

    def run(self, *words: str) -> list[Answer]:
        return [terminal.run(*words, "--json") for terminal in (self.fused, self.single)]

    def check(self) -> str:
        """Up, down and up again. "" where all of it is the same, else where it is not."""
        fused, single = self.upgraded()
        assert 70 not in (fused.code, single.code), fused.out + single.out
        if single.code not in (0, 14):
            same = fused.code == single.code and everything(self.fused) == self.before
            return "" if same else f"only one is stopped: {fused.out}{single.out}"
        for words in ((), ("rollback", "--to", str(self.to)), ("migrate",)):
            if words:
                fused, single = self.run(*words)
            if fused.code != single.code or fused.code not in (0, 14):
                return f"{words}: {fused.out}{single.out}"
            found = [everything(terminal) for terminal in (self.fused, self.single)]
            if found[0] != found[1]:
                return f"after {words}: {differences(*found)}"
            if words[-1:] == ("0",) and found[0]["stores"] != self.before["stores"]:
                return f"not as it was: {differences(found[0], self.before)}"
            for terminal in (self.fused, self.single):
                put(terminal, "metadata", "newer", "{}")
                sql(terminal, "DELETE FROM metadata WHERE key = 'newer'")
        return ""


def everything(terminal: Terminal) -> dict[str, Any]:
    """Records by value, what was left at which version, what the way back needs."""
    found = terminal.read()
    rows = own_rows(terminal.pos, "kind IN ('quarantine', 'moved') OR kind LIKE 'undo:%'")
    own = {}
    for kind, key, value in rows:
        given = json.loads(value)
        if kind == "quarantine":  # what a step has written may be spaced in one way or the other
            given = {name: given[name] for name in ("store", "key", "version")}
        own[kind, key] = repr(given)
    return {
        "version": found.schema_version,
        "stores": {s: {k: plain(v) for k, v in rows.items()} for s, rows in found.stores.items()},
        "own": own,
    }


def plain(raw: reader.Raw) -> Any:
    """The value where there is one, else the bytes."""
    try:
        return in_order(reader.parse(raw))
    except reader.NotJson:
        return raw


def in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: in_order(value[name]) for name in sorted(value)}
    return [in_order(item) for item in value] if type(value) is list else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[Any]:
    """(where, key, here, there) of all that is not the same."""
    parts = [("version", {"": one["version"]}, {"": other["version"]})]
    parts.append(("own", one["own"], other["own"]))
    parts += [(s, found, other["stores"][s]) for s, found in one["stores"].items()]
    return [
        (word, key, a.get(key), b.get(key))
        for word, a, b in parts
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_all_at_once_leaves_what_one_by_one_leaves_and_the_ways_back_are_the_same(
    tmp_path: Path, seed: int
) -> None:
    wrong = Pair(tmp_path, seed).check()
    assert not wrong, f"python -m tests.test_quarantine {seed}: {wrong}"


# --- unsettled records ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "truncated", "blob", "not_utf8", "huge"])
def test_an_unsettled_record_is_left_only_where_the_profile_says_so(
    tmp_path: Path, kind: str
) -> None:
    terminal = small(tmp_path / "t", counts(1, "transactions"), quarantine=[1])
    if kind:
        put_bad(terminal, "transactions", "odd", kind, PENDING)
        words = "is text that is not UTF-8" if kind == "not_utf8" else "transactions/odd"
    else:
        put(terminal, "transactions", "odd", PENDING.replace("{", '{"bad":[1],', 1))
        words = "it is unsettled, and this terminal's profile does not leave such records behind"
    stopped(terminal, 10, words)
    before = of(terminal, "transactions", "odd")
    terminal.configure(quarantine_unsettled=True)
    partial(terminal, 1)
    assert of(terminal, "transactions", "odd") == before


def test_a_settled_record_of_a_store_with_money_is_left_without_that_word(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1, "transactions"), quarantine=[1])
    put(terminal, "transactions", "odd", PLAIN.replace("{", '{"bad":[1],', 1))
    money = reader.money(terminal.pos)
    partial(terminal, 1)
    assert reader.money(terminal.pos) == money


def renamed_status(terminal: Terminal) -> None:
    """From schema 1 on the application says "open" where it said "pending"."""
    path = terminal.own_migrations() / "stores.json"
    document = json.loads(path.read_text())
    later = json.loads(json.dumps(document["versions"][0]))
    later["since"] = 1
    later["stores"]["transactions"]["unsettled"][3]["values"] = ["open", "processing"]
    document["versions"].append(later)
    path.write_text(json.dumps(document))


def test_a_left_record_counts_as_unsettled_by_the_rules_of_its_own_version_everywhere(
    tmp_path: Path,
) -> None:
    body = (
        "def up(record, context):\n"
        "    if record.get('bad'): raise ValueError\n"
        "    if record.get('status') == 'pending': record['status'] = 'open'\n"
        "    return record\n"
        "STEPS = [each('transactions', up, UNDO, fields=['status'])]\n"
    )
    terminal = small(tmp_path / "t", body, quarantine=[1])
    terminal.configure(quarantine_unsettled=True)
    renamed_status(terminal)
    put(terminal, "transactions", "odd", PENDING.replace("{", '{"bad":true,', 1))
    put_bad(terminal, "transactions", "half", "truncated", PENDING)
    count, money = unsettled_records(terminal) + 1, reader.money(terminal.pos, True)
    before = status_of(terminal)
    assert before["records"] == count
    result = partial(terminal, 2)
    assert result["unsettled"] == count
    after = status_of(terminal)
    assert (after["records"], after["money"]) == (before["records"], before["money"])
    assert {c: (m["count"], m["sum"]) for c, m in after["money"].items()} == money
    backup = ended(terminal.run("backup", "--json"), 0, "OK")["backup"]
    assert (backup["unsettled"]["records"], backup["unsettled"]["money"]) == (
        count,
        after["money"],
    )
    known = status_of(terminal)["backup"]
    assert (known["name"], known["exact"]) == (backup["name"], True)
    # A restore of that backup is proven by the same count, and has nothing to discard.
    assert partial(terminal, 2, "restore", "latest")["unsettled"] == count
    validated = terminal.run("validate", "--json").json
    assert validated["unsettled"]["records"] == count
    # And the next plan proves each of them again.
    install(terminal, 2, "STEPS = [set_field('transactions', 'second', 2)]")
    assert partial(terminal, 2)["unsettled"] == count
    assert "second" not in value_of(terminal, "transactions", "odd")


def unsettled_records(terminal: Terminal) -> int:
    """How many records are unsettled, of those that can be read; a queue is one of them."""
    return len({(where.store, where.key) for where in reader.unsettled(terminal.pos)})


def status_of(terminal: Terminal) -> dict[str, Any]:
    money: dict[str, Any] = terminal.run("status", "--json").json["money"]
    assert money["counted"], money
    return money


# --- what becomes of them ------------------------------------------------------------------------


def test_a_record_that_was_too_large_is_brought_up_once_the_profile_lets_it(
    tmp_path: Path,
) -> None:
    bodies = (counts(1), "STEPS = [rename_field('balances', 'a', 'b')]")
    terminal = small(tmp_path / "t", *bodies, quarantine=[1])
    terminal.configure(record_bytes_max=65536)
    text = json.dumps({"a": "x" * 70000, "rate": 0})
    put(terminal, "balances", "large", text)
    # What it has to become: a twin that could read it from the beginning.
    twin = twin_of(terminal, "twin")
    twin.configure(record_bytes_max=131072)
    partial(terminal, 1)
    assert (of(terminal, "balances", "large"), versions(terminal)) == (text, {"balances/large": 0})
    for one in (terminal, twin):
        install(one, 3, counts(3))
    partial(terminal, 1)  # nothing has changed for it
    for one in (terminal, twin):
        install(one, 4, counts(4))
        one.configure(record_bytes_max=131072)
        complete(one)
    assert everything(terminal) == everything(twin)
    assert value_of(terminal, "balances", "large").keys() == {"b", "rate", "v1", "v3", "v4"}
    for one in (terminal, twin):
        put(one, "metadata", "newer", "{}")
        complete(one, "rollback", "--to", "2")
        complete(one, "rollback", "--to", "0")
    assert everything(terminal) == everything(twin)
    assert reader.same_value(of(terminal, "balances", "large"), text)


def test_a_record_that_a_later_version_moves_stays_where_its_own_version_has_it(
    tmp_path: Path,
) -> None:
    move = "STEPS = [move_record('balances', 'large', to_key='moved')]"
    terminal = small(tmp_path / "t", counts(1), move, quarantine=[1])
    terminal.configure(record_bytes_max=65536)
    text = json.dumps({"a": "x" * 70000})
    put(terminal, "balances", "large", text)
    partial(terminal, 1)
    terminal.configure(record_bytes_max=131072)
    install(terminal, 3, counts(3))
    partial(terminal, 1)
    found = terminal.read().stores["balances"]
    assert ("moved" in found, found["large"]) == (False, text)
    assert versions(terminal) == {"balances/large": 0}


def test_a_record_that_the_application_has_corrected_is_an_ordinary_one_of_the_files_version(
    tmp_path: Path,
) -> None:
    terminal = small(tmp_path / "t", counts(1), counts(2), quarantine=[1, 2])
    put(terminal, "balances", "odd", '{"bad":[2]}')
    put_bad(terminal, "balances", "half", "truncated")
    partial(terminal, 2)
    for key in ("odd", "half"):
        put(terminal, "balances", key, '{"v1":1,"v2":2}')
    assert {row["now"] for row in listed(terminal).values()} == {"changed"}
    install(terminal, 3, counts(3))
    complete(terminal)
    for key in ("odd", "half"):  # no step of an earlier version came to it again
        assert value_of(terminal, "balances", key) == {"v1": "1", "v2": "2", "v3": "2"}


def test_a_record_that_was_changed_and_is_bad_again_is_judged_anew(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1), counts(2), quarantine=[1, 2])
    put(terminal, "balances", "odd", '{"bad":[1]}')
    partial(terminal, 1)
    assert versions(terminal) == {"balances/odd": 0}
    put(terminal, "balances", "odd", '{"bad":[1,3]}')
    path = install(terminal, 3, counts(3))
    stopped(terminal, 10, "balances/odd: ValueError")
    path.unlink()
    install(terminal, 3, counts(3), quarantine=True)
    partial(terminal, 1)
    assert versions(terminal) == {"balances/odd": 2}


def test_the_row_of_a_record_that_is_gone_goes_with_the_next_plan(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1), quarantine=[1])
    put(terminal, "balances", "odd", '{"bad":[1]}')
    put(terminal, "balances", "other", '{"bad":[1]}')
    partial(terminal, 2)
    sql(terminal, "DELETE FROM balances WHERE key = 'odd'")
    found = {key: row["now"] for (_, key), row in listed(terminal).items()}
    assert found == {"odd": "gone", "other": "left"}
    assert ended(terminal.boot(), 0, "NOT_REQUIRED")
    install(terminal, 2, "STEPS = [set_field('sync', 'second', 2)]")
    # A plan that has nothing to do with the store asks nothing of its records.
    assert ended(terminal.boot(), *PARTIAL)
    assert len(listed(terminal)) == 2
    install(terminal, 3, counts(3))
    partial(terminal, 1)
    assert [key for _, key in listed(terminal)] == ["other"]


def test_a_way_down_undoes_only_what_a_left_record_has_had(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", *map(counts, (1, 2, 3)), quarantine=[2])
    text = '{"bad":[2],"rate":10.50}'
    put(terminal, "balances", "odd", text)
    before = terminal.read().stores["balances"]
    partial(terminal, 1)
    at_one = of(terminal, "balances", "odd")
    put(terminal, "metadata", "newer", "{}")
    partial(terminal, 1, "rollback", "--to", "2")  # still below the file's version
    assert (of(terminal, "balances", "odd"), versions(terminal)) == (at_one, {"balances/odd": 1})
    partial(terminal, 1, "migrate")
    assert (of(terminal, "balances", "odd"), versions(terminal)) == (at_one, {"balances/odd": 1})
    complete(terminal, "rollback", "--to", "1")  # an ordinary record of version 1
    assert of(terminal, "balances", "odd") == at_one
    partial(terminal, 1, "migrate")
    complete(terminal, "rollback", "--to", "0")
    assert changed(before, terminal.read().stores["balances"]) == []


def test_with_nothing_written_since_the_old_file_comes_back_with_nothing_left_behind(
    tmp_path: Path,
) -> None:
    terminal = small(tmp_path / "t", counts(1), quarantine=[1])
    put(terminal, "balances", "odd", '{"bad":[1]}')
    before = terminal.sha256()
    partial(terminal, 1)
    assert complete(terminal, "rollback", "--to", "0")["way"] == "switch back"
    assert terminal.sha256() == before


# --- beside other verbs --------------------------------------------------------------------------


def test_plan_status_validate_health_and_history_tell_of_them(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1), quarantine=[1])
    put(terminal, "balances", "odd", '{"bad":[1]}')
    put(terminal, "balances", "odder", '{"bad":[1]}')
    before = terminal.sha256()
    foreseen = terminal.run("plan", "--json")
    assert (foreseen.code, foreseen.json["refusals"]) == (0, [])
    assert foreseen.json["left_behind"] == {"balances": 2}
    assert [m["quarantine"] for m in foreseen.json["migrations"]] == [True]
    assert "posagent" not in {table for _, table, _, _ in reader.schema_of(terminal.pos)}
    assert terminal.sha256() == before, "plan has written nothing"
    put_bad(terminal, "balances", "half", "truncated")
    partial(terminal, 3)
    told = terminal.run("boot").out + terminal.run("quarantine").out
    assert "they stay as they are; a later migration tries them again" in told
    assert all(len(line) <= 80 for line in told.splitlines())
    money = status_of(terminal)
    assert (money["quarantined"], money["unreadable"]) == (3, 0)
    assert terminal.run("status", "--exit-code").code == 0
    assert terminal.run("health", "--json").json["worst"] != "fail"
    (entry,) = terminal.run("history", "--json").json["history"]
    assert entry["verdict"] == "PARTIAL"
    stores = {row["store"]: row for row in terminal.run("validate", "--json").json["stores"]}
    assert (stores["balances"]["quarantined"], stores["balances"]["unreadable"]) == (3, 0)
    assert terminal.run("validate").code == 0, "it would stop no run"
    install(terminal, 2, "STEPS = [set_field('balances', 'second', 2)]")
    foreseen = terminal.run("plan", "--json")
    assert (foreseen.code, foreseen.json["refusals"]) == (0, [])
    assert ended(terminal.run("boot", "--json"), *PARTIAL)["quarantined"] == 3
    assert "3 records were left as they are; `posagent quarantine`" in told_by_a_run(terminal)


def told_by_a_run(terminal: Terminal) -> str:
    install(terminal, 3, "STEPS = [set_field('balances', 'third', 3)]")
    return " ".join(terminal.run("migrate").out.split())


def test_a_plan_that_would_be_stopped_says_so(tmp_path: Path) -> None:
    body = counts(1, "transactions")
    terminal = small(tmp_path / "t", body, quarantine=[1], records=5, unsettled=1)
    ((first,),) = sql(terminal, "SELECT key FROM transactions ORDER BY rowid LIMIT 1")
    put(terminal, "transactions", first, PENDING.replace("{", '{"bad":[1],', 1))
    assert terminal.run("plan", "--json").code == terminal.boot().code == 10
    terminal.configure(quarantine_unsettled=True)
    assert terminal.run("plan", "--json").code == 0
    partial(terminal, 1)


def test_a_prune_keeps_what_was_left_behind_and_a_restore_brings_it_back(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1, "transactions"), quarantine=[1])
    terminal.configure(quarantine_unsettled=True)
    path = terminal.root / "migrations/stores.json"
    path.write_text(path.read_text().replace('"keep_newest": 1500', '"keep_newest": 3'))
    keys = [key for (key,) in sql(terminal, "SELECT key FROM transactions ORDER BY rowid LIMIT 4")]
    put_bad(terminal, "transactions", keys[0], "not_utf8")
    oldest = "UPDATE transactions SET value = ? WHERE key = ?"
    for key in keys[1:3]:  # in their places, so that the rule would give them up first
        sql(terminal, oldest, PLAIN.replace("{", '{"bad":[1],', 1), key)
    sql(terminal, oldest, PLAIN, keys[3])
    before = terminal.read().stores["transactions"]
    partial(terminal, 3)
    backup = ended(terminal.run("backup", "--json"), 0, "OK")["backup"]
    rows = own_rows(terminal.pos)
    pruned = partial(terminal, 3, "prune")["pruned"]["transactions"]["records"]
    after = terminal.read().stores["transactions"]
    assert pruned == len(before) - len(after) > 10
    assert keys[3] not in after
    assert [after[key] for key in keys[:3]] == [before[key] for key in keys[:3]]
    assert own_rows(terminal.pos) == rows
    # The application corrects one and deletes another; a restore undoes both, with consent.
    put(terminal, "transactions", keys[1], PLAIN)
    sql(terminal, "DELETE FROM transactions WHERE key = ?", keys[0])
    refused = terminal.run("restore", backup["name"], "--json")
    assert refused.code == 13, refused.out
    counted = refused.json["error"]["facts"]
    consent = ",".join(f"{word}={count}" for word, count in counted.items() if count)
    assert (counted["newer"], counted["gone"]) == (0, 1)
    partial(terminal, 3, "restore", backup["name"], "--discard", consent)
    back = terminal.read().stores["transactions"]
    assert [back[key] for key in keys[:3]] == [before[key] for key in keys[:3]]
    assert own_rows(terminal.pos) == rows


# Rows of another hand, in which one thing is not as an agent writes it.
ROW = {"store": "balances", "key": "k", "version": 1, "digest": "d", "reason": ""}
WRONG: tuple[dict[str, Any], ...] = (
    {"version": "1"},
    {"version": -1},
    {"store": []},
    {"key": 3},
    {"reason": None},
)
STRANGE = [json.dumps({**ROW, **part}) for part in WRONG]


def test_a_row_that_this_agent_cannot_read_counts_as_absent(tmp_path: Path) -> None:
    terminal = small(tmp_path / "t", counts(1))
    complete(terminal)
    for row in (*STRANGE, "[]", "{}", "1", "no JSON", '{"a":1,"a":2}'):
        name = name_of("balances", row)
        sql(terminal, "INSERT INTO posagent VALUES ('quarantine', ?, ?)", name, row)
    install(terminal, 2, counts(2))
    assert listed(terminal) == {}
    for words in (("status",), ("plan",), ("validate",)):
        assert terminal.run(*words, "--json").code == 0
    answer = terminal.boot()
    assert answer.code in (0, 14), answer.out
    assert '"v2":' in str(terminal.read().stores["balances"])


# --- cut at any moment ---------------------------------------------------------------------------


class Cut:
    """A terminal whose left records lie in several batches of its next plan."""

    def __init__(self, folder: Path) -> None:
        """At version 1 with eight records left; seven of them can be done now and six cannot."""
        bodies = (counts(1), "STEPS = [rename_field('balances', 'rate', 'quote')]")
        self.template = small(folder / "template", *bodies, quarantine=[1, 2], records=9)
        self.template.configure(batch_rows_max=4, record_bytes_max=65536)
        for number in range(24):
            fields: dict[str, Any] = {"n": number, "rate": 1}
            if number % 4 == 0:
                fields["pad"] = "x" * 66000  # left until the profile lets it
            if number % 4 == 1:
                fields["bad"] = [1, 3] if number % 8 == 1 else [3]
            put(self.template, "balances", f"r{number:02d}", json.dumps(fields))
        for number, kind in enumerate(KINDS[:-1]):
            put_bad(self.template, "balances", f"s{number:02d}", kind)
        partial(self.template, 6 + 3 + len(KINDS) - 1)
        self.template.configure(record_bytes_max=131072)
        install(self.template, 3, counts(3), quarantine=True)
        self.number = 0
        whole = self.copy()
        self.moments = self.trace(whole).moments
        self.after = everything(whole)
        assert versions(whole) == {
            **{f"balances/r{number:02d}": 0 for number in (1, 9, 17)},
            **{f"balances/r{number:02d}": 2 for number in (5, 13, 21)},
            **{f"balances/s{number:02d}": 0 for number in range(len(KINDS) - 1)},
        }

    def copy(self) -> Terminal:
        self.number += 1
        return twin_of(self.template, f"copy-{self.number}")

    def trace(self, terminal: Terminal, **given: Any) -> killing.Traced:
        command = [*COMMAND, "--root", str(terminal.root), "boot", "--json"]
        return killing.trace(command, terminal.root / "seen", **given)

    def ends_alike(self, **given: Any) -> None:
        """Kill once; the next boot, or the attempt after it, ends as if nothing had been."""
        terminal = self.copy()
        traced = self.trace(terminal, **given)
        assert traced.killed, traced.replay
        if traced.code < 0:
            assert terminal.boot().code in (0, 14), traced.replay
        assert everything(terminal) == self.after, traced.replay
        assert reader.soundness(terminal.pos) == []
        shutil.rmtree(terminal.root)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return Cut(tmp_path_factory.mktemp("cut"))


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_a_kill_behind_every_batch_leaves_and_brings_up_what_an_uninterrupted_run_does(
    cut: Cut, victim: str
) -> None:
    marks = [text for text in cut.moments if text.startswith("mark")]
    batches = [n for n, text in enumerate(marks, 1) if '"state":"migrating"' in text]
    assert len(batches) > 8
    for number in batches if victim == "supervisor" else batches[::3]:
        cut.ends_alike(victim=victim, kind="mark", at=number)


def test_a_kill_between_the_writes_of_what_is_tried_again_repeats_nothing(cut: Cut) -> None:
    changes = [text for text in cut.moments if not text.startswith("mark")]
    writes = [n for n, text in enumerate(changes, 1) if text == "pwrite64 pos.db.next-wal"]
    assert len(writes) > 30
    for number in random.Random("quarantine").sample(writes, 8):
        cut.ends_alike(victim="supervisor", kind="change", at=number)


# --- the proof -----------------------------------------------------------------------------------


class Proven:
    """An upgrade as it lies before the switch: the old file, the new one, and its proof."""

    def __init__(self, terminal: Terminal, before: Path, result: dict[str, Any]) -> None:
        self.before = before
        self.new = terminal.root / "new.db"
        self.whole = terminal.pos
        self.files = MigrationFiles(str(terminal.root / "migrations"))
        self.device_id = terminal.device_id
        self.result = result
        (row,) = own_rows(terminal.pos, "kind = 'run' AND key = 'row'")
        self.counted = json.loads(row[2])["before"]

    def prove(self, *statements: str) -> int:
        """The proof of the new file in which somebody has changed something."""
        shutil.copyfile(self.whole, self.new)
        with closing(sqlite3.connect(self.new, isolation_level=None)) as db:
            db.create_function("name", 2, name_of)
            for statement in statements:
                assert db.execute(statement).rowcount == 1, statement
        with (
            closing(database.open_source(str(self.before), 65536)) as old,
            closing(database.open_source(str(self.new), 65536)) as new,
        ):
            left = [row.version for row in rows.quarantined(old).rows()]
            start, to = self.result["from_version"], self.result["to_version"]
            plan = (
                self.files.load(start, min(left, default=None))
                if to > start
                else self.files.load_down(start, to)
            )
            plan.bind(self.result["timestamp"], self.device_id, rows.read_applied(old))
            return prove_migration(
                old,
                new,
                plan,
                self.counted,
                self.files.contracts,
                moving.moves_of(old, plan, new),
                LIMITS,
                lambda *_: None,
                True,
            )

    def is_caught(self, *statements: str) -> None:
        with pytest.raises(ValidationError):
            self.prove(*statements)


def name_of(store: str, key: str) -> str:
    """The name of a record among those left behind, as docs/spec tells it."""
    return hashlib.sha256(store.encode() + b"\0" + key.encode()).hexdigest()[:32]


def row_is(change: str, key: str = "odd", store: str = "transactions") -> str:
    """A statement that changes the row of a left record."""
    return f"{change} WHERE kind = 'quarantine' AND key = name('{store}', '{key}')"


FORGED = "UPDATE posagent SET value = replace(value, '\"version\":1', '\"version\":0')"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Terminal, Proven]:
    """Up to version 2 with four records left: unsettled at 0, at 1 and unreadable, and settled."""
    root = tmp_path_factory.mktemp("proof") / "t"
    terminal = small(root, *(counts(v, "transactions") for v in (1, 2)), quarantine=[1, 2])
    terminal.configure(quarantine_unsettled=True)
    for key, bad, text in (("odd", 2, PENDING), ("odder", 1, PENDING), ("settled", 2, PLAIN)):
        put(terminal, "transactions", key, text.replace("{", f'{{"bad":[{bad}],', 1))
    put_bad(terminal, "transactions", "half", "truncated", PENDING)
    put(terminal, "transactions", "good", PENDING)
    before = root.parent / "before.db"
    shutil.copyfile(terminal.pos, before)
    result = partial(terminal, 4)
    return terminal, Proven(terminal, before, result)


VALUE = "UPDATE transactions SET value = "


def test_the_proof_holds_for_what_the_command_has_made(
    first_run: tuple[Terminal, Proven],
) -> None:
    terminal, proven = first_run
    # One that cannot be read may be unsettled, and counts as that.
    assert proven.prove() == unsettled_records(terminal) + 1


@pytest.mark.parametrize(
    "statement",
    [
        VALUE + "value || ' ' WHERE key = 'odder'",  # the same value, in other bytes
        VALUE + "value || ' ' WHERE key = 'half'",
        VALUE + "CAST(value AS BLOB) WHERE key = 'half'",
        VALUE + "replace(value, '1250', '1251') WHERE key = 'odd'",
        VALUE + "replace(value, '10.50', '10.5') WHERE key = 'odd'",
        VALUE + "value || ' ' WHERE key = 'settled'",
        "DELETE FROM transactions WHERE key = 'odd'",
        "DELETE FROM transactions WHERE key = 'half'",
        "UPDATE transactions SET key = 'renamed' WHERE key = 'odd'",
        *(row_is("DELETE FROM posagent", key) for key in ("odd", "odder", "half")),
        row_is(FORGED),
        row_is('UPDATE posagent SET value = replace(value, \'"digest":"\', \'"digest":"0\')'),
        row_is("UPDATE posagent SET key = '00'"),
        "DELETE FROM posagent WHERE kind = 'undo:0001' AND key = '[\"transactions\",\"odd\"]'",
    ],
)
def test_the_proof_finds_a_left_record_that_was_changed_or_is_not_listed_as_it_is(
    first_run: tuple[Terminal, Proven], statement: str
) -> None:
    _, proven = first_run
    proven.is_caught(statement)


def test_the_proof_finds_a_row_of_a_record_that_was_not_left(
    first_run: tuple[Terminal, Proven],
) -> None:
    terminal, proven = first_run
    for key in ("good", "gone"):
        text = str(terminal.read().stores["transactions"].get(key, ""))
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        row = json.dumps(dict(ROW, store="transactions", key=key, version=0, digest=digest))
        name = f"name('transactions', '{key}')"
        proven.is_caught(f"INSERT INTO posagent VALUES ('quarantine', {name}, '{row}')")


def test_the_proof_of_a_later_plan_knows_what_was_left_before_it(
    first_run: tuple[Terminal, Proven], tmp_path: Path
) -> None:
    terminal = twin_of(first_run[0], "later")
    terminal.device_id = first_run[0].device_id
    before = tmp_path / "before.db"
    shutil.copyfile(terminal.pos, before)
    install(terminal, 3, counts(3, "transactions"))
    proven = Proven(terminal, before, partial(terminal, 4))
    proven.prove()
    proven.is_caught(VALUE + "value || ' ' WHERE key = 'odd'")
    proven.is_caught(VALUE + "value || ' ' WHERE key = 'half'")
    for key in ("odd", "odder", "half"):
        proven.is_caught(row_is("DELETE FROM posagent", key))
    proven.is_caught(row_is(FORGED))

    # And the proof of the way down, to a version above that of a left record.
    put(terminal, "metadata", "newer", "{}")
    shutil.copyfile(terminal.pos, before)
    proven = Proven(terminal, before, partial(terminal, 4, "rollback", "--to", "2"))
    proven.prove()
    proven.is_caught(VALUE + "replace(value, '1250', '1251') WHERE key = 'odd'")
    proven.is_caught(VALUE + "value || ' ' WHERE key = 'half'")
    for key in ("odd", "odder", "half"):
        proven.is_caught(row_is("DELETE FROM posagent", key))
    proven.is_caught(row_is(FORGED))


def main(seeds: list[str]) -> None:
    """Replay cases of the seeded test; "100-200" stands for all between."""
    for word in seeds:
        low, _, high = word.partition("-")
        for seed in range(int(low), int(high or low) + 1):
            with tempfile.TemporaryDirectory(prefix="quarantine-") as folder:
                print(seed, Pair(Path(folder), seed).check() or "the same")


if __name__ == "__main__":
    main(sys.argv[1:])
