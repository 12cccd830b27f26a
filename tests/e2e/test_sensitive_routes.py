"""Every route that may change something leaves the audit event that the registry names, or is excused."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx2
from sqlalchemy import text

from core.contracts.audit import AuditEvent, parse
from core.database import Database
from core.ids import new_id
from core.security.sensitive import EXCUSED, ROUTES
from services.gateway.routes import RouteTable
from tests.e2e.accounts import Prepared, concerns, prepared
from tests.e2e.tenants import BEHIND, Operation, Platform, Side, body, first, operations, settle, use_late
from tests.services.process import OWNER_EMAIL

READING = {"GET", "HEAD", "OPTIONS"}
FIXES = "/api/v1/billing/price-fixes"
INVOICES, ADJUSTMENTS = "/api/v1/billing/invoices", "/api/v1/billing/adjustments"
TABLE = RouteTable()


def runs_here(path: str) -> bool:
    """Whether the gateway passes `path` on to a service that runs in these tests."""
    row = TABLE.find(path.encode())
    return row is not None and row.service in BEHIND


HERE = tuple(route for route in ROUTES if runs_here(route.path))


def changing(on: Platform) -> dict[tuple[str, str], Operation]:
    return {(one.method, one.path): one for one in operations(on) if one.method not in READING}


def test_every_changing_route_is_registered_or_excused(running_platform: Platform) -> None:
    known = {(route.method, route.path) for route in ROUTES} | EXCUSED.keys()
    found = changing(running_platform).keys()
    assert found <= known
    assert {(method, path) for method, path in known if runs_here(path)} <= found


async def test_each_registered_route_leaves_its_audit_event(
    running_platform: Platform, system_database: Database
) -> None:
    side = await settle(running_platform, system_database, "audited")
    owner = running_platform.login(OWNER_EMAIL, running_platform.environment["HEADRACE_OWNER_PASSWORD"])
    known = changing(running_platform)
    for route in HERE:
        operation = known[route.method, route.path]
        ready = Prepared(allowed(operation, side), acting(operation, side, owner), spare(operation, side))
        if concerns(operation):
            ready = await prepared(running_platform, system_database, side, operation, owner)
        if operation.path == ADJUSTMENTS:
            await use_late(system_database, side.id)
        if operation.path.startswith(FIXES + "/"):
            ready = Prepared(ready.body, owner, {"price_fix": price_fix(running_platform, operation, owner)})
        before = await recorded(system_database)
        answer = send(running_platform, operation, ready.credential, ready.body, side, ready.path)
        assert answer.status_code < 300, f"{operation}: {answer.text}"
        fresh = [event for event in await recorded(system_database) if event not in before]
        assert [(event.action, event.outcome) for event in fresh] == [(route.action, "success")], operation


async def test_a_refused_request_changes_nothing_and_claims_no_success(
    running_platform: Platform, system_database: Database
) -> None:
    """Each registered route, asked by somebody who holds no scope at all: the event is not written ahead."""
    side = await settle(running_platform, system_database, "refused")
    known = changing(running_platform)
    before = await recorded(system_database)
    for route in HERE:
        operation = known[route.method, route.path]
        refused = {"email": side.email, "password": "wrong"} if "login" in route.path else {}
        answer = send(running_platform, operation, "sk_live_nobody", refused, side)
        assert 400 <= answer.status_code < 500, f"{operation}: {answer.text}"
    fresh = [event for event in await recorded(system_database) if event not in before]
    assert [(event.action, event.outcome) for event in fresh] == [("auth.login_failed", "denied")]


def acting(operation: Operation, side: Side, owner: str) -> str:
    """The credential of somebody who may: the platform's owner has no agents, documents and usage."""
    if operation.service in {"users", "billing"} and operation.path not in {INVOICES, ADJUSTMENTS}:
        return owner
    return side.person_token if operation.path == "/api/v1/memories/{id}" else side.key


def spare(operation: Operation, side: Side) -> dict[str, str]:
    """What a route may end, so that others still find theirs."""
    return {"id": side.has.spare_letter} if operation.path.endswith("/discard") else {}


def allowed(operation: Operation, side: Side) -> Any:
    """A body with which the request succeeds."""
    if concerns(operation):
        return None
    wanted = body(operation, side, side)
    if str(operation) == "POST /api/v1/organizations":
        return {**wanted, "slug": new_id("t").replace("_", "-")}
    if operation.path.endswith("/rotate"):
        return {"overlap_seconds": 60}  # it must still be there to be revoked
    return wanted


def price_fix(on: Platform, operation: Operation, owner: str) -> str:
    """Id of one that is ready for what the operation does: nobody pays other prices than before."""
    headers = {"authorization": f"Bearer {owner}"}
    made = httpx2.post(on.gateway + FIXES, json={"tenants": []}, headers=headers).raise_for_status().json()
    if operation.path.endswith("/apply"):
        approve = f"{on.gateway}{FIXES}/{made['id']}/approve"
        httpx2.post(approve, json={"totals": made["totals"]}, headers=headers).raise_for_status()
    return str(made["id"])


def send(
    on: Platform,
    operation: Operation,
    credential: str,
    content: Any,
    side: Side,
    more: Mapping[str, str] = MappingProxyType({}),
) -> httpx2.Response:
    nobody = {f"{what}_id": new_id("usr") for what in ("person", "invitation", "session")}
    path = operation.path.format(**{**first(operation, side), **nobody, "key_id": side.spare_key_id, **more})
    headers = operation.headers | ({"authorization": f"Bearer {credential}"} if credential else {})
    return httpx2.request(operation.method, on.gateway + path, json=content, headers=headers)


async def recorded(database: Database) -> list[AuditEvent]:
    """All audit events, wherever they are on their way."""
    async with database.reader() as connection:
        found = await connection.execute(
            text(
                "select value from outbox where topic = 'audit.logs' union all select r.value from eventlog.record r"
                " join eventlog.topic t on t.ref = r.topic_ref where t.name = 'audit.logs'"
            )
        )
        return sorted((parse(bytes(value)) for value in found.scalars()), key=lambda event: event.id)
