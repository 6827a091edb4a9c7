"""Sales that have no metadata get it: when they were migrated, from which version, on what device.

A sale that already has metadata keeps it untouched and reaches schemaVersion 2 all the same.
"""

from agent.core.migration import DEVICE_ID, FROM_VERSION, NOW, set_field

VERSION = 2
NAME = "give every sale its metadata"
STEPS = [
    set_field(
        "transactions",
        "metadata",
        {"migratedAt": NOW, "originalVersion": FROM_VERSION, "deviceId": DEVICE_ID},
        if_missing=True,
    ),
    set_field("transactions", "schemaVersion", 2),
]
