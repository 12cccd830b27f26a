"""Kafka killed under the event log."""

from collections.abc import AsyncIterator, Iterator

import pytest

from core.eventlog.api import EventLog
from core.eventlog.kafka import KafkaEventLog
from core.settings import DatabaseSettings, EventLogSettings
from deploy.provision import Programs
from deploy.servers.kafka import kafka
from tests.conformance.eventlog.support import Backend
from tests.conformance.eventlog.surviving import Server, Surviving
from tests.servers import free_port

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def own(
    stack_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, EventLogSettings]]:
    folder, port = tmp_path_factory.mktemp("killed-kafka"), free_port()
    component = kafka(folder, port, free_port(), java=stack_programs.java, jars=stack_programs.kafka_jars)
    with Server(component, folder / "log").running() as server:
        yield server, EventLogSettings(eventlog_url=f"kafka://127.0.0.1:{port}")


@pytest.fixture
async def server(own: tuple[Server, EventLogSettings]) -> Server:
    await own[0].start()
    return own[0]


@pytest.fixture
def backend(own: tuple[Server, EventLogSettings], postgres: DatabaseSettings) -> Backend:
    return Backend(own[1], postgres, 6.0, lambda: KafkaEventLog(own[1], session_timeout=6.0, patience=60))


@pytest.fixture
async def log(server: Server, backend: Backend) -> AsyncIterator[EventLog]:
    async with backend.open() as opened:
        yield opened


@pytest.fixture
async def impatient_log(server: Server, backend: Backend) -> AsyncIterator[EventLog]:
    async with KafkaEventLog(backend.eventlog, patience=1.0) as opened:
        yield opened


class TestSurvivingKafka(Surviving):
    """Every test comes from the suite."""

    kills = 1  # a killed broker is let in again only after its session
