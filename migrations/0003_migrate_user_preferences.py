"""The user's preferences move to the name that the new software reads.

A terminal without old preferences has nothing to do. One that already has the new record keeps it,
and the old one stays where it is.
"""

from agent.core.migration import move_record, set_field

VERSION = 3
NAME = "move the user's preferences"
STEPS = [
    move_record("metadata", "nimipay_preferences", to_key="user_preferences", if_exists="keep"),
    set_field("metadata", "schemaVersion", 3, key="user_preferences"),
]
