"""The client's rules of the wire protocol, against the agent's own receiver and a clock by hand.

Whatever is lost or damaged on the way, in whatever pieces it comes: fewer than eight losses give
one result and one run.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.links import wire
from agent.links.receiver import Receiver
from posctl.conversation import (
    SENDS_MAX,
    Conversation,
    NoAnswer,
    NotOurAgent,
    TooNoisy,
    WireEvent,
)
from posctl.faults import AgentRefused
from posctl.frames import Damaged, Said, SerialEar, SocketEar, Text
from posctl.lines import Line
from tests.daemons import framed

FATES = ("request lost", "request damaged", "reply lost", "reply damaged", "reply late")


class Far(Line):
    """A serial line to an agent of a few lines, with a fate for each send and a clock by hand."""

    name = "far"
    baud = 115_200
    is_exact = False

    def __init__(self, fates: list[str], pieces: int = 4096) -> None:
        self.now_s = 0.0
        self.runs: dict[str, int] = {}
        self.sent: list[bytes] = []
        self.chatter = b""  # what somebody else says on this line with each send
        self._fates = fates
        self._pieces = pieces
        self._coming = b""
        self._late = b""
        self._receiver = Receiver(lambda: True)

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        self._coming += self._late + self.chatter
        self._late = b""
        fate = self._fates.pop(0) if self._fates else ""
        if fate == "request lost":
            return
        if fate == "request damaged":
            data = data[:9] + b"~" + data[10:]
        reply = b"".join(self._answers(data))
        if fate == "reply damaged":
            reply = reply[:9] + b"~" + reply[10:]
        if fate == "reply late":
            self._late = reply
        elif fate != "reply lost":
            self._coming += reply

    def _answers(self, data: bytes) -> list[bytes]:
        replies = []
        for what, body in self._receiver.feed(data, int(self.now_s * 1000)):
            if what == "frame":
                replies.append(self._reply(wire.parse_request(body, True)))
            elif what == "bad_crc":
                replies.append(wire.error_body(None, wire.remote("BAD_CRC", "damaged")))
        return [wire.frame(reply) for reply in replies]

    def _reply(self, request: Any) -> bytes:
        if request.method == "status":
            return wire.result_body(request.id, {"state": "idle"})
        op = request.params["op"]
        replayed = op in self.runs
        run = self.runs.setdefault(op, len(self.runs) + 1)
        return wire.result_body(request.id, {"run": run, "replayed": replayed})

    def receive(self, wait_s: float) -> bytes:
        if not self._coming:
            self.now_s += wait_s
            return b""
        data, self._coming = self._coming[: self._pieces], self._coming[self._pieces :]
        return data

    def close(self) -> None:
        pass

    def talk(self, **given: Any) -> Conversation:
        return Conversation(self, now=lambda: self.now_s, **given)


@given(
    st.lists(st.lists(st.sampled_from(FATES), max_size=SENDS_MAX - 1), min_size=1, max_size=4),
    st.integers(1, 60),
)
def test_fewer_than_eight_losses_of_any_kind_give_one_result_and_one_run(
    losses: list[list[str]], pieces: int
) -> None:
    line = Far([fate for call in losses for fate in [*call, ""]], pieces)
    talk = line.talk()
    for number, _ in enumerate(losses, 1):
        assert talk.call("migrate", {"op": f"op-{number:06d}"})["run"] == number
    assert len(line.runs) == len(losses)


@given(st.integers(0, 250), st.sampled_from(["lose", "flip", "double", "insert"]), st.booleans())
def test_one_spoilt_byte_anywhere_costs_a_send_and_nothing_else(
    at: int, way: str, of_reply: bool
) -> None:
    class Spoilt(Far):
        is_spoilt = False

        def send(self, data: bytes) -> None:
            super().send(data if of_reply else self._spoil(data))
            if of_reply:
                self._coming = self._spoil(self._coming)

        def _spoil(self, data: bytes) -> bytes:
            if self.is_spoilt or at >= len(data):
                return data
            self.is_spoilt = True
            here = {"lose": b"", "flip": bytes([data[at] ^ 0x10]), "double": data[at : at + 1] * 2}
            return data[:at] + here.get(way, b"\x1e" + data[at : at + 1]) + data[at + 1 :]

    line = Spoilt([])
    talk = line.talk()
    assert talk.call("migrate", {"op": "op-000001"})["run"] == 1
    assert talk.call("migrate", {"op": "op-000002"})["run"] == 2
    assert len(line.sent) <= 4


def test_a_repeat_has_the_same_bytes() -> None:
    line = Far(["request lost", "reply lost", "request damaged"])
    line.talk().call("migrate", {"op": "op-000001"})
    assert len(line.sent) == 4
    assert len(set(line.sent)) == 1


def test_after_a_time_out_it_is_sent_again_and_at_once_after_a_damaged_frame() -> None:
    line = Far(["request damaged", "reply damaged"])
    line.talk().call("status")
    assert line.now_s == 0.0
    line = Far(["reply lost"])
    line.talk().call("status")
    request = len(line.sent[0])
    assert line.now_s == pytest.approx(1 + 10 * (request + 1024 + 11) / 115_200)


def test_a_slow_line_gets_the_time_that_its_bytes_take() -> None:
    line = Far(["reply lost"])
    line.baud = 9600
    line.talk().call("status")
    assert 2.1 < line.now_s < 2.2


def test_the_reply_to_an_older_request_is_never_taken_for_the_newest() -> None:
    line = Far(["reply late", ""])
    talk = line.talk()
    # Both sends are answered: the second reply is still on its way when the next request goes out.
    assert talk.call("migrate", {"op": "op-000001"})["run"] == 1
    assert talk.call("status") == {"state": "idle"}
    assert talk.call("migrate", {"op": "op-000002"})["run"] == 2


def test_two_conversations_one_after_the_other_do_not_begin_with_the_same_id() -> None:
    ids = {json.loads(bytes(sent_by_a_new_one()[1:-10]))["id"] for _ in range(8)}
    assert len(ids) == 8


def sent_by_a_new_one() -> bytes:
    line = Far([])
    line.talk().call("status")
    return line.sent[0]


def test_no_answer_at_all_is_told_from_a_line_that_is_too_noisy() -> None:
    silent = Far(["request lost"] * SENDS_MAX)
    with pytest.raises(NoAnswer, match="see that the terminal is on"):
        silent.talk().call("status")
    assert len(silent.sent) == SENDS_MAX
    noisy = Far(["request damaged", "reply damaged", "request lost", "reply lost"] * 2)
    talk = noisy.talk()
    with pytest.raises(TooNoisy, match="4 frames came damaged"):
        talk.call("status")
    assert (talk.counts.damaged_here, talk.counts.damaged_there) == (2, 2)
    assert talk.counts.sends == SENDS_MAX


def test_each_repeat_and_each_damaged_frame_is_told() -> None:
    told: list[WireEvent] = []
    line = Far(["request damaged", "reply damaged", "reply lost"])
    line.talk(told=told.append).call("status")
    assert [event.what for event in told] == ["damaged", "again", "damaged", "again", "again"]
    assert told[-1].says == "status: send 4 of 8"


def test_text_of_a_console_is_handed_on_and_is_no_answer() -> None:
    heard: list[bytes] = []
    line = Far(["request lost"] * SENDS_MAX)
    line.chatter = b"login: "
    with pytest.raises(NotOurAgent, match="it says 'login: login:"):
        line.talk(on_text=heard.append).call("status")
    assert b"".join(heard) == b"login: " * SENDS_MAX


def test_a_known_agent_that_only_gives_text_is_one_that_starts() -> None:
    line = Far(["", *["request lost"] * SENDS_MAX])
    talk = line.talk()
    talk.call("status")
    line.chatter = b"[    0.000000] Booting Linux\r\n"
    with pytest.raises(NoAnswer, match="may be starting"):
        talk.call("status")


def test_bytes_that_are_no_text_hint_at_the_baud_rate() -> None:
    line = Far(["request lost"] * SENDS_MAX)
    line.chatter = bytes(range(0x80, 0xC0)) + b"\x1exx\n"
    with pytest.raises(TooNoisy, match=r"wrong baud rate \(115200 here\)"):
        line.talk().call("status")


def test_a_line_that_only_echoes_is_found_out_after_four_sends() -> None:
    class Echo(Far):
        def send(self, data: bytes) -> None:
            self.sent.append(data)
            self._coming += data

    line = Echo([])
    with pytest.raises(NotOurAgent, match="sends back what it is sent"):
        line.talk().call("status")
    assert len(line.sent) == 4


def test_an_adapter_that_also_echoes_does_no_harm() -> None:
    class Echoing(Far):
        def send(self, data: bytes) -> None:
            self._coming += data
            super().send(data)

    line = Echoing(["reply lost"] * 3)
    assert line.talk().call("status") == {"state": "idle"}


def test_an_error_of_the_agent_has_its_kind_its_data_and_the_commands_exit_code() -> None:
    class Refusing(Far):
        def _reply(self, request: Any) -> bytes:
            error = wire.remote("BUSY", "run 3 is on", run=3)
            return wire.error_body(request.id, error)

    with pytest.raises(AgentRefused, match="run 3 is on") as refused:
        Refusing([]).talk().call("backup", {"op": "op-000001"})
    error = refused.value
    assert (error.kind, error.code, error.retry, error.exit_code) == ("BUSY", -32003, "later", 5)
    assert error.data["run"] == 3


@pytest.mark.parametrize(
    ("kind", "word", "code"),
    [("STORAGE_ERROR", "", 6), ("NO_SUCH", "", 64), ("REFUSED", "HELD", 12), ("NEW_KIND", "", 70)],
)
def test_a_refusal_ends_a_command_as_it_does_on_the_terminal(
    kind: str, word: str, code: int
) -> None:
    data = {"kind": kind, **({"word": word} if word else {})}
    assert AgentRefused(-32000, kind, "no", data).exit_code == code


# What the ears make of bytes


BODIES = st.dictionaries(st.text(max_size=5), st.integers(), max_size=3).map(
    lambda value: json.dumps({"id": 1, **value}).encode("ascii")
)
TEXTS = st.binary(min_size=1, max_size=20).filter(lambda text: b"\x1e" not in text)


@given(
    st.lists(st.one_of(BODIES.map(framed), TEXTS, st.just(b"\x1e\n")), max_size=6),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_frames_and_text_are_the_same_however_the_bytes_are_cut(
    parts: list[bytes], sizes: list[int]
) -> None:
    data = b"".join(parts)
    whole, cut = SerialEar().feed(data), []
    ear, at, turn = SerialEar(), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        cut += ear.feed(data[at : at + size])
        at, turn = at + size, turn + 1

    def texts_joined(heard: list[Any]) -> list[Any]:
        found: list[Any] = []
        for one in heard:
            if isinstance(one, Text) and found and isinstance(found[-1], Text):
                found[-1] = Text(found[-1].data + one.data)
            else:
                found.append(one)
        return found

    assert texts_joined(cut) == texts_joined(whole)
    frames = [part for part in parts if part.startswith(b"\x1e") and len(part) > 2]
    assert [one.value for one in whole if isinstance(one, Said)] == [
        json.loads(frame[1:-10]) for frame in frames
    ]
    assert not [one for one in whole if isinstance(one, Damaged)]


def test_a_frame_that_never_ends_is_damaged_and_not_kept_for_ever() -> None:
    ear = SerialEar()
    heard = ear.feed(b"\x1e" + b"x" * 100_000)
    assert isinstance(heard[0], Damaged)
    assert ear.feed(framed(b'{"id":1}')) == [Said({"id": 1})]


def test_a_socket_gives_objects_a_line_each_and_the_rest_as_text() -> None:
    ear = SocketEar()
    assert ear.feed(b'{"id":1}\n{"id"') == [Said({"id": 1})]
    assert ear.feed(b":2}\n" + framed(b'{"id":3}')) == [Said({"id": 2}), Said({"id": 3})]
    assert ear.feed(b"220 mail ready\r\n") == [Text(b"220 mail ready\r\n")]
