"""Every upgrade between any two versions, with an application of each version at work on it.

A terminal is brought to version a by the migrations up to a alone, sells there, is upgraded to b,
and sells there. What each migration means is said here a second time, by hand, on values parsed by
the independent reader; what a till shows must be the same on both sides.
"""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from agent.core import migration
from tests import independent_reader as reader
from tests.applications import (
    HEAD,
    NEW_WORDS,
    OLD_WORDS,
    SCHEMA,
    Application,
    NotReadable,
    Sale,
    install,
    shape,
    totals,
)
from tests.independent_reader import Number
from tests.terminals import Answer, Terminal, new_terminal

Rows = dict[tuple[str, str], Any]
PAIRS = list(combinations(range(HEAD + 1), 2))


def rows_of(terminal: Terminal) -> Rows:
    """Every record by (store, key), parsed."""
    stores = terminal.read().stores
    return {(s, key): reader.parse(raw) for s, rows in stores.items() for key, raw in rows.items()}


# --- the migrations once more, by hand -----------------------------------------------------------


def to_1(rows: Rows, now: int, device_id: str) -> None:
    for (store, _), record in objects(rows):
        if store == "balances":
            record["checkedAt"] = Number(str(now))
        if store == "transactions":
            record["schemaVersion"] = Number("1")
            record.setdefault("channel", "shop")
            record.setdefault("metadata", {}).setdefault("till", device_id)


def to_2(rows: Rows, now: int, device_id: str) -> None:
    for (store, _), record in objects(rows):
        if store == "sync":
            record["payload"] = record.pop("data")
        if store == "transactions":
            record["state"] = record.pop("status")
            record.setdefault("at", {})["sold"] = record.pop("timestamp")


def to_3(rows: Rows, now: int, device_id: str) -> None:
    words = {old: NEW_WORDS[meaning] for meaning, old in OLD_WORDS.items()}
    for (store, _), record in objects(rows):
        if store == "transactions":
            record["state"] = words[record["state"]]
            if record.get("type") == "sale":
                record["type"] = "payment"
            record.pop("retries", None)
            record["metadata"].pop("networkStatus", None)


def to_4(rows: Rows, now: int, device_id: str) -> None:
    rows["transactions", "queue"] = rows.pop(("transactions", "transaction-queue"))
    rows["metadata", "numbers"] = rows.pop(("metadata", "counters"))
    rows["balances", "preferences"] = rows.pop(("metadata", "nimipay_preferences"))
    rows["metadata", "numbers"]["movedFrom"] = "counters"


def to_5(rows: Rows, now: int, device_id: str) -> None:
    for (store, _), record in objects(rows):
        if store == "transactions" and "items" in record:
            lines = record.pop("items")
            record["basket"] = {"count": Number(str(len(lines))), "lines": lines}
        if store == "balances" and "metadata" in record:
            record["said"] = {"by": record["metadata"].pop("source"), "in": Number("5")}


BY_HAND = {1: to_1, 2: to_2, 3: to_3, 4: to_4, 5: to_5}


def objects(rows: Rows) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    """The records that steps reach into: the queue is a list, the device's name a text."""
    return [(place, record) for place, record in rows.items() if isinstance(record, dict)]


# --- terminals -----------------------------------------------------------------------------------


def upgrade(terminal: Terminal, version: int, verb: str = "boot") -> Answer:
    """Install the software of a version and start the terminal, or ask for the migration."""
    install(terminal, version)
    answer = terminal.run(verb, "--json")
    assert answer.code == 0, answer.out + answer.err
    assert answer.json["app_may_start"] is True
    return answer


def trade(application: Application, tag: str) -> None:
    """A day at the till: sales, of which one is settled and one gets a note. Only the newest
    software closes the day."""
    mine = [f"tx_v{application.version}_{receipt}" for _, receipt in application.sell(4)]
    application.settle(mine[0])
    application.annotate(mine[1], f"a note of {tag}")
    if application.version == HEAD:
        application.close_the_day()


def settle_one_of_before(application: Application, sales: dict[str, Sale]) -> str:
    """Settle a sale that was open before the upgrade; its key."""
    waiting = [where for where, sale in sales.items() if sale.state in ("open", "sending")]
    key = min(where for where in waiting if where.startswith("transactions/tx_"))
    key = key.partition("/")[2]
    application.settle(key)
    application.annotate(key, "settled after the upgrade")
    return key


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> list[Terminal]:
    """A terminal at each version, each on another shape of file, with that version's own sales."""
    made = []
    for version in range(HEAD + 1):
        terminal = new_terminal(
            tmp_path_factory.mktemp("template") / "t",
            records=60,
            unsettled=12,
            seed=version,
            journal="wal" if version % 2 else "delete",
            layout="without-rowid" if version % 3 == 1 else "rowid",
            extra_tables=version % 2 == 0,
        )
        if version:
            upgrade(terminal, version)
        application = Application(version, terminal.pos)
        trade(application, f"version {version}")
        waiting = [key for (store, key) in rows_of(terminal) if store == "sync"]
        application.queue_reversals(sorted(waiting)[:3])
        made.append(terminal)
    return made


def copy_of(template: Terminal, root: Path) -> Terminal:
    """A terminal like this one."""
    shutil.copytree(template.root, root)
    copy = Terminal(root)
    copy.device_id = template.device_id
    return copy


def schema_names(terminal: Terminal) -> set[str]:
    """Every table, index, view and trigger of the application, the automatic ones left out."""
    names = {name for _, name, _, _ in reader.schema_of(terminal.pos)}
    return {name for name in names if not name.startswith(("sqlite_", "posagent"))}


def own_tables(terminal: Terminal) -> dict[str, tuple[int, str]]:
    """The application's further tables: how many rows, and a digest over them."""
    found = reader.other_tables(terminal.pos)
    return {name: what for name, what in found.items() if name != "posagent"}


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_from_any_version_to_any_later_one_each_sale_is_there_and_the_new_software_sells(
    templates: list[Terminal], tmp_path: Path, a: int, b: int
) -> None:
    terminal = copy_of(templates[a], tmp_path / "t")
    expected, shown = rows_of(terminal), Application(a, terminal.pos).sales()
    others, schema = own_tables(terminal), schema_names(terminal)
    numbers = Application(a, terminal.pos).counters()

    answer = upgrade(terminal, b)
    assert answer.json["verdict"] == "OK"
    for version in range(a + 1, b + 1):
        BY_HAND[version](expected, answer.json["timestamp"], terminal.device_id)
    assert terminal.read().schema_version == b
    assert rows_of(terminal) == expected
    found = own_tables(terminal)
    assert {name: found[name] for name in others} == others
    made = {name for version, name in SCHEMA.items() if a < version <= b}
    assert schema_names(terminal) == schema | made
    assert reader.soundness(terminal.pos) == []

    application = Application(b, terminal.pos)
    assert application.sales() == shown
    assert totals(application.sales()) == totals(shown)
    with pytest.raises(NotReadable):
        Application(a, terminal.pos)  # its words are not in this file any more
    assert application.counters() == numbers
    trade(application, f"version {b}")
    settled = settle_one_of_before(application, shown)
    after = application.sales()
    assert after.keys() - shown.keys() == {
        f"transactions/tx_v{b}_{numbers['receipt'] + n}" for n in (1, 2, 3, 4)
    }
    assert {where for where in shown if shown[where] != after[where]} == {f"transactions/{settled}"}
    assert terminal.boot().json["verdict"] == "NOT_REQUIRED"


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_and_back_with_the_sales_of_both_applications_to_where_the_old_one_sells_again(
    templates: list[Terminal], tmp_path: Path, a: int, b: int
) -> None:
    terminal = copy_of(templates[a], tmp_path / "t")
    before, schema = rows_of(terminal), schema_names(terminal)
    upgrade(terminal, b)
    application = Application(b, terminal.pos)
    trade(application, f"version {b}")
    changed = settle_one_of_before(application, application.sales())
    shown, used = application.sales(), application.used_numbers()
    numbers, others = application.counters(), own_tables(terminal)

    answer = terminal.run("rollback", "--to", str(a), "--json")
    assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out + answer.err
    assert answer.json["way"] == "down"
    install(terminal, a)
    assert terminal.boot().json["app_may_start"] is True
    application = Application(a, terminal.pos)
    assert application.sales() == shown
    assert totals(application.sales()) == totals(shown)
    assert application.counters() == numbers
    assert application.used_numbers() == used
    after = rows_of(terminal)
    # What nobody has touched since is, to the last digit, what it was before the upgrade.
    touched = {("transactions", changed), ("metadata", shape(a).counters)}
    assert {place: after[place] for place in before if place not in touched} == {
        place: record for place, record in before.items() if place not in touched
    }
    was, is_now = (rows["metadata", shape(a).counters] for rows in (before, after))
    assert is_now.keys() == was.keys()
    new = {where.partition("/")[2] for where in shown if where.startswith(f"transactions/tx_v{b}_")}
    assert after.keys() - before.keys() == {("transactions", key) for key in new}
    # A table of the newest software with rows in it stays: they are not ours to drop.
    stays = {"closings"} if others.get("closings", (0,))[0] else set()
    assert schema_names(terminal) == schema | stays
    found = own_tables(terminal)
    assert found == {name: others[name] for name in found}
    assert reader.soundness(terminal.pos) == []
    assert application.sell(1) == [(numbers["stan"] + 1, numbers["receipt"] + 1)]

    # And up once more, on request: nothing of the way down is in the way.
    install(terminal, b)
    shown = application.sales()
    answer = terminal.run("migrate", "--json")
    assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out
    assert Application(b, terminal.pos).sales() == shown


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_and_back_with_nothing_sold_since_the_very_file_of_before_is_there(
    templates: list[Terminal], tmp_path: Path, a: int, b: int
) -> None:
    terminal = copy_of(templates[a], tmp_path / "t")
    sha256, inode = terminal.sha256(), terminal.pos.stat().st_ino
    upgrade(terminal, b)
    answer = terminal.run("rollback", "--to", str(a), "--json")
    assert (answer.code, answer.json["way"]) == (0, "switch back"), answer.out + answer.err
    assert (terminal.sha256(), terminal.pos.stat().st_ino) == (sha256, inode)
    assert terminal.boot().json["app_may_start"] is True
    Application(a, terminal.pos).sell(1)


def up_one_at_a_time(terminal: Terminal, verb: str = "boot") -> dict[str, Sale]:
    """From version 0 to the newest, each application trading on the way; what the last shows."""
    for version in range(1, HEAD + 1):
        upgrade(terminal, version, verb)
        trade(Application(version, terminal.pos), f"version {version}")
    return Application(HEAD, terminal.pos).sales()


def back_to(terminal: Terminal, version: int) -> Application:
    """Roll back with the newer software, install the older one, start it."""
    answer = terminal.run("rollback", "--to", str(version), "--json")
    assert (answer.code, answer.json["verdict"]) == (0, "OK"), answer.out + answer.err
    install(terminal, version)
    assert terminal.boot().json["verdict"] in ("OK", "NOT_REQUIRED")
    return Application(version, terminal.pos)


@pytest.mark.parametrize("a", range(HEAD))
def test_up_one_version_at_a_time_with_sales_at_each_and_back_in_one(
    templates: list[Terminal], tmp_path: Path, a: int
) -> None:
    terminal = copy_of(templates[0], tmp_path / "t")
    before = rows_of(terminal)
    shown = up_one_at_a_time(terminal)
    application = back_to(terminal, a)
    assert application.sales() == shown
    assert reader.soundness(terminal.pos) == []
    if a == 0:
        after = rows_of(terminal)
        untouched = before.keys() - {("metadata", "counters")}
        assert {place: after[place] for place in untouched} == {
            place: before[place] for place in untouched
        }
    application.sell(1)


def test_up_and_down_one_version_at_a_time_with_sales_at_each(
    templates: list[Terminal], tmp_path: Path
) -> None:
    terminal = copy_of(templates[0], tmp_path / "t")
    before = rows_of(terminal)
    shown = up_one_at_a_time(terminal)
    for version in range(HEAD - 1, -1, -1):
        application = back_to(terminal, version)
        assert application.sales() == shown, f"back at {version}"
        trade(application, f"the way back at {version}")
        shown = application.sales()
    after = rows_of(terminal)
    untouched = before.keys() - {("metadata", "counters")}
    assert {place: after[place] for place in untouched} == {
        place: before[place] for place in untouched
    }
    numbers = [sale.sold_ms for where, sale in shown.items() if "/tx_v" in where]
    assert len(numbers) == len(set(numbers)) == 4 * (2 * HEAD + 1), "no number twice"
    # What was brought back on request goes up again on request.
    assert up_one_at_a_time(terminal, "migrate").keys() > shown.keys()


def returns_a_step(made: Any) -> bool:
    """Whether an author's file may call it to make a step."""
    return callable(made) and getattr(made, "__annotations__", {}).get("return") == "Step"


def test_each_kind_of_step_is_among_the_migrations(templates: list[Terminal]) -> None:
    words = (templates[HEAD].root / "migrations").glob("*.py")
    text = "".join(path.read_text() for path in words)
    builders = [name for name, made in vars(migration).items() if returns_a_step(made)]
    assert {"set_field", "sql"} <= set(builders)
    for name in builders:
        assert f" {name}(" in text, name
