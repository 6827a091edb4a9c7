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


# ---- What goes over lines: one small JSON text per request, reply and notification.
#
# Here ujson works where there is one. By itself it takes NaN, 1e400, 01, raw control characters
# and keys that stand twice, and the scanner above differs from it in other ways; so the text is
# looked over first, by one grammar for both, and whatever is wrong is said in the same words.

# A request with an object in its params has 3 levels, the deepest result 5.
LINE_DEPTH_MAX = 6
# What every JSON reader in use keeps exact: a double holds whole numbers up to here.
LINE_INT_MAX = 1 << 53

_BLANKS = " \t\r\n"
_HEX = "0123456789abcdefABCDEF"


class UnfitForLine(ValueError):
    """JSON by its grammar, but nested too deep or with a key twice: not what a line may hold."""


class _LineContext(_Context):
    object_hook = None
    parse_float: Any = float
    parse_int = int


def decode_line(text: str) -> Any:
    """The value of one JSON text from a line; numbers with a fraction or an exponent are floats.

    Raises ValueError, with no part of the text in its message, for all that is not exactly one
    JSON value, for a number that is NaN, infinite or whole and beyond +-2**53, for a raw control
    character and for half a surrogate pair; UnfitForLine, which is one, for a key that stands
    twice in one object and for nesting deeper than LINE_DEPTH_MAX.
    """
    if not _is_unicode(text):
        raise ValueError("it holds half a surrogate pair")
    text = text.strip(_BLANKS)
    members = _look_over(text)
    try:
        value = _line_library()[0](text)
    except (ValueError, StopIteration, SystemError):  # SystemError: see `decode`
        raise ValueError("it is not valid JSON") from None
    if _members(value) != members:
        raise UnfitForLine("a key stands twice in one object")
    return value


def encode_line(value: Any) -> str:
    """Compact JSON of `value` in pure ASCII, the same to the byte whichever library writes it.

    What it writes `decode_line` gives back. Raises TypeError for everything but dict (with keys
    that are str), list, str, int, bool and None, and ValueError for whole numbers beyond +-2**53,
    for nesting deeper than LINE_DEPTH_MAX and for half a surrogate pair.
    """
    _check_for_line(value, LINE_DEPTH_MAX)
    return _line_library()[1](value)


def _look_over(text: str) -> int:
    """How many members the objects of `text` have; ValueError for what no reader may take.

    Strings, numbers and words are judged here to the last character. Which of them may follow
    which is left to the library, since there none is loose.
    """
    members = _members_of_plain(text)
    return members if members >= 0 else _look_closely(text)


def _members_of_plain(text: str) -> int:
    """The same for a text as most are, in a third of the time; -1 for one to look at closely.

    Plain is printable ASCII without a backslash, so that every second quote ends a string, with
    short whole numbers that have no sign, and with no more brackets than may nest.
    """
    if not text.isascii() or not text.isprintable() or "\\" in text:
        return -1
    pieces = text.split('"')
    bare = " ".join(pieces[::2])
    if len(pieces) % 2 == 0 or bare.count("{") + bare.count("[") > LINE_DEPTH_MAX:
        return -1
    for word in bare.translate(_MARKS_AS_BLANKS).split():
        is_number = word.isdigit() and word[0] != "0" and len(word) <= _PLAIN_DIGITS_MAX
        if not is_number and word not in _PLAIN_WORDS:
            return -1
    return bare.count(":")


_MARKS_AS_BLANKS = {ord(mark): " " for mark in "{}[]:,"}
_PLAIN_WORDS = ("0", "true", "false", "null")
_PLAIN_DIGITS_MAX = 15  # none of them is beyond 2**53


def _look_closely(text: str) -> int:
    """The same for any text, character by character."""
    i = depth = members = 0
    end = len(text)
    while i < end:
        char = text[i]
        if char == '"':
            i = _string_end(text, i + 1)
            continue
        if char in "-0123456789":
            i = _number_end(text, i)
            continue
        if char in "[{":
            depth += 1
            if depth > LINE_DEPTH_MAX:
                raise UnfitForLine(f"it nests deeper than {LINE_DEPTH_MAX}")
        elif char in "]}":
            depth -= 1
        elif char == ":":
            members += 1
        elif char not in ", \t\r\n":
            i = _word_end(text, i)
            continue
        i += 1
    return members


def _word_end(text: str, start: int) -> int:
    for word in ("true", "false", "null"):
        if text.startswith(word, start):
            return start + len(word)
    raise ValueError("it is not valid JSON")


def _string_end(text: str, start: int) -> int:
    """Where the string goes on that has its first character at `start`, behind the quote."""
    while True:
        quote = text.find('"', start)
        if quote < 0:
            raise ValueError("a string has no end")
        slash = text.find("\\", start, quote)
        plain = text[start : quote if slash < 0 else slash]
        if plain and min(plain) < " ":
            raise ValueError("a string holds a raw control character")
        if slash < 0:
            return quote + 1
        start = _escape_end(text, slash + 1)


def _escape_end(text: str, start: int) -> int:
    """Where the string goes on behind the escape that has its letter at `start`."""
    if text[start : start + 1] != "u":
        # An empty slice is in every string: the text may end behind the backslash.
        if start < len(text) and text[start] in '"\\/bfnrt':
            return start + 1
        raise ValueError("a string holds an unknown escape")
    unit = _code_unit(text, start + 1)
    if not 0xD800 <= unit <= 0xDFFF:
        return start + 5
    if unit >= 0xDC00 or text[start + 5 : start + 7] != "\\u":
        raise ValueError("it holds half a surrogate pair")
    if not 0xDC00 <= _code_unit(text, start + 7) <= 0xDFFF:
        raise ValueError("it holds half a surrogate pair")
    return start + 11


def _code_unit(text: str, start: int) -> int:
    digits = text[start : start + 4]
    if len(digits) != 4 or any(digit not in _HEX for digit in digits):
        raise ValueError("a string holds an unknown escape")
    return int(digits, 16)


def _number_end(text: str, start: int) -> int:
    """Where the text goes on behind the number that has its sign or first digit at `start`."""
    first = start + (text[start] == "-")
    i = _digits_end(text, first)
    if i > first + 1 and text[first] == "0":
        raise ValueError("a number has a zero before its first digit")
    whole_end = i
    if text[i : i + 1] == ".":
        i = _digits_end(text, i + 1)
    if text[i : i + 1] in ("e", "E"):
        i = _digits_end(text, i + 1 + (text[i + 1 : i + 2] in ("+", "-")))
    if i > whole_end:
        if float(text[start:i]) in (float("inf"), float("-inf")):
            raise ValueError("a number is too great")
    elif i - first > len(str(LINE_INT_MAX)) or int(text[first:i]) > LINE_INT_MAX:
        raise ValueError("a whole number is beyond 2**53")
    return i


def _digits_end(text: str, start: int) -> int:
    i = start
    while "0" <= text[i : i + 1] <= "9":
        i += 1
    if i == start:
        raise ValueError("a number lacks a digit")
    return i


def _members(value: Any) -> int:
    """How many members the objects of a decoded value have."""
    if type(value) is dict:
        return len(value) + sum([_members(inner) for inner in value.values()])
    if type(value) is list:
        return sum([_members(inner) for inner in value])
    return 0


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: half a surrogate pair, as in odd file names, it cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_for_line(value: Any, levels: int) -> None:
    kind = type(value)
    if kind is str:
        if not _is_unicode(value):
            raise ValueError("it holds half a surrogate pair")
    elif kind is int:
        if not -LINE_INT_MAX <= value <= LINE_INT_MAX:
            raise ValueError("a whole number is beyond 2**53")
    elif kind is dict or kind is list:
        if not levels:
            raise ValueError(f"it nests deeper than {LINE_DEPTH_MAX}")
        if kind is dict and not (set(map(type, value)) <= {str} and _is_unicode("".join(value))):
            raise TypeError("the keys on a line are texts")
        for inner in value.values() if kind is dict else value:
            if not (inner is None or inner is True or (type(inner) is str and inner.isascii())):
                _check_for_line(inner, levels - 1)
    elif kind is float:
        raise TypeError("numbers on a line are whole")
    elif value is not None and kind is not bool:
        raise TypeError(f"{kind.__name__} has no form on a line")


def _in_ascii(text: str) -> str:
    """JSON text with each character beyond `~` as an escape, as UTF-16 has it."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join([char if char <= "~" else _escaped(ord(char)) for char in text])


def _escaped(point: int) -> str:
    if point < 0x10000:
        return f"\\u{point:04x}"
    point -= 0x10000
    return f"\\u{0xD800 + (point >> 10):04x}\\u{0xDC00 + (point & 0x3FF):04x}"


def _ujson_for_lines() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    from ujson import dumps, loads

    def write(value: Any) -> str:
        # It leaves DEL as it is, which no frame may hold.
        return _in_ascii(dumps(value, escape_forward_slashes=False))

    return loads, write


def _own_for_lines() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    scan = _scanner(_LineContext)

    def read(text: str) -> Any:
        value, stop = scan(text, 0)
        if stop != len(text):
            raise ValueError("something follows the JSON value")
        return value

    return read, lambda value: _in_ascii(encode(value))


_for_lines: tuple[Callable[[str], Any], Callable[[Any], str]] | None = None


def _line_library() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Reader and writer, chosen at the first line: a boot without lines loads no ujson."""
    global _for_lines
    if _for_lines is None:
        try:
            _for_lines = _ujson_for_lines()
        except ImportError:
            _for_lines = _own_for_lines()
    return _for_lines
