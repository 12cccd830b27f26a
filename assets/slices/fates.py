"""Fates: which records are counted, and which say again or otherwise what was counted before.

Pure: the same records and the same index give the same rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.slices.index import IdentityIndex, Winners

COUNTED, DUPLICATE, QUARANTINED, REJECTED = FATES = ("counted", "duplicate", "quarantined", "rejected")

Array = npt.NDArray[Any]
Schema = Mapping[str, pl.DataType | type[pl.DataType]]

COORDINATES: Schema = {
    "slice": pl.Int64,
    "topic_id": pl.String,
    "partition": pl.Int32,
    "offset": pl.Int64,
    "received": pl.Datetime("us", "UTC"),
    "tenant": pl.String,
}
"""Columns every landed table begins with."""
OUTCOME: Schema = {
    "fate": pl.String,
    "code": pl.String,
    "winner_slice": pl.Int64,
    "winner_partition": pl.Int32,
    "winner_offset": pl.Int64,
    "raw": pl.Binary,
}
"""Columns every landed table ends with. `winner_*` are the coordinates of the record that was counted, for a
duplicate or a conflict; `raw` is kept only where the record could not be read."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Rows without fates, in the order of partition and offset. Arrays are parallel to `frame`; those of
    a row that could not be read hold nothing of meaning."""

    frame: pl.DataFrame
    partition: Array
    offset: Array
    readable: Array
    acceptable: Array
    """Readable and within the limits of time."""
    high: Array
    low: Array
    """Identity, as two uint64."""
    content: Array
    """int64 over everything that matters: two records of one identity and another content conflict."""


def with_fates(
    parsed: Parsed, number: int, topic_id: str, index: IdentityIndex, schema: Schema
) -> tuple[pl.DataFrame, Winners]:
    """The rows of slice `number`, and the identities it counts for the first time.

    A readable record outside the limits of time is quarantined. Of the others the first record of an
    identity, ever, is counted; a later one is a duplicate if it says the same and a conflict
    (quarantined) if it does not. First means in the order of slice, partition, offset.
    """
    acceptable = np.flatnonzero(parsed.acceptable)
    rows = acceptable[_by_identity(parsed.high[acceptable], parsed.low[acceptable])]
    partition, offset = parsed.partition[rows], parsed.offset[rows]
    high, low, content = parsed.high[rows], parsed.low[rows], parsed.content[rows]
    first = np.ones(len(rows), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    group = np.cumsum(first) - 1
    found = index.probe(high[first], low[first])
    same = content == np.where(found.known, found.content, content[first])[group]
    counts = first & ~found.known[group]
    later = ~counts
    of_winner = {
        "winner_slice": np.where(found.known, found.slice, number),
        "winner_partition": np.where(found.known, found.partition, partition[first]),
        "winner_offset": np.where(found.known, found.offset, offset[first]),
    }
    fate = np.where(parsed.readable, FATES.index(QUARANTINED), FATES.index(REJECTED))
    fate[rows] = np.where(
        counts, FATES.index(COUNTED), np.where(same, FATES.index(DUPLICATE), FATES.index(QUARANTINED))
    )
    code = parsed.frame["code"].scatter(rows[~same], "conflict") if not same.all() else parsed.frame["code"]
    frame = parsed.frame.with_columns(
        code,
        *(
            _scattered(name, len(fate), rows[later], values[group][later], schema)
            for name, values in of_winner.items()
        ),
        slice=pl.lit(number, pl.Int64),
        topic_id=pl.lit(topic_id),
        fate=pl.Series(FATES, dtype=pl.String).gather(fate),
    )
    winners = Winners(high[counts], low[counts], content[counts], partition[counts], offset[counts])
    return frame.select(schema.keys()), winners


def halves(identities: bytes) -> tuple[Array, Array]:
    """Identities of 16 bytes as two arrays of uint64."""
    pairs = np.frombuffer(identities, ">u8").reshape(-1, 2).astype(np.uint64)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _by_identity(high: Array, low: Array) -> Array:
    """Order by identity; rows of one identity stay in the order they have."""
    order = np.argsort(high)
    tied = np.flatnonzero(high[order][1:] == high[order][:-1])
    if len(tied):
        # An unstable sort costs a fifth of a stable one. It leaves rows of one key side by side, and they are few.
        tied = np.union1d(tied, tied + 1)
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, low[rows], high[rows]))]
    return order


def _scattered(name: str, length: int, rows: Array, values: Array, schema: Schema) -> pl.Series:
    """`values` at `rows`, null elsewhere."""
    kind = schema[name]
    empty = pl.Series(name, [None], dtype=kind).new_from_index(0, length)
    return empty.scatter(rows, pl.Series(values, dtype=kind)) if len(rows) else empty
