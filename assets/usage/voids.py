"""Voids: records that take a counted event out of all sums again.

A void is counted where the event that it names was counted before it or in its own slice, and the event is
still in the lake; else it is quarantined as `unknown_reference`. Its identity comes from what it names, so
the second void of one event is a duplicate.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
from deltalake import DeltaTable

from assets.slices.fates import COUNTED, Parsed, halves, with_fates
from assets.slices.index import IdentityIndex, Winners
from assets.usage.originals import PLACE, rows_at
from assets.usage.schema import EVENTS_SCHEMA, USAGE
from core.lake import Lake

UNKNOWN = "unknown_reference"
TAKEN = ("meter", "quantity", "event_time", "dimensions")
"""What a void bears of the row it takes out."""
REFERENCE = "reference"
"""Column of what was read: the identity that a void names; null for all others."""
_REF = {f"ref_{name}": name for name in PLACE}


def fates(
    lake: Lake, handle: DeltaTable, parsed: Parsed, number: int, topic_id: str, index: IdentityIndex
) -> tuple[pl.DataFrame, Winners]:
    """`assets.slices.fates.with_fates` for rows among which are voids: those come last in their slice."""
    names = parsed.frame[REFERENCE]
    if names.null_count() == len(names):
        return with_fates(parsed, number, topic_id, index, EVENTS_SCHEMA)
    voids = names.is_not_null().to_numpy()
    others, winners = with_fates(_rows(parsed, ~voids), number, topic_id, index, EVENTS_SCHEMA)
    referring = _rows(parsed, voids)
    places = _places(referring.frame[REFERENCE], number, index, winners)
    # What a void names is of its own organisation: the identity that it names has it in it.
    owned = places.with_columns(referring.frame["tenant"])
    referring = _with_originals(referring, places, _originals(lake, handle, others, owned, number))
    rows, more = with_fates(referring, number, topic_id, index, EVENTS_SCHEMA)
    frame = pl.concat([others, rows]).sort("partition", "offset")
    return frame, _merged(winners, more)


def _rows(parsed: Parsed, chosen: npt.NDArray[np.bool_]) -> Parsed:
    arrays = ("partition", "offset", "readable", "acceptable", "high", "low", "content")
    return Parsed(parsed.frame.filter(chosen), **{name: getattr(parsed, name)[chosen] for name in arrays})


def _places(names: pl.Series, number: int, index: IdentityIndex, winners: Winners) -> pl.DataFrame:
    """Where the record of each identity was counted: slice, partition, offset, or nulls."""
    high, low = halves(b"".join(names))
    wanted = pl.DataFrame({"high": high, "low": low})
    each = wanted.unique().sort("high", "low")
    found = index.probe(each["high"].to_numpy(), each["low"].to_numpy())
    before = each[found.rows].with_columns(
        slice=pl.Series(found.slice, dtype=pl.Int64),
        partition=pl.Series(found.partition, dtype=pl.Int32),
        offset=pl.Series(found.offset, dtype=pl.Int64),
    )
    now = pl.DataFrame({
        "high": winners.high, "low": winners.low,
        "slice": pl.Series([number], dtype=pl.Int64).new_from_index(0, len(winners)),
        "partition": pl.Series(winners.partition, dtype=pl.Int32),
        "offset": pl.Series(winners.offset, dtype=pl.Int64),
    }).join(each, on=["high", "low"], how="semi")  # fmt: skip
    # Of an identity that was counted twice, while the index was damaged, the void takes out the first.
    known = pl.concat([before, now]).sort(PLACE).unique(["high", "low"], keep="first", maintain_order=True)
    return wanted.join(known, on=["high", "low"], how="left", maintain_order="left").select(PLACE)


def _originals(
    lake: Lake, handle: DeltaTable, here: pl.DataFrame, places: pl.DataFrame, number: int
) -> pl.DataFrame:
    """The counted usage at these places, of this slice (`here`) or an earlier one."""
    columns = (*PLACE, "kind", "fate", *TAKEN)
    earlier = rows_at(lake, handle, places.filter(pl.col("slice") != number), columns)
    now = here.join(places.drop_nulls().unique(), on=PLACE, how="semi").select(columns)
    return pl.concat([earlier.select(columns), now]).filter(
        (pl.col("kind") == USAGE) & (pl.col("fate") == COUNTED)
    )


def _with_originals(referring: Parsed, places: pl.DataFrame, originals: pl.DataFrame) -> Parsed:
    """Voids with what they take out. Those that name nothing, and those outside the limits of time or of their import,
    take nothing out: they keep their own time and are not acceptable."""
    taken = places.join(originals.select(*PLACE, *TAKEN), on=PLACE, how="left", maintain_order="left")
    known = taken["meter"].is_not_null() & pl.Series(referring.acceptable)
    frame = referring.frame.with_columns(
        *(pl.when(known).then(taken[name]).alias(ref) for ref, name in _REF.items()),
        meter=pl.when(known).then(taken["meter"]),
        quantity=pl.when(known).then(-taken["quantity"]),
        dimensions=pl.when(known).then(taken["dimensions"]),
        event_time=pl.when(known).then(taken["event_time"]).otherwise("event_time"),
        code=pl.when(pl.col("code").is_null() & ~known).then(pl.lit(UNKNOWN)).otherwise("code"),
    )
    return replace(referring, frame=frame, acceptable=known.to_numpy())


def _merged(left: Winners, right: Winners) -> Winners:
    """Both, in the order of identity."""
    high, low = np.concatenate([left.high, right.high]), np.concatenate([left.low, right.low])
    order = np.lexsort((low, high))
    return Winners(
        high[order],
        low[order],
        *(
            np.concatenate([getattr(left, name), getattr(right, name)])[order]
            for name in ("content", "partition", "offset")
        ),
    )
