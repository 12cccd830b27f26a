"""Columns of the usage tables in the lake."""

import polars as pl

from assets.slices.fates import COORDINATES, OUTCOME
from core.contracts.usage import TYPE

EVENTS = "usage_events"
HOURLY = "usage_hourly"
DAILY = "usage_daily"
TOPIC = "usage.records"
CONTRACT = TYPE

ROLLED = f"{EVENTS}.slice"
"""Application id in `usage_hourly` and `usage_daily` of the last slice they hold."""

NOBODY = "-"
"""Tenant of records that name none."""

TIME = pl.Datetime("us", "UTC")
QUANTITY = pl.Decimal(38, 9)

EVENTS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **COORDINATES,
    "source": pl.String,
    "event_id": pl.String,
    "identity": pl.Binary,
    "content": pl.Int64,
    "meter": pl.String,
    "quantity": QUANTITY,
    "event_time": TIME,
    "subject": pl.String,
    "importid": pl.String,
    "dimensions": pl.String,
    "kind": pl.String,
    "data": pl.String,
    "ref_slice": pl.Int64,
    "ref_partition": pl.Int32,
    "ref_offset": pl.Int64,
    "producer": pl.String,
    "incarnation": pl.String,
    "sequence": pl.Int64,
    **OUTCOME,
}
"""One row a record, good or bad. `kind` is null where it could not be read.

A void bears the coordinates of the row it takes out (`ref_*`) and what that one says with the quantity
negated, so that sums over counted rows are right; what it and a checkpoint say themselves is `data`, as
canonical JSON. `event_time` of a void is that of the row it takes out, or its own where there is none."""

USAGE, VOID, CHECKPOINT = KINDS = ("usage", "void", "checkpoint")

EVENTS_STATISTICS = ("slice", "partition", "offset", "event_time")
ORDERS = {EVENTS: ("tenant", "slice", "partition", "offset")}
"""Of rows in files that were put together: whoever asks for landed events, asks for those of one organisation. A file
as it landed has them by partition and offset."""

CELL, FATE = "cell", "fate"

HOURLY_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "kind": pl.String,
    "since": pl.Int64,
    "slice": pl.Int64,
    "tenant": pl.String,
    "meter": pl.String,
    "hour": TIME,
    "dimensions": pl.String,
    "element": pl.String,
    "quantity": QUANTITY,
    "events": pl.Int64,
    "topic_id": pl.String,
    "partition": pl.Int32,
    "landed": pl.Int64,
    "counted": pl.Int64,
    "duplicates": pl.Int64,
    "quarantined": pl.Int64,
    "rejected": pl.Int64,
    "voids": pl.Int64,
    "checkpoints": pl.Int64,
    "next_offset": pl.Int64,
}
"""Partial sums of slices `since` to `slice`; the absolute value of anything is the fold over them.

Rows of two kinds, in files of their own but in one commit: a `cell` holds quantity and events of an hour,
a `fate` what became of the records of a tenant in a partition. The other kind's columns are null.

`element` (core/aggregation.py) is null for meters whose quantities are added up. For the others a cell has
a row for each of its elements; `quantity` is the sum of what their events said, less that of voids."""

CELL_COLUMNS = ("since", "slice", "tenant", "meter", "hour", "dimensions", "element", "quantity", "events")
FATE_COUNTS = ("counted", "duplicates", "quarantined", "rejected")
KIND_COUNTS = ("voids", "checkpoints")
"""Of the counted records those that are no usage."""
FATE_COLUMNS = (
    "since", "slice", "tenant", "topic_id", "partition", "landed", *FATE_COUNTS, *KIND_COUNTS, "next_offset",
)  # fmt: skip

HOURLY_STATISTICS = ("since", "slice", "hour")

DAILY_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "since": pl.Int64,
    "slice": pl.Int64,
    "tenant": pl.String,
    "meter": pl.String,
    "day": TIME,
    "dimensions": pl.String,
    "element": pl.String,
    "quantity": QUANTITY,
    "events": pl.Int64,
}

DAILY_STATISTICS = ("since", "slice", "day")

BLOCKS = (16, 256)
"""Slices are folded together when a block of so many is full, so a probe reads few files however long the
history is. The larger one is also the block of a row of `usage_conservation`."""
