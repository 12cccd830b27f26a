"""The table grows by what changed, once, however many instances start."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, tenant
from core.ids import new_id
from core.prices import Books, Price, PriceBook, PriceError, Tier, read_prices, record
from core.settings import DatabaseSettings


@pytest.fixture
async def other_system(postgres: DatabaseSettings) -> AsyncIterator[Database]:
    database = Database(postgres, role="system")
    yield database
    await database.close()


def own_price(**changes: object) -> Price:
    """A price of a tenant and a meter that no other test knows: list prices of others would be found too."""
    made = Price(
        new_id("org"), new_id("meter"), (("model", "m"),), Decimal("2.50"), 1_000_000, "USD",
        datetime(2020, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


async def keep(database: Database, *prices: Price) -> int:
    async with database.writer() as connection:
        return len(await record(connection, prices))


async def unit_price(database: Database, price: Price) -> Decimal | None:
    with tenant(price.tenant):
        async with database.reader() as connection:
            book = PriceBook(price.tenant, await read_prices(connection))
    found = book.find(price.meter, dict(price.dimensions), datetime(2026, 1, 1, tzinfo=UTC))
    return None if found is None else found.unit_price


async def test_a_change_is_appended_and_no_change_adds_nothing(
    system_database: Database, app_database: Database
) -> None:
    price = own_price()
    assert await keep(system_database, price) == 1
    assert await keep(system_database, price) == 0
    assert await keep(system_database, replace(price, unit_price=Decimal("2.500"))) == 0
    raised = replace(price, unit_price=Decimal(3), valid_from=datetime(2025, 1, 1, tzinfo=UTC))
    assert await keep(system_database, price, raised) == 1
    assert await unit_price(app_database, price) == 3


async def test_models_come_back_as_they_were_declared(
    system_database: Database, app_database: Database
) -> None:
    tiers = (Tier(Decimal("1000.5"), Decimal("0.40"), Decimal(2)), Tier(None, Decimal("0.1")))
    price = own_price(
        model="graduated",
        tiers=tiers,
        unit_price=Decimal("0.4"),
        included=Decimal("7.5"),
        minimum=Decimal(50),
    )
    assert await keep(system_database, price) == 1
    assert await keep(system_database, price) == 0
    with tenant(price.tenant):
        async with app_database.reader() as connection:
            (read,) = [row for row in await read_prices(connection) if row.tenant == price.tenant]
    assert read.recorded_at is not None
    assert replace(read, id="", revision=0, recorded_at=None) == price
    # Each of the terms is a change of its own.
    for change in (
        {"model": "volume"}, {"tiers": tiers[1:]}, {"included": Decimal(0)}, {"minimum": Decimal(51)},
    ):  # fmt: skip
        assert await keep(system_database, replace(price, **change)) == 1


async def test_nobody_but_an_organisation_commits_to_a_minimum(system_database: Database) -> None:
    with pytest.raises(DBAPIError, match="check constraint"):
        await keep(system_database, own_price(tenant="*", minimum=Decimal(1)))


async def test_a_correction_may_be_taken_back(system_database: Database, app_database: Database) -> None:
    price = own_price()
    wrong = replace(price, unit_price=Decimal(25))
    for version, expected in ((price, "2.5"), (wrong, "25"), (price, "2.5")):
        assert await keep(system_database, version) == 1
        assert await unit_price(app_database, price) == Decimal(expected)


async def test_two_instances_record_once(system_database: Database, other_system: Database) -> None:
    price = own_price()
    counts = await asyncio.gather(
        *(keep(database, price) for database in (system_database, other_system) * 3)
    )
    assert sorted(counts) == [0, 0, 0, 0, 0, 1]


async def test_a_price_of_one_tenant_is_hidden_from_others(
    system_database: Database, app_database: Database
) -> None:
    price = own_price()
    await keep(system_database, price)
    assert await unit_price(app_database, price) == Decimal("2.5")
    assert await unit_price(app_database, replace(price, tenant=new_id("org"))) is None


async def test_another_currency_is_refused(system_database: Database) -> None:
    await keep(system_database, own_price())
    with pytest.raises(PriceError, match="EUR, USD"):
        await keep(system_database, own_price(currency="EUR"))


async def test_the_book_is_append_only_for_every_role(system_database: Database) -> None:
    await keep(system_database, own_price())
    for statement in ("update price set unit_price = 0", "delete from price"):
        with pytest.raises(DBAPIError, match="permission denied"):
            async with system_database.writer() as connection:
                await connection.execute(text(statement))


async def test_list_prices_are_read_again_when_some_were_recorded(
    system_database: Database, app_database: Database
) -> None:
    kept, name = Books(), new_id("model")
    listed = own_price(tenant="*", dimensions=(("model", name),))
    own = replace(listed, tenant=new_id("org"), unit_price=Decimal(1))

    async def found(tenant_id: str) -> Decimal | None:
        with tenant(tenant_id):
            async with app_database.reader() as connection:
                book = await kept.of(connection, tenant_id)
        price = book.find(listed.meter, {"model": name}, datetime(2026, 1, 1, tzinfo=UTC))
        return None if price is None else price.unit_price

    other = new_id("org")
    assert [await found(one) for one in (own.tenant, other)] == [None, None]
    await keep(system_database, listed)
    assert [await found(one) for one in (own.tenant, other)] == [Decimal("2.5"), Decimal("2.5")]
    await keep(system_database, own)
    assert [await found(one) for one in (own.tenant, other)] == [Decimal(1), Decimal("2.5")]
    await keep(system_database, replace(listed, unit_price=Decimal(3)))
    assert [await found(one) for one in (own.tenant, other)] == [Decimal(1), Decimal(3)]
