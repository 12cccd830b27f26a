"""How far usage has landed and is published."""

from collections.abc import Mapping
from typing import Any

import psycopg2

from assets.slices.progress import IncidentError, landed_from, landed_offsets, last_slice, next_slice
from core.database.urls import libpq_dsn
from core.lake import Lake
from core.settings import DatabaseSettings
from core.topology import TOPICS

__all__ = [
    "IncidentError",
    "landed_slice",
    "next_slice",
    "not_landed",
    "price_revision",
    "published_offsets",
    "published_slice",
    "published_version",
    "scrub_is_due",
    "slice_at",
]


def landed_slice(lake: Lake) -> int:
    """The last slice `usage_events` holds, 0 for none."""
    return last_slice(lake, "usage_events")


def not_landed(lake: Lake, topic_id: str, ends: Mapping[int, int], reached: Mapping[int, int]) -> int:
    """Records of the topic that stand behind what has landed.

    Args:
        ends: next offset of each partition of the log.
        reached: next offset that is to land, where the caller knows it; of others the table is asked.
    """
    begins = landed_offsets(lake.open("usage_events"), topic_id, max(ends, default=-1) + 1) | dict(reached)
    return sum(max(0, end - begins[partition]) for partition, end in ends.items())


def published_slice(database: DatabaseSettings) -> int:
    """The last slice of the generation in use that PostgreSQL reflects, 0 for none. Behind the landed one
    while a run is owed."""
    counting = "generation = (select coalesce(max(generation), 1) from usage_promotion)"
    rows = _ask(database, f"select coalesce(max(slice), 0) from usage_publication where {counting}")
    return int(rows[0][0])


def published_version(database: DatabaseSettings) -> int | None:
    """The lake version PostgreSQL reflects, None for none."""
    newest: int | None = _ask(database, "select max(lake_version) from usage_publication")[0][0]
    return newest


def slice_at(database: DatabaseSettings, lake_version: int) -> int:
    """The last slice of a publication, 0 where there was none of this version."""
    rows = _ask(
        database,
        f"select coalesce(max(slice), 0) from usage_publication where lake_version = {int(lake_version)}",
    )
    return int(rows[0][0])


def published_offsets(database: DatabaseSettings, lake: Lake) -> dict[tuple[str, int], int]:
    """(topic id, partition) to the next offset that is not published, behind what was accepted as lost."""
    from assets.slices.losses import losses  # noqa: PLC0415 - sensors load this module too

    rows = _ask(database, "select topic_id, partition, next_offset from usage_watermark")
    offsets = {(topic_id, partition): offset for topic_id, partition, offset in rows}
    events = lake.open("usage_events")
    if events is not None:
        for loss in losses(events, landed_from(events), TOPICS["usage.records"].partitions):
            place = loss.topic_id, loss.partition
            if offsets.get(place, 0) == loss.first:
                offsets[place] = loss.end
    return offsets


def price_revision(database: DatabaseSettings) -> int:
    """Last revision of the price book, which is append-only; 0 while it is empty."""
    return int(_ask(database, "select coalesce(max(revision), 0) from price")[0][0])


def scrub_is_due(database: DatabaseSettings) -> bool:
    """True where an object of `usage_events` was not read back for a day, or one is known to be broken."""
    due = "replaced_at is null and (problem is not null or checked_at < now() - interval '1 day')"
    return bool(_ask(database, f"select exists (select from usage_object where {due})")[0][0])


def open_checkpoints(
    database: DatabaseSettings, *, most: int = 1000
) -> list[tuple[str, str, str, int, int, str, int]]:
    """Checkpoints that are not complete, oldest first: tenant, producer, incarnation, first, last, state,
    missing events."""
    found: list[Any] = _ask(
        database,
        "select tenant_id, producer, incarnation, first_sequence, last_sequence, state, missing_events "
        f"from usage_checkpoint where state in ('incomplete', 'different') order by slice, id limit {int(most)}",
    )
    return found


def _ask(database: DatabaseSettings, query: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    finally:
        connection.close()
