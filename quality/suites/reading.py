"""Samples: what suites share when they read one. Polars comes when a suite runs, not with the definitions."""

from typing import TYPE_CHECKING

import psycopg2

from core.database.urls import libpq_dsn
from core.settings import DatabaseSettings

if TYPE_CHECKING:
    import polars as pl


def said(rule: "pl.Expr") -> "pl.Expr":
    """A rule over several columns as a column of `yes` and `no`; unknown is no."""
    import polars as pl  # noqa: PLC0415

    return pl.when(rule.fill_null(value=False)).then(pl.lit("yes")).otherwise(pl.lit("no"))


def ask(database: DatabaseSettings, query: str) -> "pl.DataFrame":
    """Rows of PostgreSQL (role `system`)."""
    import polars as pl  # noqa: PLC0415

    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            names = [column.name for column in cursor.description or ()]
            return pl.DataFrame(cursor.fetchall(), schema=names, orient="row", infer_schema_length=None)
    finally:
        connection.close()
