"""Publishing cells into PostgreSQL: hours again that are published already, against a usual upsert.

    make bench NAME=publish [ARGS="--cells 300000"]

The same cells come for the first time (`first`); all again, as a promoted replay publishes them, with a newer lake
version (`again`) and with other quantities (`changed`); and a tenth of them, of the newest hours, with other
quantities, as every publication has them (`newest`). By the publication of this product, and by COPY into a temporary
table and INSERT … ON CONFLICT DO UPDATE on a table as PostgreSQL makes it by default. In `again` cells that say the
same stay as they are, by design; the upsert writes them all. In turns, each in a transaction of its own, with fsync,
and the table is compared with what came. `faster` is by wall time, `cheaper` by CPU-seconds of the server and this
process.
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
from assets.usage.upsert import TARGETS, replace, upsert
from deploy.servers.postgres import postgres as postgres_server
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.servers import database_settings, free_port, start, stop

ROUNDS = 3
TENANTS, MODELS = 500, 25
USUAL = "usual_cell"
NEWEST = 10
"""One in so many cells."""

Way = Callable[[Any, str, pl.DataFrame], object]


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
        self._folder, self._count = folder, count
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.cpu: dict[tuple[str, str], list[float]] = defaultdict(list)
        """Of the server and of this process."""
        self.cells: dict[str, int] = {}

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
        self._outside(f"truncate usage_cell, {USUAL}")
        every = self._published("first", upsert, cells(self._count, 1, changed=0))
        every = self._published("again", replace, cells(self._count, 2, changed=0))
        every = self._published("changed", replace, cells(self._count, 3, changed=1))
        newest = cells(self._count, 4, changed=1).tail(self._count // NEWEST)
        self._published("newest", upsert, newest, beside=every.head(-len(newest)))

    def _published(
        self, case: str, ours: Way, rows: pl.DataFrame, *, beside: pl.DataFrame | None = None
    ) -> pl.DataFrame:
        every = rows if beside is None else pl.concat([beside, rows])
        said = (len(every), every["quantity"].sum(), every["events"].sum())
        for name, table, way in (("ours", "usage_cell", ours), ("upsert", USUAL, usual)):
            self._outside(f"vacuum analyze usage_cell, {USUAL}", "checkpoint")
            cpu, wall = self._cpu(), time.monotonic()
            with self._connection, self._connection.cursor() as cursor:
                way(cursor, "usage_cell", rows)
            wall, cpu = time.monotonic() - wall, self._cpu() - cpu
            self.seconds[case, name].append(wall)
            self.cpu[case, name].append(cpu)
            self.cells[case] = len(rows)
            # A way that wrote less than it should would look fast.
            with self._connection, self._connection.cursor() as cursor:
                cursor.execute(f"select count(*), sum(quantity), sum(events) from {table}")
                assert cursor.fetchone() == said, (case, name)
            print(f"{case} {name}: {wall:.2f} s", flush=True)
        return every

    def _cpu(self) -> float:
        return server_cpu(self._server) + time.process_time()

    def _outside(self, *statements: str) -> None:
        self._connection.autocommit = True
        for statement in statements:
            self._connection.cursor().execute(statement)
        self._connection.autocommit = False

    def summary(self) -> tuple[dict[str, float], dict[str, object]]:
        ratios, figures = {}, dict[str, object]()
        for case, count in self.cells.items():
            ours_, usual_ = (statistics.median(self.seconds[case, name]) for name in ("ours", "upsert"))
            cpu, usual_cpu = (statistics.median(self.cpu[case, name]) for name in ("ours", "upsert"))
            ratios[f"{case}_faster_than_upsert"] = usual_ / ours_
            ratios[f"{case}_cheaper_than_upsert"] = usual_cpu / cpu
            figures[case] = {
                "rows_per_second": round(count / ours_),
                "upsert_rows_per_second": round(count / usual_),
                "cpu_seconds": round(cpu, 2),
                "upsert_cpu_seconds": round(usual_cpu, 2),
            }
        return ratios, {"cells": self._count, **figures}


def usual(cursor: Any, table: str, rows: pl.DataFrame) -> None:
    """What PostgreSQL's manual has."""
    key, columns = TARGETS[table]
    names = columns.split(", ")
    cursor.execute(f"create temporary table new_cell (like {USUAL} including defaults) on commit drop")
    text = rows.select(names).write_csv(include_header=False, quote_style="non_numeric")
    cursor.copy_expert(f"copy new_cell ({columns}) from stdin with (format csv)", io.StringIO(text))
    values = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key.split(", "))
    cursor.execute(
        f"insert into {USUAL} ({columns}) select {columns} from new_cell on conflict ({key}) do update set {values}"
    )


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
