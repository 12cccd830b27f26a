"""One memory service on servers of its own, because it consumes what others would wait for."""

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import aiohttp
import pytest

from core.database import Database
from core.settings import CacheSettings, ObjectSettings, VectorSettings
from deploy.servers.postgres import postgres as postgres_server
from tests.servers import database_settings, free_port, running
from tests.services.memory.platform import Caller, Indexer, Platform, person
from tests.services.process import REPOSITORY, environment, service


@pytest.fixture(scope="session")
def platform(
    valkey: CacheSettings, milvus_lite: VectorSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    folder, password = tmp_path_factory.mktemp("memory"), secrets.token_hex(16)
    server = postgres_server(folder / "postgres", port := free_port(), password)
    with ExitStack() as stack:
        stack.enter_context(running(server, folder / "postgres.log"))
        settings = database_settings(port, password)
        objects = ObjectSettings(objects_url=(folder / "objects").as_uri())
        grpc = f"127.0.0.1:{free_port()}"
        variables = {
            **environment(folder, settings, valkey, users_port=free_port(), gateway_port=free_port()),
            "HEADRACE_OBJECTS_URL": objects.objects_url,
            "HEADRACE_VECTORS_URL": milvus_lite.vectors_url,
            "HEADRACE_EMBEDDING_MODEL": "hash",
            "HEADRACE_MEMORY_GRPC": grpc,
            "HEADRACE_STATE_DIR": str(folder / "state"),
            "HEADRACE_UPLOAD_MAX_BYTES": "300000",
        }
        subprocess.run(
            [sys.executable, "-m", "deploy.ensure", "topology"], env=variables, cwd=REPOSITORY, check=True
        )
        stack.enter_context(running(service("relay", free_port(), variables), folder / "relay.log"))
        memory = stack.enter_context(
            running(service("memory", free_port(), variables), folder / "memory.log")
        )
        yield Platform(memory.address, grpc, settings, objects, milvus_lite, variables)


@pytest.fixture
async def system(platform: Platform) -> AsyncIterator[Database]:
    """The service's database, as role `system`."""
    database = Database(platform.database, role="system")
    yield database
    await database.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def acme(http: aiohttp.ClientSession, platform: Platform, system: Database) -> Caller:
    """A person of a new organisation."""
    return Caller(http, platform, await person(system))


@pytest.fixture
async def globex(http: aiohttp.ClientSession, platform: Platform, system: Database) -> Caller:
    """A person of another one."""
    return Caller(http, platform, await person(system))


@pytest.fixture
def indexer(platform: Platform, system: Database) -> Indexer:
    return Indexer(platform, system)
