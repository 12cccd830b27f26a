"""Tickets: a page opens a WebSocket without its token in the URL. Single use, 60 seconds."""

import hashlib
import secrets
import time
from typing import Final

import msgspec
from redis.asyncio import Redis

from services.common.principal import Principal

SECONDS: Final = 60
_PREFIX: Final = "wst_"
_LONGEST: Final = 100


class _Stored(msgspec.Struct, frozen=True):
    principal: Principal
    issued: float


_DECODER: Final = msgspec.json.Decoder(_Stored)


class Tickets:
    """Redis holds only the digest of a ticket and the ids of who may use it."""

    def __init__(self, cache: Redis) -> None:
        self._cache = cache

    async def issue(self, principal: Principal) -> str:
        """Raises: RedisError."""
        ticket = _PREFIX + secrets.token_urlsafe(32)
        content = msgspec.json.encode(_Stored(principal, time.time()))
        await self._cache.set(_key(ticket), content, ex=SECONDS)
        return ticket

    async def redeem(self, ticket: str) -> tuple[Principal, float] | None:
        """Whose ticket it is and when it was issued (seconds since 1970); None where it is unknown, expired
        or used. Of two who try at the same time one gets it.

        Raises:
            RedisError.
        """
        if not ticket.startswith(_PREFIX) or len(ticket) > _LONGEST:
            return None
        content = await self._cache.getdel(_key(ticket))
        if content is None:
            return None
        stored = _DECODER.decode(content)
        return stored.principal, stored.issued


def _key(ticket: str) -> str:
    return f"headrace:ws-ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"
