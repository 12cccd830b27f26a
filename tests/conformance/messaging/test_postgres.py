"""Messaging on the event log of PostgreSQL tables."""

from collections.abc import AsyncIterator

import pytest

from core.eventlog import open_eventlog
from core.eventlog.api import EventLog
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from tests.conformance.messaging.lanes import LanesSuite
from tests.conformance.messaging.relaying import RelaySuite


@pytest.fixture
async def log(postgres: DatabaseSettings, eventlog_settings: EventLogSettings) -> AsyncIterator[EventLog]:
    async with open_eventlog(eventlog_settings, postgres) as opened:
        await opened.ensure_topics([*TOPICS.values()])
        yield opened


class TestLanes(LanesSuite):
    pass


class TestRelay(RelaySuite):
    exactly_once = True
