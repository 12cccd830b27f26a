"""A price file that is declared again does not take back what was recorded since, unless a person says so."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from core.database import Database
from core.prices import Price
from core.prices.publish import publish
from tests.core.prices.test_table import keep, own_price, unit_price


async def start(database: Database, *declared: Price) -> int:
    """Declare a file as billing does when it starts; how many rows were recorded."""
    async with database.writer() as connection:
        return len(await publish(connection, declared))


async def test_an_instance_on_an_older_file_takes_no_correction_back(
    system_database: Database, app_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    old = own_price()
    new = replace(old, unit_price=Decimal(3))
    assert await start(system_database, old) == 1
    assert await start(system_database, new) == 1
    assert not caplog.records
    other = own_price()
    assert await start(system_database, old, other) == 1
    assert await unit_price(app_database, old) == 3
    (warned,) = caplog.records
    said = warned.__dict__["data"]
    assert (said["tenant"], said["meter"], said["dimensions"]) == (old.tenant, old.meter, {"model": "m"})
    assert (said["valid_from"], said["unit_price"]) == ("2020-01-01T00:00:00.000Z", "2.5")
    assert "headrace prices record" in said["action"]


async def test_a_start_declares_no_price_again_that_an_import_ended(
    system_database: Database, app_database: Database
) -> None:
    declared = own_price()
    await start(system_database, declared)
    await keep(system_database, replace(declared, valid_to=datetime(2021, 1, 1, tzinfo=UTC)))
    assert await start(system_database, declared) == 0
    assert await unit_price(app_database, declared) is None


async def test_a_person_may_take_a_correction_back(system_database: Database, app_database: Database) -> None:
    right = own_price()
    await start(system_database, right)
    await start(system_database, replace(right, unit_price=Decimal(25)))
    async with system_database.writer() as connection:
        assert len(await publish(connection, [right], back=True)) == 1
        assert await publish(connection, [right], back=True) == []
    assert await unit_price(app_database, right) == Decimal("2.5")
