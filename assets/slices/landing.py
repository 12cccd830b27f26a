"""Landing a slice: every record, its fate and the next offsets in one commit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from deltalake import DeltaTable

from assets.slices.fates import COUNTED, Parsed, Schema, halves, with_fates
from assets.slices.index import IdentityIndex, Winners
from assets.slices.progress import SLICE, SUCCESSOR, made_from, position_name
from core import crash
from core.crash import Point
from core.eventlog.api import Record, Slice
from core.lake import Lake
from core.lake.commit import StaleError, commit, create, make_durable, positions
from core.lake.read import read, spans

Array = npt.NDArray[Any]

ROWS_AT_ONCE = 4_000_000
"""Bounds memory when the index is rebuilt."""


Decide = Callable[[Lake, DeltaTable, Parsed, int, str, IdentityIndex], tuple[pl.DataFrame, Winners]]
"""From the rows of a slice (its number, the topic's id) to those with fates, and the identities counted first."""


@dataclass(frozen=True, slots=True)
class Target:
    """A table that a topic lands in.

    `schema` begins with `COORDINATES`, ends with `OUTCOME` and has `identity` (16 bytes) and `content`;
    `statistics` are the columns it is searched by; `read` turns records into rows without fates.
    """

    table: str
    schema: Schema
    statistics: Sequence[str]
    read: Callable[[Iterable[list[Record]]], Parsed]
    decide: Decide | None = None
    """Fates, where those of `with_fates` do not say it all."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What landing a slice did. `already` means that an earlier attempt had committed it."""

    slice: int
    version: int
    rows: int
    fates: dict[str, int]
    already: bool = False
    received: tuple[datetime, datetime] | None = None
    """When the log took the first and the newest of them."""


class IncompleteSliceError(Exception):
    """The log gave other records than the slice has offsets; nothing was landed."""


def land_slice(
    lake: Lake, target: Target, index_folder: Path, slice_: Slice, batches: Iterable[list[Record]]
) -> Landed:
    """Land what has not landed of a slice.

    Args:
        index_folder: where the table's identity index of this machine lies.
        batches: the records of the slice, in any order.

    Raises:
        StaleError: the table is not yet at the slice's start.
        IncompleteSliceError: a record is missing or out of place.
    """
    table = target.table
    empty = pl.DataFrame(schema=dict(target.schema))
    handle = create(lake, table, empty, target.statistics, description=made_from(slice_.topic_id))
    index = IdentityIndex(index_folder, str(handle.metadata().id))
    with index.locked():
        handle = lake.open(table) or handle
        names = {p: position_name(slice_.topic_id, p) for p in slice_.ranges}
        found = positions(handle, [*names.values(), SLICE, SUCCESSOR])
        if found[SUCCESSOR] is not None:
            raise StaleError(table, {SUCCESSOR: None}, found)
        number = found[SLICE] or 0
        landed = {p: found[name] or 0 for p, name in names.items()}
        if any(landed[p] < start for p, (start, _) in slice_.ranges.items()):
            starts = {names[p]: start for p, (start, _) in slice_.ranges.items()}
            raise StaleError(table, dict(starts), {name: found[name] for name in starts})
        # A run that is repeated brings the slice as it was when it was asked for.
        rest = {p: (landed[p], end) for p, (_, end) in slice_.ranges.items() if landed[p] < end}
        if not rest:
            return Landed(number, int(handle.version()), 0, {}, already=True)
        if rest != dict(slice_.ranges):
            slice_, batches = replace(slice_, ranges=rest), _within(rest, batches)
        ends = {names[p]: end for p, (_, end) in rest.items()}
        catch_up(lake, target, handle, index, number)
        crash.here(Point.BEFORE_READING)
        parsed = target.read(_watched(batches))
        _check_complete(slice_, parsed.partition, parsed.offset)
        if target.decide is None:
            frame, winners = with_fates(parsed, number + 1, slice_.topic_id, index, target.schema)
        else:
            frame, winners = target.decide(lake, handle, parsed, number + 1, slice_.topic_id, index)
        version = commit(lake, table, frame, {**ends, SLICE: number + 1}, found, handle=handle)
        make_durable(lake, table, version)
        crash.here(Point.LANDED)
        index.add(number + 1, winners)
    fates = dict(frame["fate"].value_counts().sort("fate").iter_rows())
    received = frame.select(pl.col("received").min(), newest=pl.col("received").max()).row(0)
    return Landed(number + 1, version, len(frame), fates, received=received)


def catch_up(lake: Lake, target: Target, handle: DeltaTable, index: IdentityIndex, number: int) -> None:
    """Bring the index to slice `number` from the lake; from nothing where it is ahead or another's."""
    if index.slice > number:
        index.clear()
    columns = ("slice", "identity", "content", "partition", "offset")
    schema = {name: target.schema[name] for name in columns}
    for low, high in spans(handle, "slice", index.slice + 1, number, rows=ROWS_AT_ONCE):
        where = (pl.col("fate") == COUNTED) & pl.col("slice").is_between(low, high)
        rows = read(lake, target.table, handle, schema, where=where, within=("slice", low, high))
        for each in range(low, high + 1):
            index.add(each, _winners(rows.filter(pl.col("slice") == each)))


def _winners(rows: pl.DataFrame) -> Winners:
    high, low = halves(b"".join(rows["identity"]))
    content, partition, offset = (rows[name].to_numpy() for name in ("content", "partition", "offset"))
    return Winners(high, low, content, partition, offset)


def _watched(batches: Iterable[list[Record]]) -> Iterator[list[Record]]:
    for batch in batches:
        yield batch
        crash.here(Point.READING)


def _within(ranges: Mapping[int, tuple[int, int]], batches: Iterable[list[Record]]) -> Iterator[list[Record]]:
    for batch in batches:
        yield [r for r in batch if r.partition in ranges and r.offset >= ranges[r.partition][0]]


def _check_complete(slice_: Slice, partitions: Array, offsets: Array) -> None:
    """The log is dense, so a slice is exactly its offsets."""
    spans = [(p, start, end) for p, (start, end) in sorted(slice_.ranges.items())]
    expected = (
        np.concatenate([np.full(end - start, p) for p, start, end in spans]),
        np.concatenate([np.arange(start, end) for _, start, end in spans]),
    )
    if not (np.array_equal(partitions, expected[0]) and np.array_equal(offsets, expected[1])):
        raise IncompleteSliceError(
            f"{slice_.topic} (id {slice_.topic_id}): expected {slice_.records} records of {dict(slice_.ranges)}, "
            f"got {len(offsets)} or others; nothing was landed"
        )
