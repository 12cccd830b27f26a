"""The landed rows behind sums, and the row of one event: what a trace is made of. Reads only.

Sums here come from `usage_events` alone, never from `usage_hourly`: they are what the published sums are
checked against.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from assets.slices.fates import halves
from assets.slices.index import IdentityIndex
from assets.slices.losses import losses
from assets.slices.progress import landed_from
from assets.slices.runs import DamagedError
from assets.usage import schema
from assets.usage.elements import deciding, grouped_dimensions, measured, standing
from assets.usage.originals import PLACE, rows_at
from assets.usage.progress import landed_slice
from assets.usage.transform import COUNTED
from core.contracts.usage import void_identity
from core.ids import identity
from core.lake import Lake
from core.lake.read import read, scan, spans
from core.meters import METERS, Aggregation, names, not_summable
from core.topology import TOPICS

ROWS_AT_ONCE: Final = 2_000_000
"""Bounds memory: rows of all tenants that one step of a page looks at."""
ALWAYS: Final = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2300, 1, 1, tzinfo=UTC))
SHOWN: Final = (
    "slice", "topic_id", "partition", "offset", "received", "tenant", "source", "event_id", "kind", "meter", "quantity",
    "event_time", "subject", "dimensions", "fate", "code", "winner_slice", "winner_partition", "winner_offset",
    "ref_slice", "ref_partition", "ref_offset", "data",
)  # fmt: skip
"""Columns of a row that a trace shows."""
OBJECT: Final = "object"
"""Path within the table of the file that a row stands in."""
CELLS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "meter": pl.String, "dimensions": pl.String, "element": pl.String, "hour": schema.TIME, "quantity": schema.QUANTITY, "events": pl.Int64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """Counted rows of one tenant in slices (`behind`, `last`], of a meter, of hours in [since, until)."""

    tenant: str
    last: int
    behind: int = 0
    meter: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def first(self) -> pl.Expr:
        return pl.col("tenant") == self.tenant

    @property
    def where(self) -> pl.Expr:
        found = pl.col("slice").is_between(self.behind + 1, self.last)
        found &= (pl.col("fate") == COUNTED) & pl.col("kind").is_in([schema.USAGE, schema.VOID])
        if self.meter is not None:
            found &= pl.col("meter") == self.meter
        if self.since is not None:
            found &= pl.col("event_time") >= self.since
        if self.until is not None:
            found &= pl.col("event_time") < self.until
        return found

    @property
    def within(self) -> list[tuple[str, Any, Any]]:
        since, until = self.since or ALWAYS[0], self.until or ALWAYS[1]
        return [("slice", self.behind + 1, self.last), ("event_time", since, until)]


def cells(lake: Lake, wanted: Wanted) -> pl.DataFrame:
    """Hourly sums of the rows: meter, dimensions, element, hour, quantity, events, in that order; of what cannot
    be added up by element.

    Memory is that of the sums, whatever the number of rows; time is that of reading the columns it needs
    of all files that can hold such rows.
    """
    handle = lake.open(schema.EVENTS)
    rows = None if handle is None else scan(
        lake, schema.EVENTS, handle, where=wanted.where, within=wanted.within, first=wanted.first
    )  # fmt: skip
    if rows is None:
        return pl.DataFrame(schema=CELLS)
    others = {name for name, meter in METERS.items() if meter.aggregation is not Aggregation.SUM}
    unusual, parts = pl.col("meter").is_in(others), [pl.DataFrame(schema=CELLS)]
    if wanted.meter not in others:
        parts.append(_summed(rows.filter(~unusual).with_columns(element=pl.lit(None, pl.String))))
    if wanted.meter is None or wanted.meter in others:
        columns = ("tenant", "meter", "dimensions", "quantity", "event_time", "kind", "identity", "data")
        if len(special := rows.filter(unusual).select(columns).collect(engine="streaming")):
            parts.append(_summed(measured(special).lazy()))
    return pl.concat(parts).sort("meter", "dimensions", "hour", "element")


def _summed(rows: pl.LazyFrame) -> pl.DataFrame:
    keys = ("meter", "dimensions", "element")
    summed = rows.group_by(*keys, hour=pl.col("event_time").dt.truncate("1h")).agg(
        pl.col("quantity").sum(),
        events=pl.len().cast(pl.Int64) - 2 * (pl.col("kind") == schema.VOID).sum().cast(pl.Int64),
    )
    return summed.select(pl.col(name).cast(kind) for name, kind in CELLS.items()).collect(engine="streaming")


def pieces(lake: Lake, wanted: Wanted, edges: Sequence[datetime]) -> pl.DataFrame:
    """`cells` added up by month and between edges: meter, dimensions, element, quantity, events, first, last (hours);
    of what cannot be added up the elements that decide, with what they were chosen from
    (`core.invoices.store.Piece`)."""
    found = cells(lake, wanted)
    segments = pl.Series(sorted(set(edges)), dtype=schema.TIME).search_sorted(found["hour"], side="right")
    keys = ["meter", "dimensions", "segment", "month"]
    placed = found.with_columns(segment=segments, month=pl.col("hour").dt.truncate("1mo"))
    span = {"first": pl.col("hour").min(), "last": pl.col("hour").max()}
    special = pl.col("meter").is_in(not_summable())
    sums = placed.filter(~special).group_by(keys).agg(pl.col("quantity", "events").sum(), **span)
    # Of all elements, those that voids left without events too: a void is among the rows of what it changed.
    whole = placed.filter(special).group_by(keys).agg(of=pl.col("events").sum(), **span)
    held = standing(placed.filter(special), [*keys, "hour"]).group_by(*keys, "element")
    chosen = deciding(held.agg(pl.col("quantity").first(), pl.col("events").sum()), keys)
    own = pl.when(pl.col("meter").is_in(names(Aggregation.UNIQUE_COUNT))).then("events").otherwise("of")
    elements = chosen.join(whole, on=keys).with_columns(events=own)
    columns = ["meter", "dimensions", "element", "quantity", "events", "first", "last"]
    every = [sums.with_columns(element=pl.lit(None, pl.String)).select(columns), elements.select(columns)]
    return pl.concat(every).sort("meter", "first", "dimensions", "element")


def selections(of: Iterable[tuple[str, datetime, datetime]]) -> pl.DataFrame:
    """Dimensions, since, until; as `page` takes them."""
    types = {"dimensions": pl.String(), "since": schema.TIME, "until": schema.TIME}
    return pl.DataFrame(list(of), schema=types, orient="row")


def page(
    lake: Lake,
    wanted: Wanted,
    selections: pl.DataFrame,
    *,
    after: tuple[int, int, int] | None,
    limit: int,
) -> pl.DataFrame:
    """The first `limit` rows behind one place, in the order of slice, partition, offset.

    Args:
        selections: dimensions, since, until: which rows; those of one set of dimensions do not overlap.
        after: slice, partition, offset.

    Returns:
        `SHOWN` and `OBJECT`.
    """
    types = {name: schema.EVENTS_SCHEMA[name] for name in SHOWN} | {OBJECT: pl.String()}
    handle, held, parts = lake.open(schema.EVENTS), 0, list[pl.DataFrame]()
    place = pl.struct(pl.col("slice"), pl.col("partition"), pl.col("offset"))
    for low, high in _steps(lake, wanted, selections, max(wanted.behind + 1, after[0] if after else 1)):
        assert handle is not None
        where = wanted.where & pl.col("slice").is_between(low, high)
        if after is not None:
            number, partition, offset = after
            where &= (pl.col("slice") > number) | (
                (pl.col("slice") == number)
                & (
                    (pl.col("partition") > partition)
                    | ((pl.col("partition") == partition) & (pl.col("offset") > offset))
                )
            )
        rows = scan(
            lake, schema.EVENTS, handle, where=where, within=[("slice", low, high), wanted.within[1]], path=OBJECT,
            first=wanted.first,
        )  # fmt: skip
        if rows is None:
            continue
        rows = rows.with_columns(grouped=grouped_dimensions(wanted.meter))
        chosen = (
            rows.join(selections.lazy(), left_on="grouped", right_on="dimensions")
            .filter((pl.col("event_time") >= pl.col("since")) & (pl.col("event_time") < pl.col("until")))
            .select(pl.col(name).cast(kind) for name, kind in types.items())
            .bottom_k(limit - held, by=place)
            .sort(PLACE)
        )
        parts.append(chosen.collect(engine="streaming"))
        held += len(parts[-1])
        if held >= limit:
            break
    return pl.concat(parts) if parts else pl.DataFrame(schema=types)


def _steps(lake: Lake, wanted: Wanted, selections: pl.DataFrame, first: int) -> Iterator[tuple[int, int]]:
    """Slices to look at, some at a time: those that by `usage_hourly` hold any of what is wanted."""
    events, hourly = lake.open(schema.EVENTS), lake.open(schema.HOURLY)
    if events is None or hourly is None or selections.is_empty():
        return
    since, until = selections["since"].min(), selections["until"].max()
    assert isinstance(since, datetime)
    assert isinstance(until, datetime)
    known = read(
        lake, schema.HOURLY, hourly, {"since": pl.Int64(), "slice": pl.Int64()},
        first=wanted.first, where=(pl.col("meter") == wanted.meter)
        & pl.col("dimensions").is_in(selections["dimensions"].unique().implode())
        & (pl.col("hour") >= since) & (pl.col("hour") < until)
        & (pl.col("slice") >= first) & (pl.col("since") <= wanted.last),
        within=("hour", since, until), part={"kind": schema.CELL},
    )  # fmt: skip
    for low, high in _merged(known.unique().sort("since", "slice").rows(), first, wanted.last):
        yield from spans(events, "slice", low, high, rows=ROWS_AT_ONCE)


def _merged(ranges: Sequence[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Ranges, sorted, as few that do not overlap, cut to [first, last]."""
    low, high = 0, -1
    for since, until in ranges:
        since, until = max(since, first), min(until, last)  # noqa: PLW2901 - cut
        if since > high + 1 and high >= low:
            yield low, high
            low = since
        elif high < low:
            low = since
        high = max(high, until)
    if high >= low:
        yield low, high


@dataclass(frozen=True, slots=True)
class Found:
    """A row, the void that takes it out, and for one that was not counted the row that was, so far as there are any."""

    row: dict[str, Any]
    voided_by: dict[str, Any] | None
    winner: dict[str, Any] | None
    voids: dict[str, Any] | None = None
    """Of a void: the row it takes out."""


def find(lake: Lake, index_folder: Path, tenant: str, source: str, event_id: str) -> Found | None:
    """The counted row of an event of this tenant; None where none was counted."""
    place, void = places(
        lake, index_folder, [identity(tenant, source, event_id), void_identity(tenant, source, event_id)]
    )
    if place is None:
        return None
    (row,) = _rows(lake, tenant, [place])
    return Found(row, next(iter(_rows(lake, tenant, [void])), None) if void else None, None)


def at(lake: Lake, index_folder: Path, topic_id: str | None, partition: int, offset: int) -> Found | None:
    """The row of the record that stands there in the log, whosever it is.

    Args:
        topic_id: the newest topic's where None.
    """
    handle = lake.open(schema.EVENTS)
    if handle is None:
        return None
    where = (pl.col("partition") == partition) & (pl.col("offset") == offset)
    if topic_id is not None:
        where &= pl.col("topic_id") == topic_id
    found = read(
        lake, schema.EVENTS, handle, {name: schema.EVENTS_SCHEMA[name] for name in (*PLACE, "tenant")},
        where=where, within=("offset", offset, offset),
    ).sort("slice")  # fmt: skip
    if found.is_empty():
        return None
    *place, tenant = found.row(-1)
    (row,) = _rows(lake, tenant, [tuple(place)])
    winner, void = tuple(row[f"winner_{name}"] for name in PLACE), None
    voided = tuple(row[f"ref_{name}"] for name in PLACE)
    if row["fate"] == COUNTED and row["kind"] == schema.USAGE:
        (void,) = places(lake, index_folder, [void_identity(row["tenant"], row["source"], row["event_id"])])
    return Found(
        row,
        next(iter(_rows(lake, tenant, [void])), None) if void else None,
        None if winner[0] is None else next(iter(_rows(lake, tenant, [winner])), None),
        None if voided[0] is None else next(iter(_rows(lake, tenant, [voided])), None),
    )


def places(lake: Lake, index_folder: Path, identities: Sequence[bytes]) -> list[tuple[int, int, int] | None]:
    """Slice, partition and offset where each identity was counted: by the identity index as far as it goes,
    behind it by the rows themselves."""
    handle = lake.open(schema.EVENTS)
    if handle is None:
        return [None] * len(identities)
    index = IdentityIndex.as_it_is(index_folder, str(handle.metadata().id))
    known = dict[bytes, tuple[int, int, int]]()
    if index is not None:
        ordered = sorted(set(identities))
        try:
            hits = index.probe(*halves(b"".join(ordered)))
        except DamagedError:
            index = None  # its owner makes it anew when it meets the same
        else:
            known = {
                ordered[row]: (int(hits.slice[n]), int(hits.partition[n]), int(hits.offset[n]))
                for n, row in enumerate(hits.rows)
            }
    rest = scan(
        lake, schema.EVENTS, handle,
        where=(pl.col("fate") == COUNTED) & pl.col("identity").is_in(list(identities))
        & (pl.col("slice") > (index.slice if index else 0)),
        within=[("slice", index.slice + 1 if index else 0, 2**62)],
    )  # fmt: skip
    if rest is not None:
        rows = rest.select("identity", *PLACE).collect(engine="streaming")
        known |= {row[0]: (row[1], row[2], row[3]) for row in rows.iter_rows()}
    return [known.get(each) for each in identities]


def _rows(lake: Lake, tenant: str, found: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The rows of this tenant at these places: `SHOWN` and `OBJECT`."""
    handle = lake.open(schema.EVENTS)
    assert handle is not None
    wanted = pl.DataFrame(found, schema=dict.fromkeys(PLACE, pl.Int64), orient="row")
    return rows_at(lake, handle, wanted.with_columns(tenant=pl.lit(tenant)), SHOWN, path=OBJECT).to_dicts()


def is_lost(lake: Lake, topic_id: str | None, partition: int, offset: int) -> bool:
    """True for an offset that was accepted as gone before it landed."""
    handle = lake.open(schema.EVENTS)
    if handle is None:
        return False
    named = topic_id or landed_from(handle)
    return any(
        loss.topic_id == named and loss.partition == partition and loss.first <= offset < loss.end
        for loss in losses(handle, named, TOPICS[schema.TOPIC].partitions)
    )


def landed(lake: Lake) -> int:
    """The last landed slice, 0 for none."""
    return landed_slice(lake)


def fates(lake: Lake, tenant: str, last: int, since: datetime, until: datetime) -> pl.DataFrame:
    """Records of a tenant whose time lies in [since, until), of slices up to `last`: fate, code, kind, records.

    What could not be read has no time and is not among them.
    """
    types = {"fate": pl.String(), "code": pl.String(), "kind": pl.String(), "records": pl.Int64()}
    handle = lake.open(schema.EVENTS)
    where = pl.col("slice") <= last
    where &= (pl.col("event_time") >= since) & (pl.col("event_time") < until)
    rows = None if handle is None else scan(
        lake, schema.EVENTS, handle, where=where, first=pl.col("tenant") == tenant,
        within=[("slice", 0, last), ("event_time", since, until)],
    )  # fmt: skip
    if rows is None:
        return pl.DataFrame(schema=types)
    summed = rows.group_by("fate", "code", "kind").agg(records=pl.len().cast(pl.Int64))
    found = summed.select(pl.col(name).cast(kind) for name, kind in types.items())
    return found.sort("fate", "kind", "code").collect(engine="streaming")
