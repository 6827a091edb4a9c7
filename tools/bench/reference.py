"""What the upgrade is held against: the same change as plain UPDATEs, without any safety.

Started as a program of its own: `python -I -S reference.py FILE MIGRATIONS DEVICE_ID`. One
transaction per migration; no backup, no check, no proof, and half of it gone after a power cut
between the two. The rows it cannot read as an object stay, as in the migrations.
"""

from __future__ import annotations

import sqlite3
import sys

NOW_MS = 1_790_000_000_000
_OBJECT = "json_type(value) = 'object'"
STORES = ("transactions", "balances", "metadata", "sync")

# One list per migration: (SQL, parameters by name).
MIGRATIONS = (
    tuple(
        f"UPDATE {store} SET value = json_set(value, '$.schemaVersion', 1, '$.updatedAt', :now) "
        f"WHERE {_OBJECT}"
        for store in STORES
    ),
    (
        "UPDATE transactions SET value = CASE WHEN json_type(value, '$.metadata') IS NULL "
        "THEN json_set(value, '$.metadata', json_object('migratedAt', :now, 'originalVersion', 1, "
        "'deviceId', :device), '$.schemaVersion', 2) "
        f"ELSE json_set(value, '$.schemaVersion', 2) END WHERE {_OBJECT}",
    ),
    (
        "UPDATE metadata SET key = 'user_preferences', value = json_set(value, '$.schemaVersion', "
        "3) WHERE key = 'nimipay_preferences' AND NOT EXISTS "
        "(SELECT 1 FROM metadata WHERE key = 'user_preferences')",
    ),
)


def update(path: str, migrations: int, device_id: str) -> None:
    """Do the first `migrations` migrations to the file."""
    db = sqlite3.connect(path, isolation_level=None)
    for number, statements in enumerate(MIGRATIONS[:migrations], 1):
        db.execute("BEGIN IMMEDIATE")
        for sql in statements:
            db.execute(sql, {"now": NOW_MS, "device": device_id})
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    db.close()


if __name__ == "__main__":
    update(sys.argv[1], int(sys.argv[2]), sys.argv[3])
