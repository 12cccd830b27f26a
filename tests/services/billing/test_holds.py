"""Holds on the event log: the owner of the platform places and lifts them, and each leaves its event."""

from typing import Any

import pytest
from sqlalchemy import text

from core.contracts.audit import parse
from core.database import Database
from core.ids import new_id
from tests.services.billing.conftest import Caller

HOLDS = "/api/v1/usage/holds"


async def actions(database: Database, name: str) -> list[tuple[str, str]]:
    async with database.reader() as connection:
        found = await connection.execute(
            text("select value from outbox where topic = 'audit.logs' order by id")
        )
        events = [parse(bytes(value)) for value in found.scalars()]
    return [(event.action, event.actor) for event in events if event.target == name]


async def call(caller: Caller, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    reply = await caller.call(method, path, **({} if body is None else {"json": body}))
    return reply.status, reply.json


async def test_a_hold_is_placed_once_and_lifted_once(owner: Caller, system_database: Database) -> None:
    name = new_id("h").replace("_", "-")
    for _ in range(2):
        status, hold = await call(owner, "PUT", f"{HOLDS}/{name}", {"reason": "a dispute", "partition": 2})
        assert (status, hold["partition"], hold["placed_by"], hold["lifted_at"]) == (
            200,
            2,
            owner.principal.subject,
            None,
        )
    status, problem = await call(owner, "PUT", f"{HOLDS}/{name}", {"reason": "a dispute"})
    assert (status, problem["code"]) == (409, "hold_exists")
    assert name in [each["name"] for each in (await call(owner, "GET", HOLDS))[1]["data"]]
    status, hold = await call(owner, "DELETE", f"{HOLDS}/{name}")
    assert (status, hold["lifted_by"]) == (200, owner.principal.subject)
    assert (await call(owner, "DELETE", f"{HOLDS}/{name}"))[0] == 404
    assert await actions(system_database, name) == [
        ("usage.hold_place", owner.principal.subject),
        ("usage.hold_lift", owner.principal.subject),
    ]
    status, hold = await call(owner, "PUT", f"{HOLDS}/{name}", {"reason": "again"})
    assert (status, hold["partition"]) == (200, None)


@pytest.mark.parametrize(
    "body", [{}, {"reason": ""}, {"reason": "x", "partition": 4}, {"reason": "x", "partition": -1}, {"reason": "x", "y": 1}]
)  # fmt: skip
async def test_a_hold_that_says_nothing_is_refused(owner: Caller, body: Any) -> None:
    assert (await call(owner, "PUT", f"{HOLDS}/x", body))[0] == 422
    assert (await call(owner, "PUT", f"{HOLDS}/-x", {"reason": "x"}))[0] == 422


async def test_nobody_else_sees_or_places_one(acme: Caller, owner: Caller) -> None:
    assert (await call(owner, "PUT", f"{HOLDS}/mine", {"reason": "x"}))[0] == 200
    assert (await call(acme, "GET", HOLDS))[1]["data"] == []
    assert (await call(acme, "PUT", f"{HOLDS}/mine", {"reason": "x"}))[0] == 404
    assert (await call(acme, "DELETE", f"{HOLDS}/mine"))[0] == 404
