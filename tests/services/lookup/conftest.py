"""Billing and lookup on a PostgreSQL and a lake of their own."""

import secrets
from collections.abc import Iterator

import pytest

from core.settings import CacheSettings, DatabaseSettings
from deploy.servers.postgres import postgres as postgres_server
from tests.servers import database_settings, free_port, running
from tests.services.lookup.world import Running, World, history, platform


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    folder, port, password = tmp_path_factory.mktemp("lookup-postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)


@pytest.fixture(scope="session")
def on(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with platform(tmp_path_factory.mktemp("lookup"), postgres, valkey) as found:
        yield found


@pytest.fixture(scope="session")
def world(on: Running) -> World:
    return history(on)
