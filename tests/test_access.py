"""The way to be admin for one command: what a code is good for, tries, locks, and power cuts.

The desk in these tests makes its codes with the standard library from the text of
docs/spec/wire-protocol.md, so the two are held to the page and not to each other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.ground.hmac import hmac_sha256
from agent.links import access
from agent.links.access import Access, code_for, device_key, mac_for, reaches
from agent.links.wire import RemoteError

ROOT = Path(__file__).resolve().parent.parent
KEY = hashlib.sha256(b"a key of the tests").digest()
SERIAL = "0012345"
RESTORE = "restore 000041-v2.posbak discard newer=37,changed=0,gone=0,settled=0"
CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", access.ALPHABET)


class Cut(Exception):
    """The power is gone."""


class Kept:
    """A store that behaves: what was saved is there after a cut, and a cut comes when it is set."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.writes = 0
        self.cut_at: tuple[int, bool] | None = None  # which write, and whether it still lands

    def load_access(self) -> dict[str, int]:
        return dict(self.values)

    def save_access(self, counter: int, fails: int, locked: int) -> None:
        self.writes += 1
        cut = self.cut_at is not None and self.cut_at[0] == self.writes
        if cut and not (self.cut_at and self.cut_at[1]):
            raise Cut
        self.values = {"counter": counter, "fails": fails, "locked": locked}
        if cut:
            raise Cut


class Terminal:
    """An Access with a clock that the test turns, a store, and a way to pull the plug."""

    def __init__(self, key: bytes | None = KEY, serial: str | None = SERIAL) -> None:
        self.kept = Kept()
        self.key, self.serial = key, serial
        self.nonces = iter(range(1, 10_000))
        self.reboot()

    def reboot(self) -> None:
        """Memory is gone; the monotonic clock begins at some other number."""
        self.now = 5_000
        self.access = Access(self.key, self.serial, self.kept, lambda: self.now, self.random)

    def random(self, count: int) -> bytes:
        return hashlib.sha256(str(next(self.nonces)).encode()).digest()[:count]

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


def desk_mac(told: dict[str, Any], key: bytes = KEY) -> bytes:
    """The MAC as the page says, by the standard library."""
    parts = [
        *("posagent service code", told["serial"], str(told["counter"])),
        *(told["nonce"].replace("-", ""), told["command"]),
    ]
    return hmac.new(key, "\0".join(parts).encode(), "sha256").digest()


def desk(told: dict[str, Any], key: bytes = KEY) -> str:
    """The code as the page says: 40 bits in Crockford's letters."""
    text = base64.b32encode(desk_mac(told, key)[:5]).decode().translate(CROCKFORD)
    return f"{text[:4]}-{text[4:]}"


def other_than(code: str) -> str:
    """A code that is wrong in its last letter."""
    return code[:-1] + ("2" if code[-1] != "2" else "3")


def refusal(call: Any, *given: Any) -> RemoteError:
    """The error that a call must raise; it changes nothing and shows no key."""
    with pytest.raises(RemoteError) as caught:
        call(*given)
    error = caught.value
    assert error.data["changed"] is False
    assert KEY.hex() not in repr(error.as_json())
    return error


# HMAC

# RFC 4231, sections 4.2 to 4.8: key, data, result.
VECTORS = [
    (
        b"\x0b" * 20,
        b"Hi There",
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
    ),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        b"\xaa" * 20,
        b"\xdd" * 50,
        "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
    ),
    (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    (b"\x0c" * 20, b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. "
        b"The key needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


@pytest.mark.parametrize(("key", "data", "result"), VECTORS)
def test_hmac_gives_the_vectors_of_the_rfc(key: bytes, data: bytes, result: str) -> None:
    assert hmac_sha256(key, data).hex().startswith(result)


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_hmac_equals_that_of_the_standard_library(key: bytes, data: bytes) -> None:
    assert hmac_sha256(key, data) == hmac.new(key, data, "sha256").digest()


# Levels


def test_a_level_reaches_itself_and_what_is_below() -> None:
    table = [[reaches(level, need) for need in access.LEVELS] for level in access.LEVELS]
    assert table == [[True, False, False], [True, True, False], [True, True, True]]


# Codes


def test_a_code_is_what_the_page_says() -> None:
    told = Terminal().access.challenge(RESTORE)
    given = (told["serial"], told["counter"], told["nonce"], told["command"])
    assert code_for(KEY, *given) == desk(told)
    assert mac_for(KEY, *given) == desk_mac(told)


def test_the_example_on_the_page_is_true() -> None:
    page = (ROOT / "docs/spec/wire-protocol.md").read_text("utf-8")
    section = page.split("## Challenge and code")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| ([\w ]+) \| `([^`]+)` \|$", section, re.MULTILINE))
    key = bytes.fromhex(rows["device key"])
    assert device_key(bytes.fromhex(rows["fleet key"]), rows["serial"]) == key
    told = {name: rows[name] for name in ("serial", "counter", "nonce", "command")}
    assert desk_mac(told, key).hex() == rows["MAC"]
    assert (
        code_for(key, told["serial"], int(told["counter"]), told["nonce"], told["command"])
        == (rows["code"])
    )


def test_a_device_key_is_what_the_page_says_and_differs_by_serial() -> None:
    expected = hmac.new(KEY, b"posagent device key\0" + SERIAL.encode(), "sha256").digest()
    assert device_key(KEY, SERIAL) == expected
    assert device_key(KEY, SERIAL + "6") != expected


PARTS = st.text("ab \n-é", max_size=4)
SIGNED = st.tuples(PARTS, st.integers(0, 30), st.sampled_from(["AAAA-AAAA", "BBBB-BBBB"]), PARTS)


@given(SIGNED, SIGNED)
def test_two_different_challenges_never_have_the_same_mac(one: Any, other: Any) -> None:
    assert (mac_for(KEY, *one) == mac_for(KEY, *other)) == (one == other)


def test_a_part_with_a_nul_is_refused_since_it_could_pass_for_two() -> None:
    for parts in (("a\0b", 1, "AAAA", "c"), ("a", 1, "AAAA", "b\0c"), ("a", 1, "AA\0A", "c")):
        with pytest.raises(ValueError, match=r"NUL|base 32"):
            code_for(KEY, *parts)
    with pytest.raises(ValueError, match="NUL"):
        device_key(KEY, "a\0b")


# Challenge and answer


def test_a_challenge_tells_all_that_a_desk_needs() -> None:
    told = Terminal().access.challenge(RESTORE)
    assert re.fullmatch(f"[{access.ALPHABET}]{{4}}-[{access.ALPHABET}]{{4}}", told.pop("nonce"))
    assert told == {
        "serial": SERIAL,
        "counter": 1,
        "command": RESTORE,
        "expires_s": 900,
        "alg": "hmac-sha256-40",
    }


@pytest.mark.parametrize(
    "typed",
    [
        str,
        str.lower,
        lambda code: code.replace("-", ""),
        lambda code: " " + " ".join(code) + "\t",
        lambda code: code.replace("0", "O").replace("1", "I"),
        lambda code: code.replace("0", "o").replace("1", "l"),
    ],
)
def test_a_code_is_taken_as_people_type_it(typed: Any) -> None:
    for _ in range(20):  # among twenty codes there are zeros and ones
        terminal = Terminal()
        told = terminal.access.challenge(RESTORE)
        assert terminal.access.answer(typed(desk(told))) == RESTORE


@pytest.mark.parametrize("typed", [str, str.upper, lambda mac: f"{mac[:32]} {mac[32:]}"])
def test_a_tool_may_give_the_whole_mac(typed: Any) -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    assert terminal.access.answer(typed(desk_mac(told).hex())) == RESTORE


def test_a_whole_mac_is_compared_to_its_last_digit() -> None:
    terminal = Terminal()
    mac = desk_mac(terminal.access.challenge(RESTORE)).hex()
    wrong = mac[:-1] + ("0" if mac[-1] != "0" else "1")
    assert refusal(terminal.access.answer, wrong).kind == "CODE_WRONG"


def test_the_right_is_for_one_command_once() -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    assert not terminal.access.spend(RESTORE)
    assert terminal.access.answer(desk(told)) == RESTORE
    assert not terminal.access.spend("prune")
    assert not terminal.access.spend(RESTORE.replace("37", "38"))
    assert terminal.access.spend(RESTORE)
    assert not terminal.access.spend(RESTORE)
    assert refusal(terminal.access.answer, desk(told)).kind == "NO_SUCH"


def test_a_code_repeated_after_a_lost_answer_gives_no_second_right() -> None:
    terminal = Terminal()
    code = desk(terminal.access.challenge(RESTORE))
    assert [terminal.access.answer(code) for _ in range(3)] == [RESTORE] * 3
    assert terminal.access.spend(RESTORE)
    assert not terminal.access.spend(RESTORE)


def test_a_challenge_repeated_after_a_lost_answer_is_the_same_and_writes_nothing() -> None:
    terminal = Terminal()
    first = terminal.access.challenge(RESTORE)
    terminal.wait(60)
    assert terminal.access.challenge(RESTORE) == dict(first, expires_s=840)
    assert terminal.kept.writes == 1


def test_a_newer_challenge_ends_the_older() -> None:
    terminal = Terminal()
    old = desk(terminal.access.challenge("prune"))
    new = terminal.access.challenge(RESTORE)
    assert new["counter"] == 2
    assert refusal(terminal.access.answer, old).kind == "CODE_WRONG"
    assert terminal.access.answer(desk(new)) == RESTORE


@pytest.mark.parametrize(
    "change", [("serial", "0012346"), ("counter", 2), ("nonce", "0000-0000"), ("command", "prune")]
)
def test_a_code_for_anything_else_is_wrong(change: tuple[str, Any]) -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    assert refusal(terminal.access.answer, desk({**told, change[0]: change[1]})).kind == (
        "CODE_WRONG"
    )


def test_a_code_of_another_terminal_of_the_fleet_is_wrong() -> None:
    terminal = Terminal(key=device_key(KEY, SERIAL))
    told = terminal.access.challenge(RESTORE)
    for wrong in (KEY, device_key(KEY, "0012346")):
        assert refusal(terminal.access.answer, desk(told, wrong)).kind == "CODE_WRONG"
    assert terminal.access.answer(desk(told, device_key(KEY, SERIAL))) == RESTORE


def test_code_and_right_end_with_the_challenge() -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    terminal.wait(900)
    error = refusal(terminal.access.answer, desk(told))
    assert (error.kind, terminal.kept.values["fails"]) == ("NO_SUCH", 0)
    told = terminal.access.challenge(RESTORE)
    terminal.wait(899.999)
    assert terminal.access.answer(desk(told)) == RESTORE
    terminal.wait(0.001)
    assert not terminal.access.spend(RESTORE)


def test_neither_challenge_nor_right_outlives_a_restart() -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    terminal.reboot()
    assert refusal(terminal.access.answer, desk(told)).kind == "NO_SUCH"
    assert terminal.access.challenge(RESTORE)["counter"] == 2
    terminal.reboot()
    terminal.access.answer(desk(terminal.access.challenge(RESTORE)))
    terminal.reboot()
    assert not terminal.access.spend(RESTORE)


@pytest.mark.parametrize(
    "code",
    [
        *("", " ", "D49P", "D49P-C2W2X", "D49P-C2WU", "D49P_C2W2", "D49P-C2W\0"),
        *("f" * 63, "f" * 65, "g" * 64, "ß" * 4, "x" * 5000, chr(0xFF14) * 8),
    ],
)
def test_what_cannot_be_a_code_is_no_try(code: str) -> None:
    terminal = Terminal()
    terminal.access.challenge(RESTORE)
    for _ in range(5):
        error = refusal(terminal.access.answer, code)
        assert (error.kind, error.data["param"]) == ("PARAMS", "code")
    assert terminal.kept.values["fails"] == 0


@pytest.mark.parametrize(
    "command", ["", " prune", "prune ", "a  b", "a\tb", "a\0b", "é", "x" * 201]
)
def test_a_command_that_cannot_be_read_out_has_no_challenge(command: str) -> None:
    terminal = Terminal()
    assert refusal(terminal.access.challenge, command).kind == "PARAMS"
    assert terminal.kept.writes == 0


@pytest.mark.parametrize(
    ("key", "serial", "need"),
    [(None, SERIAL, "key"), (KEY, None, "serial"), (None, None, "serial")],
)
def test_without_key_or_serial_nobody_becomes_admin(
    key: bytes | None, serial: str | None, need: str
) -> None:
    terminal = Terminal(key, serial)
    for call, word in ((terminal.access.challenge, "prune"), (terminal.access.answer, "D49P-C2W2")):
        error = refusal(call, word)
        assert (error.kind, error.data["need"]) == ("NOT_ALLOWED", need)
    assert not terminal.access.spend("prune")
    assert terminal.kept.writes == 0


# Tries and locks


def test_three_wrong_codes_lock_for_ten_minutes() -> None:
    terminal = Terminal()
    code = desk(terminal.access.challenge(RESTORE))
    assert [refusal(terminal.access.answer, other_than(code)).data["left"] for _ in "12"] == [2, 1]
    error = refusal(terminal.access.answer, other_than(code))
    assert (error.kind, error.data["retry_s"]) == ("LOCKED", 600)
    terminal.wait(599.5)
    for call, word in ((terminal.access.answer, code), (terminal.access.challenge, RESTORE)):
        error = refusal(call, word)
        assert (error.kind, error.data["retry_s"]) == ("LOCKED", 1)
    terminal.wait(0.5)
    assert refusal(terminal.access.answer, code).kind == "NO_SUCH"
    told = terminal.access.challenge(RESTORE)
    assert terminal.access.answer(desk(told)) == RESTORE


def test_a_newer_challenge_gives_no_further_tries() -> None:
    terminal = Terminal()
    for kind in ("CODE_WRONG", "CODE_WRONG", "LOCKED"):
        told = terminal.access.challenge(f"restore {kind} {terminal.kept.writes}")
        assert refusal(terminal.access.answer, other_than(desk(told))).kind == kind


def test_a_restart_gives_no_further_tries() -> None:
    terminal = Terminal()
    for kind in ("CODE_WRONG", "CODE_WRONG", "LOCKED"):
        terminal.reboot()
        told = terminal.access.challenge(RESTORE)
        assert refusal(terminal.access.answer, other_than(desk(told))).kind == kind


def test_a_lock_begins_anew_with_a_restart() -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    for _ in range(3):
        refusal(terminal.access.answer, other_than(desk(told)))
    terminal.wait(500)
    terminal.reboot()
    terminal.wait(200)
    assert refusal(terminal.access.challenge, RESTORE).data["retry_s"] == 400
    terminal.wait(400)
    assert terminal.access.challenge(RESTORE)["counter"] == 2


def test_a_right_code_gives_all_three_tries_back() -> None:
    terminal = Terminal()
    for _ in range(4):
        told = terminal.access.challenge(RESTORE)
        for left in (2, 1):
            error = refusal(terminal.access.answer, other_than(desk(told)))
            assert error.data["left"] == left
        assert terminal.access.answer(desk(told)) == RESTORE
        assert terminal.access.spend(RESTORE)


def test_challenges_wear_the_flash_only_so_fast() -> None:
    terminal = Terminal()
    for number in range(8):
        terminal.access.challenge(f"restore {number}")
    error = refusal(terminal.access.challenge, "restore 8")
    assert (error.kind, error.data["retry_s"], terminal.kept.writes) == ("LOCKED", 10, 8)
    terminal.wait(9)
    assert refusal(terminal.access.challenge, "restore 8").data["retry_s"] == 1
    terminal.wait(1)
    assert terminal.access.challenge("restore 8")["counter"] == 9
    assert refusal(terminal.access.challenge, "restore 9").kind == "LOCKED"
    terminal.wait(100_000)
    for number in range(8):
        terminal.access.challenge(f"prune {number}")
    assert refusal(terminal.access.challenge, "prune 8").kind == "LOCKED"


# Power cuts


# Each write of a visit, cut just before and just after it is durable.
CUTS = [(write, lands) for write in range(1, 6) for lands in (False, True)]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_cut_at_any_write_of_a_wrong_visit_buys_no_try(cut: tuple[int, bool]) -> None:
    terminal = Terminal()
    terminal.kept.cut_at = cut
    told_wrong = 0
    for _ in range(9):
        try:
            told = terminal.access.challenge(RESTORE)
            terminal.access.answer(other_than(desk(told)))
        except Cut:
            terminal.kept.cut_at = None
            terminal.reboot()
        except RemoteError as error:
            told_wrong += error.kind == "CODE_WRONG"
    # The third outcome is told as LOCKED; what was cut was never told and may be tried again only
    # where its count did not reach the flash.
    assert told_wrong <= 2
    assert terminal.kept.values["locked"] == 1


@pytest.mark.parametrize("cut", [(1, False), (1, True), (2, False), (2, True), (3, False)], ids=str)
def test_a_cut_during_a_right_visit_gives_no_right_and_the_next_visit_works(
    cut: tuple[int, bool],
) -> None:
    terminal = Terminal()
    terminal.kept.cut_at = cut
    told: dict[str, Any] = {}
    with pytest.raises(Cut):
        terminal.access.answer(desk(told := terminal.access.challenge(RESTORE)))
    assert not terminal.access.spend(RESTORE)
    terminal.reboot()
    assert not terminal.access.spend(RESTORE)
    if told:
        assert refusal(terminal.access.answer, desk(told)).kind == "NO_SUCH"
    fresh = terminal.access.challenge(RESTORE)
    assert fresh["counter"] > told.get("counter", 0)
    assert terminal.access.answer(desk(fresh)) == RESTORE


def test_a_store_that_refuses_lets_nothing_be_tried() -> None:
    terminal = Terminal()
    told = terminal.access.challenge(RESTORE)
    for code in (desk(told), other_than(desk(told))):
        terminal.kept.cut_at = (terminal.kept.writes + 1, False)
        with pytest.raises(Cut):
            terminal.access.answer(code)
    terminal.kept.cut_at = None
    assert terminal.access.answer(desk(told)) == RESTORE


class Visits(RuleBasedStateMachine):
    """Any order of calls, waits and cuts: no more than three outcomes are told without a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = Terminal()
        self.told: dict[str, Any] | None = None
        self.wrong = 0
        self.locked_s: int | None = None  # how long the terminal was up since the third wrong try
        self.rights: set[str] = set()
        self.counters: list[int] = []

    def call(self, call: Any, word: str) -> Any:
        try:
            found = call(word)
        except RemoteError as error:
            found = error
        if getattr(found, "kind", "") != "LOCKED" and self.locked_s is not None:
            assert self.locked_s >= 600
            self.locked_s, self.wrong = None, 0
        return found

    @rule(command=st.sampled_from(["prune", "commit", RESTORE]))
    def ask(self, command: str) -> None:
        found = self.call(self.terminal.access.challenge, command)
        if isinstance(found, dict):
            assert found["command"] == command
            self.counters.append(found["counter"])
            self.told = found

    @precondition(lambda self: self.told is not None)
    @rule()
    def guess(self) -> None:
        assert self.told is not None
        error = self.call(self.terminal.access.answer, other_than(desk(self.told)))
        assert isinstance(error, RemoteError)
        if error.kind == "CODE_WRONG":
            self.wrong += 1
        elif error.kind == "LOCKED" and self.locked_s is None:
            assert self.wrong == 2
            self.locked_s = 0

    @precondition(lambda self: self.told is not None)
    @rule()
    def answer(self) -> None:
        assert self.told is not None
        found = self.call(self.terminal.access.answer, desk(self.told))
        if isinstance(found, str):
            assert found == self.told["command"]
            self.rights = {found}
            self.wrong = 0

    @rule(command=st.sampled_from(["prune", "commit", RESTORE]))
    def spend(self, command: str) -> None:
        if self.terminal.access.spend(command):
            assert command in self.rights
            self.rights.remove(command)

    @rule()
    def cut(self) -> None:
        self.terminal.reboot()
        self.rights, self.told = set(), None
        if self.locked_s is not None:
            self.locked_s = 0

    @rule(seconds=st.sampled_from([1, 11, 300, 599, 600, 901]))
    def wait(self, seconds: int) -> None:
        self.terminal.wait(seconds)
        if self.locked_s is not None:
            self.locked_s += seconds

    @invariant()
    def no_more_than_two_tries_are_told_wrong_before_a_lock(self) -> None:
        assert self.wrong <= 2

    @invariant()
    def counters_only_rise(self) -> None:
        assert self.counters == sorted(self.counters)


Visits.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestVisits = Visits.TestCase
