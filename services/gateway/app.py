"""The gateway as a raw ASGI application: FastAPI serves only its own few paths."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any, Final

import aiohttp
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from yarl import URL

from core.cache import open_cache
from core.database import Database
from core.settings import CacheSettings, DatabaseSettings, PagesSettings, SecuritySettings, ServiceSettings
from core.telemetry import HTTP_REQUEST_DURATION
from services.common import browser_address
from services.common.app import service_app
from services.common.auth import Authenticator, internal_key
from services.common.errors import Problem, from_status
from services.common.lifecycle import Lifecycle
from services.common.limits import Limiter, token_limiter
from services.common.token_window import TokenWindow
from services.gateway.breaker import Breaker
from services.gateway.call import Call
from services.gateway.client import Client
from services.gateway.meter import Meter, to_outbox
from services.gateway.reference import Reference
from services.gateway.routes import ROUTES, AmbiguousPathError, Route, RouteTable
from services.gateway.spool import Spool

OWN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})


class Gateway:
    """The ASGI application. Everything it needs is opened by the lifespan of `own`."""

    authenticator: Authenticator
    limiter: Limiter
    tokens: Limiter
    window: TokenWindow
    spool: Spool

    def __init__(self, lifecycle: Lifecycle, routes: Sequence[Route] = ROUTES) -> None:
        self._services = ServiceSettings()
        self._security = SecuritySettings()
        self._cache = CacheSettings()
        self._database = DatabaseSettings()
        self._pages_key = bytes.fromhex(PagesSettings().pages_key.get_secret_value())
        self._lifecycle = lifecycle
        self._routes = RouteTable(routes)
        self._bases = {
            "users": URL(self._services.users_url),
            "billing": URL(self._services.billing_url),
            "agents": URL(self._services.agents_url),
            "memory": URL(self._services.memory_url),
            "ws": URL(self._services.ws_url),
            "relay": URL(self._services.relay_url),
        }
        self._clients = {name: Client(name, ",".join(self._services.addresses(name))) for name in self._bases}
        self._breakers = {name: Breaker(name) for name in self._bases}
        self._seconds: dict[tuple[str, int], Any] = {}
        self.own = service_app("gateway", lifecycle, routers=[], lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OWN_PATHS:
            await self.own(scope, receive, send)
        else:
            await Call(self, scope, receive, send).run()

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                client.open()
                stack.callback(client.close)
            control = await stack.enter_async_context(aiohttp.ClientSession())
            cache = open_cache(self._cache)
            stack.push_async_callback(cache.aclose)
            quick = open_cache(self._cache, timeout=0.25)
            stack.push_async_callback(quick.aclose)
            self.limiter = Limiter(quick)
            self.tokens = token_limiter(quick)
            self.window = TokenWindow(quick)
            self.authenticator = Authenticator(
                users_url=self._services.users_url,
                issuer=self._services.gateway_url,
                internal_key=internal_key(self._security),
                http=control,
                cache=cache,
            )
            self.authenticator.start()
            stack.push_async_callback(self.authenticator.close)
            database = Database(self._database, role="system")
            stack.push_async_callback(database.close)
            self.spool = Spool(self._services.spool_dir)
            meter = Meter(self.spool, to_outbox(database))
            meter.start()
            stack.push_async_callback(meter.close)
            self._lifecycle.checks["spool"] = self.spool.check
            # Without these it still answers: keys from the cache, limits of its own, counts on disk.
            self._lifecycle.advisory["cache"] = cache.ping
            self._lifecycle.advisory["database"] = lambda: _answers(database)
            for name, base in self._bases.items():
                self._lifecycle.advisory[name] = partial(_is_alive, control, base)
            Reference(app, self._bases, self._routes, control).install()
            yield

    def find(self, raw_path: bytes) -> Route:
        """Raises: Problem 400, 404."""
        try:
            route = self._routes.find(raw_path)
        except AmbiguousPathError:
            raise Problem(
                400,
                "ambiguous_path",
                "Ambiguous path",
                "The path holds dot segments, encoded slashes or line feeds; send it in its plain form.",
            ) from None
        if route is None:
            raise from_status(404)
        return route

    def pseudonym(self, address: str) -> str:
        """What stands for a client address in the cache: addresses are personal data."""
        key = internal_key(self._security)
        return hashlib.blake2s(network(address).encode(), key=key, digest_size=16).hexdigest()

    def browser(self, header: str) -> str | None:
        """Address of the browser that the web pages ask for; None where nobody, or nobody of ours, says so."""
        return browser_address.verified(header, self._pages_key) if header else None

    def client(self, route: Route) -> Client:
        return self._clients[route.service]

    def breaker(self, route: Route) -> Breaker:
        return self._breakers[route.service]

    def observe(self, route: str, status: int, seconds: float) -> None:
        child = self._seconds.get((route, status))
        if child is None:
            child = self._seconds[route, status] = HTTP_REQUEST_DURATION.labels("gateway", route, str(status))
        child.observe(seconds)


def create_app(lifecycle: Lifecycle) -> Gateway:
    """Raises: pydantic.ValidationError where a setting is missing or wrong."""
    return Gateway(lifecycle)


async def _answers(database: Database) -> None:
    async with database.reader():
        return


async def _is_alive(http: aiohttp.ClientSession, base: URL) -> None:
    async with http.get(base / "healthz") as answer:
        answer.raise_for_status()


def network(address: str) -> str:
    """One limit for an IPv4 address, or for the /64 that an IPv6 customer has to itself."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
