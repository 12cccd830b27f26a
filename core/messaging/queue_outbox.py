"""Outbox of the work queue: a transaction's messages are rows of the same transaction (law 7).

    async with database.writer() as connection:
        await connection.execute(text("insert …"))
        await enqueue(connection, "document.index", "index", job.encode(), tenant_id)

The relay (`core.messaging.queue_relay`) publishes them with confirms, in order, a few milliseconds
after the commit. What no queue takes waits in `queue_outbox_dead`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from core.clock import now, rfc3339
from core.eventlog.headers import encode
from core.ids import new_id
from core.messaging.trace import with_trace
from core.topology import QUEUES

CHANNEL: Final = "headrace_queue_outbox"
"""NOTIFY channel that wakes the relay."""
MAX_BYTES: Final = 1_000_000
"""Largest body of a message; what is larger goes to the object store."""

FIRST_SEEN, TENANT, FAMILY = "x-first-seen", "x-tenant", "x-family"
"""Headers: RFC 3339 time of the enqueueing, tenant, name of the queue family."""


class UnknownFamilyError(Exception):
    """A name that `core.topology.QUEUES` does not list."""


class MessageTooLargeError(Exception):
    """A body above `MAX_BYTES`."""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message that no queue took."""

    id: int
    tenant_id: str
    family: str
    routing_key: str
    enqueued_at: datetime
    died_at: datetime
    code: str
    """`unroutable` or `unknown_family`."""
    reason: str


async def enqueue(
    connection: AsyncConnection,
    family: str,
    routing_key: str,
    payload: bytes,
    tenant_id: str,
    *,
    message_id: str | None = None,
) -> str:
    """Put a message into the outbox, in the caller's transaction: sent if and only if it commits.

    Args:
        family: name in `core.topology.QUEUES`.
        routing_key: what its exchange routes by.
        message_id: names the work where it can come twice (`derived_id`); random where not given.

    Returns:
        The message's id, which the consumer's inbox sees.

    Raises:
        UnknownFamilyError, MessageTooLargeError: nothing is enqueued.
    """
    if family not in QUEUES:
        raise UnknownFamilyError(f"{family}: not in core.topology.QUEUES; add it there first")
    if len(payload) > MAX_BYTES:
        raise MessageTooLargeError(
            f"{family}: a message has {len(payload)} bytes, {MAX_BYTES} are the most; "
            "put the content into the object store and send its key"
        )
    message_id = message_id or new_id("mq")
    headers = (
        (FIRST_SEEN, rfc3339(now()).encode()),
        (TENANT, tenant_id.encode()),
        (FAMILY, family.encode()),
    )
    await connection.execute(
        text(
            """
            with enqueued as (
                insert into queue_outbox (tenant_id, family, routing_key, message_id, body, headers)
                values (:tenant_id, :family, :routing_key, :message_id, :body, :headers)
            )
            select pg_notify(:channel, '')
            """
        ),
        {
            "tenant_id": tenant_id,
            "family": family,
            "routing_key": routing_key,
            "message_id": message_id,
            "body": payload,
            "headers": encode(with_trace(headers)),
            "channel": CHANNEL,
        },
    )
    return message_id


async def waiting(connection: AsyncConnection) -> tuple[int, float, int]:
    """Messages that wait, age of the oldest in seconds, messages that died (role `system`)."""
    row = (
        await connection.execute(
            text(
                """
                select (select count(*) from queue_outbox),
                       (select extract(epoch from clock_timestamp() - enqueued_at)
                        from queue_outbox order by id limit 1),
                       (select count(*) from queue_outbox_dead)
                """
            )
        )
    ).one()
    return int(row[0]), max(0.0, float(row[1] or 0)), int(row[2])


async def dead(connection: AsyncConnection, limit: int = 100) -> list[DeadMessage]:
    """Messages that no queue took, oldest first (role `system`)."""
    rows = await connection.execute(
        text(
            "select id, tenant_id, family, routing_key, enqueued_at, died_at, code, reason "
            "from queue_outbox_dead order by id limit :limit"
        ),
        {"limit": limit},
    )
    return [DeadMessage(*row) for row in rows]


async def replay(connection: AsyncConnection, ids: Sequence[int]) -> int:
    """Put them back into the outbox, in their old order; returns how many (role `system`)."""
    rows = await connection.execute(
        text(
            """
            with taken as (delete from queue_outbox_dead where id = any(cast(:ids as bigint[])) returning *),
            enqueued as (
                insert into queue_outbox (tenant_id, family, routing_key, message_id, body, headers, enqueued_at)
                select tenant_id, family, routing_key, message_id, body, headers, enqueued_at
                from taken order by id
            )
            select count(*), pg_notify(:channel, '') from taken
            """
        ),
        {"ids": list(ids), "channel": CHANNEL},
    )
    return int(rows.scalar_one())


async def drop(connection: AsyncConnection, ids: Sequence[int]) -> int:
    """Delete them for good; returns how many (role `system`)."""
    rows = await connection.execute(
        text("delete from queue_outbox_dead where id = any(cast(:ids as bigint[]))"), {"ids": list(ids)}
    )
    return rows.rowcount
