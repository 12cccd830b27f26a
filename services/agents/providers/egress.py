"""Where a tenant may send us: public addresses over TLS, checked when it asks and at each connection.

A name is checked at the moment it is resolved for a connection, and the connection goes to the
address that was checked: a name that answers differently the second time gains nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore2
import httpx2
from aiohttp.abc import AbstractResolver, ResolveResult

MAX_ANSWER: Final = 64 << 20
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class EgressError(OSError):
    """The address is not one that a tenant may have us call."""


class Egress:
    """Args: allowed: `host` or `host:port`, comma separated, that may be private or without TLS."""

    def __init__(self, allowed: str = "") -> None:
        self._allowed = frozenset(part.strip().lower() for part in allowed.split(",") if part.strip())

    def allows(self, host: str, port: int) -> bool:
        """True for what the owner of the platform has named."""
        host = host.lower().strip("[]")
        return host in self._allowed or f"{host}:{port}" in self._allowed

    async def check_url(self, url: str) -> None:
        """Raises: EgressError with what is wrong with the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise EgressError("it is not a URL") from None
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise EgressError("it must begin with https:// and a host")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise EgressError("it must hold neither credentials nor a query")
        if self.allows(parts.hostname, port):
            return
        if parts.scheme != "https":
            raise EgressError("it must begin with https://")
        await self.addresses(parts.hostname, port)

    async def addresses(self, host: str, port: int) -> list[str]:
        """What the name resolves to; every address is public, unless the host is allowed.

        Raises:
            EgressError: one is not, or there is none.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise EgressError(f"{host} has no address") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self.allows(host, port) and not all(map(is_public, addresses)):
            raise EgressError(f"{host} is inside a private network")
        return addresses


def is_public(address: str) -> bool:
    """False for every address that is not on the open internet, also when IPv6 wraps it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _Backend(httpcore2.AsyncNetworkBackend):
    """Connects to the address that was checked."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._egress.addresses(host, port)
        except EgressError as error:
            raise httpcore2.ConnectError(str(error)) from error
        last: Exception = httpcore2.ConnectError("no address")
        for address in addresses[:3]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Bounded(httpx2.AsyncByteStream):
    """An answer's body that breaks off where it is too long."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream, self._left = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._left -= len(piece)
            if self._left < 0:
                raise httpx2.ReadError("the answer is longer than an answer may be")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """HTTP transport of a client for tenants' URLs. Their servers may say anything, so answers are bounded
    and come as they are: a few packed kilobytes could unpack to more memory than there is.

    Args:
        max_answer: bytes of a body; what is longer breaks off with `httpx2.ReadError`.
    """

    def __init__(self, egress: Egress, *, max_answer: int = MAX_ANSWER) -> None:
        super().__init__(trust_env=False)
        self._max_answer = max_answer
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=1000,
            max_keepalive_connections=20,
            keepalive_expiry=30,
            network_backend=_Backend(egress),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises: httpx2.HTTPError."""
        request.headers["accept-encoding"] = "identity"
        answer = await super().handle_async_request(request)
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            await answer.aclose()
            raise httpx2.RemoteProtocolError("the answer is encoded, which nobody asked for")
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        answer.stream = _Bounded(answer.stream, self._max_answer)
        return answer


class GuardedResolver(AbstractResolver):
    """The same for aiohttp: `TCPConnector(resolver=GuardedResolver(egress))`.

    aiohttp asks no resolver for a literal address: check such a URL with `Egress.check_url`.
    """

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises: EgressError."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._egress.addresses(host, port)
        ]

    async def close(self) -> None:
        return
