"""What a plan is called on a line: the precondition of a call that runs it."""

from __future__ import annotations

from agent.core.settings import NAMES
from agent.ground.codec import encode
from agent.ground.digest import hex_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.core.profile import Profile

NAME_CHARS = 8


def plan_name(from_version: int, to_version: int, digest: str, profile: Profile) -> str:
    """Eight hexadecimal digits that change when the schema, the target, a migration file or the
    profile does: whoever saw a plan starts that one and no other. `digest` is the files'."""
    settings = [getattr(profile, name) for name in NAMES]
    text = encode([from_version, to_version, digest, profile.id, settings])
    return hex_digest(text.encode())[:NAME_CHARS]
