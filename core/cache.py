"""Redis or Valkey: caches, rate counters and notices. Never truth: everything here may be lost.

    cache = open_cache(CacheSettings())
    await cache.set(key("requests", org), …, ex=61)

Every key has its pattern in `KEYS`, so that the data map knows what lies there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis, Sentinel
from redis.asyncio.connection import BlockingConnectionPool, Connection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError
from redis.retry import Retry

from core.settings import CacheSettings


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A family of keys; `{…}` stands for what differs between them."""

    pattern: str
    content: str
    seconds: int
    """Time to live; no key lives for ever."""


KEYS: Mapping[str, CacheKey] = MappingProxyType(
    {
        family.pattern: family
        for family in (
            CacheKey("headrace:requests:{name}", "requests of one tenant or key in the last minute", 61),
            CacheKey("headrace:tokens:{name}", "tokens of models that a tenant used in the last minute", 61),
            CacheKey("headrace:ws-ticket:{digest}", "who may open one WebSocket with a ticket", 60),
        )
    }
)

CHANNELS: Final[Mapping[str, str]] = MappingProxyType(
    {"headrace:auth": "revoked keys, for the gateways' caches; kept nowhere"}
)


CONNECTIONS: Final = 16
"""Of one process at most: a burst of callers waits for one, and leaves no more behind.

The client's own pool keeps a connection for each of a hundred callers at once and refuses the next.
"""


class _Explained(Connection):
    """Says what is wrong with the password where Redis answers in riddles."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            await super().on_connect_check_health(check_health)
        except (AuthenticationError, ResponseError) as error:
            raise AuthenticationError(explain(str(error))) from error


class _ExplainedSentinel(SentinelManagedConnection, _Explained):
    """The same behind sentinels, which are asked again when the master may have been replaced."""

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            # A master that was replaced says so (READONLY) only when a sentinel has told it; before, this.
            if "NOREPLICAS" not in str(error):
                raise
            await self.disconnect()
            raise ConnectionError("no replica follows this master; another may lead") from error


class _Pool(BlockingConnectionPool):
    """Tells the next one who waits where the one who was told about a free connection has given up.

    `asyncio.Condition` of Python 3.11 loses that: the next one waited until its time was over beside a connection that
    was free.
    """

    async def get_connection(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().get_connection(*arguments, **options)  # type: ignore[no-untyped-call]
        except BaseException:
            async with self._condition:
                self._condition.notify()
            raise


class _SentinelPool(SentinelConnectionPool, _Pool):
    """Waits for a free connection, and closes its connections to the sentinels with its own."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


def explain(answer: str) -> str:
    """What an answer to the first commands of a connection means, and what to do."""
    if "HELLO must be called" in answer or "NOAUTH" in answer or "Authentication required" in answer:
        return "the cache server wants a password and got none; set HEADRACE_CACHE_PASSWORD"
    if "without any password configured" in answer:
        return "the cache server has no password; give it the one of HEADRACE_CACHE_PASSWORD (requirepass)"
    if "WRONGPASS" in answer or "invalid username-password" in answer or "invalid password" in answer:
        return "the cache server refused HEADRACE_CACHE_PASSWORD; compare it with the server's requirepass"
    return answer


def open_cache(settings: CacheSettings, *, timeout: float = 1.0) -> Redis:
    """A pooled client. It connects on first use and again after a failure; close it with `aclose()`.

    Args:
        timeout: seconds for a free connection, for connecting and for each command. No command is repeated by the client:
            callers know what a second try would do.

    Raises:
        ValueError: the URL has neither of the two forms.
        redis.exceptions.AuthenticationError (when used): the password is missing or wrong.
    """
    url = urlsplit(settings.cache_url)
    options: dict[str, Any] = {
        "password": settings.cache_password.get_secret_value(),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": CONNECTIONS,
        "timeout": timeout,
    }
    if url.scheme == "redis" and url.hostname:
        pool = _Pool(
            connection_class=_Explained,
            host=url.hostname,
            port=url.port or 6379,
            db=int(url.path.strip("/") or 0),
            **options,
        )
        return Redis.from_pool(pool)
    if url.scheme == "redis+sentinel" and url.path.strip("/"):
        hosts = [host.rpartition(":") for host in url.netloc.split(",")]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(host or port, int(port) if host else 26379) for host, _, port in hosts],
            sentinel_kwargs={
                key: options[key] for key in ("password", "socket_timeout", "socket_connect_timeout")
            },
        )
        return Redis.from_pool(
            _SentinelPool(  # type: ignore[no-untyped-call]
                url.path.strip("/"), sentinel, connection_class=_ExplainedSentinel, **options
            )
        )
    raise ValueError(
        "HEADRACE_CACHE_URL must be `redis://host:port/0` or `redis+sentinel://host:port[,host:port]/name`"
    )
