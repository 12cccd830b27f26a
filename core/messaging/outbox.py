"""Outbox: a transaction's messages are rows of the same transaction (law 7).

    async with database.writer() as connection:
        await connection.execute(text("insert …"))
        await enqueue(connection, [NewRecord("usage.records", key, value)], tenant_id)

The relay (`core.messaging.relay`) appends them to the event log a few milliseconds after the commit.
What the log will never take waits in `outbox_dead`; it can be listed, replayed and dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.eventlog.api import NewRecord, RecordTooLargeError, UnknownTopicError
from core.eventlog.headers import Headers, encode, record_size
from core.messaging.trace import with_trace
from core.topology import TOPICS

CHANNEL: Final = "headrace_outbox"
"""NOTIFY channel that wakes the relay."""

_ENQUEUE = text(
    """
    with enqueued as (
        insert into outbox (tenant_id, topic, key, value, headers)
        select :tenant_id, r.topic, r.key, r.value, r.headers
        from unnest(cast(:topics as text[]), cast(:keys as bytea[]), cast(:values as bytea[]), cast(:headers as bytea[]))
             with ordinality as r (topic, key, value, headers, position)
        order by r.position
    )
    select pg_notify(:channel, '')
    """
)


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A record that the event log refused for good."""

    id: int
    tenant_id: str
    topic: str
    size: int
    """Bytes of the value."""
    enqueued_at: datetime
    died_at: datetime
    code: str
    """`unknown_topic` or `too_large`."""
    reason: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in the outbox."""

    records: int
    """Exact up to `Backlog.LIMIT`, then the limit."""
    oldest_seconds: float
    dead: int

    LIMIT = 1_000_000


async def enqueue(connection: AsyncConnection, records: Sequence[NewRecord], tenant_id: str) -> None:
    """Put records into the outbox, in the caller's transaction: sent if and only if it commits.

    The current trace goes along in the headers. Records of one key keep the order given here, and
    the order of transactions that follow one another.

    Raises:
        UnknownTopicError: for a topic that `core.topology` does not list.
        RecordTooLargeError: for one above its topic's `max_record_bytes`. Nothing is enqueued.
    """
    if not records:
        return
    for record in records:
        topic = TOPICS.get(record.topic)
        if topic is None:
            raise UnknownTopicError(f"{record.topic}: not in core.topology; add it there first")
        size = record_size(record)
        if size > topic.max_record_bytes:
            raise RecordTooLargeError(
                f"{record.topic}: a record has {size} bytes; the topic takes {topic.max_record_bytes}"
            )
    encoded: dict[Headers, bytes | None] = {}
    for record in records:
        if record.headers not in encoded:
            encoded[record.headers] = encode(with_trace(record.headers))
    await connection.execute(
        _ENQUEUE,
        {
            "tenant_id": tenant_id,
            "topics": [record.topic for record in records],
            "keys": [record.key for record in records],
            "values": [record.value for record in records],
            "headers": [encoded[record.headers] for record in records],
            "channel": CHANNEL,
        },
    )


async def backlog(connection: AsyncConnection) -> Backlog:
    """What waits (role `system`)."""
    row = (
        await connection.execute(
            text(
                """
                select (select count(*) from (select from outbox limit :limit) waiting),
                       (select extract(epoch from clock_timestamp() - enqueued_at)
                        from outbox order by id limit 1),
                       (select count(*) from outbox_dead)
                """
            ),
            {"limit": Backlog.LIMIT},
        )
    ).one()
    return Backlog(int(row[0]), max(0.0, float(row[1] or 0)), int(row[2]))


async def dead(connection: AsyncConnection, limit: int = 100) -> list[DeadRecord]:
    """Dead records, oldest first (role `system`)."""
    rows = await connection.execute(
        text(
            """
            select id, tenant_id, topic, octet_length(value), enqueued_at, died_at, code, reason
            from outbox_dead order by id limit :limit
            """
        ),
        {"limit": limit},
    )
    return [DeadRecord(*row) for row in rows]


async def replay(connection: AsyncConnection, ids: Sequence[int]) -> int:
    """Put dead records back into the outbox, in their old order; returns how many (role `system`)."""
    rows = await connection.execute(
        text(
            """
            with taken as (delete from outbox_dead where id = any(cast(:ids as bigint[])) returning *),
            enqueued as (
                insert into outbox (tenant_id, topic, key, value, headers, enqueued_at)
                select tenant_id, topic, key, value, headers, enqueued_at from taken order by id
            )
            select count(*), pg_notify(:channel, '') from taken
            """
        ),
        {"ids": list(ids), "channel": CHANNEL},
    )
    return int(rows.scalar_one())


async def drop(connection: AsyncConnection, ids: Sequence[int]) -> int:
    """Delete dead records for good; returns how many (role `system`)."""
    rows = await connection.execute(
        text("delete from outbox_dead where id = any(cast(:ids as bigint[]))"), {"ids": list(ids)}
    )
    return rows.rowcount
