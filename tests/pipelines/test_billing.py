"""Jobs over all organisations: a dry run first, what fails named, the rest done."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from assets.resources import Platform
from core.database import Database
from core.ids import new_id
from core.prices import Price, record
from core.settings import DatabaseSettings
from pipelines.billing import close_period, fix_prices

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def tenants(postgres: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two organisations with usage and one without, all with prices of their own; one owes a minimum."""
    monkeypatch.setenv("HEADRACE_OBJECTS_URL", tmp_path.as_uri())
    for name, value in postgres:
        if value is not None:
            said = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            monkeypatch.setenv(f"HEADRACE_{name.upper()}", said)
    ids = sorted(new_id("org") for _ in range(3))
    asyncio.run(_settle(postgres, ids))
    return ids


async def _settle(postgres: DatabaseSettings, ids: list[str]) -> None:
    system = Database(postgres, role="system")
    async with system.writer() as connection:
        for number, tenant in enumerate(ids):
            await connection.execute(
                text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'T', 'free')"),
                {"id": tenant, "slug": tenant.replace("_", "-")},
            )
            minimum = Decimal(7) if number == 2 else Decimal(0)
            await record(
                connection,
                [Price(tenant, "tool.calls", (), Decimal(2), 1, "USD", LONG_AGO, minimum=minimum)],
            )
            for grain, start in (("hour", "2023-05-03T04:00:00Z"), ("day", "2023-05-03T00:00:00Z")):
                await connection.execute(
                    text(
                        "insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity,"
                        " events, lake_version) select :t, :g, 'tool.calls', cast(:s as timestamptz), '{}', '', 3, 1, 1 where :n < 2"
                    ),
                    {"t": tenant, "g": grain, "s": datetime.fromisoformat(start), "n": number},
                )
            await connection.execute(
                text(
                    "insert into usage_conservation (tenant_id, topic_id, partition, block, landed, counted, duplicates,"
                    " quarantined, rejected, lake_version) select :t, 't', 0, 0, 1, 1, 0, 0, 0, 1 where :n < 2"
                ),
                {"t": tenant, "n": number},
            )
        await connection.execute(
            text(
                "insert into usage_publication (lake_version, slice, code_version) values (1, 1, 't') on conflict do nothing"
            )
        )
    await system.close()


def run(job: dg.JobDefinition, op: str, config: dict[str, Any], *, good: bool = True) -> dict[str, Any]:
    """What the op said about itself."""
    done = job.execute_in_process(
        run_config={"ops": {op: {"config": config}}}, resources={"platform": Platform()}, raise_on_error=good
    )
    assert done.success is good
    (output,) = (
        [event for event in done.all_events if event.event_type_value == "STEP_OUTPUT"] if good else [None]
    )
    if output is None:
        return {}
    return {name: value.value for name, value in output.event_specific_data.metadata.items()}  # type: ignore[union-attr]


def issued(postgres: DatabaseSettings, tenants: list[str]) -> list[tuple[int, str, Decimal]]:
    async def read() -> list[tuple[int, str, Decimal]]:
        system = Database(postgres, role="system")
        async with system.writer() as connection:
            rows = await connection.execute(
                text(
                    "select tenant_id, reason, total from invoice where tenant_id = any(cast(:t as text[])) "
                    "order by tenant_id, number"
                ),
                {"t": tenants},
            )
            found = [(tenants.index(row[0]), str(row[1]), Decimal(row[2])) for row in rows]
        await system.close()
        return found

    return asyncio.run(read())


def test_a_month_is_closed_for_all_that_owe_something(tenants: list[str], postgres: DatabaseSettings) -> None:
    dry = run(close_period, "close_each", {"period": "2023-05"})
    assert (dry["dry run"], dry["failed"]) == (True, 0)
    assert all(tenant in dry["issued"] for tenant in tenants)
    assert issued(postgres, tenants) == []
    run(close_period, "close_each", {"period": "2023-05", "dry_run": False})
    expected = [(number, "service_period", Decimal(total)) for number, total in ((0, 6), (1, 6), (2, 7))]
    assert issued(postgres, tenants) == expected
    run(close_period, "close_each", {"period": "2023-05", "dry_run": False, "tenants": tenants})
    assert issued(postgres, tenants) == expected


def test_one_that_cannot_be_closed_fails_the_run_and_holds_up_nobody(
    tenants: list[str], postgres: DatabaseSettings
) -> None:
    nobody_yet = {"period": "2199-01", "dry_run": False, "tenants": tenants}
    assert run(close_period, "close_each", nobody_yet, good=False) == {}
    assert issued(postgres, tenants) == []


def test_usage_that_does_not_agree_is_left_out_by_name_and_the_others_are_closed(
    tenants: list[str], postgres: DatabaseSettings
) -> None:
    async def tamper() -> None:
        system = Database(postgres, role="system")
        async with system.writer() as connection:
            await connection.execute(
                text("update usage_cell set quantity = 4 where tenant_id = :t and grain = 'hour'"),
                {"t": tenants[0]},
            )
        await system.close()

    asyncio.run(tamper())
    config = {"period": "2023-05", "dry_run": False, "tenants": tenants}
    with pytest.raises(
        dg.Failure, match=f"1 organisations were left out: {tenants[0]}: Usage of {tenants[0]} is not proven"
    ):
        run(close_period, "close_each", config)
    assert issued(postgres, tenants) == [
        (1, "service_period", Decimal(6)),
        (2, "service_period", Decimal(7)),
    ]


def test_a_price_is_fixed_by_a_dry_run_and_an_approved_id(
    tenants: list[str], postgres: DatabaseSettings
) -> None:
    run(close_period, "close_each", {"period": "2023-05", "dry_run": False, "tenants": tenants})

    async def correct() -> None:
        system = Database(postgres, role="system")
        async with system.writer() as connection:
            await record(
                connection, [Price(tenants[0], "tool.calls", (), Decimal("2.5"), 1, "USD", LONG_AGO)]
            )
        await system.close()

    async def approve(fix: str) -> None:
        system = Database(postgres, role="system")
        async with system.writer() as connection:
            await connection.execute(
                text(
                    "update price_fix set state = 'approved', decided_by = 'usr_1', decided_at = now() where id = :id"
                ),
                {"id": fix},
            )
        await system.close()

    asyncio.run(correct())
    told = run(fix_prices, "fix_each", {"tenants": tenants})
    assert (told["state"], told["periods"], told["totals"]) == ("proposed", 1, {"USD": "1.50"})
    assert len(issued(postgres, tenants)) == 3
    run(fix_prices, "fix_each", {"price_fix": told["price fix"]}, good=False)
    asyncio.run(approve(told["price fix"]))
    assert run(fix_prices, "fix_each", {"price_fix": told["price fix"]})["posted"] == 1
    assert run(fix_prices, "fix_each", {"price_fix": told["price fix"]})["posted"] == 0
    assert issued(postgres, tenants)[1] == (0, "price_fix", Decimal("1.50"))
