"""Prices, the draft invoice and the invariants, as the service answers them."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from core.prices import Price, Tier, record
from services.common.principal import Principal
from tests.servers import free_port, start, stop
from tests.services.billing.conftest import Caller, Running, usage_event
from tests.services.billing.published import fates, publish
from tests.services.process import service

INPUT, OUTPUT = "llm.tokens.input", "llm.tokens.output"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DRAFT, PROOF = "/api/v1/billing/invoices/draft", "/api/v1/billing/invariants"


async def test_before_the_first_rollup_the_draft_has_no_lines(acme: Caller) -> None:
    draft = await acme.ask(DRAFT)
    assert draft["lines"] == draft["unpriced"] == []
    assert draft["period"] == {"start": None, "end": None}
    assert (draft["unrounded"], draft["total"], draft["currency"]) == ("0", "0.00", "USD")
    assert draft["tenant"] == acme.tenant


async def test_the_published_trace_is_billed_to_the_cent(
    acme: Caller, system_database: Database, topic_id: str
) -> None:
    counted = [
        usage_event(acme.tenant, time=NOON, quantity="18059974"),
        usage_event(acme.tenant, time=NOON + timedelta(hours=3, minutes=5), meter=OUTPUT, quantity="245000"),
        usage_event(acme.tenant, time=NOON - timedelta(days=700), meter=OUTPUT, quantity="896"),
        usage_event(acme.tenant, time=NOON, meter="api.requests", quantity="3", dimensions={"route": "/v1"}),
    ]
    version = await publish(system_database, topic_id=topic_id, counted=counted, watermark={0: 4})
    draft = await acme.ask(DRAFT)
    assert (draft["unrounded"], draft["total"], draft["currency"]) == ("47.608895", "47.61", "USD")
    assert [
        (one["meter"], one["quantity"], one["unit_price"], one["per"], one["amount_unrounded"], one["amount"])
        for one in draft["lines"]
    ] == [
        (INPUT, "18059974", "2.5", 1_000_000, "45.149935", "45.15"),
        (OUTPUT, "245896", "10", 1_000_000, "2.45896", "2.46"),
    ]
    assert draft["unpriced"] == [{"meter": "api.requests", "dimensions": {"route": "/v1"}, "quantity": "3"}]
    assert draft["period"] == {"start": "2024-03-31T12:00:00.000Z", "end": "2026-03-01T16:00:00.000Z"}
    assert (draft["lake_version"], draft["rounding"]) == (version, "line-half-up")


async def test_each_hour_is_billed_at_its_own_price(
    acme: Caller, system_database: Database, topic_id: str
) -> None:
    def own(unit_price: str, valid_from: datetime, **dimensions: str) -> Price:
        named = tuple(sorted(dimensions.items()))
        return Price(acme.tenant, INPUT, named, Decimal(unit_price), 1000, "USD", valid_from)

    async with system_database.writer() as connection:
        await record(
            connection,
            [own("1", datetime(2020, 1, 1, tzinfo=UTC)), own("2", NOON), own("5", NOON, model="m")],
        )
    counted = [
        usage_event(acme.tenant, time=NOON - timedelta(seconds=1), quantity="1000"),
        usage_event(acme.tenant, time=NOON, quantity="1000"),
        usage_event(acme.tenant, time=NOON + timedelta(hours=5), quantity="500", dimensions={"region": "eu"}),
        usage_event(acme.tenant, time=NOON, quantity="1000", dimensions={"model": "m"}),
        usage_event(acme.tenant, time=NOON - timedelta(hours=1), quantity="1", dimensions={"model": "m"}),
    ]
    await publish(system_database, topic_id=topic_id, counted=counted, watermark={0: 5})
    draft = await acme.ask(DRAFT)
    assert [(one["quantity"], one["unit_price"], one["dimensions"]) for one in draft["lines"]] == [
        ("1001", "1", {}),
        ("1500", "2", {}),
        ("1000", "5", {"model": "m"}),
    ]
    assert draft["unrounded"] == "9.001"


async def test_a_graduated_price_counts_a_month_together_and_explains_itself(
    acme: Caller, system_database: Database, topic_id: str
) -> None:
    """The month is cut at an edge of another price and still one quantity; the next begins anew."""
    tiers = (Tier(Decimal(15), Decimal(10)), Tier(None, Decimal(5), Decimal("0.005")))
    graduated = Price(
        acme.tenant, INPUT, (), Decimal(10), 1, "USD", datetime(2020, 1, 1, tzinfo=UTC),
        model="graduated", tiers=tiers, included=Decimal(1),
    )  # fmt: skip
    edge = Price(acme.tenant, OUTPUT, (), Decimal(1), 1, "USD", NOON)
    async with system_database.writer() as connection:
        await record(connection, [graduated, edge])
    counted = [
        usage_event(acme.tenant, time=NOON - timedelta(hours=2), quantity="10", dimensions={"model": "a"}),
        usage_event(acme.tenant, time=NOON + timedelta(days=3), quantity="7"),
        usage_event(acme.tenant, time=NOON + timedelta(days=31), quantity="3"),
    ]
    await publish(system_database, topic_id=topic_id, counted=counted, watermark={0: 3})
    march, april = (await acme.ask(DRAFT))["lines"]
    assert (march["quantity"], march["amount_unrounded"], march["amount"]) == ("17", "155.005", "155.01")
    assert march["explanation"] == {
        "model": "graduated",
        "quantity": "17",
        "period": {"start": "2026-03-01T00:00:00.000Z", "end": "2026-04-01T00:00:00.000Z"},
        "parts": [
            part("included", "1", "0", "0", "0.00"),
            part("tier", "15", "10", "150", "150.00", after="0", up_to="15"),
            part("tier", "1", "5", "5", "5.00", after="15"),
            part("fee", "1", "0.005", "0.005", "0.01", after="15"),
        ],
        "amount_unrounded": "155.005",
        "amount": "155.01",
        "rounding": "line-half-up",
    }
    assert (april["quantity"], april["amount"]) == ("3", "20.00")
    (shown,) = [one for one in (await acme.ask("/api/v1/prices"))["data"] if one["model"] == "graduated"]
    assert (shown["included"], shown["minimum"], shown["unit_price"]) == ("1", "0", "10")
    assert shown["tiers"] == [
        {"up_to": "15", "unit_price": "10", "fee": "0"},
        {"up_to": None, "unit_price": "5", "fee": "0.005"},
    ]


def part(
    what: str, quantity: str, unit_price: str, unrounded: str, amount: str, **tier: str
) -> dict[str, object]:
    return {
        "what": what, "quantity": quantity, "unit_price": unit_price, "per": 1, "amount_unrounded": unrounded,
        "amount": amount, "after": tier.get("after"), "up_to": tier.get("up_to"),
    }  # fmt: skip


async def test_the_price_book_shows_everybodys_and_ones_own(
    acme: Caller, other: Caller, system_database: Database
) -> None:
    mine = Price(
        acme.tenant, INPUT, (), Decimal("0.000000000001"), 1, "USD", datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2021, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    async with system_database.writer() as connection:
        await record(connection, [mine])
    prices = (await acme.ask("/api/v1/prices"))["data"]
    assert [(one["holds_for"], one["meter"], one["unit_price"], one["holds_now"]) for one in prices] == [
        ("everybody", "llm.tokens.cache_write", "2.5", True),
        ("everybody", INPUT, "2.5", True),
        ("everybody", OUTPUT, "10", True),
        ("you", INPUT, "0.000000000001", False),
    ]
    assert {one["holds_for"] for one in (await other.ask("/api/v1/prices"))["data"]} == {"everybody"}


async def test_the_price_book_is_asked_for_in_pages_and_by_model(
    acme: Caller, system_database: Database
) -> None:
    start, model = datetime(2020, 1, 1, tzinfo=UTC), new_id("model")
    mine = [
        Price(acme.tenant, meter, (("model", model), ("provider", f"p{n}")), Decimal(1), 1, "USD", start)
        for meter in (INPUT, OUTPUT)
        for n in range(3)
    ]
    async with system_database.writer() as connection:
        await record(connection, mine)
    found, after = list[dict[str, str]](), ""
    while True:
        page = await acme.ask("/api/v1/prices", model=model, limit="4", **({"after": after} if after else {}))
        found += [{"meter": one["meter"], **one["dimensions"]} for one in page["data"]]
        after = page["data"][-1]["id"]
        if not page["has_more"]:
            break
    assert found == [{"meter": price.meter, **dict(price.dimensions)} for price in mine]
    assert len((await acme.ask("/api/v1/prices", model=model, provider="p1"))["data"]) == 2
    assert len((await acme.ask("/api/v1/prices", model=model, meter=OUTPUT))["data"]) == 3
    assert (await acme.get("/api/v1/prices", after="price_1")).status == 404
    assert (await acme.get("/api/v1/prices", limit="0")).status == 422


async def test_the_invariants_show_every_fate_and_hold(
    acme: Caller, other: Caller, owner: Caller, system_database: Database, topic_id: str
) -> None:
    counted = [usage_event(acme.tenant, time=NOON) for _ in range(5)]
    await publish(
        system_database,
        topic_id=topic_id,
        counted=counted,
        watermark={0: 8, 1: 7},
        fates=[
            fates(acme.tenant, 0, counted=3, duplicates=2, quarantined=1),
            # Two events, one that was voided, its void, and a checkpoint.
            fates(acme.tenant, 1, counted=5, rejected=1, voids=1, checkpoints=1),
            fates("-", 0, rejected=2),
            fates(other.tenant, 1, duplicates=1),
        ],
    )
    proof = await acme.ask(PROOF)
    assert proof["holds"], proof
    assert proof["totals"] == {
        "landed": 12, "counted": 8, "duplicates": 2, "quarantined": 1, "rejected": 1, "voids": 1, "checkpoints": 1,
    }  # fmt: skip
    assert [(one["topic_id"], one["partition"], one["landed"]) for one in proof["partitions"]] == [
        (topic_id, 0, 6),
        (topic_id, 1, 6),
    ]
    assert (await owner.ask(PROOF, tenant=acme.tenant))["totals"] == proof["totals"]
    everything = await owner.ask(PROOF)
    mine = [one for one in everything["partitions"] if one["topic_id"] == topic_id]
    assert [(one["partition"], one["landed"], one["rejected"]) for one in mine] == [(0, 8, 2), (1, 7, 1)]
    assert (await other.ask(PROOF))["totals"]["duplicates"] == 1
    assert (await other.get(PROOF, tenant=acme.tenant)).status == 404


def broken(proof: dict[str, object]) -> list[object]:
    checks = proof["checks"]
    assert isinstance(checks, list)
    return [one["name"] for one in checks if not one["holds"]]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            "delete from usage_cell where tenant_id = :t and grain = 'day'",
            [
                "daily cells hold every counted event that was not voided",
                "hours and days add up to the same quantities",
            ],
        ),
        (
            "update usage_cell set quantity = quantity + 0.000000001 where tenant_id = :t and grain = 'hour'",
            ["hours and days add up to the same quantities"],
        ),
        (
            "update usage_conservation set landed = landed + 1, counted = counted + 1 where tenant_id = :t",
            [
                "hourly cells hold every counted event that was not voided",
                "daily cells hold every counted event that was not voided",
            ],
        ),
    ],
)
async def test_a_broken_invariant_is_named(
    acme: Caller, system_database: Database, topic_id: str, change: str, names: list[str]
) -> None:
    await publish(
        system_database,
        topic_id=topic_id,
        counted=[usage_event(acme.tenant, time=NOON)],
        watermark={0: 1},
        fates=[fates(acme.tenant, counted=1)],
    )
    assert (await acme.ask(PROOF))["holds"] is True
    async with system_database.writer() as connection:
        await connection.execute(text(change), {"t": acme.tenant})
    proof = await acme.ask(PROOF)
    assert proof["holds"] is False
    assert broken(proof) == names


async def test_the_owner_sees_an_offset_that_never_landed(
    owner: Caller, system_database: Database, topic_id: str
) -> None:
    async with system_database.writer() as connection:
        for table in ("usage_watermark", "usage_conservation"):
            await connection.execute(text(f"delete from {table}"))
    missing = "every offset below the watermark has landed or is booked as lost"
    await publish(system_database, topic_id=topic_id, watermark={0: 1}, fates=[fates("-", rejected=1)])
    assert missing not in broken(await owner.ask(PROOF))
    await publish(system_database, topic_id=topic_id, watermark={0: 2})
    assert missing in broken(await owner.ask(PROOF))


async def test_money_needs_its_scope(acme: Caller) -> None:
    sender = Principal(
        tenant_id=acme.tenant, subject="key_1", kind="api_key", scopes=frozenset({"usage:write"})
    )
    for path in (DRAFT, PROOF, "/api/v1/prices", "/api/v1/usage"):
        answer = await acme.acting_as(sender).get(path)
        assert (answer.status, answer.json["code"]) == (403, "missing_scope")


async def test_foreign_organisations_have_no_money(acme: Caller, other: Caller) -> None:
    for path in (DRAFT, PROOF, "/api/v1/prices"):
        assert (await other.get(path, tenant=acme.tenant)).status == 404


async def test_instances_that_start_together_record_a_changed_price_once(
    acme: Caller, billing: Running, tmp_path: Path, system_database: Database
) -> None:
    tenant = new_id("org")
    book = tmp_path / "prices.toml"
    shipped = (Path(__file__).parents[3] / "deploy" / "prices.toml").read_text()
    book.write_text(
        f'{shipped}\n[[price]]\ntenant = "{tenant}"\nmeter = "{INPUT}"\nunit_price = "1"\nper = 1\n'
        "valid_from = 2026-01-01T00:00:00Z\n"
    )
    variables = {**billing.environment, "HEADRACE_PRICES_FILE": str(book)}
    instances = [service("billing", free_port(), variables) for _ in range(2)]
    processes = await asyncio.gather(
        *(asyncio.to_thread(start, one, tmp_path / one.address[-5:]) for one in instances)
    )
    for one, process in zip(instances, processes, strict=True):
        stop(one, process)
    async with system_database.reader() as connection:
        rows = await connection.execute(
            text("select unit_price from price where tenant_id = :t"), {"t": tenant}
        )
        assert rows.scalars().all() == [1]
        published = await connection.scalar(
            text("select count(*) from outbox where topic = 'audit.logs' and tenant_id = :t"), {"t": tenant}
        )
    assert published == 1, "and said so once"


def test_a_book_that_cannot_be_used_ends_the_start(billing: Running, tmp_path: Path) -> None:
    book = tmp_path / "prices.toml"
    book.write_text('currency = "USD"\n[[price]]\nmeter = "llm.tokens"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "services.billing"],
        env={**billing.environment, "HEADRACE_PRICES_FILE": str(book), "HEADRACE_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "price 1 (llm.tokens)" in ended.stderr
    assert "Traceback" not in ended.stderr
