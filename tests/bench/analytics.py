"""Questions of analysts and of one customer: the snapshot against PostgreSQL, on the same cells.

    make bench NAME=analytics [ARGS="--rows 50000000"]

Thirty days of hourly cells of 2,000 tenants, most of them of few. The snapshot is a file of DuckDB in the order
that snapshots are published in; PostgreSQL has the cells in the order of time, in a table without a write-ahead
log, with an index by tenant and hour and one by time (BRIN), 2 GB of buffers and two workers a query. Both are
asked the same SQL, warm, in turns, and a query counts only where the answers agree to the last digit.

`…_cheaper` is by CPU-seconds of this process, and of the whole server where there is one; wall times are printed
beside it and say little on a machine that has other work.
"""

import argparse
import io
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import psutil
import psycopg2

from assets.usage import schema
from assets.usage.snapshot import in_order
from deploy.servers.postgres import postgres as postgres_server
from tests.bench import report
from tests.bench.installation import server_cpu
from tests.servers import free_port, start, stop

DAYS, TENANTS, MODELS, REGIONS = 30, 2_000, 40, 3
BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
METERS = (
    "llm.tokens.input",
    "llm.tokens.output",
    "tool.calls",
    "api.requests",
    "memory.bytes",
    "channel.messages",
)
CUSTOMER = f"org_{20:032x}"
"""Neither the largest nor a small one."""
LEAST = 0.6
"""Seconds that a query is repeated for, so that CPU-seconds, of which the system counts hundredths, say something."""
MOST_TIMES = 200

Rows = list[tuple[Any, ...]]


def day(number: int) -> str:
    return f"timestamptz '{BEGIN + timedelta(days=number):%Y-%m-%d} 00:00:00+00'"


QUERIES = {
    "customer_month": "select meter, dimensions, sum(quantity), sum(events) from usage_hourly "
    f"where tenant = '{CUSTOMER}' and period_start >= {day(0)} and period_start < {day(30)} group by 1, 2",
    "one_tenant_by_day": "select date_trunc('day', period_start), sum(quantity) from usage_hourly "
    f"where tenant = '{CUSTOMER}' group by 1",
    "top_tenants_of_a_week": "select tenant, sum(quantity) as total from usage_hourly "
    f"where period_start >= {day(23)} group by 1 order by total desc, tenant limit 20",
    "region_meter_model_of_a_month": "select dimensions::json ->> 'region', meter, dimensions::json ->> 'model', "
    "sum(quantity), sum(events) from (select meter, dimensions, sum(quantity) as quantity, sum(events) as events "
    "from usage_hourly group by 1, 2) as summed group by 1, 2, 3",
    "tenant_by_day_of_a_meter": "select tenant, date_trunc('day', period_start), sum(quantity) from usage_hourly "
    f"where meter = '{METERS[0]}' group by 1, 2",
    "active_tenants_of_a_day": "select count(distinct tenant), count(distinct dimensions) from usage_hourly "
    f"where period_start >= {day(14)} and period_start < {day(15)}",
    "one_tenant_25_hours": "select period_start, sum(quantity) from usage_hourly "
    f"where tenant = '{CUSTOMER}' and period_start >= {day(15)} and period_start <= {day(16)} group by 1",
}  # fmt: skip
"""The customer's month, and the six questions of the baselines."""


def cells(rows: int) -> Iterator[pl.DataFrame]:
    """Hourly cells, one frame a day, in the order of the snapshot."""
    pick = np.random.default_rng(7)
    tenants = pl.Series([f"org_{number:032x}" for number in range(TENANTS)])
    dimensions = pl.Series(
        f'{{"model":"model-{model}","provider":"p{model % 4}","region":"region-{region}"}}'
        for model in range(MODELS)
        for region in range(REGIONS)
    )
    weights = 1 / np.arange(1, TENANTS + 1)
    weights /= weights.sum()
    for number in range(DAYS):
        size = rows // DAYS
        hours = pick.integers(24, size=size)
        frame = pl.DataFrame(
            {
                "tenant": tenants.gather(pick.choice(TENANTS, size, p=weights)),
                "meter": pl.Series(METERS).gather(pick.integers(len(METERS), size=size)),
                "period_start": pl.Series(hours).cast(pl.Int64) * 3_600_000_000,
                "dimensions": dimensions.gather(pick.integers(len(dimensions), size=size)),
                "quantity": pl.Series(pick.integers(1, 5_000, size=size)),
                "events": pl.Series(pick.integers(1, 50, size=size)),
            }
        ).with_columns(
            period_start=pl.lit(BEGIN + timedelta(days=number)).cast(schema.TIME)
            + pl.col("period_start").cast(pl.Duration("us")),
            quantity=pl.col("quantity").cast(schema.QUANTITY),
        )
        yield in_order(frame)


@dataclass
class Asked:
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    answer: Rows = field(default_factory=list)

    def ask(self, query: str, run: Callable[[str], Rows], cpu: Callable[[], float]) -> None:
        times, before, began = 0, cpu(), time.monotonic()
        while times == 0 or (time.monotonic() - began < LEAST and times < MOST_TIMES):
            at = time.monotonic()
            self.answer = run(query)
            self.wall.append(time.monotonic() - at)
            times += 1
        self.cpu.append((cpu() - before) / times)

    @property
    def seconds(self) -> float:
        return statistics.median(self.cpu)

    def figures(self) -> dict[str, float]:
        return {"cpu_ms": round(self.seconds * 1e3, 2), "wall_ms": round(statistics.median(self.wall) * 1e3, 2)}  # fmt: skip


class Bench:
    def __init__(self, folder: Path, rows: int) -> None:
        self._folder, self._rows = folder, rows
        self.ours = {name: Asked() for name in QUERIES}
        self.theirs = {name: Asked() for name in QUERIES}
        self.figures: dict[str, object] = {"rows": rows // DAYS * DAYS}

    def run(self, rounds: int) -> None:
        snapshot = self._folder / "usage.duckdb"
        with self._postgres() as (connection, server):
            self._fill(snapshot, connection)
            ours = duckdb.connect(str(snapshot), read_only=True)
            ours.execute("set threads = 2; set timezone = 'UTC'")
            cursor = connection.cursor()

            def ours_(query: str) -> Rows:
                return ours.execute(query).fetchall()

            def theirs(query: str) -> Rows:
                cursor.execute(query)
                found: Rows = cursor.fetchall()
                return found

            for number in range(rounds + 1):
                for name, query in QUERIES.items():
                    if number == 0:  # both warm
                        ours_(query), theirs(query)
                        continue
                    self.ours[name].ask(query, ours_, time.process_time)
                    self.theirs[name].ask(query, theirs, lambda: server_cpu(server) + time.process_time())
                    self._agree(name)
            ours.close()

    def _agree(self, name: str) -> None:
        ours, theirs = (sorted(map(_plain, side[name].answer)) for side in (self.ours, self.theirs))
        if ours != theirs:
            raise SystemExit(f"{name}: the answers differ: {ours[:2]} … {theirs[:2]}")
        print(f"{name}: snapshot {self.ours[name].figures()}, PostgreSQL {self.theirs[name].figures()}", flush=True)  # fmt: skip

    def _fill(self, path: Path, connection: Any) -> None:
        snapshot, made = duckdb.connect(str(path)), False
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "create unlogged table usage_hourly (tenant text not null, meter text not null, period_start timestamptz "
                "not null, dimensions text not null, quantity numeric(38, 9) not null, events bigint not null)"
            )
            for frame in cells(self._rows):
                snapshot.register("frame", frame.to_arrow())
                verb = "insert into usage_hourly" if made else "create table usage_hourly as"
                snapshot.execute(f"{verb} select * from frame")
                snapshot.unregister("frame")
                made = True
                text = frame.sort("period_start").write_csv(include_header=False, quote_style="non_numeric")
                cursor.copy_expert("copy usage_hourly from stdin with (format csv)", io.StringIO(text))
            cursor.execute("create index on usage_hourly (tenant, period_start)")
            cursor.execute("create index on usage_hourly using brin (period_start)")
        snapshot.close()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("vacuum analyze usage_hourly")
            cursor.execute("checkpoint")
            cursor.execute("select pg_total_relation_size('usage_hourly')")
            self.figures["postgres_mb_on_disk"] = cursor.fetchone()[0] >> 20
        self.figures["snapshot_mb_on_disk"] = path.stat().st_size >> 20

    @contextmanager
    def _postgres(self) -> Iterator[tuple[Any, psutil.Process]]:
        password = secrets.token_hex(16)
        server = postgres_server(self._folder, free_port(), password)
        options = (
            "shared_buffers=2GB", "work_mem=256MB", "maintenance_work_mem=1GB", "max_parallel_workers_per_gather=2",
            "effective_cache_size=8GB", "max_wal_size=8GB", "timezone=UTC",
        )  # fmt: skip
        server = replace(server, argv=(*server.argv, *(word for each in options for word in ("-c", each))))
        process = start(server, self._folder / "postgres.log")
        try:
            connection = psycopg2.connect(f"postgresql://postgres:{password}@{server.address}/postgres")
            yield connection, psutil.Process(process.pid)
            connection.close()
        finally:
            stop(server, process)

    def summary(self) -> tuple[dict[str, float], dict[str, object]]:
        ratios = {
            f"{name}_cheaper_than_postgres": self.theirs[name].seconds / max(self.ours[name].seconds, 1e-6)
            for name in QUERIES
        }
        return ratios, self.figures | {
            f"{name}_{side}": asked[name].figures()
            for name in QUERIES
            for side, asked in (("snapshot", self.ours), ("postgres", self.theirs))
        }


def _plain(row: tuple[Any, ...]) -> tuple[str, ...]:
    """Numbers and times without what the two drivers write them with."""
    return tuple(
        each.astimezone(UTC).isoformat() if isinstance(each, datetime)
        else each if isinstance(each, str)
        else f"{Decimal(each):.9f}"
        for each in row
    )  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description="Analysts' questions: the snapshot against PostgreSQL.")
    arguments.add_argument("--rows", type=int, default=6_000_000)
    arguments.add_argument("--rounds", type=int, default=2)
    options = arguments.parse_args()
    if options.rows < DAYS * 1_000:
        arguments.error(f"--rows must be at least {DAYS * 1_000}")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        bench = Bench(Path(name), options.rows)
        bench.run(options.rounds)
        report.write("analytics", *bench.summary())


if __name__ == "__main__":
    main()
