"""PostgreSQL 15 with its streaming replica."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from core.database import Database, tenant
from core.ids import new_id
from core.settings import DatabaseSettings
from deploy.provision import Programs
from deploy.servers import postgres_stack
from tests.conformance.database.suite import DatabaseSuite, schema, tenants_with_keys
from tests.servers import database_settings, free_port, kill, running, start

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(postgres15: DatabaseSettings) -> DatabaseSettings:
    """Primary alone: the suite reads what it has written elsewhere a moment ago."""
    return postgres15.model_copy(update={"database_replica_url": None})


class TestPostgres15(DatabaseSuite):
    async def test_it_is_the_version_we_mean(self, system: Database) -> None:
        async with system.reader() as connection:
            assert str(await connection.scalar(text("show server_version"))).startswith("15")


async def test_migrations_make_the_same_on_both_versions(
    postgres15: DatabaseSettings, postgres: DatabaseSettings
) -> None:
    old, new = (Database(settings, role="system") for settings in (postgres15, postgres))
    assert await schema(old) == await schema(new)
    for database in (old, new):
        await database.close()


async def on_replica(database: Database) -> bool:
    async with database.reader() as connection:
        return bool(await connection.scalar(text("select pg_is_in_recovery()")))


async def test_reads_go_to_the_replica_but_not_after_an_own_write(postgres15: DatabaseSettings) -> None:
    writer, quiet = new_id("org"), new_id("org")
    app, system = Database(postgres15, role="app", pin_seconds=1), Database(postgres15, role="system")
    with tenant(quiet):
        while not await on_replica(app):  # the guard has not asked yet  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await tenants_with_keys(system, app, writer)
    with tenant(writer):
        async with app.reader() as connection:
            assert not await connection.scalar(text("select pg_is_in_recovery()"))
            assert len((await connection.execute(text("select * from api_key"))).all()) == 1
    with tenant(quiet):
        assert await on_replica(app)
    with tenant(writer):
        while not await on_replica(app):  # the pin has a time  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for database in (app, system):
        await database.close()


async def test_row_security_holds_on_the_replica(postgres15: DatabaseSettings) -> None:
    mine, other = new_id("org"), new_id("org")
    app, system = Database(postgres15, role="app", pin_seconds=0), Database(postgres15, role="system")
    await tenants_with_keys(system, app, mine, other)
    with tenant(mine):
        while True:
            async with app.reader() as connection:
                recovering = await connection.scalar(text("select pg_is_in_recovery()"))
                rows = (await connection.execute(text("select tenant_id from api_key"))).scalars().all()
            if recovering and rows:
                break
            await asyncio.sleep(0.05)
    assert rows == [mine]
    for database in (app, system):
        await database.close()


@pytest.mark.parametrize("max_staleness", [10.0, -1.0])
async def test_an_absent_or_stale_replica_is_left_out(
    postgres15: DatabaseSettings, max_staleness: float
) -> None:
    settings = postgres15
    if max_staleness > 0:
        nobody = f"postgresql://127.0.0.1:{free_port()}/headrace"
        settings = postgres15.model_copy(update={"database_replica_url": nobody})
    app = Database(settings, role="app", max_staleness=max_staleness)
    with tenant("org_1"):
        assert not await on_replica(app)
    await app.close()


async def test_the_writing_host_of_several_is_found(postgres15: DatabaseSettings) -> None:
    assert postgres15.database_replica_url is not None
    hosts = [url.split("/")[2] for url in (postgres15.database_replica_url, postgres15.database_url)]
    both = postgres15.model_copy(
        update={"database_url": f"postgresql://{','.join(hosts)}/headrace", "database_replica_url": None}
    )
    system = Database(both, role="system")
    async with system.writer() as connection:
        assert not await connection.scalar(text("select pg_is_in_recovery()"))
    await system.close()


@asynccontextmanager
async def pair(
    programs: Programs, folder: Path
) -> AsyncIterator[tuple[Database, Database, subprocess.Popen[bytes]]]:
    """A primary and its replica: the application that reads there, the system, the replica's process."""
    port, replica_port = free_port(), free_port()
    primary = postgres_stack.primary(folder, port, "0123456789abcdef", binaries=programs.postgres)
    with running(primary, folder / "primary.log"):
        replica = postgres_stack.replica(
            folder, replica_port, port, superuser_password="0123456789abcdef",
            replication_password="fedcba9876543210", binaries=programs.postgres,
        )  # fmt: skip
        process = start(replica, folder / "replica.log")
        settings = database_settings(port, "0123456789abcdef").model_copy(
            update={"database_replica_url": f"postgresql://127.0.0.1:{replica_port}/headrace"}
        )
        app, system = Database(settings, role="app", patience=60), Database(settings, role="system")
        try:
            while not await on_replica(app):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            yield app, system, process
        finally:
            await app.close()
            await system.close()
            kill(process)


async def left_out(app: Database) -> None:
    async with asyncio.timeout(30):
        while await on_replica(app):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_replica_that_dies_is_replaced_within_the_read(
    stack_programs: Programs, tmp_path: Path
) -> None:
    with tenant("org_1"):
        async with pair(stack_programs, tmp_path) as (app, _, process):
            # The guard believes in it for up to a second more; its pooled connections are dead.
            await asyncio.to_thread(kill, process)
            # A backend notices that its postmaster is gone; until then it may answer once more.
            await left_out(app)
            assert not await on_replica(app)


async def test_a_replica_that_hears_nothing_any_more_is_left_out(
    stack_programs: Programs, tmp_path: Path
) -> None:
    """A connection that is cut off without a word: the replica has replayed all it received."""
    with tenant("org_1"):
        async with pair(stack_programs, tmp_path) as (app, system, _):
            async with system.writer() as connection:
                sender = int(await connection.scalar(text("select pid from pg_stat_replication")) or 0)
            os.kill(sender, signal.SIGSTOP)
            try:
                await left_out(app)
                assert not await on_replica(app)
            finally:
                os.kill(sender, signal.SIGCONT)
