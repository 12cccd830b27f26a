"""Corrected prices over closed periods (acceptance check 9 of metering and billing)."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from core.prices import Price, record
from core.settings import DatabaseSettings
from services.common.principal import Principal
from tests.servers import free_port, kill, start, stop
from tests.services.billing.conftest import Caller, Reply, Running, add_organisation, principal
from tests.services.billing.invoicing import DRAFT, INPUT, INVOICES, MARCH, NOON, Book
from tests.services.process import service

FIXES = "/api/v1/billing/price-fixes"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
async def books(
    owner: Caller,
    acme: Caller,
    other: Caller,
    system_database: Database,
    postgres: DatabaseSettings,
    topic_id: str,
) -> AsyncIterator[list[Book]]:
    """Three organisations; the first two have prices of their own, the third pays the list price."""
    third = acme.acting_as(principal(await add_organisation(system_database)))
    made = [
        Book(owner, one, system_database, postgres, f"{topic_id}-{n}")
        for n, one in enumerate((acme, other, third))
    ]
    for one in made[:2]:
        await price(system_database, one.of.tenant, "4")
    yield made
    async with system_database.writer() as connection:
        await connection.execute(
            text("delete from usage_watermark where starts_with(topic_id, :id)"), {"id": topic_id}
        )


async def price(system: Database, tenant: str, unit_price: str, meter: str = INPUT) -> None:
    """Record a tenant's price for a million units, or correct it."""
    async with system.writer() as connection:
        row = Price(tenant, meter, (), Decimal(unit_price), 1_000_000, "USD", LONG_AGO)
        await record(connection, [row])


async def closed(books: list[Book]) -> None:
    """March and April of each: 3 million units (12.00, 12.00 and 7.50) and 2 million (8.00, 8.00 and 5.00)."""
    for book in books:
        await book.use("3000000")
        await book.use("2000000", at=NOON.replace(month=4))
        for month in ("2026-03", "2026-04"):
            assert (await book.close(period=month)).status == 201


def tenants(books: list[Book]) -> list[str]:
    return [book.of.tenant for book in books]


async def post(owner: Caller, path: str, **body: Any) -> Reply:
    return await owner.call("POST", f"{FIXES}{path}", json=body)


async def propose(books: list[Book]) -> dict[str, Any]:
    answer = await post(books[0].owner, "", tenants=tenants(books))
    assert answer.status == 201, answer.json
    found: dict[str, Any] = answer.json
    return found


async def items(owner: Caller, fix: dict[str, Any]) -> list[Any]:
    """All of them, two at a time."""
    found: list[Any] = []
    after = ""
    while True:
        page = await owner.ask(f"{FIXES}/{fix['id']}/items", limit="2", after=after)
        found += page["data"]
        if not page["has_more"]:
            return found
        after = page["last_id"]


async def test_9_dry_run_approval_and_the_same_sum_once(books: list[Book], system_database: Database) -> None:
    owner, (first, second, third) = books[0].owner, books
    await closed(books)
    issued = [await book.raw("INV-000001") for book in books]
    await price(system_database, first.of.tenant, "3")
    await price(system_database, second.of.tenant, "4.5")
    fix = await propose(books)
    assert (fix["state"], fix["reasons"], fix["totals"], fix["items"]) == (
        "proposed",
        [],
        {"USD": "-2.50"},
        4,
    )
    assert [await book.numbers() for book in books] == [["INV-000001", "INV-000002"]] * 3, "it writes nothing"
    assert [(await book.of.ask(DRAFT))["total"] for book in books] == ["0.00"] * 3

    listed = await items(owner, fix)
    by_tenant = {book.of.tenant: name for book, name in zip(books, "123", strict=True)}
    assert sorted((by_tenant[one["tenant"]], one["adjusts"], one["total"]) for one in listed) == [
        ("1", "INV-000001", "-3.00"), ("1", "INV-000002", "-2.00"),
        ("2", "INV-000001", "1.50"), ("2", "INV-000002", "1.00"),
    ]  # fmt: skip
    (line,) = listed[0]["lines"]
    assert {line["before"]["unit_price"], line["after"]["unit_price"]} <= {"3", "4", "4.5"}
    assert line["quantity"] == "0"

    early = await post(owner, f"/{fix['id']}/apply", totals=fix["totals"])
    assert (early.status, early.json["code"]) == (409, "price_fix_not_approved")
    blind = await post(owner, f"/{fix['id']}/approve", totals={"USD": "-2.51"})
    assert blind.status == 422
    approved = await post(owner, f"/{fix['id']}/approve", totals=fix["totals"])
    assert (approved.status, approved.json["state"], approved.json["decided_by"]) == (
        200, "approved", owner.principal.subject,
    )  # fmt: skip

    done = await post(owner, f"/{fix['id']}/apply", totals=fix["totals"])
    assert (done.status, done.json["state"], done.json["posted"]) == (200, "applied", 4)
    posted = [await book.of.ask(INVOICES) for book in books]
    fixed = [one for page in posted for one in page["data"] if one["price_fix"] == fix["id"]]
    assert sum(Decimal(one["total"]) for one in fixed) == Decimal(fix["totals"]["USD"])
    assert [await book.total() for book in books] == [Decimal("15.00"), Decimal("22.50"), Decimal("12.50")]
    assert await third.numbers() == ["INV-000001", "INV-000002"], "who is not concerned has no new row"
    assert [(await book.raw("INV-000001"))[0] for book in books] == [one[0] for one in issued]

    again = await post(owner, f"/{fix['id']}/apply", totals=fix["totals"])
    assert (again.status, again.json["posted"]) == (200, 0)
    assert [await book.numbers() for book in books] == [
        [f"INV-{n:06}" for n in range(1, 5)], [f"INV-{n:06}" for n in range(1, 5)], ["INV-000001", "INV-000002"],
    ]  # fmt: skip
    assert (await propose(books))["items"] == 0


@pytest.mark.parametrize(
    ("unit_price", "state"), [("400000", "parked"), ("0.00004", "parked"), ("4.1", "proposed")]
)
async def test_a_price_that_slipped_is_parked_for_a_person(
    books: list[Book], system_database: Database, unit_price: str, state: str
) -> None:
    owner, book = books[0].owner, books[0]
    await closed([book])
    await price(system_database, book.of.tenant, unit_price)
    fix = await propose([book])
    assert fix["state"] == state
    if state == "proposed":
        return
    assert fix["reasons"] == ["price_ratio", "trailing_average"]
    for accept in ([], ["price_ratio"], ["trailing_average"]):
        refused = await post(owner, f"/{fix['id']}/approve", totals=fix["totals"], accept=accept)
        assert (refused.status, refused.json["code"]) == (409, "price_fix_parked")
    rejected = await post(owner, f"/{fix['id']}/reject", totals=fix["totals"])
    assert rejected.json["state"] == "rejected"
    for path in ("approve", "reject", "apply"):
        assert (
            await post(owner, f"/{fix['id']}/{path}", totals=fix["totals"], accept=fix["reasons"])
        ).status == 409
    assert await book.numbers() == ["INV-000001", "INV-000002"]


async def test_what_is_meant_is_accepted_by_name(books: list[Book], system_database: Database) -> None:
    owner, book = books[0].owner, books[0]
    await closed([book])
    await price(system_database, book.of.tenant, "400")
    fix = await propose([book])
    accepted = {"totals": fix["totals"], "accept": fix["reasons"]}
    assert (await post(owner, f"/{fix['id']}/approve", **accepted)).json["accepted"] == fix["reasons"]
    assert (await post(owner, f"/{fix['id']}/apply", totals=fix["totals"])).json["posted"] == 2
    assert await book.total() == Decimal("2000.00")


async def test_late_usage_and_a_fix_end_at_rating_from_scratch_in_any_order(
    books: list[Book], system_database: Database
) -> None:
    owner = books[0].owner
    for book, late_first in ((books[0], True), (books[1], False)):
        await closed([book])
        await book.use("1000000")
        await price(system_database, book.of.tenant, "3")
        fix = await propose([book])
        assert fix["totals"] == {"USD": "-6.00"}, "of 4 and 2 million units: late usage counts at both prices"
        await post(owner, f"/{fix['id']}/approve", totals=fix["totals"])
        if late_first:
            assert [one["total"] for one in await book.adjust()] == ["4.00"], "at the price that was charged"
        assert (await post(owner, f"/{fix['id']}/apply", totals=fix["totals"])).json["posted"] == 2
        if not late_first:
            (posted,) = await book.adjust()
            assert (posted["total"], posted["price_revision"]) == ("4.00", fix["price_revision"])
        assert await book.adjust() == []
        assert await book.total() == Decimal("18.00")
        await book.use("500000")
        assert [one["total"] for one in await book.adjust()] == ["1.50"], "at the price that was fixed"


async def test_a_fix_whose_periods_were_fixed_meanwhile_posts_nothing(
    books: list[Book], system_database: Database
) -> None:
    owner, book = books[0].owner, books[0]
    await closed([book])
    await price(system_database, book.of.tenant, "3")
    old = await propose([book])
    await price(system_database, book.of.tenant, "3.5")
    new = await propose([book])
    for fix in (old, new):
        assert (await post(owner, f"/{fix['id']}/approve", totals=fix["totals"])).status == 200
    assert (await post(owner, f"/{new['id']}/apply", totals=new["totals"])).json["posted"] == 2
    refused = await post(owner, f"/{old['id']}/apply", totals=old["totals"])
    assert (refused.status, refused.json["code"]) == (409, "price_fix_stale")
    assert await book.total() == Decimal("17.50")


async def test_two_fixes_applied_at_once_are_each_posted_whole_or_not_called_applied(
    books: list[Book], system_database: Database
) -> None:
    owner, book = books[0].owner, books[0]
    await closed([book])
    fixes = []
    for unit_price in ("3", "3.5"):
        await price(system_database, book.of.tenant, unit_price)
        fixes.append(await propose([book]))
        await post(owner, f"/{fixes[-1]['id']}/approve", totals=fixes[-1]["totals"])
    answers = await asyncio.gather(
        *(post(owner, f"/{fix['id']}/apply", totals=fix["totals"]) for fix in fixes)
    )
    assert {answer.status for answer in answers} <= {200, 409}
    documents = (await book.of.ask(INVOICES, limit="100"))["data"]
    posted = {fix["id"]: sum(one["price_fix"] == fix["id"] for one in documents) for fix in fixes}
    states = {fix["id"]: (await owner.ask(f"{FIXES}/{fix['id']}"))["state"] for fix in fixes}
    assert {posted[name] for name, state in states.items() if state == "applied"} <= {2}, (posted, states)
    assert sum(posted.values()) == 2, "each period once"


async def test_only_a_person_of_the_platform_decides(books: list[Book], system_database: Database) -> None:
    owner, book = books[0].owner, books[0]
    await closed([book])
    await price(system_database, book.of.tenant, "3")
    fix = await propose([book])
    key = owner.acting_as(
        Principal(
            tenant_id=owner.tenant, subject=new_id("key"), kind="api_key", platform_owner=True,
            scopes=owner.principal.scopes,
        )
    )  # fmt: skip
    refused = await post(key, f"/{fix['id']}/approve", totals=fix["totals"])
    assert (refused.status, refused.json["code"]) == (403, "person_required")
    biller = book.of.acting_as(
        Principal(
            tenant_id=book.of.tenant, subject=new_id("key"), kind="api_key", scopes=owner.principal.scopes
        )
    )
    assert (await post(biller, "", tenants="all")).json["code"] == "platform_owner_required"
    assert (await biller.ask(FIXES))["data"] == []
    for path in ("", "/items"):
        assert (await biller.get(f"{FIXES}/{fix['id']}{path}")).status == 404
    for path in ("/approve", "/reject", "/apply"):
        assert (await post(biller, f"/{fix['id']}{path}", totals=fix["totals"])).status == 404
    assert (await owner.get(f"{FIXES}/fix_none")).status == 404
    assert (await post(owner, "", tenants=["nobody"])).status == 404
    assert (await post(owner, "", tenants="some")).status == 422


async def test_usage_that_had_no_price_is_charged_by_a_fix(
    books: list[Book], system_database: Database
) -> None:
    owner, book = books[0].owner, books[0]
    await book.use("3000000")
    await book.use("2", meter="api.requests", route="/v1")
    await book.close(**MARCH)
    async with system_database.writer() as connection:
        await record(
            connection, [Price(book.of.tenant, "api.requests", (), Decimal("0.25"), 1, "USD", LONG_AGO)]
        )
    fix = await propose([book])
    assert fix["totals"] == {"USD": "0.50"}
    (item,) = await items(owner, fix)
    assert item["lines"][0]["before"] is None


async def test_a_fix_goes_on_where_its_process_died(
    books: list[Book], system_database: Database, billing: Running, tmp_path: Path
) -> None:
    """SIGKILL between two of its adjustments: the rest is posted once by whoever applies it again."""
    owner, book = books[0].owner, books[0]
    await closed(books[:2])
    await price(system_database, book.of.tenant, "3")
    await price(system_database, books[1].of.tenant, "3")
    fix = await propose(books[:2])
    await post(owner, f"/{fix['id']}/approve", totals=fix["totals"])
    component = service("billing", free_port(), billing.environment)
    process = await asyncio.to_thread(start, component, tmp_path / "log")
    instance = Running(component.address, billing.environment, tmp_path / "log")
    tables = Database(book.database, role="owner")
    async with tables.writer() as connection:
        await connection.execute(text("lock table invoice_copy in access exclusive mode"))
        asked = asyncio.create_task(
            owner.at(instance).call("POST", f"{FIXES}/{fix['id']}/apply", json={"totals": fix["totals"]})
        )
        async with asyncio.timeout(30):
            while sum([len(await one.numbers()) for one in books[:2]]) < 5:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
        await asyncio.to_thread(kill, process)
        with pytest.raises(aiohttp.ClientError):
            await asked
    await tables.close()
    await asyncio.to_thread(stop, component, process)
    assert (await owner.ask(f"{FIXES}/{fix['id']}"))["state"] == "approved"
    done = await post(owner, f"/{fix['id']}/apply", totals=fix["totals"])
    assert (done.json["state"], done.json["posted"]) == ("applied", 3)
    assert [await one.total() for one in books[:2]] == [Decimal("15.00"), Decimal("15.00")]
