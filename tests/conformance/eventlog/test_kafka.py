"""The conformance suite on a real Apache Kafka."""

from collections.abc import AsyncIterator

import pytest

from core.eventlog.api import EventLog
from core.eventlog.kafka import KafkaEventLog
from core.settings import DatabaseSettings, EventLogSettings
from tests.conformance.eventlog.appending import Appending
from tests.conformance.eventlog.grouping import Grouping
from tests.conformance.eventlog.keeping import Keeping
from tests.conformance.eventlog.support import Backend
from tests.conformance.eventlog.tailing import Tailing

pytestmark = pytest.mark.stack


@pytest.fixture
def backend(kafka: EventLogSettings, postgres: DatabaseSettings) -> Backend:
    # 6 s is the shortest session that a broker allows as shipped.
    return Backend(
        kafka, postgres, session_timeout=6.0, open=lambda: KafkaEventLog(kafka, session_timeout=6.0)
    )


@pytest.fixture
async def log(backend: Backend) -> AsyncIterator[EventLog]:
    async with backend.open() as opened:
        yield opened


class TestKafka(Appending, Keeping, Grouping, Tailing):
    """Every test comes from the suite."""
