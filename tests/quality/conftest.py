"""PostgreSQL of this folder's own: suites judge the whole price book, and other tests leave strange prices."""

import secrets
from collections.abc import Iterator

import pytest

from core.settings import DatabaseSettings
from deploy.servers.postgres import postgres as postgres_server
from tests.servers import database_settings, free_port, running


@pytest.fixture(scope="package")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    folder, port, password = tmp_path_factory.mktemp("quality-postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)
