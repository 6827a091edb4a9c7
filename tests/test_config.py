"""The configuration file: where everything lies, and every way the file can be wrong.

Real files under a temporary root. Marks such as DP-6 are those of docs/spec/device-profile.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.edges.config import FILE_BYTES_MAX, Config, load_config, profile_names, profile_report
from agent.ground.errors import ConfigError

CHECKOUT = Path(__file__).parent.parent
USUAL = "etc/posagent/config.json"
FORM = {"format": 1, "id": "bench", "title": "For tests", "settings": {}}


class Terminal:
    """A terminal's root folder with a configuration to fill."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / USUAL
        self.path.parent.mkdir(parents=True)

    def config(self, document: object) -> Terminal:
        return self.raw(json.dumps(document).encode())

    def raw(self, data: bytes) -> Terminal:
        self.path.write_bytes(data)
        return self

    def profile(self, document: object, name: str = "bench") -> Terminal:
        """Put one profile into the root and name it in a configuration."""
        folder = self.root / "profiles"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(document))
        return self.config({"profile": name, "profiles_dir": "/profiles"})

    def load(self) -> Config:
        return load_config(str(self.root), None)

    def refusal(self, path: Path | None = None) -> str:
        """The sentence of the refusal; it names the file (DP-7)."""
        with pytest.raises(ConfigError) as caught:
            self.load()
        assert (caught.value.code, caught.value.exit_code) == ("CONFIG", 78)
        assert str(path or self.path) in str(caught.value)
        json.dumps(caught.value.as_json())
        return str(caught.value)


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "terminal")


# What is accepted


def test_the_smallest_configuration_puts_everything_in_its_usual_place(terminal: Terminal) -> None:
    config = terminal.config({"profile": "linux-nand-128"}).load()
    root = str(terminal.root)
    assert config.root == root
    assert config.path == f"{root}/{USUAL}"
    assert config.pos_db == f"{root}/data/pos.db"
    assert config.state_dir == f"{root}/data/posagent"
    assert config.backups_dir == f"{root}/data/posagent/backups"
    assert config.run_dir == f"{root}/run/posagent"
    assert config.migrations_dir == str(CHECKOUT / "migrations")
    assert config.profiles_dir == str(CHECKOUT / "device_profiles")
    assert (config.device_id, config.library_dir) == (None, None)
    assert (config.profile.id, config.profile.ram_budget_bytes) == ("linux-nand-128", 33554432)
    assert config.overrides == {}


def test_the_root_goes_in_front_of_every_configured_path_and_of_the_devices_DP_6(
    terminal: Terminal,
) -> None:
    terminal.profile(FORM)
    config = terminal.config(
        {
            "profile": "bench",
            "device_id": "T-1",
            "pos_db": "/flash/a.db",
            "state_dir": "/flash/s/",
            "run_dir": "//r//x",
            "migrations_dir": "/m",
            "profiles_dir": "/profiles",
            "library_dir": "/opt/lib",
            "watchdog_device": "/dev/watchdog0",
            "serial_device": "/dev/ttyS1",
        }
    ).load()
    root = str(terminal.root)
    assert config.pos_db == f"{root}/flash/a.db"
    assert config.state_dir == f"{root}/flash/s"
    assert config.backups_dir == f"{root}/flash/s/backups"
    assert config.run_dir == f"{root}/r/x"
    assert config.migrations_dir == f"{root}/m"
    assert config.profiles_dir == f"{root}/profiles"
    assert config.library_dir == f"{root}/opt/lib"
    assert config.watchdog_device == f"{root}/dev/watchdog0"
    assert config.serial_device == f"{root}/dev/ttyS1"
    assert config.profile.serial_device == "/dev/ttyS1"
    assert config.device_id == "T-1"


@pytest.mark.parametrize("root", ["", "/"])
def test_on_the_terminal_itself_no_root_goes_in_front(terminal: Terminal, root: str) -> None:
    terminal.config({"profile": "generic", "serial_device": "/dev/ttyS1"})
    config = load_config(root, str(terminal.path))
    assert (config.root, config.pos_db, config.serial_device) == ("/", "/data/pos.db", "/dev/ttyS1")
    assert config.path == str(terminal.path)


def test_a_relative_root_is_made_absolute_at_once(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.config({"profile": "generic"})
    monkeypatch.chdir(terminal.root.parent)
    assert load_config("terminal", None).pos_db == f"{terminal.root}/data/pos.db"


def test_a_setting_in_the_configuration_overrides_the_profiles(terminal: Terminal) -> None:
    config = terminal.config({"profile": "linux-nand-128", "deadline_ms": 20_000}).load()
    assert config.profile.deadline_ms == 20_000
    assert config.overrides == {"deadline_ms": 20_000}
    report = profile_report(config)
    assert report["id"] == "linux-nand-128"
    assert report["settings"]["deadline_ms"]["basis"] == "override"
    assert report["settings"]["ram_budget_bytes"]["basis"] == "estimate"


def test_a_configuration_may_be_a_symbolic_link(terminal: Terminal) -> None:
    real = terminal.root / "real.json"
    real.write_text('{"profile": "generic"}')
    terminal.path.symlink_to(real)
    assert terminal.load().profile.id == "generic"


def test_the_schema_is_not_among_the_profiles() -> None:
    assert "generic" in profile_names(str(CHECKOUT / "device_profiles"))
    assert "schema" not in profile_names(str(CHECKOUT / "device_profiles"))


# The file itself


def test_a_missing_configuration_is_named_with_an_example_to_write(terminal: Terminal) -> None:
    said = terminal.refusal()
    assert "is missing" in said
    assert '{"profile": "generic"}' in said


NOT_JSON = [
    b"",
    b"   \n",
    b"{",
    b'{"profile": generic}',
    b"{'profile': 'generic'}",
    b'{"profile": "generic"} trailing',
    b'{"profile": "generic",}',
    b'\xef\xbb\xbf{"profile": "generic"}',
    b'{"profile": "gen\xff"}',
    b'{"profile": "generic", "deadline_ms": NaN}',
    b'{"profile": "generic", "profile": "linux-nand-64"}',
    b"\0" * 100,
    b"SQLite format 3\0",
    b"[" * 5000,
]


@pytest.mark.parametrize("data", NOT_JSON, ids=lambda data: repr(data[:40]))
def test_what_is_not_one_json_value_is_refused_DP_3(terminal: Terminal, data: bytes) -> None:
    assert "correct it" in terminal.raw(data).refusal()


@pytest.mark.parametrize("value", [[], "generic", 5, None, True], ids=repr)
def test_what_is_not_an_object_is_refused(terminal: Terminal, value: object) -> None:
    assert "JSON object" in terminal.config(value).refusal()


def test_a_file_beyond_the_bound_is_refused_and_one_at_it_is_read(terminal: Terminal) -> None:
    text = b'{"profile": "generic"}'
    terminal.raw(text + b" " * (FILE_BYTES_MAX - len(text))).load()
    assert (
        f"{FILE_BYTES_MAX} bytes"
        in terminal.raw(text + b" " * (FILE_BYTES_MAX + 1 - len(text))).refusal()
    )


def test_a_pipe_or_a_folder_is_refused_without_waiting_DP_8(terminal: Terminal) -> None:
    os.mkfifo(terminal.path)
    assert "not a regular file" in terminal.refusal()
    terminal.path.unlink()
    terminal.path.mkdir()
    assert "not a regular file" in terminal.refusal()


def test_a_file_that_the_system_will_not_open_is_refused_with_its_words(terminal: Terminal) -> None:
    # A link to itself fails for every user; a mode of 000 would not stop root.
    terminal.path.symlink_to(terminal.path)
    assert "Too many levels of symbolic links" in terminal.refusal()


@pytest.mark.parametrize("path", ["/a\0b", "/a\ud800b"], ids=ascii)
def test_a_config_path_that_no_system_knows_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="not a possible path"):
        load_config("/", path)


# What it says


def test_an_unknown_key_is_refused_with_the_nearest_of_all_keys_DP_2(terminal: Terminal) -> None:
    assert "'pos_db'" in terminal.config({"profile": "generic", "posdb": "/x"}).refusal()
    assert "'deadline_ms'" in terminal.config({"profile": "generic", "deadline": 5}).refusal()
    assert "'profile'" in terminal.config({"profil": "generic"}).refusal()
    assert len(terminal.config({"\ud800" * 5000: 1}).refusal()) < 800


def test_an_unknown_profile_is_refused_with_the_nearest_and_the_list_DP_2(
    terminal: Terminal,
) -> None:
    said = terminal.config({"profile": "linux-nand-129"}).refusal()
    assert "nearest known one is 'linux-nand-128'" in said
    assert "generic, linux-cm4-emmc, linux-iotbox-sd" in said


@pytest.mark.parametrize("name", ["", "schema", "../generic", "/etc/passwd", "a\0b", "x" * 5000])
def test_a_profile_name_never_leads_out_of_the_folder(terminal: Terminal, name: str) -> None:
    said = terminal.config({"profile": name}).refusal()
    assert "unknown profile" in said
    assert len(said) < 600


@pytest.mark.parametrize("document", [{}, {"profile": None}, {"profile": 5}, {"profile": []}])
def test_a_configuration_must_name_a_profile(
    terminal: Terminal, document: dict[str, object]
) -> None:
    assert "one of: generic, " in terminal.config(document).refusal()


def test_an_empty_or_missing_profiles_folder_is_named(terminal: Terminal) -> None:
    terminal.config({"profile": "generic", "profiles_dir": "/none"})
    assert "no profiles are found" in terminal.refusal(terminal.root / "none")


WRONG_VALUES: list[tuple[str, Any, str]] = [
    ("pos_db", "data/pos.db", "must begin with /"),
    ("pos_db", "", "must begin with /"),
    ("pos_db", 5, "must be a text"),
    ("pos_db", None, "must be a text"),
    ("state_dir", "/a/../../etc", "'..'"),
    ("backups_dir", "/a\0b", "cannot be printed"),
    ("library_dir", "/" + "x" * 255, "255 characters"),
    ("migrations_dir", ["/m"], "must be a text"),
    ("profiles_dir", {}, "must be a text"),
    ("device_id", "", "1 to 64 printable"),
    ("device_id", 12, "1 to 64 printable"),
    ("device_id", None, "1 to 64 printable"),
    ("device_id", "x" * 65, "1 to 64 printable"),
    ("device_id", "T\n1", "1 to 64 printable"),
    ("deadline_ms", "30000", "from 100 to 600000 ms"),
    ("deadline_ms", 30000.0, "from 100 to 600000 ms"),
    ("deadline_ms", 99, "from 100 to 600000 ms"),
    ("backup_count", 0, "from 1 to 99 files"),
    ("unproven_filesystem", 1, "true or false"),
    ("unsettled_guard", "ignore", "one of preserve, refuse"),
    ("serial_baud", 1234, "one of 9600, "),
    ("watchdog_timeout_s", 1, "at most 666 ms"),
]


@pytest.mark.parametrize("key", ["run_dir", "device_id"])
def test_half_a_surrogate_pair_is_refused_wherever_it_stands_DP_4(
    terminal: Terminal, key: str
) -> None:
    sentence = terminal.config({"profile": "generic", key: "/\ud800"}).refusal()
    assert "half a surrogate pair" in sentence
    assert "config.json" in sentence


@pytest.mark.parametrize(("key", "value", "said"), WRONG_VALUES, ids=lambda v: ascii(v)[:40])
def test_a_wrong_value_is_refused_with_its_key_and_what_it_must_be_DP_4(
    terminal: Terminal, key: str, value: object, said: str
) -> None:
    document = {"profile": "generic", "watchdog_device": "/dev/watchdog", key: value}
    if key == "deadline_ms":
        del document["watchdog_device"]
    sentence = terminal.config(document).refusal()
    assert said in sentence
    assert key in sentence or key == "watchdog_timeout_s"
    assert len(sentence) < 400


def test_a_number_written_as_an_exponent_is_shown_as_it_was_written(terminal: Terminal) -> None:
    said = terminal.raw(b'{"profile": "generic", "deadline_ms": 3e4}').refusal()
    assert "'deadline_ms' is 3e4;" in said


# The profile's file

BROKEN_PROFILES: list[tuple[object, str]] = [
    ([], "JSON object"),
    ({**FORM, "format": 2}, "format 1 only"),
    ({**FORM, "id": "other"}, "must be the file's name"),
    ({**FORM, "colour": 1}, "unknown key 'colour'"),
    ({**FORM, "settings": {"backup_levle": {}}}, "'backup_level'"),
    (
        {
            **FORM,
            "settings": {"backup_level": {"value": 10, "basis": "estimate", "source": "x"}},
        },
        "from 1 to 9",
    ),
]


@pytest.mark.parametrize(("document", "said"), BROKEN_PROFILES, ids=lambda v: str(v)[:40])
def test_a_broken_profile_is_refused_with_the_profiles_path(
    terminal: Terminal, document: object, said: str
) -> None:
    path = terminal.root / "profiles" / "bench.json"
    assert said in terminal.profile(document).refusal(path)


def test_a_profile_is_read_from_a_regular_file_only_DP_8(terminal: Terminal) -> None:
    terminal.profile(FORM)
    path = terminal.root / "profiles" / "bench.json"
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in terminal.refusal(path)


# What it costs


def test_reading_the_configuration_imports_nothing_heavy_and_opens_two_files(
    terminal: Terminal,
) -> None:
    terminal.config({"profile": "linux-nand-64"})
    script = f"""
import sys
sys.path.insert(0, {str(CHECKOUT)!r})
from agent.edges.config import load_config
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
sys.addaudithook(lambda event, args: opened.append(event) if event == "os.listdir" else None)
load_config({str(terminal.root)!r}, None)
print(*[name.rpartition("/")[2] for name in opened])
print(*sorted(sys.modules))
"""
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    opened, modules = answer.stdout.splitlines()
    assert opened.split() == ["config.json", "linux-nand-64.json"]
    heavy = {"typing", "re", "enum", "json", "pathlib", "dataclasses", "sqlite3", "collections"}
    assert heavy & set(modules.split()) == set()
