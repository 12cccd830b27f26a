"""Published rows are absolute and move only forward."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg2
import pytest

from assets.usage import schema
from assets.usage.upsert import upsert
from core.database import dsn
from core.settings import DatabaseSettings
from tests.assets.usage.test_publish import empty

__all__ = ["empty"]


@pytest.fixture
def cursor(empty: DatabaseSettings) -> Iterator[Any]:
    connection = psycopg2.connect(dsn(empty, "system"))
    connection.autocommit = False
    with connection.cursor() as cursor:
        yield cursor
    connection.close()


def cells(quantities: dict[str, str | None], version: int) -> pl.DataFrame:
    """One cell of each tenant; dimensions null where the quantity is."""
    rows = [
        (tenant, "hour", "api.requests", datetime(2026, 6, 1, tzinfo=UTC), "{}", "key", Decimal(quantity), 1, version)
        for tenant, quantity in quantities.items()
        if quantity is not None
    ]  # fmt: skip
    names = ("tenant_id", "grain", "meter", "period_start", "dimensions", "dimensions_key", "quantity",
             "events", "lake_version")  # fmt: skip
    return pl.DataFrame(rows, schema=names, orient="row", schema_overrides={"quantity": schema.QUANTITY})


def written(cursor: Any, quantities: dict[str, str | None], version: int) -> int:
    count = upsert(cursor, "usage_cell", cells(quantities, version))
    cursor.connection.commit()
    return count


def held(cursor: Any) -> dict[str, tuple[Decimal, int]]:
    cursor.execute("select tenant_id, quantity, lake_version from usage_cell order by 1")
    return {tenant: (quantity, version) for tenant, quantity, version in cursor.fetchall()}


def test_a_row_bears_the_version_that_wrote_it(cursor: Any) -> None:
    """Also where it says the same: what another generation left behind is known by its older version."""
    assert written(cursor, {"a": "1", "b": "2"}, 5) == 2
    assert written(cursor, {"a": "1", "b": "3", "c": "4"}, 7) == 3
    assert held(cursor) == {"a": (Decimal(1), 7), "b": (Decimal(3), 7), "c": (Decimal(4), 7)}


def test_rows_move_only_forward(cursor: Any) -> None:
    written(cursor, {"a": "1"}, 5)
    assert written(cursor, {"a": "9"}, 4) == 0
    assert written(cursor, {"a": "9"}, 5) == 0
    assert held(cursor)["a"] == (Decimal(1), 5)
