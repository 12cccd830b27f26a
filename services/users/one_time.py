"""Tokens that are sent or shown once: 256 random bits as text, SHA-256 at rest.

The prefix tells people and secret scanners what a token is for: `hr_verify_…`, `hr_reset_…`,
`hr_invite_…`, `hr_refresh_…`, `hr_device_…`.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta

Purpose = Literal["verify", "reset", "invite", "refresh", "device"]
Text = Annotated[str, Meta(min_length=1, max_length=100)]

_SHAPE: Final = re.compile(r"hr_([a-z]+)_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A token that was just made; `text` leaves once and is stored nowhere."""

    purpose: Purpose
    text: str

    @property
    def sha256(self) -> bytes:
        return digest(self.text)

    def __repr__(self) -> str:
        return f"Token({self.purpose})"


def new(purpose: Purpose) -> Token:
    """A fresh token from the operating system's randomness."""
    return Token(purpose, f"hr_{purpose}_{secrets.token_urlsafe(32)}")


def looks_like(purpose: Purpose, text: str) -> bool:
    """False for what was never issued for this purpose; such text is not worth a look into the database."""
    match = _SHAPE.fullmatch(text)
    return match is not None and match[1] == purpose


def digest(text: str) -> bytes:
    """What is stored: SHA-256, 32 bytes."""
    return hashlib.sha256(text.encode()).digest()
