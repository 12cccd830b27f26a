"""Cookies that a browser keeps and cannot read: sealed with AES-256-GCM under a key of the web service.

A person's tokens live in them and nowhere else: the web service has no database. `HttpOnly` keeps scripts
away, `SameSite=Lax` other sites' posts, `Secure` (where the pages are on TLS) the network. A name with the
prefix `__Host-` cannot be set by a neighbouring host.
"""

import base64
import hashlib
import hmac
import os
import time
from typing import Final, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from starlette.responses import Response

Name = Literal["session", "device", "challenge", "visit"]

SECONDS: Final[dict[str, int]] = {
    "session": 90 * 24 * 3600,
    "device": 180 * 24 * 3600,
    "challenge": 300,
    "visit": 24 * 3600,
}
_NONCE: Final = 12
_T = TypeVar("_T")


class SignedIn(msgspec.Struct, frozen=True, array_like=True):
    """What the cookie `session` holds."""

    access: str
    refresh: str
    until: int
    """When the access token ends, seconds of the epoch."""
    email: str


class Cookies:
    """Seals and opens.

    Args:
        key: 32 bytes of the web service alone.
        secure: True where the pages are on TLS.
    """

    def __init__(self, key: bytes, *, secure: bool) -> None:
        self._cipher = AESGCM(hmac.digest(key, b"headrace web cookies v1", "sha256"))
        self._csrf = hmac.digest(key, b"headrace web forms v1", "sha256")
        self.secure = secure

    def name(self, name: Name) -> str:
        return f"__Host-headrace-{name}" if self.secure else f"headrace-{name}"

    def put(self, response: Response, name: Name, value: object) -> None:
        """Set a sealed cookie with its own life time."""
        ends = int(time.time()) + SECONDS[name]
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, msgspec.msgpack.encode((ends, value)), name.encode())
        self._set(response, self.name(name), base64.urlsafe_b64encode(sealed).decode(), SECONDS[name])

    def get(self, cookies: dict[str, str], name: Name, kind: type[_T]) -> _T | None:
        """What a cookie holds; None where it is missing, changed, another one's, or too old."""
        try:
            sealed = base64.urlsafe_b64decode(cookies.get(self.name(name), "").encode())
            plain = self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode())
            ends, value = msgspec.msgpack.decode(plain, type=tuple[int, kind])  # type: ignore[valid-type]
        except (ValueError, InvalidTag, msgspec.MsgspecError):
            return None
        return value if ends > time.time() else None

    def drop(self, response: Response, name: Name) -> None:
        self._set(response, self.name(name), "", 0)

    def form_token(self, visit: str) -> str:
        """What each form of this visit carries, and no other site can know."""
        return hmac.new(self._csrf, visit.encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, visit: str, token: str) -> bool:
        return hmac.compare_digest(self.form_token(visit).encode(), token.encode())

    def _set(self, response: Response, name: str, value: str, seconds: int) -> None:
        response.set_cookie(
            name, value, max_age=seconds, path="/", httponly=True, samesite="lax", secure=self.secure
        )
