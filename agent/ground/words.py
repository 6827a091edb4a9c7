"""Finds the known word that somebody most likely meant when they wrote an unknown one.

Used in error sentences only. difflib would do it too, but its import costs a terminal more than
the whole configuration does.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

WORD_CHARS_MAX = 64  # the work grows with the length; no word of ours comes near this


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the one of `words` with the fewest edits to `word`; "" only when there are none.

    Capitals and the difference between "-" and "_" count for nothing. Among equals the first in
    the order of `words` wins, so the same mistake always gets the same answer.
    """
    best = ""
    best_edits = -1
    plain = _plain(word)
    for known in words:
        edits = edit_distance(plain, _plain(known))
        if best_edits < 0 or edits < best_edits:
            best, best_edits = known, edits
    return best


def shown(word: str) -> str:
    """`word` as it may stand in an error sentence: quoted, escaped and of bounded length."""
    if len(word) <= WORD_CHARS_MAX:
        return ascii(word)
    return ascii(word[:WORD_CHARS_MAX]) + "..."


def edit_distance(left: str, right: str) -> int:
    """How many characters must be put in, taken out or replaced to turn `left` into `right`."""
    above = list(range(len(right) + 1))
    for row, a in enumerate(left, 1):
        here = [row]
        for column, b in enumerate(right, 1):
            replaced = above[column - 1] + (a != b)
            here.append(min(replaced, above[column] + 1, here[column - 1] + 1))
        above = here
    return above[-1]


def _plain(word: str) -> str:
    return word[:WORD_CHARS_MAX].lower().replace("-", "_")
