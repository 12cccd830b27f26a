"""What a slice costs: flat in the history behind it, and not far from a bare roll-up of the same events.

    make bench NAME=slices [ARGS="--slices 200 --events 50000"]

Each slice goes the whole way of a run, in this process: read from the event log, land (parse, fates by the
identity index, commit), roll up, conservation gate, days, publication into PostgreSQL. Counted are the
CPU-seconds of this process and of the PostgreSQL server while the slice is worked on; making the events and
putting them into the log is not.

The 200th slice is measured beside the second slice of another, young installation, in turns: on a machine
that has other work the same slice costs half as much again, and minutes lie between the two otherwise.
"""

import argparse
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from assets.usage import schema
from core.eventlog.api import NewRecord
from tests.bench import report
from tests.bench.installation import Cost, Installation
from tests.bench.rivals import duckdb_rollup, index_merging
from tests.bench.workload import Workload

NEIGHBOURS = 9
"""A slice is compared by the median of this many around it."""
COMPARED = 8
"""Slices that DuckDB is given, in one file."""
EVERY = 20
"""So often DuckDB is asked in between."""


class Bench:
    """The measurements, in the order in which they are taken."""

    def __init__(self, folder: Path, slices: int, events: int) -> None:
        self._folder, self._slices, self._events = folder, slices, events
        self.costs: list[Cost] = []
        self.young: list[Cost] = []
        self.duckdb: list[float] = []
        """Records for one CPU-second."""
        self.cells = 0
        self.fates: Counter[str] = Counter()

    def run(self) -> None:
        with ExitStack() as stack:
            old, young = (stack.enter_context(Installation(self._folder / name)) for name in ("old", "young"))
            workload, kept = Workload(schema.TOPIC, self._events, slices=self._slices), list[NewRecord]()
            for number in range(1, self._slices + 1):
                records = workload.slice(number)
                if number <= COMPARED:
                    kept += records
                if number > self._slices - NEIGHBOURS:
                    self._measure_second(young, number)
                old.send(records)
                cost, fates = old.slice(self._events)
                self.costs.append(cost)
                self.fates.update(fates)
                if number == COMPARED:
                    (self._folder / "events.ndjson").write_bytes(b"\n".join(r.value for r in kept) + b"\n")
                if number % EVERY == 0:
                    self._ask_duckdb(len(kept))
                    print(f"slice {number:4d}: {cost}", flush=True)

    def _measure_second(self, young: Installation, seed: int) -> None:
        young.reset()
        workload = Workload(schema.TOPIC, self._events, slices=self._slices, seed=seed)
        for number in (1, 2):
            young.send(workload.slice(number))
            cost, _ = young.slice(self._events)
        self.young.append(cost)

    def _ask_duckdb(self, records: int) -> None:
        found = duckdb_rollup(self._folder / "events.ndjson", rounds=2)
        self.duckdb.append(records / found.cpu_seconds)
        self.cells = found.cells

    def folding(self) -> float:
        """CPU-seconds that folding costs a slice: what publication costs more where a block became full."""
        block = schema.BLOCKS[0]
        later = list(enumerate(self.costs, 1))[len(self.costs) // 2 :]
        full = [cost.of("publish") for number, cost in later if number % block == 0]
        others = [cost.of("publish") for number, cost in later if number % block]
        return max(0.0, statistics.median(full) - statistics.median(others)) / block if full else 0.0

    def summary(self) -> tuple[dict[str, float], dict[str, object]]:
        """The two promises, and what stands behind them."""
        last = self.costs[-NEIGHBOURS:]
        merging = index_merging(self._folder / "merging", self._slices, self._events)
        one, other = (statistics.median(cost.total for cost in costs) for costs in (last, self.young))
        here = statistics.median(cost.in_process for cost in self.costs)
        everywhere = statistics.median(cost.total for cost in self.costs)
        rival = statistics.median(self.duckdb)
        ratios = {
            "slice_last_to_second": (one + merging + self.folding()) / other,
            "records_per_cpu_second_to_duckdb": self._events / here / rival,
        }
        figures: dict[str, object] = {
            "slices": self._slices,
            "events_per_slice": self._events,
            "second_slice_cpu_seconds": round(other, 4),
            "last_slice_cpu_seconds": round(one, 4),
            "merging_of_index_per_slice_cpu_seconds": round(merging, 4),
            "folding_of_sums_per_slice_cpu_seconds": round(self.folding(), 4),
            "most_expensive_slice_cpu_seconds": round(max(cost.total for cost in self.costs), 4),
            "records_per_cpu_second_in_process": round(self._events / here),
            "records_per_cpu_second_with_postgres": round(self._events / everywhere),
            "duckdb_records_per_cpu_second": round(rival),
            "duckdb_cells": self.cells,
            "fates": dict(self.fates),
            "stages_of_second_slice": stages(self.young),
            "stages_of_last_slice": stages(last),
        }
        return ratios, figures


def stages(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """Median CPU-seconds of each stage, here and in PostgreSQL."""
    return {
        name: {
            "process": round(statistics.median(cost.process[name] for cost in costs), 4),
            "postgres": round(statistics.median(cost.postgres[name] for cost in costs), 4),
        }
        for name in costs[0].process
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description="What a slice costs, against history and against DuckDB.")
    arguments.add_argument("--slices", type=int, default=200)
    arguments.add_argument("--events", type=int, default=50_000)
    options = arguments.parse_args()
    if options.slices < 2 * EVERY:
        arguments.error(f"--slices must be at least {2 * EVERY}")
    with tempfile.TemporaryDirectory(prefix=f"headrace-bench-{secrets.token_hex(2)}-") as name:
        bench = Bench(Path(name), options.slices, options.events)
        bench.run()
        ratios, figures = bench.summary()
    # In a process that has nothing else of this bench: a fork imports the main module of its parent anew.
    code = "from tests.bench.runs import forked; print(forked())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    figures["fixed_cost_of_a_dagster_run_cpu_seconds"] = round(float(done.stdout), 2)
    report.write("slices", ratios, figures)


if __name__ == "__main__":
    main()
