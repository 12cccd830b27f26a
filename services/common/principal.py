"""Who is calling, and how the gateway tells the services.

The gateway authenticates once and passes on `x-headrace-principal`: base64url of the principal as
JSON with an expiry, a dot, and the hex HMAC-SHA256 of that text under the internal key.
"""

import base64
import binascii
import hashlib
import hmac
import time
from typing import Final, Literal

import msgspec

HEADER: Final = "x-headrace-principal"
VALID_SECONDS: Final = 60

Kind = Literal["user", "api_key", "system"]


class Principal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The authenticated caller."""

    tenant_id: str
    """Organisation it acts for (`org_…`); empty only for kind `system` and people without one."""
    subject: str
    """`usr_…`, `key_…` or the name of a service."""
    kind: Kind
    scopes: frozenset[str] = frozenset()
    plan: str = ""
    requests_per_minute: int = 0
    platform_owner: bool = False
    """May act in any organisation."""
    key_id: str = ""
    session_id: str = ""
    """`ses_…` of a person who logged in."""
    generation: int = 0
    """Of the session, when the token was made."""

    def may(self, scope: str) -> bool:
        return self.kind == "system" or scope in self.scopes


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: Principal
    exp: int


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(_Signed)


class PrincipalError(Exception):
    """The header is missing its signature, forged, expired or not readable."""


def system(name: str) -> Principal:
    """The platform itself, for calls between services."""
    return Principal(tenant_id="", subject=name, kind="system")


def sign(principal: Principal, key: bytes, *, now: float | None = None) -> str:
    """Value of the header, valid `VALID_SECONDS` from now."""
    expires = int(time.time() if now is None else now) + VALID_SECONDS
    payload = base64.urlsafe_b64encode(_ENCODER.encode(_Signed(principal, expires))).rstrip(b"=")
    return f"{payload.decode()}.{hmac.new(key, payload, hashlib.sha256).hexdigest()}"


def verify(header: str, key: bytes, *, now: float | None = None) -> Principal:
    """The principal inside a header. Raises: PrincipalError."""
    payload, _, signature = header.partition(".")
    expected = hmac.new(key, payload.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise PrincipalError("the signature does not fit")
    try:
        signed = _DECODER.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise PrincipalError("not a principal") from error
    if signed.exp < (time.time() if now is None else now):
        raise PrincipalError("expired")
    return signed.principal
