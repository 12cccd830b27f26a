"""The outbox relay: moves rows of `outbox` to the event log, in order per key, losing none.

One relay works at a time (`core.messaging.leader`). A crash between append and delete sends
the batch again (consumers know identities); where the log lives in the same database, append and
delete are one transaction and nothing is sent twice.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import asyncpg

from core import telemetry
from core.clock import now
from core.eventlog import headers
from core.eventlog.api import EventLog, NewRecord, Position, RecordTooLargeError, UnknownTopicError
from core.log import Logger
from core.messaging.leader import Leader
from core.messaging.outbox import CHANNEL
from core.settings import DatabaseSettings
from core.topology import TOPICS

LEASE: Final = 0x6872_6F75_7462_6F78
"""Advisory lock of the one relay that works ("hroutbox")."""

_log = Logger("headrace.relay")

_HEAD = """
    select id, tenant_id, topic, key, value, headers, enqueued_at
    from (
        select head.*, sum(octet_length(value)) over (order by id) - octet_length(value) as before
        from (select * from outbox order by id limit $1) head
    ) bounded
    where before < $2 order by id
"""
_BURY = """
    insert into outbox_dead (id, tenant_id, topic, key, value, headers, enqueued_at, code, reason)
    select id, tenant_id, topic, key, value, headers, enqueued_at, $2, $3 from outbox where id = any($1)
"""


@runtime_checkable
class TransactionalLog(Protocol):
    """A log in the same database, which can append inside the caller's transaction."""

    async def append_in(self, connection: asyncpg.Connection, records: Sequence[NewRecord]) -> list[Position]:
        """As `EventLog.append`, but visible when the caller's transaction commits; a refusal leaves
        that transaction usable."""
        ...


@dataclass(frozen=True, slots=True)
class _Refused:
    ids: list[int]
    topic: str
    code: str
    reason: str


class OutboxRelay(Leader):
    """Runs until `stop()`. Losing the database or the log is waited out with growing pauses.

    Args:
        settings: where the outbox is (role `system`).
        log: a started event log.
        transactional: append and delete in one transaction where the log can.
        batch_records: most records of one append.
        batch_bytes: a batch ends with the record that reaches this size.
        poll_seconds: looks this often without being woken, should a notification be lost.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        log: EventLog,
        *,
        transactional: bool = True,
        batch_records: int = 500,
        batch_bytes: int = 4_000_000,
        poll_seconds: float = 1.0,
    ) -> None:
        super().__init__(
            settings, what="outbox relay", lease=LEASE, channel=CHANNEL, leading=telemetry.OUTBOX_LEADING,
            poll_seconds=poll_seconds,
        )  # fmt: skip
        self._log = log
        self._transactional = log if transactional and isinstance(log, TransactionalLog) else None
        self._limits = (batch_records, batch_bytes)

    async def _batch(self, connection: asyncpg.Connection) -> int:
        """Move the head of the outbox; returns how many rows it dealt with."""
        if self._transactional is None:
            rows = await connection.fetch(_HEAD, *self._limits)
            refused = await self._deliver(connection, rows)
            if rows:
                async with connection.transaction():
                    await self._forget(connection, rows, refused)
        else:
            async with connection.transaction():
                rows = await connection.fetch(_HEAD, *self._limits)
                refused = await self._deliver(connection, rows)
                await self._forget(connection, rows, refused)
        self._measure(rows, refused)
        return len(rows)

    @staticmethod
    async def _forget(connection: asyncpg.Connection, rows: list[Any], refused: list[_Refused]) -> None:
        """Take the rows out of the outbox, in the caller's transaction; what was refused is buried."""
        for group in refused:
            await connection.execute(_BURY, group.ids, group.code, group.reason[:500])
        if rows:
            await connection.execute("delete from outbox where id = any($1)", [row["id"] for row in rows])

    async def _deliver(self, connection: asyncpg.Connection, rows: list[Any]) -> list[_Refused]:
        """Append the rows; returns those that the log will never take. The rest is durable."""
        if not rows:
            return []
        records = [
            NewRecord(row["topic"], row["key"], row["value"], headers.decode(row["headers"])) for row in rows
        ]
        try:
            if self._transactional is None:
                await self._log.append(records)
            else:
                await self._transactional.append_in(connection, records)
        except (UnknownTopicError, RecordTooLargeError) as error:
            ids = [row["id"] for row in rows]
            topics = list(dict.fromkeys(record.topic for record in records))
            if len(topics) > 1:
                # Order holds within a topic, so each may go on its own.
                parts = [[row for row in rows if row["topic"] == topic] for topic in topics]
            elif isinstance(error, UnknownTopicError):
                return [_Refused(ids, topics[0], "unknown_topic", str(error))]
            elif len(rows) == 1:
                return [_Refused(ids, topics[0], "too_large", str(error))]
            else:
                parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            return [refused for part in parts for refused in await self._deliver(connection, part)]
        return []

    @staticmethod
    def _measure(rows: list[Any], refused: list[_Refused]) -> None:
        instant = now()
        for group in refused:
            telemetry.OUTBOX_DEAD.labels(_label(group.topic), group.code).inc(len(group.ids))
            _log.error(
                "the event log refused records; they wait in outbox_dead",
                topic=group.topic,
                code=group.code,
                records=len(group.ids),
            )
        dead = {row_id for group in refused for row_id in group.ids}
        moved = [row for row in rows if row["id"] not in dead]
        for topic, records in Counter(row["topic"] for row in moved).items():
            telemetry.OUTBOX_RELAYED.labels(_label(topic)).inc(records)
        for row in moved:
            latency = (instant - row["enqueued_at"]).total_seconds()
            telemetry.OUTBOX_LATENCY.observe(max(0.0, latency))


def _label(topic: str) -> str:
    """Only registered names become labels: a label is kept for the life of the process."""
    return topic if topic in TOPICS else "unregistered"
