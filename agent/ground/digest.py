"""SHA-256 without libcrypto: hashlib with OpenSSL costs 3.5 MB, the C module alone 0.1 MB.

The module's name is private to CPython (`_sha256` to 3.11, `_sha2` from 3.12), hence the ladder.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    sha256: Callable[..., Any]

try:
    from _sha2 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]
    except ImportError:
        from hashlib import sha256


def hex_digest(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    digest: str = sha256(data).hexdigest()
    return digest
