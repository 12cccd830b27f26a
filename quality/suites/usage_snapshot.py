"""The latest snapshot, as an analyst opens it."""

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from assets.resources import Platform
from core.meters import METERS
from core.snapshots import fetch_latest, read_pointer
from quality.suites.reading import said
from quality.suites.suite import SAMPLE, Expectation, Suite, between, holds, matches, one_of, present

if TYPE_CHECKING:
    import polars as pl

QUERY = f"""
with day as (
    select tenant, meter, date_trunc('day', period_start at time zone 'UTC') as day, sum(quantity) as quantity,
           sum(events) as events
    from usage_hourly group by all
), each as (
    select tenant, meter, date_trunc('day', period_start at time zone 'UTC') as day, dimensions, element,
           min(quantity) as quantity
    from usage_elements group by all
), held as (
    select e.tenant, e.meter, e.day, e.dimensions,
           case m.aggregation when 'unique_count' then count(*) when 'min' then min_by(e.quantity, e.element)
               else max_by(e.quantity, e.element) end as quantity
    from each e join meters m on m.meter = e.meter group by e.tenant, e.meter, e.day, e.dimensions, m.aggregation
)
select d.tenant, d.tenant_slug, d.meter, d.period_start, d.dimensions, d.quantity, d.events,
       (select count(*) from charges c where c.tenant = d.tenant and c.meter = d.meter) as charges,
       (select count(*) from charges c where c.tenant = d.tenant and c.meter = d.meter
            and (c.amount_unrounded < 0 or not exists (select 1 from prices p where p.id = c.price_id))) as strange_charges,
       coalesce(m.is_summable, true) as summable, e.quantity as elements_quantity, h.events as hours_events,
       s.events as days_events, h.quantity as hours_quantity, s.quantity as days_quantity,
       (select value from meta where name = 'lake_version') as lake_version
from usage_daily d
join day h on h.tenant = d.tenant and h.meter = d.meter and h.day = d.period_start at time zone 'UTC'
join (select tenant, meter, period_start, sum(quantity) as quantity, sum(events) as events from usage_daily group by all) s
    on s.tenant = d.tenant and s.meter = d.meter and s.period_start = d.period_start
left join meters m on m.meter = d.meter
left join held e on e.tenant = d.tenant and e.meter = d.meter and e.dimensions = d.dimensions
    and e.day = d.period_start at time zone 'UTC'
order by d.period_start desc, d.tenant, d.meter limit {SAMPLE}
"""


def newest(platform: Platform) -> "pl.DataFrame | None":
    """The newest days of the snapshot that the pointer names, opened from a copy as anybody would."""
    import polars as pl  # noqa: PLC0415

    pointer = asyncio.run(read_pointer(platform.objects, platform.database))
    if pointer is None:
        return None
    with tempfile.TemporaryDirectory(prefix="headrace-suite-") as folder:
        path = asyncio.run(fetch_latest(platform.objects, platform.database, Path(folder)))
        return rows_of(path).with_columns(pointers_version=pl.lit(pointer.lake_version))


def rows_of(path: Path) -> "pl.DataFrame":
    """The newest days of a file."""
    import duckdb  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415

    connection = duckdb.connect(str(path), read_only=True)
    try:
        return pl.DataFrame(connection.sql(QUERY).to_arrow_table())
    finally:
        connection.close()


def prepared(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Rules over several columns as columns of `yes` and `no`. Pure."""
    import polars as pl  # noqa: PLC0415

    return rows.with_columns(
        days_add_up_to_their_hours=said(
            (pl.col("hours_events") == pl.col("days_events"))
            & pl.when("summable")
            .then(pl.col("hours_quantity") == pl.col("days_quantity"))
            .otherwise(pl.col("elements_quantity").fill_null(0) == pl.col("quantity"))
        ),
        shows_the_pointers_version=said(pl.col("lake_version") == pl.col("pointers_version").cast(pl.String)),
    ).drop(
        "summable",
        "elements_quantity",
        "hours_events",
        "days_events",
        "hours_quantity",
        "days_quantity",
        "lake_version",
        "pointers_version",
    )


EXPECTATIONS: tuple[Expectation, ...] = (
    present("tenant", "usage is somebody's"),
    one_of("meter", sorted(METERS), "only meters of the registry are counted"),
    between("quantity", 0, None, "sums of quantities are not negative"),
    between("events", 0, None, "a day cannot hold fewer than no events"),
    matches("dimensions", r"^\{.*\}$", "dimensions are an object"),
    between("strange_charges", 0, 0, "a charge is not negative and names a price that is in the file"),
    holds("days_add_up_to_their_hours", "a day is the sum of its hours, or what its elements are together"),
    holds("shows_the_pointers_version", "the pointer and the file's `meta` name one lake version"),
)

SUITE = Suite("usage_snapshot", "usage_snapshot", "the latest snapshot", newest, prepared, EXPECTATIONS)
