"""The platform with two organisations on it, for the tests that try every route."""

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from core.database import Database
from core.settings import CacheSettings, DatabaseSettings, VectorSettings
from deploy.servers.postgres import postgres as postgres_server
from tests.e2e.tenants import Platform, Side, platform, settle
from tests.servers import database_settings, free_port, running


@pytest.fixture(scope="package")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """A server of its own: agents and memory would consume what others wait for."""
    folder, port, password = tmp_path_factory.mktemp("tenants-postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)


@pytest.fixture(scope="package")
def running_platform(
    postgres: DatabaseSettings,
    valkey: CacheSettings,
    milvus_lite: VectorSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    with platform(tmp_path_factory.mktemp("tenants"), postgres, valkey, milvus_lite) as started:
        yield started


@pytest.fixture(scope="module")
def sides(running_platform: Platform, postgres: DatabaseSettings) -> tuple[Side, Side]:
    """Us and them. No test changes them: what is tried must have no effect."""

    async def both() -> tuple[Side, Side]:
        database = Database(postgres, role="system")
        try:
            return (
                await settle(running_platform, database, "us"),
                await settle(running_platform, database, "them"),
            )
        finally:
            await database.close()

    return asyncio.run(both())
