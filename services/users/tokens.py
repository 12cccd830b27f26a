"""Access tokens: JWTs signed with Ed25519 that live 15 minutes, and the key set that verifies them.

The algorithm is written `Ed25519` in the header, as RFC 9864 asks (`EdDSA` is deprecated because it
names a family). Claims follow RFC 9068: iss, aud, sub, exp, iat, jti, scope; ours are org (tenant
id), roles, plan, requests_per_minute, platform_owner, sid and gen (session and its generation).

The key file holds one or more PEM blocks: the first signs, all verify. To rotate, put the new key in
front, restart, and drop the old block after 15 minutes.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uuid_utils
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

LIFETIME: Final = 15 * 60
"""Seconds an access token is valid."""
CHALLENGE_LIFETIME: Final = 5 * 60
"""Seconds between the two steps of a login."""
AUDIENCE: Final = "headrace"
_MFA: Final = "headrace-mfa"
ALGORITHM: Final = "Ed25519"

_PEM: Final = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a token speaks for, in which organisation."""

    person_id: str
    tenant_id: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    plan: str
    requests_per_minute: int
    platform_owner: bool
    session_id: str
    generation: int
    """Of the session: a token of an earlier one is good no more."""


class TokenRefusedError(Exception):
    """Not a valid token of this kind now."""


class Tokens:
    """Signs access tokens and publishes the keys that verify them.

    Args:
        keys: the first signs; all are published.
        issuer: public address of the API, the `iss` of every token.
    """

    def __init__(self, keys: Sequence[OKPKey], issuer: str) -> None:
        self._signer = keys[0]
        self._issuer = issuer
        self._keys = KeySet(list(keys))
        self._published = {"keys": [_public(key) for key in keys]}

    @classmethod
    def from_file(cls, file: Path, issuer: str) -> "Tokens":
        """Read the key file.

        Raises:
            ValueError: the file holds no Ed25519 private key in PEM (PKCS #8).
            OSError: the file cannot be read.
        """
        keys = []
        for block in _PEM.findall(file.read_bytes()):
            key = OKPKey.import_key(block)
            if key.curve_name != "Ed25519":
                raise ValueError(f"{file} holds a key on {key.curve_name}; access tokens need Ed25519")
            keys.append(key)
        if not keys:
            raise ValueError(
                f"{file} holds no private key; make one with `openssl genpkey -algorithm ed25519 -out {file.name}`"
            )
        return cls(keys, issuer)

    def issue(self, subject: Subject) -> str:
        """A signed token for `subject`, valid `LIFETIME` seconds from now."""
        issued = int(time.time())
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "sub": subject.person_id,
            "org": subject.tenant_id,
            "roles": list(subject.roles),
            "scope": " ".join(subject.scopes),
            "plan": subject.plan,
            "requests_per_minute": subject.requests_per_minute,
            "platform_owner": subject.platform_owner,
            "sid": subject.session_id,
            "gen": subject.generation,
            "iat": issued,
            "exp": issued + LIFETIME,
            "jti": str(uuid_utils.uuid7()),
        }
        return self._sign("at+jwt", claims)

    def challenge(self, person_id: str, tenant_id: str) -> str:
        """Says that the password was right: good for the second step of this login, and for nothing else."""
        expires = int(time.time()) + CHALLENGE_LIFETIME
        return self._sign("mfa+jwt", {"aud": _MFA, "sub": person_id, "org": tenant_id, "exp": expires})

    def read_challenge(self, text: str) -> tuple[str, str]:
        """(person id, tenant id). Raises: TokenRefusedError."""
        try:
            read = jwt.decode(text, self._keys, algorithms=[ALGORITHM])
        except (JoseError, ValueError, TypeError, KeyError):
            raise TokenRefusedError from None
        claims = read.claims
        if read.header.get("typ") != "mfa+jwt" or claims.get("aud") != _MFA or claims["exp"] <= time.time():
            raise TokenRefusedError
        return str(claims["sub"]), str(claims["org"])

    def _sign(self, kind: str, claims: dict[str, Any]) -> str:
        header = {"alg": ALGORITHM, "typ": kind, "kid": self._signer.thumbprint()}
        return jwt.encode(header, claims, self._signer, algorithms=[ALGORITHM])

    def key_set(self) -> dict[str, Any]:
        """The JSON Web Key Set (RFC 7517), public halves only."""
        return self._published


def _public(key: OKPKey) -> dict[str, Any]:
    return {**key.as_dict(private=False), "kid": key.thumbprint(), "use": "sig", "alg": ALGORITHM}
