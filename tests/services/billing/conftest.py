"""A real billing service on a PostgreSQL of its own: nobody else empties its outbox or publishes cells."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from core.clock import now
from core.contracts.usage import UsageData, UsageEvent
from core.database import Database
from core.eventlog import open_eventlog
from core.eventlog.api import EventLog, NewRecord
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings
from core.topology import TOPICS
from deploy.servers.postgres import postgres as postgres_server
from services.billing import store
from services.billing.live import Published
from services.common.principal import HEADER, Principal, sign
from tests.servers import database_settings, free_port, running
from tests.services.process import environment, service

TOPIC = "usage.records"
SCOPES = frozenset({"usage:write", "usage:read", "usage:import", "billing:read"})


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseSettings]:
    folder, port, password = tmp_path_factory.mktemp("billing-postgres"), free_port(), secrets.token_hex(16)
    with running(postgres_server(folder, port, password), folder / "log"):
        yield database_settings(port, password)


@dataclass(frozen=True)
class Running:
    """A billing service that answers."""

    address: str
    environment: dict[str, str]
    log: Path

    def header(self, principal: Principal) -> dict[str, str]:
        """What the gateway would send for this caller."""
        key = bytes.fromhex(self.environment["HEADRACE_INTERNAL_KEY"])
        return {HEADER: sign(principal, key)}


@pytest.fixture(scope="session")
def variables(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("billing-keys")
    return environment(folder, postgres, valkey, users_port=free_port(), gateway_port=free_port())


@pytest.fixture(scope="session")
def billing(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service on the servers of this folder."""
    log = tmp_path_factory.mktemp("billing") / "log"
    with running(service("billing", free_port(), variables), log) as component:
        yield Running(component.address, variables, log)


@dataclass(frozen=True)
class Reply:
    status: int
    json: Any
    headers: Mapping[str, str]


class Caller:
    """Calls a service as one principal."""

    def __init__(self, http: aiohttp.ClientSession, billing: Running, principal: Principal) -> None:
        self.http, self.billing, self.principal = http, billing, principal

    @property
    def tenant(self) -> str:
        return self.principal.tenant_id

    def acting_as(self, principal: Principal) -> "Caller":
        return Caller(self.http, self.billing, principal)

    def at(self, billing: Running) -> "Caller":
        """The same caller at another instance."""
        return Caller(self.http, billing, self.principal)

    async def call(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, **more: Any
    ) -> Reply:
        headers = {**self.billing.header(self.principal), **more.pop("headers", {})}
        async with self.http.request(
            method, self.billing.address + path, params=params, headers=headers, **more
        ) as answer:
            body = await answer.read()
            return Reply(
                answer.status, await answer.json(content_type=None) if body else None, answer.headers
            )

    async def get(self, path: str, **params: str) -> Reply:
        return await self.call("GET", path, params=params)

    async def ask(self, path: str, **params: str) -> Any:
        """The document of a 200."""
        answer = await self.get(path, **params)
        assert answer.status == 200, answer.json
        return answer.json

    async def send(self, events: object, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("POST", "/api/v1/usage/events", json=events, headers=named)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def principal(tenant_id: str, **more: Any) -> Principal:
    return Principal(tenant_id=tenant_id, subject=new_id("key"), kind="api_key", scopes=SCOPES, **more)


async def add_organisation(system: Database) -> str:
    organisation = new_id("org")
    async with system.writer() as connection:
        await connection.execute(
            text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'Test', 'free')"),
            {"id": organisation, "slug": organisation.replace("_", "-")},
        )
    return organisation


@pytest.fixture
async def acme(http: aiohttp.ClientSession, billing: Running, system_database: Database) -> Caller:
    """A key of a new organisation."""
    return Caller(http, billing, principal(await add_organisation(system_database)))


@pytest.fixture
async def other(acme: Caller, system_database: Database) -> Caller:
    """A key of another one."""
    return acme.acting_as(principal(await add_organisation(system_database)))


@pytest.fixture
def owner(acme: Caller) -> Caller:
    """The owner of the platform, whose own organisation has no usage."""
    return acme.acting_as(
        Principal(
            tenant_id=new_id("org"),
            subject=new_id("usr"),
            kind="user",
            scopes=SCOPES | {"billing:write"},
            platform_owner=True,
        )
    )


@pytest.fixture
async def log(postgres: DatabaseSettings) -> AsyncIterator[EventLog]:
    """The event log that the service follows."""
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), postgres) as opened:
        await opened.ensure_topics(list(TOPICS.values()))
        yield opened


def record_of(event: UsageEvent) -> NewRecord:
    return NewRecord(TOPIC, event.key, event.encode())


def usage_event(tenant: str, **fields: Any) -> UsageEvent:
    """An event of now, fields as wanted; `meter`, `quantity` and `dimensions` belong to its data."""
    data = UsageData(
        fields.pop("meter", "llm.tokens.input"),
        fields.pop("quantity", "1"),
        fields.pop("dimensions", {}),
    )
    named = {"id": new_id("evt"), "source": "test", "time": now(), **fields}
    return UsageEvent(tenant=tenant, data=data, type="headrace.usage.v1", specversion="1.0", **named)


@pytest.fixture
def published(system_database: Database) -> Callable[[], Awaitable[Published]]:
    """What cells reflect now, read from the primary."""

    async def read() -> Published:
        async with system_database.writer() as connection:
            return await store.published(connection)

    return read


@pytest.fixture
async def topic_id(system_database: Database) -> AsyncIterator[str]:
    """A topic of the test's own, so that watermarks of tests do not meet."""
    made = new_id("topic")
    yield made
    async with system_database.writer() as connection:
        for table in ("usage_watermark", "usage_conservation"):
            await connection.execute(text(f"delete from {table} where topic_id = :id"), {"id": made})
