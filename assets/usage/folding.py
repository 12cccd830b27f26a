"""Folding partial sums of many slices into one, so that readers find few files however long the history is.

A fold replaces the partials of a full block of slices by their sums, in one commit. It changes no value:
whoever read before and whoever reads after gets the same fold.
"""

import polars as pl
from deltalake.exceptions import CommitFailedError

from assets.usage import schema
from assets.usage.rollup import conform
from core.lake import Lake
from core.lake.commit import StaleError, commit, positions
from core.lake.read import read
from core.log import Logger

log = Logger(__name__)


def fold_full_blocks(lake: Lake, before: int, now: int, blocks: tuple[int, int] = schema.BLOCKS) -> int:
    """Fold the blocks that became full when the tables went from slice `before` to slice `now`.

    Only what is rolled up everywhere and published may be folded: a reader of single slices would find
    them together with earlier ones.

    Returns:
        How many blocks were folded.
    """
    folded = 0
    small, large = blocks
    for end in range(before // small * small + small, now + 1, small):
        size = large if end % large == 0 else small
        for table in (schema.HOURLY, schema.DAILY):
            _fold(lake, table, end - size + 1, end)
        folded += 1
    return folded


def _fold(lake: Lake, table: str, first: int, last: int) -> None:
    handle = lake.open(table)
    found = positions(handle, [schema.ROLLED])
    if handle is None or (found[schema.ROLLED] or 0) < last:
        return
    types = schema.HOURLY_SCHEMA if table == schema.HOURLY else schema.DAILY_SCHEMA
    parts = []
    for kind in (schema.CELL, schema.FATE) if table == schema.HOURLY else (None,):
        columns = {
            schema.CELL: schema.CELL_COLUMNS, schema.FATE: schema.FATE_COLUMNS, None: tuple(schema.DAILY_SCHEMA),
        }[kind]  # fmt: skip
        rows = read(
            lake, table, handle, {name: types[name] for name in columns},
            where=pl.col("slice").is_between(first, last), within=("slice", first, last),
            part={"kind": kind} if kind else None,
        )  # fmt: skip
        parts.append(fold(rows).with_columns(kind=pl.lit(kind)))
    # All rows bear the same span: whoever wants some of its slices sees that he can only have all.
    folded = pl.concat(parts, how="diagonal_relaxed").with_columns(since=first, slice=last)
    try:
        commit(
            lake, table, conform(folded, types), {}, found, overwrite=f"slice >= {first} and slice <= {last}"
        )
    except (StaleError, CommitFailedError) as error:
        # Another run is at work. The block stays as it is until the larger one around it is full.
        log.info("fold left out", table=table, first=first, last=last, error=type(error).__name__)


def fold(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of many slices as one row for each cell or fate, without slices."""
    sums = ("quantity", "events", "landed", *schema.FATE_COUNTS, *schema.KIND_COUNTS)
    summed = [name for name in sums if name in rows.columns]
    latest = [name for name in ("next_offset",) if name in rows.columns]
    keys = [name for name in rows.columns if name not in {"since", "slice", *summed, *latest}]
    # A key that is nothing everywhere costs a third of the step.
    nothing = [name for name in ("element",) if name in keys and rows[name].null_count() == len(rows)]
    folded = rows.group_by([name for name in keys if name not in nothing]).agg(
        pl.col(summed).sum(), pl.col(latest).max()
    )
    # In one order, whatever was nothing: folds are put together.
    whole = folded.with_columns(pl.lit(None, pl.String).alias(name) for name in nothing)
    return whole.select(*keys, *summed, *latest)
