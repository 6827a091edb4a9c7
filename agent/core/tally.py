"""What a walk over the stores adds up, and where two such sums differ.

Sums are of integers, so they are equal or they are not. Which records count as money is said by
the contract (core/stores); nothing here judges one.
"""

from __future__ import annotations

from agent.ground.codec import encode
from agent.ground.digest import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from agent.core.stores import Store

    Totals = dict[str, list[int]]

# Totals by currency go into a backup's header, which has a bound, and into reports. What is longer
# than a code, and what is beyond the first names in order of the alphabet, is summed as "other".
CURRENCY_CHARS_MAX = 8
CURRENCIES_MAX = 32
OTHER = "other"
# An integer beyond this is no amount of money; it is counted as odd.
AMOUNT_MAX = 10**30
WORDS = ("records", "unsettled_records", "sales", "unsettled_sales", "odd", "odd_digest")


class Tally:
    """What a walk over the stores adds up, in integers, to be equal before and after a run.

    Per store the number of records; per store and currency the number of sales and the sum of
    their amounts, of all and of the unsettled ones. An amount that is no integer, or none that
    money has, is counted as `odd`; it cannot be summed, but `odd_digest` changes with it, and with
    the name of a currency that is too long to have a sum of its own. At most CURRENCIES_MAX
    currencies have one: which does not depend on the order or the stores the records lie in.
    """

    __slots__ = (
        "_currencies",
        "odd",
        "odd_digest",
        "records",
        "sales",
        "unsettled_records",
        "unsettled_sales",
    )

    def __init__(self) -> None:
        self._currencies: set[str] = set()
        self.records: dict[str, int] = {}
        self.unsettled_records: dict[str, int] = {}
        self.sales: dict[str, Totals] = {}
        self.unsettled_sales: dict[str, Totals] = {}
        self.odd: dict[str, int] = {}
        self.odd_digest: dict[str, int] = {}

    def start(self, store: str) -> None:
        """Begin a store, so that an empty one is counted as 0 and not as absent."""
        self.records.setdefault(store, 0)
        self.unsettled_records.setdefault(store, 0)
        self.odd.setdefault(store, 0)
        self.odd_digest.setdefault(store, 0)
        self.sales.setdefault(store, {})
        self.unsettled_sales.setdefault(store, {})

    def add(self, store: Store, key: str, record: Any) -> bool:
        """Count one record; whether it is unsettled."""
        name = store.name
        self.records[name] += 1
        rule = store.unsettled_rule(key, record) if store.rules else None
        if rule is not None:
            self.unsettled_records[name] += 1
        for currency, amount in store.sales(record, rule):
            if type(amount) is not int or not -AMOUNT_MAX < amount < AMOUNT_MAX:
                self.odd[name] += 1
                self.odd_digest[name] += _digest_of(currency, amount)
                continue
            if len(currency) > CURRENCY_CHARS_MAX:
                self.odd_digest[name] += _digest_of(currency, amount)
            if currency not in self._currencies:
                currency = self._admitted(currency)
            _count(self.sales[name], currency, amount)
            if rule is not None:
                _count(self.unsettled_sales[name], currency, amount)
        return rule is not None

    def take(self, store: str, counted: dict[str, Any]) -> None:
        """Take a store's figures over from another count of the very same rows."""
        for word, figures in self.as_json().items():
            figures[store] = counted[word][store]
        for currency in counted["sales"][store]:
            self._admitted(currency)

    def _admitted(self, currency: str) -> str:
        """The name under which a currency is summed. Of too many, those first in the alphabet keep
        their own: whichever comes first, the end is the same."""
        if len(currency) > CURRENCY_CHARS_MAX or currency == OTHER:
            return OTHER
        self._currencies.add(currency)
        if len(self._currencies) <= CURRENCIES_MAX:
            return currency
        last = max(self._currencies)
        self._currencies.remove(last)
        for by_store in (self.sales, self.unsettled_sales):
            for totals in by_store.values():
                count, amount = totals.pop(last, (0, 0))
                if count:
                    entry = totals.setdefault(OTHER, [0, 0])
                    totals[OTHER] = [entry[0] + count, entry[1] + amount]
        return OTHER if last == currency else currency

    def add_unreadable(self, store: Store) -> None:
        """Count a record that nobody can read; where records may be unsettled, it may be one."""
        self.records[store.name] += 1
        if store.rules:
            self.unsettled_records[store.name] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values for the run row, the backup's header and reports; sums as integers."""
        return {
            "records": self.records,
            "unsettled_records": self.unsettled_records,
            "sales": self.sales,
            "unsettled_sales": self.unsettled_sales,
            "odd": self.odd,
            "odd_digest": self.odd_digest,
        }

    def unsettled_summary(self) -> dict[str, Any]:
        """How many unsettled records there are, and count and sum of their sales by currency."""
        money: Totals = {}
        for totals in self.unsettled_sales.values():
            for currency, (count, amount) in totals.items():
                entry = money.setdefault(currency, [0, 0])
                entry[0] += count
                entry[1] += amount
        return {
            "records": sum(self.unsettled_records.values()),
            "money": {c: {"count": n, "sum": s} for c, (n, s) in sorted(money.items())},
        }


def _count(totals: Totals, currency: str, amount: int) -> None:
    entry = totals.get(currency)
    if entry is None:
        totals[currency] = [1, amount]
    else:
        entry[0] += 1
        entry[1] += amount


def is_tally(given: Any, stores: Iterable[str]) -> bool:
    """Whether plain values from a file are a tally of these stores."""
    if type(given) is not dict:
        return False
    names = set(stores)
    for word in WORDS[:-1]:  # the last one is younger than the format
        figures = given.get(word)
        if type(figures) is not dict or figures.keys() != names:
            return False
        by_currency = word.endswith("sales")
        if not all(_is_figure(figure, by_currency) for figure in figures.values()):
            return False
    return True


def _is_figure(figure: Any, by_currency: bool) -> bool:
    if not by_currency:
        return type(figure) is int and figure >= 0
    return type(figure) is dict and all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is int and type(pair[1]) is int
        for pair in figure.values()
    )


def _digest_of(currency: str, amount: Any) -> int:
    """64 bits of what cannot be summed, so that it cannot change unseen; sums of them do not depend
    on the order of the records."""
    text = f"{currency}\0{encode(amount)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(sha256(text).digest()[:8], "big")


def difference(
    before: dict[str, Any], after: dict[str, Any], groups: dict[str, str] | None = None
) -> str:
    """One sentence on where two tallies (as plain values) differ, or "" when they are equal.

    Stores that a plan moves records between are named in `groups` and judged by their common
    total: a sale may change its store, never its existence or its amount.
    """
    for word in WORDS:
        if word not in before or word not in after:
            continue  # counted by an agent that did not know it
        old, new = _grouped(before[word], groups or {}), _grouped(after[word], groups or {})
        for store in sorted(old.keys() | new.keys()):
            # A store that is not there yet, or no more, holds what an empty one holds.
            if (old.get(store) or None) != (new.get(store) or None):
                label = word.replace("_", " ")
                return f"{label} of {store} were {old.get(store)} and would be {new.get(store)}"
    return ""


def _grouped(counts: dict[str, Any], groups: dict[str, str]) -> dict[str, Any]:
    if not groups:
        return counts
    joined: dict[str, Any] = {}
    for store, count in counts.items():
        name = groups.get(store, store)
        if type(count) is int:
            joined[name] = joined.get(name, 0) + count
            continue
        into = joined.setdefault(name, {})
        for currency, (number, amount) in count.items():
            entry = into.setdefault(currency, [0, 0])
            into[currency] = [entry[0] + number, entry[1] + amount]
    return joined
