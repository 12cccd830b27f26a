"""Real WebSocket gateways on real servers; the agents service is a double."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.contracts.agents import EVENTS
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog, Position
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from services.common.principal import HEADER, Principal, sign
from tests.servers import free_port, start, stop
from tests.services.common.run_events import Run, records
from tests.services.process import environment, service
from tests.services.ws.agents_double import AgentsDouble

ORIGIN = "https://app.example.org"


@dataclass
class Instance:
    """A gateway process."""

    address: str
    process: Any
    log: Path


@pytest.fixture(scope="session")
def variables(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("ws-keys")
    variables = environment(folder, postgres, valkey, users_port=free_port(), gateway_port=free_port())
    return variables | {
        "HEADRACE_AGENTS_URL": f"http://127.0.0.1:{free_port()}",
        "HEADRACE_WS_ORIGINS": ORIGIN,
        "HEADRACE_WS_SLOW_SECONDS": "1",
        "HEADRACE_WS_HEARTBEAT_SECONDS": "1",
        "HEADRACE_WS_QUEUE_BYTES": "300000",
    }


@pytest.fixture(scope="session")
def launch(
    postgres: DatabaseSettings, variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Instance]]:
    """Starts one more gateway."""

    async def topics() -> None:
        async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), postgres) as log:
            await log.ensure_topics(list(TOPICS.values()))

    asyncio.run(topics())
    with ExitStack() as stack:

        def begin(**more: str) -> Instance:
            log = tmp_path_factory.mktemp("ws") / "log"
            component = service("ws", free_port(), variables | more)
            process = start(component, log)
            stack.callback(stop, component, process)
            return Instance(component.address, process, log)

        yield begin


@pytest.fixture(scope="session")
def ws(launch: Callable[..., Instance]) -> Instance:
    return launch()


@pytest.fixture(scope="session")
def ws_small(launch: Callable[..., Instance]) -> Instance:
    """One whose memory holds next to nothing: it resumes from the log."""
    return launch(HEADRACE_WS_RING_BYTES="65536")


@pytest.fixture
async def log(postgres: DatabaseSettings, launch: object) -> AsyncIterator[EventLog]:
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), postgres) as opened:
        yield opened


@pytest.fixture
def key(variables: dict[str, str]) -> bytes:
    return bytes.fromhex(variables["HEADRACE_INTERNAL_KEY"])


@pytest.fixture
async def agents(variables: dict[str, str], key: bytes) -> AsyncIterator[AgentsDouble]:
    double = AgentsDouble(key)
    async with double.serving(int(variables["HEADRACE_AGENTS_URL"].rpartition(":")[2])):
        yield double


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class World:
    """Tenants, their runs, and tickets for them."""

    def __init__(self, http: aiohttp.ClientSession, log: EventLog, agents: AgentsDouble, key: bytes) -> None:
        self.http, self.log, self.agents, self._key = http, log, agents, key
        self.principal = Principal(
            tenant_id=new_id("org"), subject=new_id("usr"), kind="user",
            scopes=frozenset({"agents:read", "agents:run"}),
        )  # fmt: skip

    def run(self) -> Run:
        """A run that the agents service knows."""
        run = Run(tenant=self.principal.tenant_id, user=self.principal.subject)
        owner = {"tenant": run.tenant, "user": run.user, "conversation": run.conversation, "first": None}
        self.agents.runs[run.id] = dict(owner)
        self.agents.conversations[run.conversation] = dict(owner)
        return run

    async def append(self, run: Run, events: list[Any]) -> list[Position]:
        positions = await self.log.append(records(events))
        if self.agents.runs[run.id]["first"] is None:
            place = {"topic": EVENTS, "partition": positions[0].partition, "offset": positions[0].offset}
            self.agents.runs[run.id]["first"] = place
        return positions

    async def ticket(self, instance: Instance, principal: Principal | None = None) -> str:
        headers = {HEADER: sign(principal or self.principal, self._key)}
        async with self.http.post(f"{instance.address}/api/v1/ws/tickets", headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            ticket: str = (await answer.json())["ticket"]
            return ticket


@pytest.fixture
def world(http: aiohttp.ClientSession, log: EventLog, agents: AgentsDouble, key: bytes) -> World:
    return World(http, log, agents, key)
