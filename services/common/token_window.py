"""Tokens of models that an organisation used in the last minute, shared by all gateways over Redis.

Gateways lease from the window before they let a call in (`services.common.limits`), by an estimate;
whoever knows what the call used puts the difference right here. What runs in the background or whose
caller has left is counted the same way.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.log import Logger

RESERVED: Final = "x-headrace-reserved"
"""Request header of the gateway: tokens that it has counted for this call, and seconds since. Whoever answers the call settles them;
of a call that the gateway could not pass on it takes them back itself."""
PREFIX: Final = "headrace:tokens:"
WINDOW: Final = 60

_LOG = Logger("services.tokens")
_SCRIPT: Final = """
local now, window = tonumber(redis.call('TIME')[1]), tonumber(ARGV[4])
if tonumber(ARGV[1]) ~= 0 then
    redis.call('HINCRBY', KEYS[1], now, ARGV[1])
end
local age = tonumber(ARGV[3])
if tonumber(ARGV[2]) ~= 0 and age <= window then
    redis.call('HINCRBY', KEYS[1], now - age, -tonumber(ARGV[2]))
end
redis.call('EXPIRE', KEYS[1], window + 1)
"""


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens that a gateway counted, and when (`time.monotonic()` of this process)."""

    tokens: int
    at: float

    def header(self) -> bytes:
        """For whoever settles them."""
        return b"%d;%d" % (self.tokens, self.age())

    def age(self) -> int:
        """Whole seconds."""
        return max(0, int(time.monotonic() - self.at))


NOTHING: Final = Counted(0, 0.0)


def window_name(tenant_id: str, subject: str) -> str:
    """Whose window a caller's tokens and requests are counted in."""
    return f"tenant:{tenant_id or subject}"


class TokenWindow:
    """Puts estimates right."""

    def __init__(self, cache: Redis) -> None:
        self._script: Any = cache.register_script(_SCRIPT)

    async def settle(self, name: str, tokens: int, counted: Counted = NOTHING) -> None:
        """Count `tokens` more, now, and take back what was `counted`, in its own second: taken back in another one
        it would be missing from the window once that second has left it. Without Redis nothing is counted: limits
        fail open towards what each gateway estimates by itself."""
        if not tokens and not counted.tokens:
            return
        try:
            await self._script(keys=[PREFIX + name], args=[tokens, counted.tokens, counted.age(), WINDOW])
        except (RedisError, OSError, TimeoutError) as error:
            _LOG.warn("tokens were not counted against the limit", error=type(error).__name__)


def reserved(value: str | None) -> Counted:
    """What the gateway's header says; nothing for a request that came another way."""
    tokens, _, age = (value or "").partition(";")
    if not all(one.isascii() and one.isdecimal() and len(one) < 10 for one in (tokens, age)):
        return NOTHING
    return Counted(int(tokens), time.monotonic() - int(age))
