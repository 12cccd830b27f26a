"""What every PostgreSQL must do for us. A server's test module subclasses `DatabaseSuite`."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from core.database import Database, TenantRequiredError, tenant
from core.ids import new_id
from core.settings import DatabaseSettings
from deploy import migrate

KEY = text(
    "insert into api_key (tenant_id, id, public_id, name, key_sha256, scopes, created_by) "
    "values (:tenant, :id, :id, 'n', decode(repeat('00', 32), 'hex'), '{usage:read}', 'usr_1')"
)

SCHEMA = """
    with space as (select oid, nspname from pg_namespace where nspname in ('public', 'eventlog'))
    select 'column' as kind, nspname || '.' || relname || '.' || attname as name,
           format_type(atttypid, atttypmod) || ' ' || attnotnull as content
    from space join pg_class on relnamespace = space.oid join pg_attribute on attrelid = pg_class.oid
    where relkind = 'r' and attnum > 0 and not attisdropped
    union all
    select 'constraint', nspname || '.' || conname, pg_get_constraintdef(pg_constraint.oid)
    from space join pg_constraint on connamespace = space.oid where contype <> 'n'
    union all
    select 'index', schemaname || '.' || indexname, indexdef from pg_indexes join space on nspname = schemaname
    union all
    select 'policy', schemaname || '.' || tablename || '.' || policyname,
           concat_ws(' ', cmd, roles::text, qual, with_check) from pg_policies join space on nspname = schemaname
    union all
    select 'grant', nspname || '.' || relname, replace(array_to_string(relacl, ' '), 'xtm/', 'xt/')
    from space join pg_class on relnamespace = space.oid where relkind = 'r'
    union all
    select 'function', nspname || '.' || proname, pg_get_functiondef(pg_proc.oid) || proacl::text
    from space join pg_proc on pronamespace = space.oid
    order by 1, 2, 3
"""


async def tenants_with_keys(system: Database, app: Database, *orgs: str) -> None:
    """Organisations with one API key each."""
    async with system.writer() as connection:
        for org in orgs:
            await connection.execute(
                text("insert into organisation (id, slug, name, plan) values (:id, :slug, :id, 'free')"),
                {"id": org, "slug": org.replace("_", "-")},
            )
    for org in orgs:
        with tenant(org):
            async with app.writer() as connection:
                await connection.execute(KEY, {"tenant": org, "id": new_id("key")})


async def schema(database: Database) -> list[tuple[object, ...]]:
    """What the migrations made: columns, constraints, indexes, policies, functions, and grants (without
    the owner's right MAINTAIN, which PostgreSQL 17 brought)."""
    async with database.reader() as connection:
        rows = await connection.execute(text(SCHEMA))
        return [tuple(row) for row in rows]


class DatabaseSuite:
    """Subclasses give the fixture `settings`."""

    @pytest.fixture
    async def app(self, settings: DatabaseSettings) -> AsyncIterator[Database]:
        database = Database(settings, role="app", statement_timeout=5)
        yield database
        await database.close()

    @pytest.fixture
    async def system(self, settings: DatabaseSettings) -> AsyncIterator[Database]:
        database = Database(settings, role="system")
        yield database
        await database.close()

    async def test_a_wrong_query_sees_its_own_tenant_only(self, app: Database, system: Database) -> None:
        mine, other = new_id("org"), new_id("org")
        await tenants_with_keys(system, app, mine, other)
        for org in (mine, other):
            with tenant(org):
                for access in (app.reader, app.writer):
                    async with access() as connection:
                        rows = await connection.execute(text("select tenant_id from api_key"))
                        assert [row[0] for row in rows] == [org]
                        named = await connection.execute(
                            text("select * from api_key where tenant_id <> :org"), {"org": org}
                        )
                        assert named.all() == []
        with tenant("org_nobody"):
            async with app.reader() as connection:
                assert (await connection.execute(text("select * from api_key"))).all() == []

    async def test_a_connection_that_had_a_tenant_keeps_none(
        self, settings: DatabaseSettings, app: Database, system: Database
    ) -> None:
        org = new_id("org")
        await tenants_with_keys(system, app, org)
        one = Database(settings.model_copy(update={"database_pool_size": 1}), role="app")
        with tenant(org):
            async with one.writer() as connection:
                assert len((await connection.execute(text("select * from api_key"))).all()) == 1
        # Past `Database`, straight from its pool: what a forgotten tenant would see.
        async with one._writer.begin() as connection:
            assert await connection.scalar(text("select current_setting('app.tenant', true)")) == ""
            assert (await connection.execute(text("select * from api_key"))).all() == []
            assert (await connection.execute(text("select * from organisation"))).all() == []
        await one.close()

    async def test_writes_for_another_tenant_are_refused(self, app: Database, system: Database) -> None:
        mine, other = new_id("org"), new_id("org")
        await tenants_with_keys(system, app, mine, other)

        async def intrude() -> None:
            async with app.writer() as connection:
                await connection.execute(KEY, {"tenant": other, "id": new_id("key")})

        with tenant(mine):
            with pytest.raises(DBAPIError, match="row-level security"):
                await intrude()
            async with app.writer() as connection:
                changed = await connection.execute(text("update api_key set name = 'stolen'"))
                assert changed.rowcount == 1
        with tenant(other):
            async with app.reader() as connection:
                assert await connection.scalar(text("select name from api_key")) == "n"

    async def test_no_tenant_no_transaction(self, app: Database) -> None:
        for access in (app.reader, app.writer):
            with pytest.raises(TenantRequiredError, match="with tenant"):
                async with access():
                    pytest.fail("a transaction without a tenant")
        with pytest.raises(ValueError, match="empty"), tenant(""):
            pytest.fail("an empty tenant")

    async def test_every_tenant_table_forces_row_security(self, system: Database) -> None:
        async with system.reader() as connection:
            rows = await connection.execute(
                text(
                    """
                    select distinct c.relname, c.relrowsecurity and c.relforcerowsecurity
                    from pg_class c join pg_attribute a on a.attrelid = c.oid
                    where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
                    and (a.attname = 'tenant_id' or c.relname in ('organisation', 'person'))
                    """
                )
            )
            forced = {str(row[0]): bool(row[1]) for row in rows}
        assert len(forced) > 10
        assert forced == dict.fromkeys(forced, True)

    @pytest.mark.parametrize("role", ["hr_app", "hr_system", "hr_owner"])
    async def test_no_role_can_pass_row_security(self, system: Database, role: str) -> None:
        async with system.reader() as connection:
            rights = await connection.execute(
                text(
                    "select rolsuper, rolbypassrls, rolcreaterole, rolreplication from pg_roles where rolname = :role"
                ),
                {"role": role},
            )
            assert tuple(rights.one()) == (False, False, False, False)

    async def test_migrating_again_changes_nothing(
        self, settings: DatabaseSettings, system: Database
    ) -> None:
        before = await schema(system)
        await asyncio.to_thread(migrate.upgrade, settings)
        assert await schema(system) == before
        assert len(before) > 100

    async def test_an_error_rolls_back(self, app: Database, system: Database) -> None:
        org = new_id("org")
        await tenants_with_keys(system, app, org)

        async def fail() -> None:
            async with app.writer() as connection:
                await connection.execute(text("update api_key set name = 'half'"))
                raise ZeroDivisionError

        with tenant(org):
            with pytest.raises(ZeroDivisionError):
                await fail()
            async with app.reader() as connection:
                assert await connection.scalar(text("select name from api_key")) == "n"

    async def test_readers_cannot_write(self, app: Database) -> None:
        with tenant("org_1"):
            async with app.reader() as connection:
                with pytest.raises(DBAPIError, match="read-only transaction"):
                    await connection.execute(text("update api_key set name = 'x'"))

    async def test_slow_statements_are_cancelled(self, settings: DatabaseSettings) -> None:
        impatient = Database(settings, role="app", statement_timeout=0.1)
        with tenant("org_1"):
            async with impatient.writer() as connection:
                with pytest.raises(DBAPIError, match="statement timeout"):
                    await connection.execute(text("select pg_sleep(60)"))
            async with impatient.writer() as connection:
                assert await connection.scalar(text("select 1")) == 1
        await impatient.close()

    async def test_a_cancelled_task_gives_its_connection_back(self, settings: DatabaseSettings) -> None:
        one = Database(settings.model_copy(update={"database_pool_size": 1}), role="app")

        async def sleep() -> None:
            async with one.writer() as connection:
                started.set()
                await connection.execute(text("select pg_sleep(60)"))

        with tenant("org_1"):
            for _ in range(3):
                started = asyncio.Event()
                task = asyncio.create_task(sleep())
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with one.writer() as connection:
                    assert await connection.scalar(text("select 1")) == 1
        await one.close()

    async def test_statements_and_pools_are_measured(self, app: Database) -> None:
        def figure(name: str, **labels: str) -> float:
            return REGISTRY.get_sample_value(name, labels) or 0.0

        before = figure("db_query_duration_seconds_count")
        with tenant("org_1"):
            async with app.writer() as connection:
                await connection.execute(text("select 1"))
                assert figure("db_pool_connections", state="in_use") >= 1
                assert figure("db_pool_connections", state="max") >= 5
        assert figure("db_query_duration_seconds_count") >= before + 2
