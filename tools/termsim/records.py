"""What the records of a sample terminal look like, as the browser gateway wrote them.

The same recipe gives the same rows byte for byte: no clock, no hash order, and one seeded stream
of random bits per concern, so that layout, journal or page size never change a record. Texts are
built from templates, not by an encoder: a million of them must take seconds, and the literals that
matter here (10.50, 1e3, -0, integers past 64 bits) are ones an encoder would rewrite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tools.termsim.recipe import Recipe
from tools.termsim.shapes import (
    AMOUNTS,
    CURRENCIES,
    TRIPLE_MASK,
    TRIPLES,
    Row,
    Value,
    address,
    item_text,
    oddity,
    spoil,
    token,
)

END_MS = 1_735_689_600_000  # 2025-01-01: every record is older than any honest clock
SALE_EVERY_MS = 60_000  # the longest gap between two sales; half of it on average
CHUNK_ROWS = 5_000  # rows handed to SQLite at once
STAN_MAX = 999_999  # six digits on the wire of the card scheme; 1 follows
RECEIPT_FIRST = 1_001


class Money:
    """Count and sum per currency, in minor units."""

    __slots__ = ("of",)

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def add(self, currency: str, amount: int) -> None:
        """Count one sale or refund."""
        entry = self.of.setdefault(currency, [0, 0])
        entry[0] += 1
        entry[1] += amount

    def as_json(self) -> dict[str, dict[str, int]]:
        """Currencies in order of name, each {"count": n, "sum": n}."""
        return {name: {"count": n, "sum": total} for name, (n, total) in sorted(self.of.items())}


@dataclass
class Sale:
    """What other stores repeat of a sale."""

    key: str
    currency: str
    amount: int
    at_ms: int
    text: str


class Terminal:
    """The rows of one recipe. Read `transactions()` to its end first: the other stores repeat
    sales, and the truth (`total`, `unsettled`, `counters`) is complete only then."""

    def __init__(self, recipe: Recipe) -> None:
        recipe.check()
        self.recipe = recipe
        rng = Random(f"terminal/{recipe.seed}")
        self.start_ms = END_MS - recipe.records * SALE_EVERY_MS
        self.device_id = f"device_{self.start_ms - 86_400_000}_{token(rng)}"
        self.total = Money()
        self.unsettled = Money()
        self.pending: list[Sale] = []
        self.first: list[Sale] = []
        self.bad: dict[str, int] = {}
        self.not_utf8: list[str] = []
        self.now_ms = self.start_ms
        self.counters = {
            "stan": 0,
            "receipt": RECEIPT_FIRST - 1,
            "batch": 1 + recipe.records // 500,
        }
        chosen = rng.sample(range(recipe.records), recipe.unsettled + recipe.bad)
        self._pending_at = frozenset(chosen[: recipe.unsettled])
        self._bad_at = frozenset(chosen[recipe.unsettled :])
        self._items = [item_text(rng) for _ in range(512)]
        self._addresses = {name: [address(rng, name) for _ in range(64)] for name in AMOUNTS}

    def transactions(self) -> Iterator[list[Row]]:
        """The whole transactions store in insert order, at most CHUNK_ROWS + 5 rows at a time."""
        rows: list[Row] = []
        kinds = self.recipe.bad_kinds
        for index, sale in enumerate(self._sales()):
            value: Value = sale.text
            if index in self._bad_at:
                kind = kinds[sum(self.bad.values()) % len(kinds)]
                self.bad[kind] = self.bad.get(kind, 0) + 1
                value = spoil(kind, sale.text)
                if kind == "not_utf8":
                    self.not_utf8.append(sale.key)
            else:
                self.total.add(sale.currency, sale.amount)
                if len(self.first) < 4:
                    self.first.append(sale)
                if index in self._pending_at:
                    self.unsettled.add(sale.currency, sale.amount)
                    self.pending.append(sale)
            rows.append((sale.key, value))
            if len(rows) >= CHUNK_ROWS:
                yield rows
                rows = []
        rows.extend(self._queue_rows())
        yield rows

    def _sales(self) -> Iterator[Sale]:
        """One sale or refund after the other. Kept as one loop over local names: this is where a
        terminal of a million records spends its minute."""
        rng = Random(f"sales/{self.recipe.seed}")
        bits = rng.getrandbits
        by_time = self.recipe.keys == "time"
        span_ms = max(1, self.recipe.records * SALE_EVERY_MS)
        triples, mask, items = TRIPLES, TRIPLE_MASK, self._items
        device_id, pending_at = self.device_id, self._pending_at
        at_ms, receipt, earlier = self.start_ms, RECEIPT_FIRST - 1, ""
        for index in range(self.recipe.records):
            r = bits(128)
            at_ms += 1 + (r & 0xFFFF) % SALE_EVERY_MS
            key_ms = at_ms if by_time else self.start_ms + bits(48) % span_ms
            key = (
                f"tx_{key_ms}_{triples[(r >> 16) & mask]}{triples[(r >> 31) & mask]}"
                f"{triples[(r >> 46) & mask]}"
            )
            currency = CURRENCIES[(r >> 61) & 15]
            smallest, steps = AMOUNTS[currency]
            amount = smallest + ((r >> 65) & 0xFFFFFFF) * steps // 0x10000000
            kind, original = "sale", ""
            if earlier and (r >> 93) & 15 == 0:
                kind, original, amount = "refund", f',"originalId":"{earlier}"', -amount
            if index % 7 == 0:
                earlier = key
            invoice = basket = metadata = ""
            if (r >> 97) & 7 < 3:
                recipient = self._addresses[currency][(r >> 100) & 63]
                invoice = (
                    f',"invoice":{{"id_invoice":"{receipt + 5000}","amount":{amount},'
                    f'"currency":"{currency}","recipient":"{recipient}"}}'
                )
            few = (r >> 106) & 15
            if few < 3:
                basket = f',"items":[{items[(r >> 110) & 511]}]'
            elif few == 3:
                basket = f',"items":[{items[(r >> 110) & 511]},{items[r & 511]}]'
            if index in pending_at:
                status = "processing" if r & 3 == 0 else "pending"
                tries = (r >> 2) & 3
                fate = f'"retries":{tries},"nextRetry":{at_ms + 30_000},"error":null,"hash":null'
            elif (r >> 119) & 31 == 0:
                status, fate = "failed", '"retries":3,"nextRetry":null,"error":"network timeout"'
            elif (r >> 119) & 15 == 1:
                status, fate = "completed", f'"retries":0,"hash":"{bits(256):064x}"'
            else:
                status, fate = "completed", '"retries":0'
            if index % 10 != 9:
                online = "offline" if r & 64 else "online"
                metadata = (
                    f',"metadata":{{"storedAt":{at_ms + 12},"deviceId":"{device_id}",'
                    f'"version":"1.4.2","networkStatus":"{online}"}}'
                )
            receipt += 1
            yield Sale(
                key,
                currency,
                amount,
                at_ms,
                f'{{"id":"{key}","type":"{kind}"{original},"currency":"{currency}",'
                f'"amount":{amount}{invoice}{basket},"timestamp":{at_ms},"status":"{status}",{fate},'
                f'"stan":{index % STAN_MAX + 1},"receipt":{receipt}'
                f"{oddity(index, currency, amount)}{metadata}}}",
            )
        self.now_ms = at_ms
        self.counters["stan"] = min(self.recipe.records, STAN_MAX)
        self.counters["receipt"] = receipt

    def _queue_rows(self) -> Iterator[Row]:
        """The queue (one record that is a LIST of sales), and the failed_ and retry_ entries."""
        rng = Random(f"queue/{self.recipe.seed}")
        queued = []
        for n, currency in enumerate(("NIM", "EUR", "BTC")):
            amount = AMOUNTS[currency][0] + rng.getrandbits(12)
            self._count(currency, amount)
            queued.append(
                f'{{"id":"tx_{self.now_ms + n}_{token(rng)}","type":"sale","currency":"{currency}",'
                f'"amount":{amount},"timestamp":{self.now_ms + n},"status":"pending","tip":0.10}}'
            )
        yield "transaction-queue", f"[{','.join(queued)}]"
        while len(self.first) < 4:
            key = f"tx_{self.now_ms}_{token(rng)}"
            self.first.append(Sale(key, "EUR", 1_050 + len(self.first), self.now_ms, ""))
        for n, sale in enumerate(self.first):
            prefix = "failed_" if n < 2 else "retry_"
            more = '"error":"Gateway said \\"no\\""' if n < 2 else f'"attempts":{n},"backoff":1.50'
            self._count(sale.currency, sale.amount)
            yield (
                prefix + sale.key,
                f'{{"id":"{sale.key}","currency":"{sale.currency}","amount":{sale.amount},'
                f'"timestamp":{sale.at_ms + 500},"status":"failed",{more}}}',
            )

    def _count(self, currency: str, amount: int) -> None:
        self.total.add(currency, amount)
        self.unsettled.add(currency, amount)

    def balances(self) -> list[Row]:
        """A handful of cached balances, more on a bigger terminal."""
        rng = Random(f"balances/{self.recipe.seed}")
        rows: list[Row] = []
        for n in range(min(1_000, 8 + self.recipe.records // 1_000)):
            currency = ("NIM", "USDC", "BTC", "EUR")[n % 4]
            at_ms = self.now_ms - rng.getrandbits(24)
            balance = "123456789012345678901" if n == 5 else str(rng.getrandbits(36))
            confidence = ("0.95", "1", "0.90", "1.0")[rng.getrandbits(2)]
            stale = "true" if rng.getrandbits(1) else "false"
            owner = address(rng, currency) if currency != "EUR" else f"till-{n}"
            rows.append(
                (
                    f"{currency}_{owner}",
                    f'{{"balance":{balance},"timestamp":{at_ms},"metadata":{{"source":"network",'
                    f'"confidence":{confidence},"validUntil":{at_ms + 300_000},'
                    f'"isStale":{stale}}}}}',
                )
            )
        return rows

    def metadata(self) -> list[Row]:
        """The device's name as a bare string, its counters, preferences, states and conflicts."""
        now = self.now_ms
        counters = ",".join(f'"{name}":{value}' for name, value in self.counters.items())
        rows: list[Row] = [
            ("device_id", f'"{self.device_id}"'),
            ("counters", f"{{{counters}}}"),
            ("offline_state", f'{{"isOffline":false,"lastOnline":{now},"queued":3}}'),
        ]
        if self.recipe.preferences:
            rows.append(
                (
                    "nimipay_preferences",
                    '{"language":"de","currency":"EUR","theme":"dark","footer":"Danke ☕ \\u2764",'
                    '"tipPresets":[5,7.50,10.0],"printer":{"width":42,"cut":true,"logo":null}}',
                )
            )
        for n, sale in enumerate(self.first[:3]):
            rows.append(
                (
                    f"conflict_{sale.key}",
                    f'{{"key":"{sale.key}","local":{{"amount":{sale.amount},"rate":10.50}},'
                    f'"remote":{{"amount":{sale.amount}}},"resolved":{"true" if n else "false"}}}',
                )
            )
        return rows

    def sync(self) -> list[Row]:
        """Two of three unsettled sales wait to be sent, each with the whole transaction."""
        return [
            (
                f"tx_{sale.key}",
                f'{{"type":"transaction","action":"{"create" if n % 2 else "update"}",'
                f'"data":{sale.text},"timestamp":{sale.at_ms + 40}}}',
            )
            for n, sale in enumerate(self.pending)
            if n % 3 != 2
        ]
