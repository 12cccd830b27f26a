"""The relay of the work queue: moves rows of `queue_outbox` to their exchanges, in order, with confirms.

A crash between publish and delete publishes again (consumers have an inbox); where the queue lives in
the same database both are one transaction and nothing is sent twice.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol, runtime_checkable

import asyncpg

from core import telemetry
from core.clock import now
from core.eventlog import headers
from core.log import Logger
from core.messaging.leader import Leader
from core.messaging.queue_outbox import CHANNEL
from core.queue.api import NewMessage, UnroutableError, WorkQueue
from core.settings import DatabaseSettings
from core.topology import QUEUES

LEASE: Final = 0x6872_7175_6575_6562
"""Advisory lock of the one relay that works ("hrqueueb")."""

_log = Logger("headrace.relay")

_BURY = """
    insert into queue_outbox_dead
        (id, tenant_id, family, routing_key, message_id, body, headers, enqueued_at, code, reason)
    select id, tenant_id, family, routing_key, message_id, body, headers, enqueued_at, $2, $3
    from queue_outbox where id = any($1)
"""


@runtime_checkable
class TransactionalQueue(Protocol):
    """A queue in the same database, which can publish inside the caller's transaction."""

    async def publish_in(self, connection: asyncpg.Connection, messages: Sequence[NewMessage]) -> None:
        """As `WorkQueue.publish`, but visible when the caller's transaction commits."""
        ...


class QueueRelay(Leader):
    """Runs until `stop()`. While the queue is away the rows wait.

    Args:
        settings: where the outbox is (role `system`).
        queue: a started work queue.
        transactional: publish and delete in one transaction where the queue can.
        batch: most messages of one publish.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        queue: WorkQueue,
        *,
        transactional: bool = True,
        batch: int = 200,
        poll_seconds: float = 1.0,
    ) -> None:
        super().__init__(
            settings, what="queue relay", lease=LEASE, channel=CHANNEL,
            leading=telemetry.QUEUE_RELAY_LEADING, poll_seconds=poll_seconds,
        )  # fmt: skip
        self._queue = queue
        self._transactional = queue if transactional and isinstance(queue, TransactionalQueue) else None
        self._limit = batch

    async def _batch(self, connection: asyncpg.Connection) -> int:
        """Move the head of the outbox; returns how many rows it dealt with."""
        if self._transactional is None:
            rows = await self._head(connection)
            await self._move(connection, rows, await self._publish(connection, rows))
        else:
            async with connection.transaction():
                rows = await self._head(connection)
                await self._move(connection, rows, await self._publish(connection, rows))
        instant = now()
        for row in rows:
            telemetry.QUEUE_RELAYED.labels(_label(row["family"])).inc()
            telemetry.OUTBOX_LATENCY.observe(max(0.0, (instant - row["enqueued_at"]).total_seconds()))
        return len(rows)

    async def _head(self, connection: asyncpg.Connection) -> list[Any]:
        rows: list[Any] = await connection.fetch(
            "select * from queue_outbox order by id limit $1", self._limit
        )
        return rows

    async def _publish(self, connection: asyncpg.Connection, rows: list[Any]) -> dict[str, list[int]]:
        """Ids of the rows that no queue takes, by code. The rest is durable."""
        unknown = [row["id"] for row in rows if row["family"] not in QUEUES]
        messages = {
            row["id"]: NewMessage(
                QUEUES[row["family"]].exchange, row["routing_key"], row["message_id"], row["body"],
                headers.decode(row["headers"]),
            )
            for row in rows
            if row["family"] in QUEUES
        }  # fmt: skip
        unroutable: list[int] = []
        try:
            if self._transactional is None:
                await self._queue.publish([*messages.values()])
            else:
                await self._transactional.publish_in(connection, [*messages.values()])
        except UnroutableError as error:
            # Two messages of one id may have gone to different exchanges.
            refused = set(map(id, error.messages))
            unroutable = [row for row, message in messages.items() if id(message) in refused]
        return {"unknown_family": unknown, "unroutable": unroutable}

    async def _move(
        self, connection: asyncpg.Connection, rows: list[Any], refused: dict[str, list[int]]
    ) -> None:
        if not rows:
            return
        async with connection.transaction():
            for code, ids in refused.items():
                if ids:
                    await connection.execute(_BURY, ids, code, _REASONS[code])
                    _log.error(
                        "no queue takes messages; they wait in queue_outbox_dead", code=code, n=len(ids)
                    )
            await connection.execute(
                "delete from queue_outbox where id = any($1)", [row["id"] for row in rows]
            )


_REASONS: Final = {
    "unknown_family": "its family is not in core.topology.QUEUES of this version",
    "unroutable": "no queue is bound for its routing key; provision, then replay it",
}


def _label(family: str) -> str:
    return family if family in QUEUES else "unregistered"
