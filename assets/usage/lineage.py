"""Whether the lake is the one that was published from: PostgreSQL and lake may be put back apart.

A database put back is brought forward from the lake. A lake put back is an incident: it would land the same
offsets again under other slice numbers, and what was published and purged may be in it no more. A slice's
content is a function of its offsets, so where a published slice ends names the lake.
"""

from typing import Any

import polars as pl
import psycopg2

from assets.slices.losses import losses
from assets.slices.progress import SUCCESSOR
from assets.usage import schema
from assets.usage.generation import finish
from assets.usage.progress import landed_slice
from core.database.urls import libpq_dsn
from core.lake import Lake
from core.lake.read import read
from core.settings import DatabaseSettings
from core.topology import TOPICS


class LakeBehindError(Exception):
    """What is published is not in the lake any more: a person must look before anything moves."""


class SucceededError(Exception):
    """Another generation of the tables counts now. Whoever opens the lake anew goes on there."""


def check(lake: Lake, database: DatabaseSettings) -> None:
    """Whether landing may go on in these tables.

    Raises:
        LakeBehindError: before anything is landed on top of a lake that was put back.
        SucceededError: the tables were closed in favour of another generation. Where whoever closed them
            died before saying so in PostgreSQL, it is said here.
    """
    events = lake.open(schema.EVENTS)
    successor = None if events is None else events.transaction_version(SUCCESSOR)
    if successor is not None:
        finish(database, successor)
        raise SucceededError(
            f"{schema.EVENTS} of generation {lake.generation} was closed: {successor} counts now"
        )
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            check_against(cursor, lake)
    finally:
        connection.close()


def check_against(cursor: Any, lake: Lake) -> None:
    """The same with a cursor of role `system`."""
    cursor.execute(
        "select slice, offsets from usage_publication where generation = %s order by lake_version desc limit 1",
        (lake.generation,),
    )
    row = cursor.fetchone()
    if row is None:
        return
    published, offsets = row
    landed = landed_slice(lake)
    if landed < published:
        raise LakeBehindError(
            f"slice {published} is published, the lake ends at slice {landed}: it was put back to an earlier time. "
            "Restore a lake that holds what was published; nothing was changed"
        )
    other = [
        f"partition {partition} at offset {ends[0]} (published: {offsets.get(topic_id, {}).get(str(partition))})"
        for topic_id, partition, ends in _ends(lake, published)
        if offsets.get(topic_id, {}).get(str(partition)) not in ends
    ]
    if other:
        raise LakeBehindError(
            f"slice {published} of the lake is not the one that was published: it ends {'; '.join(other)}. The lake was "
            "put back to an earlier time and has landed anew since. Restore a lake that holds what was published; "
            "nothing was changed"
        )


def _ends(lake: Lake, number: int) -> list[tuple[str, int, list[int]]]:
    """Topic id, partition and next offset of each partition that a slice has records of: behind its last record, and
    behind what was lost there, if a person accepted that before the slice was published."""
    handle = lake.open(schema.EVENTS)
    if handle is None:
        return []
    columns = {name: schema.EVENTS_SCHEMA[name] for name in ("topic_id", "partition", "offset")}
    rows = read(
        lake,
        schema.EVENTS,
        handle,
        columns,
        where=pl.col("slice") == number,
        within=("slice", number, number),
    )
    last = rows.group_by("topic_id", "partition").agg(pl.col("offset").max() + 1).sort("partition").rows()
    partitions = TOPICS[schema.TOPIC].partitions
    lost = {
        (loss.topic_id, loss.partition, loss.first): loss.end
        for topic_id in {row[0] for row in last}
        for loss in losses(handle, topic_id, partitions)
    }
    found = list[tuple[str, int, list[int]]]()
    for topic_id, partition, end in last:
        ends = [end]
        while (behind := lost.get((topic_id, partition, ends[-1]))) is not None:
            ends.append(behind)
        found.append((topic_id, partition, ends))
    return found
