"""Any chain of migrations on a real file, up and down: what the plan promises, for generated data.

Both ways are the agent's own passes, last commit and proof (tests/in_process). What should come out
is known from doing the same more simply, from the record as it was before, or by the test's own
reading; nothing here knows how a step works.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from agent.core.migration import remove_field, set_field
from agent.core.terminal import TABLE
from agent.ground.codec import decode, encode
from agent.ground.errors import ValidationError
from agent.verbs.way_down import NoWayDown
from tests import chains
from tests import in_process as files
from tests import independent_reader as reader
from tests.in_process import NOW_MS, Run, World

# Of each kind; a night of them is asked for by the environment.
EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
usual = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def worlds(draw: st.DrawFn, longest: int = 4, for_good: bool = False) -> World:
    """A chain of migrations, the stores.json that follows it, and bounds that make many batches."""
    chain = draw(chains.whole_chains(longest, for_good))
    rules = {store: draw(chains.rules()) for store in chains.STORES}
    return World(
        chain,
        chains.document_of(chain, rules),
        draw(st.integers(2, 5)),
        draw(st.sampled_from((40, 200, 1 << 20))),
    )


class Tries:
    """How many examples came through and how many were refused, so that a test cannot become one of
    refusals alone."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def note(self, what: str) -> None:
        self.found[what] += 1
        event(what)

    def check(self, least: float = 0.3) -> None:
        """Most examples went the whole way; with a margin for what chance may bring."""
        print(self.found)
        assert self.found["done"] >= least * sum(self.found.values()), self.found


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of one example's own; in memory, since cuts are made by copies of files."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="chains-", dir=memory) as name:
        yield Path(name)


def copied(path: Path, name: str) -> Path:
    """A copy beside a file."""
    to = path.with_name(name)
    shutil.copyfile(path, to)
    return to


class Runs(NamedTuple):
    """Which versions are applied by one run together: the version that each run ends at."""

    ends: list[int]

    def of(self, version: int) -> int:
        """The number of the run that applies a version."""
        return next(number for number, end in enumerate(self.ends) if end >= version)

    def given(self, version: int) -> tuple[int, str]:
        """(now, device) of the run that applies a version: no two runs have them in common."""
        return NOW_MS + self.of(version), f"device_{self.of(version)}"


@st.composite
def runs(draw: st.DrawFn, head: int) -> Runs:
    ends = draw(st.sets(st.integers(1, head - 1), max_size=2)) if head > 1 else set()
    return Runs([*sorted(ends), head])


def one_by_one(path: Path, world: World, how: Runs) -> list[Path]:
    """The file at every version, each migration a run of its own; without the proof, which judges
    the money of whole plans. Raises ValidationError where a step cannot be done."""
    found = [copied(path, "at 0")]
    for version in range(1, world.head + 1):
        with files.ready(found[-1], world, version, *how.given(version)) as run:
            run.build()
            found.append(copied(run.next, f"at {version}"))
    return found


def test_one_plan_equals_its_migrations_and_every_version_on_the_way_comes_back() -> None:
    tries = Tries()

    @usual
    @given(worlds(for_good=True), chains.contents(), chains.shapes, st.data())
    def example(world: World, texts: files.Texts, shape: chains.Shape, data: st.DataObject) -> None:
        how = data.draw(runs(world.head))
        stops = data.draw(st.sets(st.integers(0, world.head - 1)))
        with folder() as place:
            tries.note(up_and_down(place, world, texts, shape, how, {0, *stops}))

    example()
    tries.check()


def up_and_down(
    place: Path, world: World, texts: files.Texts, shape: chains.Shape, how: Runs, stops: set[int]
) -> str:
    path = place / "pos.db"
    files.make(path, shape, texts)
    note(chains.told(world.chain))
    try:
        at = one_by_one(path, world, how)
    except ValidationError:
        at = []
    for end in how.ends:
        try:
            if not taken(path, world, end, how):
                return "money"
        except ValidationError:
            assert not at, "done one by one and not in one go"
            return "refused"
    assert at, "done in one go and not one by one"
    same_files(path, at[-1], world)
    assert files.money_of(path, world, world.head) == files.money_of(at[0], world, 0)
    for version in range(world.lowest):
        with pytest.raises(NoWayDown):
            taken(path, world, version, how)
    for version in range(world.lowest, world.head):
        back = copied(path, "back")
        if taken(back, world, version, how):
            same_files(back, at[version], world)
    for version in sorted(stops, reverse=True):
        if version >= world.lowest and taken(path, world, version, how):
            same_files(path, at[version], world)
    for end in how.ends:
        if end > files.version_of_file(path):
            assert taken(path, world, end, how)
    same_files(path, at[-1], world)
    return "done"


def taken(path: Path, world: World, version: int, how: Runs) -> bool:
    """Bring the file to a version; whether the proof let it. Raises ValidationError for a step that
    cannot be done."""
    with files.ready(path, world, version, *how.given(version or 1)) as run:
        run.build()
        # A record that has a move's new key all along cannot be told from a newer one.
        assert [entry for entry in run.kept if not entry["step"].startswith("move ")] == []
        if not proven(run):
            return False
        run.switch()
        return True


def proven(run: Run) -> bool:
    """Whether the proof lets a successor pass. It may refuse one whose tally is another, as at a
    version between a step that moves money and one that moves it back, and no other."""
    try:
        run.prove()
    except ValidationError as error:
        said = error.message
    else:
        return True
    assert said.startswith("the money would move"), said
    assert files.money_moves(run), said
    return False


def same_files(path: Path, other: Path, world: World) -> None:
    """Two files have the same version, records and ledgers, and all that is no record: the schema
    word for word, other tables row by row."""
    one, two = (files.texts_of(p, world.stores) for p in (path, other))
    assert files.same_texts(one, two) == []
    added = any(step.ddl and step.ddl.verb == "ALTER" for steps in world.chain for step in steps)
    # An added column stays on the way down, and the next way up finds it there.
    apart = ("outbox",) if added else ()
    ledgers, others = (files.ledgers_of(p, world.lowest) for p in (path, other))
    if added:
        ledgers, others = ([row for row in o if row[0] != "there"] for o in (ledgers, others))
    assert ledgers == others
    schema, expected = files.schema_of(path), files.schema_of(other)
    for name in apart:
        del schema["table", name], expected["table", name]
    assert schema == expected
    without = (*world.stores, TABLE, *apart, "sqlite_master")
    assert files.content_of(path, without) == files.content_of(other, without)


def test_an_object_that_two_steps_leave_empty_on_their_way_does_not_stop_the_proof() -> None:
    """It was refused, with every unsettled record: `b` itself is declared by no step."""
    chain = [[set_field("s", "b.b", 1)], [remove_field("s", "b.b")]]
    rules = {"unsettled": [{"every_record": True}], "amount": "amount", "currency": "cur"}
    document = chains.document_of(chain, dict.fromkeys(chains.STORES, rules))
    texts = {"s": {"k": '{"a":1}', "l": '{"b":{}}'}, chains.STORES[1]: {}}
    with folder() as place:
        path, world = place / "pos.db", World(chain, document, 2, 40)
        files.make(path, chains.Shape(4096, (False, False), ()), texts)
        files.migrated(path, world, 2)
        assert files.texts_of(path, ["s"])["s"] == {"k": '{"a":1,"b":{}}', "l": '{"b":{}}'}
        files.migrated(path, world, 0)
        assert files.texts_of(path, ["s"])["s"] == texts["s"]


# --- cuts ----------------------------------------------------------------------------------------


def test_a_run_that_ends_after_any_batch_and_goes_on_gives_the_very_same_file() -> None:
    tries = Tries()

    @usual
    @given(worlds(), chains.contents(), chains.shapes, st.lists(chains.edits, max_size=4))
    def example(
        world: World, texts: files.Texts, shape: chains.Shape, edits: list[chains.Edit]
    ) -> None:
        for run in there_and_back(world, texts, shape, edits, tries):
            whole = files.content_of(run.next)
            for batches in (1, 2, 3):
                run.row.state = "open"
                stops = files.stopped_after_batches(run, batches)
                assert stops >= len(run.plan.passes) // batches
                assert files.content_of(run.next) == whole

    example()
    tries.check()


def test_a_run_killed_before_any_sql_statement_and_gone_on_with_gives_the_very_same_file() -> None:
    tries = Tries()

    @settings(usual, max_examples=EXAMPLES // 4)
    @given(
        worlds(longest=2),
        chains.contents(),
        chains.shapes,
        st.lists(chains.edits, max_size=4),
        st.integers(1, 12),
    )
    def example(
        world: World,
        texts: files.Texts,
        shape: chains.Shape,
        edits: list[chains.Edit],
        every: int,
    ) -> None:
        for run in there_and_back(world, texts, shape, edits, tries):
            whole = files.content_of(run.next)
            run.row.state = "open"
            with folder() as place:
                moments = files.moments_of(run, place)
                assert files.content_of(run.next) == whole
                for moment in range(moments % every, moments, every):
                    files.put_back(run, place / str(moment))
                    run.resume()
                    assert files.content_of(run.next) == whole, moment

    example()
    tries.check()


def there_and_back(
    world: World,
    texts: files.Texts,
    shape: chains.Shape,
    edits: list[chains.Edit],
    tries: Tries,
) -> Iterator[Run]:
    """A run up whose successor is built, and one down after the application has worked."""
    note(chains.told(world.chain))
    with folder() as place:
        path = place / "pos.db"
        files.make(path, shape, texts)
        for to in (world.head, 0):
            with files.ready(path, world, to) as run:
                try:
                    run.build()
                except ValidationError:
                    tries.note("refused")
                    return
                yield run
                run.switch()
            if to:
                Application(path, world, to, []).work(edits)
        tries.note("done")


# --- what the new software does in between -------------------------------------------------------


class Application:
    """An ordinary client that works by the contract of its version, and remembers what it did.
    `words` are what it wrote, each into one field and nowhere else to be found."""

    def __init__(self, path: Path, world: World, version: int, words: list[str]) -> None:
        self.path = path
        self.version = version
        self.rules = files.contract_of(world, version)["stores"]
        self.touched: set[tuple[str, str]] = set()
        self.words = words

    def work(self, edits: list[chains.Edit]) -> None:
        with files.read(self.path) as db:
            for number, edit in enumerate(edits):
                store = files.quoted(edit.store)
                keys = [key for (key,) in db.execute(f"SELECT key FROM {store} ORDER BY key")]
                if edit.kind == "new" and edit.key not in keys:
                    text = encode(self._record(edit, number))
                    db.execute(f"INSERT INTO {store} (key, value) VALUES (?, ?)", (edit.key, text))
                    self.touched.add((edit.store, edit.key))
                elif edit.kind in ("set", "drop", "delete") and keys:
                    self._change(db, edit, keys[edit.pick % len(keys)])
                elif edit.kind == "row":
                    table = files.quoted(chains.MADE_TABLES[edit.pick % 2])
                    with suppress(sqlite3.Error):  # it is not there, or holds the row already
                        db.execute(f"INSERT INTO {table} (k) VALUES ('of the application')")

    def _record(self, edit: chains.Edit, number: int) -> Any:
        if edit.value is None:
            return {"id": f"new-{self.version}-{number}"}
        if type(edit.value) is not dict or "amount" not in edit.value:
            return edit.value
        rules, record = self.rules[edit.store], dict(edit.value, id=f"new-{self.version}-{number}")
        amount, currency, state = (record.pop(name) for name in ("amount", "cur", "st"))
        rule = next(rule for rule in rules["unsettled"] if "field" in rule)
        put(record, rules["amount"], amount)
        put(record, rules["currency"], currency)
        put(record, rule["field"], rule["values"][0] if state == "p" else "settled")
        return record

    def _change(self, db: sqlite3.Connection, edit: chains.Edit, key: str) -> None:
        store = files.quoted(edit.store)
        if edit.kind == "delete":
            db.execute(f"DELETE FROM {store} WHERE key = ?", (key,))
            self.touched.add((edit.store, key))
            return
        text = db.execute(f"SELECT value FROM {store} WHERE key = ?", (key,)).fetchone()[0]
        record = decode(text)
        if type(record) is not dict:
            return
        if edit.kind == "drop":
            record.pop(edit.field, None)
        elif edit.field == "amount":
            put(record, self.rules[edit.store]["amount"], edit.pick)
        elif edit.value is None:
            self.words.append(f"word {len(self.words)} of the application")
            record[edit.field] = self.words[-1]
        else:
            record[edit.field] = edit.value
        db.execute(f"UPDATE {store} SET value = ? WHERE key = ?", (encode(record), key))
        self.touched.add((edit.store, key))


def put(record: dict[str, Any], path: str, value: Any) -> None:
    """Put a value where stores.json says, unless something is in the way."""
    *way, last = path.split(".")
    for name in way:
        record = record.setdefault(name, {})
        if type(record) is not dict:
            return
    record[last] = value


@st.composite
def journeys(draw: st.DrawFn, head: int) -> list[tuple[int, list[chains.Edit]]]:
    """Up in one or several runs, then anywhere, and back to the first version: where to, and what
    the application of that version does there."""
    climbs = sorted(draw(st.sets(st.integers(1, head), min_size=min(head, 2), max_size=3)))
    targets = [*climbs, *draw(st.lists(st.integers(0, head), max_size=2)), 0]
    return [(to, draw(st.lists(chains.edits, min_size=1, max_size=6))) for to in targets]


def test_what_applications_made_changed_and_deleted_outlives_every_way_up_and_down() -> None:
    tries = Tries()

    @usual
    @given(worlds(), chains.contents(), chains.shapes, st.data())
    def example(world: World, texts: files.Texts, shape: chains.Shape, data: st.DataObject) -> None:
        note(chains.told(world.chain))
        legs = data.draw(journeys(world.head))
        with folder() as place:
            files.make(place / "pos.db", shape, texts)
            journey = Journey(place / "pos.db", world)
            for number, (to, edits) in enumerate(legs):
                if not journey.go(to, number):
                    return tries.note("money")
                journey.work(edits)
        return tries.note("done")

    example()
    tries.check()


class Journey:
    """One file that goes up and down while applications work on it between the runs. What it must
    look like is known from going the same way one version at a time, and from what it looked like
    when it was last at a version."""

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.world = world
        self.version = 0
        self.seen: dict[int, files.Texts] = {0: self.texts()}
        # What applications have touched since the file was last at a version.
        self.touched: dict[int, set[tuple[str, str]]] = {0: set()}
        self.words: list[str] = []

    def texts(self) -> files.Texts:
        return files.texts_of(self.path, self.world.stores)

    def work(self, edits: list[chains.Edit]) -> None:
        """What the application of this version does, and that it is there."""
        application = Application(self.path, self.world, self.version, self.words)
        application.work(edits)
        for touched in self.touched.values():
            touched |= application.touched
        note(f"at {self.version}: {self.texts()}")

    def go(self, to: int, number: int) -> bool:
        """One leg; False where the proof found that money moves. A leg that cannot be done leaves
        the file as it is."""
        before, there = self.texts(), self.version
        if to > there:
            self.seen[there], self.touched[there] = before, set()
        how = (NOW_MS + number, f"device_{number}")
        slowly = self._step_by_step(to, *how)
        try:
            with files.ready(self.path, self.world, to, *how) as run:
                run.build()
                if not proven(run):
                    return False
                run.switch()
        except ValidationError:
            assert slowly is None, "it can be done one by one"
            # Only a newcomer under the name of a record that has moved stands in a way down.
            assert to > there or move_places(self.world) & self.touched[0], "edits never do"
            return True
        assert slowly is not None, "it cannot be done one by one"
        if to != there:
            same_files(self.path, self.path.with_name("slowly"), self.world)
        if to > there:
            self.seen.update({version: found for version, found, _ in slowly})
            self.touched.update({version: set() for version, _, _ in slowly})
        for version, found, removed in slowly if to < there else ():
            self._is_as_it_was(version, found, before, removed)
        self.version = to
        return True

    def _step_by_step(
        self, to: int, now: int, device_id: str
    ) -> list[tuple[int, files.Texts, bool]] | None:
        """The same leg with a run for each version: the version, its records, and whether anything
        newer was said to be removed by then. None where it cannot be done."""
        slowly, found, removed = copied(self.path, "slowly"), [], False
        for version in versions_between(self.version, to):
            try:
                with files.ready(slowly, self.world, version, now, device_id) as run:
                    run.build()
                    run.switch()
            except ValidationError:
                return None
            removed = removed or any(entry["what"] == "removed" for entry in run.kept)
            found.append((version, files.texts_of(slowly, self.world.stores), removed))
        return found

    def _is_as_it_was(
        self, version: int, found: files.Texts, newest: files.Texts, removed: bool
    ) -> None:
        """On the way down everything is as it was when the file was last at a version, but for what
        applications did since."""
        older, touched = self.seen[version], self.touched[version]
        moving = move_places(self.world)
        if not moving & touched:
            moving = set()  # what moved has moved back
        for store, key in (places(found) | places(older)) - moving:
            if (store, key) in touched:
                assert (key in found[store]) == (key in newest[store]), (store, key)
            else:
                assert reader.same_value(found[store][key], older[store][key]), (store, key)
        assert len(places(found)) == len(places(newest))
        assert untouched_parts(found) == untouched_parts(newest)
        for word in self.words:
            assert removed or word in repr(found) or word not in repr(newest), word


def versions_between(there: int, to: int) -> list[int]:
    """Every version after one, up or down to another."""
    return list(range(there + 1, to + 1)) if to > there else list(range(there - 1, to - 1, -1))


def places(texts: files.Texts) -> set[tuple[str, str]]:
    return {(store, key) for store, rows in texts.items() for key in rows}


def move_places(world: World) -> set[tuple[str, str]]:
    """Where a move of the chain takes records from and puts them."""
    found: set[tuple[str, str]] = set()
    for step in (step for steps in world.chain for step in steps if step.kind == "move_record"):
        found |= {(step.store, str(step.key)), (step.target[0], step.target[1])}
    return found


def untouched_parts(texts: files.Texts) -> Counter[str]:
    """Of every record what no step names; of a record that is no object all of it."""
    values = [reader.parse(text) for rows in texts.values() for text in rows.values()]
    return Counter(
        repr(sorted((name, repr(part)) for name, part in value.items() if name in ("id", "own")))
        if isinstance(value, dict)
        else repr(value)
        for value in values
    )


# --- a file that is not what it should be --------------------------------------------------------


def test_the_proof_refuses_a_file_after_any_single_change() -> None:
    tries = Tries()
    refused: Counter[str] = Counter()

    @usual
    @given(
        worlds(),
        chains.contents(),
        chains.shapes,
        st.lists(chains.edits, max_size=4),
        st.integers(0, 20),
    )
    def example(
        world: World,
        texts: files.Texts,
        shape: chains.Shape,
        edits: list[chains.Edit],
        pick: int,
    ) -> None:
        for run in there_and_back(world, texts, shape, edits, tries):
            if not proven(run):
                return tries.note("money")
            for change in CHANGES:
                tampered = copied(run.next, "tampered")
                with files.read(tampered) as db:
                    if not change(Tampering(db, run), pick):
                        continue
                with pytest.raises(ValidationError):
                    run.prove(tampered)
                refused[change.__name__] += 1
        return None

    example()
    tries.check()
    assert refused.keys() == {change.__name__ for change in CHANGES}, refused


class Tampering:
    """A built successor that somebody changes, and the run that built it."""

    def __init__(self, db: sqlite3.Connection, run: Run) -> None:
        self.db = db
        self.run = run
        self.stores = run.world.stores

    def rules(self, version: int) -> dict[str, Any]:
        """What stores.json says at a version."""
        at: dict[str, Any] = files.contract_of(self.run.world, version)["stores"]
        return at

    def texts(self) -> files.Texts:
        return files.texts_in(self.db, self.stores)

    def write(self, store: str, key: str, value: Any) -> None:
        sql = f"UPDATE {files.quoted(store)} SET value = ? WHERE key = ?"
        self.db.execute(sql, (encode(value), key))

    def unsettled(self) -> list[tuple[str, str]]:
        """Where the unsettled records of the old file lie, those that no move can have moved."""
        rules = self.rules(files.version_of_file(self.run.path))
        moving = move_places(self.run.world)
        return [
            (store, key)
            for store, rows in files.texts_of(self.run.path, self.stores).items()
            for key, text in rows.items()
            if (store, key) not in moving and files.is_unsettled(rules[store], key, text)
        ]


def adds_to_an_amount(it: Tampering, pick: int) -> bool:
    rules = it.rules(it.run.to)
    found = []
    for store, rows in it.texts().items():
        for key, text in rows.items():
            amount = files.at(reader.parse(text), rules[store]["amount"])
            if reader.integer(amount) is not None:
                found.append((store, key, int(amount.literal)))
    if found:
        store, key, amount = found[pick % len(found)]
        record = decode(it.texts()[store][key])
        put(record, rules[store]["amount"], amount + 1)
        it.write(store, key, record)
    return bool(found)


def takes_a_record_away(it: Tampering, pick: int) -> bool:
    found = sorted(places(it.texts()))
    if found:
        store, key = found[pick % len(found)]
        it.db.execute(f"DELETE FROM {files.quoted(store)} WHERE key = ?", (key,))
    return bool(found)


def changes_an_unsettled_record(it: Tampering, pick: int) -> bool:
    found = it.unsettled()
    if found:
        store, key = found[pick % len(found)]
        record = decode(it.texts()[store][key])
        it.write(store, key, {**record, "more": 1} if type(record) is dict else [record])
    return bool(found)


def loses_a_ledger_row_of_an_unsettled_record(it: Tampering, pick: int) -> bool:
    if it.run.plan.down:
        return False
    held = {encode([store, key]) for store, key in it.unsettled()}
    versions = [m.version for m in it.run.plan.migrations]
    found = [
        (kind, key)
        for kind, key in it.db.execute(
            f"SELECT kind, key FROM {TABLE} WHERE kind LIKE 'undo:%' ORDER BY kind, key"
        )
        if key in held and int(kind[5:]) in versions
    ]
    if found:
        row = found[pick % len(found)]
        it.db.execute(f"DELETE FROM {TABLE} WHERE kind = ? AND key = ?", row)
    return bool(found)


def loses_what_was_applied(it: Tampering, pick: int) -> bool:
    if it.run.plan.down:
        return False
    version = it.run.plan.migrations[pick % len(it.run.plan.migrations)].version
    it.db.execute(f"DELETE FROM {TABLE} WHERE kind = 'applied' AND key = ?", (f"{version:04d}",))
    return True


def loses_that_a_record_moved(it: Tampering, pick: int) -> bool:
    if it.run.plan.down:
        return False
    versions = [f"{m.version:04d}" for m in it.run.plan.migrations]
    rows = it.db.execute(f"SELECT key FROM {TABLE} WHERE kind = 'moved' ORDER BY key").fetchall()
    found = [key for (key,) in rows if key.partition("/")[0] in versions]
    if found:
        key = found[pick % len(found)]
        it.db.execute(f"DELETE FROM {TABLE} WHERE kind = 'moved' AND key = ?", (key,))
    return bool(found)


def puts_a_record_in(it: Tampering, pick: int) -> bool:
    it.db.execute("INSERT INTO s (key, value) VALUES ('a new one', '{}')")
    return True


def changes_another_table(it: Tampering, pick: int) -> bool:
    # Triggers of the application may have emptied it.
    return it.db.execute("UPDATE odd SET b = 2 WHERE a = 1 AND b = 2.5").rowcount > 0


def drops_a_trigger_or_an_index(it: Tampering, pick: int) -> bool:
    found = it.db.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql <> ''"
    ).fetchall()
    if found:
        kind, name = found[pick % len(found)]
        it.db.execute(f"DROP {kind} {files.quoted(name)}")
    return bool(found)


def says_another_version(it: Tampering, pick: int) -> bool:
    it.db.execute(f"PRAGMA user_version = {it.run.to + 1}")
    return True


CHANGES = (
    adds_to_an_amount,
    takes_a_record_away,
    changes_an_unsettled_record,
    loses_a_ledger_row_of_an_unsettled_record,
    loses_what_was_applied,
    loses_that_a_record_moved,
    puts_a_record_in,
    changes_another_table,
    drops_a_trigger_or_an_index,
    says_another_version,
)


# --- literals ------------------------------------------------------------------------------------


def test_a_number_that_no_step_names_keeps_every_character_up_and_down() -> None:
    tries = Tries()

    @usual
    @given(worlds(), chains.contents(), chains.shapes)
    def example(world: World, texts: files.Texts, shape: chains.Shape) -> None:
        named = any(step.path == ("keep",) for steps in world.chain for step in steps)
        before = None if named else literals_of(texts)
        for run in there_and_back(world, texts, shape, [], tries):
            with files.read(run.next) as db:
                after = files.texts_in(db, world.stores)
            if before is not None:
                assert literals_of(after) == before
        if before:
            tries.note("with literals")

    example()
    tries.check()
    assert tries.found["with literals"] > EXAMPLES // 3


def literals_of(texts: files.Texts) -> dict[str, str]:
    """By the record's own name the characters of a number that an application keeps there."""
    found = {}
    for rows in texts.values():
        for text in rows.values():
            record = reader.parse(text)
            literal = files.literal_of(text, "keep")
            if isinstance(record, dict) and "id" in record and literal is not None:
                found[record["id"]] = literal
                assert record["keep"] == reader.Number(literal)
    return found
