"""Servers of their own for tests of runs: nobody else takes them there."""

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from core.settings import CacheSettings
from deploy.servers.postgres import postgres as postgres_server
from services.common.principal import Principal
from tests.servers import database_settings, free_port, running
from tests.services.agents.arena import Arena, Asker
from tests.services.agents.platform import SCOPES, Caller, Platform, agents_service
from tests.services.process import REPOSITORY, environment, service


@pytest.fixture(scope="session")
def arena_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder, port, password = tmp_path_factory.mktemp("agents-postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield Arena(database_settings(port, password), folder)


@pytest.fixture
def arena(arena_server: Arena, tmp_path: Path) -> Arena:
    """The database of these tests with a folder of this one."""
    return Arena(arena_server.settings, tmp_path)


@pytest.fixture
async def asker(arena: Arena) -> AsyncIterator[Asker]:
    """An organisation of this test's own."""
    asker = await Asker.of(arena.settings)
    yield asker
    # Instances of later tests on this database would take what this test left open: eight runs that a drained
    # instance handed over held a killed one's turn back for minutes.
    await asker.execute("delete from run where tenant_id = :t and ended_at is null", t=asker.tenant_id)
    await asker.close()


@pytest.fixture(scope="session")
def platform(valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two instances of the agents service with the scripted loop, and a relay."""
    folder, password = tmp_path_factory.mktemp("agents-platform"), secrets.token_hex(16)
    server = postgres_server(folder / "postgres", port := free_port(), password)
    with ExitStack() as stack:
        stack.enter_context(running(server, folder / "postgres.log"))
        settings = database_settings(port, password)
        variables = environment(folder, settings, valkey, users_port=free_port(), gateway_port=free_port())
        variables["HEADRACE_AGENT_HEARTBEAT_SECONDS"] = "0.2"
        subprocess.run(
            [sys.executable, "-m", "deploy.ensure", "topology"], env=variables, cwd=REPOSITORY, check=True
        )
        stack.enter_context(running(service("relay", free_port(), variables), folder / "relay.log"))
        instances = [
            stack.enter_context(
                running(agents_service(free_port(), variables), folder / f"agents-{number}.log")
            )
            for number in range(2)
        ]
        yield Platform(tuple(instance.address for instance in instances), settings, variables)


@pytest.fixture
async def system(platform: Platform) -> AsyncIterator[Database]:
    """The platform's database, as role `system`."""
    database = Database(platform.settings, role="system")
    yield database
    await database.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def acme(http: aiohttp.ClientSession, platform: Platform, system: Database) -> Caller:
    """A person of a new organisation."""
    return Caller(http, platform, await _member(system))


@pytest.fixture
async def other(acme: Caller, system: Database) -> Caller:
    """A person of another one."""
    return acme.acting_as(await _member(system))


async def _member(system: Database) -> Principal:
    organisation = new_id("org")
    async with system.writer() as connection:
        await connection.execute(
            text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'Test', 'free')"),
            {"id": organisation, "slug": organisation.replace("_", "-")},
        )
    return Principal(tenant_id=organisation, subject=new_id("usr"), kind="user", scopes=SCOPES)
