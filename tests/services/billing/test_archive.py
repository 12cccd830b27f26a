"""Crash point 16: PostgreSQL is put back to an earlier time, and what was issued since is found again."""

import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from core.database import Database
from core.invoices.archive import BUCKET, Archive, key_of
from core.invoices.document import DocumentError, decode
from core.objects import open_objects
from core.objects.api import ObjectStore
from core.prices import Price, record
from core.settings import DatabaseSettings, ObjectSettings
from tests.services.billing.conftest import Caller, Running
from tests.services.billing.invoicing import DRAFT, INPUT, MARCH, NOON, Book

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
async def objects(billing: Running, postgres: DatabaseSettings) -> AsyncIterator[ObjectStore]:
    settings = ObjectSettings(objects_url=billing.environment["HEADRACE_OBJECTS_URL"])
    async with open_objects(settings, postgres) as store:
        yield store


@pytest.fixture
def archive(objects: ObjectStore, system_database: Database) -> Archive:
    return Archive(objects, system_database)


@pytest.fixture
def book(
    owner: Caller, acme: Caller, system_database: Database, postgres: DatabaseSettings, topic_id: str
) -> Book:
    return Book(owner, acme, system_database, postgres, topic_id)


async def put_back(database: DatabaseSettings, tenant: str, last: int) -> None:
    """PostgreSQL as it was when the tenant had `last` documents, with the index of the objects' folder."""
    owner = Database(database, role="owner")
    async with owner.writer() as connection:
        for statement in (
            "alter table invoice disable trigger issued_never_changes",
            *(
                f"alter table {table} no force row level security"
                for table in ("invoice", "invoice_copy", "invoice_sequence")
            ),
            "delete from invoice_copy where tenant_id = :t and number > :n",
            "delete from invoice where tenant_id = :t and number > :n",
            "update invoice_sequence set last = :n where tenant_id = :t",
            *(
                f"alter table {table} force row level security"
                for table in ("invoice", "invoice_copy", "invoice_sequence")
            ),
            "alter table invoice enable trigger issued_never_changes",
        ):
            await connection.execute(text(statement), {"t": tenant, "n": last} if ":t" in statement else {})
    await owner.close()
    system = Database(database, role="system")
    async with system.writer() as connection:
        await connection.execute(
            text(
                "delete from object_version where bucket = 'invoices' and starts_with(key, :t || '/')"
                " and split_part(key, '/', 2) > lpad((cast(:n as bigint) + 1)::text, 8, '0')"
            ),
            {"t": tenant, "n": last},
        )
    await system.close()


async def put_prices_back(database: DatabaseSettings, tenant: str, revision: int) -> None:
    """The price book as it was at `revision`, when the tenant's later prices were not recorded yet."""
    owner = Database(database, role="owner")
    async with owner.writer() as connection:
        for statement in ("alter table price no force row level security",
                          "delete from price where tenant_id = :t and revision > :r",
                          "alter table price force row level security",
                          "select setval('price_revision_seq', :r)"):  # fmt: skip
            await connection.execute(
                text(statement), {"t": tenant, "r": revision} if ":r" in statement else {}
            )
    await owner.close()


async def price(system: Database, tenant: str, unit_price: str) -> int:
    """Record the tenant's price for a million units, or correct it; the book's last revision."""
    async with system.writer() as connection:
        await record(connection, [Price(tenant, INPUT, (), Decimal(unit_price), 1_000_000, "USD", LONG_AGO)])
        revision: int = await connection.scalar(text("select max(revision) from price"))
    return revision


def settle(billing: Running) -> Path:
    """Make the blobs of the archive older than a put can take; the folder they lie in."""
    folder = Path(urlsplit(billing.environment["HEADRACE_OBJECTS_URL"]).path) / "blobs" / BUCKET
    before = time.time() - 3600
    for path in folder.rglob("*"):
        os.utime(path, (before, before))
    return folder


async def test_issued_documents_are_put_back_byte_for_byte(
    book: Book, acme: Caller, archive: Archive, billing: Running, postgres: DatabaseSettings
) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    await book.use("2000000")
    await book.adjust()
    await book.use("3000000", at=NOON.replace(month=4))
    await book.close(period="2026-04")
    issued = [await book.raw(number) for number in await book.numbers()]
    settle(billing)
    await put_back(postgres, acme.tenant, 1)
    assert await book.numbers() == ["INV-000001"]

    refused = await book.close(period="2026-04")
    assert (refused.status, refused.json["code"]) == (409, "archive_ahead")
    assert "headrace invoices readopt" in refused.json["detail"]

    found = await archive.readopt()
    assert found.adopted == (f"{acme.tenant} INV-000002", f"{acme.tenant} INV-000003")
    assert found.conflicts == ()
    assert [(await book.raw(number))[0] for number in await book.numbers()] == [one[0] for one in issued]
    assert (await archive.readopt()).adopted == ()
    again = await book.close(period="2026-04")
    assert (again.status, again.json["number"]) == (200, "INV-000003")
    assert await book.adjust() == [], "nothing is doubled"
    assert (await book.close(period="2026-05")).json["number"] == "INV-000004"


async def test_a_period_is_not_charged_at_prices_from_before_those_it_was_charged_at(
    book: Book, acme: Caller, archive: Archive, billing: Running, postgres: DatabaseSettings, system_database: Database
) -> None:  # fmt: skip
    old = await price(system_database, acme.tenant, "2")
    new = await price(system_database, acme.tenant, "3")
    await book.use("1000000")
    assert (await book.close(**MARCH)).json["price_revision"] == new
    settle(billing)
    await put_back(postgres, acme.tenant, 0)
    await put_prices_back(postgres, acme.tenant, old)
    await archive.readopt()
    await book.use("1000000")
    adjust = {"params": {"tenant": acme.tenant}, "json": {"period": "all"}}
    for refused in (
        await acme.call("GET", DRAFT),
        await book.owner.call("POST", "/api/v1/billing/adjustments", **adjust),
        await book.owner.call("POST", "/api/v1/billing/price-fixes", json={"tenants": [acme.tenant]}),
    ):
        assert (refused.status, refused.json["code"]) == (409, "prices_went_back")
        assert "INV-000001" in refused.json["detail"]
    another = await book.close(period="2026-04")
    assert (another.status, another.json["code"]) == (409, "prices_went_back")

    await price(system_database, acme.tenant, "2.5")
    assert (await acme.call("GET", DRAFT)).status == 409, "no other price is taken for it"
    again = await price(system_database, acme.tenant, "3")
    assert again > new + 1, "a revision that a document names is not given out again"
    (posted,) = await book.adjust()
    assert (posted["total"], posted["price_revision"]) == ("3.00", again)
    assert await book.total() == Decimal("6.00")
    assert await book.adjust() == []
    fix = await book.owner.call("POST", "/api/v1/billing/price-fixes", json={"tenants": [acme.tenant]})
    assert (fix.status, fix.json["items"]) == (201, 0)


async def test_a_damaged_copy_is_named_and_not_adopted(
    book: Book, acme: Caller, archive: Archive, objects: ObjectStore, postgres: DatabaseSettings
) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    content, _ = await book.raw("INV-000001")
    (key,) = [item.key async for item in objects.list(BUCKET, f"{acme.tenant}/")]
    await put_back(postgres, acme.tenant, 0)
    await objects.put(BUCKET, key, content.replace(b'"total":"2.50"', b'"total":"2.51"'))
    with pytest.raises(DocumentError, match=key):
        await archive.readopt()
    assert await book.numbers() == []
    await objects.delete(BUCKET, key)


async def test_a_number_that_was_given_to_another_document_is_a_conflict(
    book: Book, acme: Caller, archive: Archive, objects: ObjectStore
) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    content, _ = await book.raw("INV-000001")
    other = content.replace(b'"total":"2.50"', b'"total":"2.51"')
    key = key_of(decode(other), other)
    await objects.put(BUCKET, key, other)
    found = await archive.readopt()
    assert found.conflicts == (f"{acme.tenant} INV-000001",)
    await objects.delete(BUCKET, key)
    assert (await book.raw("INV-000001"))[0] == content


async def test_a_document_without_its_copy_is_copied_later(
    book: Book, acme: Caller, archive: Archive, objects: ObjectStore, postgres: DatabaseSettings
) -> None:
    """As after a crash between the commit and the copy."""
    await book.use("1000000")
    await book.close(**MARCH)
    owner = Database(postgres, role="owner")
    async with owner.writer() as connection:
        await connection.execute(text("alter table invoice_copy no force row level security"))
        await connection.execute(text("delete from invoice_copy where tenant_id = :t"), {"t": acme.tenant})
        await connection.execute(text("alter table invoice_copy force row level security"))
    await owner.close()
    (key,) = [item.key async for item in objects.list(BUCKET, f"{acme.tenant}/")]
    await objects.delete(BUCKET, key)
    await archive.copy()
    content, _ = await book.raw("INV-000001")
    assert await objects.get(BUCKET, key) == content
