"""Publishing cells into PostgreSQL: hours again that are published already, against a usual upsert.

    make bench NAME=publish [ARGS="--cells 300000"]

The same cells come for the first time, again with a newer lake version, and with other quantities; by the
publication of this product, and by COPY into a temporary table and INSERT … ON CONFLICT DO UPDATE on a table as
PostgreSQL makes it by default. In turns, each in a transaction of its own, with fsync. `faster` is by wall
time, `cheaper` by CPU-seconds of the server and this process.
"""

import argparse
import io
import json
import secrets
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import psycopg2

from assets.usage import schema
from assets.usage.publish import key_of
from assets.usage.upsert import TARGETS, upsert
from deploy.servers.postgres import postgres as postgres_server
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.servers import database_settings, free_port, start, stop

ROUNDS = 3
TENANTS, MODELS = 500, 25
USUAL = "usual_cell"


def cells(count: int, version: int, *, changed: float) -> pl.DataFrame:
    """`count` cells of some hours; the first `changed` of them with quantities of this version."""
    number = pl.int_range(count, eager=True)
    dimensions = [
        json.dumps({"model": f"model-{m}", "provider": "p1", "region": "eu-1"}) for m in range(MODELS)
    ]
    start = datetime(2026, 6, 1, tzinfo=UTC)
    each = count // (MODELS * TENANTS) + 1
    return pl.DataFrame({"n": number}).select(
        tenant_id=pl.format("org_{}", (pl.col("n") // MODELS % TENANTS).cast(pl.String).str.zfill(32)),
        grain=pl.lit("hour"),
        meter=pl.lit("llm.tokens.input"),
        period_start=pl.lit(start) + pl.duration(hours=pl.col("n") // (MODELS * TENANTS)),
        dimensions=pl.col("n").mod(MODELS).replace_strict(dict(enumerate(dimensions))),
        quantity=(pl.col("n") * 7 + pl.when(pl.col("n") < changed * count).then(version).otherwise(0)).cast(schema.QUANTITY),
        events=pl.lit(each),
        lake_version=pl.lit(version),
    ).with_columns(dimensions_key=key_of("dimensions"))  # fmt: skip


class Bench:
    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count, self._version = folder, count, 0
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.cpu: dict[tuple[str, str], list[float]] = defaultdict(list)
        """Of the server and of this process."""

    def run(self) -> None:
        port, password = free_port(), secrets.token_hex(16)
        component = postgres_server(self._folder / "postgres", port, password)
        process = start(component, self._folder / "postgres.log")
        try:
            database_settings(port, password)
            self._server = psutil.Process(process.pid)
            self._connection = psycopg2.connect(f"postgresql://postgres:{password}@127.0.0.1:{port}/headrace")
            self._outside(f"create table {USUAL} (like usage_cell including all)")
            for _ in range(ROUNDS):
                self._round()
            self._connection.close()
        finally:
            stop(component, process)

    def _round(self) -> None:
        ways = (("ours", ours), ("upsert", usual))
        self._outside(f"truncate usage_cell, {USUAL}")
        for name, way in ways:
            self._timed("first", name, way, changed=0)
        for case, changed in (("again", 0.0), ("changed", 1.0)):
            for name, way in ways:
                self._timed(case, name, way, changed=changed)

    def _timed(
        self, case: str, name: str, way: Callable[[Any, pl.DataFrame], int], *, changed: float
    ) -> None:
        self._outside(f"vacuum analyze usage_cell, {USUAL}", "checkpoint")
        self._version += 1
        rows = cells(self._count, self._version, changed=changed)
        cpu, wall = self._cpu(), time.monotonic()
        with self._connection, self._connection.cursor() as cursor:
            done = way(cursor, rows)
        self.seconds[case, name].append(time.monotonic() - wall)
        self.cpu[case, name].append(self._cpu() - cpu)
        # A way that wrote less than it should would look fast.
        assert done == self._count, (case, name, done)
        print(f"{case} {name}: {self.seconds[case, name][-1]:.2f} s", flush=True)

    def _cpu(self) -> float:
        return server_cpu(self._server) + time.process_time()

    def _outside(self, *statements: str) -> None:
        self._connection.autocommit = True
        for statement in statements:
            self._connection.cursor().execute(statement)
        self._connection.autocommit = False

    def summary(self) -> tuple[dict[str, float], dict[str, object]]:
        ratios, figures = {}, dict[str, object]()
        for case in dict.fromkeys(case for case, _ in self.seconds):
            ours_, usual_ = (statistics.median(self.seconds[case, name]) for name in ("ours", "upsert"))
            cpu, usual_cpu = (statistics.median(self.cpu[case, name]) for name in ("ours", "upsert"))
            ratios[f"{case}_faster_than_upsert"] = usual_ / ours_
            ratios[f"{case}_cheaper_than_upsert"] = usual_cpu / cpu
            figures[case] = {
                "rows_per_second": round(self._count / ours_),
                "upsert_rows_per_second": round(self._count / usual_),
                "cpu_seconds": round(cpu, 2),
                "upsert_cpu_seconds": round(usual_cpu, 2),
            }
        return ratios, {"cells": self._count, **figures}


def ours(cursor: Any, rows: pl.DataFrame) -> int:
    return upsert(cursor, "usage_cell", rows)


def usual(cursor: Any, rows: pl.DataFrame) -> int:
    """What PostgreSQL's manual has."""
    key, columns = TARGETS["usage_cell"]
    names = columns.split(", ")
    cursor.execute(f"create temporary table new_cell (like {USUAL} including defaults) on commit drop")
    text = rows.select(names).write_csv(include_header=False, quote_style="non_numeric")
    cursor.copy_expert(f"copy new_cell ({columns}) from stdin with (format csv)", io.StringIO(text))
    values = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key.split(", "))
    cursor.execute(
        f"insert into {USUAL} ({columns}) select {columns} from new_cell on conflict ({key}) do update set {values}"
    )
    return int(cursor.rowcount)


def main() -> None:
    arguments = argparse.ArgumentParser(description="Publishing hours again, against an upsert of all cells.")
    arguments.add_argument("--cells", type=int, default=100_000)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        bench = Bench(Path(name), options.cells)
        bench.run()
        report.write("publish", *bench.summary())


if __name__ == "__main__":
    main()
