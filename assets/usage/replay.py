"""Replay: facts, fates and sums made anew from the rows of `usage_events`, beside those in use.

The new tables are a generation of their own and nobody reads them until it is promoted. Slices before the
range stay as they landed; those of the range are read again by the code that runs; those after it keep what
was read and only get their fates anew, because who is the first of an identity may have changed. Every
commit says how far it is, so a replay that died goes on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable

from assets.slices.fates import COUNTED, Parsed, halves
from assets.slices.index import IdentityIndex, Winners
from assets.slices.landing import catch_up
from assets.slices.losses import book, losses, rows_before
from assets.slices.progress import SLICE, landed_from, last_slice, position_name
from assets.usage import schema, voids
from assets.usage.again import as_stored, read_again
from assets.usage.folding import fold_full_blocks
from assets.usage.landing import USAGE
from assets.usage.rollup import daily, roll_up
from core.lake import Lake
from core.lake.commit import commit, create, make_durable
from core.lake.read import read, spans
from core.topology import TOPICS

ROWS_AT_ONCE = 1_000_000
"""Bounds memory: so many rows are held with all their columns, old and new."""


def rebuild(old: Lake, new: Lake, index_folder: Path, first: int, last: int | None) -> int:
    """Bring the new generation to the last slice of the old one; safe to repeat and to kill.

    Args:
        index_folder: of the new generation's identity index.
        first, last: slices that are read again; None for all from the first on.

    Returns:
        the last slice that both hold now.
    """
    origin = old.open(schema.EVENTS)
    if origin is None:
        raise LookupError("nothing has landed yet; there is nothing to replay")
    target = last_slice(old, schema.EVENTS)
    empty = pl.DataFrame(schema=schema.EVENTS_SCHEMA)
    handle = create(
        new, schema.EVENTS, empty, schema.EVENTS_STATISTICS, description=origin.metadata().description
    )
    index = IdentityIndex(index_folder, str(handle.metadata().id))
    with index.locked():
        done = handle.transaction_version(SLICE) or 0
        catch_up(new, USAGE, handle, index, done)
        for low, high in spans(origin, "slice", done + 1, target, rows=ROWS_AT_ONCE):
            rows = read(
                old, schema.EVENTS, origin, schema.EVENTS_SCHEMA,
                where=pl.col("slice").is_between(low, high), within=("slice", low, high),
            )  # fmt: skip
            for number, frame in _decided(new, handle, index, rows, low, high, (first, last)):
                _land(new, handle, frame, number)
    _copy_losses(old, new)
    roll_up(new)
    daily(new)
    fold_full_blocks(new, done, target)
    return target


def _decided(
    new: Lake,
    handle: DeltaTable,
    index: IdentityIndex,
    rows: pl.DataFrame,
    low: int,
    high: int,
    again: tuple[int, int | None],
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Pieces to commit: the last slice of each, and its rows with their new fates.

    A void looks its event up in the table, so what came before it is committed first.
    """
    first, last = again
    pieces = {key[0]: part for key, part in rows.partition_by("slice", as_dict=True).items()}
    held: list[pl.DataFrame] = []
    for number in range(low, high + 1):
        part = pieces.get(number)
        if part is None:
            index.add(number, _winners(rows.clear()))
            continue
        part = part.sort("partition", "offset")
        if number < first:
            index.add(number, _winners(part.filter(fate=COUNTED)))
            held.append(part)
            continue
        parsed = read_again(part) if last is None or number <= last else as_stored(part)
        if held and _names_others(parsed):
            yield number - 1, pl.concat(held)
            held = []
        frame, winners = voids.fates(new, handle, parsed, number, part["topic_id"][0], index)
        index.add(number, winners)
        held.append(frame.select(schema.EVENTS_SCHEMA.keys()))
    yield high, pl.concat(held) if held else rows.clear()


def _names_others(parsed: Parsed) -> bool:
    return bool(parsed.frame[voids.REFERENCE].is_not_null().any())


def _winners(rows: pl.DataFrame) -> Winners:
    high, low = halves(b"".join(rows["identity"]))
    order = np.lexsort((low, high))
    columns = (rows[name].to_numpy()[order] for name in ("content", "partition", "offset"))
    return Winners(high[order], low[order], *columns)


def _land(new: Lake, handle: DeltaTable, frame: pl.DataFrame, number: int) -> None:
    ends = frame.group_by("topic_id", "partition").agg(pl.col("offset").max() + 1).rows()
    moved = {position_name(topic_id, partition): end for topic_id, partition, end in ends}
    names = [*moved, SLICE]
    found = {name: handle.transaction_version(name) for name in names}
    version = commit(new, schema.EVENTS, frame, {**moved, SLICE: number}, found, handle=handle)
    make_durable(new, schema.EVENTS, version)


def _copy_losses(old: Lake, new: Lake) -> None:
    """Ranges that never landed, and how many rows earlier topics had."""
    origin: Any = old.open(schema.EVENTS)
    handle: Any = new.open(schema.EVENTS)
    topic_id, partitions = landed_from(origin), TOPICS[schema.TOPIC].partitions
    empty = pl.DataFrame(schema=schema.EVENTS_SCHEMA)
    before = origin.transaction_version(rows_before(topic_id))
    if before is not None and handle.transaction_version(rows_before(topic_id)) is None:
        name = rows_before(topic_id)
        commit(new, schema.EVENTS, empty, {name: before}, {name: None})
    known = losses(handle, topic_id, partitions)
    for loss in losses(origin, topic_id, partitions):
        if loss not in known:
            at = new.open(schema.EVENTS).transaction_version(position_name(topic_id, loss.partition))  # type: ignore[union-attr]
            book(new, schema.EVENTS, empty, loss, move=(at or 0) == loss.first)
