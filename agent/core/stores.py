"""The application's contract, read from migrations/stores.json: what is money and what must hold.

It says which tables are stores, which records are unsettled, where amount and currency stand, which
counters never go down and which schema versions the installed application reads. Code asks here
and never guesses. Nothing here opens a file.
"""

from __future__ import annotations

from agent.core.steps import field, field_reader
from agent.ground.codec import encode
from agent.ground.errors import MigrationsRejected
from agent.ground.words import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.left_behind import LeftBehind

_STORE_KEYS = ("unsettled", "amount", "currency", "timestamps", "prune", "bytes_exact")
_RULE_KEYS = ("field", "values", "key", "key_prefix", "each_item", "every_record")
_PRUNE_KEYS = ("field", "values", "keep_newest")
_COUNTER_KEYS = ("name", "store", "key", "field", "used_in", "wraps_after")


def _only(given: Any, known: tuple[str, ...], where: str) -> dict[str, Any]:
    if type(given) is not dict:
        raise MigrationsRejected(f"stores.json: {where} must be an object")
    for word in given:
        if word not in known:
            raise MigrationsRejected(
                f'stores.json: {where} holds "{word}"; did you mean "{nearest(word, known)}"?'
            )
    return given


# What a field may hold to decide whether a record is unsettled; 1.0 and 10.50 decide nothing.
_PLAIN = (str, int, bool, type(None))


def _among(values: tuple[Any, ...], value: Any) -> bool:
    """Whether a value is one of those, true being no 1."""
    if type(value) is str:
        return value in values
    return any(type(v) is type(value) and v == value for v in values)


def _refuse(where: str, fault: str) -> MigrationsRejected:
    return MigrationsRejected(f"stores.json: {where} {fault}")


def _text(given: Any, where: str) -> str:
    if type(given) is not str or not given:
        raise _refuse(where, "must be a text")
    return str(given)


def _path(given: Any, where: str) -> tuple[str, ...]:
    parts = tuple(_text(given, where).split("."))
    if not all(parts):
        raise _refuse(where, "is no path to a field")
    return parts


def _listed(given: dict[str, Any], key: str, where: str) -> list[Any]:
    values = given.get(key, [])
    if type(values) is not list:
        raise _refuse(f"{key} of {where}", "must be a list")
    return values


def _flag(given: dict[str, Any], key: str, where: str) -> bool:
    value = given.get(key, False)
    if type(value) is not bool:
        raise _refuse(f"{key} of {where}", "must be true or false")
    return value


def _number(given: Any, where: str) -> int:
    if type(given) is not int:
        raise _refuse(where, "must be a whole number")
    return given


def _rule(given: Any, store: str) -> tuple[str, Any, Any, bool]:
    where = f"a rule of {store}"
    _only(given, _RULE_KEYS, where)
    several = _flag(given, "each_item", where)
    named = [word for word in ("field", "key", "key_prefix", "every_record") if word in given]
    if len(named) != 1:
        raise _refuse(where, "must say one of field, key, key_prefix and every_record")
    kind = named[0]
    if (kind == "field") != ("values" in given):
        raise _refuse(where, "must say field and values together")
    if kind == "every_record":
        if not _flag(given, kind, where):
            raise _refuse(where, "says every_record: false, which no record fits")
        return kind, None, (), several
    if kind != "field":
        return kind, _text(given[kind], where), (), several
    values = _listed(given, "values", where)
    if not values or any(type(value) not in _PLAIN for value in values):
        raise _refuse(f"values of {where}", "must be texts, whole numbers, true, false or null")
    return kind, _path(given["field"], where), tuple(values), several


def _words_of(values: list[Any]) -> tuple[str, ...] | None:
    """Texts as they stand in JSON that escapes nothing; None where a value is no such text."""
    if all(type(value) is str and encode(value) == f'"{value}"' for value in values):
        return tuple(f'"{value}"' for value in values)
    return None


class Prune:
    """Which settled records of a store may be deleted once enough newer ones that fit are there.

    Newer is what was inserted later: by rowid where the table has one, else by primary key. A clock
    or a time in a record has no say.
    """

    __slots__ = ("_read", "field", "keep_newest", "values")

    def __init__(self, given: Any, store: str, rules: list[tuple[str, Any, Any, bool]]) -> None:
        where = f"prune of {store}"
        _only(given, _PRUNE_KEYS, where)
        self.field = _path(given.get("field"), f"field of {where}")
        self.values = tuple(_listed(given, "values", where))
        # A record without the field reads as null; what says nothing of itself is never given up.
        if not self.values or any(type(v) not in _PLAIN or v is None for v in self.values):
            raise _refuse(f"values of {where}", "must be texts, whole numbers, true or false")
        self.keep_newest = _number(given.get("keep_newest"), f"keep_newest of {where}")
        if self.keep_newest < 0:
            raise _refuse(f"keep_newest of {where}", "must be 0 or more")
        for kind, path, unsettled, _ in rules:
            for value in self.values if kind == "field" and path == self.field else ():
                if _among(unsettled, value):
                    raise _refuse(where, f"gives up {encode(value)}, which is unsettled")
        self._read = field_reader(self.field)

    def fits(self, record: Any) -> bool:
        """Whether a record fits the rule by what stands in it; whether it is settled is not asked
        here."""
        return type(record) is dict and _among(self.values, self._read(record))


class Store:
    """The rules of one store at one schema version."""

    __slots__ = (
        "_amount",
        "_by_field",
        "_currency",
        "_every",
        "_keys",
        "_prefixes",
        "_words",
        "amount",
        "bytes_exact",
        "currency",
        "name",
        "prune",
        "rules",
        "timestamps",
    )

    # Each rule as (what decides, its argument, the values that count, whether items are sales).
    rules: list[tuple[str, Any, Any, bool]]

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        _only(given, _STORE_KEYS, f"store {name}")
        self.name = name
        self.rules = [_rule(rule, name) for rule in _listed(given, "unsettled", name)]
        self.amount = _path(given["amount"], f"amount of {name}") if "amount" in given else ()
        self.currency = (
            _path(given["currency"], f"currency of {name}") if "currency" in given else ()
        )
        self._amount, self._currency = field_reader(self.amount), field_reader(self.currency)
        times = _listed(given, "timestamps", name)
        self.timestamps = [_path(path, f"a timestamp of {name}") for path in times]
        self.prune = Prune(given["prune"], name, self.rules) if "prune" in given else None
        self.bytes_exact = _flag(given, "bytes_exact", name)
        self._every = any(rule[0] == "every_record" for rule in self.rules)
        self._keys = {rule[1] for rule in self.rules if rule[0] == "key"}
        self._prefixes = tuple(rule[1] for rule in self.rules if rule[0] == "key_prefix")
        self._by_field = [(field_reader(r[1]), r[2], r) for r in self.rules if r[0] == "field"]
        self._words = _words_of([value for _, values, _ in self._by_field for value in values])

    def _by_key(self, key: str) -> bool:
        return self._every or key in self._keys or key.startswith(self._prefixes)

    def may_be_unsettled(self, key: str, text: str) -> bool:
        """False only for a record that surely is settled, told without reading its JSON.

        A rule on a field asks for one of a few words. A text in which none of them stands, and no
        backslash that could spell one in another way, holds none of them as a value.
        """
        if self._words is None or self._by_key(key):
            return True
        for word in self._words:
            if word in text:
                return True
        return bool(self._words) and "\\" in text

    def unsettled_rule(self, key: str, record: Any) -> tuple[str, Any, Any, bool] | None:
        """The first rule by which the record is unsettled, or None when it is settled."""
        if not self._by_key(key):
            for read, values, rule in self._by_field:
                if _among(values, read(record)):
                    return rule
            return None
        for rule in self.rules:
            kind, argument, values, _ = rule
            if kind == "field":
                if _among(values, field(record, argument)):
                    return rule
            elif kind == "key_prefix":
                if key.startswith(argument):
                    return rule
            elif kind == "every_record" or key == argument:
                return rule
        return None

    def sales(self, record: Any, rule: tuple[str, Any, Any, bool] | None) -> list[tuple[str, Any]]:
        """(currency, amount) of each sale in a record; a queue record holds several.

        The amount is whatever stands there; only an int is added up.
        """
        found: list[tuple[str, Any]] = []
        if not self.amount:
            return found
        several = rule is not None and rule[3] and type(record) is list
        for item in record if several else (record,):
            amount = self._amount(item)
            if amount is not None:
                currency = self._currency(item)
                found.append((currency if type(currency) is str else "?", amount))
        return found


class Counter:
    """A number that the application hands out and that never goes down, also by a restore."""

    __slots__ = ("field", "key", "name", "store", "used_field", "used_store", "wraps_after")

    def __init__(self, given: dict[str, Any]) -> None:
        _only(given, _COUNTER_KEYS, "a counter")
        self.name = _text(given["name"], "name of a counter")
        self.store = _text(given["store"], f"store of counter {self.name}")
        self.key = _text(given["key"], f"key of counter {self.name}")
        self.field = _path(given["field"], f"field of counter {self.name}")
        self.used_store: str | None = None
        self.used_field: tuple[str, ...] = ()
        used = given.get("used_in")
        if used is not None:
            _only(used, ("store", "field"), f"used_in of counter {self.name}")
            self.used_store = _text(used["store"], f"used_in of counter {self.name}")
            self.used_field = _path(used["field"], f"used_in of counter {self.name}")
        wraps = given.get("wraps_after")
        self.wraps_after = None if wraps is None else _number(wraps, f"wraps_after of {self.name}")

    def ahead(self, start: int, value: int) -> int:
        """How far `value` lies ahead of `start`; 0 where it lies behind, or so far ahead that it
        must be from before the last wrap."""
        if self.wraps_after is None:
            return max(value - start, 0)
        distance = (value - start) % self.wraps_after
        return distance if distance <= self.wraps_after // 2 else 0

    def higher(self, a: int, b: int) -> int:
        """The later of two readings. After a wrap the small number is the later one: a reading
        more than half the range behind is taken as one turn ahead."""
        if self.wraps_after is not None and abs(a - b) > self.wraps_after // 2:
            return min(a, b)
        return max(a, b)


class Contract:
    """The rules in force at one schema version.

    A record that was left behind at an earlier version is judged by the rules of that version, once
    the contract knows of it (`with_left`).
    """

    __slots__ = ("_earlier", "_left", "counters", "device_id_at", "since", "stores")

    def __init__(self, given: dict[str, Any]) -> None:
        _only(given, ("since", "device_id", "stores", "counters"), "a version")
        self.since = _number(given["since"], "since")
        place = given.get("device_id")
        self.device_id_at: tuple[str, str] | None = None
        if place is not None:
            _only(place, ("store", "key"), "device_id")
            self.device_id_at = (
                _text(place["store"], "store of device_id"),
                _text(place["key"], "key of device_id"),
            )
        self.stores = {name: Store(name, rules) for name, rules in given["stores"].items()}
        self.counters = [Counter(c) for c in _listed(given, "counters", "a version")]
        self._left: LeftBehind | None = None
        self._earlier: Contracts | None = None
        self._check_names()

    def with_left(self, left: LeftBehind, earlier: Contracts) -> Contract:
        """The same rules for a file that holds records left behind."""
        made: Contract = object.__new__(Contract)
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        made._left, made._earlier = left, earlier
        return made

    def has_left(self, store: str) -> bool:
        """Whether any record of the store was left behind; most often none was."""
        return self._left is not None and self._left.in_store(store)

    def is_left(self, store: str, key: Any, value: Any) -> bool:
        """Whether this very record was left behind and is unchanged since."""
        return self._left is not None and self._left.of(store, key, value) is not None

    def rules_of(self, store: Store, key: Any, value: Any) -> Store:
        """The rules by which one record of a store is judged."""
        row = self._left.of(store.name, key, value) if self._left is not None else None
        if row is None:
            return store
        assert self._earlier is not None
        return self._earlier.at(row.version).stores.get(store.name, store)

    def _check_names(self) -> None:
        """What is looked for in a table that is no store would never be found."""
        if not self.stores:
            raise _refuse(f"the version since {self.since}", "names no store")
        named = [name for c in self.counters for name in (c.store, c.used_store) if name]
        named += [self.device_id_at[0]] if self.device_id_at else []
        for name in named:
            if name not in self.stores:
                near = nearest(name, self.stores)
                raise _refuse(f'"{name}"', f'is no store of its version; did you mean "{near}"?')


class Contracts:
    """All of stores.json. `app_reads` is the inclusive range of versions the application reads."""

    __slots__ = ("app_reads", "checksum", "versions")

    def __init__(self, document: Any, checksum: str) -> None:
        _only(document, ("format", "app_reads", "versions"), "the file")
        if document.get("format") != 1:
            raise MigrationsRejected(
                f"stores.json has format {document.get('format')!r}; this agent reads format 1"
            )
        try:
            low, high = document["app_reads"]
            self.app_reads = (_number(low, "app_reads"), _number(high, "app_reads"))
            if low > high:
                raise _refuse("app_reads", "must be [lowest, highest]")
            self.versions = [Contract(given) for given in document["versions"]]
            since = [contract.since for contract in self.versions]
            rising = bool(since) and since[0] == 0 and since == sorted(set(since))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MigrationsRejected(
                f"stores.json is not complete: {type(error).__name__} at {error}"
            ) from error
        if not rising:
            raise MigrationsRejected("stores.json: versions must begin with 0 and rise by `since`")
        self.checksum = checksum

    def at(self, version: int) -> Contract:
        """The rules for data at `version`: the entry with the highest `since` not above it."""
        return [c for c in self.versions if c.since <= version][-1]

    def application_reads(self, version: int, min_reader: int | None = None) -> bool:
        """Whether the installed application may be started on data at `version`.

        Newer data says itself, by `min_reader`, from which version on an application reads it.
        """
        low, high = self.app_reads
        if version > high:
            return min_reader is not None and min_reader <= high
        return low <= version
