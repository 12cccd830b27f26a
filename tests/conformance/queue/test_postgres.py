"""The conformance suite on PostgreSQL tables."""

from collections.abc import AsyncIterator

import pytest

from core.queue.api import WorkQueue
from core.queue.postgres import PostgresQueue
from core.settings import DatabaseSettings, QueueSettings
from tests.conformance.queue.delivering import Delivering
from tests.conformance.queue.laddering import Laddering, Outboxing
from tests.conformance.queue.support import LEASE_SECONDS, Backend


@pytest.fixture
def backend(postgres: DatabaseSettings) -> Backend:
    settings = QueueSettings(queue_url="postgresql:")
    return Backend(settings, postgres, lambda: PostgresQueue(postgres, lease_seconds=LEASE_SECONDS))


@pytest.fixture
async def queue(backend: Backend) -> AsyncIterator[WorkQueue]:
    async with backend.open() as opened:
        yield opened


class TestPostgres(Delivering, Laddering, Outboxing):
    """Every test comes from the suite."""
