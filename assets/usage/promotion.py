"""From a replay to what counts: begin a generation, compare it, promote or discard it.

Promoting closes the old tables first, in a commit that no landing can pass unseen, and is then one row in
PostgreSQL. What is published follows with the next publication: all cells in one transaction, absolute, under a
lake version above every earlier one. Issued invoices are not touched.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psycopg2

from assets.slices.progress import SLICE, SUCCESSOR, last_slice
from assets.usage import schema
from assets.usage.difference import Difference, difference
from assets.usage.evidence import Evidence, evidence
from assets.usage.generation import TABLES, current, finish, index_folder, usage_lake
from assets.usage.publish import CODE_VERSION, publish
from assets.usage.replay import rebuild
from core.database.urls import libpq_dsn
from core.lake.commit import StaleError, commit
from core.prices.book import Price
from core.prices.table import COLUMNS, price_of
from core.settings import DatabaseSettings, ObjectSettings

LOCK = 7_240_004
"""Advisory lock of the one replay that works."""
TRIES = 20
"""So often slices may land between catching up and closing the old tables."""


Judge = Callable[[Evidence], list[str]]


class ReplayError(Exception):
    """The generation is not what the command needs; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A row of `usage_generation`, and whether it was promoted."""

    generation: int
    made_from: int
    first_slice: int
    last_slice: int | None
    code_version: str
    price_revision: int
    through_slice: int
    begun_by: str
    discarded: bool
    promoted: bool
    report: dict[str, Any]

    @property
    def open(self) -> bool:
        return not (self.discarded or self.promoted)


def begin(
    database: DatabaseSettings,
    *,
    first: int = 1,
    last: int | None = None,
    price_revision: int | None = None,
    by: str,
) -> int:
    """Number of a new generation of what is in use now. Nothing is made yet.

    Args:
        first, last: slices that will be read again.
        price_revision: of the book that the report charges with; the newest where None.

    Raises:
        ReplayError: there are no such slices.
    """
    with _cursor(database) as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
        cursor.execute("select coalesce(max(slice), 0) from usage_publication")
        (newest,) = cursor.fetchone()
        if not 1 <= first <= min(newest, newest if last is None else last):
            until = "the end" if last is None else f"slice {last}"
            raise ReplayError(
                f"there is nothing from slice {first} to {until}: published are slices 1 to {newest}"
            )
        cursor.execute(
            "insert into usage_generation (generation, made_from, first_slice, last_slice, code_version, price_revision, "
            "begun_by) select coalesce(max(g.generation), 1) + 1, "
            "(select coalesce(max(generation), 1) from usage_promotion), %s, %s, %s, "
            "coalesce(%s, (select coalesce(max(revision), 0) from price)), %s from usage_generation g returning generation",
            (first, last, CODE_VERSION, price_revision, by),
        )
        return int(cursor.fetchone()[0])


def generations(database: DatabaseSettings) -> list[Generation]:
    """All but the first, newest first."""
    with _cursor(database) as cursor:
        cursor.execute(
            "select g.generation, made_from, first_slice, last_slice, code_version, price_revision, through_slice, begun_by, "
            "discarded_at is not null, p.generation is not null, report "
            "from usage_generation g left join usage_promotion p using (generation) order by g.generation desc"
        )
        return [Generation(*row) for row in cursor.fetchall()]


def find(database: DatabaseSettings, generation: int) -> Generation:
    """Raises: ReplayError."""
    for each in generations(database):
        if each.generation == generation:
            return each
    raise ReplayError(f"there is no generation {generation}; see `headrace replay list`")


def build(objects: ObjectSettings, database: DatabaseSettings, state: Path, generation: int) -> Difference:
    """Make the tables of a generation, or go on with them, and report how they differ. Changes nothing in use.

    Raises:
        ReplayError: it was promoted or discarded.
    """
    made = _open(database, generation)
    old, new = (usage_lake(objects, database, number) for number in (made.made_from, generation))
    with _working(database):
        through = rebuild(old, new, index_folder(state, generation), made.first_slice, made.last_slice)
        found = difference(old, new, through, _prices(database), _prices(database, made.price_revision))
    with _cursor(database) as cursor:
        cursor.execute(
            "update usage_generation set through_slice = %s, report = %s where generation = %s",
            (through, json.dumps(found.report()), generation),
        )
    return found


def promote(
    objects: ObjectSettings,
    database: DatabaseSettings,
    state: Path,
    generation: int,
    judge: Judge,
    *,
    by: str,
) -> int:
    """Let a generation count from now on; returns its last slice. Safe to repeat, whatever died when.

    Args:
        judge: says what does not hold of the new tables; `quality.gates.problems`.

    Raises:
        ReplayError: it was never built, was discarded, or was not made from what is in use.
    """
    made = find(database, generation)
    if made.promoted:
        publish(usage_lake(objects, database), database)
        return last_slice(usage_lake(objects, database), schema.EVENTS)
    made = _open(database, generation)
    if made.made_from != current(database):
        raise ReplayError(
            f"generation {generation} was made from {made.made_from}, in use is {current(database)}: replay again"
        )
    if not made.through_slice:
        raise ReplayError(f"generation {generation} was not built yet; look at its report first")
    with _cursor(database) as cursor:
        cursor.execute("update usage_generation set decided_by = %s where generation = %s", (by, generation))
    with _working(database):
        last = _close(objects, database, state, made, judge)
        finish(database, generation)
    publish(usage_lake(objects, database), database)
    return last


def discard(
    objects: ObjectSettings, database: DatabaseSettings, state: Path, generation: int, *, by: str
) -> None:
    """Give a generation up; its tables go. Raises: ReplayError."""
    _open(database, generation)
    with _working(database), _cursor(database) as cursor:
        cursor.execute(
            "update usage_generation set discarded_at = now(), decided_by = %s where generation = %s",
            (by, generation),
        )
    lake = usage_lake(objects, database, generation)
    for table in TABLES:
        lake.drop(table)
    shutil.rmtree(index_folder(state, generation), ignore_errors=True)


def _close(
    objects: ObjectSettings, database: DatabaseSettings, state: Path, made: Generation, judge: Judge
) -> int:
    """Catch up, judge, and close the old tables at exactly the slice that the new ones hold."""
    new = usage_lake(objects, database, made.generation)
    for _ in range(TRIES):
        old = usage_lake(objects, database, made.made_from)
        handle: Any = old.open(schema.EVENTS)
        closed = handle.transaction_version(SUCCESSOR)
        if closed not in (None, made.generation):
            raise ReplayError(f"generation {made.made_from} was succeeded by {closed}")
        last = rebuild(old, new, index_folder(state, made.generation), made.first_slice, made.last_slice)
        if problems := judge(evidence(new, 1, last)):
            raise ReplayError(f"the new tables do not hold what landed: {'; '.join(problems[:5])}")
        if closed is not None:
            return last
        try:
            commit(
                old, schema.EVENTS, pl.DataFrame(schema=schema.EVENTS_SCHEMA),
                {SLICE: last, SUCCESSOR: made.generation}, {SLICE: last, SUCCESSOR: None}, handle=handle,
            )  # fmt: skip
        except StaleError:
            continue  # a slice landed meanwhile
        return last
    raise ReplayError(
        f"slices landed faster than generation {made.generation} could follow; try again when it is quieter"
    )


def _open(database: DatabaseSettings, generation: int) -> Generation:
    made = find(database, generation)
    if not made.open:
        raise ReplayError(f"generation {generation} was {'promoted' if made.promoted else 'discarded'}")
    return made


def _prices(database: DatabaseSettings, revision: int | None = None) -> list[Price]:
    with _cursor(database) as cursor:
        cursor.execute(
            f"select {COLUMNS} from price where %s is null or revision <= %s order by revision",
            (revision, revision),
        )
        return [price_of(row) for row in cursor.fetchall()]


@contextmanager
def _working(database: DatabaseSettings) -> Iterator[None]:
    """One replay at a time. Raises: ReplayError."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select pg_try_advisory_lock(%s)", (LOCK,))
            if not cursor.fetchone()[0]:
                raise ReplayError("another replay is at work; wait for it")
            yield
    finally:
        connection.close()


@contextmanager
def _cursor(database: DatabaseSettings) -> Iterator[Any]:
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()
