"""Rows of `usage_events` by their coordinates: what a void takes out, what a conflict differs from."""

from collections.abc import Sequence

import polars as pl
from deltalake import DeltaTable

from assets.usage import schema
from core.lake import Lake
from core.lake.read import scan_files

PLACE = ("slice", "partition", "offset")
"""Coordinates of a row."""


def rows_at(
    lake: Lake, handle: DeltaTable, places: pl.DataFrame, columns: Sequence[str], *, path: str | None = None
) -> pl.DataFrame:
    """The rows at `places` (slice, partition, offset), each once: `PLACE` and `columns`, and in `path`, where one
    is named, the file of the table that a row stands in.

    Reads only the files that can hold one of the slices, by the statistics in the Delta log.
    """
    wanted = {name: schema.EVENTS_SCHEMA[name] for name in dict.fromkeys((*PLACE, *columns))}
    places = places.select(pl.col(name).cast(wanted[name]) for name in PLACE).drop_nulls().unique()
    if path is not None:
        wanted[path] = pl.String()
    if places.is_empty():
        return pl.DataFrame(schema=wanted)
    slices, offsets = places["slice"].unique().sort(), places["offset"].unique()
    files = _files(handle)
    possible = files["path"].filter(
        slices.search_sorted(files["low"], "left") < slices.search_sorted(files["high"], "right")
    )
    if possible.is_empty():
        return pl.DataFrame(schema=wanted)
    held = scan_files(lake, schema.EVENTS, possible, path=path)
    # By the statistics of offsets the reader leaves out most of each file, and reads the others' columns only
    # of the rows that are left.
    near = held.filter(pl.col("offset").is_in(offsets.implode()))
    rows = near.select(pl.col(name).cast(kind) for name, kind in wanted.items())
    return rows.join(places.lazy(), on=PLACE, how="semi").collect()


def _files(handle: DeltaTable) -> pl.DataFrame:
    """Path, first (`low`) and last slice (`high`) of each file, by the statistics in the log."""
    actions = pl.DataFrame(handle.get_add_actions(flatten=True)).sort("path")
    return actions.select(
        "path", low=pl.col("min.slice").fill_null(0), high=pl.col("max.slice").fill_null(2**62)
    )
