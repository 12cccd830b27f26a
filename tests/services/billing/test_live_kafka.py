"""The tail on a real Kafka: seen at once, once when landed, through a purge and a topic made anew."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from core.database import Database
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog
from core.ids import new_id
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from services.billing.live import LiveUsage, Published
from tests.services.billing.conftest import TOPIC
from tests.services.billing.published import publish
from tests.services.billing.test_live import append, ends, following, total, wait_for


@pytest.fixture
async def kafka_log(kafka: EventLogSettings, postgres: DatabaseSettings) -> AsyncIterator[EventLog]:
    async with open_eventlog(kafka, postgres) as log:
        await log.ensure_topics([TOPICS[TOPIC]])
        yield log
        await log.delete_topic(TOPIC)


async def becomes(
    live: LiveUsage, read: Callable[[], Awaitable[Published]], tenant: str, events: int
) -> None:
    async with asyncio.timeout(20):
        while not live.is_live or await total(live, read, tenant) != events:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_tail_on_kafka(
    kafka_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    tenant = new_id("org")
    topic = await kafka_log.topic(TOPIC)
    async with following(LiveUsage(kafka_log, published)) as live:
        await wait_for(lambda: live.is_live)
        await append(kafka_log, tenant, 50)
        await becomes(live, published, tenant, 50)
        landed = await ends(kafka_log)
        await publish(system_database, topic_id=topic.id, watermark=landed)
        await becomes(live, published, tenant, 0)
        await kafka_log.purge(TOPIC, landed)
        await append(kafka_log, tenant, 7)
        await becomes(live, published, tenant, 7)
        await kafka_log.delete_topic(TOPIC)
        await kafka_log.ensure_topics([TOPICS[TOPIC]])
        await append(kafka_log, tenant, 3)
        await becomes(live, published, tenant, 3)
