"""Usage as it was known at a slice: what an issued invoice or an old snapshot is computed from again.

A slice number is the time axis of knowledge: `usage_hourly` keeps for every partial sum which slices it
holds, and `usage_events` keeps every record with its slice for as long as it keeps the record. So no old
version of a Delta table is ever needed, and compaction, folding and vacuum change no answer.
"""

from datetime import datetime

import polars as pl

from assets.usage import schema
from assets.usage.elements import cells
from assets.usage.folding import fold
from assets.usage.rollup import ROWS_AT_ONCE, event_rows, hourly_partials, rolled_slice
from core.lake import Lake
from core.lake.read import read, spans

KEYS = ("tenant", "meter", "hour", "dimensions")
ROWS = (*KEYS, "element", "quantity", "events")


class NotYetKnownError(LookupError):
    """The lake does not reach to the slice that was asked for."""


def cells_as_of(
    lake: Lake,
    last: int,
    *,
    tenant: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Absolute hourly cells of slices 1 to `last`, whatever landed, was folded or compacted since.

    Args: as for `rows_as_of`.

    Returns:
        tenant, meter, hour, dimensions, quantity (38 digits, 9 of them behind the point), events; one row a
        cell, sorted by hour, tenant, meter, dimensions.

    Raises:
        NotYetKnownError: the lake ends before slice `last`.
        AggregationChangedError: a meter's usage was rolled up by another aggregation than it has now.
    """
    return cells_of(rows_as_of(lake, last, tenant=tenant, since=since, until=until))


def cells_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The cells that rows of `rows_as_of` are, sorted."""
    return cells(rows, KEYS).select(*KEYS, "quantity", "events").sort("hour", "tenant", "meter", "dimensions")


def rows_as_of(
    lake: Lake,
    last: int,
    *,
    tenant: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """What the cells of slices 1 to `last` are made of: sums, or elements with their events.

    Where `last` lies inside a folded block (at most 256 slices), the block's slices up to `last` are rolled
    up again from `usage_events`.

    Args:
        lake: of the generation that is meant.
        tenant: only of this tenant.
        since, until: only of hours in [since, until).

    Returns:
        tenant, meter, hour, dimensions, element, quantity, events; one row a cell, or an element of one.

    Raises:
        NotYetKnownError: the lake ends before slice `last`.
    """
    rolled = rolled_slice(lake)
    if last > rolled:
        raise NotYetKnownError(f"slice {last} is asked for, usage_hourly ends at slice {rolled}")
    types = {name: schema.HOURLY_SCHEMA[name] for name in schema.CELL_COLUMNS}
    handle = lake.open(schema.HOURLY)
    if handle is None:
        return pl.DataFrame(schema=types).select(ROWS)
    wanted = _wanted(tenant, since, until)
    rows = read(
        lake, schema.HOURLY, handle, types,
        where=(pl.col("since") <= last) & wanted, within=("since", 0, last), part={"kind": schema.CELL},
    )  # fmt: skip
    whole = rows.filter(pl.col("slice") <= last)
    begins = _first_of_block(lake, last)
    if begins <= last:
        whole = pl.concat([whole, *_again(lake, begins, last, wanted)])
    return fold(whole).select(ROWS)


def _wanted(tenant: str | None, since: datetime | None, until: datetime | None) -> pl.Expr:
    wanted = pl.lit(value=True)
    if tenant is not None:
        wanted &= pl.col("tenant") == tenant
    if since is not None:
        wanted &= pl.col("hour") >= since
    if until is not None:
        wanted &= pl.col("hour") < until
    return wanted


def _first_of_block(lake: Lake, last: int) -> int:
    """Where the block begins whose partials also hold slices after `last`; `last` + 1 where there is none.

    A block may hold no cell, so its fates are looked at: every slice has some.
    """
    handle = lake.open(schema.HOURLY)
    assert handle is not None
    columns = {name: schema.HOURLY_SCHEMA[name] for name in ("since", "slice")}
    spanning = (pl.col("since") <= last) & (pl.col("slice") > last)
    rows = read(
        lake, schema.HOURLY, handle, columns,
        where=spanning, within=("slice", last, last + schema.BLOCKS[-1]), part={"kind": schema.FATE},
    )  # fmt: skip
    return last + 1 if rows.is_empty() else int(rows["since"].min())  # type: ignore[arg-type]


def _again(lake: Lake, first: int, last: int, wanted: pl.Expr) -> list[pl.DataFrame]:
    """Cells of slices [first, last], rolled up from the landed rows, some at a time."""
    handle = lake.open(schema.EVENTS)
    assert handle is not None
    parts = []
    for low, high in spans(handle, "slice", first, last, rows=ROWS_AT_ONCE):
        partials = hourly_partials(event_rows(lake, handle, low, high))
        parts.append(
            partials.filter(pl.col("kind") == schema.CELL).filter(wanted).select(schema.CELL_COLUMNS)
        )
    return parts
