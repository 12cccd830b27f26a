"""Closing service periods: what is issued, that it never changes, and who may."""

import asyncio
import csv
import hashlib
import io
import itertools
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, tenant
from core.ids import new_id
from core.prices import Price, record
from core.settings import DatabaseSettings
from services.common.principal import Principal
from tests.services.billing.conftest import Caller
from tests.services.billing.invoicing import DRAFT, INPUT, INVOICES, MARCH, NOON, OUTPUT, Book


@pytest.fixture
def book(
    owner: Caller, acme: Caller, system_database: Database, postgres: DatabaseSettings, topic_id: str
) -> Book:
    return Book(owner, acme, system_database, postgres, topic_id)


async def test_a_closed_month_is_an_invoice_that_says_what_it_rests_on(book: Book, acme: Caller) -> None:
    await book.use("18059974")
    await book.use("245896", meter=OUTPUT, at=NOON + timedelta(days=2))
    version = await book.use("3", meter="api.requests", route="/v1")
    await book.use("7", at=NOON + timedelta(days=31))
    version += 1
    answer = await book.close(**MARCH)
    invoice = answer.json
    assert answer.status == 201, invoice
    assert (invoice["object"], invoice["status"], invoice["number"], invoice["reason"]) == (
        "invoice", "final", "INV-000001", "service_period",
    )  # fmt: skip
    assert invoice["service_period"] == {
        "start": "2026-03-01T00:00:00.000Z",
        "end": "2026-04-01T00:00:00.000Z",
    }
    assert (invoice["unrounded"], invoice["total"], invoice["currency"]) == ("47.608895", "47.61", "USD")
    assert (invoice["lake_version"], invoice["slice"], invoice["tenant"]) == (version, version, acme.tenant)
    assert [(one["id"], one["meter"], one["quantity"], one["amount"]) for one in invoice["lines"]] == [
        (f"{invoice['id']}:1", INPUT, "18059974", "45.15"),
        (f"{invoice['id']}:2", OUTPUT, "245896", "2.46"),
    ]
    parts = invoice["lines"][0]["explanation"]["parts"]
    assert [(one["quantity"], one["unit_price"], one["amount_unrounded"]) for one in parts] == [
        ("18059974", "2.5", "45.149935")
    ]
    assert invoice["unpriced"] == [{"meter": "api.requests", "dimensions": {"route": "/v1"}, "quantity": "3"}]
    assert invoice["previous"] is None


async def test_the_draft_is_what_is_not_invoiced(book: Book, acme: Caller) -> None:
    await book.use("1000000")
    await book.use("4000000", at=NOON + timedelta(days=31))
    assert (await acme.ask(DRAFT))["total"] == "12.50"
    await book.close(**MARCH)
    draft = await acme.ask(DRAFT)
    assert (draft["total"], draft["adjustments"]) == ("10.00", [])
    assert draft["period"] == {"start": "2026-04-01T12:00:00.000Z", "end": "2026-04-01T13:00:00.000Z"}
    await book.close(period="2026-04")
    assert (await acme.ask(DRAFT))["lines"] == []
    assert (await acme.ask(DRAFT))["total"] == "0.00"


async def test_closing_again_gives_the_same_bytes(book: Book) -> None:
    await book.use("1000000")
    first = await book.close(**MARCH)
    content, headers = await book.raw("INV-000001")
    await book.use("5000000")
    again = await book.close(**MARCH)
    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json == json.loads(content)
    assert (await book.raw(first.json["id"]))[0] == content
    assert headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert (
        content
        == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


async def test_a_dry_run_issues_nothing(book: Book, acme: Caller) -> None:
    await book.use("1000000")
    shown = await book.close(**MARCH, dry_run=True)
    assert (shown.status, shown.json["status"], shown.json["total"]) == (200, "draft", "2.50")
    assert (await acme.ask(INVOICES))["data"] == []
    assert (await book.close(**MARCH)).json["number"] == "INV-000001"


async def test_documents_are_a_chain_and_a_list(book: Book, acme: Caller) -> None:
    for day in range(3):
        await book.use("1000000", at=NOON + timedelta(days=day))
    for day in range(1, 4):
        closed = await book.close(start=f"2026-03-0{day}T00:00:00Z", end=f"2026-03-0{day + 1}T00:00:00Z")
        assert closed.json["total"] == "2.50", closed.json
    listed = await acme.ask(INVOICES, limit="2")
    assert [one["number"] for one in listed["data"]] == ["INV-000003", "INV-000002"]
    assert listed["has_more"]
    rest = await acme.ask(INVOICES, limit="2", after=listed["last_id"])
    assert ([one["number"] for one in rest["data"]], rest["has_more"]) == (["INV-000001"], False)
    third = json.loads((await book.raw("INV-000003"))[0])
    assert third["previous"] == {"number": "INV-000002", "sha256": listed["data"][1]["sha256"]}


async def test_periods_are_cut_at_full_hours_and_never_overlap(book: Book) -> None:
    await book.use("1000000")
    await book.close(start="2026-03-01T10:00:00Z", end="2026-03-01T13:00:00Z")
    for named, code in (
        (MARCH, "period_overlaps"),
        ({"start": "2026-03-01T12:00:00Z", "end": "2026-03-01T14:00:00Z"}, "period_overlaps"),
        ({"start": "2026-03-01T12:30:00Z", "end": "2026-03-01T14:00:00Z"}, "invalid_request"),
        ({"start": "2026-03-02T12:00:00Z", "end": "2026-03-01T14:00:00Z"}, "invalid_request"),
        ({"start": "2026-03-02T12:00:00Z"}, "invalid_request"),
        ({"period": "2026-3"}, "invalid_request"),
        ({}, "invalid_request"),
        ({**MARCH, "start": "2026-03-02T12:00:00Z"}, "invalid_request"),
        ({"period": "2199-12"}, "period_not_over"),
    ):
        answer = await book.close(**named)
        assert (answer.status, answer.json["code"]) == (409 if "period_" in code else 422, code), named
    beside = await book.close(start="2026-03-01T13:00:00Z", end="2026-03-01T14:00:00Z")
    assert (beside.status, beside.json["total"], beside.json["lines"]) == (201, "0.00", [])


async def test_concurrent_closings_leave_no_gap_and_no_overlap(book: Book, acme: Caller) -> None:
    await book.use("1000000")
    hours = [(f"2026-03-01T{h:02}:00:00Z", f"2026-03-01T{h + 2:02}:00:00Z") for h in range(8, 16)]
    answers = await asyncio.gather(
        *(book.close(start=start, end=end) for start, end in hours for _ in range(2))
    )
    issued = [one.json for one in answers if one.status == 201]
    taken = sorted((one["service_period"]["start"], one["service_period"]["end"]) for one in issued)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(taken))
    assert {one.json.get("code") for one in answers if one.status == 409} <= {"period_overlaps", "busy"}
    listed = await acme.ask(INVOICES, order="asc")
    assert [one["number"] for one in listed["data"]] == [f"INV-{n:06}" for n in range(1, len(issued) + 1)]
    assert len(issued) >= 2


async def test_nobody_changes_an_issued_invoice(
    book: Book, acme: Caller, system_database: Database, app_database: Database
) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    before = await book.raw("INV-000001")
    statements = (
        "update invoice set total = 0 where tenant_id = :t",
        "delete from invoice where tenant_id = :t",
        "truncate invoice cascade",
    )
    for statement in statements:
        with pytest.raises(DBAPIError, match="permission denied"):
            async with system_database.writer() as connection:
                await connection.execute(text(statement), {"t": acme.tenant} if ":t" in statement else {})
        with pytest.raises(DBAPIError, match="permission denied"), tenant(acme.tenant):
            async with app_database.writer() as connection:
                await connection.execute(text(statement), {"t": acme.tenant} if ":t" in statement else {})
    assert (await book.raw("INV-000001"))[0] == before[0]


async def test_not_even_the_owner_of_the_tables_changes_one(book: Book, acme: Caller, postgres: Any) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    owner = Database(postgres, role="owner")
    try:
        for statement in ("update invoice set total = 0", "delete from invoice", "truncate invoice cascade"):
            async with owner.writer() as connection:
                # Forced row-level security hides rows from the owner too; it may switch that off.
                await connection.execute(text("alter table invoice no force row level security"))
                with pytest.raises(DBAPIError, match="never changes"):
                    await connection.execute(text(statement))
                await connection.rollback()
    finally:
        await owner.close()


async def test_an_invoice_as_a_table(book: Book) -> None:
    await book.use("1000000", model="=HYPERLINK(1)")
    await book.use("3", meter="api.requests", route="-1+cmd")
    await book.close(**MARCH)
    by_name, headers = await book.raw("INV-000001.csv")
    by_header, _ = await book.raw("INV-000001", accept="text/csv")
    assert by_name == by_header
    assert headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(by_name.decode())))
    assert [(one["meter"], one["quantity"], one["amount"]) for one in rows] == [
        (INPUT, "1000000", "2.50"),
        ("api.requests", "3", ""),
    ]
    assert all(not value.startswith(("=", "+", "-", "@")) for one in rows for value in one.values())


async def test_only_the_platform_closes_periods(book: Book, acme: Caller, other: Caller) -> None:
    await book.use("1000000")
    admin = Principal(tenant_id=acme.tenant, subject=new_id("usr"), kind="user", scopes=acme.principal.scopes)
    for path in (INVOICES, "/api/v1/billing/adjustments"):
        answer = await acme.acting_as(admin).call("POST", path, json=MARCH)
        assert (answer.status, answer.json["code"]) == (403, "missing_scope")
    biller = acme.acting_as(
        Principal(
            tenant_id=acme.tenant, subject=new_id("key"), kind="api_key", scopes=frozenset({"billing:write"})
        )
    )
    assert (await biller.call("POST", INVOICES, json=MARCH)).status == 201
    assert (await biller.call("POST", INVOICES, params={"tenant": other.tenant}, json=MARCH)).status == 404
    assert (await other.get(f"{INVOICES}/INV-000001")).status == 404
    assert (await other.get(f"{INVOICES}/INV-000001", tenant=acme.tenant)).status == 404
    for name in ("INV-1x", "inv_x", "INV-", "INV-99999999999999999999", "draft.csv", "%00"):
        assert (await acme.get(f"{INVOICES}/{name}")).status == 404, name


async def test_a_price_that_came_later_does_not_move_an_invoice(
    book: Book, acme: Caller, system_database: Database
) -> None:
    await book.use("1000000")
    await book.close(**MARCH)
    before, _ = await book.raw("INV-000001")
    async with system_database.writer() as connection:
        await record(
            connection,
            [Price(acme.tenant, INPUT, (), Decimal("9"), 1_000_000, "USD", datetime(2020, 1, 1, tzinfo=UTC))],
        )
    assert (await book.raw("INV-000001"))[0] == before
    assert await book.adjust() == []
    assert (await acme.ask(DRAFT))["total"] == "0.00", "a changed price is a price fix, not late usage"
