"""The agents service as an application: settings in, routes, runner and consumers out."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from sqlalchemy import text

from core.cache import open_cache
from core.database import Database
from core.eventlog import open_eventlog
from core.objects import open_objects
from core.settings import (
    AgentSettings,
    CacheSettings,
    DatabaseSettings,
    EventLogSettings,
    MemorySettings,
    ObjectSettings,
    ProviderSettings,
    SecuritySettings,
    ServiceSettings,
)
from core.tasks import cancel
from services.agents.attachments import Attachments
from services.agents.consumers import Cancellations, measure_lag, positions, wake_ups
from services.agents.handlers import Agents, Conversations
from services.agents.internal import Places
from services.agents.loop import execute
from services.agents.openai.routes import open_openai
from services.agents.openai.routes import router as openai_router
from services.agents.providers.handlers import ProviderHandlers
from services.agents.providers.registry import open_providers
from services.agents.providers.routes import router as providers_router
from services.agents.routes import Service, router
from services.agents.runner import Execute, Runner
from services.agents.tools.registry import open_tools
from services.common.app import service_app
from services.common.auth import open_identity
from services.common.events import AgentEvents
from services.common.lifecycle import Lifecycle
from services.common.token_window import TokenWindow

NAME = "agents"
PORT = 8002
_LOOK: Final = 0.1
"""Seconds between two looks at whether the process drains."""


class NotFollowingError(Exception):
    """Events of runs cannot be streamed now."""


class NotTakingRunsError(Exception):
    """Runs wait: the database does not let this process look for them."""


def create_app(lifecycle: Lifecycle, loop: Execute | None = None) -> FastAPI:
    """Read the settings and build the app; connections are opened when it starts.

    Args:
        loop: executes runs; `services.agents.loop` where it is not given.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    database_settings, eventlog_settings, cache_settings = (
        DatabaseSettings(),
        EventLogSettings(),
        CacheSettings(),
    )
    security, services = SecuritySettings(), ServiceSettings()
    bounds, provider_settings = AgentSettings(), ProviderSettings()
    object_settings, uploads = ObjectSettings(), MemorySettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            database = Database(database_settings, role="app")
            stack.push_async_callback(database.close)
            # No replica: whose run it is and what it may write is asked of the row itself.
            primary = database_settings.model_copy(update={"database_replica_url": None})
            system = Database(primary, role="system")
            stack.push_async_callback(system.close)
            # Runs have connections of their own: a lease must not wait behind a crowd that asks whose runs are.
            runs = Database(primary, role="system")
            stack.push_async_callback(runs.close)
            cache = open_cache(cache_settings)
            stack.push_async_callback(cache.aclose)
            app.state.identity = await stack.enter_async_context(open_identity(services, security, cache))
            log = await stack.enter_async_context(open_eventlog(eventlog_settings, database_settings))
            objects = await stack.enter_async_context(open_objects(object_settings, database_settings))
            events, drained = AgentEvents(log), asyncio.Event()
            providers = await stack.enter_async_context(
                open_providers(provider_settings, services, security, database)
            )
            tools = await stack.enter_async_context(open_tools(services, security))
            app.state.providers = ProviderHandlers(database, providers)
            window = TokenWindow(cache)
            app.state.openai = await stack.enter_async_context(
                open_openai(
                    database,
                    system,
                    providers,
                    events,
                    window,
                    bounds.usage_spool_dir,
                    bounds.agent_heartbeat_seconds,
                )
            )
            app.state.agents = Service(
                Agents(database),
                Conversations(database),
                Attachments(database, objects, max_bytes=uploads.upload_max_bytes),
                Places(system),
                events,
                drained,
                bounds.agent_heartbeat_seconds,
            )
            runner = Runner(
                runs,
                loop or partial(execute, providers=providers, tools=tools),
                instance=f"{socket.gethostname()}-{os.getpid()}",
                capacity=bounds.agent_runs,
                lease_seconds=bounds.agent_lease_seconds,
                renew_seconds=bounds.agent_lease_seconds / 3,
                poll_seconds=bounds.agent_poll_seconds,
                settle=window.settle,
            )
            followers = (wake_ups(log, runner.wake), positions(log, system))
            for work in (
                events.run(),
                Cancellations(database_settings, runner.cancel).run(),
                measure_lag(log),
                *(follower.run() for follower in followers),
            ):
                _in_background(stack, work)
            running = asyncio.create_task(runner.run(), name="runner")
            _in_background(stack, _watch(lifecycle, runner, drained))
            lifecycle.checks["database"] = lambda: _answers(runs)
            lifecycle.checks["usage_spool"] = app.state.openai.usage.check
            lifecycle.checks["runner"] = lambda: _takes_runs(runner, running)
            lifecycle.advisory["events"] = lambda: _follows(events)
            for follower in followers:
                lifecycle.advisory[follower.name] = follower.watchdog.check
            yield
            runner.drain()
            await running

    return service_app(
        NAME,
        lifecycle,
        routers=[router, providers_router, openai_router],
        lifespan=lifespan,
        description="Agents, conversations with them, and the runs that answer.",
    )


def _in_background(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    stack.push_async_callback(cancel, asyncio.create_task(work))


async def _watch(lifecycle: Lifecycle, runner: Runner, drained: asyncio.Event) -> None:
    """Hand runs over and end streams as soon as the process drains, not when its last request has ended."""
    while not lifecycle.draining:  # noqa: ASYNC110 - a signal handler sets it
        await asyncio.sleep(_LOOK)
    runner.drain()
    drained.set()


async def _answers(system: Database) -> None:
    async with system.writer() as connection:
        await connection.execute(text("select 1"))


async def _follows(events: AgentEvents) -> None:
    if not events.is_live:
        raise NotFollowingError(events.problem)


async def _takes_runs(runner: Runner, running: asyncio.Task[None]) -> None:
    if running.done() or runner.trouble:
        raise NotTakingRunsError(runner.trouble)
