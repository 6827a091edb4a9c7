"""One serial line's bytes to events: frames among keys, however the line is cut and disturbed.

The editor that says whether its line is empty is the real one and gets the keys, as in the link.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.links.editor import Editor
from agent.links.receiver import LINE_BYTES_MAX, SILENCE_MS, Receiver
from agent.links.wire import frame

VECTORS = json.loads((Path(__file__).parent / "data" / "wire-vectors.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = VECTORS["receiver"]
STATUS = b'{"jsonrpc":"2.0","id":7,"method":"status"}'
PING = b'{"jsonrpc":"2.0","id":8,"method":"ping"}'

Events = list[tuple[str, bytes]]


class Line:
    """The receiver and the editor behind it, as a link has them."""

    def __init__(self) -> None:
        self.editor = Editor(lambda typed: ["status"])
        self.receiver = Receiver(self.editor.is_empty)
        self.lines: list[str] = []

    def feed(self, data: bytes, now_ms: int = 0) -> Events:
        """Feeds bytes; keys and dropped lines reach the editor before this returns."""
        events = self.receiver.feed(data, now_ms)
        for what, keys in events:
            if what == "keys":
                _echo, typed = self.editor.feed(keys, now_ms)
                self.lines += [text for name, text in typed if name == "line"]
            elif what == "drop_line":
                self.editor.drop()
        return events


def joined(events: Events) -> Events:
    """Returns the events with neighbouring keys as one: reads may end anywhere among them."""
    whole: Events = []
    for what, data in events:
        if what == "keys" and whole and whole[-1][0] == "keys":
            data = whole.pop()[1] + data
        whole.append((what, data))
    return whole


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Returns the data cut at these places."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:])]


def fed(*parts: bytes) -> Events:
    """Returns what a fresh line makes of these reads."""
    line = Line()
    return joined([event for part in parts for event in line.feed(part)])


def latin(text: str) -> bytes:
    return text.encode("latin-1")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_vectors_whole_and_one_byte_at_a_time_wp_3(case: dict[str, Any]) -> None:
    expected = [(what, latin(data)) for what, data in case["events"]]
    whole, single = Line(), Line()
    events: Events = []
    events_single: Events = []
    for at_ms, text in case["bytes"]:
        events += whole.feed(latin(text), at_ms)
        for byte in latin(text):
            events_single += single.feed(bytes([byte]), at_ms)
    assert joined(events) == expected
    assert joined(events_single) == expected
    assert whole.lines == single.lines


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_a_frame_behind_and_before_each_vector_is_heard_wp_4(case: dict[str, Any]) -> None:
    line = Line()
    assert ("frame", PING) in line.feed(frame(PING), 0)
    last_ms = 0
    for at_ms, text in case["bytes"]:
        line.feed(latin(text), at_ms)
        last_ms = at_ms
    assert line.feed(frame(PING), last_ms)[-1] == ("frame", PING)


# What a line may carry, whole and in ruins.
SCRAPS = st.sampled_from(
    [
        *(frame(STATUS), frame(PING), frame(STATUS)[1:], frame(PING)[:-1] + b"\r"),
        *(frame(STATUS)[:20], frame(PING)[9:], STATUS + b"\n", b"{", b'{"a":1}#00000000\r\n'),
        *(b"\x1e", b"\n", b"\r", b"\r\n", b"\x1e\n", b"status\r", b"x", b"\x7f", b"\x08", b"\x15"),
        *(b"\x03", b"\x17", b"\t", b"\x1b", b"\x1b[A", b"\x1b[B", b"\x00", b"\xff", b"\x80\x80"),
        *(b"A" * 130, b"\x7f" * 125, b"\x1e" + b"x" * LINE_BYTES_MAX, b"{" + b"y" * 1200),
    ]
)
noise = st.lists(SCRAPS | st.binary(max_size=6), max_size=8).map(b"".join)


@given(noise, st.lists(st.integers(0, 5000), max_size=6))
@example(b"abc\x1e" + frame(PING)[1:] + frame(PING)[1:], [1])
@example(b"A" * 130 + b"\x7f" * 125 + frame(PING)[1:], [200])
@example(b"\x1b[A\x1b[B" + frame(PING)[1:], [6])
@example(b"x\x17" + frame(PING)[1:], [2])
def test_the_events_do_not_depend_on_how_the_line_is_cut_wp_3(data: bytes, cuts: list[int]) -> None:
    whole = fed(data)
    assert fed(*pieces(data, cuts)) == whole
    assert fed(*[bytes([byte]) for byte in data]) == whole


@given(noise, noise)
def test_a_frame_is_heard_whatever_noise_is_before_and_behind_it_wp_4(
    before: bytes, behind: bytes
) -> None:
    events = fed(before + frame(STATUS) + behind)
    assert ("frame", STATUS) in events
    # Nothing but whole frames of ours comes out as one, so what is executed was sent.
    bodies = {data for what, data in events if what == "frame"}
    assert bodies <= {STATUS, PING}


@given(noise)
def test_after_silence_any_line_is_a_console_again_wp_5(data: bytes) -> None:
    line = Line()
    line.feed(data, 0)
    due_ms = line.receiver.due_ms()
    assert due_ms in (None, SILENCE_MS)
    assert line.receiver.tick(SILENCE_MS) == []
    assert line.receiver.due_ms() is None
    line.editor.drop()
    assert line.feed(b"st", SILENCE_MS + 1)[-1] == ("keys", b"st")


@given(noise)
def test_no_byte_of_a_frame_or_of_a_suspected_one_reaches_the_editor_wp_2(data: bytes) -> None:
    long = b"\x1e" + b"y" * 3000 + b"migrate\r"
    for hidden in (frame(STATUS), b"\x1e" + STATUS + b"\n", long):
        events = fed(data + hidden)
        before = b"".join([keys for what, keys in fed(data) if what == "keys"])
        assert b"".join([keys for what, keys in events if what == "keys"]) == before


def test_an_enter_behind_a_frame_does_not_run_the_line_typed_before_it_wp_2() -> None:
    line = Line()
    line.feed(b"restore b0041")
    line.feed(frame(STATUS))
    line.feed(b"\r")
    assert line.lines == [""]


@pytest.mark.parametrize("cut", range(1, len(frame(STATUS))))
def test_a_frame_cut_anywhere_is_gone_after_silence_and_the_console_works_wp_5(cut: int) -> None:
    line = Line()
    line.feed(frame(STATUS)[:cut], 100)
    assert line.receiver.due_ms() == 100 + SILENCE_MS
    assert line.receiver.tick(99 + SILENCE_MS) == []
    assert line.receiver.due_ms() is not None
    line.receiver.tick(100 + SILENCE_MS)
    assert line.receiver.due_ms() is None
    assert line.feed(b"status\r", 100 + SILENCE_MS) == [("keys", b"status\r")]
    assert line.lines == ["status"]


def test_an_idle_line_that_the_editor_dropped_counts_as_empty() -> None:
    line = Line()
    line.feed(b"half a word", 0)
    line.editor.expire(60_000)
    assert line.feed(frame(STATUS)[1:], 60_001) == [("frame", STATUS)]


def test_after_a_key_that_only_the_editor_knows_silence_makes_it_known() -> None:
    line = Line()
    line.feed(b"\x1b", 0)
    assert line.feed(frame(STATUS)[1:], 1)[0][0] == "keys"
    line.feed(b"\x15", 2)  # the line that this became is killed
    line.feed(b"\x1b[A", 3)
    assert line.feed(frame(STATUS)[1:], 3 + SILENCE_MS) == [("frame", STATUS)]


def test_a_megabyte_without_an_end_leaves_nothing_behind_wp_6() -> None:
    line = Line()
    told: Events = []
    for _ in range(256):
        told += line.feed(b"\x1e"[: not told] + b"z" * 4096)
        assert len(line.receiver._line) <= LINE_BYTES_MAX
    assert told == [("drop_line", b""), ("too_long", b"")]
