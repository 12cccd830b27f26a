"""What lake care keeps small while a slice lands each minute for a month: files, log, and what a slice costs.

    make bench NAME=month [ARGS="--days 30"]

Each slice goes through landing, roll-up, days and folding as in a run, on a folder; each half hour the tables are
compacted where the schedule would (`pipelines.maintenance`). Event time goes on by a minute a slice. A simulated
hour takes seconds, so the entries of the Delta logs are made an hour older with each: their retention of six hours
goes by the age of files. Files out of use for seven days are not deleted here, only not counted
(`tests/core/lake/test_maintenance.py` shows that they go).

At the end every event is in a daily cell once. Ratios compare the last day with the second.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from assets.usage import schema
from assets.usage.folding import fold_full_blocks
from assets.usage.landing import land
from assets.usage.rollup import daily, roll_up
from core.contracts.usage import UsageData, UsageEvent
from core.eventlog.api import Record, Slice
from core.lake import Lake
from core.lake.maintenance import compact, crowded
from core.settings import ObjectSettings
from core.topology import TOPICS
from pipelines.maintenance import MOST_SMALL_FILES
from tests.bench import report

TABLES: Final = (schema.EVENTS, schema.HOURLY, schema.DAILY)
DAY: Final = 24 * 60
"""Slices."""
LOOK: Final = 30
TENANTS, EVENTS = 2, 6
"""Organisations of a partition, and events in each partition of a slice."""


class Month:
    """A lake in a folder, and what was seen of it day by day."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._start = folder, datetime.now(UTC) - timedelta(days=40)
        self._ends = dict.fromkeys(range(TOPICS[schema.TOPIC].partitions), 0)
        self.events = 0
        self.seconds: list[float] = []
        self.care: list[float] = []
        self.files: dict[str, list[int]] = defaultdict(list)
        self.entries: list[int] = []

    def lake(self) -> Lake:
        """A new one for each piece of work, as runs have it."""
        return Lake(ObjectSettings(objects_url=f"file://{self._folder}/objects"))

    def slice(self, number: int) -> None:
        batches = list(self._batches(number))
        ranges = {b[0].partition: (b[0].offset, b[-1].offset + 1) for b in batches}
        began = time.process_time()
        lake = self.lake()
        land(lake, self._folder / "index", Slice(schema.TOPIC, "month", ranges), batches)
        roll_up(lake)
        daily(lake)
        fold_full_blocks(lake, number - 1, number)
        self.seconds.append(time.process_time() - began)

    def look(self) -> None:
        """What happens each half hour, and how many files there were before."""
        began, lake = time.process_time(), self.lake()
        for table in TABLES:
            handle = lake.open(table)
            assert handle is not None
            self.files[table].append(len(handle.file_uris()))
        for table in crowded(lake, MOST_SMALL_FILES):
            compact(lake, table, order=schema.ORDERS.get(table, ()))
        self.care.append(time.process_time() - began)

    def an_hour_passes(self) -> None:
        entries = [
            path
            for table in TABLES
            for path in (self._folder / "objects/lake" / table / "_delta_log").iterdir()
        ]
        self.entries.append(len(entries))
        for path in entries:
            modified = path.stat().st_mtime - 3600
            os.utime(path, (modified, modified))

    def counted(self) -> int:
        """Events in daily cells."""
        handle = self.lake().open(schema.DAILY)
        assert handle is not None
        return int(pl.DataFrame(handle.to_pyarrow_table(columns=["events"]))["events"].sum())

    def _batches(self, number: int) -> Iterator[list[Record]]:
        """The records of a slice, a list a partition."""
        at = self._start + timedelta(minutes=number)
        for partition, first in self._ends.items():
            each = [
                UsageEvent(
                    id=f"{number}-{place}", source="month", time=at, tenant=f"org_{partition}_{place % TENANTS}",
                    type="headrace.usage.v1", specversion="1.0",
                    data=UsageData("llm.tokens.input", str(1 + place), {"model": f"m{place}"}),
                ) for place in range(EVENTS)
            ]  # fmt: skip
            received = int(at.timestamp() * 1000)
            yield [
                Record(schema.TOPIC, partition, first + place, event.key, event.encode(), received)
                for place, event in enumerate(each)
            ]
            self._ends[partition] = first + EVENTS
            self.events += EVENTS


def main() -> None:
    arguments = argparse.ArgumentParser(
        description="Files and cost while a slice lands each minute for a month."
    )
    arguments.add_argument("--days", type=int, default=30)
    options = arguments.parse_args()
    if options.days < 3:
        arguments.error("--days must be at least 3")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        month = Month(Path(name))
        for number in range(1, options.days * DAY + 1):
            month.slice(number)
            if number % LOOK == 0:
                month.look()
            if number % 60 == 0:
                month.an_hour_passes()
            if number % DAY == 0:
                day = month.seconds[-DAY:]
                most = {table: max(files[-DAY // LOOK :]) for table, files in month.files.items()}
                print(f"day {number // DAY:2d}: {statistics.fmean(day):.4f} CPU-s a slice, at most {most} files", flush=True)  # fmt: skip
        if (counted := month.counted()) != month.events:
            raise SystemExit(f"{month.events} events landed and {counted} are in daily cells")
    second, last = month.seconds[DAY : 2 * DAY], month.seconds[-DAY:]
    looks = DAY // LOOK
    most = {table: max(files) for table, files in month.files.items()}
    report.write(
        "month",
        {
            "slice_last_day_to_second": statistics.fmean(last) / statistics.fmean(second),
            "files_last_day_to_second": max(map(sum, zip(*(f[-looks:] for f in month.files.values()), strict=True)))
            / max(map(sum, zip(*(f[looks : 2 * looks] for f in month.files.values()), strict=True))),
        },
        {
            "slices": len(month.seconds),
            "events": month.events,
            "events_in_daily_cells": counted,
            "most_files": most,
            "most_log_entries_of_all_tables": max(month.entries),
            "cpu_seconds_of_a_slice": {"second_day": round(statistics.fmean(second), 4), "last_day": round(statistics.fmean(last), 4)},
            "cpu_seconds_of_care_per_slice": round(sum(month.care) / len(month.seconds), 4),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
