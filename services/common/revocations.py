"""Revocations travel over a Redis channel, so that a revoked key dies everywhere in under 2 seconds.

A listener that may have missed something says so: `heard_at` is the last moment at which the
subscription was proven alive by an echo. Whoever caches identities trusts entries older than
`GRACE` seconds only while that moment is not older than `GRACE` either.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.log import Logger
from core.tasks import cancel

CHANNEL: Final = "headrace:auth"
GRACE: Final = 1.0
PING_SECONDS: Final = 0.4

_LOG = Logger("services.revocations")


class Revoked(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is no longer valid. Empty fields mean "all": an event without any drops every entry."""

    type: str
    """`key.revoked`, `key.rotated`, `person.changed`, `organisation.changed`."""
    key_id: str = ""
    subject: str = ""
    tenant_id: str = ""


async def publish(cache: Redis, event: Revoked) -> None:
    """Tell every listener; call it after the commit.

    Raises:
        RedisError: nobody was told. Listeners that lost Redis too stop trusting their caches.
    """
    await cache.publish(CHANNEL, msgspec.json.encode(event))


class Revocations:
    """Subscribes in the background and keeps trying.

    Args:
        on_event: called with each event, and with an empty one ("drop all") after every gap.
    """

    def __init__(self, cache: Redis, on_event: Callable[[Revoked], None]) -> None:
        self._cache = cache
        self._on_event = on_event
        self._task: asyncio.Task[None] | None = None
        self.heard_at = float("-inf")

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="revocations")

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)

    def is_alive(self, now: float) -> bool:
        """Was the subscription proven alive within the last `GRACE` seconds (monotonic clock)?"""
        return now - self.heard_at <= GRACE

    async def _run(self) -> None:
        lost = False
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                if not lost:
                    _LOG.warn("revocations are not heard; keys are checked again", error=type(error).__name__)
                lost = True
            await asyncio.sleep(0.2)

    async def _listen(self) -> None:
        async with self._cache.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            subscribed, sent, answered = False, 0.0, 0.0
            while True:
                now = time.monotonic()
                if now - sent >= PING_SECONDS:
                    if subscribed and sent > answered and now - answered > 2 * GRACE:
                        raise TimeoutError("the subscription does not answer")
                    await channel.ping(repr(now))
                    sent = now
                    answered = answered or now
                message = await channel.get_message(timeout=max(0.01, sent + PING_SECONDS - now))
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self._on_event(Revoked("gap"))
                    subscribed = True
                elif message["type"] == "pong" and subscribed:
                    answered = self.heard_at = float(message["data"])
                elif message["type"] == "message":
                    self._on_event(_read(message["data"]))


def _read(data: Any) -> Revoked:
    try:
        return msgspec.json.decode(data, type=Revoked)
    except msgspec.MsgspecError:
        # Not understood means not safe to ignore.
        return Revoked("unreadable")
