"""What every cache server must do for us. A server's test module subclasses `CacheSuite`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError

from core.cache import CONNECTIONS, open_cache
from core.ids import new_id
from core.settings import CacheSettings
from tests.servers import free_port


class CacheSuite:
    """Subclasses give the fixture `cache_settings`."""

    @pytest.fixture
    async def cache(self, cache_settings: CacheSettings) -> AsyncIterator[Redis]:
        client = open_cache(cache_settings)
        yield client
        await client.aclose()

    async def test_values_expire(self, cache: Redis) -> None:
        key = new_id("test")
        assert await cache.set(key, b"\x00value\xff", px=60_000)
        assert await cache.get(key) == b"\x00value\xff"
        assert 0 < await cache.pttl(key) <= 60_000
        await cache.set(key, b"", px=1)
        while await cache.exists(key):  # noqa: ASYNC110 - the server's clock decides
            await asyncio.sleep(0.002)

    async def test_scripts_are_atomic(self, cache: Redis) -> None:
        key = new_id("test")
        script = cache.register_script(
            "local n = tonumber(redis.call('GET', KEYS[1]) or '0') "
            "if n < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], n + 1, 'EX', 60) return 1 end return 0"
        )
        granted = await asyncio.gather(*(script(keys=[key], args=[10]) for _ in range(40)))
        assert sum(granted) == 10
        assert await cache.get(key) == b"10"

    async def test_notices_reach_subscribers(self, cache: Redis) -> None:
        channel = new_id("test")
        async with cache.pubsub() as subscriber:
            await subscriber.subscribe(channel)
            assert (await subscriber.get_message(timeout=30))["type"] == "subscribe"
            await cache.publish(channel, b"revoked")
            message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=30)
        assert message["data"] == b"revoked"

    async def test_a_burst_shares_few_connections_and_none_is_refused(
        self, cache_settings: CacheSettings
    ) -> None:
        cache = open_cache(cache_settings, timeout=30)  # how long it takes is no question here
        key = new_id("test")
        name = key.replace("_", "-")
        await asyncio.gather(*(self._count(cache, key, name) for _ in range(300)))
        assert await cache.get(key) == b"300"
        assert 1 <= await self._connections(cache, name) <= CONNECTIONS
        await cache.aclose()

    async def test_who_waits_is_told_though_the_one_before_gave_up(self, cache: Redis) -> None:
        pool: Any = cache.connection_pool
        pool.max_connections = 1
        held = await pool.get_connection()
        before, after = (asyncio.ensure_future(cache.get("key")) for _ in range(2))
        await asyncio.sleep(0.05)  # both wait
        await pool.release(held)
        before.cancel()
        with pytest.raises(asyncio.CancelledError):
            await before
        assert await after is None

    async def _count(self, cache: Redis, key: str, name: str) -> None:
        async with cache.pipeline(transaction=True) as pipe:
            pipe.client_setname(name)
            pipe.incr(key)
            pipe.expire(key, 60)
            await pipe.execute()

    async def _connections(self, cache: Redis, name: str) -> int:
        return sum(client["name"] == name for client in await cache.client_list())

    async def test_only_what_expires_may_be_evicted(self, cache: Redis) -> None:
        assert (await cache.config_get("maxmemory-policy"))["maxmemory-policy"] == "volatile-lru"
        assert (await cache.config_get("appendonly"))["appendonly"] == "yes"

    @pytest.mark.parametrize(
        ("password", "says"), [("", "wants a password and got none"), ("0123456789abcdef", "refused")]
    )
    async def test_password_errors_say_what_to_do(
        self, cache_settings: CacheSettings, password: str, says: str
    ) -> None:
        # No settings file gives an empty password: the settings refuse it. A server may ask for one all the same.
        wrong = cache_settings.model_copy(
            update={"cache_password": type(cache_settings.cache_password)(password)}
        )
        client = open_cache(wrong)
        with pytest.raises(AuthenticationError, match=f"{says}.*HEADRACE_CACHE_PASSWORD"):
            await client.ping()
        await client.aclose()

    async def test_an_absent_server_is_an_error_at_once(self, cache_settings: CacheSettings) -> None:
        client = open_cache(
            cache_settings.model_copy(update={"cache_url": f"redis://127.0.0.1:{free_port()}/0"})
        )
        with pytest.raises((ConnectionError, TimeoutError)):
            await client.get("key")
        await client.aclose()
