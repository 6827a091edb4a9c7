"""Every bound with its unit and its reason; profiles hold those that differ by device."""

from __future__ import annotations

# One read or write on flash. The backup's frames are the same size, so one buffer serves both.
CHUNK_BYTES = 65536

# A run that dies at the same place three times will die a fourth time: the old data stays in use.
ATTEMPTS_WITHOUT_PROGRESS_MAX = 3
# Power cuts count here only. Twenty boots that all lost power say something about the site.
ATTEMPTS_TOTAL_MAX = 20

# Bytes between two marks of progress: a second or so on the slowest flash, and few enough marks
# that telling them costs nothing beside the work.
BYTES_PER_MARK = 1 << 20

# A quick_check reads the whole file and gives no mark while it runs; its deadline grows by this.
QUICK_CHECK_BYTES_PER_S = 2_000_000

# Unsettled digests held in memory at once (32 bytes each): above it the records are walked again.
UNSETTLED_DIGESTS_MAX = 16384

# SQLite's pending byte, and the 512 bytes from it that hold every SQLite lock.
LOCK_OFFSET = 0x40000000
LOCK_BYTES = 512

# Diary rows kept. A terminal that upgrades monthly keeps years.
HISTORY_ROWS_MAX = 500

# A line of the worker's pipe; anything longer is a fault of the worker.
REPORT_BYTES_MAX = 65536

# The wall clock is believed from this day (2026-01-01) on, unless something newer is known.
CLOCK_FLOOR_MS = 1_767_225_600_000
# and up to five years past the newest time known: a clock beyond that is as broken as one at 1970.
CLOCK_AHEAD_MAX_MS = 5 * 365 * 86_400_000

# The end of the year 9999: a greater number in a record is no time in milliseconds.
TIME_MS_MAX = 253_402_300_799_999

# Retries of a lock or a look at other holders.
RETRY_INTERVAL_MS = 20

# Finished calls that a repeat still finds. One of them is in flight at a time.
OPS_KEPT_MAX = 64

# Who asked for what and what was refused: a month of visits.
AUDIT_ROWS_MAX = 500

# What a reading verb may take and say when it is asked over a line, how many at once (each is a
# process with SQLite in it), and how long an answer is kept for whoever fetches it piece by piece.
REPORT_DEADLINE_MS = 120_000
REPORT_TEXT_BYTES_MAX = 262_144
REPORTS_AT_ONCE_MAX = 2
REPORT_KEPT_MS = 60_000

# After a count that took a second, the next one comes no sooner than twenty seconds later.
RECOUNT_FACTOR = 20

# How long a line waits for a report before it is told to ask again: a machine wants its answer
# within half a second.
PATIENCE_MS = 400

# A backup that anybody on the service line may ask for wears the flash.
BACKUP_INTERVAL_MS = 60_000

# Kinds of refusals counted at once; what is refused beyond them is counted nowhere.
REFUSALS_KEPT_MAX = 64

# A call that comes again within this time is as a rule the same one, whose answer was lost.
REPEAT_MS = 3000
