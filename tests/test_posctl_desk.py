"""The parts of `posctl` that need no terminal: service desk, inventory, and how things are shown.

The desk is held against the example of docs/spec/wire-protocol.md and against what the console and
`challenge` print, whatever a serial number and a command look like.
"""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.arguments import VERBS
from agent.ground.errors import ConfigError, UsageError
from agent.links.console_text import desk_lines
from posctl import live, ports, sheets
from posctl.client import Counts, Progress, WireEvent
from posctl.desk import Spoken, code_of, lacks_command, meaning, read_key, spoken_of
from posctl.faults import HostError, PortError
from posctl.inventory import Entry, entry_named, read_inventory
from posctl.show import Fact, Line, Out, Part, Row, Rows, clean, plain_lines
from posctl.visit import WORDS
from tests.test_docs import blocks_in
from tests.test_posctl_cli import ctl, real

FLEET_KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
DEVICE_KEY = "8c6d662235dfe0b1bbb00c20b3c6f71f739c23b749f5118b64be4f29e98c88ea"
COMMAND = "restore 000041-v2.posbak discard newer=37,changed=0,gone=0,settled=0"
EXAMPLE = f"SN 0012345  #7  K7QM-2XPD  {COMMAND}"
CODE = "G3MR-6GVM"


def key_file(folder: Path, text: str, mode: int = 0o600) -> str:
    """A file with a key, or what somebody takes for one."""
    path = folder / "some.key"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


# ---- The service desk


@pytest.mark.parametrize(
    ("option", "key"), [("--fleet-key", FLEET_KEY), ("--device-key", DEVICE_KEY)]
)
def test_the_specifications_example_gets_its_code_however_it_is_given(
    option: str, key: str, tmp_path: Path
) -> None:
    path = key_file(tmp_path, key + "\n")
    asked = {"serial": "0012345", "counter": 7, "nonce": "K7QM-2XPD", "command": COMMAND}
    for words, typed in (
        ([EXAMPLE], ""),
        (EXAMPLE.split(), ""),
        ([], EXAMPLE + "\n"),
        ([], f"  read to the desk:  {EXAMPLE}\n"),
        ([], f"  read to the desk:  SN 0012345  #7  K7QM-2XPD\n  for: {COMMAND}\n"),
        (["0012345", "#7", "k7qm2xpd", *COMMAND.split()], ""),
        ([], json.dumps({**asked, "expires_s": 900, "alg": "hmac-sha256-40"})),
        ([], json.dumps({"error": {"code": "NOT_ALLOWED", "facts": {"challenge": asked}}})),
    ):
        ran = ctl("code", option, path, "--json", *words, typed=typed)
        assert ran.code == 0, ran.err
        assert ran.json == {"serial": "0012345", "counter": 7, "command": COMMAND, "code": CODE}


def test_the_desk_sees_what_it_allows_and_what_that_loses(tmp_path: Path) -> None:
    ran = ctl("code", "--fleet-key", key_file(tmp_path, FLEET_KEY), EXAMPLE)
    assert f"allows    {COMMAND}" in ran.out
    assert "loses     37 unsettled sales made since are lost" in ran.out
    assert f"code      {CODE}" in ran.out


def test_a_key_from_standard_input_needs_the_words_as_words() -> None:
    ran = real("code", "--fleet-key", "-", "--json", EXAMPLE, typed=FLEET_KEY)
    assert ran.json["code"] == CODE
    assert ctl("code", "--fleet-key", "-").code == 64


def no_key_in(text: str, *keys: str) -> bool:
    return not any(key[at : at + 16] in text for key in keys for at in range(0, 64, 16))


def test_no_key_is_told_whatever_is_done_with_it(tmp_path: Path) -> None:
    good = key_file(tmp_path, FLEET_KEY)
    long = tmp_path / "long.key"
    long.write_text(FLEET_KEY * 9)
    long.chmod(0o600)
    for words in (
        ["--fleet-key", FLEET_KEY, EXAMPLE],
        ["--device-key", DEVICE_KEY[:40], EXAMPLE],
        ["--fleet-key", good, "--device-key", good, EXAMPLE],
        ["--fleet-key", str(long), EXAMPLE],
        ["--fleet-key", good, FLEET_KEY],
        ["--fleet-key", good, EXAMPLE],
        [EXAMPLE],
    ):
        for more in ([], ["--json"]):
            ran = ctl("code", *words, *more)
            assert no_key_in(ran.out + ran.err, FLEET_KEY, DEVICE_KEY), words


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (FLEET_KEY, 0o644, "is open to others (mode 0644)"),
        (FLEET_KEY, 0o620, "is open to others (mode 0620)"),
        (FLEET_KEY[:-1], 0o600, "must hold 64 hexadecimal digits"),
        ("00" * 32, 0o600, "one byte over and over"),
        ("", 0o600, "must hold 64 hexadecimal digits"),
    ],
)
def test_a_file_that_is_no_key_or_no_secret_is_refused(
    text: str, mode: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_key(key_file(tmp_path, text, mode), "fleet")


def test_a_missing_key_file_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no.key"), "a\0b", str(tmp_path)):
        with pytest.raises(ConfigError):
            read_key(path, "device")


@pytest.mark.parametrize(
    "text",
    ["", "SN", "SN 1 7 K7QM-2XPD restore 1", "SN 1 #7 K7QM restore 1", "SN 1 #7 K7QM-2XPD",
     "{}", '{"serial":1,"counter":1,"nonce":"a","command":"b"}', "{", "x" * 2000, "[" * 900],
)  # fmt: skip
def test_what_no_terminal_prints_is_not_guessed_at(text: str) -> None:
    with pytest.raises(UsageError):
        spoken_of(text)


printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
serials = printable.map(str.strip).filter(lambda text: text and "#" not in text and "{" not in text)
nonces = st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=8, max_size=8)
commands = st.sampled_from([COMMAND, "prune", "commit", "rollback 3 plan 9f3c21aa", "restore 41"])


@given(serials, st.integers(1, 10**9), nonces, commands)
def test_whatever_a_console_prints_is_understood_word_for_word(
    serial: str, counter: int, nonce: str, command: str
) -> None:
    if re.match(r"(?i)(sn\s|read to the desk:)", serial):
        return  # no serial number that anybody prints
    said = {"serial": serial, "counter": counter, "nonce": nonce, "command": command}
    *printed, _ = desk_lines(said)
    assert lacks_command(printed[0]) is (len(printed) == 2)
    heard = spoken_of(" ".join(printed))
    wanted = Spoken(serial, counter, f"{nonce[:4]}-{nonce[4:]}", command)
    assert heard == wanted
    key = bytes.fromhex(FLEET_KEY)
    code = code_of(heard, key, True)
    assert code == code_of(spoken_of(json.dumps(said)), key, True)
    assert code != code_of(wanted._replace(counter=counter + 1), key, True)
    assert code != code_of(wanted, key, False)


def test_a_command_that_is_not_as_a_terminal_writes_it_is_told_to_the_desk() -> None:
    assert "have it read out again" in meaning("restore  41 --discard newer=1")[0]
    assert "knows no such command" in meaning("format the flash")[0]
    assert meaning("restore 41 discard unknown")[1].startswith("what is lost is not known")


def test_a_nonce_with_letters_that_no_terminal_uses_is_no_challenge() -> None:
    with pytest.raises(UsageError, match="cannot be a challenge"):
        code_of(Spoken("1", 1, "UUUU-UUUU", "prune"), bytes(32), False)


# ---- The inventory


def inventory(folder: Path, text: str) -> str:
    path = folder / "terminals.ini"
    path.write_text(text)
    return str(path)


def test_an_inventory_names_ports_and_sockets_in_its_order(tmp_path: Path) -> None:
    path = inventory(
        tmp_path,
        "# the bench\n[till-2]\nport = /dev/ttyUSB1\nbaud = 9600\nserial = 0012346\n"
        "[kiosk]\nsocket = /run/posagent/agent.sock\n[%d]\nport=/dev/ttyUSB0\n",
    )
    assert read_inventory(path) == [
        Entry("till-2", "/dev/ttyUSB1@9600", "0012346"),
        Entry("kiosk", "socket:/run/posagent/agent.sock", ""),
        Entry("%d", "/dev/ttyUSB0@115200", ""),
    ]
    assert entry_named("kiosk", path).where == "socket:/run/posagent/agent.sock"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a]\n", "needs port or socket, one of them"),
        ("[a]\nport = x\nsocket = y\n", "needs port or socket, one of them"),
        ("[a]\nport = x\nbaut = 9600\n", "unknown key 'baut'; nearest: baud"),
        ("[a]\nport = x\nbaud = fast\n", "baud must be a number such as 115200, not 'fast'"),
        ("[a]\nsocket = x\nbaud = 9600\n", "a socket has no baud rate"),
        ("[a]\nport = x\n[a]\nport = y\n", "cannot be read"),
        ("port = x\n", "cannot be read"),
        ("[a\n", "cannot be read"),
    ],
)
def test_an_inventory_that_can_be_misread_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_inventory(inventory(tmp_path, text))


def test_no_inventory_at_the_usual_place_is_an_empty_one(tmp_path: Path) -> None:
    with patch.dict(os.environ, {"XDG_CONFIG_HOME": str(tmp_path)}):
        assert read_inventory(None) == []
        with pytest.raises(UsageError, match="names none"):
            entry_named("till", None)
    (tmp_path / "terminals.ini").write_bytes(b"[\xff]\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_inventory(str(tmp_path / "terminals.ini"))


# ---- How it is shown


@given(st.text(max_size=60))
def test_nothing_from_a_terminal_can_act_on_a_screen(text: str) -> None:
    parts: list[Part] = [
        Fact("label", text),
        Line(text),
        Rows(("a", "b "), [Row((text, text), text)]),
    ]
    for line in plain_lines(parts):
        assert line.isprintable(), line
    out = io.StringIO()
    with redirect_stdout(out):
        shown = Out()
        shown.plain = False
        shown.say(*parts)
    assert "\x1b" not in out.getvalue()
    assert all(line.isprintable() for line in out.getvalue().split("\n"))


def test_markup_in_a_terminals_words_is_text() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        shown = Out()
        shown.plain = False
        shown.say(Line("[bold]a[/bold] :smile:"))
    assert out.getvalue() == "[bold]a[/bold] :smile:\n"
    assert (clean(None), clean(True), clean({"a": 1})) == ("-", "yes", '{"a":1}')


@pytest.mark.parametrize(
    ("environment", "is_plain"),
    [
        ({"TERM": "xterm"}, False),
        ({"TERM": "dumb"}, True),
        ({}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, False),
    ],
)
def test_a_dumb_terminal_and_no_color_get_plain_lines(
    environment: dict[str, str], is_plain: bool
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    with patch.dict(os.environ, environment, clear=True), redirect_stdout(Screen()):
        assert Out().plain is is_plain
        assert Out(as_json=True).plain


def test_sentences_of_the_terminal_name_the_command_that_is_typed_here() -> None:
    for verb in VERBS:
        told = sheets.here(f"then start `posagent {verb}`")
        is_ours = verb not in ("boot", "run", "key", "check", "new", "console")
        assert told == f"then start `{'posctl' if is_ours else 'posagent'} {verb}`"


SAID: dict[str, dict[str, Any]] = {
    "history": {"history": [{"seq": 1, "at_ms": 0, "kind": "migrate"}]},
    "backups": {"backups": [{"name": "x", "size_bytes": 1, "damaged": "torn"}]},
    "log": {"log": [{"seq": 1, "at_ms": 0}]},
    "quarantine": {"quarantine": [{"store": "s", "key": "k", "reason": "why"}]},
    "plan": {"migrations": [], "refusals": [{"code": "BUSY", "message": "`posagent status`"}]},
    "verify": {"checked": []},
    "validate": {"stores": [{"store": "s"}]},
}


@pytest.mark.parametrize("verb", list(SAID))
def test_what_another_release_leaves_out_is_a_dash_and_no_fault(verb: str) -> None:
    lines = plain_lines(sheets.SHEETS[verb](SAID[verb]))
    assert lines
    assert not any("None" in line for line in lines)


def test_the_end_of_a_run_is_told_from_the_short_outcome_as_well() -> None:
    parts = sheets.ended({"verdict": "OK", "from_version": 2, "to_version": 3}, "migrate")
    assert plain_lines(parts) == ["OK", "from_version: 2", "to_version: 3"]
    error = {"code": "STORAGE_ERROR", "message": "no room; `posagent prune` makes some"}
    parts = sheets.ended({"verdict": "REFUSED", "error": error}, "migrate")
    assert plain_lines(parts)[0] == "REFUSED: STORAGE_ERROR: no room; `posctl prune` makes some"


# ---- A run as it goes


class Seen:
    """A view on a pipe, and what it said."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        with redirect_stdout(self.out):
            self.view = live.Lines(Out())

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    def mark(self, state: str, done: int = 0, total: int = 0, step: str = "") -> None:
        with redirect_stdout(self.out):
            self.view.mark(Progress(7, state, step, done, total, None), Counts())

    def told(self, what: str) -> None:
        with redirect_stdout(self.out):
            self.view.told(WireEvent(what, f"it is {what}"))


def test_a_pipe_gets_a_line_for_each_state_and_none_for_each_mark() -> None:
    seen = Seen()
    seen.mark("checking")
    for done in range(0, 100, 10):
        seen.mark("migrating", done, 100, "transactions")
    seen.mark("done")
    seen.mark("idle")
    assert [line.split("] ")[1].split()[0] for line in seen.lines()] == ["checking", "migrating"]


def test_what_happened_on_the_line_is_told_once_and_repeats_only_counted() -> None:
    seen = Seen()
    for what in ("again", "damaged", "lost", "waiting", "waiting", "reconnected", "again"):
        seen.told(what)
    assert [line[: line.find(";") if ";" in line else None] for line in seen.lines()] == [
        "it is lost",
        "it is reconnected",
    ]
    assert live.quality(Counts(requests=5, sends=5)) == ""
    assert live.quality(Counts(requests=5, sends=8)) == "3 sent again"


# ---- Ports


def test_a_port_of_the_inventory_is_listed_by_its_name_with_its_rate() -> None:
    entries = [Entry("till", "/dev/ttyNoSuch7@9600", ""), Entry("here", "socket:/run/a.sock", "")]
    listed = ports.known_ports(entries)
    assert ports.Port("/dev/ttyNoSuch7@9600", "") in listed
    assert not any("a.sock" in port.where for port in listed)
    (row,) = ports.look([ports.Port("/dev/ttyNoSuch7@9600", "")], entries, greet=False)["ports"]
    assert (row["name"], row["answer"]) == ("till", "listed")


def test_no_port_at_all_says_what_to_do() -> None:
    (line,) = plain_lines(ports.parts_of({"ports": []}))
    assert line == "there is no serial port; plug the cable in, and look again"


# ---- The documents


def test_the_ten_lines_are_ten_and_the_same_in_both_documents() -> None:
    root = Path(__file__).parent.parent
    programs = [
        [b.text for b in blocks_in((root / name).read_text("utf-8")) if b.language == "python"]
        for name in ("README.md", "docs/posctl.md")
    ]
    assert programs[0] == programs[1]
    (program,) = programs[0]
    assert len([line for line in program.splitlines() if line]) <= 10


def test_every_exit_code_of_the_line_is_in_the_document_with_its_word() -> None:
    text = (Path(__file__).parent.parent / "docs/posctl.md").read_text("utf-8")
    told = re.findall(r"^\| (2\d) \| `(\w+)` \|", text, re.MULTILINE)
    assert {word: int(code) for code, word in told} == {
        word: a_fault(kind).exit_code for kind, word in WORDS
    }


def a_fault(kind: type[HostError]) -> HostError:
    return PortError("other", "") if issubclass(kind, PortError) else kind("")
