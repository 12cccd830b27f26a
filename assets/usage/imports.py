"""Imports that were declared: only an event of one may be old, and it is of the source and period that it declared.

The API refuses others before they are published; what a producer writes to the topic itself is judged here, when
it lands. The database is asked once a slice, and only where a record names an import. What was found stays with
the rows, as their code: a replay reads that and asks nobody, so the lake alone gives the same again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg2

from assets.slices.fates import Parsed, Schema
from assets.usage.schema import TIME
from core.database.urls import libpq_dsn
from core.settings import DatabaseSettings

UNKNOWN_IMPORT: Final = "unknown_import"
IMPORT_MISMATCH: Final = "import_mismatch"
FAULTS: Final = (UNKNOWN_IMPORT, IMPORT_MISMATCH)

Import = tuple[str, str, str, datetime, datetime]
"""Organisation, id, source, and the first and last time of its events."""
Declared = Callable[[Sequence[tuple[str, str]]], Sequence[Import]]
"""Of these (organisation, id) the imports that were declared."""

_IMPORT: Schema = {
    "tenant": pl.String,
    "importid": pl.String,
    "declared": pl.String,
    "since": TIME,
    "until": TIME,
}


def nothing_declared(_wanted: Sequence[tuple[str, str]]) -> Sequence[Import]:
    """Every event that names an import is quarantined."""
    return []


def declared_in(database: DatabaseSettings) -> Declared:
    """Those that were declared over the API; they never change. Raises: psycopg2.Error."""

    def find(wanted: Sequence[tuple[str, str]]) -> Sequence[Import]:
        connection = psycopg2.connect(libpq_dsn(database, "system"))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "select tenant_id, id, source, period_start, period_end from usage_import "
                    "where (tenant_id, id) in (select * from unnest(%s::text[], %s::text[]))",
                    ([tenant for tenant, _ in wanted], [name for _, name in wanted]),
                )
                found = cursor.fetchall()
        finally:
            connection.close()
        return [(*row[:3], row[3].astimezone(UTC), row[4].astimezone(UTC)) for row in found]

    return find


def judged(parsed: Parsed, declared: Declared) -> Parsed:
    """Rows as they were read, and not acceptable where one names an import that was not declared so."""
    named = (parsed.frame["importid"] != "").fill_null(value=False).to_numpy()
    rows = np.flatnonzero(named & parsed.acceptable)
    if not len(rows):
        return parsed
    said = parsed.frame.select("tenant", "importid", "source", "event_time")[rows]
    wanted = said.select("tenant", "importid").unique()
    known = pl.DataFrame(list(declared(wanted.rows())), schema=dict(_IMPORT), orient="row")
    found = said.join(known, on=["tenant", "importid"], how="left", maintain_order="left")
    strange = (pl.col("source") != pl.col("declared")) | ~pl.col("event_time").is_between("since", "until")
    codes = found.select(
        pl.when(pl.col("declared").is_null()).then(pl.lit(UNKNOWN_IMPORT)).when(strange).then(pl.lit(IMPORT_MISMATCH))
    ).to_series()  # fmt: skip
    bad = np.flatnonzero(codes.is_not_null().to_numpy())
    return _refused(parsed, rows[bad], codes[bad])


def as_judged(parsed: Parsed, codes: pl.Series) -> Parsed:
    """The same where the rows landed before: `codes` say what was found then, and nobody is asked again."""
    rows = np.flatnonzero(codes.is_in(FAULTS).fill_null(value=False).to_numpy() & parsed.acceptable)
    return _refused(parsed, rows, codes[rows])


def _refused(parsed: Parsed, rows: npt.NDArray[np.intp], codes: pl.Series) -> Parsed:
    if not len(rows):
        return parsed
    acceptable = parsed.acceptable.copy()
    acceptable[rows] = False
    frame = parsed.frame.with_columns(parsed.frame["code"].scatter(rows, codes))
    return replace(parsed, frame=frame, acceptable=acceptable)
