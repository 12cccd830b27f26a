"""Connections to one service: kept for reuse, counted, watched, and closed when nobody needs them."""

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import Gauge

from services.gateway.connection import Connection, SilentError, UpstreamError

__all__ = ["Busy", "Client", "ConnectTimeoutError", "SilentError", "UpstreamError"]

CONNECT_SECONDS: Final = 2.0
IDLE_SECONDS: Final = 30.0
"""Shorter than our services keep a connection, so that none is closed under a request."""
MAX_CONNECTIONS: Final = 4096
MAX_IDLE: Final = 256
_TICK: Final = 0.2

OPEN: Final = Gauge("gateway_upstream_connections", "Connections to a service", ("service", "state"))


class Busy(Exception):  # noqa: N818 - it is a state, not a fault
    """All connections that may be open to the service are in use."""


class ConnectTimeoutError(Exception):
    """The host did not answer at all."""


@dataclass(frozen=True, slots=True)
class _Instance:
    host: str
    port: int
    tls: ssl.SSLContext | None
    host_header: bytes

    @classmethod
    def of(cls, name: str, base: str) -> "_Instance":
        parts = urlsplit(base)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{base}: the address of the {name} service must be http(s)://host:port")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname, port, tls, parts.netloc.rpartition("@")[2].encode())


class Client:
    """The pool of one service. Use it within one event loop.

    Args:
        name: of the service, for metrics.
        base: `http://host:port` or `https://host:port`; several, comma separated, are instances that
            take new connections in turns. One that refuses is passed over.
        limit: connections that may be open at once.
    """

    def __init__(self, name: str, base: str, *, limit: int = MAX_CONNECTIONS) -> None:
        self._instances = deque(_Instance.of(name, address) for address in base.split(","))
        self.host_header = self._instances[0].host_header
        self._limit = limit
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._connecting = 0
        self._tick: asyncio.TimerHandle | None = None
        OPEN.labels(name, "open").set_function(lambda: len(self._open))
        OPEN.labels(name, "idle").set_function(lambda: len(self._idle))

    def open(self) -> None:
        """Bind it to the running loop."""
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self._tick = self.loop.call_later(_TICK, self._look)

    def close(self) -> None:
        """Close all connections, those in use too."""
        if self._tick is not None:
            self._tick.cancel()
        for connection in list(self._open):
            connection.fail(UpstreamError("the gateway stops"))

    async def take(self, silence: float, *, fresh: bool = False) -> Connection:
        """A connection for one request; give it back with `release`.

        Args:
            silence: seconds the service may say nothing.
            fresh: not one that was used before.

        Raises:
            Busy: the service has as many as it may have.
            ConnectTimeoutError, OSError: it cannot be reached.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable:
                connection.begin(silence, self.now())
                return connection
        if len(self._open) + self._connecting >= self._limit:
            raise Busy
        self._connecting += 1
        try:
            connection = await self._connect()
        finally:
            self._connecting -= 1
        self._open.add(connection)
        connection.begin(silence, self.now())
        return connection

    async def _connect(self) -> Connection:
        """To the instance whose turn it is, or the next one that answers. Raises: as `take`."""
        left = len(self._instances)
        while True:
            instance = self._instances[0]
            self._instances.rotate(-1)
            left -= 1
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    _, connection = await self.loop.create_connection(
                        lambda: Connection(self), instance.host, instance.port, ssl=instance.tls
                    )
            except TimeoutError:
                if not left:
                    raise ConnectTimeoutError from None
            except OSError:
                if not left:
                    raise
            else:
                return connection

    def release(self, connection: Connection) -> None:
        """Keep it for the next request where its answer is complete and it may be kept, else close it."""
        connection.active = connection.uploading = False
        if connection.complete and connection.reusable and connection.usable and len(self._idle) < MAX_IDLE:
            connection.touched = self.now()
            self._idle.append(connection)
        else:
            connection.fail(UpstreamError("given back"))

    def lost(self, connection: Connection) -> None:
        """The connection has ended."""
        self._open.discard(connection)
        if not connection.active and connection in self._idle:
            self._idle.remove(connection)

    def _look(self) -> None:
        now = self.now()
        for connection in list(self._open):
            if connection.active:
                connection.expire(now)
        while self._idle and now - self._idle[0].touched > IDLE_SECONDS:
            self._idle.pop(0).fail(UpstreamError("idle"))
        self._tick = self.loop.call_later(_TICK, self._look)
