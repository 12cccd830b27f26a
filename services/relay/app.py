"""The relay as an application: one replica relays, others stand by; each answers for dead letters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI

from core.cache import open_cache
from core.database import Database
from core.eventlog import open_eventlog
from core.messaging.leader import Leader
from core.messaging.queue_relay import QueueRelay
from core.messaging.relay import OutboxRelay
from core.objects import open_objects
from core.queue import open_queue
from core.settings import (
    CacheSettings,
    DatabaseSettings,
    EventLogSettings,
    ObjectSettings,
    QueueSettings,
    SecuritySettings,
    ServiceSettings,
)
from core.tasks import cancel
from services.common.app import service_app
from services.common.auth import open_identity
from services.common.lifecycle import Lifecycle
from services.relay.chores import chores
from services.relay.handlers import DeadLetters
from services.relay.routes import router

NAME = "relay"
PORT = 8009


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Read the settings and build the app; relaying starts with it.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    database_settings, eventlog_settings = DatabaseSettings(), EventLogSettings()
    object_settings, queue_settings = ObjectSettings(), QueueSettings()
    cache_settings, security, services = CacheSettings(), SecuritySettings(), ServiceSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            log = await stack.enter_async_context(open_eventlog(eventlog_settings, database_settings))
            database = Database(database_settings, role="system")
            stack.push_async_callback(database.close)
            objects = await stack.enter_async_context(open_objects(object_settings, database_settings))
            queue = await stack.enter_async_context(open_queue(queue_settings, database_settings))
            cache = open_cache(cache_settings)
            stack.push_async_callback(cache.aclose)
            app.state.identity = await stack.enter_async_context(open_identity(services, security, cache))
            app.state.dead_letters = DeadLetters(database, queue)
            relays = {
                "relay": OutboxRelay(database_settings, log),
                "queue-relay": QueueRelay(database_settings, queue),
            }
            for name, relay in relays.items():
                lifecycle.checks[name] = partial(_works, relay)
            relaying = [asyncio.create_task(relay.run(), name=name) for name, relay in relays.items()]
            sweeping = [
                asyncio.create_task(chore.run(), name=chore.name)
                for chore in chores(database, log, objects, queue)
            ]
            yield
            await cancel(*sweeping)
            for relay in relays.values():
                relay.stop()
            await asyncio.gather(*relaying)

    return service_app(
        NAME,
        lifecycle,
        routers=[router],
        lifespan=lifespan,
        description="Moves the outboxes to the event log and the work queue; keeps what queues gave up.",
    )


async def _works(relay: Leader) -> None:
    if relay.trouble or relay.state not in {"leading", "standby"}:
        raise ConnectionError(relay.trouble or relay.state)
