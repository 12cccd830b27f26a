"""Every message of a running platform, against docs/asyncapi.json."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from core.asyncapi import PARTS
from core.eventlog import open_eventlog
from core.eventlog.api import Record
from core.queue import open_queue
from core.queue.api import Binding, Delivery
from core.settings import DatabaseSettings, EventLogSettings, QueueSettings
from core.topology import QUEUES, TOPICS
from deploy.client import Client
from deploy.demo import library, mischief
from deploy.installation import Installation
from deploy.session import operator, settings_of
from tests.messages import check

SENT: Final = frozenset(name for part in PARTS.values() for name in part.sends)
"""Topics and queues that some service says it sends to."""
_UNREADABLE: Final = {record.value for record in mischief.unreadable_records("", "")}


async def topics(installation: Installation) -> dict[str, Counter[str]]:
    """How many messages of each type every topic holds; all fit but those that the demo appends to break the contract.

    Raises: AssertionError that shows the first that does not fit.
    """
    found: dict[str, Counter[str]] = {name: Counter() for name in TOPICS}
    async with aclosing(_records(installation)) as records:
        async for record in records:
            if not _meant_to_be_bad(record):
                message = check(record.topic, record.value, record.headers)
                found[record.topic][str(message.get("type", ""))] += 1
    return found


async def _records(installation: Installation) -> AsyncGenerator[Record]:
    log = open_eventlog(
        settings_of(installation, EventLogSettings), settings_of(installation, DatabaseSettings)
    )
    async with log:
        for name in TOPICS:
            for partition, bounds in (await log.bounds(name)).items():
                async for batch in log.read(name, partition, bounds.low, bounds.high):
                    for record in batch:
                        yield record


def _meant_to_be_bad(record: Record) -> bool:
    return record.topic == mischief.TOPIC and (
        record.value in _UNREADABLE or b'"id":"rejected"' in record.value
    )


async def queued(installation: Installation, family: str) -> Delivery:
    """The next message of a queue family as every reader of its exchange gets it, which fits.

    A document is uploaded for it, whose index nobody waits for.
    """
    wanted = QUEUES[family]
    queue = open_queue(settings_of(installation, QueueSettings), settings_of(installation, DatabaseSettings))
    async with (
        queue,
        queue.subscribe(Binding(wanted.exchange, wanted.routing_key), prefetch=10) as consumer,
        asyncio.timeout(60),
    ):
        await asyncio.to_thread(_upload, installation)
        delivery = await consumer.get()
        await consumer.ack(delivery)
    check(family, delivery.body, delivery.headers)
    return delivery


def _upload(installation: Installation) -> None:
    owner = operator(installation)
    with owner.client(), Client(owner.gateway_url, owner.tenant_key("tap")) as client:
        base = library.knowledge_base(client, "tap")
        library.upload(client, base, [(f"{uuid.uuid4()}.md", b"# Tap\n\nA message for its index.\n")])
