"""A server given by URL is used, not started."""

from pathlib import Path

import psycopg2
import pytest

from core.database import dsn
from core.settings import CacheSettings, DatabaseSettings
from deploy.components import DATABASE, TOPOLOGY, components, tasks
from deploy.installation import prepare
from deploy.servers.postgres import postgres
from deploy.session import settings_of
from tests.servers import free_port, running


def test_database_and_cache_elsewhere(
    tmp_path: Path, valkey: CacheSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with running(postgres(tmp_path / "elsewhere", port, "super-secret"), tmp_path / "log"):
        given = {
            "HEADRACE_DATABASE_URL": f"postgresql://127.0.0.1:{port}/headrace",
            "HEADRACE_DATABASE_ADMIN_URL": f"postgresql://postgres:super-secret@127.0.0.1:{port}/postgres",
            "HEADRACE_CACHE_URL": valkey.cache_url,
            "HEADRACE_CACHE_PASSWORD": valkey.cache_password.get_secret_value(),
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        installation = prepare(tmp_path / "data", None, None, given)
        parts = components(installation)
        assert not {part.name for part in parts} & {"postgres", "valkey"}
        for task in tasks(installation, parts):
            task.run()
        connection = psycopg2.connect(dsn(settings_of(installation, DatabaseSettings), "system"))
        with connection, connection.cursor() as cursor:
            cursor.execute("select count(*) from eventlog.topic")
            assert cursor.fetchone() > (0,)
        connection.close()
        assert {task.name for task in tasks(installation, parts)} == {DATABASE, TOPOLOGY}


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    given = {"HEADRACE_DATABASE_URL": f"postgresql://127.0.0.1:{port}/headrace"}
    given |= {f"HEADRACE_DATABASE_{role}_PASSWORD": "x-y-z" for role in ("OWNER", "APP", "SYSTEM", "DAGSTER")}
    installation = prepare(tmp_path, None, None, given)
    database = next(task for task in tasks(installation, components(installation)) if task.name == DATABASE)
    with pytest.raises(RuntimeError, match=rf"deploy\.ensure.*port {port} failed"):
        database.run()
