"""Snapshots agree with the invoices to the last digit, or are not published."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import psycopg2
import pytest

from assets.usage import schema, snapshot
from assets.usage.landing import land
from assets.usage.snapshot import (
    Published,
    SnapshotError,
    build,
    charge_table,
    charges,
    meta,
    publish_snapshot,
    tables,
    verify,
)
from core.database import dsn
from core.objects import open_objects
from core.prices.book import Price, Tier
from core.settings import DatabaseSettings, ObjectSettings
from core.snapshots import BUCKET, POINTER, read_pointer
from tests.assets.usage.lake import event, local_lake, records, slice_of
from tests.assets.usage.test_publish import empty, go, query

__all__ = ["empty"]

START = datetime(2026, 1, 1, tzinfo=UTC)
CHANGE = datetime(2026, 6, 1, 12, tzinfo=UTC)
INPUT = "llm.tokens.input"


def price(name: str, unit: str, **changes: Any) -> Price:
    usual = Price("*", INPUT, (), Decimal(unit), 1_000_000, "USD", START, id=name)
    return replace(usual, **changes)


LIST = price("list", "2.50")
DEARER = price("dearer", "3.125", valid_from=CHANGE, revision=1)
OWN = price("own", "0.000000000001", tenant="org_b", revision=2, per=1000)
PRICES = [LIST, DEARER, OWN]


def cells(*rows: tuple[str, datetime, str, str]) -> pl.DataFrame:
    """(tenant, hour, dimensions, quantity)"""
    frame = pl.DataFrame(
        [
            (tenant, INPUT, hour, dimensions, Decimal(quantity), 1)
            for tenant, hour, dimensions, quantity in rows
        ],
        schema=["tenant", "meter", "hour", "dimensions", "quantity", "events"],
        orient="row",
    )
    frame = frame.with_columns(element=pl.lit(None, pl.String))
    return frame.cast({"quantity": schema.QUANTITY, "hour": schema.TIME, "events": pl.Int64})


BEFORE = CHANGE - timedelta(hours=1)
CELLS = cells(
    ("org_a", BEFORE, "{}", "7"),
    ("org_a", BEFORE, '{"model":"m"}', "0.000000001"),
    ("org_a", CHANGE, "{}", "5"),
    ("org_b", BEFORE, "{}", "7"),
    ("org_b", CHANGE, "{}", "9"),
)


def state() -> Published:
    return Published(4, 2, {"t:0": 9}, PRICES, {"org_a": "acme"})


def test_a_price_change_within_the_data_and_a_price_of_ones_own() -> None:
    frame = charge_table(charges(CELLS, PRICES)[0], 18).select(
        "tenant", "price_id", "quantity", "unit_price", "per"
    )
    frame = frame.sort("tenant", "price_id")
    assert frame.rows() == [
        ("org_a", "dearer", Decimal("5"), Decimal("3.125"), 1_000_000),
        ("org_a", "list", Decimal("7.000000001"), Decimal("2.5"), 1_000_000),
        ("org_b", "own", Decimal("16"), Decimal("0.000000000001"), 1000),
    ]


def test_usage_without_a_price_charges_nothing() -> None:
    assert charges(CELLS, []) == ([], set())


def test_a_tenant_whose_numbers_do_not_fit_is_left_out_and_named() -> None:
    """One tenant's strange price or quantity must not stop the snapshot of all."""
    strange = cells(
        ("org_a", BEFORE, "{}", "7"),
        ("org_huge", BEFORE, "{}", "99999999999999999999999999999"),
        ("org_tiny", BEFORE, "{}", "0.000000001"),
    )
    prices = [*PRICES, price("tiny", "0.000000000001", per=10_000_000, tenant="org_tiny")]
    frames, left_out = tables(strange, replace(state(), prices=prices))
    assert left_out == {"org_huge", "org_tiny"}
    assert frames["charges"]["tenant"].to_list() == ["org_a"]
    assert len(frames["usage_hourly"]) == 3
    assert json.loads(meta(state(), left_out)["without_charges"]) == ["org_huge", "org_tiny"]


def test_a_tenant_with_two_currencies_is_left_out_and_named() -> None:
    prices = [*PRICES, price("yen", "1", tenant="org_a", currency="JPY", valid_from=CHANGE)]
    _, left_out = tables(CELLS, replace(state(), prices=prices))
    assert left_out == {"org_a"}


def test_tables_hold_hours_days_and_names() -> None:
    frames, left_out = tables(CELLS, state())
    assert left_out == set()
    assert set(frames) == {"usage_hourly", "usage_daily", "usage_elements", "meters", "charges", "prices"}
    days = frames["usage_daily"].select("tenant", "tenant_slug", "dimensions", "quantity", "events")
    assert days.rows() == [
        ("org_a", "acme", '{"model":"m"}', Decimal("0.000000001"), 1),
        ("org_a", "acme", "{}", Decimal("12"), 2),
        ("org_b", None, "{}", Decimal("16"), 2),
    ]
    assert len(frames["usage_hourly"]) == len(CELLS)
    assert frames["prices"]["id"].to_list() == ["list", "dearer", "own"]


def test_cells_stand_by_day_and_in_a_day_by_tenant() -> None:
    """So that a tenant's month is in few blocks of a file, and so is a day."""
    every = [
        (tenant, START + timedelta(hours=hour), "{}", "1") for hour in (30, 3, 1) for tenant in ("b", "a")
    ]
    found, _ = tables(cells(*every), Published(1, 1, {}, [], {}))
    hours = [(tenant, (hour - START) // timedelta(hours=1)) for tenant, hour in found["usage_hourly"].select("tenant", "period_start").rows()]  # fmt: skip
    assert hours == [("a", 1), ("a", 3), ("b", 1), ("b", 3), ("a", 30), ("b", 30)]


def test_duckdb_computes_what_rating_computes(tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    build(path, tables(CELLS, state())[0], meta(state(), ()))
    verify(path, CELLS, PRICES)
    with duckdb.connect(str(path), read_only=True) as connection:
        sums = connection.execute(
            "select tenant, sum(amount_unrounded) from charges group by 1 order by 1"
        ).fetchall()
        about = dict(connection.execute("select name, value from meta").fetchall())
    assert sums == [
        ("org_a", Decimal("0.0000331250000025")),
        ("org_b", Decimal("0.000000000000016")),
    ]
    assert (about["lake_version"], about["slice"], about["offsets"]) == ("4", "2", '{"t:0": 9}')


TIERS = (Tier(Decimal(10), Decimal(3)), Tier(None, Decimal(1), fee=Decimal("0.5")))
MODELS = [
    price("graduated", "3", tenant="org_g", per=1, model="graduated", tiers=TIERS, revision=3),
    price("volume", "3", tenant="org_v", per=1, model="volume", tiers=TIERS, revision=4),
    price("package", "2", tenant="org_p", per=7, model="package", included=Decimal(2), revision=5),
    price("minimum", "1", tenant="org_m", per=1000, minimum=Decimal(100), revision=6),
    price("edge", "9", valid_from=CHANGE, dimensions=(("model", "x"),), revision=7),
]
JULY = datetime(2026, 7, 1, tzinfo=UTC)
OF_MODELS = cells(
    *(
        (f"org_{name}", hour, dimensions, quantity)
        for name in "gvpm"
        for hour, dimensions, quantity in (
            (BEFORE, "{}", "6"),
            (CHANGE, '{"model":"m"}', "6.5"),
            (JULY, "{}", "4"),
        )
    )
)


def test_models_that_accumulate_charge_each_service_period_once(tmp_path: Path) -> None:
    """Hours of a month count together, also across an edge of the book; months do not."""
    published = replace(state(), prices=MODELS)
    frames, left_out = tables(OF_MODELS, published)
    assert left_out == set()
    columns = ["tenant", "model", "service_period_start", "quantity", "amount_unrounded"]
    june = datetime(2026, 6, 1, tzinfo=UTC)
    assert frames["charges"].select(columns).rows() == [
        ("org_g", "graduated", june, Decimal("12.5"), Decimal("33")),
        ("org_g", "graduated", JULY, Decimal("4"), Decimal("12")),
        ("org_m", "flat", june, Decimal("12.5"), Decimal("100")),
        ("org_m", "flat", JULY, Decimal("4"), Decimal("100")),
        ("org_p", "package", june, Decimal("12.5"), Decimal("4")),
        ("org_p", "package", JULY, Decimal("4"), Decimal("2")),
        ("org_v", "volume", june, Decimal("12.5"), Decimal("13")),
        ("org_v", "volume", JULY, Decimal("4"), Decimal("12")),
    ]
    assert json.loads(frames["prices"].row(0, named=True)["tiers"])[1] == {
        "up_to": None, "unit_price": "1", "fee": "0.5",
    }  # fmt: skip
    path = tmp_path / "s.duckdb"
    build(path, frames, meta(published, left_out))
    verify(path, OF_MODELS, MODELS)
    with duckdb.connect(str(path)) as connection:
        connection.execute("delete from charges where tenant = 'org_v' and quantity = 4")
    with pytest.raises(SnapshotError, match="org_v"):
        verify(path, OF_MODELS, MODELS)


def test_a_tenant_whose_price_this_version_does_not_know_is_left_out_and_named() -> None:
    _, left_out = tables(
        OF_MODELS, replace(state(), prices=[*MODELS[1:], replace(MODELS[0], model="auction")])
    )
    assert left_out == {"org_g"}


@pytest.mark.parametrize(
    "tampering",
    [
        "update charges set amount_unrounded = amount_unrounded + 0.000000000000001 where tenant = 'org_a'",
        "delete from charges where tenant = 'org_b'",
    ],
)
def test_a_file_that_differs_by_a_digit_or_a_row_is_refused(tmp_path: Path, tampering: str) -> None:
    path = tmp_path / "s.duckdb"
    build(path, tables(CELLS, state())[0], meta(state(), ()))
    with duckdb.connect(str(path)) as connection:
        connection.execute(tampering)
    with pytest.raises(SnapshotError, match=r"org_[ab]"):
        verify(path, CELLS, PRICES)


@pytest.fixture
def priced(empty: DatabaseSettings) -> Iterator[DatabaseSettings]:
    """The list price, as the loader writes it."""
    execute(
        empty,
        "insert into price (id, tenant_id, meter, unit_price, per, currency, valid_from) "
        "values ('list', '*', 'llm.tokens.input', 2.5, 1000000, 'USD', '2026-01-01Z')",
    )
    yield empty
    execute(empty, "truncate price", role="owner")


def execute(database: DatabaseSettings, sql: str, *, role: str = "system") -> None:
    connection = psycopg2.connect(dsn(database, role))  # type: ignore[arg-type]
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
    finally:
        connection.close()


async def objects(settings: ObjectSettings, database: DatabaseSettings) -> dict[str, bytes]:
    async with open_objects(settings, database) as store:
        return {item.key: await store.get(BUCKET, item.key) async for item in store.list(BUCKET, "")}


async def put(settings: ObjectSettings, database: DatabaseSettings, names: list[str]) -> None:
    async with open_objects(settings, database) as store:
        await store.ensure_bucket(BUCKET, versioned=False)
        for name in names:
            await store.put(BUCKET, name, b"old")


async def delete_all(settings: ObjectSettings, database: DatabaseSettings) -> None:
    async with open_objects(settings, database) as store:
        for name in [item.key async for item in store.list(BUCKET, "")]:
            await store.delete(BUCKET, name)


def test_the_pointer_comes_last_and_only_when_something_is_new(
    tmp_path: Path, priced: DatabaseSettings
) -> None:
    settings, lake = ObjectSettings(objects_url=f"file://{tmp_path}/objects"), local_lake(tmp_path)
    assert publish_snapshot(lake, priced, settings) is None
    batch = records([event(0, quantity="3"), event(2, quantity="4"), event(5, quantity="5")])
    land(lake, tmp_path / "index", slice_of(batch[:2]), [batch[:2]])
    go(lake, priced)
    old = [f"usage-000000000000-{number:02d}.duckdb" for number in range(30)]
    asyncio.run(put(settings, priced, old))
    try:
        made = publish_snapshot(lake, priced, settings)
        assert made is not None
        assert (made.before, made.slice, made.unaccounted) == (0, 1, 0)
        pointer = made.pointer
        assert asyncio.run(read_pointer(settings, priced)) == pointer
        found = asyncio.run(objects(settings, priced))
        assert sorted(found) == [POINTER, *old[-(snapshot.KEEP - 1) :], pointer.name]
        order = query(
            priced,
            f"select key from object_version where key in ('{POINTER}', '{pointer.name}') order by sequence",
        )
        assert order == [(pointer.name,), (POINTER,)]
        path = tmp_path / "read.duckdb"
        path.write_bytes(found[pointer.name])
        with duckdb.connect(str(path), read_only=True) as connection:
            assert connection.execute("select sum(amount_unrounded) from charges").fetchall() == [
                (Decimal("0.0000175"),)
            ]
        assert publish_snapshot(lake, priced, settings) is None

        # A price is news too; one that would mix currencies takes its tenant out, not the snapshot.
        execute(
            priced,
            "insert into price (id, tenant_id, meter, dimensions, unit_price, per, currency, valid_from) "
            """values ('euro', 'org_a', 'llm.tokens.input', '{"model": "m"}', 2, 1000000, 'EUR', '2026-01-01Z')""",
        )
        land(lake, tmp_path / "index", slice_of(batch[2:]), [batch[2:]])
        go(lake, priced)
        later = publish_snapshot(lake, priced, settings)
        assert later is not None
        assert (later.before, later.slice, later.unaccounted) == (1, 2, 0)
        assert later.pointer.price_revision > pointer.price_revision
        execute(
            priced,
            "insert into price (id, tenant_id, meter, unit_price, per, currency, valid_from) "
            "values ('later', '*', 'llm.tokens.input', 3, 1000000, 'USD', '2026-07-01Z')",
        )
        dearer = publish_snapshot(lake, priced, settings)
        assert dearer is not None
        assert (dearer.before, dearer.slice) == (2, 2)
        assert publish_snapshot(lake, priced, settings) is None
    finally:
        asyncio.run(delete_all(settings, priced))
