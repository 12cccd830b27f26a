"""Keeping tables quick to read: many small files into few, and files that nothing names any more away.

Neither changes a row. Both may run beside writers: an append reads nothing that a compaction removes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltalake import CommitProperties, DeltaTable, WriterProperties
from deltalake.exceptions import CommitFailedError

from core.lake import Lake
from core.lake.commit import PAGE, make_durable

TARGET_BYTES = 64 << 20
"""Size up to which files are put together."""
SMALL_BYTES = TARGET_BYTES // 4
RETENTION_HOURS = 7 * 24
"""How long a file stays after its last mention, so that whoever opened the table before still finds it."""
WRITER = WriterProperties(
    compression="ZSTD", compression_level=3, max_row_group_size=65_536, data_page_row_count_limit=PAGE
)
"""Rows of a slice are found by row group; one of a million rows would hide them."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """How many files became how many. Both 0 where there was nothing to do or another writer was faster."""

    removed: int
    added: int


def small_files(handle: DeltaTable) -> int:
    """How many of the table's files are small."""
    sizes: Any = handle.get_add_actions().column("size_bytes")
    return sum(size.as_py() < SMALL_BYTES for size in sizes)


def crowded(lake: Lake, most: Mapping[str, int]) -> list[str]:
    """The tables with more small files than `most` says."""
    handles = {table: lake.open(table) for table in most}
    return [
        table for table, handle in handles.items() if handle is not None and small_files(handle) > most[table]
    ]


def compact(lake: Lake, table: str) -> Compacted:
    """Put small files together; rows keep their order.

    Where another writer rewrites the same files meanwhile (a fold, an erasure), it wins and the files
    stay for the next time.
    """
    handle = lake.open(table)
    if handle is None:
        return Compacted(0, 0)
    before = handle.version()
    try:
        done = handle.optimize.compact(
            target_size=TARGET_BYTES,
            max_concurrent_tasks=1,
            writer_properties=WRITER,
            commit_properties=CommitProperties(max_commit_retries=15),
        )
    except CommitFailedError:
        lake.forget(table)
        return Compacted(0, 0)
    for version in range(before + 1, handle.version() + 1):
        # What was durable is replaced by what delta-rs does not fsync. Others' commits among them do no harm.
        make_durable(lake, table, version)
    return Compacted(done["numFilesRemoved"], done["numFilesAdded"])


def vacuum(lake: Lake, table: str) -> int:
    """Delete files that no version of the last seven days names. Nothing of ours opens an older one.

    Returns:
        how many were named for deletion; some may have been deleted before.
    """
    handle = lake.open(table)
    if handle is None:
        return 0
    # `full` finds also what a killed writer left, which the log has never named.
    options: dict[str, Any] = {"retention_hours": RETENTION_HOURS, "full": True}
    old = handle.vacuum(dry_run=True, **options)
    if old:
        handle.vacuum(dry_run=False, **options)
    return len(old)
