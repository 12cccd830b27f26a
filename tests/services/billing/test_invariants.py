"""Where every record went: by partition, organisation and month, over HTTP and as a metric."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from core.conservation import PERIOD
from core.database import Database
from core.invoices.periods import month
from services.billing.invariants import HOLDS, OWNED, RECORDS, Invariants, show
from tests.services.billing.conftest import Caller, usage_event
from tests.services.billing.published import fates, publish

PROOF = "/api/v1/billing/invariants"
LAST_HOUR = datetime(2025, 3, 31, 23, 30, tzinfo=UTC)
METER = "llm.tokens.input"


async def published(acme: Caller, system: Database, topic_id: str) -> int:
    """Two events in March, one in April, and a record that could not be read."""
    counted = [
        usage_event(acme.tenant, time=time, quantity="1.5")
        for time in (LAST_HOUR, LAST_HOUR - timedelta(days=3), LAST_HOUR + timedelta(hours=1))
    ]
    return await publish(
        system,
        topic_id=topic_id,
        counted=counted,
        watermark={0: 2, 1: 2},
        fates=[fates(acme.tenant, 0, counted=2), fates(acme.tenant, 1, counted=1, rejected=1)],
    )


async def test_a_month_holds_what_took_place_in_it(
    acme: Caller, system_database: Database, topic_id: str
) -> None:
    version = await published(acme, system_database, topic_id)
    for period, events, quantity in (("2025-03", 2, "3"), ("2025-04", 1, "1.5")):
        proof = await acme.ask(PROOF, period=period)
        assert proof["holds"], proof
        assert (proof["period"], proof["lake_version"], proof["slice"]) == (period, version, version)
        assert proof["meters"] == [
            {"tenant": acme.tenant, "meter": METER, "events": events, "quantity": quantity,
             "day_events": events, "day_quantity": quantity, "holds": True}
        ]  # fmt: skip
        assert proof["totals"]["landed"] == 4, "a record has its fate in whatever month"
    assert (await acme.ask(PROOF, period="2025-05"))["meters"] == []
    everything = await acme.ask(PROOF)
    assert (everything["period"], everything["meters"]) == (None, [])


@pytest.mark.parametrize("period", ["2025-13", "march", "2025-3", "1999-01"])
async def test_what_is_no_month_is_refused(acme: Caller, period: str) -> None:
    answer = await acme.get(PROOF, period=period)
    assert answer.status == 422
    assert "write it as 2026-03" in str(answer.json["errors"])


@pytest.mark.parametrize(
    "change",
    ["events = events + 1", "quantity = quantity + 0.000000001"],
)
async def test_a_month_whose_days_are_not_its_hours_is_named(
    acme: Caller, system_database: Database, topic_id: str, change: str
) -> None:
    await published(acme, system_database, topic_id)
    async with system_database.writer() as connection:
        await connection.execute(
            text(
                f"update usage_cell set {change} where tenant_id = :t and grain = 'day' and period_start < '2025-04-01Z'"
            ),
            {"t": acme.tenant},
        )
    march, april = [await acme.ask(PROOF, period=period) for period in ("2025-03", "2025-04")]
    assert [one["holds"] for one in march["meters"] + april["meters"]] == [False, True]
    verdicts = [{one["name"]: one["holds"] for one in proof["checks"]} for proof in (march, april)]
    assert [each[PERIOD] for each in verdicts] == [False, True]
    assert not march["holds"]


async def test_organisations_whose_errors_cancel_out_are_named(
    acme: Caller, other: Caller, owner: Caller, system_database: Database, topic_id: str
) -> None:
    """An event of one is in the cells of the other: all together it is right."""
    async with system_database.writer() as connection:
        for table in ("usage_cell", "usage_conservation", "usage_watermark"):
            await connection.execute(text(f"delete from {table}"))
    counted = [usage_event(acme.tenant, time=LAST_HOUR) for _ in range(2)]
    await publish(
        system_database, topic_id=topic_id, counted=counted, watermark={0: 2},
        fates=[fates(acme.tenant, 0, counted=1), fates(other.tenant, 0, counted=1)],
    )  # fmt: skip
    proof = await owner.ask(PROOF)
    assert {one["tenant"]: (one["hour_events"], one["counted"], one["holds"]) for one in proof["tenants"]} == {
        acme.tenant: (2, 1, False), other.tenant: (0, 1, False),
    }  # fmt: skip
    assert not proof["holds"]
    assert [one["holds"] for one in proof["partitions"]] == [True], "each record has a fate all the same"


async def test_the_metric_says_what_holds(
    acme: Caller, owner: Caller, app_database: Database, system_database: Database, topic_id: str
) -> None:
    async with system_database.writer() as connection:
        for table in ("usage_cell", "usage_conservation", "usage_watermark"):
            await connection.execute(text(f"delete from {table}"))
    await published(acme, system_database, topic_id)
    asked = Invariants(app_database, system_database)

    async def said() -> dict[str, Any]:
        show(await asked.of(None))
        return {each.labels["invariant"]: each.value for metric in HOLDS.collect() for each in metric.samples}

    holding = {
        "conserved": 1,
        "hours": 1,
        "days": 1,
        "sums": 1,
        "elements": 1,
        "offsets": 1,
        "owned": 1,
        "gate": 1,
    }
    assert await said() == holding
    assert {each.labels["fate"]: each.value for each in next(iter(RECORDS.collect())).samples} == {
        "counted": 3, "duplicates": 0, "quarantined": 0, "rejected": 1,
    }  # fmt: skip
    red = "insert into usage_gate values (9, 1, 1, 1) on conflict (generation) do update set problems = 1"
    async with system_database.writer() as connection:
        await connection.execute(text(red))
    assert await said() == {**holding, "gate": 0}
    async with system_database.writer() as connection:
        await connection.execute(text("update usage_gate set problems = 0"))
    async with system_database.writer() as connection:
        await connection.execute(text("update usage_watermark set next_offset = next_offset + 1"))
        await connection.execute(text("delete from usage_cell where grain = 'day'"))
    assert await said() == {**holding, "days": 0, "sums": 0, "offsets": 0}
    assert (await asked.of(None, month("2025-03")))["holds"] is False


async def test_usage_of_an_organisation_that_does_not_exist_is_named(
    acme: Caller, owner: Caller, app_database: Database, system_database: Database, topic_id: str
) -> None:
    """A producer that writes the topic by itself may name whom it likes; what it voids is nobody's no more."""
    mistyped = f"{acme.tenant}x"
    asked, counted = Invariants(app_database, system_database), [usage_event(mistyped, time=LAST_HOUR)]
    await publish(
        system_database,
        topic_id=topic_id,
        counted=counted,
        watermark={0: 1},
        fates=[fates(mistyped, counted=1)],
    )

    async def found() -> tuple[list[Any], bool, float]:
        proof = await asked.of(None)
        show(proof)
        named = [dict(one) for one in proof["nobodys"] if one["tenant"] == mistyped]
        holds = next(one["holds"] for one in proof["checks"] if one["name"] == OWNED)
        return named, holds, HOLDS.labels("owned")._value.get()

    hour = "2025-03-31T23:00:00.000Z"
    expected = [{"tenant": mistyped, "events": 1, "first_hour": hour, "last_hour": hour}]
    assert await found() == (expected, False, 0)
    assert [one for one in (await owner.ask(PROOF))["nobodys"] if one["tenant"] == mistyped] == expected
    assert (await acme.ask(PROOF))["nobodys"] == [], "others are no matter of an organisation"
    async with system_database.writer() as connection:
        change = "update usage_cell set events = 0, quantity = 0 where tenant_id = :t"
        await connection.execute(text(change), {"t": mistyped})
    assert (await found())[0] == []


async def test_a_running_service_shows_the_metric(acme: Caller) -> None:
    async with acme.http.get(f"{acme.billing.address}/metrics") as answer:
        text_ = await answer.text()
    for line in ('usage_invariant_holds{invariant="conserved"}', 'usage_published_records{fate="counted"}'):
        assert line in text_
