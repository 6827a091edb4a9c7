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
        ("4111111111111112", "411111******1112"),  # whatever stands behind a number is no key to it
        ("4111 1111 1111 1111", "4111 11** **** 1111"),
        ("4111-1111-1111-1111 ", "4111-11**-****-1111 "),
        ("pan=41111111111111112512101", "pan=411111*************2101"),
        (
            "\uff14\uff11\uff11\uff11" * 4,
            "\uff14\uff11\uff11\uff11\uff14\uff11******\uff14\uff11\uff11\uff11",
        ),
        ("k" * 50 + "4111111111111111", "k" * 50 + "411111*..."),
        ("1690000000000 and 1690000000000", "1690000000000 and 1690000000000"),
        ("--4111111111111111--", "--411111******1111--"),
        ("a\nb\x1b[2J", "a?b?[2J"),
        (None, "None"),
        (b"\xff", "b'\\xff'"),
        ("x" * 100, "x" * 57 + "..."),
    ],
)
def test_a_key_is_shown_without_what_could_be_a_card_number(key: object, expected: str) -> None:
    assert shown(key) == expected
