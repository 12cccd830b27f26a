"""Real servers for tests, each started once a session when the first test asks for it."""

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from core.database import Database
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings, VectorSettings
from deploy.servers.milvus_lite import milvus_lite as milvus_lite_server
from deploy.servers.postgres import postgres as postgres_server
from deploy.servers.valkey import valkey as valkey_server
from tests import real_data
from tests.servers import database_settings, free_port, running
from tests.stack_servers import (  # noqa: F401
    kafka,
    milvus,
    minio,
    postgres15,
    rabbitmq,
    redis_server,
    stack_programs,
)

REPOSITORY = real_data.REPOSITORY

# The same examples in each run, and none is too slow: the other lane is at work too. To look for new ones:
# `pytest --hypothesis-profile=explore`.
_PATIENT = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("same", derandomize=True, **_PATIENT)  # type: ignore[arg-type]
hypothesis.settings.register_profile("explore", **_PATIENT)  # type: ignore[arg-type]
hypothesis.settings.load_profile("same")

SECOND_LANE = ("tests/deploy/", "tests/e2e/", "tests/services/")
NOT_SECOND = ("tests/deploy/servers/",)
"""So divided, each lane takes about half of the time of all."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(real_data)
    config.addinivalue_line(
        "markers", "stack: needs the real servers; set by itself from the fixtures a test names"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "stack_programs" in getattr(item, "fixturenames", ()):
            item.add_marker("stack")


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    """The two processes of `make test`: each has servers of its own, and always the same files in the same order, so
    that what one test leaves on a server cannot depend on chance."""

    def _split_scope(self, nodeid: str) -> str:
        return "second" if nodeid.startswith(SECOND_LANE) and not nodeid.startswith(NOT_SECOND) else "first"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    return Lanes(config, log)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """The embedded PostgreSQL 18, migrated."""
    folder, port, password = tmp_path_factory.mktemp("postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheSettings]:
    """The embedded Valkey."""
    folder, port, password = tmp_path_factory.mktemp("valkey"), free_port(), secrets.token_hex(16)
    with running(valkey_server(folder, port, password), folder / "log"):
        yield CacheSettings(cache_url=f"redis://127.0.0.1:{port}/0", cache_password=password)


@pytest.fixture(scope="session")
def milvus_lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorSettings]:
    """The embedded vector server, empty; `hash` as the model."""
    folder, port = tmp_path_factory.mktemp("milvus"), free_port()
    with running(milvus_lite_server(folder, port), folder / "log"):
        yield VectorSettings(vectors_url=f"http://127.0.0.1:{port}", embedding_model="hash")


@pytest.fixture
def eventlog_settings() -> EventLogSettings:
    """The event log on the tables of `postgres`."""
    return EventLogSettings(eventlog_url="postgresql:")


@pytest.fixture
async def app_database(postgres: DatabaseSettings) -> AsyncIterator[Database]:
    """Role `app`: needs `with tenant(…)`."""
    database = Database(postgres, role="app")
    yield database
    await database.close()


@pytest.fixture
async def system_database(postgres: DatabaseSettings) -> AsyncIterator[Database]:
    """Role `system`: looks across tenants where a policy names it."""
    database = Database(postgres, role="system")
    yield database
    await database.close()
