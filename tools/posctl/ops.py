"""The client's own names for calls that change something."""

from __future__ import annotations

import secrets


def new_op() -> str:
    """A key that no other call has. Show or keep it before the call is sent: with it the run is
    found again whatever happens in between."""
    return "ctl-" + secrets.token_hex(8)
