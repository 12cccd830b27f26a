"""Data whose writer dies in the middle: the two crash points that lie inside delta-rs.

Only a process that was started to die there ever comes here; see `core.crash`.
"""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from core import crash
from core.crash import Point

POINTS = frozenset({Point.WRITING_FILES, Point.FILES_WRITTEN})


def doomed(data: Any, root: str) -> Any:
    """The same rows in two batches; the writer dies between them, or when its file is whole and not committed.

    Args:
        data: an Arrow table or Polars frame.
        root: folder of the table. On an object store there is none to watch: there the writer dies when it
            has taken all rows, with its upload unfinished.
    """
    if not crash.due(Point(crash.NAME)):
        return data
    table = data.to_arrow() if isinstance(data, pl.DataFrame) else data
    half = len(table) // 2

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.slice(0, half).to_batches()
        if crash.NAME == Point.WRITING_FILES:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from table.slice(half).to_batches()
        if "://" in root:
            os.kill(os.getpid(), signal.SIGKILL)
        folder = Path(root)
        threading.Thread(target=_die_at_new_file, args=(folder, _files(folder)), daemon=True).start()

    return pa.RecordBatchReader.from_batches(table.schema, batches())


def _die_at_new_file(root: Path, before: set[str]) -> None:
    """SIGKILL at the moment a file bears its final name; the commit takes about a millisecond more."""
    while not _files(root) - before:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _files(root: Path) -> set[str]:
    with os.scandir(root) as entries:
        return {entry.name for entry in entries if entry.name.endswith(".parquet")}
