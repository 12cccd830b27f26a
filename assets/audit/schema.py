"""Columns of the audit table in the lake."""

import polars as pl

from assets.slices.fates import COORDINATES, OUTCOME

EVENTS = "audit_events"
TOPIC = "audit.logs"

EVENTS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **COORDINATES,
    "event_id": pl.String,
    "identity": pl.Binary,
    "content": pl.Int64,
    "event_time": pl.Datetime("us", "UTC"),
    "actor": pl.String,
    "action": pl.String,
    "target": pl.String,
    "outcome": pl.String,
    "trace_id": pl.String,
    "detail": pl.String,
    "sealed": pl.String,
    **OUTCOME,
}
"""One row a record, good or bad. `detail` is canonical JSON; `fate` is counted for the first record of an
event id, duplicate for a repetition, quarantined for the same id with another content."""

EVENTS_STATISTICS = ("slice", "partition", "offset", "event_time")
