"""What the gate compares before anything is published: landed records beside what was made of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from assets.slices.losses import Loss, losses, with_lost
from assets.usage import schema
from assets.usage.elements import weighted
from assets.usage.originals import PLACE, rows_at
from assets.usage.rollup import ROWS_AT_ONCE
from assets.usage.transform import COUNTED
from core.lake import Lake
from core.lake.read import read, spans
from core.meters import METERS, Aggregation, names
from core.topology import TOPICS

FATE = ["topic_id", "partition", "tenant"]
BILL = ["tenant", "meter"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Tables that hold the two sides of what must agree.

    conservation: topic_id, partition, tenant; landed (rows), first_offset, end_offset, records and lost of
    the partition (all tenants), counted_voids and counted_checkpoints (rows) beside counted, duplicates,
    quarantined, rejected, voids, checkpoints (fates).
    billed: tenant, meter; records (counted usage less effective voids) and record_quantity (what they add up
    to: of a count the records, of a weighted sum the products) beside events and quantity (cells).
    voids: partition, offset, tenant, meter, dimensions, event_time, quantity of each counted void beside what
    the row says that it takes out (`original_*`; nulls where there is no such counted usage).
    """

    conservation: pl.DataFrame
    billed: pl.DataFrame
    voids: pl.DataFrame


def evidence(lake: Lake, first: int, last: int) -> Evidence:
    """Of slices [first, last]; where `first` was folded together with earlier slices, from those on.

    Raises:
        LookupError: nothing has landed or been rolled up yet.
    """
    events, hourly = lake.open(schema.EVENTS), lake.open(schema.HOURLY)
    if events is None or hourly is None:
        raise LookupError("nothing has landed or been rolled up yet")
    rolled = {}
    for kind, columns in ((schema.FATE, schema.FATE_COLUMNS), (schema.CELL, schema.CELL_COLUMNS)):
        rolled[kind] = read(
            lake, schema.HOURLY, hourly, {name: schema.HOURLY_SCHEMA[name] for name in columns},
            where=pl.col("slice").is_between(first, last), within=("slice", first, last), part={"kind": kind},
        )  # fmt: skip
    first = min([first, *rolled[schema.FATE]["since"], *rolled[schema.CELL]["since"]])
    columns_read = ["partition", "offset", "topic_id", "tenant", "meter", "quantity", "fate", "kind"]
    if weighing := names(Aggregation.WEIGHTED_SUM):
        columns_read.append("dimensions")
    wanted = {name: schema.EVENTS_SCHEMA[name] for name in columns_read}
    parts = []
    for low, high in spans(events, "slice", first, last, rows=ROWS_AT_ONCE):
        rows = read(
            lake, schema.EVENTS, events, wanted,
            where=pl.col("slice").is_between(low, high), within=("slice", low, high),
        )  # fmt: skip
        rows = _weighed(rows, weighing).with_columns(
            pl.col("topic_id", "tenant", "meter", "fate", "kind").cast(pl.Categorical)
        )
        sums = rows.group_by(*FATE, "meter", "fate", "kind").agg(
            records=pl.len().cast(pl.Int64),
            first_offset=pl.col("offset").min(),
            end_offset=pl.col("offset").max() + 1,
            record_quantity=pl.col("quantity").sum(),
        )
        # Categories as text again: those of two frames need not agree.
        parts.append(sums.with_columns(pl.col(pl.Categorical).cast(pl.String)))
    landed = pl.concat(parts)
    partitions, topics = TOPICS[schema.TOPIC].partitions, landed["topic_id"].unique()
    known = [loss for topic_id in topics for loss in losses(events, topic_id, partitions)]
    return Evidence(
        _conservation(landed, rolled[schema.FATE], known),
        _billed(landed, rolled[schema.CELL]),
        voids(lake, first, last) if (landed["kind"] == schema.VOID).any() else NO_VOIDS,
    )


def _weighed(rows: pl.DataFrame, weighing: list[str]) -> pl.DataFrame:
    """Rows with the products of those whose meter weighs."""
    for name in weighing:
        here = ((rows["meter"] == name) & (rows["fate"] == COUNTED)).arg_true()
        if len(here):
            some = rows[here]
            products = weighted(METERS[name], some["quantity"], some["dimensions"])
            rows = rows.with_columns(rows["quantity"].scatter(here, products))
    return rows


def _conservation(landed: pl.DataFrame, fates: pl.DataFrame, known: Iterable[Loss]) -> pl.DataFrame:
    ranges = landed.group_by("topic_id", "partition").agg(
        pl.col("first_offset").min(), pl.col("end_offset").max(), pl.col("records").sum()
    )
    of_kind = {
        f"counted_{name}": pl.col("records")
        .filter((pl.col("fate") == COUNTED) & (pl.col("kind") == kind))
        .sum()
        for name, kind in zip(schema.KIND_COUNTS, (schema.VOID, schema.CHECKPOINT), strict=True)
    }
    rolled = (*schema.FATE_COUNTS, *schema.KIND_COUNTS)
    return (
        landed.group_by(FATE)
        .agg(landed=pl.col("records").sum(), **of_kind)
        .join(with_lost(ranges, known), on=["topic_id", "partition"], how="left")
        .join(fates.group_by(FATE).agg(pl.col(rolled).sum()), on=FATE, how="full", coalesce=True)
        .with_columns(pl.col("landed", *of_kind, *rolled).fill_null(0))
        .sort(FATE)
    )


def _billed(landed: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    sign = pl.when(pl.col("kind") == schema.VOID).then(-1).otherwise(1)
    counted = (
        landed.filter((pl.col("fate") == COUNTED) & (pl.col("kind") != schema.CHECKPOINT))
        .with_columns(pl.col("records") * sign)
        .group_by(BILL)
    )
    counts = pl.col("meter").is_in(names(Aggregation.COUNT))
    said = pl.when(counts).then(pl.col("records").cast(schema.QUANTITY)).otherwise("record_quantity")
    rolled = cells.group_by(BILL).agg(pl.col("events", "quantity").sum())
    return (
        counted.agg(pl.col("records", "record_quantity").sum())
        .with_columns(record_quantity=said)
        .join(rolled, on=BILL, how="full", coalesce=True)
        .with_columns(pl.col("records", "events", "record_quantity", "quantity").fill_null(0))
        .sort(BILL)
    )


_SAID = ("tenant", "meter", "dimensions", "event_time", "quantity")
NO_VOIDS = pl.DataFrame(
    schema={name: schema.EVENTS_SCHEMA[name] for name in ("partition", "offset", *_SAID)}
    | {f"original_{name}": schema.EVENTS_SCHEMA[name] for name in _SAID}
)


def voids(lake: Lake, first: int, last: int) -> pl.DataFrame:
    """`voids` of the evidence for slices [first, last]; the originals may have landed at any time before."""
    events = lake.open(schema.EVENTS)
    if events is None:
        return NO_VOIDS
    refs = {f"ref_{name}": name for name in PLACE}
    columns = {name: schema.EVENTS_SCHEMA[name] for name in ("partition", "offset", *_SAID, *refs)}
    found = read(
        lake, schema.EVENTS, events, columns, within=("slice", first, last),
        where=pl.col("slice").is_between(first, last) & (pl.col("fate") == COUNTED) & (pl.col("kind") == schema.VOID),
    )  # fmt: skip
    originals = rows_at(
        lake,
        events,
        found.select("tenant", *(pl.col(ref).alias(name) for ref, name in refs.items())),
        (*_SAID, "fate", "kind"),
    ).filter((pl.col("fate") == COUNTED) & (pl.col("kind") == schema.USAGE))
    named = originals.select(
        *(pl.col(name).alias(ref) for ref, name in refs.items()),
        *(pl.col(name).alias(f"original_{name}") for name in _SAID),
    )
    return found.join(named, on=list(refs), how="left").select(NO_VOIDS.columns)
