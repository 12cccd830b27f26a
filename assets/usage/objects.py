"""Objects of `usage_events` as they were written: hash, rows, offsets and tenants of each.

The record is made right after the commit that names an object (a slice, a compaction), or at the latest
before the first purge that rests on it. It is what says of an object that is gone which offsets and whose
records it held.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import psycopg2
from psycopg2.extras import execute_values

from assets.slices.progress import landed_from
from assets.usage import schema
from core.database.urls import libpq_dsn
from core.lake import Lake
from core.lake.objects import Named, ObjectLostError, content, named, sha256
from core.lake.read import read
from core.settings import DatabaseSettings

SHOWN = 5
"""Tenants that a message names; the record has all."""
COLUMNS = {
    name: schema.EVENTS_SCHEMA[name] for name in ("slice", "topic_id", "partition", "offset", "tenant")
}
LOST, CHANGED = "lost", "changed"
COLUMNS_READ = "path, bytes, records, sha256, first_slice, last_slice, ranges, tenants"
"""Of `usage_object`, as `from_row` reads them."""


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets [first, end) of one partition; rows of other objects may lie between."""

    topic_id: str
    partition: int
    first: int
    end: int

    def __str__(self) -> str:
        return f"topic id {self.topic_id}, partition {self.partition}, offsets {self.first} to {self.end - 1}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """An object and what it held when it was recorded."""

    path: str
    bytes: int
    records: int
    sha256: str
    first_slice: int
    last_slice: int
    ranges: tuple[Range, ...]
    tenants: tuple[str, ...]

    def covers(self, partition: int) -> bool:
        return any(each.partition == partition for each in self.ranges)

    def __str__(self) -> str:
        more = f" and {len(self.tenants) - SHOWN} more" if len(self.tenants) > SHOWN else ""
        return (
            f"object {schema.EVENTS}/{self.path} ({'; '.join(map(str, self.ranges))}; slices {self.first_slice} to "
            f"{self.last_slice}; tenants {', '.join(self.tenants[:SHOWN])}{more})"
        )


class ObjectProblemError(Exception):
    """An object is lost, or is not what was recorded. `what` is `LOST` or `CHANGED`."""

    def __init__(self, recorded: Recorded, what: str, detail: str) -> None:
        super().__init__(f"{recorded} is {what}: {detail}")
        self.recorded, self.what = recorded, what


def record(lake: Lake, database: DatabaseSettings) -> int:
    """Record the objects that the table names and nobody has recorded; returns how many.

    What is recorded and not named any more was replaced by a compaction: it is marked, and kept.

    Raises:
        ObjectProblemError: an object is gone before it was recorded; the others are.
    """
    handle = lake.open(schema.EVENTS)
    if handle is None:
        return 0
    current, lost = named(handle), list[str]()
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "select path from usage_object where generation = %s and replaced_at is null",
                (lake.generation,),
            )
            known = {path for (path,) in cursor.fetchall()}
            new = []
            for path in sorted(current.keys() - known):
                try:
                    new.append(_look(lake, current[path]))
                except ObjectLostError:
                    lost.append(path)
            _insert(cursor, lake.generation, new)
            if gone := sorted(known - current.keys()):
                cursor.execute(
                    "update usage_object set replaced_at = now() where generation = %s and path = any(%s)",
                    (lake.generation, gone),
                )
    finally:
        connection.close()
    if lost:
        raise ObjectProblemError(_by_the_log(lake, current[lost[0]]), LOST, "nobody had read it before")
    return len(new)


def recorded(lake: Lake, database: DatabaseSettings) -> list[Recorded]:
    """The objects that the table names now, by slice. Records what is not recorded yet.

    Raises:
        ObjectProblemError: an object is gone before it was recorded.
    """
    record(lake, database)
    return known(lake, database)


def known(lake: Lake, database: DatabaseSettings) -> list[Recorded]:
    """The objects that were recorded and not replaced, by slice."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                f"select {COLUMNS_READ} from usage_object "
                "where generation = %s and replaced_at is null order by first_slice, path",
                (lake.generation,),
            )
            return [from_row(row) for row in cursor.fetchall()]
    finally:
        connection.close()


def from_row(row: tuple[Any, ...]) -> Recorded:
    """A row of `usage_object`: `COLUMNS_READ`."""
    path, size, records, digest, first, last, ranges, tenants = row
    parts = tuple(Range(**each) for each in ranges)
    return Recorded(path, size, records, digest, first, last, parts, tuple(tenants))


def checked(lake: Lake, known: Recorded, now: Mapping[str, Named]) -> bytes:
    """The bytes of an object, which are those that were recorded and as many rows as the table's log says.

    Raises:
        ObjectProblemError: naming object, offsets and tenants.
    """
    entry = now.get(known.path)
    if entry is not None and (entry.bytes, entry.records) != (known.bytes, known.records):
        raise ObjectProblemError(
            known, CHANGED, f"the table's log says {entry.records} rows in {entry.bytes} bytes"
        )
    try:
        data = content(lake, schema.EVENTS, known.path)
    except ObjectLostError as error:
        raise ObjectProblemError(known, LOST, str(error)) from None
    found = sha256(data)
    if found != known.sha256:
        raise ObjectProblemError(known, CHANGED, f"its SHA-256 was {known.sha256} and is {found}")
    return data


def rows(data: bytes, columns: Iterable[str]) -> pl.DataFrame:
    """Columns of an object's rows."""
    return pl.read_parquet(io.BytesIO(data), columns=list(columns))


def _look(lake: Lake, entry: Named) -> Recorded:
    data = content(lake, schema.EVENTS, entry.path)
    frame = rows(data, COLUMNS)
    ranges = (
        frame.group_by("topic_id", "partition")
        .agg(first=pl.col("offset").min(), end=pl.col("offset").max() + 1)
        .sort("topic_id", "partition")
    )
    first, last = frame.select(first=pl.col("slice").min(), last=pl.col("slice").max()).row(0)
    parts = tuple(Range(**row) for row in ranges.iter_rows(named=True))
    tenants = tuple(sorted(frame["tenant"].unique()))
    return Recorded(entry.path, entry.bytes, entry.records, sha256(data), first, last, parts, tenants)


def _by_the_log(lake: Lake, entry: Named) -> Recorded:
    """What the table's own statistics say of an object: offsets of all its partitions together, and the
    tenants of its slices."""
    handle, hourly = lake.open(schema.EVENTS), lake.open(schema.HOURLY)
    assert handle is not None
    names = ("slice", "partition", "offset")
    stats = pl.DataFrame(handle.get_add_actions(flatten=True)).filter(path=entry.path)
    found = {name: (stats[f"min.{name}"][0] or 0, stats[f"max.{name}"][0] or 0) for name in names}
    (first, last), (low, high), (begin, end) = (found[name] for name in names)
    topic_id = landed_from(handle)
    tenants: list[str] = []
    if hourly is not None:
        fates = read(
            lake, schema.HOURLY, hourly, {"tenant": pl.String},
            where=(pl.col("since") <= last) & (pl.col("slice") >= first),
            within=("slice", first, last + schema.BLOCKS[-1]), part={"kind": schema.FATE},
        )  # fmt: skip
        tenants = sorted(fates["tenant"].unique())
    parts = tuple(Range(topic_id, partition, begin, end + 1) for partition in range(low, high + 1))
    return Recorded(entry.path, entry.bytes, entry.records, "", first, last, parts, tuple(tenants))


def _insert(cursor: Any, generation: int, new: Iterable[Recorded]) -> None:
    values = [
        (
            generation, each.path, each.bytes, each.records, each.sha256, each.first_slice, each.last_slice,
            json.dumps([asdict(part) for part in each.ranges]), json.dumps(each.tenants),
        )
        for each in new
    ]  # fmt: skip
    if values:
        execute_values(
            cursor,
            "insert into usage_object (generation, path, bytes, records, sha256, first_slice, last_slice, ranges, tenants) "
            "values %s on conflict (generation, path) do update set replaced_at = null",
            values,
        )
