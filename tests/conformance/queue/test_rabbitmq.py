"""The conformance suite on a real RabbitMQ."""

from collections.abc import AsyncIterator

import pytest

from core.queue.api import WorkQueue
from core.queue.rabbitmq import RabbitQueue
from core.settings import DatabaseSettings, QueueSettings
from tests.conformance.queue.delivering import Delivering
from tests.conformance.queue.laddering import Laddering, Outboxing
from tests.conformance.queue.support import Backend

pytestmark = pytest.mark.stack


@pytest.fixture
def backend(rabbitmq: QueueSettings, postgres: DatabaseSettings) -> Backend:
    return Backend(rabbitmq, postgres, lambda: RabbitQueue(rabbitmq))


@pytest.fixture
async def queue(backend: Backend) -> AsyncIterator[WorkQueue]:
    async with backend.open() as opened:
        yield opened


class TestRabbitMQ(Delivering, Laddering, Outboxing):
    """Every test comes from the suite."""
