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
from assets.slices.merging import order_of

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
    """Readable, and within the limits of time or of the import that it names."""
    high: Array
    low: Array
    """Identity, as two uint64."""
    content: Array
    """int64 over everything that matters: two records of one identity and another content conflict."""


def with_fates(
    parsed: Parsed, number: int, topic_id: str, index: IdentityIndex, schema: Schema
) -> tuple[pl.DataFrame, Winners]:
    """The rows of slice `number`, and the identities it counts for the first time.

    A readable record that is not acceptable is quarantined. Of the others the first record of an
    identity, ever, is counted; a later one is a duplicate if it says the same and a conflict
    (quarantined) if it does not. First means in the order of slice, partition, offset.
    """
    rows = _by_identity(parsed.high, parsed.low, np.flatnonzero(parsed.acceptable))
    high, low = parsed.high.take(rows), parsed.low.take(rows)
    counts = np.ones(len(rows), bool)
    counts[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    firsts = np.flatnonzero(counts)
    found = index.probe(high[firsts], low[firsts])
    counts[firsts[found.rows]] = False
    later = np.flatnonzero(~counts)
    # Of each later record the first of its identity here, and the row of what is known of it from before, or -1.
    group = np.searchsorted(firsts, later, "right") - 1
    known = np.full(len(firsts), -1)
    known[found.rows] = np.arange(len(found.rows))
    known, here = known[group], rows[firsts[group]]
    same = parsed.content[rows[later]] == _chosen(known, found.content, parsed.content[here])
    of_winner = {
        "winner_slice": _chosen(known, found.slice, np.full(len(later), number)),
        "winner_partition": _chosen(known, found.partition, parsed.partition[here]),
        "winner_offset": _chosen(known, found.offset, parsed.offset[here]),
    }
    columns = {column.name: column for column in parsed.frame} | {
        "code": _with(parsed.frame["code"], rows[later[~same]], "conflict"),
        "fate": _fates(parsed, rows[later], same),
        "slice": pl.Series([number], dtype=pl.Int64).new_from_index(0, len(parsed.frame)),
        "topic_id": pl.Series([topic_id], dtype=pl.String).new_from_index(0, len(parsed.frame)),
        **{
            name: _with(_nulls(schema[name], len(parsed.frame)), rows[later], values)
            for name, values in of_winner.items()
        },
    }
    kept = np.flatnonzero(counts)
    won = rows.take(kept)
    winners = Winners(
        high.take(kept), low.take(kept),
        parsed.content.take(won), parsed.partition.take(won), parsed.offset.take(won),
    )  # fmt: skip
    # Assembled, not by expressions: a plan of Polars costs more than these columns.
    return pl.DataFrame({name: columns[name] for name in schema}), winners


def _fates(parsed: Parsed, later: Array, same: Array) -> pl.Series:
    """Most are counted, so the others are written over that."""
    fates = pl.Series([COUNTED], dtype=pl.String).new_from_index(0, len(parsed.frame))
    late = ~parsed.acceptable & parsed.readable
    for fate, rows in (
        (QUARANTINED, np.flatnonzero(late)), (REJECTED, np.flatnonzero(~parsed.readable)),
        (DUPLICATE, later[same]), (QUARANTINED, later[~same]),
    ):  # fmt: skip
        fates = _with(fates, rows, fate)
    return fates


def halves(identities: bytes) -> tuple[Array, Array]:
    """Identities of 16 bytes as two arrays of uint64."""
    pairs = np.frombuffer(identities, ">u8").reshape(-1, 2).astype(np.uint64)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _by_identity(high: Array, low: Array, rows: Array) -> Array:
    """Rows in the order of identity; those of one identity stay in the order they have."""
    keys = high.take(rows)
    order = order_of(keys)
    keys, rows = keys.take(order), rows.take(order)
    tied = np.flatnonzero(keys[1:] == keys[:-1])
    if len(tied):
        tied = np.union1d(tied, tied + 1)
        some = rows[tied]
        rows[tied] = some[np.lexsort((some, low[some], high[some]))]
    return rows


def _chosen(known: Array, before: Array, here: Array) -> Array:
    """What is known from before where there is such a row, and elsewhere what stands here."""
    values, is_known = here.copy(), known >= 0
    values[is_known] = before[known[is_known]]
    return values


def _nulls(kind: pl.DataType | type[pl.DataType], length: int) -> pl.Series:
    return pl.Series([None], dtype=kind).new_from_index(0, length)


def _with(series: pl.Series, rows: Array, values: Array | str) -> pl.Series:
    """The series with other values at some rows."""
    if not len(rows):
        return series
    return series.scatter(rows, values if isinstance(values, str) else pl.Series(values, dtype=series.dtype))
