"""PostgreSQL killed under the event log."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from core.eventlog.api import EventLog
from core.eventlog.postgres import PostgresEventLog
from core.settings import DatabaseSettings, EventLogSettings
from deploy.servers.postgres import postgres
from tests.conformance.eventlog.support import Backend
from tests.conformance.eventlog.surviving import Server, Surviving
from tests.servers import database_settings, free_port


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, DatabaseSettings]]:
    folder, port, password = tmp_path_factory.mktemp("killed-postgres"), free_port(), secrets.token_hex(16)
    with Server(postgres(folder, port, password), folder / "log").running() as server:
        yield server, database_settings(port, password)


@pytest.fixture
async def server(own: tuple[Server, DatabaseSettings]) -> Server:
    await own[0].start()
    return own[0]


@pytest.fixture
def backend(own: tuple[Server, DatabaseSettings]) -> Backend:
    settings = EventLogSettings(eventlog_url="postgresql:")
    return Backend(settings, own[1], 1.5, lambda: PostgresEventLog(own[1], session_timeout=1.5, patience=60))


@pytest.fixture
async def log(server: Server, backend: Backend) -> AsyncIterator[EventLog]:
    async with backend.open() as opened:
        yield opened


@pytest.fixture
async def impatient_log(server: Server, backend: Backend) -> AsyncIterator[EventLog]:
    async with PostgresEventLog(backend.database, patience=1.0) as opened:
        yield opened


class TestSurvivingPostgres(Surviving):
    """Every test comes from the suite."""
