"""Sends spooled counts to the outbox, each segment exactly once.

A segment's counts become usage events whose ids derive from the segment's name, so that sending
again makes the same events. Events and an inbox key with the segment's name are one transaction;
the file goes only after its commit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from prometheus_client import Counter

from core.contracts.usage import TYPE, UsageData, UsageEvent
from core.database import Database
from core.eventlog.api import NewRecord
from core.ids import derived_id
from core.messaging import inbox, outbox
from services.common.spool import Courier
from services.gateway.spool import Cell, Spool, read_segment

CONSUMER: Final = "gateway.spool"
METER: Final = "api.requests"
SOURCE: Final = "gateway"

METERED: Final = Counter("gateway_metered_requests", "Requests whose count reached the outbox")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Send = Callable[[str, dict[str, list[UsageEvent]]], Awaitable[None]]
"""Makes a segment's events durable once, however often it is called; raises where it could not."""


class Meter(Courier):
    """The background task that sends counts."""

    def __init__(self, spool: Spool, send: Send) -> None:
        super().__init__(spool, self._send_counts)
        self._to = send

    async def _send_counts(self, path: Path) -> None:
        began, counts = await asyncio.to_thread(read_segment, path)
        await self._to(path.stem, events(path.stem, began, counts))
        METERED.inc(counts.total())


def events(segment: str, began_ms: int, counts: dict[Cell, int]) -> dict[str, list[UsageEvent]]:
    """Usage events of a segment, by tenant: the same for the same segment, whenever and wherever."""
    instant = _EPOCH + timedelta(milliseconds=began_ms)
    by_tenant: dict[str, list[UsageEvent]] = {}
    for (tenant, route, code_class), count in sorted(counts.items()):
        by_tenant.setdefault(tenant, []).append(
            UsageEvent(
                id=derived_id(METER, segment, tenant, route, code_class),
                source=SOURCE,
                time=instant,
                tenant=tenant,
                data=UsageData(METER, str(count), {"route": route, "code_class": code_class}),
                type=TYPE,
                specversion="1.0",
            )
        )
    return by_tenant


def to_outbox(database: Database) -> Send:
    """Sends into the outbox (role `system`)."""

    async def send(segment: str, by_tenant: dict[str, list[UsageEvent]]) -> None:
        async with database.writer() as connection:
            if await inbox.seen(connection, CONSUMER, segment):
                return
            for tenant, batch in by_tenant.items():
                records = [NewRecord("usage.records", event.key, event.encode()) for event in batch]
                await outbox.enqueue(connection, records, tenant)

    return send
