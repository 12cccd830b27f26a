"""Keeping tables quick to read: many small files into few, and files that nothing names any more away.

Neither changes a row. Both may run beside writers: an append reads nothing that a compaction removes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from deltalake import CommitProperties, DeltaTable, WriterProperties
from deltalake.exceptions import CommitFailedError

from core.lake import Lake
from core.lake.commit import PAGE, commit, make_durable, writer_properties
from core.lake.objects import ObjectLostError, content, sha256

TARGET_BYTES = 64 << 20
"""Size up to which files are put together."""
SMALL_BYTES = TARGET_BYTES // 4
CLUSTER_BYTES = TARGET_BYTES // 2
"""Size up to which files are sorted together, which takes twenty times as much memory."""
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
    broken: tuple[str, ...] = ()
    """Paths of those that were left alone, since they are lost or not what they should be."""


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


def compact(
    lake: Lake, table: str, *, order: Sequence[str] = (), hashes: Mapping[str, str] | None = None
) -> Compacted:
    """Put small files together.

    Where another writer rewrites the same files meanwhile (a fold, an erasure), it wins and the files
    stay for the next time.

    Args:
        order: columns that the rows of such a file are sorted by, as `_cluster` says; without, they keep their order.
        hashes: with `order`, SHA-256 by path of the files that may be put together. None takes all as they are; what
            was damaged would then look whole in the new file.
    """
    handle = lake.open(table)
    if handle is None:
        return Compacted(0, 0)
    return _cluster(lake, table, handle, order, hashes) if order else _bin(lake, table, handle)


def _bin(lake: Lake, table: str, handle: DeltaTable) -> Compacted:
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
    _make_durable(lake, table, before, handle)
    return Compacted(done["numFilesRemoved"], done["numFilesAdded"])


def _make_durable(lake: Lake, table: str, before: int, handle: DeltaTable) -> None:
    """What was durable is replaced by what delta-rs does not fsync. Others' commits among them do no harm."""
    for version in range(before + 1, handle.version() + 1):
        make_durable(lake, table, version)


def _cluster(
    lake: Lake, table: str, handle: DeltaTable, order: Sequence[str], hashes: Mapping[str, str] | None
) -> Compacted:
    """Neighbouring files as one whose rows are sorted by `order`, so that a reader who wants one value of its first
    column reads the row groups that hold it: 3 ms for one organisation of fifty among 1.1 million rows, not 39 (measured).

    Args:
        order: a text, the number of the slice, and what else names a row.
    """
    writer, removed, added = writer_properties(handle, order[0], level=3), 0, 0
    broken = list[str]()
    for files in list(_neighbours(handle, order[1], hashes)):
        for group in _whole(lake, table, files, hashes, broken):
            # Nothing else holds the rows as they were read, which are as many again.
            rows = _sorted(pl.concat(group.rows, rechunk=False), order)
            group.rows.clear()
            before, here = handle.version(), f"{order[1]} >= {group.low} and {order[1]} <= {group.high}"
            try:
                commit(lake, table, rows, {}, {}, handle=handle, overwrite=here, writer=writer)
            except CommitFailedError:
                lake.forget(table)
                return Compacted(removed, added, tuple(broken))
            _make_durable(lake, table, before, handle)
            removed, added = removed + group.files, added + 1
    return Compacted(removed, added, tuple(broken))


@dataclass(slots=True)
class _Group:
    """Neighbouring files that were read: the first and the last number in them, how many they are, their rows."""

    low: int
    high: int
    files: int
    rows: list[pl.DataFrame]


def _whole(
    lake: Lake, table: str, files: pl.DataFrame, hashes: Mapping[str, str] | None, broken: list[str]
) -> Iterator[_Group]:
    """At least two neighbours at a time, of `files` in their order. One that is broken parts them, as a large one does,
    and its path is added to `broken`.

    Raises:
        ValueError: the table's log says another number of rows.
    """
    held: _Group | None = None
    for file in files.iter_rows(named=True):
        rows = _read(lake, table, file["path"], None if hashes is None else hashes[file["path"]])
        if rows is not None and len(rows) != file["records"]:
            raise ValueError(
                f"{table}/{file['path']} holds {len(rows)} rows of slices {file['low']} to {file['high']}, the log says "
                f"{file['records']}"
            )
        if rows is None:
            broken.append(file["path"])
            if held is not None and held.files > 1:
                yield held
            held = None
        elif held is None:
            held = _Group(int(file["low"]), int(file["high"]), 1, [rows])
        else:
            held.high, held.files = int(file["high"]), held.files + 1
            held.rows.append(rows)
        del rows  # or this frame would keep the last file's while the caller writes
    if held is not None and held.files > 1:
        yield held


def _read(lake: Lake, table: str, path: str, expected: str | None) -> pl.DataFrame | None:
    """Rows of the very bytes that were compared; None where the file is lost, or its SHA-256 is not as `expected`."""
    try:
        data = content(lake, table, path)
    except ObjectLostError:
        return None
    return pl.read_parquet(io.BytesIO(data)) if expected in (None, sha256(data)) else None


def _neighbours(
    handle: DeltaTable, number: str, among: Mapping[str, Any] | None = None
) -> Iterator[pl.DataFrame]:
    """Small files side by side by the statistics of the column `number`, at least two and of about `CLUSTER_BYTES`
    together: path, low, high, records. Where `among` is given, none but its paths."""
    files = (
        pl.DataFrame(handle.get_add_actions(flatten=True))
        .select(
            "path",
            # A file without statistics may hold any value: nothing is replaced beside it.
            low=pl.col(f"min.{number}").fill_null(0),
            high=pl.col(f"max.{number}").fill_null(2**62),
            records="num_records",
            bytes="size_bytes",
        )
        .filter(pl.col("records").fill_null(1) > 0)
        .sort("low", "high")
    )
    # A file that shares a value with the one before cannot be replaced without it.
    apart = files["low"] > files["high"].cum_max().shift(1)
    small = (
        (files["bytes"] < SMALL_BYTES) & apart.fill_null(value=True) & apart.shift(-1).fill_null(value=True)
    )
    if among is not None:
        small &= files["path"].is_in(list(among))
    held, size = list[int](), 0
    for row in range(len(files) + 1):
        if row < len(files) and small[row] and size < CLUSTER_BYTES:
            held, size = [*held, row], size + files["bytes"][row]
            continue
        if len(held) > 1:
            yield files[held]
        held, size = ([row], files["bytes"][row]) if row < len(files) and small[row] else ([], 0)


def _sorted(rows: pl.DataFrame, order: Sequence[str]) -> pl.DataFrame:
    """Rows by `order`, the first of whose columns is a text. Sorting texts beside other columns takes four times
    the memory, so their ranks are sorted."""
    names = rows[order[0]].drop_nulls().unique().sort()
    rank = rows[order[0]].cast(pl.Enum(names)).to_physical().alias("rank")
    ranked = rows.select(rank, *order[1:])
    return rows[ranked.select(pl.arg_sort_by("rank", *order[1:])).to_series()]


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
