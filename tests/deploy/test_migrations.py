"""Migrations on databases with rows in every table, as installations have them."""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Literal

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from core.database import dsn
from core.settings import DatabaseSettings
from deploy import migrate
from deploy.provision import Programs
from deploy.servers import postgres_stack
from deploy.servers.postgres import postgres as embedded
from tests.deploy.rows import Table, World, fill, tables
from tests.servers import database_settings, free_port, running

Rows = Mapping[Table, list[dict[str, Any]]]
Server = tuple[DatabaseSettings, Connection]


@pytest.fixture(params=["embedded", pytest.param("stack", marks=pytest.mark.stack)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own with roles and no table, and a superuser's connection to it."""
    folder, port, password = tmp_path_factory.mktemp("migrations"), free_port(), secrets.token_hex(16)
    if request.param == "embedded":
        component = embedded(folder, port, password)
    else:
        programs: Programs = request.getfixturevalue("stack_programs")
        component = postgres_stack.primary(folder, port, password, binaries=programs.postgres)
    with running(component, folder / "log"):
        settings = database_settings(port, password, migrated=False)
        superuser = f"postgresql://postgres:{password}@127.0.0.1:{port}/headrace"
        with closing(psycopg2.connect(superuser)) as connection:
            yield settings, connection


def rows(connection: Connection, wanted: Mapping[Table, Any]) -> Rows:
    found = {}
    with connection, connection.cursor() as cursor:
        for table in wanted:
            cursor.execute(sql.SQL("select to_jsonb(t) from {} t").format(sql.Identifier(*table)))
            found[table] = [row for (row,) in cursor]
    return found


def lost(before: Rows, after: Rows) -> list[tuple[Table, dict[str, Any]]]:
    """Rows that are not there any more, or say something else."""
    return [
        (table, row)
        for table, each in before.items()
        for row in each
        if not any(row.items() <= now.items() for now in after[table])
    ]


def visible(settings: DatabaseSettings, role: Literal["app", "system"], wanted: Rows, tenant: str) -> Rows:
    """What a role sees of the tables that it may read."""
    with closing(psycopg2.connect(dsn(settings, role))) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("select set_config('app.tenant', %s, false)", (tenant,))
            cursor.execute(
                "select schemaname, tablename from pg_tables where has_schema_privilege(schemaname, 'usage') and "
                "has_table_privilege(format('%I.%I', schemaname, tablename), 'select')"
            )
            readable = {table for table in cursor if table in wanted}
        return rows(connection, dict.fromkeys(readable))


def test_each_revision_keeps_the_rows_of_all_before_it_and_who_sees_them(server: Server) -> None:
    settings, superuser = server
    before: Rows = {}
    worlds = []
    for number, revision in enumerate(migrate.revisions(), 2):
        migrate.upgrade(settings, revision)
        assert lost(before, rows(superuser, before)) == []
        worlds.append(World(number))
        fill(superuser, worlds[-1])
        before = rows(superuser, tables(superuser))
        assert all(len(each) for each in before.values())

    counts = {table: len(each) for table, each in before.items()}
    system = visible(settings, "system", before, "")
    assert {table: len(each) for table, each in system.items()} == {table: counts[table] for table in system}
    assert len(system) > 50
    for world in worlds:
        seen = visible(settings, "app", before, world.tenant)
        owned = Counter(row["tenant_id"] for each in seen.values() for row in each if "tenant_id" in row)
        expected = Counter(
            row["tenant_id"]
            for table in seen
            for row in before[table]
            if row.get("tenant_id") == world.tenant
        )
        assert owned == expected
        assert owned[world.tenant] > 5
