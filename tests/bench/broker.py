"""A real Kafka for a bench, and records put into it as fast as they can be made."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Producer

from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord
from core.settings import DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from deploy.provision import provision
from deploy.servers.kafka import kafka as kafka_server
from tests.servers import free_ports, running

NO_DATABASE = DatabaseSettings(
    database_url="postgresql://127.0.0.1:1/none", database_app_password="-", database_system_password="-"
)
"""What the log on tables would need; Kafka does not look at it."""


@contextmanager
def broker(folder: Path) -> Iterator[EventLogSettings]:
    """One broker of Apache Kafka in `folder`, without topics; provisioned first where it is missing."""
    programs = provision(lambda line: print(line, flush=True))
    port, controller = free_ports(2)
    server = kafka_server(folder, port, controller, java=programs.java, jars=programs.kafka_jars)
    with running(server, folder / "kafka.log"):
        yield EventLogSettings(eventlog_url=f"kafka://127.0.0.1:{port}")


def address(settings: EventLogSettings) -> str:
    return settings.eventlog_url.removeprefix("kafka://").rstrip("/")


async def make_topic(settings: EventLogSettings, name: str) -> None:
    async with open_eventlog(settings, NO_DATABASE) as log:
        await log.ensure_topics([TOPICS[name]])


def send(settings: EventLogSettings, batches: Iterable[list[NewRecord]]) -> int:
    """Append and wait until all are acknowledged; returns how many."""
    producer = Producer(
        {
            "bootstrap.servers": address(settings),
            "partitioner": "murmur2_random",
            "compression.type": "zstd",
            "linger.ms": 20,
            "queue.buffering.max.messages": 200_000,
        }
    )
    sent = 0
    for batch in batches:
        for record in batch:
            while True:
                try:
                    producer.produce(record.topic, record.value, record.key)
                    break
                except BufferError:
                    producer.poll(0.1)
        sent += len(batch)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"Kafka did not acknowledge {left} records")
    return sent


def create(settings: EventLogSettings, topic: str, batches: Iterable[list[NewRecord]]) -> int:
    """The topic with these records in it."""
    asyncio.run(make_topic(settings, topic))
    return send(settings, batches)
