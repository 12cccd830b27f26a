"""Two gateways and two agents services before a provider double: the whole way of OpenAI's clients."""

import asyncio
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest
from openai import AsyncOpenAI
from sqlalchemy import text

from core.database import Database
from core.eventlog import open_eventlog
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from deploy.component import Component
from deploy.servers.postgres import postgres as postgres_server
from tests.servers import database_settings, free_port, running
from tests.services.gateway.conftest import new_key, process
from tests.services.process import REPOSITORY, environment, service


@dataclass(frozen=True)
class Platform:
    """Addresses of what runs."""

    gateways: tuple[str, str]
    agents: Component
    gateway: Component
    provider: str
    database: DatabaseSettings

    async def organisation(self, *, per_minute: int = 60_000) -> str:
        """A fresh organisation's key."""
        key = new_key(per_minute=per_minute)
        tenant = f"org_{key.split('_')[2]}"
        database = Database(self.database, role="system")
        async with database.writer() as connection:
            await connection.execute(
                text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'Test', 'team')"),
                {"id": tenant, "slug": tenant.replace("_", "-")},
            )
        await database.close()
        return key

    def client(self, key: str, *, gateway: int = 0) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key, base_url=f"{self.gateways[gateway]}/v1", max_retries=0)


def _double(port: int) -> Component:
    return Component(
        name="provider",
        argv=(sys.executable, "-m", "tests.doubles.provider", "--port", str(port)),
        env={"PYTHONUNBUFFERED": "1"},
        cwd=REPOSITORY,
        ready=lambda: _listens(port),
    )


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


async def _topics(settings: DatabaseSettings) -> None:
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), settings) as log:
        await log.ensure_topics(list(TOPICS.values()))


@pytest.fixture(scope="session")
def platform(valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder, password = tmp_path_factory.mktemp("openai"), secrets.token_hex(16)
    ports = [free_port() for _ in range(7)]
    provider = f"http://127.0.0.1:{ports[2]}"
    with ExitStack() as stack:

        def begin(component: Component, name: str = "") -> Component:
            return stack.enter_context(running(component, folder / f"{name or component.name}.log"))

        begin(postgres_server(folder, ports[0], password))
        database = database_settings(ports[0], password)
        asyncio.run(_topics(database))
        begin(_double(ports[2]))
        variables = environment(folder, database, valkey, users_port=ports[1], gateway_port=ports[5])
        models = {"name": "double", "base_url": f"{provider}/v1", "api_key": "sk-double"}
        claude = {"name": "claude", "kind": "anthropic", "base_url": provider, "api_key": "sk-double"}
        variables["HEADRACE_PROVIDERS"] = json.dumps([models, claude])
        variables["HEADRACE_LOG_LEVEL"] = "warn"
        variables["HEADRACE_AGENT_HEARTBEAT_SECONDS"] = "0.3"
        begin(process("users_process", ports[1], variables))
        begin(service("relay", free_port(), variables))
        agents = [service("agents", port, variables) for port in ports[3:5]]
        gateways = [
            service(
                "gateway",
                port,
                {
                    **variables,
                    "HEADRACE_AGENTS_URL": found.address,
                    "HEADRACE_SPOOL_DIR": str(folder / f"spool-{port}"),
                },
            )
            for port, found in zip(ports[5:], agents, strict=True)
        ]
        with ThreadPoolExecutor() as together:
            numbered = enumerate((*agents, *gateways))
            list(together.map(lambda one: begin(one[1], f"{one[1].name}-{one[0]}"), numbered))
        yield Platform((gateways[0].address, gateways[1].address), agents[0], gateways[0], provider, database)


@pytest.fixture
async def key(platform: Platform) -> str:
    return await platform.organisation()


@pytest.fixture
async def client(platform: Platform, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with platform.client(key) as opened:
        yield opened


@pytest.fixture
async def elsewhere(platform: Platform, key: str) -> AsyncIterator[AsyncOpenAI]:
    """The same organisation through the other gateway and the other agents service."""
    async with platform.client(key, gateway=1) as opened:
        yield opened
