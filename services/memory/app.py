"""The memory service as an application: REST and gRPC in one process, consumers and erasing beside them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from core.cache import open_cache
from core.database import Database
from core.embedding import EmbeddingModel, open_model
from core.eventlog import open_eventlog
from core.log import Logger
from core.messaging.lanes import Lanes
from core.messaging.queues import QueueConsumer
from core.objects import open_objects
from core.queue import open_queue
from core.settings import (
    CacheSettings,
    DatabaseSettings,
    DataSettings,
    EventLogSettings,
    MemorySettings,
    ObjectSettings,
    QueueSettings,
    SecuritySettings,
    ServiceSettings,
    VectorSettings,
)
from core.tasks import cancel
from core.vectors import Vectors, VectorsError
from services.common.app import service_app
from services.common.auth import internal_key, open_identity
from services.common.lifecycle import Lifecycle
from services.memory.bases import Bases
from services.memory.consumers import GROUP, Turns, WorkList
from services.memory.documents import QUEUE, Documents
from services.memory.erase import Eraser
from services.memory.grpc_server import MemoryGrpc, serving
from services.memory.handlers import Handlers
from services.memory.kept import Kept
from services.memory.routes import Memory, router
from services.memory.search import Search
from services.memory.texts import Texts
from services.memory.transfers import Transfers

NAME = "memory"
PORT = 8004

_log = Logger("memory")


def create_app(lifecycle: Lifecycle) -> FastAPI:
    """Read the settings and build the app; connections are opened when it starts.

    Raises:
        pydantic.ValidationError: a setting is missing, wrong or a known default.
    """
    database_settings, eventlog_settings, queue_settings = (
        DatabaseSettings(),
        EventLogSettings(),
        QueueSettings(),
    )
    object_settings, vector_settings, cache_settings = ObjectSettings(), VectorSettings(), CacheSettings()
    security, services, bounds, data = SecuritySettings(), ServiceSettings(), MemorySettings(), DataSettings()
    key = internal_key(security)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            # No replica: one that lags would show a deleted document, or both versions of one, or neither.
            primary = database_settings.model_copy(update={"database_replica_url": None})
            database, system = Database(primary, role="app"), Database(primary, role="system")
            stack.push_async_callback(database.close)
            stack.push_async_callback(system.close)
            cache = open_cache(cache_settings)
            stack.push_async_callback(cache.aclose)
            app.state.identity = await stack.enter_async_context(open_identity(services, security, cache))
            objects = await stack.enter_async_context(open_objects(object_settings, database_settings))
            log = await stack.enter_async_context(open_eventlog(eventlog_settings, database_settings))
            queue = await stack.enter_async_context(open_queue(queue_settings, database_settings))
            model = open_model(vector_settings, data.state_dir)
            vectors = Vectors(vector_settings, model)
            stack.callback(vectors.close)
            search = Search(database, vectors, model)
            stack.callback(search.close)
            eraser = Eraser(system, objects, vectors)
            documents = Documents(database, eraser, services.gateway_url, key)
            texts = Texts(database, objects)
            app.state.memory = Memory(
                bases=Bases(database, eraser),
                documents=documents,
                transfers=Transfers(database, objects, key, max_bytes=bounds.upload_max_bytes),
                handlers=Handlers(database, search, model),
                texts=texts,
            )
            consumers = {
                QUEUE: Kept(QUEUE, lambda: QueueConsumer(queue, QUEUE, WorkList(system))),
                GROUP: Kept(
                    GROUP, lambda: Lanes(log, ["agent.events"], GROUP, Turns(database, system, objects))
                ),
            }
            stack.push_async_callback(
                cancel,
                asyncio.create_task(eraser.run(), name="eraser"),
                asyncio.create_task(_warm(system, vectors, model), name="warm"),
            )
            for name, consumer in consumers.items():
                stack.push_async_callback(_stop, consumer, asyncio.create_task(consumer.run(), name=name))
                lifecycle.advisory[name] = consumer.check
            await stack.enter_async_context(
                serving(MemoryGrpc(search, documents, texts, key), _grpc_address(services))
            )
            lifecycle.checks["database"] = lambda: _answers(system)
            lifecycle.advisory["vectors"] = lambda: _listens(vector_settings.vectors_url)
            yield

    return service_app(
        NAME,
        lifecycle,
        routers=[router],
        lifespan=lifespan,
        description="Knowledge bases, documents and their way into the index, search, memories.",
    )


def _grpc_address(services: ServiceSettings) -> str:
    """Where to listen: the port of the address that the others are given."""
    return f"{services.host}:{services.memory_grpc.rpartition(':')[2]}"


async def _stop(consumer: Kept, task: "asyncio.Task[None]") -> None:
    consumer.stop()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(8):
            await task
    await cancel(task)


async def _warm(system: Database, vectors: Vectors, model: EmbeddingModel) -> None:
    """Load client and model before the first question, once there is something to be found.

    An installation without documents pays neither their memory nor their second.
    """
    while True:
        try:
            async with system.writer() as connection:
                found = await connection.execute(text("select exists (select 1 from document)"))
            if found.scalar_one():
                await asyncio.to_thread(vectors.ensure, model)
                await asyncio.to_thread(model.query, "warm")
                return
        except (SQLAlchemyError, OSError, VectorsError) as error:
            _log.warn("not warm yet", error=type(error).__name__, reason=str(error)[:200])
        await asyncio.sleep(2)


async def _answers(system: Database) -> None:
    async with system.writer() as connection:
        await connection.execute(text("select 1"))


async def _listens(url: str) -> None:
    """Whether the vector store takes connections; its client is not loaded for that."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port or 19530)
    writer.close()
