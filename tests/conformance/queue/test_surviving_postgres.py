"""PostgreSQL killed under the work queue."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from core.database import Database
from core.queue.postgres import PostgresQueue
from core.settings import DatabaseSettings, QueueSettings
from deploy.servers.postgres import postgres
from tests.conformance.eventlog.surviving import Server
from tests.conformance.queue.support import LEASE_SECONDS, Backend
from tests.conformance.queue.surviving import PATIENCE, Surviving
from tests.servers import database_settings, free_port


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, DatabaseSettings]]:
    folder, port, password = tmp_path_factory.mktemp("killed-queue"), free_port(), secrets.token_hex(16)
    with Server(postgres(folder, port, password), folder / "log").running() as server:
        yield server, database_settings(port, password)


@pytest.fixture
def server(own: tuple[Server, DatabaseSettings]) -> Server:
    return own[0]


@pytest.fixture
async def app_database(own: tuple[Server, DatabaseSettings]) -> AsyncIterator[Database]:
    database = Database(own[1], role="app")
    yield database
    await database.close()


@pytest.fixture
def backend(own: tuple[Server, DatabaseSettings]) -> Backend:
    settings = QueueSettings(queue_url="postgresql:")
    return Backend(
        settings, own[1], lambda: PostgresQueue(own[1], patience=PATIENCE, lease_seconds=LEASE_SECONDS)
    )


class TestSurvivingPostgres(Surviving):
    """Every test comes from the suite."""
