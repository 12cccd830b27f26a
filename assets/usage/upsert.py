"""Writing rows that bear a lake version into PostgreSQL: absolute, and only forward."""

import io
from typing import Any

import polars as pl

from assets.usage import quarantine

TARGETS = {
    "usage_cell": (
        "tenant_id, grain, meter, period_start, dimensions_key",
        "tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity, events, lake_version",
    ),
    "usage_element": (
        "tenant_id, meter, period_start, dimensions_key, element",
        "tenant_id, meter, period_start, dimensions, dimensions_key, element, quantity, events, lake_version",
    ),
    "usage_conservation": (
        "tenant_id, topic_id, partition, block",
        "tenant_id, topic_id, partition, block, landed, counted, duplicates, quarantined, rejected, voids, "
        "checkpoints, lake_version",
    ),
    "usage_watermark": ("topic_id, partition", "topic_id, partition, next_offset, lake_version"),
    "usage_quarantine": ("tenant_id, id", ", ".join(quarantine.COLUMNS)),
}
"""Table to its key and the columns that are published."""


def upsert(cursor: Any, table: str, rows: pl.DataFrame) -> int:
    """Write rows by COPY and one statement, and say how many; a row of the same or a newer version is left alone."""
    if rows.is_empty():
        return 0
    key, columns = TARGETS[table]
    names = columns.split(", ")
    values = [name for name in names if name not in key.split(", ")]
    cursor.execute(f"create temporary table new_{table} (like {table} including defaults) on commit drop")
    text = rows.select(names).write_csv(include_header=False, quote_style="non_numeric", null_value="\\N")
    cursor.copy_expert(
        f"copy new_{table} ({columns}) from stdin with (format csv, null '\\N')", io.StringIO(text)
    )
    cursor.execute(
        f"insert into {table} ({columns}) select {columns} from new_{table} on conflict ({key}) do update "
        f"set {', '.join(f'{name} = excluded.{name}' for name in values)} "
        f"where {table}.lake_version < excluded.lake_version"
    )
    return int(cursor.rowcount)
