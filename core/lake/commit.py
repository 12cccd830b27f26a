"""One atomic commit of data files and positions, by compare-and-set (law 1).

delta-rs refuses only a *concurrent* commit of the same application id: a stale version from a fresh
handle is accepted and moves the position back (measured). So a commit opens the table, compares every
position with what the caller expects, and writes with that same handle; on a conflict or an unknown
outcome it reads again before anything else.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError

from core import crash
from core.crash import Point
from core.lake import CONFIGURATION, Lake, doomed
from core.log import Logger

log = Logger(__name__)

RETRIES = 15
"""Of a commit that another writer came before."""
DISTINCT = ("identity", "content", "event_id", "offset", "received", "event_time")
"""Columns whose values hardly repeat: trying a dictionary on them costs a fourth of a landing commit."""
PAGE = 2_048
"""Rows: a reader that wants one of them decompresses a page of each column, not a row group. One row of a landed file
costs 0.8 ms instead of 1.7, and a commit no more than before (measured)."""
ROW_GROUP = 32_768
"""Rows; small enough for a reader to leave out those of other hours. With half of it a commit of 50,000 events costs
a third more (58 and 42 ms, measured)."""


def writer_properties(handle: DeltaTable, *more: str, level: int = 1) -> WriterProperties:
    """Statistics only of the columns that the table is searched by: those of all cost a fifth of a commit.

    Args:
        more: columns whose row groups, beside, have statistics in the file itself.
        level: of compression.
    """
    searched = [*handle.metadata().configuration.get("delta.dataSkippingStatsColumns", "").split(","), *more]
    columns = {
        name: ColumnProperties(
            dictionary_enabled=name not in DISTINCT,
            statistics_enabled="CHUNK" if name in searched else "NONE",
            # Offsets are dense: their differences are ones, and decoding those costs less than decompressing pages.
            encoding="DELTA_BINARY_PACKED" if name == "offset" else None,
        )
        for name in {*DISTINCT, *searched} - {""}
    }
    return WriterProperties(
        compression="ZSTD",
        compression_level=level,
        max_row_group_size=ROW_GROUP,
        data_page_row_count_limit=PAGE,
        default_column_properties=ColumnProperties(statistics_enabled="NONE"),
        column_properties=columns,
    )


class StaleError(Exception):
    """The table is not where the caller thought: somebody else has committed. Nothing was written."""

    def __init__(
        self, table: str, expected: Mapping[str, int | None], found: Mapping[str, int | None]
    ) -> None:
        differing = {
            name: (expected[name], found[name]) for name in expected if expected[name] != found[name]
        }
        super().__init__(f"{table} has moved on (position: expected, found): {differing}; read it again")
        self.found = dict(found)


def positions(handle: DeltaTable | None, names: Iterable[str]) -> dict[str, int | None]:
    """The committed version of each application id, None where there is none."""
    return {name: None if handle is None else handle.transaction_version(name) for name in names}


def create(
    lake: Lake,
    table: str,
    empty: Any,
    statistics: Sequence[str],
    *,
    description: str | None = None,
    partitions: Sequence[str] = (),
) -> DeltaTable:
    """Open the table, creating it where it is missing (two creators: one wins, both open it).

    Args:
        empty: a Polars frame with its schema.
        statistics: the columns it is searched by; statistics of the others would only fill the log.
        description: kept by the table from its creation on.
        partitions: columns of few values whose rows stand in files of their own.
    """
    handle = lake.open(table)
    if handle is not None:
        return handle
    return DeltaTable.create(
        lake.uri(table),
        schema=empty.to_arrow().schema,
        mode="ignore",
        partition_by=list(partitions),
        description=description,
        configuration={**CONFIGURATION, "delta.dataSkippingStatsColumns": ",".join(statistics)},
        storage_options=lake.options() or None,
    )


def commit(
    lake: Lake,
    table: str,
    data: Any,
    transactions: Mapping[str, int],
    expected: Mapping[str, int | None],
    *,
    handle: DeltaTable | None = None,
    overwrite: str | None = None,
    writer: WriterProperties | None = None,
) -> int:
    """Append `data` (an Arrow table or Polars frame) and set `transactions`, all or nothing.

    Args:
        expected: position of every application id before; must name all of `transactions`.
        handle: of the table, where the caller has one; it moves to the commit. One that came after it is a conflict,
            but for a compaction, after which an append is written again.
        overwrite: a predicate whose rows the data replaces (a fold), instead of an append.
        writer: how the files are written; `writer_properties` where None.

    Returns:
        The Delta version that holds it. Where the outcome was unknown and the table turns out to be at
        `transactions`, the commit counts as done: the work of a slice is a pure function of it.

    Raises:
        StaleError: the table is somewhere else.
    """
    handle = handle or lake.open(table)
    if handle is None:
        raise LookupError(f"table {table} does not exist; create it before the first commit")
    found = positions(handle, expected)
    if found != dict(expected):
        raise StaleError(table, expected, found)
    properties = CommitProperties(
        app_transactions=[Transaction(name, version) for name, version in transactions.items()],
        max_commit_retries=RETRIES,
    )
    writer = writer or writer_properties(handle)
    if crash.NAME in doomed.POINTS:
        data = doomed.doomed(data, lake.uri(table))
    callers = handle
    for attempt in range(RETRIES + 1):
        try:
            _write(handle, data, overwrite, properties, writer)
            break
        except (CommitFailedError, DeltaError, OSError) as error:
            again, done = _look_again(lake, table, transactions, expected, error)
            if done:
                return int(again.version())
            # An append depends on nothing but the positions and what the table says of itself (whose topic it is);
            # delta-rs refuses it all the same where files were put together meanwhile.
            if overwrite or attempt == RETRIES or not isinstance(error, CommitFailedError):
                raise
            if _says(again) != _says(handle):
                raise
            handle = again
    if callers is not handle:
        callers.update_incremental()
    crash.here(Point.COMMIT_SENT)
    return int(handle.version())


def _write(
    handle: DeltaTable,
    data: Any,
    overwrite: str | None,
    properties: CommitProperties,
    writer: WriterProperties,
) -> None:
    options: Any = {"mode": "append"} if overwrite is None else {"mode": "overwrite", "predicate": overwrite}
    write_deltalake(handle, data, commit_properties=properties, writer_properties=writer, **options)


def _says(handle: DeltaTable) -> tuple[object, ...]:
    said = handle.metadata()
    return said.id, said.description, said.configuration, handle.schema().to_json()


def _look_again(
    lake: Lake,
    table: str,
    transactions: Mapping[str, int],
    expected: Mapping[str, int | None],
    error: Exception,
) -> tuple[DeltaTable, bool]:
    """The table behind a commit that failed, and True where it is there all the same."""
    lake.forget(table)
    handle = lake.open(table)
    found = positions(handle, expected)
    if handle is None:
        raise error
    if transactions and all(found[name] == version for name, version in transactions.items()):
        log.warn("commit had an unknown outcome and is there", table=table, error=type(error).__name__)
        return handle, True
    if found != dict(expected):
        raise StaleError(table, expected, found) from error
    return handle, False


def make_durable(lake: Lake, table: str, version: int) -> None:
    """fsync the data files of one commit, its log entry and both folders (delta-rs renames without).

    Needed on a local folder before anything is destroyed that this commit replaces: a purge, above all.
    """
    if not lake.local:
        return
    root = Path(lake.uri(table))
    entry = root / "_delta_log" / f"{version:020d}.json"
    actions = [json.loads(line) for line in entry.read_text().splitlines()]
    files = [root / action["add"]["path"] for action in actions if "add" in action]
    for path in [*files, entry, *{file.parent for file in files}, entry.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
