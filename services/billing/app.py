"""The billing service as an application: settings in, routes out."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from fastapi import FastAPI
from prometheus_client import Gauge
from sqlalchemy import text

from core.cache import open_cache
from core.database import Database
from core.eventlog import open_eventlog
from core.invoices.archive import Archive
from core.invoices.fixes import Fixes
from core.invoices.issue import Invoices
from core.log import Logger
from core.objects import open_objects
from core.prices import Books, Price, read_file
from core.prices.publish import publish
from core.settings import (
    BillingSettings,
    CacheSettings,
    DatabaseSettings,
    EventLogSettings,
    ObjectSettings,
    SecuritySettings,
    ServiceSettings,
)
from core.tasks import cancel
from services.billing import store
from services.billing.hold_routes import router as hold_router
from services.billing.holds import Holds
from services.billing.ingest import Ingest
from services.billing.invariants import Invariants
from services.billing.invoices.fix_handlers import PriceFixes
from services.billing.invoices.fix_routes import router as fix_router
from services.billing.invoices.handlers import InvoiceHandlers
from services.billing.invoices.routes import router as invoice_router
from services.billing.live import LiveUsage, Published
from services.billing.money import Money
from services.billing.producer_routes import router as producer_routes
from services.billing.producers import Producers
from services.billing.quarantine import Quarantine
from services.billing.quarantine_routes import router as quarantine_routes
from services.billing.quota import Quota
from services.billing.routes import Billing, router
from services.billing.tenants import Tenants
from services.billing.trace.events import Events
from services.billing.trace.lake import Lake
from services.billing.trace.lines import Lines
from services.billing.trace.reconcile import Reconciler
from services.billing.trace.routes import router as trace_router
from services.common.app import service_app
from services.common.auth import internal_key, open_identity
from services.common.lifecycle import Lifecycle

NAME = "billing"
PORT = 8005

LIVE = Gauge("usage_live", "1 where this process answers quota up to the end of the topic")
TAIL = Gauge("usage_tail_records", "Records of the topic that this process keeps for live quota")

_log = Logger("billing")


class NotLiveError(Exception):
    """Quota answers from published cells only."""


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Read the settings and build the app; connections are opened when it starts.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    database_settings, eventlog_settings, cache_settings = (
        DatabaseSettings(),
        EventLogSettings(),
        CacheSettings(),
    )
    security, services, bounds = SecuritySettings(), ServiceSettings(), BillingSettings()
    object_settings = ObjectSettings()
    declared = read_file(bounds.prices_file)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            database = Database(database_settings, role="app")
            stack.push_async_callback(database.close)
            system = Database(database_settings, role="system")
            stack.push_async_callback(system.close)
            await _publish_prices(system, declared)
            cache = open_cache(cache_settings)
            stack.push_async_callback(cache.aclose)
            app.state.identity = await stack.enter_async_context(open_identity(services, security, cache))
            log = await stack.enter_async_context(open_eventlog(eventlog_settings, database_settings))
            live = LiveUsage(log, lambda: _published(system), max_records=bounds.usage_tail_records)
            ingest = Ingest(
                database,
                system,
                in_flight=bounds.usage_requests_in_flight,
                max_backlog=bounds.usage_max_backlog,
            )
            objects = await stack.enter_async_context(open_objects(object_settings, database_settings))
            archive = Archive(objects, system)
            invariants = Invariants(database, system)
            for work in (live.run(), ingest.measure(), archive.run(), invariants.watch()):
                _in_background(stack, work)
            invoices, books = InvoiceHandlers(database, Invoices(database, archive)), Books()
            tenants = Tenants(database, system)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            lake = Lake(http, services.lookup_url, internal_key(security))
            app.state.billing = Billing(
                ingest,
                Quota(database, live),
                Money(database, invoices, books),
                invoices,
                PriceFixes(system, Fixes(database, system, archive), tenants),
                tenants,
                Quarantine(database, system),
                Producers(database, system),
                invariants,
                Lines(database, invoices, lake, books),
                Events(database, system, invoices, lake, live, books),
                Reconciler(database, lake, books),
            )
            app.state.holds = Holds(system)
            LIVE.set_function(lambda: live.is_live)
            TAIL.set_function(lambda: live.held)
            lifecycle.checks["database"] = lambda: _answers(system)
            lifecycle.advisory["live_usage"] = lambda: _is_live(live)
            yield

    return service_app(
        NAME,
        lifecycle,
        routers=[
            router,
            quarantine_routes,
            producer_routes,
            hold_router,
            invoice_router,
            fix_router,
            trace_router,
        ],
        lifespan=lifespan,
        description="Usage in, quota live, prices, invoices and the proof behind them.",
    )


async def _publish_prices(system: Database, declared: list[Price]) -> None:
    async with system.writer() as connection:
        for price in await publish(connection, declared):
            _log.info("price recorded", price=price.id, meter=price.meter)


def _in_background(stack: AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    stack.push_async_callback(cancel, asyncio.create_task(work))


async def _published(system: Database) -> Published:
    async with system.writer() as connection:
        return await store.published(connection)


async def _answers(system: Database) -> None:
    async with system.writer() as connection:
        await connection.execute(text("select 1"))


async def _is_live(live: LiveUsage) -> None:
    if not live.is_live:
        raise NotLiveError(live.problem)
