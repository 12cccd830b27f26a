"""The embedded PostgreSQL 18, and what happens when it is killed."""

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, tenant
from core.settings import DatabaseSettings
from deploy.component import Component
from deploy.servers.postgres import postgres as postgres_server
from tests.conformance.database.suite import DatabaseSuite
from tests.servers import database_settings, free_port, kill, start, stop


@pytest.fixture
def settings(postgres: DatabaseSettings) -> DatabaseSettings:
    return postgres


class TestPostgres18(DatabaseSuite):
    async def test_it_is_the_version_we_mean(self, system: Database) -> None:
        async with system.reader() as connection:
            assert str(await connection.scalar(text("show server_version"))).startswith("18")


@dataclass
class Server:
    """A PostgreSQL of this test alone."""

    component: Component
    process: subprocess.Popen[bytes]
    settings: DatabaseSettings
    log: Path

    def kill(self) -> None:
        kill(self.process)

    def start(self) -> None:
        self.process = start(self.component, self.log)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    port, password = free_port(), secrets.token_hex(16)
    component = postgres_server(tmp_path, port, password)
    process = start(component, tmp_path / "log")
    server = Server(component, process, database_settings(port, password), tmp_path / "log")
    yield server
    stop(server.component, server.process)


async def test_transactions_wait_for_a_killed_server(own_server: Server) -> None:
    database = Database(own_server.settings, role="system", patience=120)
    insert = text("insert into inbox (tenant_id, consumer, message_id) values ('-', 'test', :id)")
    async with database.writer() as connection:
        await connection.execute(insert, {"id": "before"})

    async def broken() -> None:
        async with database.writer() as connection:
            await connection.execute(insert, {"id": "never"})
            await asyncio.to_thread(own_server.kill)
            await connection.execute(text("select 1"))

    with pytest.raises(DBAPIError):
        await broken()

    async def work(number: int) -> None:
        async with database.writer() as connection:
            await connection.execute(insert, {"id": f"during {number}"})

    # Begun while nobody listens; each waits for the server to be back instead of failing.
    waiting = [asyncio.create_task(work(number)) for number in range(8)]
    await asyncio.sleep(0.2)
    assert not any(task.done() for task in waiting)
    await asyncio.to_thread(own_server.start)
    await asyncio.gather(*waiting)
    async with database.reader() as connection:
        kept = {row[0] for row in await connection.execute(text("select message_id from inbox"))}
    assert kept == {"before", *(f"during {number}" for number in range(8))}
    await database.close()


async def test_a_server_that_stays_away_is_an_error(own_server: Server) -> None:
    database = Database(own_server.settings, role="app", patience=0.3)
    await asyncio.to_thread(own_server.kill)
    with tenant("org_1"), pytest.raises(OSError, match="Connect call failed"):
        async with database.writer():
            pytest.fail("a transaction without a server")
    await database.close()
