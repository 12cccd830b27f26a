"""What the gate said of slices that are not published yet, where billing reads it: nothing is invoiced meanwhile."""

import psycopg2

from core.database.urls import libpq_dsn
from core.settings import DatabaseSettings

_RED = """
insert into usage_gate (generation, first_slice, last_slice, problems) values (%s, %s, %s, %s)
on conflict (generation) do update set first_slice = excluded.first_slice, last_slice = excluded.last_slice,
    problems = excluded.problems, judged_at = now()
"""
_GREEN = "update usage_gate set problems = 0, judged_at = now() where generation = %s and problems > 0"


def say(database: DatabaseSettings, generation: int, first: int, last: int, problems: int) -> None:
    """Slices `first` to `last` of a generation were judged; with `problems` they are held up until they pass."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            if problems:
                cursor.execute(_RED, (generation, first, last, problems))
            else:
                cursor.execute(_GREEN, (generation,))
    finally:
        connection.close()
