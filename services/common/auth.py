"""Authentication: who calls, and may they.

Services trust the gateway's signed header; called directly they accept `Authorization: Bearer`
themselves, through the same `Authenticator`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from fastapi import Request, Security
from fastapi.security import HTTPBearer
from redis.asyncio import Redis

from core.settings import SecuritySettings, ServiceSettings
from services.common.authenticator import Authenticator, Introspection, unauthenticated
from services.common.errors import Problem
from services.common.principal import HEADER, Principal, PrincipalError, verify

__all__ = [
    "Authenticator",
    "Identity",
    "Introspection",
    "Principal",
    "bearer",
    "internal_key",
    "open_identity",
    "require",
    "require_system",
]


class Identity:
    """Finds the principal of a request: the gateway's header first, else a bearer credential."""

    def __init__(self, internal_key: bytes, authenticator: Authenticator | None) -> None:
        self._internal_key = internal_key
        self._authenticator = authenticator

    async def of(self, request: Request) -> Principal:
        """Raises: Problem 401 or 503."""
        header = request.headers.get(HEADER)
        if header is not None:
            try:
                return verify(header, self._internal_key)
            except PrincipalError:
                raise unauthenticated("The principal header is not valid.") from None
        if self._authenticator is None:
            raise unauthenticated("Send the request through the gateway.")
        return await self._authenticator.authenticate(bearer(request.headers.getlist("authorization")))


def bearer(values: list[str]) -> str:
    """The credential of exactly one `Authorization: Bearer` header. Raises: Problem 401."""
    if len(values) != 1:
        raise unauthenticated("Send one `Authorization: Bearer …` header with an access token or API key.")
    scheme, _, credential = values[0].partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise unauthenticated("Send one `Authorization: Bearer …` header with an access token or API key.")
    return credential.strip()


def internal_key(settings: SecuritySettings) -> bytes:
    return bytes.fromhex(settings.internal_key.get_secret_value())


@asynccontextmanager
async def open_identity(
    services: ServiceSettings, security: SecuritySettings, cache: Redis | None
) -> AsyncIterator[Identity]:
    """Identity of a service, with its own authenticator; put it at `app.state.identity`."""
    async with aiohttp.ClientSession() as http:
        authenticator = Authenticator(
            users_url=services.users_url,
            issuer=services.gateway_url,
            internal_key=internal_key(security),
            http=http,
            cache=cache,
        )
        authenticator.start()
        try:
            yield Identity(internal_key(security), authenticator)
        finally:
            await authenticator.close()


_BEARER: Final = HTTPBearer(auto_error=False, description="Access token or API key (`sk_live_…`).")


def require(*scopes: str) -> Callable[..., Awaitable[Principal]]:
    """Dependency: the caller, who holds all `scopes`. `Annotated[Principal, Depends(require("usage:read"))]`.

    Raises (when called): Problem 401, 403 `missing_scope`, 503.
    """

    async def caller(request: Request, _: Any = Security(_BEARER)) -> Principal:  # noqa: B008
        principal: Principal = await request.app.state.identity.of(request)
        missing = [scope for scope in scopes if not principal.may(scope)]
        if missing:
            raise Problem(
                403,
                "missing_scope",
                "Not allowed",
                f"This needs the scope {', '.join(missing)}; use a key or role that has it.",
            )
        return principal

    return caller


async def require_system(request: Request) -> Principal:
    """Dependency for internal routes: another part of the platform, else a 404 as if there were no route."""
    identity: Identity = request.app.state.identity
    try:
        principal = await identity.of(request)
    except Problem:
        principal = None
    if principal is None or principal.kind != "system":
        raise Problem(404, "not_found", "Not Found", "No such path.")
    return principal
