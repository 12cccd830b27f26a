"""One real users service for the tests of this folder, and callers of it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiohttp
import bcrypt
import httpx2
import pytest
from sqlalchemy import text

from core.clock import now
from core.contracts.audit import AuditEvent, parse
from core.database import Database
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings
from services.common.principal import HEADER, Principal, sign, system
from services.users.passwords import prehash
from tests.servers import free_port, running, wait_for
from tests.services.process import OWNER_EMAIL, environment, service


@dataclass(frozen=True)
class Running:
    """A users service that answers, and what it was started with."""

    address: str
    environment: dict[str, str]
    log: Path

    @property
    def internal_key(self) -> bytes:
        return bytes.fromhex(self.environment["HEADRACE_INTERNAL_KEY"])

    @property
    def owner_password(self) -> str:
        return self.environment["HEADRACE_OWNER_PASSWORD"]

    @property
    def mail_dir(self) -> Path:
        return Path(self.environment["HEADRACE_MAIL_DIR"])

    def mails(self, email: str) -> list[EmailMessage]:
        """What was sent to an address, oldest first."""
        files = sorted(self.mail_dir.glob("*.eml"))
        read = [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]
        return [mail for mail in read if mail["To"] == email]

    def header(self, principal: Principal) -> dict[str, str]:
        """What the gateway would send for this caller."""
        return {HEADER: sign(principal, self.internal_key)}


@dataclass(frozen=True)
class Reply:
    status: int
    json: Any
    headers: Any


class Caller:
    """Calls the service over HTTP as somebody."""

    def __init__(self, http: aiohttp.ClientSession, users: Running, headers: dict[str, str]) -> None:
        self.http, self.users, self.headers = http, users, headers

    def bearing(self, credential: str) -> "Caller":
        return Caller(self.http, self.users, {"authorization": f"Bearer {credential}"})

    def acting_as(self, principal: Principal) -> "Caller":
        return Caller(self.http, self.users, self.users.header(principal))

    async def call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Reply:
        sent = {**self.headers, **(headers or {})}
        async with self.http.request(method, self.users.address + path, json=body, headers=sent) as answer:
            text = await answer.read()
            return Reply(
                answer.status, await answer.json(content_type=None) if text else None, answer.headers
            )

    async def get(self, path: str) -> Reply:
        return await self.call("GET", path)

    async def post(self, path: str, body: object, **headers: str) -> Reply:
        return await self.call("POST", path, body, {name.replace("_", "-"): v for name, v in headers.items()})

    async def patch(self, path: str, body: object) -> Reply:
        return await self.call("PATCH", path, body)

    async def delete(self, path: str) -> Reply:
        return await self.call("DELETE", path)

    def from_network(self, address: str) -> "Caller":
        """The same caller at another client address, as the gateway would say it."""
        return Caller(self.http, self.users, {**self.headers, "x-forwarded-for": address})

    async def login(self, password: str | None = None, email: str = OWNER_EMAIL, **more: str) -> Reply:
        body = {"email": email, "password": password or self.users.owner_password, **more}
        return await self.post("/api/v1/auth/login", body)

    async def introspect(self, key: str) -> Any:
        answer = await self.acting_as(system("test")).post("/internal/introspect", {"key": key})
        assert answer.status == 200
        return answer.json


@pytest.fixture(scope="session")
def users(
    postgres: DatabaseSettings, valkey: CacheSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The service on the session's servers."""
    folder, port = tmp_path_factory.mktemp("users"), free_port()
    variables = environment(folder, postgres, valkey, users_port=port, gateway_port=free_port())
    with running(service("users", port, variables), folder / "log") as component:
        yield Running(component.address, variables, folder / "log")


@pytest.fixture
async def anybody(users: Running) -> AsyncIterator[Caller]:
    """A caller without credentials."""
    async with aiohttp.ClientSession() as http:
        yield Caller(http, users, {})


@pytest.fixture(scope="session")
def owner_token(users: Running) -> str:
    """An access token of the owner of the platform; one login for all tests (bcrypt is slow on purpose)."""
    body = {"email": OWNER_EMAIL, "password": users.owner_password}
    answer = httpx2.post(users.address + "/api/v1/auth/login", json=body)
    return str(answer.raise_for_status().json()["access_token"])


@pytest.fixture
def owner(anybody: Caller, owner_token: str) -> Caller:
    """The owner of the platform, logged in."""
    return anybody.bearing(owner_token)


@dataclass(frozen=True)
class Tenant:
    """An organisation and a key of it with all that keys are tested with."""

    id: str
    slug: str
    key_id: str
    key: str
    caller: Caller

    @property
    def keys(self) -> str:
        return f"/api/v1/organizations/{self.id}/keys"


SCOPES = ("keys:read", "keys:write", "org:read", "usage:read")


async def new_tenant(owner: Caller, scopes: tuple[str, ...] = SCOPES) -> Tenant:
    """Made through the API, as everybody's."""
    slug = new_id("t").replace("_", "-")
    made = await owner.post("/api/v1/organizations", {"slug": slug, "name": f"Tenant {slug}"})
    assert made.status == 201, made.json
    organization = made.json["id"]
    key = await owner.post(
        f"/api/v1/organizations/{organization}/keys", {"name": "first", "scopes": list(scopes)}
    )
    assert key.status == 201, key.json
    return Tenant(organization, slug, key.json["id"], key.json["key"], owner.bearing(key.json["key"]))


@pytest.fixture
async def acme(owner: Caller) -> Tenant:
    return await new_tenant(owner)


@pytest.fixture
def acme_key(acme: Tenant) -> Caller:
    """Calls with an API key."""
    return acme.caller


@pytest.fixture
async def other(owner: Caller) -> Tenant:
    return await new_tenant(owner)


async def audited(system: Database, target: str) -> list[AuditEvent]:
    """Audit events about `target`, oldest first, wherever they are on their way."""
    async with system.reader() as connection:
        found = await connection.execute(
            text(
                "select value from outbox where topic = 'audit.logs' union all select r.value from eventlog.record r"
                " join eventlog.topic t on t.ref = r.topic_ref where t.name = 'audit.logs'"
            )
        )
        events = [parse(bytes(value)) for value in found.scalars()]
    return sorted((event for event in events if event.target == target), key=lambda event: event.id)


async def actions(system: Database, target: str) -> list[str]:
    """What was done to `target`, oldest first."""
    return [event.action for event in await audited(system, target)]


async def add_person(
    system: Database, password_hash: str, memberships: dict[str, str], *, platform_owner: bool = False
) -> tuple[str, str]:
    """(id, e-mail) of a new person with a role in each of the organisations."""
    person_id = new_id("usr")
    email = f"{person_id}@example.org"
    async with system.writer() as connection:
        await connection.execute(
            text(
                "insert into person (id, email, password_hash, platform_owner) values (:id, :email, :hash, :owner)"
            ),
            {"id": person_id, "email": email, "hash": password_hash, "owner": platform_owner},
        )
        for organization, role in memberships.items():
            await connection.execute(
                text("insert into membership (tenant_id, person_id, role) values (:tenant, :person, :role)"),
                {"tenant": organization, "person": person_id, "role": role},
            )
    return person_id, email


async def until(instant: datetime) -> None:
    """Sleep until `instant` has passed."""
    await asyncio.sleep(max(0.0, (instant - now()).total_seconds()) + 0.01)


PASSWORD = "the same password for everybody"


@dataclass(frozen=True)
class Somebody:
    """A person with a role in an organisation."""

    id: str
    email: str

    async def login(self, anybody: Caller, **more: str) -> Any:
        answer = await anybody.login(PASSWORD, self.email, **more)
        assert answer.status == 200, answer.json
        return answer.json


@pytest.fixture(scope="session")
def cheap_hash() -> str:
    """Of PASSWORD, with bcrypt's least work."""
    return bcrypt.hashpw(prehash(PASSWORD), bcrypt.gensalt(4)).decode()


@pytest.fixture
async def person(system_database: Database, acme: Tenant, cheap_hash: str) -> Somebody:
    """A developer of `acme`."""
    return Somebody(*await add_person(system_database, cheap_hash, {acme.id: "developer"}))


async def mailed(users: Running, email: str, subject: str, count: int = 1) -> str:
    """Token of the newest of `count` mails with this subject."""

    def found() -> list[EmailMessage]:
        return [mail for mail in users.mails(email) if subject in mail["Subject"]]

    await asyncio.to_thread(wait_for, lambda: len(found()) >= count)
    match = re.search(r"token=([A-Za-z0-9_-]+)", found()[-1].get_content())
    return match[1] if match else ""


async def refused_soon(caller: Caller) -> None:
    """The access token is good no more: notices reach every cache within 2 seconds."""
    async with asyncio.timeout(10):
        while (await caller.get("/api/v1/me")).status != 401:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
