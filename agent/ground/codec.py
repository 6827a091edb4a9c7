"""JSON text to values and back; the only module that knows which JSON code runs underneath.

Two readers with one strictness: duplicate keys, NaN, Infinity and nesting beyond a bound are
errors, never guesses. Records keep each number's literal: what a step does not touch is written
back digit for digit (10.50 stays 10.50, -0 stays -0, integers of any size stay whole).

CPython's C scanner is used directly, since the package `json` brings `re` and `enum` (1 MB)
with it; where that private module is missing or differs, the package does the same work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# The default nesting bound: above what any profile allows for records (256), since what was judged
# must be readable again after a step nested it deeper; the C scanner ends near 1000.
DEPTH_MAX = 400

# Stands in the encoder's output where a Number's literal goes. Noncharacters never occur in text
# meant for interchange (Unicode 23.7); should one occur all the same, the next is tried.
_MARKS = tuple(chr(0xFDD0 + i) for i in range(32))


class Number:
    """A number literal that Python's own types would write differently (10.50, 1e3, -0).

    It computes and compares like a float; `text` is the literal. Written back untouched it gives
    `text`; the result of arithmetic on it is an ordinary float.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __float__(self) -> float:
        return float(self.text)

    def __int__(self) -> int:
        return int(float(self.text))

    def __bool__(self) -> bool:
        return float(self.text) != 0

    def __repr__(self) -> str:
        return f"Number({self.text!r})"

    def __hash__(self) -> int:
        return hash(float(self.text))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Number):
            return self.text == other.text or float(self) == float(other)
        return float(self) == other

    def __lt__(self, other: Any) -> bool:
        return float(self) < float(other)

    def __le__(self, other: Any) -> bool:
        return float(self) <= float(other)

    def __gt__(self, other: Any) -> bool:
        return float(self) > float(other)

    def __ge__(self, other: Any) -> bool:
        return float(self) >= float(other)

    def __add__(self, other: Any) -> float:
        return float(self) + float(other)

    def __sub__(self, other: Any) -> float:
        return float(self) - float(other)

    def __rsub__(self, other: Any) -> float:
        return float(other) - float(self)

    def __mul__(self, other: Any) -> float:
        return float(self) * float(other)

    def __truediv__(self, other: Any) -> float:
        return float(self) / float(other)

    def __rtruediv__(self, other: Any) -> float:
        return float(other) / float(self)

    def __neg__(self) -> float:
        return -float(self)

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)

    __radd__ = __add__
    __rmul__ = __mul__


def _float_literal(text: str) -> float | Number:
    value = float(text)
    return value if repr(value) == text else Number(text)


def _int_literal(text: str) -> int | Number:
    return Number(text) if text == "-0" else int(text)


# Keys of all objects that one `decode` has made; the agent has one thread.
_keys_made = 0


def _counted(made: dict[str, Any]) -> dict[str, Any]:
    global _keys_made
    _keys_made += len(made)
    return made


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


class _Context:
    """What the C scanner reads its settings from. This one only counts keys."""

    strict = True
    object_hook: Any = staticmethod(_counted)
    object_pairs_hook: Any = None
    parse_float = staticmethod(_float_literal)
    parse_int: Any = staticmethod(_int_literal)
    parse_constant = staticmethod(_no_constant)
    memo: Any = None


class _ContextWithoutMinusZero(_Context):
    parse_int = int


class _StrictContext(_Context):
    """Looks at every object's keys, which takes half as long again."""

    object_hook = None
    object_pairs_hook = staticmethod(_object)


def _c_readers() -> tuple[Any, Any]:
    from _json import encode_basestring, make_encoder, make_scanner

    def writer(default: Callable[[Any], Any]) -> Callable[[Any], str]:
        write = make_encoder(None, default, encode_basestring, None, ":", ",", False, False, False)
        return lambda value: "".join(write(value, 0))

    writer(str)([1, {"a": "é"}])  # a C encoder of another shape fails here, not on a record
    return make_scanner, writer


def _package_readers() -> tuple[Any, Any]:
    import json

    def scanner(context: type[_Context]) -> Any:
        decoder: Any = json.JSONDecoder(
            object_hook=context.object_hook,
            object_pairs_hook=context.object_pairs_hook,
            parse_float=context.parse_float,
            parse_int=context.parse_int,
            parse_constant=context.parse_constant,
        )
        return decoder.scan_once

    def writer(default: Callable[[Any], Any]) -> Callable[[Any], str]:
        return json.JSONEncoder(
            default=default, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        ).encode

    return scanner, writer


try:
    _scanner, _writer = _c_readers()
    _scan_minus_zero = _scanner(_Context)
except (ImportError, TypeError, AttributeError):  # another interpreter, or a changed private API
    _scanner, _writer = _package_readers()
    _scan_minus_zero = _scanner(_Context)
_scan, _scan_strictly = _scanner(_ContextWithoutMinusZero), _scanner(_StrictContext)


def _depth(text: str) -> int:
    """The deepest nesting of `text`, brackets inside strings not counted."""
    deepest = depth = i = 0
    end = len(text)
    while i < end:
        char = text[i]
        if char == '"':
            i += 1
            while i < end and text[i] != '"':
                i += 2 if text[i] == "\\" else 1
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
        i += 1
    return deepest


def nests_deeper(text: str, depth_max: int) -> bool:
    """Whether the JSON of `text` nests deeper than `depth_max`."""
    # Each level takes two characters, and there are no more levels than opening brackets.
    return (
        len(text) > 2 * depth_max
        and text.count("[") + text.count("{") > depth_max
        and _depth(text) > depth_max
    )


def decode(text: str, depth_max: int = DEPTH_MAX) -> Any:
    """The value of one JSON text.

    Objects become dicts in their order, integers stay whole, and a literal that would not be
    written back the same becomes a `Number`. Raises ValueError, with no part of the text in its
    message, for anything that is not exactly one JSON value, for NaN and Infinity, for a key that
    stands twice in one object, for half a surrogate pair, and for nesting deeper than `depth_max`.
    """
    if nests_deeper(text, depth_max):
        raise ValueError(f"it nests deeper than {depth_max}")
    # One letter is looked for much faster than two: the second look is rare.
    scan = _scan_minus_zero if "-" in text and "-0" in text else _scan
    start, end = 0, len(text)
    if text[:1] in " \t\r\n":
        start = end - len(text.lstrip(" \t\r\n"))
    global _keys_made
    _keys_made = 0
    try:
        value, stop = scan(text, start)
        # Each key in the text has a colon of its own. As many colons as keys made: no key stood
        # twice. More of them: a string holds one, or a key did, which the strict reading tells.
        if text.count(":") != _keys_made:
            value, stop = _scan_strictly(text, start)
    except StopIteration as stopped:
        raise ValueError(f"no JSON value at character {stopped.value}") from None
    except (ValueError, SystemError) as error:
        # The scanner looks for json.JSONDecodeError, which holds the whole document, among the
        # loaded modules, and fails with SystemError where the package was never imported.
        known = type(error) is ValueError
        raise ValueError(str(error) if known else "it is not valid JSON") from None
    except RecursionError:
        raise ValueError(f"it nests deeper than {depth_max}") from None
    if stop != end and text[stop:].strip(" \t\r\n"):
        raise ValueError(f"something follows the JSON value at character {stop}")
    if "\\" in text and ("\\ud" in text or "\\uD" in text):
        try:
            encode(value).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a surrogate pair, which UTF-8 cannot") from None
    return value


def _literal_writer(mark: str) -> tuple[Callable[[Any], str], list[str]]:
    """An encoder that puts `mark` where a Number stands, and the list where it puts literals."""
    literals: list[str] = []

    def literal(number: Any) -> str:
        if not isinstance(number, Number):
            raise TypeError(f"{type(number).__name__} has no JSON form")
        literals.append(number.text)
        return mark

    return _writer(literal), literals


_write, _literals = _literal_writer(_MARKS[0])


def encode(value: Any) -> str:
    """Compact JSON text of `value`, non-ASCII as it is, number literals as they were read.

    Raises TypeError for what JSON has no word for and ValueError for NaN and Infinity.
    """
    _literals.clear()  # an encoding that failed may have left some
    text = _write(value)
    if not _literals:
        return text
    whole = _filled_in(text, _MARKS[0], _literals)
    if whole is not None:
        return whole
    for mark in _MARKS[1:]:
        write, literals = _literal_writer(mark)
        whole = _filled_in(write(value), mark, literals)
        if whole is not None:
            return whole
    raise ValueError("the value holds every mark the encoder knows")


def _filled_in(text: str, mark: str, literals: list[str]) -> str | None:
    """The text with literals for marks; None where a string of the value is the mark itself."""
    parts = text.split(f'"{mark}"')
    if len(parts) != len(literals) + 1:
        return None
    return "".join([piece for pair in zip(parts, [*literals, ""]) for piece in pair])


def same_value(a: Any, b: Any) -> bool:
    """Whether two decoded values are the same JSON value, number literals included.

    True is not 1 and 1 is not 1.0; the order of an object's keys says nothing.
    """
    if isinstance(a, Number) or isinstance(b, Number):
        return isinstance(a, Number) and isinstance(b, Number) and a.text == b.text
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_value(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, float):
        return a == b and repr(a) == repr(b)  # -0.0 is not 0.0
    return bool(a == b)
