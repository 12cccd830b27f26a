"""Records that were gone from the log before they landed: ranges that a person accepted as lost.

The commit that moves a partition's position over them says so in the same breath: application ids of the
table name every lost range, so landing, the gates and the purge know of it whatever PostgreSQL was put back to.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets.slices.progress import landed_offsets, position_name
from core.lake import Lake
from core.lake.commit import StaleError, commit


@dataclass(frozen=True, slots=True, order=True)
class Loss:
    """Offsets [first, end) of a partition that never landed and never will."""

    topic_id: str
    partition: int
    first: int
    end: int


def losses(handle: Any, topic_id: str, partitions: int) -> list[Loss]:
    """Every lost range of a topic, in order of partition and offset."""
    if handle is None:
        return []
    found = []
    for partition in range(partitions):
        for number in range(1, _count(handle, topic_id, partition) + 1):
            first, end = (handle.transaction_version(name) for name in _names(topic_id, partition, number))
            found.append(Loss(topic_id, partition, first, end))
    return found


def book(lake: Lake, table: str, empty: Any, loss: Loss, *, move: bool = True) -> None:
    """Move the position of its partition over a lost range, and name the range; safe to repeat.

    Args:
        empty: a frame of the table's schema without rows.
        move: False where the partition is behind the range already, as in a table that is made anew.

    Raises:
        StaleError: the partition has not landed exactly up to the range.
    """
    handle = lake.open(table)
    if handle is None:
        raise LookupError(f"table {table} does not exist; nothing has landed")
    position = position_name(loss.topic_id, loss.partition)
    number = _count(handle, loss.topic_id, loss.partition)
    if number and _last(handle, loss, number) == loss:
        return
    first, end = _names(loss.topic_id, loss.partition, number + 1)
    found = handle.transaction_version(position)
    if move and (found or 0) != loss.first:
        raise StaleError(table, {position: loss.first}, {position: found})
    commit(
        lake,
        table,
        empty,
        {
            position: loss.end if move else found or 0,
            _count_name(loss.topic_id, loss.partition): number + 1,
            first: loss.first,
            end: loss.end,
        },
        {
            position: found,
            _count_name(loss.topic_id, loss.partition): number or None,
            first: None,
            end: None,
        },
        handle=handle,
    )


def promised(handle: Any, topic_id: str, partitions: int) -> int:
    """Rows that the positions of a table promise: a topic lands from offset 0, densely but for what was lost."""
    landed = sum(landed_offsets(handle, topic_id, partitions).values())
    lost = sum(loss.end - loss.first for loss in losses(handle, topic_id, partitions))
    return landed - lost + int(handle.transaction_version(rows_before(topic_id)) or 0)


def rows_before(topic_id: str) -> str:
    """Application id of how many rows a table held of earlier topics when it went on with this one."""
    return f"{topic_id}.before"


def with_lost(ranges: pl.DataFrame, known: Iterable[Loss]) -> pl.DataFrame:
    """Ranges of offsets with how many of them were lost: column `lost`.

    Args:
        ranges: topic_id, partition, first_offset, end_offset.
    """
    rows = ranges.select("topic_id", "partition", "first_offset", "end_offset").rows()
    lost = [
        sum(
            max(0, min(loss.end, end) - max(loss.first, first))
            for loss in known
            if (loss.topic_id, loss.partition) == (topic_id, partition)
        )
        for topic_id, partition, first, end in rows
    ]
    return ranges.with_columns(lost=pl.Series(lost, dtype=pl.Int64))


def _count_name(topic_id: str, partition: int) -> str:
    return f"{position_name(topic_id, partition)}.lost"


def _count(handle: Any, topic_id: str, partition: int) -> int:
    return int(handle.transaction_version(_count_name(topic_id, partition)) or 0)


def _names(topic_id: str, partition: int, number: int) -> tuple[str, str]:
    name = f"{_count_name(topic_id, partition)}.{number}"
    return f"{name}.first", f"{name}.end"


def _last(handle: Any, loss: Loss, number: int) -> Loss:
    first, end = (handle.transaction_version(name) for name in _names(loss.topic_id, loss.partition, number))
    return Loss(loss.topic_id, loss.partition, first, end)
