"""Following the topic when it does not go smoothly: bounds, purges, rebuilt cells, a log that is away."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.database import Database
from core.eventlog.api import EventLog
from core.ids import new_id
from core.tasks import cancel
from core.topology import TOPICS
from services.billing.live import LiveUsage, Published, StaleCellsError
from tests.servers import free_port, running
from tests.services.billing.conftest import TOPIC, Caller, Running, record_of, usage_event
from tests.services.billing.published import publish
from tests.services.process import service


@pytest.fixture
async def fresh_log(log: EventLog) -> EventLog:
    """The log with a new and empty topic."""
    await log.delete_topic(TOPIC)
    await log.ensure_topics([TOPICS[TOPIC]])
    return log


@asynccontextmanager
async def following(live: LiveUsage) -> AsyncIterator[LiveUsage]:
    task = asyncio.create_task(live.run())
    try:
        yield live
    finally:
        await cancel(task)


async def wait_for(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - the service has no event for it, and needs none
            await asyncio.sleep(0.02)


async def append(log: EventLog, tenant: str, count: int) -> None:
    await log.append([record_of(usage_event(tenant, subject=f"cus_{n % 11}")) for n in range(count)])


async def total(live: LiveUsage, published: Callable[[], Awaitable[Published]], tenant: str) -> int | None:
    """Events behind the cells; None where the tail is not complete or not behind these cells."""
    try:
        view = await live.view(await published(), tenant)
    except StaleCellsError:
        return None
    return None if view is None else sum(cell.events for cell in view.cells)


async def ends(log: EventLog) -> dict[int, int]:
    return {partition: bounds.high for partition, bounds in (await log.bounds(TOPIC)).items()}


async def test_more_than_the_bound_stops_reading_until_a_slice_lands(
    fresh_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    tenant = new_id("org")
    await append(fresh_log, tenant, 900)
    topic = await fresh_log.topic(TOPIC)
    async with following(LiveUsage(fresh_log, published, max_records=500)) as live:
        await wait_for(lambda: "is Dagster running?" in live.problem)
        assert not live.is_live
        assert await total(live, published, tenant) == 500
        await publish(system_database, topic_id=topic.id, watermark=await ends(fresh_log))
        await append(fresh_log, tenant, 100)
        await wait_for(lambda: live.is_live)
        assert await total(live, published, tenant) == 100


async def test_records_purged_before_they_were_read_are_taken_from_the_cells(
    fresh_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    tenant = new_id("org")
    await append(fresh_log, tenant, 900)
    topic = await fresh_log.topic(TOPIC)
    async with following(LiveUsage(fresh_log, published, max_records=500)) as live:
        await wait_for(lambda: "is Dagster running?" in live.problem)
        before = await ends(fresh_log)
        await append(fresh_log, tenant, 30)
        await publish(system_database, topic_id=topic.id, watermark=before)
        await fresh_log.purge(TOPIC, before)
        await wait_for(lambda: live.is_live)
        assert await total(live, published, tenant) == 30


async def test_records_gone_before_they_landed_are_said_to_be_missing(
    fresh_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    tenant = new_id("org")
    await append(fresh_log, tenant, 40)
    await fresh_log.purge(TOPIC, await ends(fresh_log))
    await append(fresh_log, tenant, 5)
    topic = await fresh_log.topic(TOPIC)
    async with following(LiveUsage(fresh_log, published)) as live:
        await wait_for(lambda: "gone from the topic" in live.problem)
        assert await total(live, published, tenant) is None
        await publish(system_database, topic_id=topic.id, watermark=await ends(fresh_log))
        await wait_for(lambda: live.is_live)
        assert await total(live, published, tenant) == 0


async def test_cells_that_were_rebuilt_to_an_earlier_state_are_followed_back(
    fresh_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    tenant = new_id("org")
    await append(fresh_log, tenant, 60)
    topic = await fresh_log.topic(TOPIC)
    await publish(system_database, topic_id=topic.id, watermark=await ends(fresh_log))
    async with following(LiveUsage(fresh_log, published)) as live:
        await wait_for(lambda: live.is_live)
        assert await total(live, published, tenant) == 0
        await publish(system_database, topic_id=topic.id, watermark=dict.fromkeys(await ends(fresh_log), 0))

        async with asyncio.timeout(20):
            while await total(live, published, tenant) != 60:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_new_topic_that_is_longer_than_the_old_one_is_not_taken_for_it(
    fresh_log: EventLog, published: Callable[[], Awaitable[Published]]
) -> None:
    before, tenant = new_id("org"), new_id("org")
    await append(fresh_log, before, 20)
    live = LiveUsage(fresh_log, published)
    async with following(live):
        await wait_for(lambda: live.is_live)
        assert await total(live, published, before) == 20
    await fresh_log.delete_topic(TOPIC)
    await fresh_log.ensure_topics([TOPICS[TOPIC]])
    await append(fresh_log, tenant, 300)
    async with following(live), asyncio.timeout(20):
        while await total(live, published, tenant) != 300:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert await total(live, published, before) == 0


async def test_a_view_stays_what_it_was_while_the_tail_goes_on(
    fresh_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    """Who asks waits for the database between the view and the sum."""
    tenant = new_id("org")
    await append(fresh_log, tenant, 30)
    topic = await fresh_log.topic(TOPIC)
    async with following(LiveUsage(fresh_log, published)) as live:
        await wait_for(lambda: live.held == 30)
        view = await live.view(await published(), tenant)
        assert view is not None
        await publish(system_database, topic_id=topic.id, watermark=await ends(fresh_log))
        assert await total(live, published, tenant) == 0
        assert sum(cell.events for cell in view.cells) == 30


async def test_old_cells_under_a_newer_tail_are_refused(
    fresh_log: EventLog, system_database: Database, published: Callable[[], Awaitable[Published]]
) -> None:
    tenant = new_id("org")
    await append(fresh_log, tenant, 20)
    topic = await fresh_log.topic(TOPIC)
    async with following(LiveUsage(fresh_log, published)) as live:
        await wait_for(lambda: live.is_live)
        old = await published()
        await publish(system_database, topic_id=topic.id, watermark=await ends(fresh_log))
        assert await total(live, published, tenant) == 0
        with pytest.raises(StaleCellsError):
            await live.view(old, tenant)


async def test_while_the_log_is_away_usage_is_taken_and_cells_are_answered(
    acme: Caller, billing: Running, system_database: Database, tmp_path: Path
) -> None:
    await publish(
        system_database,
        topic_id=new_id("topic"),
        counted=[usage_event(acme.tenant, quantity="12")],
        watermark={0: 1},
    )
    away = {**billing.environment, "HEADRACE_EVENTLOG_URL": f"kafka://127.0.0.1:{free_port()}"}
    component = service("billing", free_port(), away)
    with running(component, tmp_path / "log"):
        caller = acme.at(Running(component.address, away, tmp_path / "log"))
        answer = await caller.ask("/api/v1/usage")
        assert (answer["live"], answer["quantities"]) == (False, {"llm.tokens.input": "12"})
        sent = await caller.send([json.loads(usage_event(acme.tenant).encode())])
        assert (sent.status, sent.json["accepted"]) == (200, 1)
        async with acme.http.get(component.address + "/readyz") as ready:
            assert ready.status == 200
            document = await ready.json()
        assert document["checks"]["database"] == "ok"
        assert (document["status"], document["checks"]["live_usage"]) == ("degraded", "NotLiveError")
