"""What only the event log on Kafka has: settings of topics, and records of other producers."""

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from core.eventlog.kafka import KafkaEventLog
from core.eventlog.kafka_protocol import AlterTopics
from core.settings import EventLogSettings
from core.topology import Topic

pytestmark = pytest.mark.stack


def _topic(name: str, retention: timedelta) -> Topic:
    return Topic(name, 1, retention, "key", "bytes")


@pytest.fixture
def servers(kafka: EventLogSettings) -> str:
    return kafka.eventlog_url.removeprefix("kafka://")


@pytest.fixture
async def log(kafka: EventLogSettings) -> AsyncIterator[KafkaEventLog]:
    async with KafkaEventLog(kafka) as opened:
        yield opened


@pytest.fixture
async def admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    yield client
    await client.close()


async def _settings(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def test_provisioning_sets_what_the_registry_says_and_keeps_what_an_operator_set(
    log: KafkaEventLog, admin: AIOKafkaAdminClient
) -> None:
    name = f"test.{uuid.uuid4().hex}"
    await log.ensure_topics([_topic(name, timedelta(days=30))])
    first = await _settings(admin, name)
    assert (first["retention.ms"], first["cleanup.policy"]) == (str(30 * 86_400_000), "delete")
    assert (first["min.insync.replicas"], first["message.timestamp.type"]) == ("1", "LogAppendTime")
    await admin._send_to_controller(AlterTopics({name: {"segment.bytes": "1234567"}}))
    await log.ensure_topics([_topic(name, timedelta(days=7))])
    assert await _settings(admin, name) == first | {
        "retention.ms": str(7 * 86_400_000),
        "segment.bytes": "1234567",
    }


async def test_times_are_the_brokers_whatever_a_producer_says(log: KafkaEventLog, servers: str) -> None:
    name = f"test.{uuid.uuid4().hex}"
    await log.ensure_topics([_topic(name, timedelta(days=1))])
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    await producer.send_and_wait(name, b"value", timestamp_ms=1)
    await producer.stop()
    (record,) = [r async for batch in log.read(name, 0, 0, 1) for r in batch]
    assert record.timestamp_ms > 1_700_000_000_000
    assert (record.key, record.headers) == (b"", ())
