"""What was answered `accepted` survives the death of the process, and travels on to quota."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from core.contracts.usage import parse
from core.database import Database
from tests.servers import free_port, kill, running, start
from tests.services.billing.conftest import Caller, Running, usage_event
from tests.services.billing.test_quota import live_usage
from tests.services.process import service

CLIENTS = 4
BATCH = 100


@pytest.fixture
async def no_outbox(system_database: Database) -> None:
    """What other tests left behind is taken away, so that it is not relayed here."""
    async with system_database.writer() as connection:
        await connection.execute(text("delete from outbox"))


async def test_what_was_accepted_before_a_kill_is_in_the_outbox(
    acme: Caller, billing: Running, system_database: Database, tmp_path: Path
) -> None:
    component = service("billing", free_port(), billing.environment)
    process = start(component, tmp_path / "log")
    accepted: set[str] = set()
    cut = 0
    answered = asyncio.Event()

    async def send_until_killed() -> None:
        nonlocal cut
        caller = acme.at(Running(component.address, billing.environment, tmp_path / "log"))
        while True:
            batch = [usage_event(acme.tenant) for _ in range(BATCH)]
            try:
                answer = await caller.send([json.loads(event.encode()) for event in batch])
            except (aiohttp.ClientError, ConnectionError):
                cut += 1
                return
            assert answer.status == 200
            accepted.update(verdict["id"] for verdict in answer.json["verdicts"])
            answered.set()

    async def kill_after_an_answer() -> None:
        for _ in range(5):
            await answered.wait()
            answered.clear()
        kill(process)

    await asyncio.gather(kill_after_an_answer(), *(send_until_killed() for _ in range(CLIENTS)))
    assert cut == CLIENTS
    async with system_database.reader() as connection:
        rows = await connection.execute(
            text("select value from outbox where tenant_id = :t"), {"t": acme.tenant}
        )
        stored = [parse(bytes(value)).id for value in rows.scalars()]
    assert accepted
    assert accepted <= set(stored)
    assert len(stored) == len(set(stored))
    assert len(stored) % BATCH == 0, "a batch is there as a whole or not at all"


@pytest.mark.usefixtures("no_outbox", "log")
async def test_an_event_travels_from_the_api_to_quota(acme: Caller, billing: Running, tmp_path: Path) -> None:
    relay = service("relay", free_port(), billing.environment)
    with running(relay, tmp_path / "relay"):
        events = [json.loads(usage_event(acme.tenant, quantity="3").encode()) for _ in range(2)]
        assert (await acme.send([*events, *events])).json["accepted"] == 4
        answer = await live_usage(acme, "6")
        assert answer["data"][0]["events"] == 2


async def test_a_full_outbox_is_answered_429_until_it_drains(
    acme: Caller, billing: Running, system_database: Database, tmp_path: Path
) -> None:
    bounds = {**billing.environment, "HEADRACE_USAGE_MAX_BACKLOG": "10"}
    component = service("billing", free_port(), bounds)
    with running(component, tmp_path / "log"):
        caller = acme.at(Running(component.address, bounds, tmp_path / "log"))

        async def answers(status: int) -> str:
            for _ in range(200):
                answer = await caller.send([json.loads(usage_event(acme.tenant).encode())])
                if answer.status == status:
                    return str(answer.headers.get("retry-after", ""))
                await asyncio.sleep(0.05)
            raise AssertionError(f"no {status} in 10 s, the last answer was {answer.status}")

        assert int(await answers(429)) >= 1
        async with system_database.writer() as connection:
            await connection.execute(text("delete from outbox"))
        await answers(200)
