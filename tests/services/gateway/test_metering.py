"""Every answered request is counted once in the outbox, whatever dies in between."""

import asyncio
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import aiohttp
from sqlalchemy import text

from core.contracts.usage import parse
from core.database import Database
from services.gateway.meter import Meter, to_outbox
from services.gateway.spool import Spool
from tests.servers import free_port, kill, running, start
from tests.services.gateway.conftest import Running, bearing, gateway_component, new_key
from tests.services.gateway.upstream import Upstream

ME = "/api/v1/me"


async def _counted(database: Database, tenants: set[str]) -> Counter[tuple[str, str, str]]:
    """(tenant, route, class) → requests in the outbox."""
    total: Counter[tuple[str, str, str]] = Counter()
    async with database.reader() as connection:
        rows = await connection.execute(
            text("select tenant_id, key, value from outbox where tenant_id = any(:tenants)"),
            {"tenants": list(tenants)},
        )
        for tenant, key, value in rows:
            event = parse(value)
            assert (event.tenant, event.data.meter, event.source) == (tenant, "api.requests", "gateway")
            assert key == event.key
            dimensions = event.data.dimensions
            total[tenant, dimensions["route"], dimensions["code_class"]] += int(event.data.quantity)
    return total


async def _until_counted(
    database: Database, tenants: set[str], at_least: int
) -> Counter[tuple[str, str, str]]:
    async with asyncio.timeout(20):
        while True:
            counted = await _counted(database, tenants)
            if counted.total() >= at_least:
                return counted
            await asyncio.sleep(0.1)


async def test_answers_are_counted_by_route_and_class(
    gateway: Running, upstream: Upstream, http: aiohttp.ClientSession, system_database: Database
) -> None:
    key = new_key(tenant="counts" + new_key()[8:20].replace("-", ""))
    tenant = f"org_{key.split('_')[2]}"
    for path in (ME, ME, ME + "/nothing", "/api/v1/usage", "/api/v1/billing/x", "/nowhere"):
        async with http.get(gateway.address + path, headers=bearing(key)):
            pass
    assert await _until_counted(system_database, {tenant}, 3) == {
        (tenant, ME, "2xx"): 2,
        (tenant, ME, "4xx"): 1,
    }


async def test_sigkill_loses_and_doubles_nothing(
    behind: dict[str, str], system_database: Database, tmp_path: Path
) -> None:
    """Thirty callers, each of its own tenant and one request at a time: the request that a kill caught may
    have been counted without being answered, everything else is exact."""
    chance = random.Random(1)
    component = gateway_component(tmp_path, behind)
    keys = [new_key() for _ in range(30)]
    answered: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    stop = asyncio.Event()

    async def call(http: aiohttp.ClientSession, key: str) -> None:
        tenant = f"org_{key.split('_')[2]}"
        while not stop.is_set():
            try:
                async with http.get(component.address + ME, headers=bearing(key)) as answer:
                    await answer.read()
                    assert answer.status == 200
                answered[tenant] += 1
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
            except (aiohttp.ClientError, ConnectionError):
                caught[tenant] += 1

    process = start(component, tmp_path / "log")
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(call(http, key))
        for _ in range(2):
            await asyncio.sleep(chance.uniform(0.3, 1.7))
            await asyncio.to_thread(kill, process)
            process = await asyncio.to_thread(start, component, tmp_path / "log")
        stop.set()
    tenants = {f"org_{key.split('_')[2]}" for key in keys}
    counted = await _until_counted(system_database, tenants, answered.total())
    process.terminate()
    assert await asyncio.to_thread(process.wait, 15) == 0
    counted = await _counted(system_database, tenants)
    assert answered.total() > 200
    for tenant in tenants:
        assert answered[tenant] <= counted[tenant, ME, "2xx"] <= answered[tenant] + caught[tenant]
    assert not list((tmp_path / "spool").rglob("*.seg")), "all sent"


async def test_counts_wait_for_the_database(
    behind: dict[str, str], http: aiohttp.ClientSession, system_database: Database, tmp_path: Path
) -> None:
    """Requests are answered while it is away, and counted by the next process."""
    key = new_key()
    tenant = f"org_{key.split('_')[2]}"
    component = gateway_component(tmp_path, behind)
    away = {**component.env, "HEADRACE_DATABASE_URL": f"postgresql://127.0.0.1:{free_port()}/headrace"}
    with running(replace(component, env=away), tmp_path / "log"):
        for _ in range(7):
            async with http.get(component.address + ME, headers=bearing(key)) as answer:
                assert answer.status == 200
        await asyncio.sleep(1.5)  # a rotation, so that a segment waits beside the current one
        async with http.get(component.address + ME, headers=bearing(key)) as answer:
            assert answer.status == 200
    assert await _counted(system_database, {tenant}) == {}
    with running(component, tmp_path / "log"):
        assert await _until_counted(system_database, {tenant}, 8) == {(tenant, ME, "2xx"): 8}


async def test_a_segment_sent_again_counts_once(system_database: Database, tmp_path: Path) -> None:
    """As after a crash between the commit and the removal of the file."""
    tenant = new_key()
    spool = Spool(tmp_path)
    meter = Meter(spool, to_outbox(system_database))
    spool.record(tenant, ME, "2xx")
    spool.rotate()
    segment = spool.closed[0]
    content = segment.read_bytes()
    await meter.flush()
    assert not segment.exists()
    segment.write_bytes(content)
    spool.closed.append(segment)
    await meter.flush()
    assert await _counted(system_database, {tenant}) == {(tenant, ME, "2xx"): 1}
    await meter.close()


async def test_an_unreadable_segment_holds_nothing_up(system_database: Database, tmp_path: Path) -> None:
    tenant = new_key()
    spool = Spool(tmp_path)
    meter = Meter(spool, to_outbox(system_database))
    broken = tmp_path / "1700000000000-broken.seg"
    broken.write_bytes(b"\x00\xff\n")
    spool.closed.append(broken)
    spool.record(tenant, ME, "2xx")
    spool.rotate()
    await meter.flush()
    assert await _counted(system_database, {tenant}) == {(tenant, ME, "2xx"): 1}
    assert broken.with_suffix(".unreadable").exists()
    await meter.close()


async def test_a_request_that_cannot_be_counted_is_not_answered(
    behind: dict[str, str], http: aiohttp.ClientSession, system_database: Database, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk."""
    key = new_key()
    tenant = f"org_{key.split('_')[2]}"
    component = gateway_component(tmp_path, {**behind, "HEADRACE_LOG_LEVEL": "fatal"})
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); os.execv(sys.argv[1], sys.argv[1:])"
    statuses: Counter[int] = Counter()
    with running(replace(component, argv=(sys.executable, "-c", limited, *component.argv)), tmp_path / "log"):
        for _ in range(60):
            async with http.get(component.address + ME, headers=bearing(key)) as answer:
                statuses[answer.status] += 1
                if answer.status == 503:
                    assert (await answer.json(content_type=None))["code"] == "meter_unavailable"
        counted = await _until_counted(system_database, {tenant}, statuses[200])
    assert statuses[200] > 0
    assert statuses[503] > 0
    assert counted[tenant, ME, "2xx"] == statuses[200]
