"""What may stand in a message: a record's key, bounded and printable, never a card's number."""

from __future__ import annotations

import pytest

from agent.core.steps import shown


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("tx_1690000000000_abc123def", "tx_1690000000000_abc123def"),
        ("4111111111111111", "411111******1111"),
        ("sale 5555555555554444 retry", "sale 555555******4444 retry"),
        ("4111111111111112", "4111111111111112"),  # the check digit is wrong: no card has it
        ("a\nb\x1b[2J", "a?b?[2J"),
        (None, "None"),
        (b"\xff", "b'\\xff'"),
        ("x" * 100, "x" * 57 + "..."),
    ],
)
def test_a_key_is_shown_without_what_could_be_a_card_number(key: object, expected: str) -> None:
    assert shown(key) == expected
