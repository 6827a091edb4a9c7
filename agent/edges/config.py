"""Reads the configuration file and the one profile it names, and nothing else.

It lies on the boot path of a terminal that has nothing to do: no listing of folders, no import
beyond os and sys unless something is wrong. Every failure is a ConfigError with the file's path
and what to do. Nothing is written.
"""

from __future__ import annotations

import os

from agent.core.profile import SCHEMA_ID, explain, profile_of, settings_in
from agent.core.settings import NAMES, path_fault
from agent.core.terminal import Places
from agent.ground.codec import decode
from agent.ground.errors import ConfigError
from agent.ground.words import WORD_CHARS_MAX, nearest, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.core.profile import Profile

CONFIG_PATH = "/etc/posagent/config.json"
POS_DB = "/data/pos.db"
STATE_DIR = "/data/posagent"
RUN_DIR = "/run/posagent"

FILE_BYTES_MAX = 65_536  # a full profile is near 8 KiB; anything larger is some other file
DEVICE_ID_CHARS_MAX = 64
PROFILE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"

PATH_KEYS = (
    "pos_db",
    "state_dir",
    "backups_dir",
    "run_dir",
    "migrations_dir",
    "profiles_dir",
    "library_dir",
)
# Who is who on the Unix socket: numbers of users and groups.
ID_KEYS = ("socket_gid", "admin_uids", "tech_uids", "tech_gids")
ID_MAX = (1 << 32) - 2
IDS_MAX = 16
OWN_KEYS = ("profile", "device_id", *PATH_KEYS, *ID_KEYS)


class Config:
    """Where everything lies, with `root` in front already, and the `profile` in force.

    `watchdog_device` and `serial_device` are the profile's with `root` in front: a simulated
    terminal must never open the watchdog of the machine it is simulated on. `library_dir`,
    `device_id` and the two devices may be None. `overrides` are the profile settings that the
    configuration file names.
    """

    __slots__ = (
        "admin_uids",
        "backups_dir",
        "device_id",
        "library_dir",
        "migrations_dir",
        "overrides",
        "path",
        "pos_db",
        "profile",
        "profile_path",
        "profiles_dir",
        "root",
        "run_dir",
        "serial_device",
        "socket_gid",
        "state_dir",
        "tech_gids",
        "tech_uids",
        "watchdog_device",
    )

    root: str
    path: str
    profile: Profile
    profile_path: str
    overrides: dict[str, Any]
    pos_db: str
    state_dir: str
    backups_dir: str
    run_dir: str
    migrations_dir: str
    profiles_dir: str
    library_dir: str | None
    device_id: str | None
    watchdog_device: str | None
    serial_device: str | None
    socket_gid: int | None
    admin_uids: list[int]
    tech_uids: list[int]
    tech_gids: list[int]


def places_of(config: Config) -> Places:
    """The paths around pos.db; side files lie beside the file that its name resolves to."""
    pos = os.path.realpath(config.pos_db)
    return Places(pos, config.state_dir, config.backups_dir, config.run_dir)


def load_config(root: str, config_path: str | None) -> Config:
    """Return the configuration of the terminal under `root` ("/" or "" on the terminal itself).

    `config_path` is what a caller typed and is taken as it stands; None means the usual place
    under `root`. Every path in the file gets `root` in front. Raises ConfigError.
    """
    root = "" if root in ("", "/") else os.path.abspath(root)
    config = Config()
    config.root = root or "/"
    config.path = root + CONFIG_PATH if config_path is None else config_path
    document = read_object(
        config.path,
        'the configuration file; write one, for example {"profile": "generic"}',
    )
    _check_own_keys(config.path, document)
    _set_paths(config, root, document)
    _set_profile(config, root, document)
    return config


def read_object(path: str, what: str) -> dict[str, Any]:
    """Read one JSON object from a regular file of at most FILE_BYTES_MAX bytes.

    `what` names the file in the sentence that says it is missing. Raises ConfigError.
    """
    try:
        value = decode(_read_text(path, what))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON: {error}; correct it", path=path
        ) from error
    if type(value) is not dict:
        raise ConfigError(f"{path} must hold one JSON object, in braces", path=path)
    return value


def profile_names(profiles_dir: str) -> list[str]:
    """The ids of the profiles in a folder, sorted; none when the folder cannot be read."""
    try:
        names = os.listdir(profiles_dir)
    except OSError:
        return []
    ids = [name[:-5] for name in names if name.endswith(".json")]
    return sorted(id for id in ids if id != SCHEMA_ID)


def profile_report(config: Config) -> dict[str, Any]:
    """The profile in force with the basis and source of every figure, for people and for JSON."""
    document = read_object(config.profile_path, "the profile")
    return {
        "id": config.profile.id,
        "title": document["title"],
        "path": config.profile_path,
        "settings": explain(document, config.overrides),
    }


def _read_text(path: str, what: str) -> str:
    try:
        data = _read_bytes(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: it is {what}", path=path) from None
    except OSError as error:
        sentence = f"{path} cannot be read: {error.strerror}; correct its owner and mode"
        raise ConfigError(sentence, path=path) from error
    except ValueError as error:  # a NUL or a lone surrogate in a path that a caller typed
        raise ConfigError(f"{shown(path)} is not a possible path", path=shown(path)) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; correct it", path=path) from error


def _read_bytes(path: str) -> bytes:
    """O_NONBLOCK because opening a pipe that lies there by mistake would hold up the boot."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o100000:
            raise ConfigError(f"{path} is not a regular file; put a file there", path=path)
        data = b""
        while len(data) <= FILE_BYTES_MAX:
            piece = os.read(fd, FILE_BYTES_MAX + 1 - len(data))
            if not piece:
                return data
            data += piece
    finally:
        os.close(fd)
    raise ConfigError(
        f"{path} has more than {FILE_BYTES_MAX} bytes; it is not a file of ours", path=path
    )


def _check_own_keys(path: str, document: dict[str, Any]) -> None:
    for key in document:
        if key not in OWN_KEYS and key not in NAMES:
            near = nearest(key, OWN_KEYS + NAMES)
            raise ConfigError(
                f"{path}: unknown key {shown(key)}; the nearest known one is '{near}'",
                path=path,
                key=key[:WORD_CHARS_MAX],
                nearest=near,
            )
    for key in PATH_KEYS:
        if key in document:
            _check_path(path, key, document[key])
    for key in ID_KEYS:
        if key in document:
            _check_ids(path, key, document[key])
    device_id = document.get("device_id")
    if "device_id" in document and not _is_device_id(device_id):
        raise ConfigError(
            f"{path}: 'device_id' must be a text of 1 to {DEVICE_ID_CHARS_MAX} printable "
            "characters",
            path=path,
            key="device_id",
        )


def _check_path(path: str, key: str, value: object) -> None:
    fault = path_fault(value) if type(value) is str else "it must be a text"
    if fault:
        raise ConfigError(f"{path}: '{key}' cannot be used: {fault}", path=path, key=key)


def _check_ids(path: str, key: str, value: object) -> None:
    ids: Any = [value] if key == "socket_gid" else value
    fits = type(ids) is list and len(ids) <= IDS_MAX
    if not fits or not all(type(one) is int and 0 <= one <= ID_MAX for one in ids):
        what = "a number" if key == "socket_gid" else f"a list of at most {IDS_MAX} numbers"
        raise ConfigError(f"{path}: '{key}' must be {what} of a user or group", path=path, key=key)


def _is_device_id(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= DEVICE_ID_CHARS_MAX and value.isprintable()


def _set_paths(config: Config, root: str, document: dict[str, Any]) -> None:
    def placed(key: str, usual: str) -> str:
        return _under(root, document.get(key, usual))

    config.pos_db = placed("pos_db", POS_DB)
    config.state_dir = placed("state_dir", STATE_DIR)
    config.backups_dir = placed("backups_dir", document.get("state_dir", STATE_DIR) + "/backups")
    config.run_dir = placed("run_dir", RUN_DIR)
    config.library_dir = placed("library_dir", "") if "library_dir" in document else None
    config.migrations_dir = (
        placed("migrations_dir", "") if "migrations_dir" in document else _shipped("migrations")
    )
    config.profiles_dir = (
        placed("profiles_dir", "") if "profiles_dir" in document else _shipped("device_profiles")
    )
    config.device_id = document.get("device_id")
    config.socket_gid = document.get("socket_gid")
    config.admin_uids = document.get("admin_uids", [])
    config.tech_uids = document.get("tech_uids", [])
    config.tech_gids = document.get("tech_gids", [])


def _set_profile(config: Config, root: str, document: dict[str, Any]) -> None:
    name = document.get("profile")
    if type(name) is not str:
        known = ", ".join(profile_names(config.profiles_dir))
        raise ConfigError(
            f"{config.path} must name a 'profile', one of: {known}", path=config.path, key="profile"
        )
    config.profile_path = _profile_path(config, name)
    found = read_object(config.profile_path, "the profile")
    try:
        values = settings_in(found)
        if found["id"] != name:
            raise ConfigError(f"its 'id' is {shown(found['id'])}; it must be the file's name")
    except ConfigError as error:
        raise _with_path(config.profile_path, error) from error
    config.overrides = {key: value for key, value in document.items() if key in NAMES}
    try:
        config.profile = profile_of(name, values, config.overrides)
    except ConfigError as error:
        raise _with_path(config.path, error) from error
    config.watchdog_device = _device(root, config.profile.watchdog_device)
    config.serial_device = _device(root, config.profile.serial_device)


def _profile_path(config: Config, name: str) -> str:
    """The file of profile `name`; the folder is listed only when it is not there."""
    path = f"{config.profiles_dir}/{name}.json"
    plain = 0 < len(name) <= 64 and not name.strip(PROFILE_LETTERS) and name != SCHEMA_ID
    if plain and os.path.lexists(path):
        return path
    known = profile_names(config.profiles_dir)
    if not known:
        raise ConfigError(
            f"no profiles are found in {config.profiles_dir}; install them or set 'profiles_dir' "
            f"in {config.path}",
            path=config.profiles_dir,
        )
    near = nearest(name, known)
    raise ConfigError(
        f"{config.path}: unknown profile {shown(name)}; the nearest known one is '{near}' "
        f"(there are: {', '.join(known)})",
        path=config.path,
        key="profile",
        nearest=near,
    )


def _with_path(path: str, error: ConfigError) -> ConfigError:
    facts = dict(error.facts)
    facts["path"] = path
    return ConfigError(f"{path}: {error}", **facts)


def _under(root: str, path: str) -> str:
    return root + os.path.normpath("/" + path.lstrip("/"))


def _device(root: str, path: str | None) -> str | None:
    return None if path is None else _under(root, path)


def _shipped(folder: str) -> str:
    """What came with the agent: inside the package when installed, beside it in a checkout.

    These two belong to the software, not to the terminal, so `root` does not go in front.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = f"{package}/_data/{folder}"
    return installed if os.path.isdir(installed) else f"{os.path.dirname(package)}/{folder}"
