"""Two organisations on real services, each with a marker in everything that can hold one."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bcrypt
import httpx2
from sqlalchemy import text

from core.clock import now, rfc3339
from core.database import Database
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings, VectorSettings
from services.common.principal import HEADER, sign, system
from services.users.passwords import prehash
from services.users.roles import SCOPES
from tests.e2e import belongings
from tests.e2e.belongings import Belongings
from tests.servers import free_port, running
from tests.services.process import OWNER_EMAIL, REPOSITORY, environment, service

BEHIND = ("users", "billing", "lookup", "agents", "memory", "ws", "relay")
"""Services whose routes are tried. A new service is named here."""
PASSWORD = "the password of every admin in this test"
ORGANIZATIONS = "/api/v1/organizations"
NEUTRAL: Final = {
    "limit", "order", "after", "before", "from", "to", "grain", "meter",
    "start", "end", "name", "queue", "state", "fate", "code", "incomplete", "after_seq", "starting_after", "stream",
    "provider", "model", "source", "id", "partition", "offset", "topic_id", "period",
}  # fmt: skip
"""Query parameters that name nothing of anybody's; cursors only bound a list."""
_HOURS: Final = {"since": "2020-02-01T00:00:00Z", "until": "2020-03-01T00:00:00Z"}
LOOKUPS: Final[dict[str, dict[str, Any]]] = {
    "sums": {"slice": 0},
    "rows": {"slice": 0, "meter": "tool.calls", "selections": [{"dimensions": "{}", **_HOURS}]},
    "event": {"source": "x", "id": "x"},
    "record": {"partition": 0, "offset": 0},
    "fates": {"slice": 0, **_HOURS},
}
"""Questions to the lookup about an organisation, each whole: nothing but the missing right is refused."""
REQUIRED: Final = {"start": "0", "end": "100", "name": "x.txt"}
"""Values of parameters without which a request is refused before anybody looks whose it is."""


@dataclass(frozen=True)
class Platform:
    """Addresses of gateway and services, and what they were started with."""

    gateway: str
    services: dict[str, str]
    environment: dict[str, str]

    def as_system(self) -> dict[str, str]:
        """Headers of a part of the platform."""
        return {HEADER: sign(system("test"), bytes.fromhex(self.environment["HEADRACE_INTERNAL_KEY"]))}

    def login(self, email: str, password: str, organization: str | None = None) -> str:
        body = {"email": email, "password": password}
        named = body if organization is None else {**body, "organization": organization}
        answer = httpx2.post(f"{self.gateway}/api/v1/auth/login", json=named)
        return str(answer.raise_for_status().json()["access_token"])


@contextmanager
def platform(
    folder: Path, database: DatabaseSettings, cache: CacheSettings, vectors: VectorSettings
) -> Iterator[Platform]:
    """The gateway and the services behind it, as processes."""
    ports = {name: free_port() for name in (*BEHIND, "gateway")}
    variables = environment(
        folder, database, cache, users_port=ports["users"], gateway_port=ports["gateway"]
    ) | {f"HEADRACE_{name.upper()}_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()}
    variables["HEADRACE_SPOOL_DIR"] = str(folder / "spool")
    variables |= belongings.variables(folder, vectors, free_port())
    subprocess.run(
        [sys.executable, "-m", "deploy.ensure", "topology"], env=variables, cwd=REPOSITORY, check=True
    )
    with ExitStack() as stack:
        at = {
            name: stack.enter_context(running(service(name, port, variables), folder / f"{name}.log")).address
            for name, port in ports.items()
        }
        yield Platform(at.pop("gateway"), at, variables)


@dataclass(frozen=True)
class Side:
    """One of the two organisations, and what may stand in nobody else's answers."""

    marker: str
    id: str
    slug: str
    email: str
    key_id: str
    key: str
    spare_key_id: str
    """A key that may be rotated and revoked."""
    person_token: str
    person_id: str
    session_id: str
    invitation_id: str
    import_id: str
    invoice_id: str
    price_fix_id: str
    """The platform's, about this organisation."""
    has: Belongings

    @property
    def traces(self) -> tuple[str, ...]:
        """What betrays this organisation wherever it appears."""
        return (self.marker, self.id, self.slug, self.key_id, self.spare_key_id, self.import_id, self.email,
                self.person_id, self.session_id, self.invitation_id, self.invoice_id, self.price_fix_id,
                *self.has.ids)  # fmt: skip

    @property
    def credentials(self) -> dict[str, str]:
        return {"API key": self.key, "access token": self.person_token}

    def event(self, event_id: str, **more: object) -> dict[str, object]:
        """A usage event of now with the marker in it."""
        return {
            "specversion": "1.0", "type": "headrace.usage.v1", "id": event_id, "source": self.marker,
            "time": rfc3339(now()), "subject": self.marker,
            "data": {"meter": "llm.tokens.input", "quantity": "1", "dimensions": {"model": self.marker}},
        } | more  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One method of one path of one service."""

    service: str
    method: str
    path: str
    parameters: dict[str, str]
    """Name → where it stands (path, query, header)."""
    has_body: bool

    def names(self, place: str) -> list[str]:
        return [name for name, where in self.parameters.items() if where == place]

    @property
    def required(self) -> dict[str, str]:
        """Query parameters without which it is refused whoever asks."""
        return {name: REQUIRED[name] for name in self.names("query") if name in REQUIRED}

    @property
    def headers(self) -> dict[str, str]:
        """Headers without which it is refused whoever asks."""
        return {"if-match": "*"} if "if-match" in self.names("header") else {}

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def operations(on: Platform) -> list[Operation]:
    """Every route of every service, as the services themselves declare them."""
    found = []
    for name, address in on.services.items():
        paths = httpx2.get(f"{address}/openapi.json").raise_for_status().json()["paths"]
        for path, methods in paths.items():
            for method, about in methods.items():
                parameters = {one["name"]: one["in"] for one in about.get("parameters", ())}
                found.append(Operation(name, method.upper(), path, parameters, "requestBody" in about))
    return found


def named(operation: Operation, place: str, side: Side) -> dict[str, list[str]]:
    """How each parameter at `place` can name what belongs to `side`."""
    ways = {
        "path": {
            "key_id": [side.key_id],
            "person_id": [side.person_id],
            "session_id": [side.session_id],
            "invitation_id": [side.invitation_id],
            "hold": [side.marker],
            "invoice": [side.invoice_id],
            "line": ["1"],
            "month": ["2020-02"],
            "price_fix": [side.price_fix_id],
            **belongings.ways(operation.path, side),
        },
        "query": {
            "tenant": [side.id, side.slug],
            "slug": [side.slug],
            "agent": [side.slug, side.has.agent],
        },
    }[place]
    unknown = set(operation.names(place)) - ways.keys() - (NEUTRAL if place == "query" else set())
    assert not unknown, f"{operation}: say here what the {place} parameter {unknown} can name"
    return {name: ways[name] for name in operation.names(place) if name in ways}


def first(operation: Operation, side: Side) -> dict[str, str]:
    """Values for the path that belong to `side`."""
    return {name: ways[0] for name, ways in named(operation, "path", side).items()}


def body(operation: Operation, ours: Side, theirs: Side) -> Any:
    """A body that we may send, naming them wherever the contract has a place for it."""
    today = rfc3339(now())
    bodies: dict[str, Any] = {
        "POST /api/v1/auth/login": {"email": ours.email, "password": PASSWORD, "organization": theirs.slug},
        "POST /api/v1/auth/register": {"email": theirs.email, "password": PASSWORD},
        "POST /api/v1/auth/verify-email": {"token": "x", "password": PASSWORD},
        "POST /api/v1/auth/forgot": {"email": theirs.email},
        "POST /api/v1/auth/reset": {"token": "x", "password": PASSWORD},
        "POST /api/v1/auth/challenge": {"challenge": "x", "code": "000000"},
        "POST /api/v1/auth/refresh": {"refresh_token": "x"},
        "POST /api/v1/auth/logout": {"refresh_token": "x"},
        "POST /api/v1/auth/password": {"current_password": "wrong", "new_password": PASSWORD},
        "PATCH /api/v1/me": {"name": ours.marker},
        "POST /api/v1/auth/mfa/totp": {"password": "wrong"},
        "POST /api/v1/auth/mfa/totp/confirm": {"code": "000000"},
        "POST /api/v1/auth/mfa/totp/disable": {"password": "wrong", "code": "000000"},
        "POST /api/v1/auth/mfa/recovery-codes": {"password": "wrong", "code": "000000"},
        "POST /api/v1/auth/invitations/accept": {"token": "x", "password": PASSWORD},
        "POST /api/v1/organizations/{id}/invitations": {"email": ours.email},
        "PATCH /api/v1/organizations/{id}/members/{person_id}": {"role": "viewer"},
        "POST /internal/sessions": {"session": theirs.session_id, "generation": 0},
        "POST /internal/introspect": {"key": theirs.key},
        **{
            f"POST /internal/usage/{what}": {"tenant": theirs.id, "generation": 1, **more}
            for what, more in LOOKUPS.items()
        },
        "POST /api/v1/organizations": {"slug": theirs.slug, "name": "x"},
        "POST /api/v1/organizations/{id}/keys": {"name": "x", "scopes": ["usage:read"]},
        "POST /api/v1/organizations/{id}/keys/{key_id}/rotate": {},
        "POST /api/v1/usage/events": [
            ours.event(new_id("evt"), tenant=theirs.id),
            ours.event(new_id("evt"), importid=theirs.import_id, time="2021-01-01T00:00:00Z"),
        ],
        "POST /api/v1/usage/replacements": {
            "replaces": {"source": theirs.marker, "id": "x"},
            "event": ours.event(new_id("evt"), tenant=theirs.id),
        },
        "POST /api/v1/usage/imports": {"source": "x", "period_start": today, "period_end": today},
        "PUT /api/v1/usage/holds/{hold}": {"reason": "a test"},
        "POST /api/v1/billing/invoices": {"period": "2020-01"},
        "POST /api/v1/billing/adjustments": {"period": "all"},
        "POST /api/v1/billing/price-fixes": {"tenants": [theirs.slug]},
        "POST /api/v1/billing/price-fixes/{price_fix}/approve": {"totals": {}},
        "POST /api/v1/billing/price-fixes/{price_fix}/reject": {"totals": {}},
        "POST /api/v1/billing/price-fixes/{price_fix}/apply": {"totals": {}},
        **belongings.bodies(ours, theirs),
    }
    if not operation.has_body:
        return None
    assert str(operation) in bodies, f"{operation}: add a body for it here"
    return bodies[str(operation)]


async def settle(on: Platform, database: Database, name: str) -> Side:
    """Make an organisation through the API; what only Dagster or nobody makes yet, as role `system`."""
    marker = f"marker-{name}-{new_id('m')[-12:]}"
    owner = httpx2.Client(
        base_url=on.gateway,
        headers={
            "authorization": f"Bearer {on.login(OWNER_EMAIL, on.environment['HEADRACE_OWNER_PASSWORD'])}"
        },
    )

    def post(path: str, body: object) -> Any:
        return owner.post(path, json=body).raise_for_status().json()

    with owner:
        organization = post(ORGANIZATIONS, {"slug": marker, "name": marker})["id"]
        keys = [
            post(f"{ORGANIZATIONS}/{organization}/keys", {"name": marker, "scopes": list(SCOPES)})
            for _ in range(2)
        ]
        invitation = post(f"{ORGANIZATIONS}/{organization}/invitations", {"email": f"{marker}@example.com"})
        price_fix = post("/api/v1/billing/price-fixes", {"tenants": [marker]})
    tenant = {"authorization": f"Bearer {keys[0]['key']}", "idempotency-key": marker}
    today = rfc3339(now())
    imported = httpx2.post(
        f"{on.gateway}/api/v1/usage/imports",
        json={"source": marker, "period_start": today, "period_end": today},
        headers=tenant,
    ).raise_for_status()
    email = f"{marker}@example.org"
    person = await _insert(database, organization, email, marker)
    invoice = httpx2.post(
        f"{on.gateway}/api/v1/billing/invoices", json={"period": "2020-02"}, headers=tenant
    ).raise_for_status()
    login = httpx2.post(
        f"{on.gateway}/api/v1/auth/login", json={"email": email, "password": PASSWORD}
    ).raise_for_status()
    return Side(
        marker=marker,
        id=organization,
        slug=marker,
        email=email,
        key_id=keys[0]["id"],
        key=keys[0]["key"],
        spare_key_id=keys[1]["id"],
        person_token=login.json()["access_token"],
        person_id=person,
        session_id=login.json()["session"],
        invitation_id=invitation["id"],
        import_id=imported.json()["id"],
        invoice_id=invoice.json()["id"],
        price_fix_id=price_fix["id"],
        has=await belongings.provide(on.gateway, on.environment, database, keys[0]["key"], person, marker),
    )


AGREEING: Final = (
    "insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity, events, lake_version)"
    " select tenant_id, 'day', meter, date_trunc('day', period_start, 'UTC'), dimensions, dimensions_key, quantity, events, 0"
    " from usage_cell where tenant_id = :tenant and grain = 'hour' on conflict do nothing",
    "insert into usage_conservation select tenant_id, 'topic', 0, 0, sum(events), sum(events), 0, 0, 0, 0 from usage_cell"
    " where tenant_id = :tenant and grain = 'hour' group by tenant_id on conflict (tenant_id, topic_id, partition, block)"
    " do update set landed = excluded.landed, counted = excluded.counted",
)
"""Days and fates that go with the hours of an organisation that has one cell a day of each meter."""


async def _insert(database: Database, organization: str, email: str, marker: str) -> str:
    """A person with a role, and published cells, one in a month that can be closed. Returns the person's id."""
    person = new_id("usr")
    password_hash = bcrypt.hashpw(prehash(PASSWORD), bcrypt.gensalt(4)).decode()
    values = {
        "tenant": organization,
        "person": person,
        "email": email,
        "marker": marker,
        "hash": password_hash,
    }
    async with database.writer() as connection:
        for statement in (
            "insert into person (id, email, password_hash) values (:person, :email, :hash)",
            "insert into membership (tenant_id, person_id, role) values (:tenant, :person, 'admin')",
            "insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity,"
            " events, lake_version) values (:tenant, 'hour', 'llm.tokens.input', date_trunc('hour', now()),"
            " jsonb_build_object('model', cast(:marker as text)), :marker, 1, 1, 0)",
            "insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity,"
            " events, lake_version) values (:tenant, 'hour', 'tool.calls', '2020-02-03T04:00:00Z',"
            " jsonb_build_object('tool', cast(:marker as text)), :marker, 1, 1, 0)",
            "insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity,"
            " events, lake_version) values (:tenant, 'hour', 'llm.tokens.input', '2020-02-03T04:00:00Z',"
            " jsonb_build_object('model', cast(:marker as text)), :marker, 1, 1, 0)",
            *AGREEING,
            "insert into usage_replacement (tenant_id, source, event_id, by_source, by_id, by_subject)"
            " values (:tenant, :marker, 'x', :marker, 'y', :marker)",
            "insert into usage_publication (lake_version, slice, code_version) values (0, 0, 'test')"
            " on conflict do nothing",
        ):
            await connection.execute(text(statement), values)
    return person


async def use_late(database: Database, organization: str) -> None:
    """Usage of a month that `body` has closed."""
    async with database.writer() as connection:
        for statement in (
            "insert into usage_cell (tenant_id, grain, meter, period_start, dimensions, dimensions_key, quantity,"
            " events, lake_version) values (:tenant, 'hour', 'llm.tokens.input', '2020-01-03T04:00:00Z',"
            " '{}', '', 4000000, 1, 0)",
            *AGREEING,
        ):
            await connection.execute(text(statement), {"tenant": organization})
