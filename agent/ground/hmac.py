"""HMAC-SHA256 (RFC 2104) on our own digest: the standard library's brings OpenSSL, 3.5 MB."""

from __future__ import annotations

from agent.ground.digest import sha256

BLOCK_BYTES = 64  # SHA-256 takes its input in blocks of this size


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """The 32 bytes that only a holder of `key` can make for `data`."""
    if len(key) > BLOCK_BYTES:
        key = sha256(key).digest()
    key = key.ljust(BLOCK_BYTES, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in key) + data).digest()
    mac: bytes = sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()
    return mac
