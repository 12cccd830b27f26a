"""A lake of random usage of several organisations with everything that may become of it, invoiced on the way."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec
from sqlalchemy import text

from core.clock import now
from core.contracts.usage import Reference, UsageData, UsageEvent, VoidEvent
from core.database import Database
from core.ids import new_id
from core.prices import Price, Tier, record
from core.settings import CacheSettings, DatabaseSettings, EventLogSettings, ObjectSettings
from services.common.principal import HEADER, Principal, sign
from tests.assets.usage.site import Site
from tests.servers import free_port, running
from tests.services.process import environment, service

INVOICES: Final = "/api/v1/billing/invoices"
FIXES: Final = "/api/v1/billing/price-fixes"
_LONG_AGO = now() - timedelta(days=62)
CLOSED = datetime(_LONG_AGO.year, _LONG_AGO.month, 1, tzinfo=UTC)
"""The month that is invoiced; the one behind it is over too."""
OPEN = datetime(CLOSED.year + CLOSED.month // 12, CLOSED.month % 12 + 1, 1, tzinfo=UTC)
MONTH, NEXT_MONTH, DAYS = f"{CLOSED:%Y-%m}", f"{OPEN:%Y-%m}", (OPEN - CLOSED).days
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)
MODELS: Final = tuple(f"m{n}" for n in range(12))
INPUT, CALLS, STORED = "llm.tokens.input", "tool.calls", "storage.bytes"
"""By model at list prices; at a volume price of each organisation; without a price."""
USERS, PEAK, SEATS = "users.active", "storage.peak", "seats"
ELEMENTS: Final = (USERS, PEAK, SEATS)
"""What cannot be added up: a unique count, a maximum, a latest value; at list prices."""
_TLS: Final = httpx2.create_ssl_context()
"""Made once, though nothing needs it: each request would make its own, which costs more than most answers."""
SCOPES: Final = frozenset({"usage:read", "billing:read", "billing:write"})


@dataclass(frozen=True)
class Running:
    """Billing and lookup on one database and one lake."""

    site: Site
    billing: str
    environment: Mapping[str, str]

    def system(self, work: Callable[[Any], Any]) -> Any:
        """`work(connection)` as the platform, committed."""

        async def run() -> Any:
            database = Database(self.site.database, role="system")
            try:
                async with database.writer() as connection:
                    return await work(connection)
            finally:
                await database.close()

        return asyncio.run(run())

    def headers(self, tenant: str, *, owner: bool = False) -> dict[str, str]:
        who = Principal(tenant, new_id("usr"), "user", SCOPES, platform_owner=owner)
        return {HEADER: sign(who, bytes.fromhex(self.environment["HEADRACE_INTERNAL_KEY"]))}

    def call(
        self, method: str, path: str, *, tenant: str = "", owner: bool = False, status: int = 200, **more: Any
    ) -> Any:
        """The JSON of an answer with this status (any for 0), as an organisation's own key or the platform's owner."""
        headers = self.headers("" if owner else tenant, owner=owner)
        params = {**more.pop("params", {}), **({"tenant": tenant} if owner and tenant else {})}
        answer = httpx2.request(
            method, self.billing + path, headers=headers, params=params, timeout=60, verify=_TLS, **more
        )
        assert status in (0, answer.status_code), (path, answer.status_code, answer.text)
        return answer.json()


@contextmanager
def platform(folder: Path, database: DatabaseSettings, cache: CacheSettings) -> Iterator[Running]:
    """The two services as processes; nothing has landed."""
    ports = {name: free_port() for name in ("billing", "lookup")}
    variables = environment(folder, database, cache, users_port=free_port(), gateway_port=free_port()) | {
        "HEADRACE_LOOKUP_URL": f"http://127.0.0.1:{ports['lookup']}",
        "HEADRACE_STATE_DIR": str(folder / "state"),
        "HEADRACE_LOG_LEVEL": "error",
    }
    objects = ObjectSettings(objects_url=folder.as_uri())
    site = Site(database, EventLogSettings(eventlog_url="postgresql:"), objects, folder / "state")
    site.reset()
    with ExitStack() as stack:
        for name, port in ports.items():
            stack.enter_context(running(service(name, port, variables), folder / f"{name}.log"))
        yield Running(site, f"http://127.0.0.1:{ports['billing']}", variables)


@dataclass
class World:
    """What was sent, as an oracle keeps it: `fates` of each (organisation, source, id), the first record first."""

    on: Running
    seed: int = 11
    tenants: list[str] = field(default_factory=list)
    events: dict[tuple[str, str, str], UsageEvent] = field(default_factory=dict)
    fates: dict[tuple[str, str, str], str] = field(default_factory=dict)
    duplicates: int = 0
    records: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """Of (organisation, month of the event, fate): how many were sent."""

    def __post_init__(self) -> None:
        self.pick = random.Random(self.seed)

    def found(self, organisations: int) -> None:
        """Organisations and prices: a list price for each model, a volume price for each organisation."""
        self.tenants = [new_id("org") for _ in range(organisations)]

        async def work(connection: Any) -> None:
            for tenant in self.tenants:
                await connection.execute(
                    text("insert into organisation (id, slug, name, plan) values (:id, :slug, 'T', 'free')"),
                    {"id": tenant, "slug": tenant.replace("_", "-")},
                )
            listed = [_listed(model, "2.5") for model in MODELS]
            listed += [Price("*", meter, (), Decimal(3), 1, "USD", LONG_AGO) for meter in ELEMENTS]
            own = [
                Price(
                    tenant, CALLS, (), Decimal(10), 1, "USD", LONG_AGO, model="volume",
                    tiers=(Tier(Decimal(15), Decimal(10)), Tier(None, Decimal(5))),
                )
                for tenant in self.tenants
            ]  # fmt: skip
            await record(connection, listed + own)

        self.on.system(work)

    def correct_price(self, unit_price: str) -> None:
        self.on.system(lambda connection: record(connection, [_listed(MODELS[0], unit_price)]))

    def land(self, events: int, start: datetime, days: int, *, mischief: bool = True) -> None:
        """One slice of random usage of [start, start + days) with repetitions, conflicts and the like among it."""
        sent: dict[str, list[bytes]] = {tenant: [] for tenant in self.tenants}
        for _ in range(events):
            event = self._event(start, days)
            sent[event.tenant].append(event.encode())
            if mischief:
                sent[event.tenant] += self._mischief()
        for tenant, values in sent.items():
            self.on.site.send(values, key=f"{tenant}|")
        self.on.site.carry()

    def bill(self, what: str) -> list[Any]:
        """March of every organisation: `invoices` closes it, `adjustments` adjusts it."""
        return [
            self.on.call("POST", f"/api/v1/billing/{what}", tenant=tenant, owner=True, status=0, json={"period": MONTH})
            for tenant in self.tenants
        ]  # fmt: skip

    def fix_prices(self) -> Any:
        fix = self.on.call("POST", FIXES, owner=True, status=201, json={"tenants": self.tenants})
        seen = {"totals": fix["totals"], "accept": fix["reasons"]}
        self.on.call("POST", f"{FIXES}/{fix['id']}/approve", owner=True, json=seen)
        return self.on.call("POST", f"{FIXES}/{fix['id']}/apply", owner=True, json={"totals": fix["totals"]})

    def documents(self, tenant: str) -> list[Any]:
        listed = self.on.call("GET", INVOICES, tenant=tenant, params={"limit": "100", "order": "asc"})
        return [self.on.call("GET", f"{INVOICES}/{one['id']}", tenant=tenant) for one in listed["data"]]

    def send_by_api(self, tenant: str, event: Any) -> None:
        """Accepted, and in the outbox of a platform whose relay stands still."""
        who = Principal(tenant, new_id("key"), "api_key", frozenset({"usage:write"}))
        headers = {HEADER: sign(who, bytes.fromhex(self.on.environment["HEADRACE_INTERNAL_KEY"]))}
        answer = httpx2.post(f"{self.on.billing}/api/v1/usage/events", json=[event], headers=headers)
        assert answer.json()["accepted"] == 1, answer.text

    def _event(self, start: datetime, days: int) -> UsageEvent:
        tenant, number = self.pick.choice(self.tenants), len(self.events)
        meter = self.pick.choices([INPUT, CALLS, STORED, *ELEMENTS], [8, 2, 1, 1, 1, 1])[0]
        dimensions = {
            INPUT: {"model": self.pick.choice(MODELS)}, CALLS: {"tool": "t"}, STORED: {}, PEAK: {"bucket": "b"},
            USERS: {"product": self.pick.choice("pq"), "user": f"u{self.pick.randrange(20)}"}, SEATS: {"product": "p"},
        }[meter]  # fmt: skip
        most = {INPUT: 3_000_000, PEAK: 1_000, SEATS: 50}.get(meter, 4)
        quantity = str(self.pick.randrange(1, most))
        event = UsageEvent(
            id=f"e{number}", source=self.pick.choice(["crm", "a:b", "ü/1"]), tenant=tenant,
            time=start + timedelta(seconds=self.pick.randrange(days * 86_400)), specversion="1.0",
            type="headrace.usage.v1", data=UsageData(meter, quantity, dimensions),
        )  # fmt: skip
        key = (tenant, event.source, event.id)
        self.events[key], self.fates[key] = event, "counted"
        self._note(event, "counted")
        return event

    def _note(self, event: UsageEvent, fate: str) -> None:
        self.records[event.tenant, event.time.month, fate] += 1

    def _mischief(self) -> list[bytes]:
        """Behind an event of the same organisation now and then: it again, it otherwise, a void of it, rubbish."""
        key = next(reversed(self.events))
        event, chance = self.events[key], self.pick.random()
        if chance < 0.05:
            self.duplicates += 1
            self._note(event, "duplicate")
            return [event.encode()]
        if chance < 0.07:
            other = msgspec.structs.replace(
                event, data=msgspec.structs.replace(event.data, quantity="7777777")
            )
            self._note(event, "quarantined")
            return [other.encode()]
        if chance < 0.09:
            self.fates[key] = "voided"
            self._note(event, "void")
            return [
                VoidEvent(
                    id=f"v-{event.id}", source="voids", time=event.time, tenant=event.tenant, specversion="1.0",
                    type="headrace.usage.void.v1", data=Reference(event.source, event.id),
                ).encode()
            ]  # fmt: skip
        if chance < 0.10:
            return [b"{rubbish"]
        if chance < 0.11:
            old = msgspec.structs.replace(event, id=f"old-{event.id}", time=datetime(2024, 1, 1, tzinfo=UTC))
            named = (event.tenant, old.source, old.id)
            self.events[named], self.fates[named] = old, "quarantined"
            return [old.encode()]
        return []


def _listed(model: str, unit_price: str) -> Price:
    return Price("*", INPUT, (("model", model),), Decimal(unit_price), 1_000_000, "USD", LONG_AGO)


def history(on: Running, *, organisations: int = 4, events: int = 300, slices: int = 3) -> World:
    """A month closed, late usage adjusted, a price fixed, more of it adjusted, and some not invoiced yet."""
    world = World(on)
    world.found(organisations)
    for _ in range(slices):
        world.land(events, CLOSED, DAYS)
    world.bill("invoices")
    both = ((OPEN + timedelta(days=32)).replace(day=1) - CLOSED).days
    for _ in range(slices):
        world.land(events, CLOSED, both)
    world.bill("adjustments")
    world.correct_price("2.6")
    world.fix_prices()
    world.land(events, CLOSED, DAYS)
    world.bill("adjustments")
    world.land(events, CLOSED, both)
    return world
