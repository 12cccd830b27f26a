"""What the relay does on clocks: measure backlogs, delete what has expired. None is part of relaying."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from core import telemetry
from core.database import Database
from core.eventlog.api import EventLog
from core.log import Logger
from core.messaging import idempotency, inbox, outbox, queue_outbox
from core.messaging import skipped as skipped_records
from core.messaging.queues import GROUP
from core.messaging.watchdog import lag
from core.objects.api import ObjectStore
from core.queue.api import WorkQueue
from core.topology import dead_letters_of, queue_names

PUBLISHED: Final = "usage.records"
"""Topic whose published cells are compared with its end."""
FACTS: Final = text(
    "select (select count(*) from usage_object where replaced_at is null and problem is not null), "
    "count(*) filter (where state = 'incomplete'), count(*) filter (where state = 'different'), "
    "coalesce(sum(missing_events), 0)::bigint from usage_checkpoint where state in ('incomplete', 'different')"
)

_LOG = Logger("services.relay.chores")


@dataclass(frozen=True, slots=True)
class Chore:
    name: str
    every: float
    """Seconds between the end of one round and the start of the next."""
    work: Callable[[], Awaitable[None]]

    async def run(self) -> None:
        """Repeat until cancelled; a round that fails is logged and the next one tries again."""
        while True:
            try:
                await self.work()
            except Exception as error:
                # Servers come and go; a chore must outlive them all.
                _LOG.warn("chore failed", chore=self.name, error=f"{type(error).__name__}: {error}"[:500])
            await asyncio.sleep(self.every)


def chores(database: Database, log: EventLog, objects: ObjectStore, queue: WorkQueue) -> tuple[Chore, ...]:
    """All chores of the relay.

    Args:
        database: role `system`, with connections of its own: measured outside the relay's.
        log: the started event log.
        objects: the open object store.
        queue: the started work queue.
    """

    async def measure() -> None:
        async with database.writer() as connection:
            backlog = await outbox.backlog(connection)
        telemetry.CONSUMER_LAG_RECORDS.labels("outbox", "relay").set(backlog.records)
        telemetry.CONSUMER_LAG_SECONDS.labels("outbox", "relay").set(backlog.oldest_seconds)
        telemetry.OUTBOX_DEAD_WAITING.set(backlog.dead)

    async def measure_queues() -> None:
        async with database.writer() as connection:
            messages, oldest, dead = await queue_outbox.waiting(connection)
        telemetry.CONSUMER_LAG_RECORDS.labels("queue_outbox", "relay").set(messages)
        telemetry.CONSUMER_LAG_SECONDS.labels("queue_outbox", "relay").set(oldest)
        telemetry.QUEUE_DEAD_WAITING.labels("queue_outbox").set(dead)
        names = queue_names()
        depths = await queue.depths([*names, *map(dead_letters_of, names)])
        for name in names:
            if depth := depths.get(name):
                telemetry.CONSUMER_LAG_RECORDS.labels(name, GROUP).set(depth.ready)
                if depth.oldest_seconds is not None:
                    telemetry.CONSUMER_LAG_SECONDS.labels(name, GROUP).set(depth.oldest_seconds)
            if depth := depths.get(dead_letters_of(name)):
                telemetry.QUEUE_DEAD_WAITING.labels(name).set(depth.ready)

    async def measure_publication() -> None:
        # The slices' position lies in the lake; what of it is published stands in the database.
        topic = await log.topic(PUBLISHED)
        async with database.writer() as connection:
            rows = await connection.execute(
                text("select partition, next_offset from usage_watermark where topic_id = :topic"),
                {"topic": topic.id},
            )
            positions = {int(row[0]): int(row[1]) for row in rows}
        behind = await lag(log, PUBLISHED, positions)
        telemetry.CONSUMER_LAG_RECORDS.labels(PUBLISHED, "usage_cells").set(behind.records)
        telemetry.CONSUMER_LAG_SECONDS.labels(PUBLISHED, "usage_cells").set(behind.seconds)

    async def measure_facts() -> None:
        async with database.writer() as connection:
            damaged, incomplete, different, missing = (await connection.execute(FACTS)).one()
        telemetry.USAGE_DAMAGED_OBJECTS.set(damaged)
        telemetry.USAGE_MISSING_EVENTS.set(missing)
        telemetry.USAGE_OPEN_CHECKPOINTS.labels("incomplete").set(incomplete)
        telemetry.USAGE_OPEN_CHECKPOINTS.labels("different").set(different)

    async def sweep() -> None:
        async with database.writer() as connection:
            answers = await idempotency.forget_old(connection)
        async with database.writer() as connection:
            keys = await inbox.forget_old(connection)
        skipped = await skipped_records.forget_old(database)
        _LOG.info("swept", idempotency_keys=answers, inbox_keys=keys, skipped_records=skipped)

    return (
        Chore("backlog", 2, measure),
        Chore("queues", 5, measure_queues),
        Chore("publication lag", 5, measure_publication),
        Chore("facts of usage", 600, measure_facts),
        Chore("sweep", 600, sweep),
        Chore("expire records", 60, log.expire),
        Chore("sweep objects", 3600, objects.sweep),
    )
