"""What stands beside a slice: DuckDB on the bare events, merges alone."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from assets.slices.index import IdentityIndex, Winners

QUERY = """
with event as (
    select tenant, source, id, time, data from read_json(
        ?, format = 'newline_delimited', ignore_errors = true, columns = {
            'tenant': 'varchar', 'source': 'varchar', 'id': 'varchar', 'time': 'timestamptz',
            'data': 'struct(meter varchar, quantity varchar, dimensions json)'
        }
    ) where id is not null and tenant is not null
), first as (
    select any_value(time) as time, any_value(data) as data, tenant from event group by tenant, source, id
)
select tenant, data.meter, date_trunc('hour', time) as hour, data.dimensions::varchar as dimensions,
    sum(data.quantity::decimal(38, 9)) as quantity, count(*) as events
from first group by all
"""
"""The same roll-up, deduplicated in memory, without fates, index, commit or publication."""


@dataclass(frozen=True)
class RolledUp:
    cpu_seconds: float
    cells: int


def duckdb_rollup(path: Path, rounds: int = 3) -> RolledUp:
    """Roll up a file of NDJSON; the cheapest of some rounds."""
    best, cells = float("inf"), 0
    with duckdb.connect() as connection:
        connection.execute("set threads = 2")
        for _ in range(rounds):
            before = time.process_time()
            cells = len(connection.execute(QUERY, [str(path)]).fetchall())
            best = min(best, time.process_time() - before)
    return RolledUp(best, cells)


def index_merging(folder: Path, slices: int, events: int) -> float:
    """CPU-seconds that merging costs a slice on average, beyond what adding costs in most slices.

    Merges fall on few slices, some of them far apart; the mean over the later half has them all.
    """
    random = np.random.default_rng(1)
    costs = []
    index = IdentityIndex(folder, "merging")
    with index.locked():
        for number in range(1, slices + 1):
            high, low = random.integers(1 << 63, size=(2, events)).astype(np.uint64)
            rows = np.arange(events)
            before = time.process_time()
            index.add(number, Winners(high, low, rows, np.zeros(events, np.int32), rows))
            costs.append(time.process_time() - before)
    later = costs[len(costs) // 2 :]
    return max(0.0, statistics.fmean(later) - statistics.median(later))
