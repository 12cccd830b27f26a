"""Records that were not counted, for people: who sees them, who decides, and that a decision is made once."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from core.contracts.usage import parse
from core.database import Database
from core.ids import new_id
from services.common.principal import Principal
from tests.services.billing.conftest import SCOPES, Caller

PATH = "/api/v1/usage/quarantine"
AT = datetime(2020, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
SAID = {
    "time": "2020-01-01T12:30:00.123456Z",
    "subject": "cus_1",
    "data": {"meter": "llm.tokens.input", "quantity": "7", "dimensions": {"model": "m"}},
}


async def quarantine(system: Database, tenant: str, number: int = 0, **fields: Any) -> str:
    """A row as the publication writes it."""
    row = {
        "tenant": tenant, "id": new_id("uqr"), "fate": "quarantined", "code": "out_of_limits", "kind": "usage",
        "slice": number, "topic": "topic", "source": "crm", "event": "evt", "version": SAID, "counted": None,
        "bytes": None,
    } | fields  # fmt: skip
    for name in ("version", "counted"):
        row[name] = None if row[name] is None else json.dumps(row[name])
    async with system.writer() as connection:
        await connection.execute(
            text(
                """
                insert into usage_quarantine (tenant_id, id, fate, code, kind, received, slice, topic_id, partition,
                    log_offset, source, event_id, version, counted, bytes, lake_version)
                values (:tenant, :id, :fate, :code, :kind, now(), :slice, :topic, 0, 17, :source, :event,
                    cast(:version as jsonb), cast(:counted as jsonb), :bytes, 1)
                """
            ),
            row,
        )
    return str(row["id"])


async def sent(system: Database, tenant: str) -> list[Mapping[str, Any]]:
    """What waits in the outbox for the topic of usage, in order."""
    async with system.writer() as connection:
        rows = await connection.execute(
            text("select value from outbox where tenant_id = :t and topic = 'usage.records' order by id"),
            {"t": tenant},
        )
        return [json.loads(row[0]) for row in rows]


async def audited(system: Database, tenant: str) -> list[str]:
    async with system.writer() as connection:
        rows = await connection.execute(
            text("select value from outbox where tenant_id = :t and topic = 'audit.logs' order by id"),
            {"t": tenant},
        )
        return [json.loads(row[0])["action"] for row in rows]


def person(caller: Caller, **more: Any) -> Caller:
    """Somebody of the same organisation, logged in."""
    named = {"tenant_id": caller.tenant, "subject": new_id("usr"), "kind": "user", "scopes": SCOPES} | more
    return caller.acting_as(Principal(**named))


async def test_everybody_sees_the_own_ones(
    acme: Caller, other: Caller, owner: Caller, system_database: Database
) -> None:
    ours = [await quarantine(system_database, acme.tenant, number) for number in range(3)]
    conflict = await quarantine(
        system_database,
        acme.tenant,
        3,
        code="conflict",
        counted={**SAID, "slice": 1, "partition": 0, "offset": 2},
    )
    unreadable = await quarantine(
        system_database, acme.tenant, 4, code="unreadable", fate="rejected", kind=None, version=None, source=None,
        event=None, bytes=9,
    )  # fmt: skip
    theirs = await quarantine(system_database, other.tenant)
    whole = await acme.ask(PATH)
    assert [one["id"] for one in whole["data"]] == [unreadable, conflict, *reversed(ours)]
    assert not whole["has_more"]
    shown = whole["data"][1]
    assert (shown["version"], shown["counted"]["data"]) == (SAID, SAID["data"])
    assert (shown["coordinates"], shown["state"]) == (
        {"topic_id": "topic", "partition": 0, "offset": 17, "slice": 3}, "open",
    )  # fmt: skip
    assert (whole["data"][0]["bytes"], whole["data"][0]["acceptable"]) == (9, False)
    first = await acme.ask(PATH, limit="2")
    second = await acme.ask(PATH, limit="2", after=first["last_id"])
    assert [one["id"] for one in first["data"] + second["data"]] == [
        unreadable,
        conflict,
        *reversed(ours[1:]),
    ]
    assert first["has_more"]
    assert second["has_more"]
    assert [one["id"] for one in (await acme.ask(PATH, code="conflict"))["data"]] == [conflict]
    assert [one["id"] for one in (await acme.ask(PATH, fate="rejected"))["data"]] == [unreadable]
    assert [one["id"] for one in (await acme.ask(PATH, order="asc", limit="1"))["data"]] == ours[:1]
    assert (await acme.get(f"{PATH}/{theirs}")).status == 404
    assert (await acme.get(PATH, tenant=other.tenant)).status == 404
    everybody = [one["id"] for one in (await owner.ask(PATH, limit="100"))["data"]]
    assert {*ours, conflict, unreadable, theirs} <= {*everybody}
    assert [one["id"] for one in (await owner.ask(PATH, tenant=other.tenant))["data"]] == [theirs]


async def test_a_person_accepts_once(acme: Caller, system_database: Database) -> None:
    record = await quarantine(system_database, acme.tenant)
    somebody = person(acme)
    answers = await asyncio.gather(*(somebody.call("POST", f"{PATH}/{record}/accept") for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    shown = answers[0].json
    assert all(answer.json == shown for answer in answers)
    assert (shown["state"], shown["decided_by"]) == ("accepted", somebody.principal.subject)
    [event] = await sent(system_database, acme.tenant)
    assert (event["id"], event["source"], event["data"]) == ("evt", "crm", SAID["data"])
    read = parse(json.dumps(event).encode())
    assert (read.time, read.importid) == (AT, shown["sent"]["import"])
    async with system_database.writer() as connection:
        imports = await connection.execute(
            text(
                "select id, source, period_start, period_end, created_by from usage_import where tenant_id = :t"
            ),
            {"t": acme.tenant},
        )
        assert imports.all() == [(read.importid, "crm", AT, AT, somebody.principal.subject)]
    assert await audited(system_database, acme.tenant) == ["usage.quarantine_accept"]
    refused = await somebody.call("POST", f"{PATH}/{record}/reject")
    assert (refused.status, refused.json["code"]) == (409, "already_decided")


async def test_what_cannot_be_read_can_only_be_rejected(acme: Caller, system_database: Database) -> None:
    record = await quarantine(
        system_database,
        acme.tenant,
        code="schema",
        fate="rejected",
        kind=None,
        version=None,
        source=None,
        event=None,
    )
    somebody = person(acme)
    refused = await somebody.call("POST", f"{PATH}/{record}/accept")
    assert (refused.status, refused.json["code"]) == (422, "not_acceptable")
    for _ in range(2):
        rejected = await somebody.call("POST", f"{PATH}/{record}/reject")
        assert (rejected.status, rejected.json["state"], rejected.json["sent"]) == (200, "rejected", None)
    assert await sent(system_database, acme.tenant) == []
    assert await audited(system_database, acme.tenant) == ["usage.quarantine_reject"]
    assert [one["id"] for one in (await acme.ask(PATH, state="open"))["data"]] == []


@pytest.mark.parametrize("decision", ["accept", "reject"])
async def test_who_may_decide(acme: Caller, other: Caller, system_database: Database, decision: str) -> None:
    own = await quarantine(system_database, acme.tenant)
    metered = await quarantine(system_database, acme.tenant, source="agents")
    by_key = await acme.call("POST", f"{PATH}/{own}/{decision}")
    assert (by_key.status, by_key.json["code"]) == (403, "person_required")
    by_stranger = await person(other).call("POST", f"{PATH}/{own}/{decision}")
    assert by_stranger.status == 404
    without = person(acme, scopes=frozenset({"usage:read"}))
    assert (await without.call("POST", f"{PATH}/{own}/{decision}")).json["code"] == "missing_scope"
    refused = await person(acme).call("POST", f"{PATH}/{metered}/{decision}")
    assert (refused.status, refused.json["code"]) == (403, "platform_only")
    owner = person(acme, tenant_id=new_id("org"), platform_owner=True)
    assert (await owner.call("POST", f"{PATH}/{metered}/{decision}")).status == 200
    assert (
        await owner.call("POST", f"{PATH}/{own}/{decision}", params={"tenant": other.tenant})
    ).status == 404


async def test_records_without_an_organisation_are_the_owners(
    owner: Caller, system_database: Database
) -> None:
    nobody = await quarantine(
        system_database,
        "-",
        code="unreadable",
        fate="rejected",
        kind=None,
        version=None,
        source=None,
        event=None,
    )
    strange = await quarantine(system_database, "no such", 1)
    rejected = await owner.call("POST", f"{PATH}/{nobody}/reject")
    assert (rejected.status, rejected.json["tenant"]) == (200, "-")
    refused = await owner.call("POST", f"{PATH}/{strange}/accept")
    assert (refused.status, refused.json["code"]) == (422, "not_acceptable")
    assert (await owner.ask(f"{PATH}/{strange}"))["state"] == "open"


async def test_a_recent_one_needs_no_import(acme: Caller, system_database: Database) -> None:
    said = {**SAID, "time": (datetime.now(UTC) - timedelta(days=1)).isoformat()}
    record = await quarantine(system_database, acme.tenant, version=said)
    accepted = await person(acme).call("POST", f"{PATH}/{record}/accept")
    assert accepted.json["sent"] == {"event": "evt"}
    assert "importid" not in (await sent(system_database, acme.tenant))[0]
