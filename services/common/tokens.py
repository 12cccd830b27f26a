"""Verifies access tokens (JWT, Ed25519) against the key set of the users service."""

import asyncio
import time
from base64 import urlsafe_b64decode
from typing import Any, Final

import aiohttp
import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.common.errors import unavailable
from services.common.principal import Principal

ALGORITHM: Final = "Ed25519"
AUDIENCE: Final = "headrace"
KEY_SET_SECONDS: Final = 300.0
REFETCH_SECONDS: Final = 2.0
"""An unknown key id fetches the set again, but not more often than this: ids are the caller's text."""
LEEWAY: Final = 5


class TokenError(Exception):
    """Not a valid access token of this platform now."""


class TokenVerifier:
    """Checks signature, algorithm, issuer, audience and times; RFC 8725 and RFC 9068."""

    def __init__(self, key_set_url: str, issuer: str, http: aiohttp.ClientSession) -> None:
        self._url = key_set_url
        self._issuer = issuer
        self._http = http
        self._keys: dict[str, Any] = {}
        self.fetched_at = float("-inf")
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> tuple[Principal, float]:
        """The principal and the seconds the token is still valid.

        Raises:
            TokenError: refused.
            Problem: 503 where the key set cannot be had.
        """
        key = await self._key(_key_id(token))
        try:
            decoded = jwt.decode(token, key, algorithms=[ALGORITHM])
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise TokenError("signature or form") from error
        return self._principal(decoded.header, decoded.claims)

    def _principal(self, header: dict[str, Any], claims: dict[str, Any]) -> tuple[Principal, float]:
        now = time.time()
        expires, issued, tenant = claims.get("exp"), claims.get("iat"), claims.get("org")
        audience = claims.get("aud")
        subject, scope, rate = claims.get("sub"), claims.get("scope"), claims.get("requests_per_minute")
        if header.get("typ") != "at+jwt" or claims.get("iss") != self._issuer:
            raise TokenError("not an access token of this issuer")
        if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
            raise TokenError("for another audience")
        if not isinstance(expires, int | float) or not isinstance(issued, int | float):
            raise TokenError("without times")
        if expires + LEEWAY <= now or issued - LEEWAY > now:
            raise TokenError("expired or not yet valid")
        if not (isinstance(subject, str) and subject and isinstance(tenant, str)):
            raise TokenError("without subject")
        if not isinstance(scope, str) or not isinstance(rate, int):
            raise TokenError("without scope")
        principal = Principal(
            tenant_id=tenant,
            subject=subject,
            kind="user",
            scopes=frozenset(scope.split()),
            plan=str(claims.get("plan", "")),
            requests_per_minute=rate,
            platform_owner=claims.get("platform_owner") is True,
            session_id=session if isinstance(session := claims.get("sid", ""), str) else "",
            generation=generation if isinstance(generation := claims.get("gen", 0), int) else 0,
        )
        return principal, expires + LEEWAY - now

    async def _key(self, key_id: str) -> Any:
        now = time.monotonic()
        age = now - self.fetched_at
        if age > KEY_SET_SECONDS or (key_id not in self._keys and age > REFETCH_SECONDS):
            async with self._lock:
                if self.fetched_at < now:
                    await self._fetch()
        try:
            return self._keys[key_id]
        except KeyError:
            raise TokenError("signed by an unknown key") from None

    async def _fetch(self) -> None:
        try:
            async with self._http.get(self._url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                answer.raise_for_status()
                keys = KeySet.import_key_set(orjson.loads(await answer.read()))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, JoseError) as error:
            if not self._keys:
                raise unavailable("The users service") from error
            # Known keys stay good while users restarts; ask again in a moment, not with each token.
            self.fetched_at = time.monotonic() - KEY_SET_SECONDS + REFETCH_SECONDS
        else:
            self._keys = {key.kid: key for key in keys.keys if key.kid}
            self.fetched_at = time.monotonic()


def _key_id(token: str) -> str:
    try:
        from_token = jwt_header(token).get("kid")
    except ValueError as error:
        raise TokenError("not a token") from error
    if not isinstance(from_token, str):
        raise TokenError("without key id")
    return from_token


def jwt_header(token: str) -> dict[str, Any]:
    """The unverified header. Raises: ValueError."""
    first, _, rest = token.partition(".")
    if not rest:
        raise ValueError("not a token")
    header = orjson.loads(urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    if not isinstance(header, dict):
        raise ValueError("not a token")
    return header
