"""One gateway process between real callers, a users process and a scripted service."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings
from deploy.component import Component
from deploy.servers.postgres import postgres as postgres_server
from tests.servers import database_settings, free_port, running
from tests.services.gateway.upstream import Upstream
from tests.services.process import environment, service


@dataclass(frozen=True)
class Running:
    """A gateway that answers, and what stands behind it."""

    component: Component
    log: Path

    @property
    def address(self) -> str:
        return self.component.address

    @property
    def port(self) -> int:
        return int(self.component.address.rpartition(":")[2])

    @property
    def users(self) -> str:
        return self.component.env["HEADRACE_USERS_URL"]

    @property
    def billing_port(self) -> int:
        return int(self.component.env["HEADRACE_BILLING_URL"].rpartition(":")[2])

    @property
    def internal_key(self) -> bytes:
        return bytes.fromhex(self.component.env["HEADRACE_INTERNAL_KEY"])


def process(module: str, port: int, variables: dict[str, str]) -> Component:
    """A process of this folder, started as the services are."""
    component = service(module, port, variables)
    argv = (*component.argv[:-1], f"tests.services.gateway.{module}")
    return Component(
        module, argv, env=component.env, cwd=component.cwd, address=component.address,
        ready=component.ready, stop_grace=component.stop_grace,
    )  # fmt: skip


def gateway_component(folder: Path, variables: dict[str, str]) -> Component:
    """The gateway as it is shipped, counting into `folder`."""
    return service("gateway", free_port(), {**variables, "HEADRACE_SPOOL_DIR": str(folder / "spool")})


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    """PostgreSQL of this folder's own: no relay of another test empties its outbox."""
    folder, port, password = tmp_path_factory.mktemp("gateway-postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)


@pytest.fixture(scope="session")
def behind(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Environment of gateways, with a users process running; `HEADRACE_BILLING_URL` is for `upstream`."""
    folder, users_port = tmp_path_factory.mktemp("behind-gateway"), free_port()
    variables = environment(folder, postgres, valkey, users_port=users_port, gateway_port=free_port())
    variables["HEADRACE_BILLING_URL"] = f"http://127.0.0.1:{free_port()}"
    with running(process("users_process", users_port, variables), folder / "users.log"):
        yield variables


@pytest.fixture(scope="session")
def gateway(behind: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    with running(gateway_component(folder, behind), log := folder / "gateway.log") as component:
        yield Running(component, log)


@pytest.fixture(scope="session")
def impatient(behind: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("impatient-gateway")
    variables = {**behind, "HEADRACE_SPOOL_DIR": str(folder / "spool")}
    log = folder / "gateway.log"
    with running(process("impatient_process", free_port(), variables), log) as component:
        yield Running(component, log)


@pytest.fixture(scope="session")
def platform(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A gateway before the real services."""
    folder, users, billing = tmp_path_factory.mktemp("platform"), free_port(), free_port()
    variables = environment(folder, postgres, valkey, users_port=users, gateway_port=free_port())
    variables["HEADRACE_BILLING_URL"] = f"http://127.0.0.1:{billing}"
    with (
        running(service("users", users, variables), folder / "users.log"),
        running(service("billing", billing, variables), folder / "billing.log"),
        running(gateway_component(folder, variables), log := folder / "gateway.log") as gateway,
    ):
        yield Running(gateway, log)


@pytest.fixture
async def upstream(behind: dict[str, str]) -> AsyncIterator[Upstream]:
    """Stands where billing is."""
    async with Upstream(int(behind["HEADRACE_BILLING_URL"].rpartition(":")[2])) as served:
        yield served


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def new_key(*, tenant: str = "", per_minute: int = 60_000) -> str:
    """A key nobody has used yet; of a tenant of its own unless one is named."""
    fresh = new_id("k").removeprefix("k_")
    return f"sk_test_{tenant or fresh}_{per_minute}_{fresh}"


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def caller() -> dict[str, str]:
    """Headers of a caller that may do something."""
    return bearing(new_key())


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection, closed at the end whatever happened on it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
