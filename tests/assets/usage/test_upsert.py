"""Published rows are absolute and move only forward."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg2
import pytest

from assets.usage import schema
from assets.usage.upsert import replace, upsert
from core.database import dsn
from core.settings import DatabaseSettings
from tests.assets.usage.test_publish import TABLES, query


@pytest.fixture(params=["postgres", pytest.param("postgres15", marks=pytest.mark.stack)])
def cursor(request: pytest.FixtureRequest) -> Iterator[Any]:
    database: DatabaseSettings = request.getfixturevalue(request.param)
    query(database, f"truncate {', '.join(TABLES)}")
    connection = psycopg2.connect(dsn(database, "system"))
    connection.autocommit = False
    with connection.cursor() as cursor:
        yield cursor
    connection.close()
    query(database, f"truncate {', '.join(TABLES)}")


def cells(quantities: dict[str, str], version: int) -> pl.DataFrame:
    """One cell of each tenant."""
    rows = [
        (tenant, "hour", "api.requests", datetime(2026, 6, 1, tzinfo=UTC), "{}", "key", Decimal(quantity), 1, version)
        for tenant, quantity in quantities.items()
    ]  # fmt: skip
    names = ("tenant_id", "grain", "meter", "period_start", "dimensions", "dimensions_key", "quantity",
             "events", "lake_version")  # fmt: skip
    return pl.DataFrame(rows, schema=names, orient="row", schema_overrides={"quantity": schema.QUANTITY})


def written(cursor: Any, quantities: dict[str, str], version: int) -> int:
    count = upsert(cursor, "usage_cell", cells(quantities, version))
    cursor.connection.commit()
    return count


def held(cursor: Any) -> dict[str, tuple[Decimal, int]]:
    cursor.execute("select tenant_id, quantity, lake_version from usage_cell order by 1")
    return {tenant: (quantity, version) for tenant, quantity, version in cursor.fetchall()}


def test_a_row_bears_the_version_that_wrote_it(cursor: Any) -> None:
    """Also where it says the same."""
    assert written(cursor, {"a": "1", "b": "2"}, 5) == 2
    assert written(cursor, {"a": "1", "b": "3", "c": "4"}, 7) == 3
    assert held(cursor) == {"a": (Decimal(1), 7), "b": (Decimal(3), 7), "c": (Decimal(4), 7)}


def test_rows_move_only_forward(cursor: Any) -> None:
    written(cursor, {"a": "1"}, 5)
    assert written(cursor, {"a": "9"}, 4) == 0
    assert written(cursor, {"a": "9"}, 5) == 0
    assert replace(cursor, "usage_cell", cells({"a": "9"}, 5)) == 0
    assert held(cursor)["a"] == (Decimal(1), 5)


@pytest.mark.parametrize("table", ["usage_cell", "usage_element"])
def test_all_rows_are_replaced(cursor: Any, table: str) -> None:
    """One that says the same stays with its version, one that did not come goes, and all where nothing came."""
    for version, quantities in ((5, {"a": "1", "b": "2", "c": "4"}), (7, {"a": "1", "b": "3", "d": "5"})):
        rows = cells(quantities, version).with_columns(element=pl.lit("e"))
        assert replace(cursor, table, rows) == (3 if version == 5 else 2)
        cursor.connection.commit()
    cursor.execute(f"select tenant_id, quantity, lake_version from {table} order by 1")
    assert cursor.fetchall() == [("a", Decimal(1), 5), ("b", Decimal(3), 7), ("d", Decimal(5), 7)]
    replace(cursor, table, rows.clear())
    cursor.execute(f"select count(*) from {table}")
    assert cursor.fetchone() == (0,)


@pytest.mark.parametrize("column", ["quantity = 3", "events = 3", "dimensions = '[]'"])
def test_a_row_that_says_anything_else_is_replaced(cursor: Any, column: str) -> None:
    written(cursor, {"a": "1", "b": "1"}, 5)
    cursor.execute(f"update usage_cell set {column} where tenant_id = 'b'")
    assert replace(cursor, "usage_cell", cells({"a": "1", "b": "1"}, 6)) == 1
    cursor.execute("select distinct quantity, events, dimensions from usage_cell")
    assert cursor.fetchall() == [(Decimal(1), 1, {})]


@pytest.mark.parametrize("write", [upsert, replace])
def test_cells_of_a_series_are_sent_with_its_texts(
    cursor: Any, write: Callable[[Any, str, pl.DataFrame], int]
) -> None:
    """Periods and grains of one series, and series that differ in one text only."""
    one = cells({"a": "1"}, 5)
    hours = pl.concat(one.with_columns(pl.col("period_start") + timedelta(hours=n)) for n in range(3))
    rows = pl.concat(
        [hours, one.with_columns(grain=pl.lit("day")), *(one.with_columns(pl.lit("other").alias(name))
         for name in ("tenant_id", "meter", "dimensions_key"))]
    )  # fmt: skip
    assert write(cursor, "usage_cell", rows) == len(rows) == 7
    cursor.execute(f"select {', '.join(rows.columns)} from usage_cell")
    found = {(*row[:4], json.dumps(row[4]), *row[5:]) for row in cursor.fetchall()}
    assert found == set(rows.rows())
