"""Time, and how far it can be believed. Nothing about data is decided by it."""

from __future__ import annotations

import time

from agent.ground.limits import CLOCK_AHEAD_MAX_MS, CLOCK_FLOOR_MS


def wall_ms() -> int:
    """Milliseconds since 1970 as the machine believes; a dead battery says 1970."""
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    """Milliseconds that only go forward, also across suspend; without meaning after a reboot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def frozen_now(newest_known_ms: int, wall: int) -> tuple[int, bool]:
    """(the time to write into records, whether the clock is trusted).

    Never earlier than the newest time known from records and backups. A clock behind that, or
    implausibly far ahead of it, is not trusted and the newest known time is used instead.
    """
    floor = max(newest_known_ms, CLOCK_FLOOR_MS)
    if floor <= wall <= floor + CLOCK_AHEAD_MAX_MS:
        return wall, True
    return floor, False
