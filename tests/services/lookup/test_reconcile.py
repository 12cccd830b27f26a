"""The reconciliation of a month: what was sent, as an oracle counted it, to what is charged, without a difference."""

import csv
import sys
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from core.decimals import total
from tests.services.lookup.world import CLOSED, ELEMENTS, MONTH, NEXT_MONTH, World

pytestmark = pytest.mark.timeout(1200)

REPORT = "/api/v1/billing/reconciliation"


def report(world: World, tenant: str, month: str = MONTH) -> Any:
    return world.on.call("GET", f"{REPORT}/{month}", tenant=tenant)


def test_every_difference_is_explained_to_zero(world: World) -> None:
    for tenant in world.tenants:
        found = report(world, tenant)
        records, money = found["records"], found["money"]
        sent = {
            fate: world.records[tenant, CLOSED.month, fate]
            for fate in ("counted", "duplicate", "quarantined", "void")
        }
        assert (records["counted"], records["duplicates"], records["quarantined"], records["voids"]) == (
            sent["counted"] + sent["void"], sent["duplicate"], sent["quarantined"], sent["void"],
        )  # fmt: skip
        assert records["landed"] == sum(sent.values()), "rubbish has no time: it belongs to when it came"
        assert records["events"] == records["published"] == sent["counted"] - sent["void"]
        assert {one["difference"] for one in found["usage"]} == {"0"}
        assert {one["meter"] for one in found["usage"]} >= {*ELEMENTS}
        documents = world.documents(tenant)
        assert [one["number"] for one in found["documents"]] == [one["number"] for one in documents]
        charged = total(Decimal(money[name]) for name in ("invoiced", "late_usage", "price_fixes"))
        assert charged == total(Decimal(one["total"]) for one in documents)
        assert Decimal(money["price_fixes"]) > 0
        assert Decimal(money["rated"]) == charged + Decimal(money["not_invoiced"])
        assert (found["reconciled"], money["difference"]) == (True, "0")
        draft = world.on.call("GET", "/api/v1/billing/invoices/draft", tenant=tenant)
        assert Decimal(money["not_invoiced"]) == total(Decimal(one["total"]) for one in draft["adjustments"])
        april = report(world, tenant, NEXT_MONTH)
        assert (april["reconciled"], april["documents"]) == (True, [])
        assert Decimal(april["money"]["not_invoiced"]) == Decimal(april["money"]["rated"]) > 0
        assert april["unpriced"]
    sys.stdout.write(f"{len(world.tenants)} organisations, 2 months: every difference is 0\n")


def test_a_cell_that_is_not_what_landed_leaves_a_difference(world: World) -> None:
    """The report is able to fail."""
    tenant, site = world.tenants[0], world.on.site
    where = (
        "where ctid = (select ctid from usage_cell where tenant_id = %s and grain = 'hour' and meter = 'llm.tokens.input' "
        f"and period_start >= '{MONTH}-01Z' and period_start < '{NEXT_MONTH}-01Z' limit 1)"
    )
    place = site.sql(
        f"update usage_cell set quantity = quantity + 1000000 {where} returning period_start, dimensions_key",
        [tenant],
    )[0]
    try:
        found = report(world, tenant)
        (wrong,) = (one for one in found["usage"] if one["difference"] != "0")
        assert (found["reconciled"], wrong["meter"], wrong["difference"]) == (
            False,
            "llm.tokens.input",
            "-1000000",
        )
        assert Decimal(found["money"]["difference"]) < 0
    finally:
        site.sql(
            "update usage_cell set quantity = quantity - 1000000 where tenant_id = %s and grain = 'hour' "
            "and meter = 'llm.tokens.input' and period_start = %s and dimensions_key = %s",
            [tenant, *place],
        )
    assert report(world, tenant)["reconciled"]


def test_the_table_says_what_the_document_says(world: World) -> None:
    tenant = world.tenants[0]
    found = report(world, tenant)
    answer = httpx2.get(f"{world.on.billing}{REPORT}/{MONTH}.csv", headers=world.on.headers(tenant))
    assert answer.headers["content-type"].startswith("text/csv")
    header, *rows = csv.reader(answer.text.splitlines())
    assert header == ["section", "item", "meter", "value", "unit"]
    values = {(row[0], row[1], row[2]): row[3] for row in rows}
    assert values["records", "landed", ""] == str(found["records"]["landed"])
    assert values["money", "not_invoiced", ""] == found["money"]["not_invoiced"]
    assert values["result", "reconciled", ""] == "yes"


def test_another_month_and_another_organisation(world: World) -> None:
    tenant = world.tenants[0]
    world.on.call("GET", f"{REPORT}/2026-13", tenant=tenant, status=422)
    empty = report(world, tenant, "2025-12")
    assert (empty["reconciled"], empty["records"]["landed"], empty["documents"]) == (True, 0, [])
    stranger = world.on.call(
        "GET", f"{REPORT}/{MONTH}", tenant=tenant, params={"tenant": world.tenants[1]}, status=404
    )
    assert stranger["code"] == "not_found"
