"""What must be the same after a storm as in a calm: content, without versions, offsets and ids."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import psycopg2

from assets.usage import schema
from assets.usage.transform import COUNTED
from core.content import digest
from core.database import dsn
from core.invoices.document import decode
from core.lake import Lake
from core.settings import DatabaseSettings

FACTS = ("source", "event_id", "meter", "quantity", "event_time", "subject", "dimensions")


def facts(lake: Lake, tenant: str) -> str:
    """The counted events of a tenant in the lake."""
    handle = lake.open(schema.EVENTS)
    if handle is None:
        return digest([])
    paths = [f"{lake.uri(schema.EVENTS)}/{path}" for path in pl.DataFrame(handle.get_add_actions())["path"]]
    frame = pl.scan_parquet(paths, storage_options=lake.options() or None)
    counted = frame.filter((pl.col("tenant") == tenant) & (pl.col("fate") == COUNTED))
    return digest(counted.select(FACTS).collect().iter_rows())


def cells(database: DatabaseSettings, tenant: str) -> str:
    """The published cells of a tenant, both grains."""
    connection = psycopg2.connect(dsn(database, "system"), connect_timeout=10)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "select grain, meter, period_start at time zone 'UTC', dimensions_key, quantity, events "
                "from usage_cell where tenant_id = %s",
                (tenant,),
            )
            return digest(cursor.fetchall())
    finally:
        connection.close()


def snapshot(path: Path, tenant: str | None) -> str:
    """What the DuckDB file says of a tenant, whose id is another in each installation, or of all."""
    connection = duckdb.connect(str(path), read_only=True)
    try:
        rows: list[tuple[Any, ...]] = []
        for table, columns in (
            ("usage_hourly", "meter, epoch(period_start), dimensions, quantity, events"),
            ("usage_daily", "meter, epoch(period_start), dimensions, quantity, events"),
            ("usage_elements", "meter, epoch(period_start), dimensions, element, quantity, events"),
            ("charges", "meter, dimensions, quantity, unit_price, per, currency, amount_unrounded"),
        ):
            named = "tenant, " if tenant is None else ""
            wanted = f"select {named}{columns} from {table} where tenant = coalesce(?, tenant)"
            found = connection.execute(wanted, [tenant]).fetchall()
            rows += [(table, *row) for row in found]
        return digest(rows)
    finally:
        connection.close()


def issued(documents: Iterable[tuple[str, bytes]]) -> str:
    """Issued documents by tenant, in their order: what they charge, without numbers, times, slices and versions."""
    rows = []
    for tenant, each in documents:
        said = decode(each)
        lines = sorted(
            (one.meter, sorted(one.dimensions.items()), one.quantity, one.unit_price, one.per, one.amount_unrounded, one.amount)
            for one in said.lines
        )  # fmt: skip
        rows.append((tenant, said.object, said.reason, said.currency, said.unrounded, said.total, str(lines)))
    return digest(rows)


def invoice(draft: dict[str, Any]) -> str:
    """Lines and totals of a draft."""
    names = ("meter", "dimensions", "quantity", "unit_price", "per", "amount_unrounded", "amount")
    rows = [tuple(line[name] for name in names) for line in draft["lines"]]
    return digest([*rows, (draft["currency"], draft["unrounded"], draft["total"])])
