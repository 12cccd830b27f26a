"""Limits of requests and of tokens: at most N in any minute per key, shared by all gateways over Redis.

A sliding window of one-second buckets, counted by one script. Tokens are leased in blocks that grow
with demand (at most a sixtieth of the limit), so a busy tenant costs a round trip per block, not per
request, and gateways together overshoot by at most one block each. Without Redis each gateway limits
by itself.

A call of a model costs an estimate of its tokens, put right when it ends (`services.common.token_window`).
So tokens overshoot by at most what the calls under way use beyond their estimates; a call is let in as
long as one token is left. What a gateway leased and did not use is lost to the tenant, never doubled.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.log import Logger
from services.common.errors import Problem
from services.common.token_window import PREFIX as TOKENS

WINDOW: Final = 60
MAX_BLOCK: Final = 500
MAX_TOKEN_BLOCK: Final = 50_000
LEASE_SECONDS: Final = 5.0
"""Leased tokens that nobody used go back to nobody: they were counted when they were leased."""
RETRY_REDIS_SECONDS: Final = 1.0
RECHECK_SECONDS: Final = 1.0
"""A refusal is repeated this long without asking Redis; then a raised limit may have changed it."""
MAX_KEYS: Final = 20_000
PREFIX: Final = "headrace:requests:"
LIMIT_WITHOUT_PLAN: Final = 600
"""Requests a minute of a caller that acts for no organisation, such as a person without one."""

DEGRADED: Final = Counter("gateway_rate_limit_degraded", "Requests limited without Redis")
LEASES: Final = Counter("gateway_rate_limit_leases", "Blocks of tokens asked of Redis")

_LOG = Logger("services.limits")

# One bucket more than the window has seconds: its first second may lie partly inside.
_SCRIPT: Final = """
local clock = redis.call('TIME')
local now = tonumber(clock[1])
local limit, want, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local buckets = redis.call('HGETALL', KEYS[1])
local used, oldest, newest = 0, nil, now
for i = 1, #buckets, 2 do
    local second = tonumber(buckets[i])
    if second < now - window then
        redis.call('HDEL', KEYS[1], buckets[i])
    else
        used = used + tonumber(buckets[i + 1])
        if oldest == nil or second < oldest then oldest = second end
        if second > newest then newest = second end
    end
end
used = math.max(0, used)
local granted = math.max(0, math.min(want, limit - used))
if granted > 0 then
    redis.call('HINCRBY', KEYS[1], now, granted)
    redis.call('EXPIRE', KEYS[1], window + 1)
end
local part = math.floor(tonumber(clock[2]) / 1000)
return {granted, math.max(0, limit - used - granted),
        ((oldest or now) + window + 1 - now) * 1000 - part, (newest + window + 1 - now) * 1000 - part}
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """Seconds are whole, rounded up, as the headers want them."""

    allowed: bool
    limit: int
    remaining: int
    reset: int
    """Seconds until the whole limit is there again."""
    retry_after: int
    taken: int = 0
    """What was counted in Redis, less than the cost where less was left; the one who knows better settles this."""

    def token_headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's names for tokens, plus `Retry-After` where refused."""
        fields = [
            (b"x-ratelimit-limit-tokens", b"%d" % self.limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % self.remaining),
            (b"x-ratelimit-reset-tokens", b"%ds" % self.reset),
        ]
        if not self.allowed:
            fields.append((b"retry-after", b"%d" % self.retry_after))
        return fields

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's names and the IETF's, plus `Retry-After` where refused."""
        fields = [
            (b"x-ratelimit-limit-requests", b"%d" % self.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % self.remaining),
            (b"x-ratelimit-reset-requests", b"%ds" % self.reset),
            (b"ratelimit-policy", b'"requests";q=%d;w=%d' % (self.limit, WINDOW)),
            (b"ratelimit", b'"requests";r=%d;t=%d' % (self.remaining, self.reset)),
        ]
        if not self.allowed:
            fields.append((b"retry-after", b"%d" % self.retry_after))
        return fields


@dataclass(slots=True)
class _Key:
    limit: int
    tokens: int = 0
    block: int = 1
    left: int = 0
    """What Redis had left after the last lease."""
    leased_at: float = float("-inf")
    reset_at: float = 0.0
    refused_until: float = float("-inf")
    ask_again_at: float = float("-inf")
    leasing: "asyncio.Task[None] | None" = None
    used: deque[tuple[int, int]] = field(default_factory=deque)
    """Buckets (second, count) of the local window."""


def rate_limited(decision: Decision, headers: Mapping[str, str] | None = None) -> Problem:
    """Of a request that the limiter did not allow."""
    return Problem(
        429,
        "rate_limited",
        "Too many requests",
        f"More than {decision.limit} requests in a minute; go on in {decision.retry_after} s.",
        headers=headers,
    )


def tokens_limited(decision: Decision, headers: Mapping[str, str] | None = None) -> Problem:
    """Of a call of a model, or of a run, for which no token was left."""
    return Problem(
        429,
        "tokens_limited",
        "Too many tokens",
        f"More than {decision.limit} tokens in a minute; go on in {decision.retry_after} s.",
        headers=headers,
    )


class Limiter:
    """Limits as one process of a gateway counts them.

    Args:
        prefix: of the keys in Redis.
        max_block: what is leased at once at most.
    """

    def __init__(self, cache: Redis, *, prefix: str = PREFIX, max_block: int = MAX_BLOCK) -> None:
        self._prefix, self._max_block = prefix, max_block
        self._script: Any = cache.register_script(_SCRIPT)
        self._keys: dict[str, _Key] = {}
        self._redis_from = float("-inf")
        self._is_local = False

    async def take(self, name: str, limit: int, cost: int = 1) -> Decision:
        """Use `cost` of `limit` a minute of `name`; the last one may cost more than is left. Never raises:
        without Redis it limits locally."""
        state, asked = self._state(name, limit), False
        while True:
            now = time.monotonic()
            if now < self._redis_from:
                return self._local(state, now, cost)
            if state.tokens >= (1 if asked else cost) and now - state.leased_at <= LEASE_SECONDS:
                taken = min(state.tokens, cost)
                state.tokens -= taken
                return _decision(state, now, allowed=True, taken=taken)
            if now < state.ask_again_at:
                return _decision(state, now, allowed=False)
            if state.leasing is None:
                state.leasing = asyncio.create_task(self._lease(name, state, cost))
            await asyncio.shield(state.leasing)
            asked = True

    def refusal(self, name: str) -> Decision | None:
        """The last refusal of `name` while it holds, without counting or asking; None where there is none."""
        state, now = self._keys.get(name), time.monotonic()
        if state is None or now >= state.refused_until:
            return None
        return _decision(state, now, allowed=False)

    def _state(self, name: str, limit: int) -> _Key:
        state = self._keys.get(name)
        if state is None:
            if len(self._keys) >= MAX_KEYS:
                self._forget_idle()
            state = self._keys[name] = _Key(limit)
        if state.limit != limit:
            state.limit, state.ask_again_at = limit, float("-inf")
        return state

    def _forget_idle(self) -> None:
        oldest = time.monotonic() - LEASE_SECONDS
        idle = [name for name, key in self._keys.items() if key.leased_at < oldest and key.leasing is None]
        for name in idle or list(self._keys)[: MAX_KEYS // 10]:
            del self._keys[name]

    async def _lease(self, name: str, state: _Key, cost: int) -> None:
        now = time.monotonic()
        most = max(1, min(state.limit // WINDOW, self._max_block))
        faster = now - state.leased_at < 1.0
        state.block = min(state.block * 2, most) if faster else max(1, min(state.block // 2, most))
        LEASES.inc()
        try:
            granted, left, retry_ms, reset_ms = await self._script(
                keys=[self._prefix + name], args=[state.limit, max(state.block, cost), WINDOW]
            )
        except (RedisError, OSError, TimeoutError) as error:
            if not self._is_local:
                _LOG.warn("limits are local while Redis is away", error=type(error).__name__)
            self._is_local = True
            self._redis_from = time.monotonic() + RETRY_REDIS_SECONDS
        else:
            now = time.monotonic()
            self._is_local = False
            unused = state.tokens if now - state.leased_at <= LEASE_SECONDS else 0
            state.tokens, state.left, state.leased_at = unused + granted, left, now
            state.reset_at = now + reset_ms / 1000
            if not granted:
                state.refused_until = now + retry_ms / 1000
                state.ask_again_at = min(state.refused_until, now + RECHECK_SECONDS)
        finally:
            state.leasing = None

    def _local(self, state: _Key, now: float, cost: int) -> Decision:
        DEGRADED.inc()
        second = int(now)
        while state.used and state.used[0][0] < second - WINDOW:
            state.used.popleft()
        used = sum(count for _, count in state.used)
        oldest = state.used[0][0] if state.used else second
        if used >= state.limit:
            wait = oldest + WINDOW + 1 - second
            state.refused_until = now + wait
            return Decision(False, state.limit, 0, WINDOW + 1, wait)
        if state.used and state.used[-1][0] == second:
            state.used[-1] = (second, state.used[-1][1] + cost)
        else:
            state.used.append((second, cost))
        return Decision(True, state.limit, max(0, state.limit - used - cost), WINDOW + 1, 0)


def token_limiter(cache: Redis) -> Limiter:
    """Of the tokens a minute."""
    return Limiter(cache, prefix=TOKENS, max_block=MAX_TOKEN_BLOCK)


def _decision(state: _Key, now: float, *, allowed: bool, taken: int = 0) -> Decision:
    reset = max(0, int(state.reset_at - now) + 1)
    if allowed:
        return Decision(True, state.limit, state.left + state.tokens, reset, 0, taken)
    return Decision(False, state.limit, 0, reset, max(1, int(state.refused_until - now) + 1))
