"""The scrub: objects of `usage_events` are read again, for ever, and compared with what was recorded of them.

After a purge the lake holds the only copy. What was lost or changed is known with its offsets and tenants, so a
backup or the senders can bring back exactly that. A run reads a bounded number of bytes, those first that
were read longest ago.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2

from assets.slices.losses import promised
from assets.slices.progress import landed_from
from assets.usage import schema
from assets.usage.generation import usage_lake
from assets.usage.objects import (
    COLUMNS_READ,
    ObjectProblemError,
    Recorded,
    checked,
    from_row,
    record,
)
from core.database.urls import libpq_dsn
from core.lake import Lake
from core.lake.objects import named
from core.settings import DatabaseSettings, ObjectSettings
from core.topology import TOPICS


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What one run did. `problems` are all that are known now, found by this run or before it and not mended."""

    objects: int
    bytes: int
    oldest: datetime | None
    """When the object that waits longest was last read; None where there is none."""
    problems: list[str]


def scrub(objects: ObjectSettings, database: DatabaseSettings, *, most_bytes: int) -> Scrubbed:
    """Read again what is due, objects with a problem first, of every generation.

    Args:
        most_bytes: a run ends with the object that reaches it.
    """
    newest = usage_lake(objects, database)
    problems = _sync(newest, database)
    lakes = {newest.generation: newest}
    done = read = 0
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for generation, each in _due(cursor, most_bytes):
                look(cursor, lakes.setdefault(generation, usage_lake(objects, database, generation)), each)
                done, read = done + 1, read + each.bytes
            problems += _broken(cursor)
            cursor.execute("select min(checked_at) from usage_object where replaced_at is null")
            (oldest,) = cursor.fetchone()
    finally:
        connection.close()
    return Scrubbed(done, read, oldest, problems)


def broken(database: DatabaseSettings) -> list[str]:
    """Objects that are lost or changed as the last look at each found, with their offsets and tenants."""
    connection = psycopg2.connect(libpq_dsn(database, "system"), connect_timeout=3)
    try:
        with connection, connection.cursor() as cursor:
            return _broken(cursor)
    finally:
        connection.close()


def look(cursor: Any, lake: Lake, of: Recorded) -> None:
    """Read an object and write down what is wrong with it, or that nothing is."""
    handle, problem = lake.open(schema.EVENTS), None
    try:
        checked(lake, of, {} if handle is None else named(handle))
    except ObjectProblemError as error:
        problem = error.what
    cursor.execute(
        "update usage_object set checked_at = now(), problem = %s where generation = %s and path = %s",
        (problem, lake.generation, of.path),
    )


def _broken(cursor: Any) -> list[str]:
    return [
        str(ObjectProblemError(from_row(row[1:]), row[0], "as the last look at it found"))
        for row in _rows(cursor, "problem, ", "and problem is not null order by first_slice, path")
    ]


def _sync(lake: Lake, database: DatabaseSettings) -> list[str]:
    """Record what is new, and compare the table with its positions."""
    problems = []
    try:
        record(lake, database)
    except ObjectProblemError as error:
        problems.append(str(error))
    handle = lake.open(schema.EVENTS)
    if handle is not None:
        rows = sum(entry.records for entry in named(handle).values())
        expected = promised(handle, landed_from(handle), TOPICS[schema.TOPIC].partitions)
        if rows != expected:
            problems.append(f"{schema.EVENTS} has {rows} rows, its positions promise {expected}")
    return problems


def _due(cursor: Any, most_bytes: int) -> list[tuple[int, Any]]:
    """Generation and record of what to read now."""
    chosen, taken = [], 0
    for row in _rows(cursor, "generation, ", "order by (problem is null), checked_at, path limit 10000"):
        if taken >= most_bytes:
            break
        each = from_row(row[1:])
        chosen.append((row[0], each))
        taken += each.bytes
    return chosen


def _rows(cursor: Any, more: str, rest: str) -> list[tuple[Any, ...]]:
    cursor.execute(f"select {more}{COLUMNS_READ} from usage_object where replaced_at is null {rest}")
    return list(cursor.fetchall())
