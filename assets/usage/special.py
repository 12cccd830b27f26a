"""Columns of records that are no usage: voids and checkpoints. They are few, and read one by one."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl

from assets.slices.fates import Parsed, halves
from assets.usage.schema import CHECKPOINT, VOID
from assets.usage.voids import REFERENCE
from core.contracts.usage import Checkpoint, ContractError, UsageRecord, VoidEvent

NOTHING_SPECIAL: Final = {
    "data": pl.lit(None, pl.String),
    REFERENCE: pl.lit(None, pl.Binary),
    "ref_slice": pl.lit(None, pl.Int64),
    "ref_partition": pl.lit(None, pl.Int32),
    "ref_offset": pl.lit(None, pl.Int64),
}
"""Columns that usage has nothing in."""
_CANONICAL = msgspec.json.Encoder(order="deterministic")


def special_kind(event: UsageRecord | ContractError) -> str | None:
    """`void` or `checkpoint`, None for usage and what could not be read."""
    if isinstance(event, VoidEvent):
        return VOID
    return CHECKPOINT if isinstance(event, Checkpoint) else None


def with_special(parsed: Parsed, special: Mapping[int, UsageRecord | ContractError]) -> Parsed:
    """The rows with kind, identity and content of these, by row."""
    if not special:
        return parsed
    rows, events = list(special), list(special.values())
    each = pl.DataFrame(
        [_columns(event) for event in events],
        schema={
            name: parsed.frame.schema[name] for name in ("kind", "data", REFERENCE, "identity", "content")
        },
    )
    frame = parsed.frame.with_columns(parsed.frame[name].scatter(rows, each[name]) for name in each.columns)
    high, low = halves(b"".join(each["identity"]))
    arrays = {name: np.array(getattr(parsed, name)) for name in ("high", "low", "content")}
    for name, values in (("high", high), ("low", low), ("content", each["content"].to_numpy())):
        arrays[name][rows] = values
    return Parsed(frame, parsed.partition, parsed.offset, parsed.readable, parsed.acceptable, **arrays)


def _columns(event: Any) -> dict[str, Any]:
    data = _CANONICAL.encode(event.data).decode()
    found = {"kind": special_kind(event), "data": data, "identity": event.identity}
    if isinstance(event, VoidEvent):
        # Voids of one event say the same, whatever their time and id.
        return {**found, REFERENCE: event.reference, "content": 0}
    digest = hashlib.sha256(data.encode()).digest()
    return {**found, REFERENCE: None, "content": int.from_bytes(digest[:8], "little", signed=True)}
