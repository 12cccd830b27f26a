"""Usage that lands after its period was closed (acceptance check 8 of metering and billing)."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database
from core.prices import Price, PriceBook, Tier, record
from core.rating import ServicePeriod, Usage, rate
from core.settings import DatabaseSettings
from tests.servers import free_port, kill, start, stop
from tests.services.billing.conftest import Caller, Running
from tests.services.billing.invoicing import DRAFT, INPUT, MARCH, NOON, OUTPUT, Book
from tests.services.process import service

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def book(
    owner: Caller, acme: Caller, system_database: Database, postgres: DatabaseSettings, topic_id: str
) -> Book:
    return Book(owner, acme, system_database, postgres, topic_id)


async def volume(system: Database, tenant: str, meter: str = INPUT) -> Price:
    """10 a unit up to 15 units, 5 a unit for all of them beyond."""
    price = Price(
        tenant, meter, (), Decimal(10), 1, "USD", LONG_AGO, model="volume",
        tiers=(Tier(Decimal(15), Decimal(10)), Tier(None, Decimal(5))),
    )  # fmt: skip
    async with system.writer() as connection:
        await record(connection, [price])
    return price


async def test_8_the_sixteenth_unit_of_a_volume_price_comes_late(
    book: Book, acme: Caller, system_database: Database
) -> None:
    await volume(system_database, acme.tenant)
    await book.use("15")
    closed = (await book.close(**MARCH)).json
    before, _ = await book.raw("INV-000001")
    assert closed["total"] == "150.00"
    await book.use("1", at=NOON + timedelta(days=3))

    draft = await acme.ask(DRAFT)
    assert (draft["total"], draft["lines"]) == ("-70.00", [])
    assert [one["adjusts"] for one in draft["adjustments"]] == ["INV-000001"]

    (posted,) = await book.adjust()
    assert (posted["object"], posted["reason"], posted["adjusts"]) == (
        "adjustment",
        "late_usage",
        "INV-000001",
    )
    assert posted["service_period"] == closed["service_period"]
    assert (posted["unrounded"], posted["total"]) == ("-70", "-70.00")
    (line,) = posted["lines"]
    assert (line["quantity"], line["amount"], line["explanation"]) == ("1", "-70.00", None)
    assert (line["before"]["quantity"], line["before"]["amount"]) == ("15", "150.00")
    assert (line["after"]["quantity"], line["after"]["amount"]) == ("16", "80.00")
    assert line["after"]["explanation"]["parts"][0]["unit_price"] == "5"
    assert posted["since_slice"] == closed["slice"] < posted["slice"]

    assert await book.adjust() == [], "running it twice posts once"
    assert (await acme.ask(DRAFT))["total"] == "0.00"
    assert (await book.raw("INV-000001"))[0] == before, "the issued invoice is what it was"
    assert await book.total() == Decimal("80.00"), "the customer pays what rating from scratch says"


async def test_many_late_pieces_end_at_what_rating_from_scratch_says(
    book: Book, acme: Caller, system_database: Database
) -> None:
    """Seeded random late usage over two closed periods and two meters, one with a volume price."""
    pick = random.Random(8)
    price = await volume(system_database, acme.tenant, OUTPUT)
    quantities: dict[tuple[str, int], Decimal] = {}
    for round_ in range(6):
        for _ in range(4):
            meter, days = pick.choice([INPUT, OUTPUT]), pick.choice([0, 31])
            quantity = Decimal(pick.randrange(1, 9)) + Decimal(pick.randrange(1000)) / 1000
            await book.use(
                str(quantity), at=NOON + timedelta(days=days, hours=pick.randrange(40)), meter=meter
            )
            quantities[meter, days] = quantities.get((meter, days), Decimal(0)) + quantity
        if round_ == 0:
            await book.close(**MARCH)
            await book.close(period="2026-04")
        else:
            await book.adjust()
            assert await book.adjust() == []
    listed = Price("*", INPUT, (), Decimal("2.5"), 1_000_000, "USD", LONG_AGO)
    expected = Decimal(0)
    for days, month in ((0, 3), (31, 4)):
        period = ServicePeriod(datetime(2026, month, 1, tzinfo=UTC), datetime(2026, month + 1, 1, tzinfo=UTC))
        usage = [
            Usage(meter, {}, NOON + timedelta(days=days), quantity)
            for (meter, when), quantity in quantities.items()
            if when == days
        ]
        expected += rate(usage, PriceBook(acme.tenant, [price, listed]), period).total
    assert await book.total() == expected


async def test_usage_made_anew_at_the_same_slice_and_prices_posts_its_difference(
    book: Book, acme: Caller, system_database: Database
) -> None:
    """A promoted replay changes what a slice holds, not its number: the generation tells the two apart."""
    await book.use("1000000")
    await book.close(**MARCH)
    await book.use("2000000")
    (late,) = await book.adjust()
    version = await book.use("4000000")
    async with system_database.writer() as connection:
        await connection.execute(
            text(
                "insert into usage_publication (lake_version, slice, code_version, generation) "
                "values (:version, :slice, 'test', 2)"
            ),
            {"version": version + 1_000_000, "slice": late["slice"]},
        )
    try:
        (again,) = await book.adjust()
        assert await book.adjust() == []
    finally:
        owner = Database(book.database, role="owner")
        async with owner.writer() as connection:
            await connection.execute(text("delete from usage_publication where generation = 2"))
        await owner.close()
    assert (again["generation"], again["slice"], again["price_revision"]) == (
        2,
        late["slice"],
        late["price_revision"],
    )
    assert (late["generation"], await book.total()) == (1, Decimal("17.50"))


async def test_two_adjusters_at_once_post_once(book: Book, acme: Caller) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    await book.use("2000000")
    posted = await asyncio.gather(*(book.adjust() for _ in range(6)))
    assert sum(len(one) for one in posted) == 1
    assert await book.total() == Decimal("7.50")


async def test_usage_without_a_price_posts_nothing_and_is_shown(book: Book, acme: Caller) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    await book.use("5", meter="api.requests", route="/v1")
    assert await book.adjust() == []
    assert (await acme.ask(DRAFT))["total"] == "0.00"


async def test_what_is_left_of_a_month_is_rated_as_its_own_period(
    book: Book, acme: Caller, system_database: Database
) -> None:
    """Tiers begin anew with each service period; a month of which a part is closed leaves one of its own."""
    await volume(system_database, acme.tenant)
    await book.use("10")
    await book.close(start="2026-03-01T00:00:00Z", end="2026-03-10T00:00:00Z")
    await book.use("14", at=NOON + timedelta(days=20))
    draft = await acme.ask(DRAFT)
    assert draft["total"] == "140.00", "14 units at 10: not 24 at 5, of which 10 are invoiced"
    rest = await book.close(start="2026-03-10T00:00:00Z", end="2026-04-01T00:00:00Z")
    assert rest.json["total"] == "140.00"


async def test_a_period_that_was_never_closed_has_no_adjustment(book: Book) -> None:
    await book.use("1")
    answer = await book.owner.call(
        "POST", "/api/v1/billing/adjustments", params={"tenant": book.of.tenant}, json=MARCH
    )
    assert (answer.status, answer.json["code"]) == (409, "not_invoiced")


async def test_published_usage_that_went_back_adjusts_nothing(
    book: Book, acme: Caller, system_database: Database
) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    async with system_database.writer() as connection:
        await connection.execute(
            text(
                "insert into usage_publication (lake_version, slice, code_version) values (1000000000, 0, 'test')"
            )
        )
    answer = await book.owner.call(
        "POST", "/api/v1/billing/adjustments", params={"tenant": acme.tenant}, json={"period": "all"}
    )
    owner = Database(book.database, role="owner")
    async with owner.writer() as connection:
        await connection.execute(text("delete from usage_publication where lake_version = 1000000000"))
    await owner.close()
    assert (answer.status, answer.json["code"]) == (409, "published_went_back")


@pytest.fixture
async def mortal(billing: Running, tmp_path: Path) -> AsyncIterator[tuple[Running, Any]]:
    """A second instance that may be killed."""
    component = service("billing", free_port(), billing.environment)
    process = await asyncio.to_thread(start, component, tmp_path / "log")
    yield Running(component.address, billing.environment, tmp_path / "log"), process
    await asyncio.to_thread(stop, component, process)


async def test_crash_point_17_an_adjustment_is_posted_and_the_process_dies(
    book: Book, acme: Caller, mortal: tuple[Running, Any], system_database: Database
) -> None:
    """The copy into the archive comes between the commit and the answer: held up there, SIGKILL."""
    instance, process = mortal
    await book.use("1000000")
    await book.close(**MARCH)
    await book.use("2000000")
    owner = Database(book.database, role="owner")
    async with owner.writer() as connection:
        await connection.execute(text("lock table invoice_copy in access exclusive mode"))
        asked = asyncio.create_task(
            book.owner.at(instance).call(
                "POST", "/api/v1/billing/adjustments", params={"tenant": acme.tenant}, json={"period": "all"}
            )
        )
        async with asyncio.timeout(30):
            while len(await book.numbers()) < 2:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
        assert not asked.done(), "posted, and not answered"
        await asyncio.to_thread(kill, process)
        with pytest.raises(aiohttp.ClientError):
            await asked
    await owner.close()
    assert await book.adjust() == []
    assert await book.numbers() == ["INV-000001", "INV-000002"]
    assert await book.total() == Decimal("7.50")
