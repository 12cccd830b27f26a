"""Messaging on a real Kafka, the outbox in PostgreSQL."""

from collections.abc import AsyncIterator

import pytest

from core.eventlog import open_eventlog
from core.eventlog.api import EventLog
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from tests.conformance.messaging.lanes import LanesSuite
from tests.conformance.messaging.relaying import RelaySuite

pytestmark = pytest.mark.stack


@pytest.fixture
async def log(postgres: DatabaseSettings, kafka: EventLogSettings) -> AsyncIterator[EventLog]:
    async with open_eventlog(kafka, postgres) as opened:
        await opened.ensure_topics([*TOPICS.values()])
        yield opened


class TestLanes(LanesSuite):
    pass


class TestRelay(RelaySuite):
    exactly_once = False
