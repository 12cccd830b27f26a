"""Invoices as pages: the draft, what was issued, how each amount comes about, and the same as a table."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database, tenant
from core.ids import new_id
from services.common.principal import HEADER, Principal, sign
from tests.services.billing.conftest import usage_event
from tests.services.billing.published import fates, publish
from tests.services.web.conftest import Browser, Site, new_owner

COPIES = text(
    """
    with copies as (
        select i.*, n, convert_to(replace(replace(convert_from(document, 'UTF8'), :number,
            'INV-' || lpad(n::text, 6, '0')), :id, 'inv_f' || lpad(n::text, 3, '0')), 'UTF8') as bytes
        from invoice i, generate_series(2, 101) n
    ), counted as (update invoice_sequence set last = 101)
    insert into invoice (tenant_id, number, id, reason, period_start, period_end, generation, slice, lake_version,
        price_revision, code_version, currency, total, document, sha256, issued_by, issued_at)
    select tenant_id, n, 'inv_f' || lpad(n::text, 3, '0'), 'late_usage', period_start, period_end, generation, slice + n,
        lake_version, price_revision, code_version, currency, total, bytes, encode(sha256(bytes), 'hex'), issued_by,
        issued_at from copies
    """
)
"""A hundred documents behind one, as far as a list shows them."""
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Customer:
    """An organisation whose usage is published and whose periods the owner of the platform closes."""

    def __init__(self, http: aiohttp.ClientSession, site: Site, system: Database, tenant: str) -> None:
        self._http, self._site, self._system, self._tenant = http, site, system, tenant
        self._topic, self._used = new_id("top"), list[Any]()

    async def use(self, quantity: str) -> None:
        self._used.append(usage_event(self._tenant, time=NOON, quantity=quantity))
        await publish(
            self._system, topic_id=self._topic, counted=self._used, watermark={0: len(self._used)},
            fates=[fates(self._tenant, counted=len(self._used))],
        )  # fmt: skip

    async def bill(self, what: str) -> dict[str, Any]:
        owner = Principal("", new_id("usr"), "user", frozenset({"billing:write"}), platform_owner=True)
        key = bytes.fromhex(self._site.environment["HEADRACE_INTERNAL_KEY"])
        address = self._site.environment["HEADRACE_BILLING_URL"]
        async with self._http.post(
            f"{address}/api/v1/billing/{what}?tenant={self._tenant}",
            json={"period": "2026-03"},
            headers={HEADER: sign(owner, key)},
        ) as answer:
            assert answer.status in {200, 201}, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found


@pytest.fixture
async def customer(
    http: aiohttp.ClientSession, site: Site, browser: Browser, system_database: Database
) -> Customer:
    tenant, email = await new_owner(system_database)
    await browser.sign_in(email)
    return Customer(http, site, system_database, tenant)


async def test_a_draft_becomes_an_invoice_and_late_usage_an_adjustment(
    browser: Browser, customer: Customer
) -> None:
    await customer.use("4000000")
    draft = (await browser.get("/invoice")).text
    assert "10.00 USD" in draft
    assert "Nothing was issued yet." in draft
    issued = await customer.bill("invoices")
    page = (await browser.get("/invoice")).text
    assert re.findall(r'href="/invoices/([^"]+)">', page) == [issued["number"]]
    shown = (await browser.get(f"/invoices/{issued['number']}")).text
    assert "10.00 USD" in shown
    assert "Each unit at one price" in shown  # how the amount comes about
    await customer.use("400000")
    assert f'Adjusts <a href="/invoices/{issued["number"]}">' in (await browser.get("/invoice")).text
    (adjustment,) = (await customer.bill("adjustments"))["data"]
    shown = (await browser.get(f"/invoices/{adjustment['number']}")).text
    assert "1.00 USD" in shown
    assert "Charged before" in shown
    assert "As it is now" in shown
    assert (await browser.get(f"/invoices/{issued['number']}")).text.count("10.00 USD") == 1


async def test_issued_documents_go_on_behind_the_newest_100(
    browser: Browser, customer: Customer, app_database: Database
) -> None:
    await customer.use("4000000")
    issued = await customer.bill("invoices")
    with tenant(issued["tenant"]):
        async with app_database.writer() as connection:
            await connection.execute(COPIES, {"id": issued["id"], "number": issued["number"]})
    first = (await browser.get("/invoice")).text
    numbers = re.compile(r'<th scope="row"><a href="/invoices/(INV-\d+)">')
    assert numbers.findall(first) == [f"INV-{number:06d}" for number in range(101, 1, -1)]
    assert "Draft" in first
    (more,) = re.findall(r'href="(\?after=[^"]+)">More</a>', first)
    rest = (await browser.get("/invoice" + more)).text
    assert numbers.findall(rest) == [issued["number"]]
    assert ">More</a>" not in rest


async def test_the_table_says_what_the_page_says(browser: Browser, customer: Customer) -> None:
    await customer.use("4000000")
    issued = await customer.bill("invoices")
    table = await browser.get(f"/invoices/{issued['number']}.csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert f'filename="{issued["number"]}.csv"' in table.headers["content-disposition"]
    header, row = (line.split(",") for line in table.text.strip().splitlines())
    assert Decimal(dict(zip(header, row, strict=True))["amount"]) == Decimal("10.00")


async def test_nobody_reads_the_invoice_of_another(
    browser: Browser, customer: Customer, system_database: Database
) -> None:
    await customer.use("4000000")
    issued = await customer.bill("invoices")
    _, email = await new_owner(system_database)
    await browser.sign_in(email)
    for path in (
        f"/invoices/{issued['number']}",
        f"/invoices/{issued['id']}",
        f"/invoices/{issued['id']}.csv",
    ):
        assert (await browser.get(path)).status == 404, path
