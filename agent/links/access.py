"""Who may do what, and how somebody without a network becomes admin for one command.

The terminal tells a challenge: its serial number, a counter, a nonce and the command. The service
desk, which has the key, answers with a code that is good for exactly that, once
(docs/spec/wire-protocol.md, Challenge and code).

Rules: what must survive a power cut goes to the store before anybody is told of it, so that pulling
the plug buys no further try; no clock but the monotonic one is asked; a key appears in no answer.
"""

from __future__ import annotations

from _operator import _compare_digest as are_equal  # its time tells nothing about where they differ

from agent.ground.hmac import hmac_sha256
from agent.links import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Store(Protocol):
        """Where counter, failed tries and lock are kept."""

        def load_access(self) -> dict[str, int]:
            """`counter`, `fails` and `locked` (0 or 1) as last saved; what is missing counts 0."""

        def save_access(self, counter: int, fails: int, locked: int) -> None:
            """Keep the three; durable when it returns. Raises when it could not."""


LEVELS = ("read", "tech", "admin")

ALGORITHM = "hmac-sha256-40"
CODE_BYTES = 5  # 40 bits are 8 characters, which a person can read out and type
NONCE_BYTES = 5
EXPIRES_MS = 900_000  # a call to the desk, with the wait for somebody to take it
TRIES_MAX = 3  # of 2**40 codes; more than two typing errors in a row is somebody guessing
LOCK_MS = 600_000  # 432 tries a day at most
# Each challenge is a write to flash: so many at once, and then one in ten seconds.
CHALLENGES_MAX = 8
CHALLENGE_INTERVAL_MS = 10_000
COMMAND_CHARS_MAX = 200
CODE_CHARS_MAX = 128  # 64 digits, with a blank behind each

# Crockford's base 32: no I, L, O and U, and the first three are read as what they look like.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKS_LIKE = {"O": "0", "I": "1", "L": "1"}
_APART = " -\t"
_HEX_DIGITS = "0123456789abcdef"


def reaches(level: str, need: str) -> bool:
    """Whether somebody at `level` may do what needs `need`."""
    return LEVELS.index(level) >= LEVELS.index(need)


class Access:
    """The one open challenge of a terminal, and the one right that a code has given.

    There is one for the whole terminal, whatever line it is asked on. `key` or `serial` may be
    None: then nobody becomes admin this way.
    """

    __slots__ = (
        "_counter",
        "_fails",
        "_is_loaded",
        "_key",
        "_locked_until_ms",
        "_now_ms",
        "_open",
        "_random",
        "_right",
        "_serial",
        "_spare",
        "_started_ms",
        "_store",
        "_topped_up_ms",
    )

    def __init__(
        self,
        key: bytes | None,
        serial: str | None,
        store: Store,
        now_ms: Callable[[], int],
        random: Callable[[int], bytes],
    ) -> None:
        self._key = key
        self._serial = serial
        self._store = store
        self._now_ms = now_ms
        self._random = random
        self._open: Challenge | None = None
        self._right: Challenge | None = None
        self._is_loaded = False
        self._counter = 0
        self._fails = 0
        self._locked_until_ms: int | None = None
        self._started_ms = self._topped_up_ms = now_ms()
        self._spare = CHALLENGES_MAX

    def challenge(self, command: str) -> dict[str, Any]:
        """What the desk needs for a code that runs exactly `command`.

        The counter is durable before it is told. A newer challenge ends the older one; asked again
        for the same command, as after a lost answer, the same one is told once more. Raises
        RemoteError: NOT_ALLOWED without key or serial, LOCKED, PARAMS.
        """
        key, serial = self._keyed()
        _check_command(command)
        now = self._now_ms()
        self._check_lock(now)
        if self._open is None or self._open.command != command or now >= self._open.until_ms:
            self._open = self._new(key, serial, command, now)
        return self._open.told(serial, now)

    def answer(self, code: str) -> str:
        """The command that `code` gives the right to run, once, before the challenge expires.

        The try is counted durably before it is compared. A right code that is given again before
        its right is used, as after a lost answer, is answered again and gives no second right.
        Raises RemoteError: CODE_WRONG with the tries left, LOCKED, NO_SUCH without a challenge,
        PARAMS for what cannot be a code, which is no try.
        """
        self._keyed()
        given = _parse_code(code)
        now = self._now_ms()
        if self._right is not None and now < self._right.until_ms and self._right.fits(given):
            return self._right.command
        self._check_lock(now)
        found = self._open
        if found is None or now >= found.until_ms:
            self._open = None
            raise wire.remote(
                "NO_SUCH", "no challenge is open; ask for one, a code answers that one alone"
            )
        return self._judge(found, given, now)

    def grants(self, command: str) -> bool:
        """Whether the right to run exactly `command` was given and not used."""
        right = self._right
        return right is not None and right.command == command and self._now_ms() < right.until_ms

    def spend(self, command: str) -> bool:
        """The same, and it is used up now."""
        granted = self.grants(command)
        if granted:
            self._right = None
        return granted

    def _judge(self, found: Challenge, given: bytes, now: int) -> str:
        """Count the try, then compare. Power cut in between: the try stays counted."""
        fails = self._fails + 1
        locked = fails >= TRIES_MAX
        self._store.save_access(self._counter, fails, int(locked))
        self._fails = fails
        if found.fits(given):
            # A cut here leaves a try counted and no right; the desk is asked again.
            self._store.save_access(self._counter, 0, 0)
            self._fails = 0
            self._open, self._right = None, found
            return found.command
        if locked:
            self._open = None
            self._locked_until_ms = now + LOCK_MS
            self._check_lock(now)
        left = TRIES_MAX - fails
        raise wire.remote("CODE_WRONG", f"that is not the code; tries left: {left}", left=left)

    def _new(self, key: bytes, serial: str, command: str, now: int) -> Challenge:
        self._take_turn(now)
        counter = self._counter + 1
        nonce = _grouped(_base32(self._random(NONCE_BYTES)))
        mac = mac_for(key, serial, counter, nonce, command)
        self._store.save_access(counter, self._fails, 0)
        self._counter = counter
        return Challenge(command, counter, nonce, mac, now + EXPIRES_MS)

    def _take_turn(self, now: int) -> None:
        earned, part = divmod(now - self._topped_up_ms, CHALLENGE_INTERVAL_MS)
        self._spare = min(CHALLENGES_MAX, self._spare + earned)
        self._topped_up_ms = now - part
        if not self._spare:
            raise _locked("too many challenges were asked for", CHALLENGE_INTERVAL_MS - part)
        self._spare -= 1

    def _check_lock(self, now: int) -> None:
        self._load()
        if self._locked_until_ms is None:
            return
        if now < self._locked_until_ms:
            raise _locked(f"{TRIES_MAX} codes were wrong", self._locked_until_ms - now)
        # The next challenge writes it down; until then a restart would lock again.
        self._locked_until_ms = None
        self._fails = 0

    def _load(self) -> None:
        """Read the store when it is first needed. How long a lock had run before a restart no clock
        can tell, so it begins anew with the start."""
        if self._is_loaded:
            return
        kept = self._store.load_access()
        self._counter = _count(kept.get("counter"))
        self._fails = _count(kept.get("fails"))
        if kept.get("locked", 0) or self._fails >= TRIES_MAX:
            self._locked_until_ms = self._started_ms + LOCK_MS
        self._is_loaded = True

    def _keyed(self) -> tuple[bytes, str]:
        if self._serial is None:
            what, need = "the configuration names no device_id, to which a code could be", "serial"
        elif self._key is None:
            what, need = "no service key is set on this terminal, to which a code could be", "key"
        else:
            return self._key, self._serial
        raise wire.remote("NOT_ALLOWED", what + " bound; see: posagent key", need=need)


class Challenge:
    """One command with what a code for it must prove, and when that ends."""

    __slots__ = ("_mac", "command", "counter", "nonce", "until_ms")

    def __init__(self, command: str, counter: int, nonce: str, mac: bytes, until_ms: int) -> None:
        self.command = command
        self.counter = counter
        self.nonce = nonce
        self._mac = mac
        self.until_ms = until_ms

    def fits(self, given: bytes) -> bool:
        """Whether `given` is the code, or the whole MAC."""
        return are_equal(given, self._mac[: len(given)])

    def told(self, serial: str, now: int) -> dict[str, Any]:
        """The answer to who asked."""
        return {
            "serial": serial,
            "counter": self.counter,
            "nonce": self.nonce,
            "command": self.command,
            "expires_s": (self.until_ms - now) // 1000,
            "alg": ALGORITHM,
        }


def device_key(fleet_key: bytes, serial: str) -> bytes:
    """The key of one terminal of a fleet; from it no other and not the fleet's can be told."""
    return hmac_sha256(fleet_key, _joined("posagent device key", serial))


def mac_for(key: bytes, serial: str, counter: int, nonce: str, command: str) -> bytes:
    """The 32 bytes that prove the key for one command and one challenge.

    The nonce counts as `code_for` reads a code: capitals, blanks and dashes are of no account.
    ValueError for parts that could not be told apart.
    """
    plain = _plain(nonce)
    if not plain or plain.strip(ALPHABET):
        raise ValueError("the nonce holds other characters than those of base 32")
    return hmac_sha256(
        key, _joined("posagent service code", serial, str(int(counter)), plain, command)
    )


def code_for(key: bytes, serial: str, counter: int, nonce: str, command: str) -> str:
    """The code that a desk reads out, such as D49P-C2W2."""
    return _grouped(_base32(mac_for(key, serial, counter, nonce, command)[:CODE_BYTES]))


def _joined(*parts: str) -> bytes:
    """The parts with a NUL between them; no two lists of parts give the same bytes."""
    if any("\0" in part for part in parts):
        raise ValueError("a part holds a NUL")
    return "\0".join(parts).encode("utf-8")


def _base32(data: bytes) -> str:
    """Five bits to a character, the first bits first. `data` has a multiple of five bytes."""
    number, chars = int.from_bytes(data, "big"), ""
    for _ in range(len(data) * 8 // 5):
        chars = ALPHABET[number & 31] + chars
        number >>= 5
    return chars


def _grouped(text: str) -> str:
    return text[:4] + "-" + text[4:]


def _plain(text: str) -> str:
    """What was typed without blanks and dashes, in capitals, with look-alikes as what is meant."""
    plain = ""
    for char in text.upper():
        if char not in _APART:
            plain += _LOOKS_LIKE.get(char, char)
    return plain


def _parse_code(code: str) -> bytes:
    """The bytes of a code of 8 characters, or of a MAC of 64 hexadecimal digits."""
    if code.isascii() and len(code) <= CODE_CHARS_MAX:
        digits = "".join(char for char in code.lower() if char not in _APART)
        if len(digits) == 64 and not digits.strip(_HEX_DIGITS):
            return bytes.fromhex(digits)
        plain = _plain(code)
        if len(plain) == CODE_BYTES * 8 // 5 and not plain.strip(ALPHABET):
            number = 0
            for char in plain:
                number = number << 5 | ALPHABET.index(char)
            return number.to_bytes(CODE_BYTES, "big")
    raise wire.remote(
        "PARAMS",
        "a code has 8 letters and digits, without U, or 64 hexadecimal digits; no try was counted",
        param="code",
    )


def _count(kept: Any) -> int:
    """A count as it was saved; whatever else a damaged store holds is none."""
    return max(0, kept) if type(kept) is int else 0


def _check_command(command: str) -> None:
    """A command is read out and typed in elsewhere: plain characters, one blank between words."""
    words = command.split(" ")
    plain = command.isascii() and command.isprintable() and "" not in words
    if not plain or len(command) > COMMAND_CHARS_MAX:
        raise wire.remote(
            "PARAMS",
            f"a command has 1 to {COMMAND_CHARS_MAX} plain characters, one blank between words",
            param="command",
        )


def _locked(why: str, wait_ms: int) -> wire.RemoteError:
    retry_s = -(-wait_ms // 1000)
    return wire.remote("LOCKED", f"{why}; wait {retry_s} s", retry_s=retry_s)
