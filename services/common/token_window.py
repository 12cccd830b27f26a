"""Tokens of models that an organisation used in the last minute, shared by all gateways over Redis.

Gateways lease from the window before they let a call in (`services.common.limits`), by an estimate;
whoever knows what the call used puts the difference right here. What runs in the background or whose
caller has left is counted the same way.
"""

from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.log import Logger

RESERVED: Final = "x-headrace-reserved"
"""Request header of the gateway: tokens that it has counted for this call. Whoever answers the call settles them;
of a call that the gateway could not pass on it takes them back itself."""
PREFIX: Final = "headrace:tokens:"
WINDOW: Final = 60

_LOG = Logger("services.tokens")
_SCRIPT: Final = """
redis.call('HINCRBY', KEYS[1], redis.call('TIME')[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


def window_name(tenant_id: str, subject: str) -> str:
    """Whose window a caller's tokens and requests are counted in."""
    return f"tenant:{tenant_id or subject}"


class TokenWindow:
    """Puts estimates right."""

    def __init__(self, cache: Redis) -> None:
        self._script: Any = cache.register_script(_SCRIPT)

    async def settle(self, name: str, tokens: int) -> None:
        """Count `tokens` more (fewer, where negative). Without Redis nothing is counted: limits fail open
        towards what each gateway estimates by itself."""
        if not tokens:
            return
        try:
            await self._script(keys=[PREFIX + name], args=[tokens, WINDOW + 1])
        except (RedisError, OSError, TimeoutError) as error:
            _LOG.warn("tokens were not counted against the limit", error=type(error).__name__)


def reserved(value: str | None) -> int:
    """What the gateway's header says; 0 for a request that came another way."""
    return int(value) if value and value.isascii() and value.isdecimal() and len(value) < 10 else 0
