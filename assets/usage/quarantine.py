"""The records that landed and were not counted, for people: published with the cells, content and all but
what could not be read."""

import json
from typing import Any

import polars as pl

from assets.usage import schema
from assets.usage.originals import rows_at
from assets.usage.transform import QUARANTINED, REJECTED
from core.contracts.usage import canonical_quantity
from core.ids import derived_id
from core.lake import Lake
from core.lake.read import read, spans

ROWS_AT_ONCE = 2_000_000
COLUMNS = (
    "tenant_id", "id", "fate", "code", "kind", "received", "slice", "topic_id", "partition", "log_offset",
    "source", "event_id", "version", "counted", "bytes", "lake_version",
)  # fmt: skip
"""Of `usage_quarantine`, without what people decide."""
_SAID = ("kind", "meter", "quantity", "event_time", "subject", "dimensions", "data")
_WINNER = ("winner_slice", "winner_partition", "winner_offset")
_READ = (
    "slice", "topic_id", "partition", "offset", "received", "tenant", "source", "event_id", *_SAID,
    "fate", "code", *_WINNER, "raw",
)  # fmt: skip


def not_counted(lake: Lake, first: int, last: int, version: int) -> pl.DataFrame:
    """Rows of `usage_quarantine` for slices [first, last]: columns `COLUMNS`, JSON as text.

    Args:
        version: lake version that the rows will bear.
    """
    events = lake.open(schema.EVENTS)
    if events is None:
        raise LookupError(f"{schema.EVENTS} does not exist")
    wanted = {name: schema.EVENTS_SCHEMA[name] for name in _READ}
    found = pl.concat(
        read(
            lake, schema.EVENTS, events, wanted, within=("slice", low, high),
            where=pl.col("slice").is_between(low, high) & pl.col("fate").is_in([QUARANTINED, REJECTED]),
        )
        for low, high in spans(events, "slice", first, last, rows=ROWS_AT_ONCE)
    )  # fmt: skip
    # What it conflicts with has its identity, so its organisation.
    places = found.select("tenant", *(pl.col(name).alias(name.removeprefix("winner_")) for name in _WINNER))
    winners = {
        (row["slice"], row["partition"], row["offset"]): row
        for row in rows_at(lake, events, places, _SAID).iter_rows(named=True)
    }
    rows = []
    for row in found.iter_rows(named=True):
        readable = row["kind"] is not None
        winner = winners.get(tuple(row[name] for name in _WINNER))
        rows.append({
            "tenant_id": row["tenant"],
            "id": quarantine_id(row["topic_id"], row["partition"], row["offset"]),
            "fate": row["fate"], "code": row["code"], "kind": row["kind"],
            "received": row["received"], "slice": row["slice"],
            "topic_id": row["topic_id"], "partition": row["partition"], "log_offset": row["offset"],
            "source": row["source"], "event_id": row["event_id"],
            "version": _version(row) if readable else None,
            "counted": None if winner is None else _version(winner, "slice", "partition", "offset"),
            "bytes": None if row["raw"] is None else len(row["raw"]),
            "lake_version": version,
        })  # fmt: skip
    numbers: dict[str, pl.DataType | type[pl.DataType]] = {"slice": pl.Int64, "partition": pl.Int32, "log_offset": pl.Int64, "bytes": pl.Int64,
               "lake_version": pl.Int64, "received": schema.TIME}  # fmt: skip
    return pl.DataFrame(rows, schema={name: numbers.get(name, pl.String) for name in COLUMNS}, orient="row")


def quarantine_id(topic_id: str, partition: int, offset: int) -> str:
    """Names a record by where it stands in the log, which no replay changes."""
    return f"uqr_{derived_id('usage.quarantine', topic_id, str(partition), str(offset))}"


def _version(row: dict[str, Any], *more: str) -> str:
    """What a record said, to the microsecond and the last digit, in the form of the contract."""
    usage = row["kind"] == schema.USAGE
    said = {
        "time": row["event_time"].isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "subject": row["subject"],
        "data": {
            "meter": row["meter"],
            "quantity": canonical_quantity(f"{row['quantity']:f}"),
            "dimensions": json.loads(row["dimensions"]),
        }
        if usage
        else json.loads(row["data"]),
        **{name: row[name] for name in more},
    }
    return json.dumps(said, ensure_ascii=False)
