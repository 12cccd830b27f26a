"""DuckDB snapshots for analysts: one file a lake version, never changed, the pointer written last."""

import asyncio
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, Inexact
from pathlib import Path

import duckdb
import polars as pl
import psycopg2

from assets.usage import schema
from assets.usage.asof import KEYS, cells_of, rows_as_of
from assets.usage.elements import standing
from assets.usage.progress import slice_at
from core import crash
from core.clock import now, rfc3339
from core.crash import Point
from core.database.urls import libpq_dsn
from core.lake import Lake
from core.meters import METERS, not_summable
from core.objects import open_objects
from core.prices.book import Price, PriceError, books
from core.prices.table import COLUMNS, price_of, tiers_json
from core.rating import Line, MixedCurrencyError, Usage, rate
from core.scratch import scratch
from core.settings import DatabaseSettings, ObjectSettings
from core.snapshots import BUCKET, POINTER, Pointer, read_pointer

KEEP = 24
"""Snapshots that stay: a day of hourly ones, or the last half hour of a busy platform."""
SCHEMA_VERSION = 3
SUMS = 38
"""Digits of DuckDB's widest DECIMAL. A tenant whose sums need more is left out and named in `meta`."""


class SnapshotError(Exception):
    """The snapshot would not agree with the invoices; it was not published."""


@dataclass(frozen=True, slots=True)
class Published:
    """What PostgreSQL has published: the state a snapshot shows."""

    lake_version: int
    slice: int
    offsets: dict[str, int]
    prices: list[Price]
    slugs: dict[str, str]
    generation: int = 1

    @property
    def price_revision(self) -> int:
        """The price book is append-only: its last revision names its state."""
        return max((price.revision for price in self.prices), default=0)


def published(database: DatabaseSettings) -> Published | None:
    """One consistent look at PostgreSQL; None before the first publication."""
    connection = psycopg2.connect(libpq_dsn(database, "system"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("set transaction isolation level repeatable read, read only")
            cursor.execute(
                "select lake_version, slice, generation from usage_publication order by lake_version desc limit 1"
            )
            newest = cursor.fetchone()
            if newest is None:
                return None
            cursor.execute("select topic_id || ':' || partition, next_offset from usage_watermark order by 1")
            offsets = dict(cursor.fetchall())
            cursor.execute(f"select {COLUMNS} from price order by revision")
            prices = [price_of(row) for row in cursor.fetchall()]
            cursor.execute("select id, slug from organisation")
            return Published(newest[0], newest[1], offsets, prices, dict(cursor.fetchall()), newest[2])
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that was published now: it shows slices up to `slice`, the one before it those up to `before`."""

    pointer: Pointer
    slice: int
    before: int
    unaccounted: int
    """Events of the usage that is published, less those of the file's days."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one price charges one tenant, exactly; where its model accumulates, in one service period."""

    tenant: str
    line: Line


def rateable(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `rows_as_of` as rating takes them: sums, and of what cannot be added up the standing elements.

    Returns:
        tenant, meter, hour, dimensions, element, quantity, events.
    """
    sums = rows.filter(~pl.col("meter").is_in(not_summable()))
    sums = sums.group_by(*KEYS).agg(pl.col("quantity", "events").sum())
    plain = sums.with_columns(element=pl.lit(None, pl.String))
    return pl.concat([plain, standing(rows, KEYS).select(plain.columns)])


def charges(rows: pl.DataFrame, prices: Sequence[Price]) -> tuple[list[Charge], set[str]]:
    """Every tenant's lines as an invoice of all its usage has them, and the tenants that cannot be rated:
    one tenant's strange price must not stop the snapshot of all. Usage without a price is not here.

    Cells are added up in columns first, so far as no price changes between them and no month ends; of what
    cannot be added up an element counts once there.

    Args:
        rows: `rateable`.
    """
    found, unrated, book_of = list[Charge](), set[str](), books(prices)
    for (tenant,), own in rows.sort("tenant").group_by("tenant", maintain_order=True):
        book = book_of(str(tenant))
        edges = pl.Series(book.edges(), dtype=schema.TIME)
        placed = own.with_columns(
            segment=edges.search_sorted(own["hour"], side="right"), month=pl.col("hour").dt.truncate("1mo")
        )
        keys, sums = ["meter", "dimensions", "element", "segment", "month"], pl.col("element").is_null()
        summed = pl.concat(
            [
                placed.filter(sums).group_by(keys).agg(pl.col("quantity").sum(), pl.col("hour").min()),
                placed.filter(~sums).group_by(keys).agg(pl.col("quantity").first(), pl.col("hour").min()),
            ]
        )
        try:
            rated = rate(usage_of(summed), book)
        except (MixedCurrencyError, PriceError, Inexact):
            unrated.add(str(tenant))
            continue
        found += [Charge(str(tenant), line) for line in rated.lines]
    return found, unrated


def usage_of(rows: pl.DataFrame) -> list[Usage]:
    """Rows of `rateable`, or several of them together, as rating takes them."""
    return [
        Usage(row["meter"], json.loads(row["dimensions"]), row["hour"], row["quantity"], row["element"] or "")
        for row in rows.iter_rows(named=True)
    ]


def scale_of(every: Iterable[Charge]) -> tuple[int, set[str]]:
    """Digits behind the point that hold every amount exactly, and the tenants that do not fit beside them.

    An amount keeps 38 digits in all; one tenant's strange price must not take the place of the others'.
    """
    wanted, left_out = 12, set[str]()
    for charge in every:
        exponent = charge.line.amount_unrounded.normalize().as_tuple().exponent
        digits = -exponent if isinstance(exponent, int) else SUMS
        if digits <= 18:
            wanted = max(wanted, digits)
        else:
            left_out.add(charge.tenant)
    for charge in every:
        if abs(charge.line.amount_unrounded) >= Decimal(10) ** (SUMS - wanted - 3):
            left_out.add(charge.tenant)
    return wanted, left_out


def charge_table(every: Sequence[Charge], digits: int) -> pl.DataFrame:
    """Charges as columns; `amount_unrounded` has `digits` behind the point and loses none."""
    return pl.DataFrame(
        [
            {
                "tenant": charge.tenant,
                "price_id": charge.line.price.id,
                "meter": charge.line.price.meter,
                "dimensions": json.dumps(dict(charge.line.price.dimensions), separators=(",", ":")),
                "model": charge.line.price.model,
                "service_period_start": charge.line.period and charge.line.period.start,
                "service_period_end": charge.line.period and charge.line.period.end,
                "quantity": charge.line.quantity,
                "unit_price": charge.line.price.unit_price,
                "per": charge.line.price.per,
                "currency": charge.line.price.currency,
                "amount_unrounded": charge.line.amount_unrounded,
            }
            for charge in every
        ],
        schema={
            "tenant": pl.String,
            "price_id": pl.String,
            "meter": pl.String,
            "dimensions": pl.String,
            "model": pl.String,
            "service_period_start": schema.TIME,
            "service_period_end": schema.TIME,
            "quantity": schema.QUANTITY,
            "unit_price": pl.Decimal(38, 12),
            "per": pl.Int64,
            "currency": pl.String,
            "amount_unrounded": pl.Decimal(SUMS, digits),
        },
    )


def tables(rows: pl.DataFrame, state: Published) -> tuple[dict[str, pl.DataFrame], set[str]]:
    """The tables of a snapshot, sorted by day and tenant, and the tenants without charges in it. Pure.

    Args:
        rows: `rows_as_of`.
    """
    slugs = pl.DataFrame(
        {"tenant": list(state.slugs), "tenant_slug": list(state.slugs.values())},
        schema={"tenant": pl.String, "tenant_slug": pl.String},
    )
    hourly = cells_of(rows).rename({"hour": "period_start"})
    daily = cells_of(rows.with_columns(pl.col("hour").dt.truncate("1d"))).rename({"hour": "period_start"})
    rated = rateable(rows)
    elements = (
        rated.drop_nulls("element")
        .rename({"hour": "period_start"})
        .select("tenant", "meter", "period_start", "dimensions", "element", "quantity", "events")
    )
    every, unrated = charges(rated, state.prices)
    digits, left_out = scale_of(every)
    left_out |= unrated
    charged = charge_table([charge for charge in every if charge.tenant not in left_out], digits)
    return {
        "usage_hourly": in_order(hourly.join(slugs, on="tenant", how="left")),
        "usage_daily": in_order(daily.join(slugs, on="tenant", how="left")),
        "usage_elements": in_order(elements.join(slugs, on="tenant", how="left")),
        "meters": pl.DataFrame(
            [
                (
                    each.name,
                    each.unit,
                    each.what,
                    each.aggregation.value,
                    each.aggregation.is_summable,
                    each.measured,
                )
                for _, each in sorted(METERS.items())
            ],
            schema={
                "meter": pl.String,
                "unit": pl.String,
                "what": pl.String,
                "aggregation": pl.String,
                "is_summable": pl.Boolean,
                "measured": pl.String,
            },
            orient="row",
        ),
        "charges": charged.join(slugs, on="tenant", how="left").sort(
            "tenant", "meter", "price_id", "service_period_start"
        ),
        "prices": pl.DataFrame(
            [
                asdict(price)
                | {"dimensions": json.dumps(dict(price.dimensions)), "tiers": tiers_json(price.tiers)}
                for price in state.prices
            ],
            schema={
                "id": pl.String,
                "tenant": pl.String,
                "meter": pl.String,
                "dimensions": pl.String,
                "unit_price": pl.Decimal(38, 12),
                "per": pl.Int64,
                "currency": pl.String,
                "valid_from": schema.TIME,
                "valid_to": schema.TIME,
                "revision": pl.Int64,
                "model": pl.String,
                "tiers": pl.String,
                "included": schema.QUANTITY,
                "minimum": pl.Decimal(38, 12),
                "recorded_at": schema.TIME,
            },
        ),
    }, left_out


_ORDER = ("tenant", "period_start", "meter", "dimensions", "element")


def in_order(cells: pl.DataFrame) -> pl.DataFrame:
    """Cells as a snapshot keeps them: by day, in a day by tenant, so that a time and a tenant both stand in few
    blocks. Ordered by hour, a tenant's month would be in all of them."""
    day = pl.col("period_start").dt.truncate("1d")
    return cells.sort(day, *(name for name in _ORDER if name in cells.columns))


def meta(state: Published, left_out: Iterable[str]) -> dict[str, str]:
    """What a snapshot says about itself."""
    book = json.dumps([asdict(price) for price in state.prices], default=str, sort_keys=True)
    return {
        "lake_version": str(state.lake_version),
        "slice": str(state.slice),
        "generation": str(state.generation),
        "offsets": json.dumps(state.offsets, sort_keys=True),
        "price_book_sha256": hashlib.sha256(book.encode()).hexdigest(),
        "without_charges": json.dumps(sorted(left_out)),
        "schema_version": str(SCHEMA_VERSION),
        "created_at": rfc3339(now()),
    }


def build(path: Path, frames: Mapping[str, pl.DataFrame], about: Mapping[str, str]) -> None:
    """Write the file."""
    connection = duckdb.connect(str(path))
    try:
        for name, frame in frames.items():
            connection.register("frame", frame.to_arrow())
            connection.execute(f"create table {name} as select * from frame")
            connection.unregister("frame")
        connection.execute("create table meta (name varchar primary key, value varchar not null)")
        connection.executemany("insert into meta values (?, ?)", list(about.items()))
    finally:
        connection.close()


def verify(path: Path, rated: pl.DataFrame, prices: Sequence[Price], left_out: Collection[str] = ()) -> None:
    """Read the finished file and compare each tenant's sum with the rating that invoices use.

    The sum goes by price and segment in columns, the rating by cell and one at a time.

    Args:
        rated: `rateable`.

    Raises:
        SnapshotError: naming the tenant that differs.
    """
    connection = duckdb.connect(str(path), read_only=True)
    try:
        sums = dict(
            connection.execute("select tenant, sum(amount_unrounded) from charges group by 1").fetchall()
        )
    finally:
        connection.close()
    book_of = books(prices)
    for (tenant,), rows in rated.group_by("tenant"):
        if tenant in left_out:
            continue
        expected = rate(usage_of(rows), book_of(str(tenant))).unrounded
        if sums.get(str(tenant), Decimal(0)) != expected:
            raise SnapshotError(
                f"tenant {tenant}: the snapshot charges {sums.get(str(tenant))}, rating says {expected}"
            )


def publish_snapshot(lake: Lake, database: DatabaseSettings, objects: ObjectSettings) -> Snapshot | None:
    """Build, verify and publish the snapshot of what is published now; None where there is nothing new."""
    state = published(database)
    if state is None:
        return None
    current = asyncio.run(read_pointer(objects, database))
    if current is not None and (current.lake_version, current.price_revision) == (
        state.lake_version,
        state.price_revision,
    ):
        return None
    if state.generation != lake.generation:
        return None  # the generation in use is not published yet
    rows = rows_as_of(lake, state.slice)
    with scratch("snapshot") as folder:
        stamp = now().strftime("%Y%m%dT%H%M%SZ")
        path = folder / f"usage-{state.lake_version:012d}-{stamp}.duckdb"
        frames, left_out = tables(rows, state)
        build(path, frames, meta(state, left_out))
        verify(path, rateable(rows), state.prices, left_out)
        unaccounted = int(rows["events"].sum()) - _events(path)
        before = 0 if current is None else min(slice_at(database, current.lake_version), state.slice)
        pointer = asyncio.run(_put(objects, database, path, state))
    return Snapshot(pointer, state.slice, before, unaccounted)


def _events(path: Path) -> int:
    """Events of all days in a finished file."""
    connection = duckdb.connect(str(path), read_only=True)
    try:
        rows = connection.execute("select coalesce(sum(events), 0) from usage_daily").fetchall()
        return int(rows[0][0])
    finally:
        connection.close()


async def _put(objects: ObjectSettings, database: DatabaseSettings, path: Path, state: Published) -> Pointer:
    """The file first, the pointer last, then what is too old."""
    async with open_objects(objects, database) as store:
        info = await store.put(BUCKET, path.name, path)
        pointer = Pointer(
            path.name,
            info.sha256,
            info.size,
            state.lake_version,
            SCHEMA_VERSION,
            rfc3339(now()),
            state.price_revision,
        )
        crash.here(Point.SNAPSHOT_WRITTEN)
        await store.put(BUCKET, POINTER, pointer.encode())
        names = [item.key async for item in store.list(BUCKET, "usage-")]
        # By time: after the lake was made anew, a newer file has a lower lake version.
        for name in sorted(names, key=lambda name: name.rsplit("-", 1)[-1])[:-KEEP]:
            if name != path.name:
                await store.delete(BUCKET, name)
    return pointer
