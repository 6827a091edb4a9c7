"""Every record of the four stores learns which schema it has and when it got it.

An updatedAt that the application had written before is kept for the way back. Records that are no
object (the bare string `device_id`, the queue, which is a list) have no place for fields and stay
as they are.
"""

from agent.core.migration import NOW, set_field

VERSION = 1
NAME = "say in every record which schema it has"
STEPS = [
    step
    for store in ("transactions", "balances", "metadata", "sync")
    for step in (set_field(store, "schemaVersion", 1), set_field(store, "updatedAt", NOW))
]
