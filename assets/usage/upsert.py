"""Writing rows that bear a lake version into PostgreSQL: absolute, and only forward.

The texts of a series, which is the cells of one tenant, meter and dimensions, are sent once. A few rows of many are
looked up one by one (`upsert`); where all rows come, one join finds those that say something else (`replace`).
"""

import io
from typing import Any

import polars as pl

from assets.usage import quarantine

SERIES = ["tenant_id", "meter", "dimensions_key", "dimensions", "lake_version"]
"""What all rows of a series have in common."""
WORK_MEM = "64MB"
"""Joins of half a million cells stay in memory; there is one publisher."""
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
    """Write rows and say how many; a row of the same or a newer version is left alone.

    Once in a transaction for each table, like `replace`.
    """
    if rows.is_empty():
        return 0
    key, columns, values = _names(table)
    _stage(cursor, table, rows.select(columns))
    cursor.execute(
        f"insert into {table} ({_of('', columns)}) select {_of('n.', columns)} from {_staged(table)} n "
        f"on conflict ({_of('', key)}) do update "
        f"set {', '.join(f'{name} = excluded.{name}' for name in values)} "
        f"where {table}.lake_version < excluded.lake_version"
    )
    return int(cursor.rowcount)


def replace(cursor: Any, table: str, rows: pl.DataFrame) -> int:
    """Let the table hold these rows and no others, and say how many were written.

    A row that says the same already is left alone, and keeps the version that it has. `MERGE` neither looks up
    nor locks before it writes, as `ON CONFLICT` does: nobody else may insert (`LOCK` of `assets.usage.publish`).
    """
    if rows.is_empty():
        cursor.execute(f"delete from {table}")
        return 0
    key, columns, values = _names(table)
    said = [name for name in values if name != "lake_version"]
    cursor.execute("set local work_mem = %s", (WORK_MEM,))
    _stage(cursor, table, rows.select(columns))
    same = f"({_of('t.', key)}) = ({_of('n.', key)})"
    cursor.execute(
        f"merge into {table} t using {_staged(table)} n on {same} "
        f"when matched and t.lake_version < n.lake_version "
        f"and ({_of('t.', said)}) is distinct from ({_of('n.', said)}) "
        f"then update set {', '.join(f'{name} = n.{name}' for name in values)} "
        f"when not matched then insert ({_of('', columns)}) values ({_of('n.', columns)})"
    )
    written = int(cursor.rowcount)
    cursor.execute(f"select count(*) from {table}")
    # All rows are there now: counting says whether others are, at a tenth of what looking for them costs.
    if cursor.fetchone()[0] != len(rows):
        cursor.execute(
            f"delete from {table} t where not exists (select from {_staged(table)} n where {same})"
        )
    return written


def _names(table: str) -> tuple[list[str], list[str], list[str]]:
    """Columns of the key, all that are published, and those beside the key."""
    key, columns = (names.split(", ") for names in TARGETS[table])
    return key, columns, [name for name in columns if name not in key]


def _in_series(table: str) -> bool:
    return "dimensions_key" in TARGETS[table][0]


def _stage(cursor: Any, table: str, rows: pl.DataFrame) -> None:
    if not _in_series(table):
        _copy(cursor, table, f"new_{table}", rows)
        return
    series = rows.select(SERIES).unique(maintain_order=True).with_row_index("series")
    own = rows.join(series, on=SERIES, maintain_order="left").drop(SERIES)
    _copy(cursor, table, f"new_{table}", own)
    _copy(cursor, table, f"new_{table}_series", series)
    # Without it the planner, which knows nothing of new tables, takes each row for a row of many series.
    cursor.execute(f"alter table new_{table}_series add primary key (series)")


def _staged(table: str) -> str:
    """What `_stage` has copied, as a relation."""
    return f"(new_{table} join new_{table}_series using (series))" if _in_series(table) else f"new_{table}"


def _copy(cursor: Any, table: str, name: str, rows: pl.DataFrame) -> None:
    """A temporary table of `rows`, with the types that `table` has; `series` is an integer."""
    columns = ", ".join("0 as series" if column == "series" else column for column in rows.columns)
    cursor.execute(f"create temporary table {name} on commit drop as select {columns} from {table} limit 0")
    text = rows.write_csv(include_header=False, quote_style="non_numeric", null_value="\\N")
    cursor.copy_expert(f"copy {name} from stdin with (format csv, null '\\N')", io.StringIO(text))


def _of(prefix: str, names: list[str]) -> str:
    return ", ".join(prefix + name for name in names)
