"""The relay as a process: ready, measured, drained by TERM, and no loss when it is killed."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from core.database import Database, tenant
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog, NewRecord
from core.ids import new_id
from core.messaging import outbox
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from tests.conftest import REPOSITORY
from tests.servers import free_port, kill
from tests.services.process import environment

TOPIC = "agent.events"


@pytest.fixture
async def log(postgres: DatabaseSettings, eventlog_settings: EventLogSettings) -> AsyncIterator[EventLog]:
    async with open_eventlog(eventlog_settings, postgres) as opened:
        await opened.ensure_topics([*TOPICS.values()])
        yield opened


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path: Path, port: int
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `python -m services.relay`; all that it started are ended with the test."""
    variables = {
        **environment(tmp_path, postgres, valkey, users_port=free_port(), gateway_port=free_port()),
        "HEADRACE_PORT": str(port),
    }
    started: list[subprocess.Popen[bytes]] = []

    def launch() -> subprocess.Popen[bytes]:
        with (tmp_path / "relay.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.relay"], cwd=REPOSITORY, env=variables, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield launch
    for process in started:
        kill(process)


async def ask(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def ready(port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                if (await ask(port, "/readyz"))[0] == 200:
                    return
            except aiohttp.ClientConnectorError:
                pass
            await asyncio.sleep(0.05)


async def write(database: Database, org: str, count: int) -> None:
    with tenant(org):
        for number in range(count):
            async with database.writer() as connection:
                await outbox.enqueue(connection, [NewRecord(TOPIC, org.encode(), str(number).encode())], org)


async def arrived(log: EventLog, org: str, count: int) -> list[int]:
    async with asyncio.timeout(120):
        while True:
            found = []
            for partition, bounds in (await log.bounds(TOPIC)).items():
                if bounds.low < bounds.high:
                    async for batch in log.read(TOPIC, partition, bounds.low, bounds.high):
                        found += [int(record.value) for record in batch if record.key == org.encode()]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def test_relays_shows_metrics_and_drains(
    start: Callable[[], subprocess.Popen[bytes]], port: int, app_database: Database, log: EventLog
) -> None:
    org = new_id("org")
    process = start()
    await ready(port)
    await write(app_database, org, 20)
    assert await arrived(log, org, 20) == [*range(20)]
    expected = {
        "outbox_relay_leading 1.0",
        'consumer_lag_records{group="relay",source="outbox"} 0.0',
        'consumer_lag_seconds{group="relay",source="outbox"} 0.0',
        'consumer_lag_records{group="usage_cells",source="usage.records"}',
        'db_query_duration_seconds_bucket{le="0.5"}',
        'db_pool_connections{state="in_use"}',
        f'outbox_relayed_records_total{{topic="{TOPIC}"}}',
    }
    async with asyncio.timeout(120):  # some are measured on clocks of seconds
        while missing := {line for line in expected if line not in (await ask(port, "/metrics"))[1]}:
            assert missing < expected
            await asyncio.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 20) == 0


async def test_killed_at_any_moment_it_loses_and_doubles_nothing(
    start: Callable[[], subprocess.Popen[bytes]], port: int, app_database: Database, log: EventLog
) -> None:
    org = new_id("org")
    process = start()
    await ready(port)
    writing = asyncio.create_task(write(app_database, org, 600))
    for _ in range(2):
        await arrived(log, org, 50)
        kill(process)
        process = start()
        await ready(port)
    await writing
    assert await arrived(log, org, 600) == [*range(600)]
