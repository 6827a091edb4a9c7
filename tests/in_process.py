"""Upgrades and ways back on real SQLite files, in this process and without the daemon around them.

What the worker does between the locked pos.db and the switch is done here with the same functions
in the same order: survey, successor, run row, batches, last commit, proof, rename. So a test can
make thousands of small files, and can cut a run between any two SQL statements: the files as they
lay at that moment are what a worker killed there would have left.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

from agent.core.left_behind import judged
from agent.core.migration import Migration, Step
from agent.core.plan import Plan, check_plan
from agent.core.profile import Profile, profile_of
from agent.core.stores import Contracts
from agent.core.tally import difference
from agent.core.terminal import TABLE, Places, RunRow
from agent.edges import database
from agent.ground.codec import encode
from agent.verbs import build, moving, passes, prove, rows, schema, survey, way_down
from tests import chains
from tests import independent_reader as reader

NOW_MS = 1_800_000_000_000
FILE_BYTES_MAX = 1 << 30

Chain = list[list[Step]]
# Store -> key -> the text as it lies in the file.
Texts = dict[str, dict[str, str]]
Schema = dict[tuple[str, str], tuple[str, Optional[str]]]


class Cut(Exception):
    """Ends a run where a test wants it to end."""


class World(NamedTuple):
    """What belongs to one pos.db: the installed migrations, stores.json, the bounds of a batch."""

    chain: Chain
    document: dict[str, Any]
    batch_rows: int
    batch_bytes: int

    @property
    def head(self) -> int:
        return len(self.chain)

    @property
    def lowest(self) -> int:
        """The lowest version that a way down leads to: the highest one that cannot be undone."""
        numbered = enumerate(self.chain, 1)
        return max((v for v, steps in numbered for s in steps if not s.reversible), default=0)

    @property
    def contracts(self) -> Contracts:
        return Contracts(self.document, "")

    @property
    def stores(self) -> list[str]:
        return list(self.document["versions"][0]["stores"])

    @property
    def profile(self) -> Profile:
        profile = profile_of("of the test", {}, {"batch_rows_max": self.batch_rows})
        profile.batch_bytes_max = self.batch_bytes  # far below what a real profile may ask for
        return profile

    def plan(self, from_version: int, to: int) -> Plan:
        """A plan up or down; of steps of its own, as in every new worker."""
        migrations = [
            Migration(version, f"m{version}", steps, f"{version:04d}_m.py", str(version))
            for version, steps in enumerate(self.chain, 1)
        ]
        low, high = min(from_version, to), max(from_version, to)
        plan = Plan(migrations[low:high], from_version, f"to {to}", down=to < from_version)
        check_plan(plan, self.contracts)
        return plan


def make(path: Path, shape: chains.Shape, texts: Texts) -> None:
    """A pos.db at schema 0 as its application made it."""
    path.unlink(missing_ok=True)
    with read(path) as db:
        db.execute(f"PRAGMA page_size = {shape.page_bytes}")
        db.execute("BEGIN")
        for (store, found), without_rowid in zip(texts.items(), shape.without_rowid):
            tail = " WITHOUT ROWID" if without_rowid else ""
            db.execute(f"CREATE TABLE {quoted(store)} (key TEXT PRIMARY KEY, value TEXT){tail}")
            for number, (key, text) in enumerate(found.items()):
                given = (key, text) if without_rowid else (rowid(number), key, text)
                columns = "key, value" if without_rowid else "rowid, key, value"
                marks = ", ".join("?" * len(given))
                db.execute(f"INSERT INTO {quoted(store)} ({columns}) VALUES ({marks})", given)
        for statement in chains.ALWAYS:
            db.execute(statement)
        db.executemany("INSERT INTO odd VALUES (?, ?)", chains.ODD_ROWS)
        db.execute("INSERT INTO odd VALUES (CAST(x'ff41' AS TEXT), 0)")
        for statement in shape.declared:
            db.execute(statement)
        db.execute("COMMIT")


def rowid(number: int) -> int:
    """Rowids as deletions and imports leave them: below zero, with gaps, one far away."""
    return (-1 if number % 2 else 1) * (2**62 if number == 4 else number * 7 + 1)


class Run:
    """One run from the version of a pos.db to another, stage by stage; nothing is renamed by it."""

    def __init__(self, path: Path, world: World, to: int, now: int, device_id: str) -> None:
        self.path = path
        self.world = world
        self.to = to
        self.places = Places(str(path), str(path.parent), str(path.parent), str(path.parent))
        self.next = Path(self.places.next)
        self.profile = world.profile
        self.contracts = world.contracts
        self.limits = (self.profile.record_bytes_max, self.profile.record_depth_max)
        self.source = database.open_source(str(path), self.profile.page_cache_bytes)
        version = version_of(self.source)
        self.kind = "rollback" if to < version else "migrate"
        self.kept: list[dict[str, Any]] = []
        self.plan = self._checked_plan(version)
        self.row = self._run_row(version, now, device_id)

    def _checked_plan(self, version: int) -> Plan:
        """The plan, and every refusal that comes before a byte is written."""
        plan = self.world.plan(version, self.to)
        applied = rows.read_applied(self.source)
        if plan.down:
            way_down.check_reversible(plan, applied)
            plan.bind(0, "", applied)
            kept = way_down.try_down(self.source, plan, self.limits, no_mark)
            self.kept = kept.as_json()
        survey.check_stores(self.source, self.contracts.at(version))
        build.check_writable(self.source, plan.stores())
        schema.rehearse(self.source, plan)
        return plan

    def _run_row(self, version: int, now: int, device_id: str) -> RunRow:
        contract = rows.contract_at(self.source, self.contracts, version)
        stores = judged(self.plan, self.contracts, False)
        found = survey.survey(self.source, contract, stores, self.limits, no_mark)
        return RunRow(
            kind=self.kind,
            run=f"{version} to {self.to} at {now}",
            source_size=self.path.stat().st_size,
            source_sha256="0" * 64,
            plan=self.plan.digest,
            from_version=version,
            to_version=self.to,
            now=now,
            clock_trusted=True,
            device_id=device_id,
            before=found.tally.as_json(),
            counters=found.counters,
            backup=None,
            wal=False,
            app_reads=[0, self.world.head],
            state="open",
        )

    def open_successor(self) -> sqlite3.Connection:
        """The successor as a worker opens it; small caches and logs, so that both run over."""
        return database.open_successor(str(self.next), 65536, 65536, FILE_BYTES_MAX)

    def begin(self) -> sqlite3.Connection:
        """A fresh copy with its run row in it."""
        database.remove_side_files(str(self.next))
        shutil.copyfile(self.path, self.next)
        return self.open_successor()

    def work(
        self, successor: sqlite3.Connection, on_batch: Callable[[], None] = lambda: None
    ) -> None:
        """Everything from the run row to the closed file, or what is still missing of it."""
        row = rows.read_run(successor)
        if row is None or row.run != self.row.run:
            build.start_run(successor, self.row)
        elif row.state == "sealed":
            build.close_next(successor, self.places)
            return
        plan = self.plan = self.world.plan(self.row.from_version, self.to)
        plan.bind(self.row.now, self.row.device_id, rows.read_applied(self.source))
        work = passes.Passes(successor, plan, self.profile, self.contracts)
        work.run(lambda a_pass, cursor: on_batch())
        build.end_run(successor, self.places, self.row, plan)

    def resume(self) -> None:
        """What the next worker does with whatever lies there."""
        with closing(self.open_successor()) as successor:
            self.row.state = "open"
            self.work(successor)

    def prove(self, new: Path | None = None) -> int:
        """The proof, of the successor or of a test's changed copy of it."""
        connection = database.open_source(str(new or self.next), self.profile.page_cache_bytes)
        with closing(connection):
            return prove.prove_migration(
                self.source,
                connection,
                self.plan,
                self.row.before,
                self.contracts,
                moving.moves_of(self.source, self.plan, connection),
                self.limits,
                no_mark,
            )

    def build(self) -> None:
        """A successor from nothing to the closed file."""
        with closing(self.begin()) as successor:
            self.work(successor)

    def switch(self) -> None:
        """The successor becomes pos.db."""
        self.close()
        os.replace(self.next, self.path)

    def close(self) -> None:
        """Let go of the old file."""
        self.source.close()


def no_mark(store: str, done: int) -> None:
    """Nobody watches."""


@contextmanager
def closing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A connection that is closed whatever happens; twice does no harm."""
    try:
        yield connection
    finally:
        connection.close()


def migrated(
    path: Path, world: World, to: int, now: int = NOW_MS, device_id: str = "device_1"
) -> list[dict[str, Any]]:
    """Bring pos.db to a version, up or down. Answers what a way down has kept; raises AgentError
    with the file as it was."""
    with ready(path, world, to, now, device_id) as run:
        run.build()
        run.prove()
        run.switch()
        return run.kept


@contextmanager
def ready(
    path: Path, world: World, to: int, now: int = NOW_MS, device_id: str = "device_1"
) -> Iterator[Run]:
    """A run before its first write."""
    run = Run(path, world, to, now, device_id)
    try:
        yield run
    finally:
        run.close()


# --- cutting a run -------------------------------------------------------------------------------


def stopped_after_batches(run: Run, batches: int) -> int:
    """A run that ends by an exception after so many batches, goes on in a file that was closed and
    opened, ends again after as many, and so on until it is through. Answers how often it ended."""
    stops = 0
    connection = run.begin()
    while True:
        left = batches

        def count() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Cut

        with closing(connection):
            try:
                run.work(connection, count)
                return stops
            except Cut:
                stops += 1
        connection = run.open_successor()


def moments_of(run: Run, folder: Path) -> int:
    """The run with a picture of its files before every SQL statement, as folders 0, 1, 2, and so
    on. Answers how many there are."""
    moments = 0

    def take(_: str) -> None:
        nonlocal moments
        place = folder / str(moments)
        place.mkdir()
        for name in (run.next.name, run.next.name + "-wal", run.next.name + "-journal"):
            if (run.next.parent / name).exists():
                shutil.copyfile(run.next.parent / name, place / name)
        moments += 1

    with closing(run.begin()) as successor:
        successor.set_trace_callback(take)
        run.work(successor)
    return moments


def put_back(run: Run, moment: Path) -> None:
    """The successor's files as they were at a moment."""
    for name in (run.next.name, run.next.name + "-wal", run.next.name + "-journal"):
        (run.next.parent / name).unlink(missing_ok=True)
        if (moment / name).exists():
            shutil.copyfile(moment / name, run.next.parent / name)


# --- reading a file from outside -----------------------------------------------------------------


@contextmanager
def read(path: Path) -> Iterator[sqlite3.Connection]:
    """An ordinary client."""
    connection = sqlite3.connect(path, isolation_level=None)
    with closing(connection):
        yield connection


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version that a file says."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def version_of_file(path: Path) -> int:
    """The same of a file that nobody has open."""
    with read(path) as db:
        return version_of(db)


def texts_of(path: Path, stores: list[str]) -> Texts:
    """Every record as it lies."""
    with read(path) as db:
        return texts_in(db, stores)


def texts_in(db: sqlite3.Connection, stores: list[str]) -> Texts:
    """The same by a connection that is there."""
    return {s: dict(db.execute(f"SELECT key, value FROM {quoted(s)}")) for s in stores}


def quoted(name: str) -> str:
    """An identifier, by the test's own hand."""
    return '"' + name.replace('"', '""') + '"'


def schema_of(path: Path) -> Schema:
    """Everything that a file declares but for the agent's own table."""
    with read(path) as db:
        found = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return {(kind, name): (table, sql) for kind, name, table, sql in found if table != TABLE}


def content_of(path: Path, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """The rows of every table, the agent's own included, with their rowids; the schema; the
    version. Text is compared by its bytes."""
    with read(path) as db:
        db.text_factory = bytearray  # text stays another type than a BLOB
        tables = [
            bytes(name).decode()
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        found: dict[str, list[Any]] = {name: _bag(db, name) for name in tables}
        found["sqlite_master"] = sorted(
            map(repr, db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))
        )
        found["user_version"] = [version_of(db)]
    return {name: rows for name, rows in found.items() if name not in without}


def _bag(db: sqlite3.Connection, table: str) -> list[str]:
    try:
        found = db.execute(f"SELECT rowid, * FROM {quoted(table)}").fetchall()
    except sqlite3.OperationalError:
        found = db.execute(f"SELECT * FROM {quoted(table)}").fetchall()
    return sorted(map(repr, found))


def ledgers_of(path: Path, above: int = 0) -> list[tuple[str, str, Any]]:
    """What the file keeps for the ways back of its records, moves and statements, of the versions
    above one. The order of an object's names plays no part, and so none in which the fields of one
    record stand."""
    with read(path) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone():
            return []  # no agent was here yet
        found = sorted(db.execute(f"SELECT kind, key, value FROM {TABLE}"))
    return [
        (kind, key, _in_order(reader.parse(row)))
        for kind, key, row in found
        for version in (kind[5:] if kind.startswith("undo:") else key[:4],)
        if kind.startswith("undo:") or kind in ("moved", "there")
        if int(version) > above
    ]


def _in_order(row: Any) -> Any:
    if isinstance(row, list):  # of a record; of a move it is a mere true
        for _, entry in row:
            if entry[0] == "fields":
                entry[1].sort(key=lambda change: repr(change[0]))
    return row


def same_texts(one: Texts, other: Texts) -> list[tuple[str, str]]:
    """Where two sets of records differ by value, numbers by their literals."""
    places = {(s, k) for texts in (one, other) for s, found in texts.items() for k in found}
    return sorted(
        (store, key)
        for store, key in places
        if key not in one[store]
        or key not in other[store]
        or not reader.same_value(one[store][key], other[store][key])
    )


def contract_of(world: World, version: int) -> dict[str, Any]:
    """What stores.json says at a version."""
    found: dict[str, Any] = [v for v in world.document["versions"] if v["since"] <= version][-1]
    return found


def is_unsettled(rules: dict[str, Any], key: str, text: str) -> bool:
    """Whether a record is unsettled, by the test's own reading."""
    value = reader.parse(text)
    return any(
        rule.get("every_record")
        or rule.get("key") == key
        or key.startswith(rule.get("key_prefix", "no such key"))
        or ("field" in rule and at(value, rule["field"]) in map(_parsed, rule["values"]))
        for rule in rules["unsettled"]
    )


def _parsed(value: Any) -> Any:
    return reader.parse(encode(value))


def money_of(path: Path, world: World, version: int) -> dict[str, tuple[int, int]]:
    """Per currency how many amounts the stores hold and their sum, by the test's own reading."""
    contract = contract_of(world, version)
    sums: dict[str, tuple[int, int]] = {}
    for store, texts in texts_of(path, world.stores).items():
        rules = contract["stores"][store]
        if "amount" not in rules:
            continue
        several = {rule["key"] for rule in rules["unsettled"] if rule.get("each_item")}
        for key, text in texts.items():
            value = reader.parse(text)
            for sale in value if isinstance(value, list) and key in several else [value]:
                amount = reader.integer(at(sale, rules["amount"]))
                if amount is not None:
                    currency = at(sale, rules["currency"])
                    name = currency if isinstance(currency, str) else "?"
                    count, total = sums.get(name, (0, 0))
                    sums[name] = (count + 1, total + amount)
    return sums


def money_moves(run: Run) -> str:
    """How the survey of a successor differs from that of its source, or ""."""
    with closing(database.open_source(str(run.next), run.profile.page_cache_bytes)) as new:
        contract = rows.contract_at(new, run.contracts, run.to)
        after = survey.survey(new, contract, set(), run.limits, no_mark).tally.as_json()
    return difference(run.row.before, after, run.plan.store_groups())


def at(value: Any, path: str) -> Any:
    """What lies at a path of stores.json in a parsed value, or None."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def literal_of(text: str, field: str) -> str | None:
    """The number that stands behind a field's name, character for character."""
    found = re.search(rf'"{field}"\s*:\s*([-+0-9.eE]+)', text)
    return found.group(1) if found else None
