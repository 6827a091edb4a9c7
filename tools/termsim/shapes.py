"""The pieces that records are made of: names, addresses, odd literals, and defects on request.

Everything here is JSON text already. Some names are raw and some are escaped, because a reader of
records meets both; nothing passes through an encoder that would make them alike.
"""

from __future__ import annotations

import string
from random import Random
from typing import Union

# What SQLite is given for a value; bytes become a BLOB and None becomes NULL.
Value = Union[str, bytes, None]
Row = tuple[str, Value]


NEST_DEPTH = 1_000  # deeper than any reader of records should follow
LARGE_BYTES = 1 << 20  # larger than any profile accepts for one record

# Sixteen entries, so that four random bits pick one: the weights of a small shop.
CURRENCIES = ("NIM",) * 6 + ("EUR",) * 6 + ("USDC",) * 2 + ("BTC",) * 2
# Minor units of one currency span these many steps above its smallest sale.
AMOUNTS = {
    "NIM": (50_000, 90_000_000),
    "EUR": (50, 20_000),
    "USDC": (500_000, 90_000_000),
    "BTC": (900, 400_000),
}

# Names as JSON text: some raw, some escaped in each way that JSON allows.
NAMES = (
    "Espresso",
    "Flat White",
    "Café au lait",
    "Brötchen",
    "Köttbullar",
    "抹茶ラテ",
    "Ψωμί 1½",
    "Iced tea 🧊",
    "Pizza 🍕",
    r"Caf\u00e9 cr\u00e8me",
    r"Toast \"Hawaii\"",
    r"Set 1\/2",
    r"Back\\slash",
    r"Smile \ud83d\ude00",
    r"Two\nlines\tand tab",
    "Water",
)
TAX_RATES = ("10.50", "19.00", "7", "7.0", "0.10", "5.5", "0", "20")

# Endings that only a few sales carry. They stand at fixed places in the order of sales, so that
# even a terminal of a hundred records has each of them.
LITERALS = (
    ',"rate":1e3,"tip":-0,"discount":0.10',
    ',"rate":1.0E+2,"tip":0.0,"discount":10.50',
    ',"rate":-0.0,"tip":1e-7,"discount":100.00',
)
NOTES = (
    r',"note":"\u00e9\u4e2d\ud83c\udf55 \"ok\" \\ \/ \b\f\n\r\t \u2028"',
    ',"note":"日本語 ☕ naïve \U0001f469\u200d\U0001f373"',
    r',"note":"C:\\till\\3","n\u0061me\/key":"escaped key"',
)
BASE_UNITS = (
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64 - 1,
    2**64,
    123_456_789_012_345_678_901_234_567_890,
)

ALPHABET = string.digits + string.ascii_lowercase
# Three base-36 characters at a time: a table look-up instead of nine divisions per key.
TRIPLES = tuple(a + b + c for a in ALPHABET for b in ALPHABET for c in ALPHABET)
TRIPLE_MASK = (1 << 15) - 1  # 32768 of the 46656 triples, so that plain bits pick one


def oddity(index: int, currency: str, amount: int) -> str:
    """The uncommon fields of the sale at this place: number literals, escapes, huge integers."""
    text = ""
    if index % 29 == 3:
        text += LITERALS[index // 29 % len(LITERALS)]
    if index % 31 == 5:
        text += NOTES[index // 31 % len(NOTES)]
    if index % 37 == 7:
        text += f',"baseUnits":{BASE_UNITS[index // 37 % len(BASE_UNITS)]}'
    elif currency == "BTC" and index % 3 == 0:
        text += f',"baseUnits":{amount * 10**10}'
    return text


def spoil(kind: str, text: str) -> Value:
    """The same record with one defect."""
    if kind == "truncated":
        return text[:-7]
    if kind == "duplicate_key":
        return text[:-1] + ',"amount":1}'
    if kind == "nan":
        return text[:-1] + ',"rate":NaN}'
    if kind == "blob":
        return text.encode()
    if kind == "deep":
        return text[:-1] + ',"nest":' + "[" * NEST_DEPTH + "]" * NEST_DEPTH + "}"
    if kind == "lone_surrogate":
        return text[:-1] + r',"note":"half \ud83d"}'
    if kind == "nul":
        return text + "\0tail"
    if kind == "not_utf8":
        return text[:-1].encode() + b',"note":"\xff\xfe"}'
    if kind == "null":
        return None
    if kind == "empty":
        return ""
    return text[:-1] + ',"log":"' + "x" * LARGE_BYTES + '"}'


def token(rng: Random) -> str:
    """Nine base-36 characters."""
    return "".join(TRIPLES[rng.getrandbits(15)] for _ in range(3))


def address(rng: Random, currency: str) -> str:
    """An address in the shape of its currency."""
    if currency == "NIM":
        return f"NQ{rng.getrandbits(6):02d}" + (token(rng) * 4)[:32].upper()
    if currency == "USDC":
        return f"0x{rng.getrandbits(160):040x}"
    if currency == "BTC":
        return "bc1q" + (token(rng) + token(rng) + token(rng))
    return f"till-{rng.getrandbits(5)}"


def item_text(rng: Random) -> str:
    """One line of a basket."""
    name = NAMES[rng.getrandbits(4)]
    return (
        f'{{"sku":"{TRIPLES[rng.getrandbits(15)].upper()}","name":"{name}",'
        f'"qty":{1 + rng.getrandbits(2)},"price":{50 + rng.getrandbits(12)},'
        f'"taxRate":{TAX_RATES[rng.getrandbits(3)]}}}'
    )
