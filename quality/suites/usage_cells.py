"""The published cells that changed last."""

from typing import TYPE_CHECKING

from assets.resources import Platform
from core.meters import METERS, not_summable
from quality.suites.reading import ask, said
from quality.suites.suite import SAMPLE, Expectation, Suite, between, holds, matches, one_of, unique

if TYPE_CHECKING:
    import polars as pl

QUERY = f"""
select c.tenant_id as tenant, c.grain, c.meter, c.period_start, c.dimensions::text as dimensions, c.dimensions_key,
       c.quantity, c.events, c.lake_version, p.newest,
       (select sum(e.events) from usage_element e
        where e.tenant_id = c.tenant_id and e.meter = c.meter and e.dimensions_key = c.dimensions_key
            and e.period_start >= c.period_start
            and e.period_start < c.period_start + case c.grain when 'day' then interval '1 day' else interval '1 hour' end
       ) as elements_events
from usage_cell c, (select max(lake_version) as newest from usage_publication) p
order by c.lake_version desc, c.tenant_id, c.period_start limit {SAMPLE}
"""


def newest(platform: Platform) -> "pl.DataFrame | None":
    """The cells of the newest publications."""
    found = ask(platform.database, QUERY)
    return None if found.is_empty() else found


def prepared(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Rules over several columns as columns of `yes` and `no`. Pure."""
    import polars as pl  # noqa: PLC0415

    start = pl.col("period_start")
    every = pl.when(pl.col("grain") == "day").then(start.dt.truncate("1d")).otherwise(start.dt.truncate("1h"))
    return rows.with_columns(
        starts_with_its_period=said(start == every),
        stands_for_every_event=said(
            pl.col("meter").is_in(not_summable()).not_() | (pl.col("elements_events") == pl.col("events"))
        ),
        is_published=said(pl.col("lake_version") <= pl.col("newest")),
    ).drop("newest", "elements_events")


EXPECTATIONS: tuple[Expectation, ...] = (
    unique(["tenant", "grain", "meter", "period_start", "dimensions_key"], "a cell stands once"),
    one_of("grain", ["hour", "day"], "cells are hours and days"),
    one_of("meter", sorted(METERS), "only meters of the registry are counted"),
    between("quantity", 0, None, "sums, extremes and counts of quantities are not negative"),
    between("events", 0, None, "a cell cannot hold fewer than no events"),
    matches("dimensions", r"^\{.*\}$", "dimensions are an object"),
    matches("dimensions_key", "^[0-9a-f]{64}$", "the key is a SHA-256"),
    holds("starts_with_its_period", "an hour starts at a full hour, a day at midnight UTC"),
    holds(
        "stands_for_every_event",
        "elements of a meter that cannot be added up have as many events as its cell",
    ),
    holds("is_published", "no cell is ahead of what is published"),
)

SUITE = Suite(
    "usage_cells", "usage_cells", "the published cells that changed last", newest, prepared, EXPECTATIONS
)
