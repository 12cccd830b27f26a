"""What a consumer of the event log left out for good, with the reason (law 4: no record vanishes).

A record that can never be worked on would hold its partition for ever. It is written down here before
the consumer goes on; its content stays in the log as long as the topic keeps it.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from prometheus_client import Counter
from sqlalchemy import text

from core.database import Database
from core.eventlog.api import Record
from core.log import Logger

KEEP: Final = timedelta(days=30)
Code = Literal["unreadable", "refused"]
"""It breaks its contract; the database would never take what it says."""

SKIPPED: Final = Counter(
    "events_skipped", "Records that a consumer left out for good", ["topic", "group", "code"]
)
_MAX_REASON: Final = 500
_log = Logger("headrace.skipped")


async def skip(database: Database, consumer: str, record: Record, code: Code, reason: str) -> None:
    """Write it down; once, however often the record is read (role `system`).

    Args:
        reason: without the record's content.
    """
    async with database.writer() as connection:
        rows = await connection.execute(
            text(
                "insert into event_skipped (consumer, topic, partition, log_offset, appended_at, code, reason)"
                " values (:consumer, :topic, :partition, :offset, :appended, :code, :reason) on conflict do nothing"
            ),
            {
                "consumer": consumer,
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "appended": datetime.fromtimestamp(record.timestamp_ms / 1000, UTC),
                "code": code,
                "reason": reason[:_MAX_REASON],
            },
        )
    if rows.rowcount:
        SKIPPED.labels(record.topic, consumer, code).inc()
        _log.error(
            "a record is left out", group=consumer, topic=record.topic, partition=record.partition,
            offset=record.offset, code=code, reason=reason[:_MAX_REASON],
        )  # fmt: skip


async def forget_old(database: Database) -> int:
    """Delete what is older than `KEEP`; returns how many (role `system`)."""
    async with database.writer() as connection:
        rows = await connection.execute(
            text("delete from event_skipped where skipped_at < now() - cast(:keep as interval)"),
            {"keep": KEEP},
        )
    return rows.rowcount
