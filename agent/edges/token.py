"""The token of the loopback port: whoever can read the file may come in that way."""

from __future__ import annotations

import os

from agent.edges.flash import make_folder, publish_file, read_file

TOKEN_BYTES = 16
FILE_BYTES_MAX = 256


def make_token(state_dir: str) -> str:
    """The token of this terminal, made when there is none. A new one is as good as the old: whoever
    asks reads the file again."""
    path = state_dir + "/token"
    try:
        token = read_file(path, FILE_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        token = ""
    if len(token) != 2 * TOKEN_BYTES:
        token = os.urandom(TOKEN_BYTES).hex()
        make_folder(state_dir)
        publish_file(path, token.encode() + b"\n", 0o600)
    return token
