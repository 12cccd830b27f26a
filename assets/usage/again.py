"""Rows of `usage_events` as records once more: what today's contract and fates make of what landed earlier.

The lake is enough: a row that could be read says all that its record said, and of one that could not the
record itself is kept.
"""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import polars as pl

from assets.slices.fates import QUARANTINED, Parsed, halves
from assets.usage import schema
from assets.usage.imports import as_judged
from assets.usage.reading import parse_records
from assets.usage.voids import REFERENCE, UNKNOWN
from core.contracts.usage import (
    CHECKPOINT_TYPE,
    TYPE,
    VOID_TYPE,
    Checkpoint,
    Claim,
    Reference,
    UsageData,
    UsageEvent,
    UsageRecord,
    VoidEvent,
    canonical_quantity,
    microseconds,
)
from core.eventlog.api import Record
from core.ids import identity

DECIDED = ("conflict", UNKNOWN)
"""Codes that deciding fates gives; all others come from reading a record."""
BEYOND = "out_of_limits"
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_CLAIM = msgspec.json.Decoder(Claim)
_REFERENCE = msgspec.json.Decoder(Reference)


def read_again(rows: pl.DataFrame) -> Parsed:
    """Rows without fates, as today's code reads the records they were; of imports it says what it said.

    Args:
        rows: of one slice, all columns of `usage_events`, in the order of partition and offset.
    """
    again = parse_records([[record_of(row) for row in _with_own_times(rows).iter_rows(named=True)]])
    return as_judged(again, rows["code"])


def as_stored(rows: pl.DataFrame) -> Parsed:
    """The same rows without fates, as they were read when they landed."""
    high, low = halves(b"".join(rows["identity"].fill_null(bytes(16))))
    readable = rows["kind"].is_not_null().to_numpy()
    references = [
        identity(tenant, *_reference(data)) if kind == schema.VOID else None
        for kind, tenant, data in rows.select("kind", "tenant", "data").iter_rows()
    ]
    decided = (pl.col("fate") == QUARANTINED) & pl.col("code").is_in(DECIDED)
    frame = _with_own_times(rows).with_columns(
        pl.when(~decided).then("code"), pl.Series(REFERENCE, references, dtype=pl.Binary)
    )
    acceptable = readable & frame["code"].is_null().to_numpy()
    content = rows["content"].fill_null(0).to_numpy()
    partition, offset = rows["partition"].to_numpy(), rows["offset"].to_numpy()
    return Parsed(frame, partition, offset, readable, acceptable, high, low, content)


def _with_own_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Voids outside the limits of time, which took nothing out, without the time of what they name.

    Tables hold such rows that bear it, and their own is lost: they get one that no limits take.
    """
    bears = (
        (pl.col("kind") == schema.VOID) & (pl.col("code") == BEYOND) & pl.col("ref_slice").is_not_null()
    ).fill_null(value=False)
    return rows.with_columns(
        event_time=pl.when(bears).then(pl.lit(LONG_AGO, schema.TIME)).otherwise("event_time"),
        ref_slice=pl.when(~bears).then("ref_slice"),
    )


def _reference(data: str) -> tuple[str, str]:
    named = _REFERENCE.decode(data)
    return named.source, named.id


def record_of(row: dict[str, Any]) -> Record:
    """The record of the topic that a row of `usage_events` was, in the contract's own form."""
    received = microseconds(row["received"]) // 1000
    if row["kind"] is None:
        key, value = f"{row['tenant']}|".encode(), row["raw"]
    else:
        event = _event(row)
        key, value = event.key, event.encode()
    return Record(schema.TOPIC, row["partition"], row["offset"], key, value, received)


def _event(row: dict[str, Any]) -> UsageRecord:
    envelope: dict[str, Any] = {
        "id": row["event_id"], "source": row["source"], "time": row["event_time"], "tenant": row["tenant"],
        "specversion": "1.0", "subject": row["subject"], "importid": row["importid"],
    }  # fmt: skip
    if row["kind"] == schema.CHECKPOINT:
        return Checkpoint(**envelope, type=CHECKPOINT_TYPE, data=_CLAIM.decode(row["data"]))
    if row["kind"] == schema.VOID:
        if row["ref_slice"] is not None:
            # The row bears the time of what it takes out; its own was within the limits.
            envelope["time"] = row["received"]
        return VoidEvent(**envelope, type=VOID_TYPE, data=_REFERENCE.decode(row["data"]))
    quantity = canonical_quantity(f"{row['quantity']:f}")
    return UsageEvent(
        **envelope, type=TYPE, data=UsageData(row["meter"], quantity, json.loads(row["dimensions"])),
        producer=row["producer"] or "", incarnation=row["incarnation"] or "", sequence=row["sequence"],
    )  # fmt: skip
