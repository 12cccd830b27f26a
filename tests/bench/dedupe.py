"""Exact dedupe without expiry: against a unique index of PostgreSQL, and as history grows to a hundred million.

    make bench NAME=dedupe [ARGS="--most 100000000 --compared 10000000"]

The identity index is filled as runs fill it: opened anew for each slice of 50,000 identities, of which one in a
hundred was counted before, anywhere in the history; fates, entries, runs and manifest, all fsynced. Every fate
and every winner is compared with what it must be, so a missed duplicate ends the bench. PostgreSQL gets the same
slices by COPY and INSERT … ON CONFLICT DO NOTHING, a transaction each, with fsync, on a table that holds as many
identities already; it has a gigabyte of buffers and no autovacuum beside it.

Counted are CPU-seconds of this process, and of the server where there is one. `slice_last_to_first` is the mean
of the slices up to the most against that up to the first million, with all merging in it; `usual_slice_…` is
of the medians, which most slices cost.
"""

import argparse
import io
import secrets
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import psutil
import psycopg2

from assets.slices.fates import COUNTED, DUPLICATE, OUTCOME, Parsed, Schema, with_fates
from assets.slices.index import IdentityIndex
from deploy.servers.postgres import postgres as postgres_server
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.servers import free_port, start, stop

SLICE = 50_000
DOUBLE = 0.01
FIRST = 1_000_000
"""Identities of a young index."""
PROBED = 1_000_000
"""Records that PostgreSQL is compared on."""
WINDOW = 600
"""Slices that a figure of one size is taken from, at most half of the history: at 100 M too there is a merge of the largest
runs in it."""
SCHEMA: Schema = {
    "slice": pl.Int64,
    "topic_id": pl.String,
    **{n: t for n, t in OUTCOME.items() if n != "raw"},
}

Array = npt.NDArray[Any]


def mixed(ordinals: Array, salt: int) -> Array:
    """64 bits of an ordinal (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    state: Array = ordinals.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


@dataclass(frozen=True, slots=True)
class Records:
    """A slice: of each record the number of its identity, and whether that was there before."""

    ordinals: Array
    again: Array

    @property
    def high(self) -> Array:
        return mixed(self.ordinals, 1)

    @property
    def low(self) -> Array:
        return mixed(self.ordinals, 2)


class History:
    """Slices without end. What comes again is any identity before, those of its own slice among them."""

    def __init__(self, known: int = 0) -> None:
        self.known = known
        self._pick = np.random.default_rng(7 + known)

    def slice(self) -> Records:
        again = self._pick.random(SLICE) < DOUBLE
        again[0] &= self.known > 0
        newest = self.known + np.cumsum(~again) - 1
        older = (self._pick.random(SLICE) * (newest + 1)).astype(np.int64)
        self.known += int((~again).sum())
        return Records(np.where(again, older, newest), again)


class Ours:
    """The index in a folder, filled slice by slice."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._history, self._number = folder, History(), 0
        self.seconds: list[float] = []
        self.sizes: list[int] = []
        self.duplicates = 0

    def fill(self, most: int, *, seconds: float) -> None:
        """Until so many identities are known, or so much time has passed."""
        until = time.monotonic() + seconds
        while self._history.known < most and time.monotonic() < until:
            self._slice()
            if self._number % 200 == 0:
                print(f"{self._history.known} identities: {self.mean(self._history.known):.4f} CPU-s a slice", flush=True)  # fmt: skip

    def _slice(self) -> None:
        records, self._number = self._history.slice(), self._number + 1
        parsed = _parsed(records)
        began = time.process_time()
        index = IdentityIndex(self._folder, "bench")
        with index.locked():
            frame, winners = with_fates(parsed, self._number, "topic", index, SCHEMA)
            index.add(self._number, winners)
        self.seconds.append(time.process_time() - began)
        self.sizes.append(self._history.known)
        self.duplicates += int(records.again.sum())
        _check(frame, records)

    def mean(self, size: int) -> float:
        """CPU-seconds of a slice on the way to this size, merging in it."""
        return statistics.fmean(self._window(size))

    def median(self, size: int) -> float:
        return statistics.median(self._window(size))

    def _window(self, size: int) -> Sequence[float]:
        end = int(np.searchsorted(self.sizes, size)) + 1
        return self.seconds[max(end // 2, end - WINDOW) : end]

    def __len__(self) -> int:
        return self._history.known


def _parsed(records: Records) -> Parsed:
    """As reading leaves a slice; the offset of a record is the number of its identity, to check winners by."""
    yes = np.ones(len(records.ordinals), bool)
    frame = pl.DataFrame({"code": pl.Series([None], dtype=pl.String).new_from_index(0, len(yes))})
    partition, content = np.zeros(len(yes), np.int32), records.ordinals * 3
    return Parsed(
        frame, partition, records.ordinals, yes, yes, records.high, records.low, content.astype(np.int64)
    )


def _check(frame: pl.DataFrame, records: Records) -> None:
    fates = pl.select(
        pl.when(pl.Series(records.again)).then(pl.lit(DUPLICATE)).otherwise(pl.lit(COUNTED)).alias("fate")
    )
    right = frame["fate"].equals(fates["fate"])
    winners = frame["winner_offset"].to_numpy()[records.again]
    if not (right and np.array_equal(winners, records.ordinals[records.again])):
        raise SystemExit("the index gave a fate or a winner that is not right")


def postgres_seconds(folder: Path, known: int) -> tuple[float, float]:
    """CPU-seconds and seconds of `PROBED` records on a table that knows so many identities."""
    password = secrets.token_hex(16)
    server = postgres_server(folder, free_port(), password)
    # Later options win. What costs a larger installation nothing must not decide the comparison.
    kinder = ("shared_buffers=1GB", "max_wal_size=8GB", "maintenance_work_mem=512MB", "autovacuum=off")
    server = replace(server, argv=(*server.argv, *(word for each in kinder for word in ("-c", each))))
    process = start(server, folder / "postgres.log")
    try:
        connection = psycopg2.connect(f"postgresql://postgres:{password}@{server.address}/postgres")
        with connection, connection.cursor() as cursor:
            cursor.execute("create table seen (id uuid not null)")
            for first in range(0, known, 1_000_000):
                _copy(cursor, "seen", np.arange(first, min(first + 1_000_000, known)))
            cursor.execute("alter table seen add primary key (id)")
            cursor.execute("create temporary table new (id uuid not null) on commit delete rows")
        connection.autocommit = True
        connection.cursor().execute("vacuum (freeze, analyze) seen")
        connection.cursor().execute("checkpoint")
        connection.autocommit = False
        postgres, history, cpu, wall = psutil.Process(process.pid), History(known), 0.0, 0.0
        for _ in range(PROBED // SLICE):
            records = history.slice()
            before, began = server_cpu(postgres) + time.process_time(), time.monotonic()
            with connection, connection.cursor() as cursor:
                _copy(cursor, "new", records.ordinals)
                cursor.execute("insert into seen select id from new on conflict do nothing")
                inserted = cursor.rowcount
            wall += time.monotonic() - began
            cpu += server_cpu(postgres) + time.process_time() - before
            assert inserted == int((~records.again).sum())
        connection.close()
    finally:
        stop(server, process)
    return cpu, wall


def _copy(cursor: Any, table: str, ordinals: Array) -> None:
    """Identities as PostgreSQL's uuid, in the binary format of COPY: no side pays for texts."""
    rows = np.zeros(len(ordinals), [("fields", ">i2"), ("length", ">i4"), ("high", ">u8"), ("low", ">u8")])
    rows["fields"], rows["length"] = 1, 16
    rows["high"], rows["low"] = mixed(ordinals, 1), mixed(ordinals, 2)
    data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff"
    cursor.copy_expert(f"copy {table} (id) from stdin with (format binary)", io.BytesIO(data))


def main() -> None:
    arguments = argparse.ArgumentParser(description="Exact dedupe, against PostgreSQL and against history.")
    arguments.add_argument("--most", type=int, default=100_000_000, help="identities that history grows to")
    arguments.add_argument(
        "--compared", type=int, default=10_000_000, help="identities that PostgreSQL knows"
    )
    arguments.add_argument("--seconds", type=float, default=480, help="after which history grows no more")
    options = arguments.parse_args()
    if not 2 * FIRST <= options.compared <= options.most:
        arguments.error(f"needed: {2 * FIRST} <= --compared <= --most")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        ours = Ours(Path(name) / "index")
        ours.fill(options.most, seconds=options.seconds)
        compared = min(options.compared, len(ours))
        rate = SLICE / ours.mean(compared)
        disk = sum(path.stat().st_size for path in (Path(name) / "index").iterdir())
        cpu, wall = postgres_seconds(Path(name), compared)
    sizes = [size for size in (FIRST, compared, len(ours) // 2, len(ours)) if size <= len(ours)]
    report.write(
        "dedupe",
        {
            "ids_per_cpu_second_to_postgres": rate / (PROBED / cpu),
            "slice_last_to_first_million": ours.mean(len(ours)) / ours.mean(FIRST),
            "usual_slice_last_to_first_million": ours.median(len(ours)) / ours.median(FIRST),
        },
        {
            "identities": len(ours),
            "identities_that_postgres_is_compared_at": compared,
            "duplicates_sent": ours.duplicates,
            "duplicates_missed": 0,
            "ids_per_cpu_second": round(rate),
            "postgres_ids_per_cpu_second": round(PROBED / cpu),
            "postgres_ids_per_second": round(PROBED / wall),
            "cpu_seconds_of_a_slice": {str(size): round(ours.mean(size), 4) for size in sizes},
            "cpu_seconds_of_a_usual_slice": {str(size): round(ours.median(size), 4) for size in sizes},
            "index_mb_on_disk": disk >> 20,
        },
    )


if __name__ == "__main__":
    main()
