"""Usage from real Kafka to sums: against DuckDB on the bare events, against stream processors, and its memory.

    make bench NAME=usage [ARGS="--records 2000000 --backlog 5000000"]

One topic on Apache Kafka; each side reads it from the first record, drops what cannot be read, counts each
identity once and sums by hour, tenant, meter and dimensions. A side is quoted only where its answer is that of
a plain program over the same events, to the digit. CPU-seconds are of the side's own process, without the
start of Python and the loading of libraries; DuckDB is given the events as one file of NDJSON instead.

The peers are installed into environments of their own in the user's cache. One that cannot be installed or
run is named as such.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from assets.usage import schema
from core.eventlog.api import NewRecord
from core.settings import EventLogSettings
from deploy.provision import ProvisioningError
from deploy.provision.cache import filled
from deploy.provision.wheels import installer
from tests.bench import report
from tests.bench.broker import address, broker, create, send
from tests.bench.rivals import duckdb_rollup
from tests.bench.stream_peers import Cells, add, answer, fact
from tests.bench.workload import Workload

PEERS = {"bytewax": "bytewax==0.21.1", "pathway": "pathway==0.33.0", "quixstreams": "quixstreams==3.28.1"}
BATCH = 50_000
ROUNDS = 2
"""Ours and DuckDB in turns; of each the cheaper one counts."""
SECONDS = 900
"""A side that takes longer has failed."""

Found = dict[str, Any]


class Bench:
    def __init__(self, folder: Path, settings: EventLogSettings, records: int, backlog: int) -> None:
        self._folder, self._settings = folder, settings
        self._records, self._backlog = records // BATCH * BATCH, backlog // BATCH * BATCH
        slices = max(self._records, self._backlog) // BATCH
        # Without conflicts: which of two contents an identity is counted with is no question to the others.
        self._workload = Workload(schema.TOPIC, BATCH, slices=slices, conflict=0)
        self._made = 0
        self.expected: Found = {}
        self.sides: dict[str, Found] = {}
        self.failed: dict[str, str] = {}

    def run(self) -> None:
        self._fill()
        for _ in range(ROUNDS):
            for name in ("rollup", "commit"):
                self._keep(f"ours {name}", self._ours(name, self._records))
            self._keep("duckdb", self._duckdb())
        for name in PEERS:
            try:
                self._keep(name, self._peer(name))
            except (subprocess.SubprocessError, ProvisioningError, OSError, ValueError) as error:
                self.failed[name] = f"{type(error).__name__}: {error}"[:300]
        if self._backlog > self._records:
            send(self._settings, self._batches(self._backlog - self._records))
        if self._backlog:
            self.sides["backlog"] = self._ours("backlog", max(self._records, self._backlog))

    def _fill(self) -> None:
        """The topic, the same as NDJSON, and what a plain program makes of it."""
        cells, seen = Cells(), set[tuple[str, str, str]]()
        with (self._folder / "events.ndjson").open("wb") as file:

            def seen_by_all() -> Any:
                for batch in self._batches(self._records):
                    for record in batch:
                        file.write(record.value + b"\n")
                        found = fact(record.value, json.loads)
                        if found is not None and found[0] not in seen:
                            seen.add(found[0])
                            add(cells, found[1], found[2])
                    yield batch

            create(self._settings, schema.TOPIC, seen_by_all())
        self.expected = answer(cells)
        print(f"{self._records} records in the topic; expected: {self.expected}", flush=True)

    def _batches(self, records: int) -> Any:
        for _ in range(records // BATCH):
            self._made += 1
            batch: list[NewRecord] = self._workload.slice(self._made)
            yield batch

    def _keep(self, name: str, found: Found) -> None:
        """Print a side, and keep it where its answer is right and it is the cheapest of its rounds."""
        found["records_per_cpu_second"] = round(self._records / found["cpu_seconds"])
        wrong = {key: found[key] for key, value in self.expected.items() if found.get(key, value) != value}
        print(f"{name}: {found}" + (f"; WRONG: {wrong}" if wrong else ""), flush=True)
        if wrong:
            self.failed[name] = f"wrong answer: {wrong}, expected {self.expected}"
        elif name not in self.sides or found["cpu_seconds"] < self.sides[name]["cpu_seconds"]:
            self.sides[name] = found

    def _ours(self, name: str, records: int) -> Found:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            command = (sys.executable, "-m", "tests.bench.usage_side", name, address(self._settings))
            return _last_line((*command, folder, str(records)))

    def _duckdb(self) -> Found:
        found = duckdb_rollup(self._folder / "events.ndjson", rounds=2)
        return {"cpu_seconds": round(found.cpu_seconds, 3), "cells": found.cells}

    def _peer(self, name: str) -> Found:
        script = Path(__file__).with_name("stream_peers.py")
        return _last_line((str(environment(name)), str(script), name, address(self._settings), schema.TOPIC))

    def summary(self) -> tuple[dict[str, float], Found]:
        rates = {
            name: side["records_per_cpu_second"] for name, side in self.sides.items() if name != "backlog"
        }
        peers = {name: rates[name] for name in PEERS if name in rates}
        ratios = {
            "rollup_to_duckdb": rates["ours rollup"] / rates["duckdb"],
            "through_delta_commit_to_duckdb": rates["ours commit"] / rates["duckdb"],
        }
        if peers:
            ratios |= {
                "rollup_to_best_peer": rates["ours rollup"] / max(peers.values()),
                "through_delta_commit_to_best_peer": rates["ours commit"] / max(peers.values()),
            }
        if "backlog" in self.sides:
            ratios["peak_gb_of_a_run_with_backlog"] = self.sides["backlog"]["peak_mb"] / 1024
        figures: Found = {"records": self._records, "backlog": self._backlog, **self.expected, **self.sides}
        return ratios, figures | {f"{name}_not_quoted": why for name, why in self.failed.items()}


def environment(name: str) -> Path:
    """The Python that has a peer; installed into the user's cache where it is missing.

    Raises:
        ProvisioningError: without an installer, or where it cannot be installed.
    """
    command = installer()
    if command is None or not command[0].endswith("uv"):
        raise ProvisioningError("no uv found; run `make dev`")

    def build(folder: Path) -> None:
        subprocess.run((command[0], "venv", "-q", "--python", sys.executable, folder), check=True)
        packages = (PEERS[name], "orjson", "confluent-kafka")
        install = (command[0], "pip", "install", "-q", "--python", folder / "bin" / "python", *packages)
        subprocess.run(install, check=True)

    return filled(f"bench-{PEERS[name].replace('==', '-')}", build, print) / "bin" / "python"


def _last_line(command: tuple[str, ...]) -> Found:
    """The JSON that a side prints last; its log goes where ours goes.

    Raises:
        subprocess.SubprocessError: where it failed, with the end of what it said, or took too long.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(f"exit {done.returncode}: {done.stderr[-400:]}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description="Usage from Kafka to sums, against DuckDB and others.")
    arguments.add_argument("--records", type=int, default=500_000, help="that all sides read")
    arguments.add_argument("--backlog", type=int, default=1_500_000, help="for peak memory; 0 leaves it out")
    options = arguments.parse_args()
    if options.records < BATCH:
        arguments.error(f"--records must be at least {BATCH}")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, broker(Path(name)) as settings:
        bench = Bench(Path(name), settings, options.records, options.backlog)
        bench.run()
        ratios, figures = bench.summary()
    report.write("usage", ratios, figures)


if __name__ == "__main__":
    main()
