"""Hourly and daily sums: partial sums of each slice, whose fold is the absolute value. What is no sum of
quantities is one of events by element (`assets.usage.elements`).

Nothing is read and increased. A slice's partials are a function of its landed rows, and the same
commit says which slices are in, so doing it again changes nothing (law 2).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from deltalake import DeltaTable

from assets.slices.progress import SLICE
from assets.usage import schema
from assets.usage.elements import NAMED, PLACE, measured, needs_identity, unusual
from assets.usage.transform import COUNTED, DUPLICATE, QUARANTINED, REJECTED
from core.lake import Lake
from core.lake.commit import commit, create, positions
from core.lake.read import read, spans

ROWS_AT_ONCE = 2_000_000
"""Bounds memory when many slices wait, for example because a table is made anew."""

EVENT_COLUMNS = {
    name: schema.EVENTS_SCHEMA[name]
    for name in (
        "slice", "topic_id", "partition", "offset", "tenant", "meter", "quantity", "event_time", "dimensions", "fate",
        "kind",
    )
}  # fmt: skip
"""What `hourly_partials` needs of a landed row; for a latest value also what `event_rows` adds."""

Fold = Callable[[pl.DataFrame], pl.DataFrame]


class BehindFoldError(Exception):
    """Slices that are wanted one by one have been folded together with earlier ones."""


@dataclass(frozen=True, slots=True)
class RolledUp:
    """`slice` is the last slice the table holds now; `rows` the partials written."""

    slice: int
    version: int
    rows: int
    first: int | None = None
    """First of the slices that were folded now."""
    unaccounted: int = 0
    """What those hold in the source, less what their partials account for."""


@dataclass(frozen=True, slots=True)
class Step:
    """From the rows of `source` to those of `target`."""

    source: str
    position: str
    rows: Callable[[Lake, DeltaTable, int, int], pl.DataFrame]
    """Reads those of slices [low, high]."""
    fold: Fold
    target: str
    schema: Mapping[str, pl.DataType | type[pl.DataType]]
    statistics: Sequence[str]
    partitions: Sequence[str]
    difference: Callable[[pl.DataFrame, pl.DataFrame], int]
    """What rows of the source hold, less what their partials account for."""


def roll_up(lake: Lake) -> RolledUp:
    """Bring `usage_hourly` to the last landed slice."""
    step = Step(
        schema.EVENTS, SLICE, event_rows, hourly_partials,
        schema.HOURLY, schema.HOURLY_SCHEMA, schema.HOURLY_STATISTICS, ("kind",), _without_a_fate,
    )  # fmt: skip
    return _advance(lake, step)


def daily(lake: Lake) -> RolledUp:
    """Bring `usage_daily` to the last slice of `usage_hourly`.

    Raises:
        BehindFoldError: `usage_daily` was put back to a time before hours were folded; remove it, and it
            is made anew.
    """
    step = Step(
        schema.HOURLY, schema.ROLLED, _cell_rows, daily_partials,
        schema.DAILY, schema.DAILY_SCHEMA, schema.DAILY_STATISTICS, (), _not_in_a_day,
    )  # fmt: skip
    return _advance(lake, step)


def _without_a_fate(rows: pl.DataFrame, partials: pl.DataFrame) -> int:
    return len(rows) - int(sum(partials[name].sum() for name in schema.FATE_COUNTS))


def _not_in_a_day(rows: pl.DataFrame, partials: pl.DataFrame) -> int:
    return int(rows["events"].sum()) - int(partials["events"].sum())


def _cell_rows(lake: Lake, handle: DeltaTable, low: int, high: int) -> pl.DataFrame:
    columns = {name: schema.HOURLY_SCHEMA[name] for name in schema.CELL_COLUMNS}
    return read(
        lake, schema.HOURLY, handle, columns,
        where=pl.col("slice").is_between(low, high), within=("slice", low, high), part={"kind": schema.CELL},
    )  # fmt: skip


def hourly_partials(rows: pl.DataFrame) -> pl.DataFrame:
    """Landed rows of some slices as cells and fates, each slice by itself."""
    # Grouping by numbers instead of texts halves the cost of the step.
    rows = rows.with_columns(
        pl.col("tenant", "meter", "dimensions", "topic_id", "fate", "kind").cast(pl.Categorical)
    )
    counted = (pl.col("fate") == COUNTED) & (pl.col("kind") != schema.CHECKPOINT)
    others = unusual(rows["meter"])
    plain = rows.lazy().filter(counted & ~pl.col("meter").is_in(others) if others else counted)
    cells = [_cells(plain).with_columns(element=pl.lit(None, pl.String))]
    special = rows.filter(counted & pl.col("meter").is_in(others)) if others else rows.clear()
    if len(special):
        cells.append(_cells(measured(special).lazy(), "element"))
    fates = (
        rows.lazy()
        .group_by("slice", "topic_id", "partition", "tenant")
        .agg(
            landed=pl.len(),
            counted=(pl.col("fate") == COUNTED).sum(),
            duplicates=(pl.col("fate") == DUPLICATE).sum(),
            quarantined=(pl.col("fate") == QUARANTINED).sum(),
            rejected=(pl.col("fate") == REJECTED).sum(),
            voids=of_kind(schema.VOID),
            checkpoints=of_kind(schema.CHECKPOINT),
            next_offset=pl.col("offset").max() + 1,
        )
        .with_columns(kind=pl.lit(schema.FATE), since="slice")
    )
    found = pl.collect_all([*cells, fates])
    if others:
        found = [part.with_columns(pl.col(pl.Categorical).cast(pl.String)) for part in found]
    return conform(pl.concat(found, how="diagonal_relaxed"), schema.HOURLY_SCHEMA)


def _cells(rows: pl.LazyFrame, *more: str) -> pl.LazyFrame:
    hour = pl.col("event_time").dt.truncate("1h")
    cells = rows.group_by("slice", "tenant", "meter", "dimensions", *more, hour=hour)
    return cells.agg(pl.col("quantity").sum(), events=events()).with_columns(
        kind=pl.lit(schema.CELL), since="slice"
    )


def event_rows(lake: Lake, handle: DeltaTable, low: int, high: int) -> pl.DataFrame:
    """Landed rows of slices [low, high], with the columns that `hourly_partials` needs of them."""
    where, within = pl.col("slice").is_between(low, high), ("slice", low, high)
    rows = read(lake, schema.EVENTS, handle, EVENT_COLUMNS, where=where, within=within)
    if not (named := needs_identity(rows["meter"])):
        return rows
    # Identities hardly compress, so they are read only where an element is made of them.
    wanted = where & pl.col("meter").is_in(named)
    identities = read(lake, schema.EVENTS, handle, NAMED, where=wanted, within=within)
    return rows.join(identities, on=PLACE, how="left")


def events() -> pl.Expr:
    """Events of counted rows: a void, whose quantity is negative, takes one out."""
    return pl.len().cast(pl.Int64) - 2 * (pl.col("kind") == schema.VOID).sum().cast(pl.Int64)


def of_kind(kind: str) -> pl.Expr:
    """Counted rows of this kind."""
    return ((pl.col("fate") == COUNTED) & (pl.col("kind") == kind)).sum().cast(pl.Int64)


def daily_partials(rows: pl.DataFrame) -> pl.DataFrame:
    """Hourly cells as days, each slice by itself."""
    days = rows.group_by(
        "since", "slice", "tenant", "meter", "dimensions", "element", day=pl.col("hour").dt.truncate("1d")
    ).agg(pl.col("quantity").sum(), pl.col("events").sum())
    return conform(days, schema.DAILY_SCHEMA)


def conform(rows: pl.DataFrame, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """Rows in the types of a table, sorted by time so that readers can leave out other times."""
    order = [name for name in ("hour", "day", "tenant", "meter", "dimensions") if name in columns]
    return rows.select(pl.col(name).cast(kind) for name, kind in columns.items()).sort(order)


def _advance(lake: Lake, step: Step) -> RolledUp:
    """Fold the slices that the source has and the target lacks, some at a time, each in one commit."""
    origin = lake.open(step.source)
    empty = pl.DataFrame(schema=dict(step.schema))
    handle = create(lake, step.target, empty, step.statistics, partitions=step.partitions)
    done = positions(handle, [schema.ROLLED])[schema.ROLLED] or 0
    last = (positions(origin, [step.position])[step.position] or 0) if origin is not None else 0
    version, written, unaccounted = int(handle.version()), 0, 0
    if origin is None or done >= last:
        return RolledUp(done, version, written)
    first = done + 1
    for low, high in spans(origin, "slice", first, last, rows=ROWS_AT_ONCE):
        rows = step.rows(lake, origin, low, high)
        if "since" in rows and (rows["since"] <= done).any():
            raise BehindFoldError(
                f"{step.target} holds slices up to {done}, but {step.source} has folded slice "
                f"{min(rows['since'])} together with later ones; remove {step.target}, and it is made anew"
            )
        partials = step.fold(rows)
        version = commit(
            lake, step.target, partials, {schema.ROLLED: high}, {schema.ROLLED: done or None}, handle=handle
        )
        written, done = written + len(partials), high
        unaccounted += step.difference(rows, partials)
    return RolledUp(done, version, written, first, unaccounted)


def rolled_slice(lake: Lake) -> int:
    """The last slice `usage_hourly` holds, 0 for none."""
    return positions(lake.open(schema.HOURLY), [schema.ROLLED])[schema.ROLLED] or 0
