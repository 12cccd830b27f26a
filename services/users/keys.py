"""API keys as text: `sk_live_<id>_<secret>`.

`id` is 12 base62 characters and finds the row; `secret` is 43 random base62 characters (256 bits)
and 6 that are the CRC-32 of all before them. The checksum is no security: it tells a typing error
from a wrong key without asking the database, and lets secret scanners be certain. At rest there is
only SHA-256 of the whole text, which is enough for 256 random bits.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE: Final = re.compile(r"sk_live_([0-9A-Za-z]{12})_[0-9A-Za-z]{43}([0-9A-Za-z]{6})", re.ASCII)
_PREFIX: Final = "sk_live_"
_CHECKSUM: Final = 6


@dataclass(frozen=True, slots=True, repr=False)
class NewKey:
    """A key that was just made. `text` is shown to its creator once and stored nowhere."""

    public_id: str
    text: str

    @property
    def sha256(self) -> bytes:
        return digest(self.text)

    def __repr__(self) -> str:
        return f"NewKey({self.public_id})"


def generate() -> NewKey:
    """A fresh key from the operating system's randomness."""
    public_id = _random(12)
    body = f"{_PREFIX}{public_id}_{_random(43)}"
    return NewKey(public_id, body + checksum(body))


def public_id(text: str) -> str | None:
    """The id inside a key, or None where shape or checksum are wrong: such a key was never issued."""
    match = _SHAPE.fullmatch(text)
    if match is None or not hmac.compare_digest(match[2], checksum(text[:-_CHECKSUM])):
        return None
    return match[1]


def digest(text: str) -> bytes:
    """What is stored of a key: SHA-256, 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def checksum(body: str) -> str:
    """CRC-32 in base62, most significant digit first, always 6 characters (62**6 > 2**32)."""
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM):
        number, rest = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[rest] + digits
    return digits
