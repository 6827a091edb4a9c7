"""The service key on flash and the verb that sets it: durable, private, and never shown."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.edges import keyfile
from agent.ground.errors import ConfigError
from tests.terminals import COMMAND, Answer, Terminal, new_terminal

KEY = hashlib.sha256(b"a key").digest()
FLEET = hashlib.sha256(b"a fleet").digest()
SERIAL = "0012345"


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """A terminal with a serial number and without a key."""
    made = new_terminal(tmp_path / "root", records=5, unsettled=1)
    made.configure(device_id=SERIAL)
    return made


def path_of(terminal: Terminal) -> Path:
    return terminal.data / "posagent" / "service.key"


def given_file(terminal: Terminal, text: str) -> str:
    path = terminal.root.parent / "given"
    path.write_text(text)
    return str(path)


def fingerprint(key: bytes) -> str:
    return hmac.new(key, b"fingerprint", "sha256").hexdigest()[:8]


def silent_about_keys(answer: Answer) -> Answer:
    """No answer holds a key, in whatever letters, nor half of one."""
    for key in (KEY, FLEET, hmac.new(FLEET, SERIAL.encode(), "sha256").digest()):
        assert key.hex()[:16] not in (answer.out + answer.err).lower()
        assert key.hex()[32:48] not in (answer.out + answer.err).lower()
    return answer


def run(terminal: Terminal, *words: str, typed: str = "") -> Answer:
    return silent_about_keys(terminal.run("key", *words, input=typed))


# Setting, showing, removing


def test_without_a_key_it_says_so(terminal: Terminal) -> None:
    assert run(terminal, "--json").json == {
        "serial": SERIAL,
        "present": False,
        "fingerprint": None,
        "changed": False,
    }
    assert "none: nobody is admin on a line" in run(terminal).out


def test_a_key_from_a_file_is_kept_for_its_owner_alone(terminal: Terminal) -> None:
    answer = run(terminal, "--set", given_file(terminal, KEY.hex().upper() + "\r\n"), "--json")
    assert answer.json == {
        "serial": SERIAL,
        "present": True,
        "fingerprint": fingerprint(KEY),
        "changed": True,
    }
    path = path_of(terminal)
    assert path.read_text() == KEY.hex() + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyfile.read_key(str(path.parent)) == KEY
    assert sorted(path.parent.glob("*key*")) == [path]
    shown = run(terminal)
    assert f"present, fingerprint {fingerprint(KEY)}" in shown.out


def test_a_key_from_standard_input_replaces_the_old_one(terminal: Terminal) -> None:
    keyfile.write_key(str(path_of(terminal).parent), FLEET)
    assert run(terminal, "--set", "-", typed=KEY.hex()).code == 0
    assert path_of(terminal).read_text() == KEY.hex() + "\n"


def test_a_key_arrives_whole_from_a_writer_that_stops_in_between(terminal: Terminal) -> None:
    command = [*COMMAND, "--root", str(terminal.root), "key", "--set", "-", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for char in KEY.hex():
            process.stdin.write(char.encode())
            process.stdin.flush()
        process.stdin.close()
        assert json.loads(process.stdout.read())["fingerprint"] == fingerprint(KEY)


def test_a_fleet_key_is_used_once_and_not_kept(terminal: Terminal) -> None:
    own = hmac.new(FLEET, b"posagent device key\0" + SERIAL.encode(), "sha256").digest()
    answer = run(terminal, "--fleet", given_file(terminal, FLEET.hex()), "--json")
    assert answer.json["fingerprint"] == fingerprint(own)
    assert path_of(terminal).read_text() == own.hex() + "\n"
    kept = b"".join(path.read_bytes() for path in terminal.root.rglob("*") if path.is_file())
    assert FLEET.hex().encode() not in kept
    assert FLEET not in kept


def test_a_removed_key_is_gone_with_what_a_cut_left_of_another(terminal: Terminal) -> None:
    folder = path_of(terminal).parent
    keyfile.write_key(str(folder), KEY)
    (folder / "service.key.tmp").write_text(FLEET.hex()[:10])
    assert run(terminal, "--remove", "--json").json["changed"] is True
    assert list(folder.glob("*key*")) == []
    assert run(terminal, "--remove", "--json").json["changed"] is False


def test_a_key_that_cannot_be_read_can_be_removed_and_set_anew(terminal: Terminal) -> None:
    folder = path_of(terminal).parent
    folder.mkdir(parents=True, exist_ok=True)
    path_of(terminal).write_text("rubbish")
    assert run(terminal).code == 78
    assert run(terminal, "--set", "-", typed=KEY.hex()).code == 0
    path_of(terminal).write_text("rubbish")
    assert run(terminal, "--remove").code == 0


# Refusals


NO_KEYS = {
    "nothing": "",
    "an empty line": "\n",
    "a digit too few": KEY.hex()[:-1],
    "a digit too many": KEY.hex() + "0",
    "two keys": KEY.hex() + "\n" + KEY.hex(),
    "a prefix": "0x" + KEY.hex(),
    "two halves": KEY.hex()[:32] + " " + KEY.hex()[32:],
    "another letter": KEY.hex()[:-1] + "g",
    "other letters": "é" * 64,
    "zeros": "00" * 32,
    "one byte over and over": "ab" * 32,
    "a NUL": KEY.hex() + "\0",
    "a large file": "x" * 100_000,
}


@pytest.mark.parametrize("text", NO_KEYS.values(), ids=list(NO_KEYS))
def test_what_is_no_key_is_refused_and_the_old_one_stays(terminal: Terminal, text: str) -> None:
    keyfile.write_key(str(path_of(terminal).parent), FLEET)
    for word, typed in ((given_file(terminal, text), ""), ("-", text)):
        answer = run(terminal, "--set", word, "--json", typed=typed)
        assert (answer.code, answer.json["error"]["code"]) == (78, "CONFIG")
    assert path_of(terminal).read_text() == FLEET.hex() + "\n"


def test_a_key_typed_on_the_command_line_is_refused_and_not_repeated(terminal: Terminal) -> None:
    for words in (
        ("--set", KEY.hex()),
        ("--set=" + KEY.hex(),),
        ("--fleet", KEY.hex()[:-1]),
        ("--set", KEY.hex() + "0x"),
        (KEY.hex(),),
        ("--remove=" + KEY.hex(),),
        ("--set", "-", KEY.hex()),
    ):
        for answer in (run(terminal, *words), run(terminal, *words, "--json")):
            assert answer.code in (64, 78)
    assert not path_of(terminal).exists()


def test_two_wishes_at_once_are_refused(terminal: Terminal) -> None:
    answer = run(terminal, "--set", "-", "--remove", typed=KEY.hex())
    assert answer.code == 64
    assert not path_of(terminal).exists()


def test_without_a_serial_number_no_key_is_taken(tmp_path: Path) -> None:
    terminal = new_terminal(tmp_path / "root", records=5, unsettled=1)
    config = terminal.root / "etc/posagent/config.json"
    values = json.loads(config.read_text())
    values.pop("device_id", None)
    config.write_text(json.dumps(values))
    for option in ("--set", "--fleet"):
        answer = run(terminal, option, "-", "--json", typed=KEY.hex())
        assert (answer.code, answer.json["error"]["facts"]["key"]) == (78, "device_id")
    assert not path_of(terminal).exists()
    assert run(terminal, "--json").json["serial"] is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_key_that_others_can_read_or_replace_is_spent(tmp_path: Path, mode: int) -> None:
    keyfile.write_key(str(tmp_path), KEY)
    (tmp_path / "service.key").chmod(mode)
    with pytest.raises(ConfigError, match="set another one") as caught:
        keyfile.read_key(str(tmp_path))
    assert KEY.hex() not in str(caught.value)


def test_a_key_that_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    keyfile.write_key(str(tmp_path), KEY)
    found = list((tmp_path / "service.key").stat())
    found[stat.ST_UID] = os.geteuid() + 12345  # who is not root cannot give a file away
    with pytest.raises(ConfigError, match="another user"):
        keyfile.check_owner("it", os.stat_result(found))


def test_a_folder_or_pipe_in_the_keys_place_is_told_and_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "service.key", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        keyfile.read_key(str(tmp_path))
    assert keyfile.read_key(str(tmp_path / "nowhere")) is None


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["", "\n", "\r\n", " \n"]))
def test_every_key_is_read_as_it_was_written(key: bytes, end: str) -> None:
    if len(set(key)) > 1:
        assert keyfile.parse_key((key.hex() + end).encode(), "it") == key


# A cut


def test_order_on_flash_lets_a_cut_leave_the_old_key_or_the_new_one(
    terminal: Terminal, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    calls = "openat,write,fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(trace), *COMMAND]
    command += ["--root", str(terminal.root), "key", "--set", "-"]
    done = subprocess.run(command, input=KEY.hex(), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    order = [
        next(i for i, line in enumerate(lines) if all(word in line for word in words))
        for words in (
            ("O_EXCL", "service.key.tmp", "0600"),
            ("write(", "service.key.tmp"),
            ("fsync(", "service.key.tmp"),
            ("rename", "service.key.tmp"),
        )
    ]
    assert order == sorted(order)
    after = [line for line in lines[order[-1] :] if "fsync(" in line]
    assert str(path_of(terminal).parent) in after[0]
