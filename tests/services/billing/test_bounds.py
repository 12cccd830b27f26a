"""Batches at hand are bounded, one organisation cannot take all places, and slow senders lose theirs."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from core.database import Database
from core.ids import new_id
from services.billing.ingest import Ingest
from services.common.errors import Problem
from tests.services.billing.conftest import principal


@pytest.fixture
def ingest(app_database: Database, system_database: Database) -> Ingest:
    return Ingest(app_database, system_database, in_flight=4, max_backlog=10, body_seconds=0.05)


async def refused(ingest: Ingest, tenant: str) -> Problem:
    with pytest.raises(Problem) as caught:
        async with ingest.slot(principal(tenant)):
            pass
    return caught.value


async def test_one_organisation_has_half_of_the_places_and_gives_them_back(ingest: Ingest) -> None:
    busy, other, third = (new_id("org") for _ in range(3))
    async with AsyncExitStack() as stack:
        for tenant in (busy, busy):
            await stack.enter_async_context(ingest.slot(principal(tenant)))
        problem = await refused(ingest, busy)
        assert (problem.status, problem.code, problem.headers["retry-after"]) == (429, "too_much_usage", "1")
        for tenant in (other, other):
            await stack.enter_async_context(ingest.slot(principal(tenant)))
        assert (await refused(ingest, third)).status == 429
    async with ingest.slot(principal(busy)), ingest.slot(principal(third)):
        pass


async def test_a_body_that_does_not_come_is_not_waited_for(ingest: Ingest) -> None:
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    with pytest.raises(Problem) as caught:
        await ingest.body(never)
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")
    assert never.cancelled()
