"""The WebSocket gateway as an application: settings in, sockets and a few routes out."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from fastapi import FastAPI
from prometheus_client import Gauge

from core.cache import open_cache
from core.eventlog import open_eventlog
from core.settings import (
    CacheSettings,
    DatabaseSettings,
    EventLogSettings,
    SecuritySettings,
    ServiceSettings,
    WsSettings,
)
from core.tasks import cancel
from services.common.app import service_app
from services.common.auth import Authenticator, Identity, internal_key
from services.common.events import AgentEvents
from services.common.lifecycle import Lifecycle
from services.common.limits import Limiter, token_limiter
from services.common.revocations import Revocations
from services.ws.access import Access
from services.ws.agents import Agents
from services.ws.gateway import Gateway
from services.ws.handlers import Handlers
from services.ws.routes import router
from services.ws.sessions import Sessions
from services.ws.tickets import Tickets
from services.ws.upgrade import Origins

NAME = "ws"
PORT = 8081

RING = Gauge("ws_ring_bytes", "Memory of the newest events")


class NotFollowingError(Exception):
    """The event log is not followed (yet)."""


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Read the settings and build the app; connections are opened when it starts.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    database, eventlog, cache_settings = DatabaseSettings(), EventLogSettings(), CacheSettings()
    security, services, bounds = SecuritySettings(), ServiceSettings(), WsSettings()
    origins = Origins(bounds.ws_origins.split(",") if bounds.ws_origins.strip() else
                      [services.web_url, services.gateway_url])  # fmt: skip

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            cache = open_cache(cache_settings)
            stack.push_async_callback(cache.aclose)
            quick = open_cache(cache_settings, timeout=0.25)
            stack.push_async_callback(quick.aclose)
            http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200))
            )
            key = internal_key(security)
            authenticator = Authenticator(
                users_url=services.users_url,
                issuer=services.gateway_url,
                internal_key=key,
                http=http,
                cache=cache,
            )
            authenticator.start()
            stack.push_async_callback(authenticator.close)
            log = await stack.enter_async_context(open_eventlog(eventlog, database))
            events = AgentEvents(log, ring_bytes=bounds.ws_ring_bytes)
            _in_background(stack, events.run())
            agents = Agents(http, ",".join(services.addresses("agents")), key)
            tickets = Tickets(cache)
            sessions = Sessions(tickets, authenticator)
            gateway = Gateway(
                events, sessions, Handlers(agents, Access(agents), sessions, Limiter(quick), token_limiter(quick)), origins,
                queue_bytes=bounds.ws_queue_bytes, heartbeat=bounds.ws_heartbeat_seconds,
                slow_seconds=bounds.ws_slow_seconds,
            )  # fmt: skip
            revocations = Revocations(cache, gateway.revoked)
            revocations.start()
            stack.push_async_callback(revocations.close)
            _in_background(stack, gateway.sweep())
            app.state.identity, app.state.tickets, app.state.ws = (
                Identity(key, authenticator),
                tickets,
                gateway,
            )
            app.state.ws_address = services.ws_url.replace("http", "ws", 1).rstrip("/") + "/ws/v1"
            RING.set_function(lambda: events.ring.bytes)
            lifecycle.checks["cache"] = cache.ping
            lifecycle.checks["events"] = lambda: _follows(events)
            lifecycle.advisory["agents"] = agents.check
            stack.push_async_callback(gateway.drain)
            yield

    return service_app(
        NAME,
        lifecycle,
        routers=[router],
        lifespan=lifespan,
        description="Tickets for WebSockets; the protocol itself is described in docs/websocket.md.",
    )


def _in_background(stack: AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    stack.push_async_callback(cancel, asyncio.create_task(work))


async def _follows(events: AgentEvents) -> None:
    if not events.is_live:
        raise NotFollowingError(events.problem)
