"""Callers that vanish in mid-stream leave nothing behind, and what they used is metered (acceptance check 4)."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import psutil
import pytest
from sqlalchemy import text

from core.cache import CONNECTIONS
from core.database import Database, tenant
from tests.servers import listener
from tests.services.agents.openai.conftest import Platform

CALLERS = 500
SECONDS = 5.0
STREAM = b'{"model": "double/slow=2000", "stream": true, "messages": [{"role": "user", "content": "Go on"}]}'


def _sockets(address: str) -> int:
    """Established TCP connections of the process that listens there; the kernel's count."""
    process = listener(int(address.rpartition(":")[2]))
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))


async def _metric(http: aiohttp.ClientSession, address: str, name: str) -> float:
    async with http.get(address + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def _vanish(port: int, key: str, begun: asyncio.Semaphore) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(STREAM)}\r\n\r\n"
    writer.write(head.encode() + STREAM)
    await reader.readuntil(b"word0")
    begun.release()
    writer.transport.abort()


async def test_4_five_hundred_callers_vanish(platform: Platform, key: str) -> None:
    port = int(platform.gateway.address.rpartition(":")[2])
    places = (platform.gateway.address, platform.agents.address, platform.provider)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        before = {place: _sockets(place) for place in places}
        tasks = {place: await _metric(http, place, "python_asyncio_tasks ") for place in places[:2]}
        begun = asyncio.Semaphore(0)
        for _ in range(5):  # in five waves, so that connects do not run into the backlog
            await asyncio.gather(*(_vanish(port, key, begun) for _ in range(CALLERS // 5)))
        left = time.monotonic()
        slack = 10  # what pools of other servers keep, and what else the platform is doing
        while True:
            async with http.get(platform.provider + "/control") as answer:
                streams = (await answer.json())["open"]
            over = {place: _sockets(place) - before[place] for place in places}
            running = {
                place: await _metric(http, place, "python_asyncio_tasks ") - count
                for place, count in tasks.items()
            }
            if not streams and max(over.values()) <= CONNECTIONS + slack and max(running.values()) <= slack:
                break
            assert time.monotonic() - left < SECONDS, (streams, over, running)
            await asyncio.sleep(0.2)
    requests, output = await _metered(platform, key)
    assert requests == CALLERS
    assert output >= CALLERS


ASK = {"messages": [{"role": "user", "content": "Go on"}]}
WAYS = [
    pytest.param("chat/completions", {**ASK, "stream": True}, "cancelled", id="chat streamed"),
    pytest.param("chat/completions", ASK, "cancelled", id="chat whole"),
    pytest.param("responses", {"input": "Go on", "stream": True}, "cancelled", id="response streamed"),
    pytest.param("responses", {"input": "Go on"}, "cancelled", id="response whole"),
    pytest.param("responses", {"input": "Go on", "stream": True, "store": False}, "", id="not stored"),
    pytest.param(
        "responses", {"input": "Go on", "stream": True, "background": True}, "running", id="in the background"
    ),
]


@pytest.mark.parametrize(("path", "body", "left"), WAYS)
async def test_4_the_run_of_a_caller_who_vanishes_ends_unless_it_was_to_go_on(
    platform: Platform, key: str, path: str, body: dict[str, object], left: str
) -> None:
    agent = {"slug": "talker", "name": "Talker", "model": "double/slow=2000"}
    content = json.dumps({**body, "model": "agent:talker"}).encode()
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http:
        async with http.post(f"{platform.gateways[0]}/api/v1/agents", json=agent) as made:
            assert made.status == 201, await made.text()
        before = await _open(http, platform)
        port = int(platform.gateway.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        if "stream" in body:
            await reader.readuntil(b"word1")
        async with asyncio.timeout(30):
            while await _open(http, platform) == before:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
        assert [one.status for one in await _runs(platform, key)] == ["running"]
        writer.transport.abort()
        if left == "running":
            # It goes on until somebody ends it.
            (run,) = await _runs(platform, key)
            for _ in range(10):
                assert [one.status for one in await _runs(platform, key)] == ["running"]
                await asyncio.sleep(0.1)
            url = f"{platform.gateways[1]}/v1/responses/{run.id.replace('run_', 'resp_')}/cancel"
            async with http.post(url) as cancelled:
                assert (await cancelled.json())["status"] == "cancelled"
            left = "cancelled"
        async with asyncio.timeout(30):
            while [one.status for one in await _runs(platform, key)] != ([left] if left else []):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
            while await _open(http, platform) > before:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)


async def _open(http: aiohttp.ClientSession, platform: Platform) -> int:
    """Streams that the provider is sending."""
    async with http.get(platform.provider + "/control") as answer:
        return int((await answer.json())["open"])


async def _runs(platform: Platform, key: str) -> list[Any]:
    """Rows of the organisation's runs: id and status."""
    database = Database(platform.database, role="system")
    try:
        async with database.writer() as connection:
            sql = text("select id, status from run where tenant_id = :tenant")
            return list(await connection.execute(sql, {"tenant": f"org_{key.split('_')[2]}"}))
    finally:
        await database.close()


async def _metered(platform: Platform, key: str) -> tuple[int, int]:
    """Requests and output tokens in the outbox or the log, by what is counted of them."""
    tenant_id = f"org_{key.split('_')[2]}"
    database = Database(platform.database, role="system")
    sql = text(
        "select convert_from(value, 'utf8')::jsonb -> 'data' ->> 'meter' as meter,"
        " sum((convert_from(value, 'utf8')::jsonb -> 'data' ->> 'quantity')::int) as quantity"
        " from eventlog.record where convert_from(value, 'utf8') like :tenant group by 1"
    )
    found: dict[str, int] = {}
    try:
        for _ in range(300):
            with tenant(tenant_id):
                async with database.writer() as connection:
                    rows = (await connection.execute(sql, {"tenant": f"%{tenant_id}%"})).all()
            found = {row.meter: int(row.quantity) for row in rows}
            if found.get("llm.requests", 0) >= CALLERS:
                break
            await asyncio.sleep(0.2)
    finally:
        await database.close()
    return found.get("llm.requests", 0), found.get("llm.tokens.output", 0)
