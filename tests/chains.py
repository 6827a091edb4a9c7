"""Generated records and chains of steps, for tests that hold any chain to a promise.

The records are small and use few names, so that steps meet what other steps and the application
have made: fields that are there or not, ways that are barred, empty objects, literals of all kinds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st

from agent.core.migration import (
    DEVICE_ID,
    KEEP,
    NOW,
    TO_VERSION,
    UNDO,
    Step,
    each,
    map_value,
    move_record,
    remove_field,
    rename_field,
    set_field,
    sql,
)
from agent.ground.codec import Number, encode

Chain = list[list[Step]]

NAMES = ("a", "b", "c")
MOVING_KEYS = ("k1", "k2", "k3")
LITERALS = ("10.50", "1e3", "-0", "1.0E+2", "0.10")


def weighed(*alternatives: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of the alternatives, those given several times more often; `|` takes each only once."""
    return st.sampled_from(alternatives).flatmap(lambda chosen: chosen)


names = st.sampled_from(NAMES)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(LITERALS).map(Number)
    | st.sampled_from(("", "x", "y", "10.50", "é\U0001f355"))
    | st.just(2**70)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=3)
records = weighed(objects, objects, objects, values)
paths = weighed(
    st.lists(names, min_size=1, max_size=1),
    st.lists(names, min_size=1, max_size=2),
    st.lists(names, min_size=1, max_size=3),
)
# What one chain is mostly about, so that its steps meet each other's work and the records' values.
few_paths = st.sampled_from((["a"], ["a"], ["b"], ["b", "a"], ["c", "b"]))
few_values = st.sampled_from((1, 0, "x", None, True, Number("10.50")))
set_values = values | st.just(NOW) | st.just({"at": NOW, "by": [DEVICE_ID, TO_VERSION]})
on_new = st.sampled_from(("keep", "remove"))
keys = st.sampled_from((None, None, None, None, "k1", "k2"))


def _fits(given: tuple[list[str], list[str]]) -> bool:
    path, to = given
    return path[: len(to)] != to[: len(path)]


def up_wraps(record: Any, context: Any) -> Any:
    """Puts a field into an object of its own, and adds one."""
    if "a" not in record:
        return KEEP
    record["a"] = {"was": record["a"], "at": context.version}
    record["b"] = len(record)
    return record


def up_mixes(record: Any, context: Any) -> Any:
    """Changes, adds and takes away at once, differently for different records."""
    record.pop("c", None)
    if type(record.get("b")) is dict:
        record["b"]["a"] = [1, (2, "t")]
        record["b"].pop("c", None)
    else:
        record["a"] = {"b": {}}
    return record


Paths = st.SearchStrategy[list[str]]


@st.composite
def reversible_steps(draw: st.DrawFn, store: str = "s", paths: Paths = paths) -> Step:
    """Any step whose way back is the agent's own, over one store."""
    kind = draw(st.sampled_from(("set", "set", "missing", "remove", "rename", "map", "each")))
    key = draw(keys)
    if kind in ("set", "missing"):
        return set_field(
            store,
            draw(paths),
            draw(weighed(few_values, set_values)),
            if_missing=kind == "missing",
            key=key,
            on_new=draw(on_new),
        )
    if kind == "remove":
        return remove_field(store, draw(paths), key=key)
    if kind == "rename":
        path, to = draw(st.tuples(paths, paths).filter(_fits))
        return rename_field(store, path, to, key=key)
    if kind == "map":
        known, new = st.sampled_from((1, "x", None, 0, "y")), weighed(few_values, scalars)
        pairs = draw(st.dictionaries(known, new, max_size=4))
        return map_value(store, draw(paths), pairs, other="keep", key=key, on_new=draw(on_new))
    return each(store, draw(st.sampled_from((up_mixes, up_wraps))), UNDO, fields=NAMES, key=key)


@st.composite
def moves(draw: st.DrawFn, stores: tuple[str, ...]) -> Step:
    """A record that moves, within a store or to another."""
    key, to_key = draw(st.permutations(MOVING_KEYS))[:2]
    return move_record(
        draw(st.sampled_from(stores)),
        key,
        to_key=to_key,
        to_store=draw(st.sampled_from(stores)),
        if_exists=draw(st.sampled_from(("keep", "keep", "fail"))),
    )


def chains(stores: tuple[str, ...] = ("s",), longest: int = 4) -> st.SearchStrategy[Any]:
    """Migrations as lists of steps, moves among them where there is more than one store."""
    step = st.one_of([reversible_steps(store) for store in stores])
    if len(stores) > 1:
        step = weighed(step, step, step, moves(stores))
    return st.lists(st.lists(step, max_size=3), min_size=1, max_size=longest)


def told(chain: Chain) -> str:
    """A chain in the words of its steps' own slots, for a test that fails."""
    lines = []
    for version, steps in enumerate(chain, 1):
        for step in steps:
            said = {name: getattr(step, name) for name in step.__slots__}
            plain = {k: v for k, v in said.items() if v not in ("", (), [], None, False, "keep")}
            lines.append(f"{version}: {plain}")
    return "\n".join(lines)


# --- whole files: stores, texts, money, what else lies in them ------------------------------------

STORES = ("s", 'the "other" é')
# The names of keys that moves and steps with a key mean come most often.
ODD_KEYS = (
    *("k1", "k2", "k3", "queue") * 3,
    *("", " ", "K1", "k1 ", "k1\n", "é", "\U0001f355", 'a"b', "a'b", "a\\b", "a\0b", "%", "\uffff"),
    '["s","k1"]',
    "4111111111111111",
)
LONG_LITERALS = ("0.1000000000000000055511151231257827", "-0.0", "1E400", "12345678901234567890123")
store_names = st.sampled_from(STORES)
odd_keys = st.sampled_from(ODD_KEYS)
currencies = st.sampled_from(("EUR", "USD"))
literals = st.sampled_from(LITERALS + LONG_LITERALS)


@st.composite
def sales(draw: st.DrawFn) -> dict[str, Any]:
    """A record with money, a state that says whether it is settled, and a literal to be kept."""
    record = draw(st.dictionaries(names, weighed(few_values, values), min_size=1, max_size=2))
    if draw(st.booleans()):
        record["b"] = draw(st.dictionaries(names, few_values, max_size=2))
    record["amount"] = draw(st.integers(-5, 5) | st.just(10**20))
    record["cur"] = draw(currencies)
    record["st"] = draw(st.sampled_from(("p", "d")))
    record["keep"] = Number(draw(literals))
    return record


queues = st.lists(sales() | values, max_size=2)


def spaced(text: str) -> str:
    """The same JSON with white space wherever it may stand."""
    found, quoted, escaped = "\n", False, False
    for char in text:
        found += char
        if quoted:
            quoted, escaped = char != '"' or escaped, char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in ",:[{":
            found += " \t"
    return found + " "


def escaped(text: str) -> str:
    """The same JSON with some characters written in another way, in names and values alike."""
    for char, other in (("a", "\\u0061"), ("x", "\\u0078"), ("é", "\\u00e9")):
        text = text.replace(f'"{char}', f'"{other}')
    return text


@st.composite
def texts(draw: st.DrawFn, key: str, number: int) -> str:
    """The text of one record as an application may have written it. An object has a name of its
    own in a field that no step names, most of the time."""
    kind = weighed(sales(), sales(), records) if key != "queue" else queues
    record = draw(kind)
    if type(record) is dict and draw(st.integers(0, 7)):
        record["id"] = f"id-{number}"
    text = encode(record)
    style = draw(st.sampled_from(("", "", "", "spaced", "escaped")))
    return spaced(text) if style == "spaced" else escaped(text) if style == "escaped" else text


@st.composite
def contents(draw: st.DrawFn) -> dict[str, dict[str, str]]:
    """The records of every store."""
    number = 0
    found: dict[str, dict[str, str]] = {}
    for store in STORES:
        found[store] = {}
        least = draw(st.sampled_from((4, 4, 2, 0)))
        for key in draw(st.lists(odd_keys, unique=True, min_size=least, max_size=7)):
            number += 1
            found[store][key] = draw(texts(key, number))
    return found


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """What stores.json says of one store at the beginning."""
    unsettled: list[dict[str, Any]] = [{"field": "st", "values": ["p"]}]
    if draw(st.booleans()):
        unsettled.append({"key": "queue", "each_item": True})
    unsettled += draw(
        st.sampled_from(([], [], [{"key": "k1"}], [{"key_prefix": "k"}], [{"every_record": True}]))
    )
    amount = draw(st.sampled_from(("amount",) * 7 + ("a",)))
    return {"unsettled": unsettled, "amount": amount, "currency": "cur"}


def document_of(chain: Chain, at_first: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A stores.json that follows the chain: what is renamed or mapped there is so here."""
    stores, versions = at_first, [{"since": 0, "stores": at_first}]
    for version, steps in enumerate(chain, 1):
        for step in steps:
            if step.kind in ("rename_field", "map_value") and step.key is None:
                stores = dict(stores, **{step.store: _followed(stores[step.store], step)})
        versions.append({"since": version, "stores": stores})
    return {"format": 1, "app_reads": [0, len(chain)], "versions": versions}


def _followed(given: dict[str, Any], step: Step) -> dict[str, Any]:
    def path(text: str) -> str:
        parts = tuple(text.split("."))
        if step.kind == "rename_field" and parts[: len(step.path)] == step.path:
            return ".".join(step.target + parts[len(step.path) :])
        return text

    def rule(found: dict[str, Any]) -> dict[str, Any]:
        if "field" not in found:
            return found
        values = found["values"]
        if step.kind == "map_value" and tuple(found["field"].split(".")) == step.path:
            known = dict(step.mapping)
            values = [known.get(value, value) for value in values]
        return {"field": path(found["field"]), "values": values}

    return {
        "unsettled": [rule(found) for found in given["unsettled"]],
        "amount": path(given["amount"]),
        "currency": path(given["currency"]),
    }


def up_tips(record: Any, context: Any) -> Any:
    """Looks at the amount and leaves it alone."""
    if type(record.get("amount")) is not int:
        return KEEP
    return {**record, "tip": {"of": record["amount"], "at": context.now}}


@st.composite
def money_steps(draw: st.DrawFn, store: str) -> Step:
    """A step over what stores.json speaks of; the contract follows those that it can."""
    return draw(
        st.sampled_from(
            (
                rename_field(store, "amount", "total"),
                rename_field(store, "total", "money.total"),
                rename_field(store, "cur", "money.cur"),
                rename_field(store, "st", "state"),
                map_value(store, "st", {"p": "pending", "d": "done"}, other="keep"),
                map_value(store, "state", {"p": 1, "d": 0}, other="keep", on_new="remove"),
                set_field(store, "cur", "EUR", if_missing=True),
                set_field(store, "amount", 5, if_missing=True),
                set_field(store, "money", {"seen": NOW}, if_missing=True),
                each(store, up_tips, UNDO, fields=["tip"]),
                remove_field(store, "keep"),
            )
        )
    )


# Schema statements of a chain. One may come twice, or find its work done by the application.
STATEMENTS = (
    sql("CREATE INDEX ix_made ON s(value)", "DROP INDEX ix_made"),
    sql("CREATE INDEX ix_json ON s(json_extract(value, '$.a'), key)", "DROP INDEX ix_json"),
    sql("DROP INDEX ix_old", "CREATE INDEX ix_old  ON s(value) -- as it was"),
    sql('CREATE TABLE "ma""de" (k TEXT PRIMARY KEY, v) WITHOUT ROWID', 'DROP TABLE "ma""de"'),
    sql("CREATE TABLE made2(k TEXT UNIQUE)", "DROP TABLE made2", on_new="remove"),
    sql("CREATE VIEW made_view AS SELECT key FROM s", "DROP VIEW made_view"),
    sql("ALTER TABLE outbox ADD COLUMN more TEXT DEFAULT 'é'", KEEP),
)
MADE_TABLES = ('ma"de', "made2")


def _stamp(draw: st.DrawFn, chain: Chain) -> None:
    """Give most migrations a step that sets the same field anew, as a version or a time is."""
    store, path = draw(store_names), draw(few_paths)
    for steps in chain:
        if draw(st.sampled_from((True, True, False))):
            value = draw(weighed(st.just(TO_VERSION), st.just(NOW), few_values))
            steps.insert(draw(st.integers(0, len(steps))), set_field(store, path, value))


@st.composite
def whole_chains(draw: st.DrawFn, longest: int = 4, for_good: bool = False) -> Chain:
    """Migrations over both stores: fields, money, records that move, schema statements; with
    `for_good` sometimes a step that cannot be undone."""
    focus = st.sampled_from(draw(st.lists(few_paths, min_size=1, max_size=2)))
    ways = weighed(focus, focus, paths)
    stores = weighed(st.just(STORES[0]), store_names)
    plain = stores.flatmap(lambda store: reversible_steps(store, ways))
    step = weighed(plain, plain, plain, store_names.flatmap(money_steps), moves(STORES))
    some = weighed(st.lists(step, min_size=2, max_size=5), st.lists(step, max_size=2))
    chain = draw(st.lists(some, min_size=1, max_size=longest))
    if draw(st.booleans()):
        _stamp(draw, chain)
    for statement in draw(st.lists(st.sampled_from(STATEMENTS), max_size=3)):
        steps = chain[draw(st.integers(0, len(chain) - 1))]
        steps.insert(draw(st.integers(0, len(steps))), statement)
    if for_good and not draw(st.integers(0, 3)):
        chain[draw(st.integers(0, len(chain) - 1))].append(each("s", up_mixes, fields=NAMES))
    return chain


class Shape(NamedTuple):
    """How a file was made by its application."""

    page_bytes: int
    without_rowid: tuple[bool, ...]
    declared: tuple[str, ...]


TRIGGERS = (
    'CREATE TRIGGER after_new AFTER INSERT ON s BEGIN\n  INSERT INTO outbox(what)  VALUES ("new"\n'
    "  || new.key); -- é\nEND",
    "CREATE TRIGGER 'on \"change' BEFORE UPDATE OF value ON [s] WHEN new.value<>old.value\n"
    "BEGIN INSERT INTO outbox(what) VALUES (old.key); END",
    "CREATE TRIGGER gone AFTER DELETE ON s BEGIN /* tell */ DELETE FROM odd; END",
    'CREATE TRIGGER other AFTER UPDATE ON "the ""other"" é" BEGIN UPDATE s SET value = value; END',
    "CREATE TRIGGER into_view INSTEAD OF INSERT ON seen BEGIN DELETE FROM s; END",
)
DECLARED = (
    *TRIGGERS,
    "CREATE INDEX ix_made ON s(value)",
    "CREATE TABLE made2(k TEXT UNIQUE)",
    "CREATE INDEX by_value ON s(value DESC) WHERE key > 'k'",
    "CREATE INDEX by_json ON s(json_extract(value, '$.st'))",
    'CREATE INDEX "by key" ON "the ""other"" é"(key COLLATE NOCASE, value)',
    "CREATE TABLE gen(a INTEGER PRIMARY KEY AUTOINCREMENT, b AS (a + 1) STORED, c DEFAULT 'x')",
)
# What every file has besides its stores.
ALWAYS = (
    "CREATE TABLE outbox(n INTEGER PRIMARY KEY, what TEXT)",
    "CREATE TABLE odd(a, b, PRIMARY KEY(a, b)) WITHOUT ROWID",
    "CREATE VIEW seen AS SELECT key, value FROM s",
    "CREATE INDEX ix_old  ON s(value) -- as it was",
)
ODD_ROWS = ((1, 2.5), (1, "1"), ("1", b"\xff\x00"), (b"", "\0"), (2**62, "é"))


shapes = st.builds(
    Shape,
    st.sampled_from((512, 4096)),
    st.tuples(*[st.booleans() for _ in STORES]),
    st.lists(st.sampled_from(DECLARED), unique=True, max_size=4).map(tuple),
)


# --- what the new software does to a file between the way up and the way down ---------------------


class Edit(NamedTuple):
    """One thing that an application does: a "new" record, a field it "sets" or "drops", a record it
    "deletes", a row in a table of its own. `pick` chooses among what is there then."""

    kind: str
    store: str
    key: str
    pick: int
    field: str
    value: Any


edits = st.builds(
    Edit,
    st.sampled_from(("new", "new", "set", "set", "set", "drop", "delete", "row")),
    store_names,
    odd_keys,
    st.integers(0, 20),
    st.sampled_from(("a", "a", "a", "b", "b", "c", "own", "amount", "tip")),
    weighed(st.none(), values, sales()),
)
