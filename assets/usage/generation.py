"""Generations of the usage tables: which one is in use.

The facts, fates and sums of usage may be made anew beside those in use, from the same records; the new
tables bear the generation in their names, and one row in PostgreSQL says which generation counts. The
tables of an earlier one are closed by a commit of their own, so nothing lands there any more, and stay: an
invoice computes again from the generation it was made of.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg2

from core.database.urls import libpq_dsn
from core.settings import DatabaseSettings, ObjectSettings

if TYPE_CHECKING:
    from core.lake import Lake

TABLES: Final = ("usage_events", "usage_hourly", "usage_daily")


def usage_lake(objects: ObjectSettings, database: DatabaseSettings, generation: int | None = None) -> "Lake":
    """The lake with the usage tables of a generation; of the one in use where none is named."""
    from core.lake import Lake  # noqa: PLC0415 - 30 MB that only runs need

    return Lake(objects, generation=generation or current(database), of=TABLES)


def current(database: DatabaseSettings) -> int:
    """The generation in use."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select coalesce(max(generation), 1) from usage_promotion")
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def index_folder(state: Path, generation: int) -> Path:
    """Where the identity index of a generation lies on this machine."""
    return state / ("identity-index" if generation == 1 else f"identity-index.{generation}")


def finish(database: DatabaseSettings, generation: int) -> None:
    """The row that promotes a generation. Whoever finds the old tables closed writes it: it was decided before."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "insert into usage_promotion (generation) values (%s) on conflict do nothing", (generation,)
            )
    finally:
        connection.close()
