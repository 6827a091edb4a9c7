"""The checks of `health` that ask the machine: space, file system, watchdog, locks, versions."""

from __future__ import annotations

import os
import sys

from agent.core.terminal import Places
from agent.edges import agentlock, database, flash
from agent.edges.filelock import locks_are_there
from agent.verbs import backup_bound, quota

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agent.edges.config import Config

    Said = tuple[str, str, Any]

OK, WARN, FAIL = "ok", "warn", "fail"
OLDEST_PYTHON = (3, 9)
FULL_PERCENT = 80  # of the largest pos.db that the profile can upgrade
# ext4 flushes its journal every 5 s. With more, a power cut takes more of what was not synced.
COMMIT_SECONDS_MAX = 30


def _space(config: Config, places: Places) -> Said:
    """Free space against what a run may need at its peak."""
    free = flash.free_bytes(quota.existing_folder(places.folder))
    if agentlock.run_is_on(places.lock) or not os.path.isfile(places.pos):
        return OK, f"{free} bytes free; not held against a need now", {"free_bytes": free}
    profile = config.profile
    bound = backup_bound.bound_bytes(places.pos, profile.backup_level, None, 0)
    need = quota.need_for(os.path.getsize(places.pos), bound, profile)
    there = Places(places.pos, places.state, quota.existing_folder(places.backups), "")
    lacking, free_there = quota.shortage(there, need)
    value = {"free_bytes": free, **need.as_json()}
    if lacking:
        return FAIL, f"a run may need {lacking} bytes and {free_there} are free", value
    return OK, f"a run may need {need.total} bytes and {free} are free", value


def _size(config: Config, places: Places) -> Said:
    """pos.db against the largest that this class of terminal can upgrade."""
    if agentlock.run_is_on(places.lock) or not os.path.isfile(places.pos):
        return OK, "not looked at", None
    size, most = os.path.getsize(places.pos), config.profile.pos_db_bytes_max
    percent = size * 100 // most
    value = {"size_bytes": size, "pos_db_bytes_max": most, "percent": percent}
    says = f"{size} bytes, {percent} % of what profile {config.profile.id} can upgrade"
    if size > most:
        return FAIL, says + "; settle and prune", value
    if percent >= FULL_PERCENT:
        return WARN, says + "; settle and prune before the next upgrade", value
    return OK, says, value


def _file_system(config: Config, places: Places) -> Said:
    """Its type, how it is mounted, and whether pos.db can be replaced there by a rename."""
    kind, point, mounted = flash.file_system_of(places.pos)
    options = mount_options(point)
    value = {"type": kind, "mount_point": point, "options": options}
    if mounted:
        return (
            FAIL,
            f"{places.pos} is a mount point and cannot be replaced; mount its folder",
            value,
        )
    if "ro" in options:
        return FAIL, f"{point} is mounted read-only", value
    if kind not in quota.PROVEN_FILE_SYSTEMS:
        level = WARN if config.profile.unproven_filesystem else FAIL
        return level, f"the switch is not proven on {kind}", value
    weak = weak_options(options)
    if weak:
        return WARN, f"{kind}, mounted with {', '.join(weak)}: a power cut can take more", value
    return OK, f"{kind}, mounted on {point}", value


def mount_options(point: str) -> list[str]:
    """How the file system on a mount point is mounted, from the kernel; the last mount counts."""
    options: list[str] = []
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            there = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            if there == point:
                options = fields[3].split(",")
    return options


def weak_options(options: list[str]) -> list[str]:
    """Those that weaken what an fsync or a journal promises."""
    weak = []
    for option in options:
        name, _, value = option.partition("=")
        late = name == "commit" and value.isdigit() and int(value) > COMMIT_SECONDS_MAX
        if late or option in ("data=writeback", "nobarrier", "barrier=0", "nobarriers"):
            weak.append(option)
    return weak


def _names(config: Config, places: Places) -> Said:
    """Hard links: a switch would leave the other names on the old data."""
    if agentlock.run_is_on(places.lock) or not os.path.isfile(places.pos):
        return OK, "not looked at", None
    links = os.stat(places.pos).st_nlink
    if os.path.lexists(places.prev) and os.path.samefile(places.pos, places.prev):
        links -= 1  # what a cut before the rename leaves; the next boot removes it
    if links > 1:
        return FAIL, f"{places.pos} has {links} names; remove the other hard links", links
    return OK, f"{places.pos} has one name", links


def _watchdog(config: Config, places: Places) -> Said:
    """Whether the profile's watchdog is there."""
    device = config.watchdog_device
    if device is None:
        return OK, "the profile names none", None
    if not os.path.exists(device):
        return WARN, f"{device} is not there; nothing restarts a terminal that hangs", device
    return OK, f"{device} is there", device


def _locks(config: Config, places: Places) -> Said:
    """Open-file-description locks, without which the application cannot be kept out."""
    there = locks_are_there(config.path)
    says = "open-file-description locks are there" if there else "this kernel has none"
    return (OK if there else FAIL), says, there


def _sqlite(config: Config, places: Places) -> Said:
    text = database.SQLITE_VERSION
    version = tuple(int(part) for part in text.split("."))
    if version < database.OLDEST_SQLITE:
        oldest = ".".join(map(str, database.OLDEST_SQLITE))
        return FAIL, f"SQLite {text}; the oldest supported is {oldest}", text
    return OK, f"SQLite {text}", text


def _python(config: Config, places: Places) -> Said:
    text = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return FAIL, f"Python {text}; the oldest supported is 3.9", text
    return OK, f"Python {text}", text


MACHINE_CHECKS = (
    ("space", _space),
    ("size", _size),
    ("file system", _file_system),
    ("names", _names),
    ("watchdog", _watchdog),
    ("locks", _locks),
    ("sqlite", _sqlite),
    ("python", _python),
)
