"""Rows of `usage_events` by their coordinates: what a void takes out, what a conflict differs from."""

from collections.abc import Sequence

import polars as pl
from deltalake import DeltaTable

from assets.usage import schema
from core.lake import Lake

PLACE = ("slice", "partition", "offset")
"""Coordinates of a row."""


def rows_at(lake: Lake, handle: DeltaTable, places: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The rows at `places` (slice, partition, offset), each once: `PLACE` and `columns`.

    Reads only the files that can hold one of the slices, by the statistics in the Delta log.
    """
    wanted = {name: schema.EVENTS_SCHEMA[name] for name in dict.fromkeys((*PLACE, *columns))}
    places = places.select(pl.col(name).cast(wanted[name]) for name in PLACE).drop_nulls().unique()
    if places.is_empty():
        return pl.DataFrame(schema=wanted)
    parts = []
    for path, low, high in _files(handle):
        here = places.filter(pl.col("slice").is_between(low, high))["offset"]
        if here.is_empty():
            continue
        file = pl.scan_parquet(f"{lake.uri(schema.EVENTS)}/{path}", storage_options=lake.options() or None)
        # With their statistics of offsets the reader leaves out most of a file: half of the cost.
        near = file.filter(pl.col("offset").is_between(here.min(), here.max()))
        parts.append(near.select(pl.col(name).cast(kind) for name, kind in wanted.items()))
    if not parts:
        return pl.DataFrame(schema=wanted)
    return pl.concat(parts).join(places.lazy(), on=PLACE, how="semi").collect()


def _files(handle: DeltaTable) -> list[tuple[str, int, int]]:
    """Path, first and last slice of each file, by the statistics in the log."""
    actions = pl.DataFrame(handle.get_add_actions(flatten=True)).sort("path")
    span = (pl.col("min.slice").fill_null(0), pl.col("max.slice").fill_null(2**62))
    return list(actions.select("path", *span).iter_rows())
