"""From the lake to PostgreSQL: absolute cells, fates, offsets and what was not counted, in one transaction, only
forward."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import psycopg2

from assets.slices.losses import losses
from assets.slices.progress import landed_from
from assets.usage import quarantine, schema
from assets.usage.elements import cells, standing
from assets.usage.folding import fold_full_blocks
from assets.usage.lineage import LakeBehindError, check_against
from assets.usage.upsert import replace, upsert
from core import crash
from core.crash import Point
from core.database.urls import libpq_dsn
from core.ids import derived_id
from core.lake import Lake
from core.lake.commit import positions
from core.lake.read import read
from core.settings import DatabaseSettings
from core.topology import TOPICS

__all__ = [
    "LakeBehindError",
    "NotRolledUpError",
    "PublicationRefusedError",
    "Published",
    "publish",
]

BLOCK = schema.BLOCKS[-1]
"""Slices in one row of `usage_conservation`."""
CODE_VERSION = "1"
LOCK = 7_240_001
"""Advisory lock of the one publisher."""

_KNOWN_LOSS = """
insert into landing_loss (id, topic, topic_id, partition, first_offset, end_offset, kind, reason, accepted_by)
values (%s, %s, %s, %s, %s, %s, 'gap', 'found in the lake', '-') on conflict (topic_id, partition, first_offset) do nothing
"""
_FIRST_WATERMARK = """
insert into usage_watermark (topic_id, partition, next_offset, lake_version) values (%s, %s, 0, %s) on conflict do nothing
"""
_NEWEST = """
select coalesce(max(lake_version), -1), coalesce(max(slice) filter (where generation = %s), 0), coalesce(max(generation), 1)
from usage_publication
"""
_PUBLICATION = """
insert into usage_publication (lake_version, slice, code_version, generation, offsets)
select %s, %s, %s, %s, coalesce(jsonb_object_agg(topic_id, offsets), '{}') from (
    select topic_id, jsonb_object_agg(partition, next_offset) as offsets from usage_watermark group by topic_id) w
"""


@dataclass(frozen=True, slots=True)
class Published:
    """`lake_version` and `slice` are what PostgreSQL reflects now; `meters` how many cells of each were published."""

    lake_version: int
    slice: int
    meters: Mapping[str, int] = field(default_factory=dict)
    first: int | None = None
    """First of the slices that were published now, widened to whole folded blocks."""
    booked: int = 0
    """Records of those slices that have a fate."""

    @property
    def cells(self) -> int:
        return sum(self.meters.values())


class PublicationRefusedError(Exception):
    """PostgreSQL refused the rows. Its own message would quote them, so this one names the rule."""


class NotRolledUpError(Exception):
    """`usage_daily` does not hold what `usage_hourly` holds; publishing both would disagree."""


def publish(lake: Lake, database: DatabaseSettings) -> Published | None:
    """Publish what the lake has and PostgreSQL lacks. Safe to repeat at any time.

    Returns:
        None while nothing was ever rolled up.

    Raises:
        NotRolledUpError: run `usage_daily` first.
        LakeBehindError: the lake was put back to an earlier time.
    """
    hourly, day = lake.open(schema.HOURLY), lake.open(schema.DAILY)
    if hourly is None or day is None:
        return None
    version = int(hourly.version())
    last = positions(hourly, [schema.ROLLED])[schema.ROLLED]
    if last is None:
        return None
    if positions(day, [schema.ROLLED])[schema.ROLLED] != last:
        raise NotRolledUpError(
            f"usage_hourly is at slice {last}, usage_daily is not; roll it up, then publish"
        )
    crash.here(Point.ROLLED_UP)
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
            cursor.execute(_NEWEST, (lake.generation,))
            published_version, published_slice, generation = cursor.fetchone()
            check_against(cursor, lake)
            if generation > lake.generation:
                return Published(published_version, published_slice)  # these tables count no more
            if published_slice == last:
                _go_over_losses(cursor, lake, published_version)
                return Published(published_version, published_slice)
            # A table that was made anew begins with small versions; what is published only goes forward.
            version = max(version, published_version + 1)
            found, elements = _cells(lake, hourly, day, published_slice + 1, last, version)
            # The first publication of a promoted generation is all there is; what the one before had besides goes.
            write = replace if generation < lake.generation else upsert
            write(cursor, "usage_cell", found)
            write(cursor, "usage_element", elements)
            fates, watermark, (first, booked) = _fates(lake, hourly, published_slice + 1, last, version)
            upsert(cursor, "usage_conservation", fates)
            upsert(cursor, "usage_watermark", watermark)
            if fates.select((pl.col("quarantined") + pl.col("rejected")).sum()).item():
                upsert(
                    cursor,
                    "usage_quarantine",
                    quarantine.not_counted(lake, published_slice + 1, last, version),
                )
            _go_over_losses(cursor, lake, version)
            if generation < lake.generation:
                _remove_older(cursor, version)
            crash.here(Point.PUBLISHING)
            cursor.execute(_PUBLICATION, (version, last, CODE_VERSION, lake.generation))
    except psycopg2.IntegrityError as error:
        raise PublicationRefusedError(
            f"SQLSTATE {error.pgcode}, table {error.diag.table_name}, constraint {error.diag.constraint_name}"
        ) from None
    except psycopg2.DataError as error:
        raise PublicationRefusedError(f"SQLSTATE {error.pgcode}: a value does not fit its column") from None
    finally:
        connection.close()
    crash.here(Point.PUBLISHED)
    # Now that everybody has these slices, they need not stand alone any more.
    fold_full_blocks(lake, published_slice, last)
    meters = found.group_by("meter").len().sort("meter") if len(found) else found
    return Published(version, last, dict(meters.iter_rows()), first, booked)


def _cells(
    lake: Lake, hourly: Any, day: Any, first: int, last: int, version: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Absolute values of every cell that slices [first, last] touched, at both grains, and the elements of
    hours that they touched."""
    grains, elements = list[pl.DataFrame](), pl.DataFrame()
    for grain, table, handle, period, types in (
        ("hour", schema.HOURLY, hourly, "hour", schema.HOURLY_SCHEMA),
        ("day", schema.DAILY, day, "day", schema.DAILY_SCHEMA),
    ):
        part = {"kind": schema.CELL} if table == schema.HOURLY else None
        keys = ["tenant", "meter", period, "dimensions"]
        columns = {name: types[name] for name in (*keys, "element", "slice", "quantity", "events")}
        new = read(
            lake, table, handle, columns,
            where=pl.col("slice").is_between(first, last), within=("slice", first, last), part=part,
        )  # fmt: skip
        if new.is_empty():
            continue
        periods = new[period].unique()
        old = read(
            lake, table, handle, columns,
            where=pl.col(period).is_in(periods.implode()) & (pl.col("slice") < first),
            within=(period, periods.min(), periods.max()), part=part,
        )  # fmt: skip
        old = old.join(new.select(keys).unique(), on=keys, how="semi")
        rows = pl.concat([new, old])
        if grain == "hour" and new["element"].null_count() < len(new):
            elements = _elements(new, rows, keys, version)
        grains.append(
            cells(rows, keys).select(
                tenant_id="tenant",
                grain=pl.lit(grain),
                meter="meter",
                period_start=period,
                dimensions="dimensions",
                dimensions_key=key_of("dimensions"),
                quantity="quantity",
                events="events",
                lake_version=pl.lit(version),
            )
        )
    return pl.concat(grains) if grains else pl.DataFrame(), elements


def _elements(new: pl.DataFrame, rows: pl.DataFrame, keys: list[str], version: int) -> pl.DataFrame:
    """Absolute elements that the new rows touch; one without events stays, with none, and counts for nothing."""
    touched = new.select(*keys, "element").drop_nulls("element").unique()
    worth = standing(rows, keys)
    return touched.join(worth, on=[*keys, "element"], how="left").select(
        tenant_id="tenant",
        meter="meter",
        period_start="hour",
        dimensions="dimensions",
        dimensions_key=key_of("dimensions"),
        element="element",
        quantity=pl.col("quantity").fill_null(pl.lit("0").cast(schema.QUANTITY)),
        events=pl.col("events").fill_null(0),
        lake_version=pl.lit(version),
    )


def _fates(
    lake: Lake, hourly: Any, first: int, last: int, version: int
) -> tuple[pl.DataFrame, pl.DataFrame, tuple[int, int]]:
    """Absolute fates of the blocks that slices [first, last] touched, the next offset of each partition, and of
    these slices, widened to whole folded blocks, the first and how many records have a fate."""
    begin = (first - 1) // BLOCK * BLOCK + 1
    rows = read(
        lake, schema.HOURLY, hourly, {name: schema.HOURLY_SCHEMA[name] for name in schema.FATE_COLUMNS},
        where=pl.col("slice").is_between(begin, last), within=("slice", begin, last), part={"kind": schema.FATE},
    )  # fmt: skip
    counts = (*schema.FATE_COUNTS, *schema.KIND_COUNTS)
    fates = (
        rows.group_by("tenant", "topic_id", "partition", block=(pl.col("slice") - 1) // BLOCK)
        .agg(pl.col("landed", *counts).sum())
        .rename({"tenant": "tenant_id"})
        .with_columns(lake_version=pl.lit(version))
    )
    watermark = rows.group_by("topic_id", "partition").agg(pl.col("next_offset").max())
    new = rows.filter(pl.col("slice") >= first)
    booked = int(sum(new[name].sum() for name in schema.FATE_COUNTS))
    carried = min([first, *new["since"]]), booked
    return fates, watermark.with_columns(lake_version=pl.lit(version)), carried


def _remove_older(cursor: Any, version: int) -> None:
    """Fates that another generation published and this one does not have. What people decided stays."""
    cursor.execute("delete from usage_conservation where lake_version < %s", (version,))
    cursor.execute("delete from usage_quarantine where lake_version < %s and state = 'open'", (version,))


def _go_over_losses(cursor: Any, lake: Lake, version: int) -> None:
    """What a person accepted as lost is behind the watermark, and known here whatever was put back."""
    events = lake.open(schema.EVENTS)
    if events is None:
        return
    for loss in losses(events, landed_from(events), TOPICS[schema.TOPIC].partitions):
        row = (loss.topic_id, loss.partition, loss.first, loss.end)
        cursor.execute(_KNOWN_LOSS, (derived_id("loss", *map(str, row)), schema.TOPIC, *row))
        if loss.first == 0:
            cursor.execute(_FIRST_WATERMARK, (loss.topic_id, loss.partition, max(version, 0)))
        cursor.execute(
            "update usage_watermark set next_offset = %s where topic_id = %s and partition = %s and next_offset = %s",
            (loss.end, loss.topic_id, loss.partition, loss.first),
        )


def key_of(column: str) -> pl.Expr:
    """A fixed-length name of a text: 16 dimensions of 256 characters would not fit an index entry."""
    return pl.col(column).map_batches(
        lambda texts: texts.replace_strict(
            {text: hashlib.sha256(text.encode()).hexdigest() for text in texts.unique()},
            return_dtype=pl.String,
        ),
        return_dtype=pl.String,
    )
