"""Publishes cells as the rollup does: absolute values and the watermark, in one transaction."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from sqlalchemy import text

from core.contracts.usage import UsageEvent
from core.database import Database
from core.decimals import canonical, from_nano, nano

_VERSIONS = count(1)

_CELL = text(
    """
    insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity, events, lake_version)
    values (:tenant, :grain, :meter, :period_start, cast(:dimensions as jsonb), :dimensions, cast(:quantity as numeric), :events, :version)
    on conflict (tenant_id, grain, meter, period_start, dimensions_key) do update
    set quantity = excluded.quantity, events = excluded.events, lake_version = excluded.lake_version
    """
)
_FATES = text(
    """
    insert into usage_conservation values (:tenant, :topic_id, :partition, 0, :landed, :counted, :duplicates,
        :quarantined, :rejected, :version, :voids, :checkpoints)
    on conflict (tenant_id, topic_id, partition, block) do update
    set landed = excluded.landed, counted = excluded.counted, duplicates = excluded.duplicates,
        quarantined = excluded.quarantined, rejected = excluded.rejected, lake_version = excluded.lake_version
    """
)
_WATERMARK = text(
    """
    insert into usage_watermark (topic_id, partition, next_offset, lake_version)
    values (:topic_id, :partition, :offset, :version)
    on conflict (topic_id, partition) do update
    set next_offset = excluded.next_offset, lake_version = excluded.lake_version
    """
)


async def publish(
    system: Database,
    *,
    topic_id: str,
    counted: Sequence[UsageEvent] = (),
    watermark: Mapping[int, int],
    fates: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Publish the cells of all events counted so far and where the topic stands; the lake version."""
    version = next(_VERSIONS)
    cells: dict[tuple[str, str, str, datetime, str], list[int]] = {}
    for event in counted:
        hour = event.time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        dimensions = json.dumps(event.data.dimensions, sort_keys=True)
        for grain, start in (("hour", hour), ("day", hour.replace(hour=0))):
            cell = cells.setdefault((event.tenant, grain, event.data.meter, start, dimensions), [0, 0])
            cell[0] += nano(event.data.quantity)
            cell[1] += 1
    async with system.writer() as connection:
        for (tenant, grain, meter, start, dimensions), (units, events) in cells.items():
            await connection.execute(
                _CELL,
                {
                    "tenant": tenant,
                    "grain": grain,
                    "meter": meter,
                    "period_start": start,
                    "dimensions": dimensions,
                    "quantity": canonical(from_nano(units)),
                    "events": events,
                    "version": version,
                },
            )
        for fate in fates:
            await connection.execute(_FATES, {"version": version, "topic_id": topic_id, **fate})
        await connection.execute(
            text("insert into usage_publication (lake_version, slice, code_version) values (:v, :v, 'test')"),
            {"v": version},
        )
        for partition, offset in watermark.items():
            await connection.execute(
                _WATERMARK,
                {"topic_id": topic_id, "partition": partition, "offset": offset, "version": version},
            )
    return version


def fates(tenant: str, partition: int = 0, **counts: int) -> dict[str, Any]:
    """One row of the conservation table; `landed` is the sum of the fates."""
    found = {name: counts.get(name, 0) for name in ("counted", "duplicates", "quarantined", "rejected")}
    kinds = {name: counts.get(name, 0) for name in ("voids", "checkpoints")}
    return {"tenant": tenant, "partition": partition, "landed": sum(found.values()), **found, **kinds}


HOUR = timedelta(hours=1)
