"""`python -m tests.services.lookup.snapshot_hash SLICE REVISION`: hash of what a snapshot of a slice holds, made with
as many workers as POLARS_MAX_THREADS says."""

import sys
from dataclasses import replace

import polars as pl

from assets.usage.asof import rows_as_of
from assets.usage.generation import usage_lake
from assets.usage.snapshot import published, tables
from core.content import digest
from core.settings import DatabaseSettings, ObjectSettings

if __name__ == "__main__":
    last, revision = int(sys.argv[1]), int(sys.argv[2])
    database = DatabaseSettings()
    now = published(database)
    assert now is not None
    state = replace(now, slice=last, prices=[each for each in now.prices if each.revision <= revision])
    lake = usage_lake(ObjectSettings(), database)
    frames, _ = tables(rows_as_of(lake, last), state)
    rows = [(name, *map(str, row)) for name, frame in sorted(frames.items()) for row in frame.rows()]
    print(pl.thread_pool_size(), digest(rows))
