"""A message acted on is remembered with its effect, or not at all."""

import asyncio
from datetime import timedelta

import pytest

from core.database import Database, tenant
from core.ids import new_id
from core.messaging import inbox


async def test_second_delivery_is_seen(app_database: Database) -> None:
    org, message = new_id("org"), new_id("msg")
    with tenant(org):
        for expected in (False, True):
            async with app_database.writer() as connection:
                assert await inbox.seen(connection, "mailer", message, tenant_id=org) is expected
        async with app_database.writer() as connection:
            assert not await inbox.seen(connection, "another consumer", message, tenant_id=org)


async def test_failed_work_is_not_remembered(app_database: Database) -> None:
    org, message = new_id("org"), new_id("msg")

    async def fail() -> None:
        async with app_database.writer() as connection:
            await inbox.seen(connection, "mailer", message, tenant_id=org)
            raise ZeroDivisionError

    with tenant(org):
        with pytest.raises(ZeroDivisionError):
            await fail()
        async with app_database.writer() as connection:
            assert not await inbox.seen(connection, "mailer", message, tenant_id=org)


async def test_one_of_two_workers_acts(app_database: Database) -> None:
    org, message = new_id("org"), new_id("msg")

    async def work() -> bool:
        async with app_database.writer() as connection:
            acted = not await inbox.seen(connection, "mailer", message, tenant_id=org)
            await asyncio.sleep(0.05)
            return acted

    with tenant(org):
        assert sorted(await asyncio.gather(*(work() for _ in range(4)))) == [False, False, False, True]


async def test_old_keys_are_forgotten(app_database: Database, system_database: Database) -> None:
    org, message = new_id("org"), new_id("msg")
    with tenant(org):
        async with app_database.writer() as connection:
            await inbox.seen(connection, "mailer", message, tenant_id=org)
    async with system_database.writer() as connection:
        await inbox.forget_old(connection)
        assert await inbox.seen(connection, "mailer", message, tenant_id=org)
    async with system_database.writer() as connection:
        assert await inbox.forget_old(connection, keep=timedelta(0)) > 0
    async with system_database.writer() as connection:
        assert not await inbox.seen(connection, "mailer", message, tenant_id=org)
