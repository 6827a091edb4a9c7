"""The line being typed: keys in, echo and lines out; and noise, which must never become a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.links.editor import IDLE_MS_MAX, LINE_CHARS_MAX, LINES_KEPT, PROMPT, Editor

WORDS = ["status", "stop", "migrate"]


def editor() -> Editor:
    """An editor that completes three words."""
    return Editor(lambda typed: [word for word in WORDS if typed and word.startswith(typed)])


def lines_of(events: list[tuple[str, str]]) -> list[str]:
    return [text for kind, text in events if kind == "line"]


# name, keys, echo, lines
TYPED = [
    ("CR is Enter", b"plan\r", b"plan\r\n", ["plan"]),
    ("LF is Enter", b"plan\n", b"plan\r\n", ["plan"]),
    ("CR and LF are one Enter", b"plan\r\nhelp\r\n", b"plan\r\nhelp\r\n", ["plan", "help"]),
    ("two CRs are two Enters", b"\r\r", b"\r\n\r\n", ["", ""]),
    ("LF and CR are two Enters", b"\n\r", b"\r\n\r\n", ["", ""]),
    ("LF after CR and a key is Enter", b"\ra\n", b"\r\na\r\n", ["", "a"]),
    ("0x08 takes one back", b"plam\x08n\r", b"plam\b \bn\r\n", ["plan"]),
    ("0x7F takes one back", b"plam\x7fn\r", b"plam\b \bn\r\n", ["plan"]),
    ("nothing is taken back from nothing", b"\x08\x7f\x15\x17a\r", b"a\r\n", ["a"]),
    ("Ctrl-U takes the line", b"ab\x15c\r", b"ab\b \b\b \bc\r\n", ["c"]),
    ("Ctrl-W takes a word", b"ab cd\x17e\r", b"ab cd\b \b\b \be\r\n", ["ab e"]),
    (
        "Ctrl-W takes the blanks behind it",
        b"ab c  \x17\r",
        b"ab c  " + b"\b \b" * 3 + b"\r\n",
        ["ab "],
    ),
    ("Ctrl-W takes the only word", b"ab\x17\r", b"ab\b \b\b \b\r\n", [""]),
    ("TAB finishes the only verb", b"sta\t\r", b"status \r\n", ["status "]),
    ("TAB lists several", b"st\ta\t\r", b"st\r\nstatus  stop\r\nagent> status \r\n", ["status "]),
    ("TAB knows no such verb", b"x\t\r", b"x\r\n", ["x"]),
    ("TAB on nothing", b"\t\r", b"\r\n", [""]),
    ("up shows the line before", b"ab\r\x1b[A\r", b"ab\r\nab\r\n", ["ab", "ab"]),
    ("up as keypads send it", b"ab\r\x1bOA\r", b"ab\r\nab\r\n", ["ab", "ab"]),
    (
        "up, up and down",
        b"ab\rcd\r\x1b[A\x1b[A\x1b[B\r",
        b"ab\r\ncd\r\ncd\b \b\b \bab\b \b\b \bcd\r\n",
        ["ab", "cd", "cd"],
    ),
    ("down behind the newest", b"ab\r\x1b[A\x1b[B\r", b"ab\r\nab\b \b\b \b\r\n", ["ab", ""]),
    ("up where nothing was", b"\x1b[A\x1b[Ba\r", b"a\r\n", ["a"]),
    (
        "the same line is kept once",
        b"ab\rab\r\x1b[A\x1b[A\r",
        b"ab\r\nab\r\nab\r\n",
        ["ab", "ab", "ab"],
    ),
    ("a number is not kept", b"ab\r4471\r\x1b[A\r", b"ab\r\n4471\r\nab\r\n", ["ab", "4471", "ab"]),
    ("other arrows and keys", b"a\x1b[C\x1b[3~\x1b[1;5A\x1b[15~\x1bOPb\r", b"ab\r\n", ["ab"]),
    ("Escape and a letter", b"a\x1bxb\r", b"ab\r\n", ["ab"]),
    ("Enter in a sequence is Enter", b"a\x1b[1\rb\r", b"a\r\nb\r\n", ["a", "b"]),
    ("NUL and other control bytes", b"\x00a\x01\x04\x0e\x1a\x1c\x1d\x1e\x1fb\r", b"ab\r\n", ["ab"]),
    ("bytes above 0x7E", "prüf\r".encode(), b"prf\r\n", ["prf"]),
    ("the 121st character", b"a" * 130 + b"\r", b"a" * 120 + b"\r\n", ["a" * 120]),
]


@pytest.mark.parametrize(("name", "keys", "echo", "lines"), TYPED, ids=[row[0] for row in TYPED])
def test_keys_give_this_echo_and_these_lines(
    name: str, keys: bytes, echo: bytes, lines: list[str]
) -> None:
    shown, events = editor().feed(keys, 0)
    assert (shown, lines_of(events)) == (echo, lines)

    one_by_one = editor()
    answers = [one_by_one.feed(keys[i : i + 1], 0) for i in range(len(keys))]
    assert b"".join(shown for shown, _ in answers) == echo
    assert [line for _, events in answers for line in lines_of(events)] == lines


def test_ctrl_c_clears_the_line_and_says_so_to_the_console() -> None:
    typing = editor()
    assert typing.feed(b"ab\x03", 0) == (b"ab\b \b\b \b", [("interrupt", "")])
    assert typing.is_empty()
    assert typing.feed(b"\r", 0) == (b"\r\n", [("line", "")])


def test_the_last_eight_lines_are_kept() -> None:
    typing = editor()
    for number in range(LINES_KEPT + 3):
        typing.feed(b"line %d\r" % number, 0)
    _, events = typing.feed(b"\x1b[A" * 20 + b"\r", 0)
    assert events == [("line", "line 3")]


def test_a_dropped_line_goes_without_a_sound_and_is_not_executed_later() -> None:
    typing = editor()
    typing.feed(b"restore b0041", 0)
    assert not typing.is_empty()
    typing.drop()
    assert typing.is_empty()
    assert typing.feed(b"\r", 0) == (b"\r\n", [("line", "")])


def test_a_line_idle_for_a_minute_is_dropped() -> None:
    typing = editor()
    typing.feed(b"res", 0)
    typing.expire(IDLE_MS_MAX - 1)
    assert not typing.is_empty()
    typing.expire(IDLE_MS_MAX)
    assert typing.is_empty()


def test_a_line_idle_for_a_minute_is_dropped_by_the_next_key_too() -> None:
    typing = editor()
    typing.feed(b"prune", 0)
    assert typing.feed(b"\r", IDLE_MS_MAX) == (b"\r\n", [("line", "")])


def test_escape_alone_does_not_swallow_what_is_typed_later() -> None:
    typing = editor()
    typing.feed(b"\x1b", 0)
    assert typing.feed(b"ab\r", 600) == (b"ab\r\n", [("line", "ab")])


def test_nothing_is_echoed_before_the_first_enter() -> None:
    typing = editor()
    typing.silent = True
    assert typing.feed(b"st\tx\x08\x15plan", 0) == (b"", [])
    assert typing.feed(b"\rab", 0) == (b"\r\nab", [("line", "plan")])


def test_eight_bytes_of_noise_within_a_second_are_told_once() -> None:
    typing = editor()
    assert typing.feed(b"\xff" * 7, 0) == (b"", [])
    assert typing.feed(b"\xff", 1_000) == (b"", [("noise", "")])
    assert typing.feed(b"\xff" * 50, 1_500) == (b"", [])


def test_seven_bytes_of_noise_in_each_second_are_no_wrong_rate() -> None:
    typing = editor()
    events = [typing.feed(b"\xfe" * 7, second * 1_001)[1] for second in range(9)]
    assert events == [[]] * 9


def test_noise_is_told_again_after_ten_seconds_without_any() -> None:
    typing = editor()
    assert typing.feed(b"\xff" * 8, 0)[1] == [("noise", "")]
    assert typing.feed(b"\xff" * 8, 9_999)[1] == []
    assert typing.feed(b"\xff" * 8, 9_999 + 10_000)[1] == [("noise", "")]


@pytest.mark.parametrize("byte", [0x7E, 0x7F])
def test_the_last_characters_of_ascii_are_no_noise(byte: int) -> None:
    assert editor().feed(bytes([byte]) * 20, 0)[1] == []


def test_completion_keeps_to_the_limit_of_the_line() -> None:
    typing = Editor(lambda typed: ["b" * 200])
    _, events = typing.feed(b"b\t\r", 0)
    assert [len(line) for line in lines_of(events)] == [LINE_CHARS_MAX]


KEYS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"\r", b"\n", b"\r\n", b"\x1b[A", b"\x1b[B", b"\x1bOA", b"\x1b[", b"\t"]),
        st.sampled_from(
            [b"\x08", b"\x15", b"\x17", b"\x03", b"status ", b"st", b"a" * 90, b"\xff"]
        ),
    ),
    max_size=30,
).map(b"".join)


@given(KEYS, st.data())
def test_whatever_comes_in_whatever_cutting_gives_the_same_lines(
    keys: bytes, data: st.DataObject
) -> None:
    whole, cut = editor(), editor()
    echo, events = whole.feed(keys, 0)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=8)))
    pieces = [keys[a:b] for a, b in zip([0, *cuts], [*cuts, len(keys)])]
    answers = [cut.feed(piece, 0) for piece in pieces]

    assert b"".join(shown for shown, _ in answers) == echo
    assert [event for _, found in answers for event in found] == events
    assert cut.is_empty() == whole.is_empty()
    for line in lines_of(events):
        assert len(line) <= LINE_CHARS_MAX
        assert all(0x20 <= ord(char) <= 0x7E for char in line)


@given(KEYS)
def test_the_screen_shows_exactly_the_line_that_is_typed(keys: bytes) -> None:
    """A terminal that knows BS, CR and LF alone is enough, and its cursor never goes astray."""
    typing = editor()
    echo, _ = typing.feed(keys, 0)
    assert b"\r" not in echo.replace(b"\r\n", b"")
    screen = [""]
    for char in echo.decode("ascii").replace("\r\n", "\n"):
        if char == "\n":
            screen.append("")
        elif char == "\b":
            assert screen[-1] != ""
            screen[-1] = screen[-1][:-1]
        else:
            screen[-1] += char
    _, events = typing.feed(b"\r", 0)
    assert screen[-1] in (lines_of(events)[0], PROMPT + lines_of(events)[0])
