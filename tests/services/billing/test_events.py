"""POST /api/v1/usage/events: a verdict for each event, nothing of a body that cannot be read."""

import asyncio
import io
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from core.clock import now, rfc3339
from core.contracts.usage import UsageEvent, parse
from core.database import Database
from core.ids import new_id
from services.common.principal import system
from tests.services.billing.conftest import Caller, principal


def event(**fields: Any) -> dict[str, Any]:
    """An event as a client writes it."""
    data = {
        "meter": fields.pop("meter", "llm.tokens.input"),
        "quantity": fields.pop("quantity", "5"),
        **({"dimensions": fields.pop("dimensions")} if "dimensions" in fields else {}),
    }
    return {
        "specversion": "1.0",
        "type": "headrace.usage.v1",
        "id": new_id("evt"),
        "source": "test",
        "time": rfc3339(now()),
        "data": data,
        **fields,
    }


async def waiting(system_database: Database, tenant: str) -> list[UsageEvent]:
    """The tenant's usage in the outbox, in order."""
    async with system_database.reader() as connection:
        rows = await connection.execute(
            text("select value from outbox where tenant_id = :t and topic = 'usage.records' order by id"),
            {"t": tenant},
        )
        return [parse(bytes(value)) for value in rows.scalars()]


async def test_a_batch_is_in_the_outbox_when_it_is_answered(acme: Caller, system_database: Database) -> None:
    events = [event(quantity=str(number), subject=f"cus_{number % 7}") for number in range(1000)]
    answer = await acme.send(events)
    assert answer.status == 200
    assert (answer.json["accepted"], answer.json["refused"]) == (1000, 0)
    assert [verdict["id"] for verdict in answer.json["verdicts"]] == [one["id"] for one in events]
    assert [verdict["index"] for verdict in answer.json["verdicts"]] == list(range(1000))
    stored = await waiting(system_database, acme.tenant)
    assert [one.id for one in stored] == [one["id"] for one in events]
    assert {one.tenant for one in stored} == {acme.tenant}


async def test_an_object_with_events_does_as_well_and_repetitions_are_accepted(
    acme: Caller, system_database: Database
) -> None:
    one = event(tenant=acme.tenant)
    answer = await acme.send({"events": [one, one]})
    assert answer.json["accepted"] == 2
    assert len(await waiting(system_database, acme.tenant)) == 2


async def test_an_empty_batch_is_nothing(acme: Caller, system_database: Database) -> None:
    answer = await acme.send([])
    assert (answer.status, answer.json) == (200, {"accepted": 0, "refused": 0, "verdicts": []})
    assert await waiting(system_database, acme.tenant) == []


def without(name: str) -> dict[str, Any]:
    made = event()
    del made[name]
    return made


OLD = timedelta(days=401)

REFUSED: list[tuple[Any, str]] = [
    (1, "schema"),
    (None, "schema"),
    ([], "schema"),
    ("event", "schema"),
    ({}, "schema"),
    (without("id"), "schema"),
    (without("time"), "schema"),
    (without("source"), "schema"),
    (without("data"), "schema"),
    (without("type"), "schema"),
    (event(id=""), "schema"),
    (event(id=7), "schema"),
    (event(id="x" * 257), "schema"),
    (event(source="x" * 257), "schema"),
    (event(type="headrace.usage.v2"), "schema"),
    (event(specversion="0.3"), "schema"),
    (event(time="yesterday"), "schema"),
    (event(time=1_700_000_000), "schema"),
    (event(time="2026-01-01T00:00:00"), "schema"),
    (event(tenant=5), "schema"),
    (event(colour="red"), "schema"),
    (event(data={"meter": "llm.tokens.input", "quantity": "1", "note": "free text"}), "schema"),
    (event(quantity=5), "schema"),
    (event(quantity=""), "schema"),
    (event(quantity="1" * 33), "schema"),
    (event(dimensions={"model": 5}), "schema"),
    (event(dimensions=[]), "schema"),
    (event(quantity="-1"), "quantity"),
    (event(quantity="1e3"), "quantity"),
    (event(quantity="NaN"), "quantity"),
    (event(quantity="0.0000000001"), "quantity"),
    (event(quantity="1234567890123456789"), "quantity"),
    (event(quantity="٣"), "quantity"),
    (event(meter="llm.tokens"), "unknown_meter"),
    (event(dimensions={"colour": "red"}), "dimension"),
    (event(time="1999-12-31T23:59:59Z"), "time"),
    (event(time="2200-01-01T00:00:00Z"), "time"),
    (event(time=rfc3339(now() - OLD)), "time_out_of_limits"),
    (event(time=rfc3339(now() + timedelta(days=30))), "time_out_of_limits"),
    (event(time=rfc3339(now() - OLD), importid="imp_1"), "time_out_of_limits"),
    (event(importid="imp_1"), "unknown_import"),
    (event(tenant="org_of_somebody_else"), "foreign_tenant"),
]


async def test_each_bad_event_has_its_verdict_and_good_ones_between_them_go_on(
    acme: Caller, system_database: Database
) -> None:
    batch: list[Any] = []
    for bad, _ in REFUSED:
        batch += [event(), bad]
    answer = await acme.send(batch)
    assert answer.status == 200
    verdicts = answer.json["verdicts"]
    for (bad, code), verdict in zip(REFUSED, verdicts[1::2], strict=True):
        assert (verdict["status"], verdict.get("code")) == ("refused", code), (bad, verdict)
        assert verdict["message"]
    assert {verdict["status"] for verdict in verdicts[::2]} == {"accepted"}
    assert answer.json["accepted"] == answer.json["refused"] == len(REFUSED)
    stored = await waiting(system_database, acme.tenant)
    assert [one.id for one in stored] == [one["id"] for one in batch[::2]]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[", 400, "invalid_json"),
        (b"[{}", 400, "invalid_json"),
        (b"[NaN]", 400, "invalid_json"),
        (b'[{"id": 1, "id": 2}]', 400, "duplicate_key"),
        (b"[1e999]", 400, "number_out_of_range"),
        (b"[" * 33 + b"]" * 33, 400, "too_deep"),
        (b'["\xff"]', 400, "invalid_utf8"),
        (b'["\\u0000"]', 400, "forbidden_character"),
        (b'["\\ud800"]', 400, "forbidden_character"),
        (b'"x"', 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"events": {}}', 422, "invalid_request"),
        (b'{"events": [], "more": 1}', 422, "invalid_request"),
        (b"[" + b"1," * 1000 + b"1]", 413, "too_many_events"),
        (b'["' + b"x" * (4 << 20) + b'"]', 413, "body_too_large"),
    ],
    ids=range(17),
)
async def test_a_body_that_cannot_be_read_leaves_nothing(
    acme: Caller, system_database: Database, body: bytes, status: int, code: str
) -> None:
    answer = await acme.call(
        "POST", "/api/v1/usage/events", data=io.BytesIO(body), headers={"content-type": "application/json"}
    )
    assert (answer.status, answer.json["code"]) == (status, code)
    assert await waiting(system_database, acme.tenant) == []


async def test_a_repeated_request_takes_effect_once(acme: Caller, system_database: Database) -> None:
    events = [event(), event(quantity="bad")]
    first = await acme.send(events, idempotency_key="one")
    again = await acme.send(events, idempotency_key="one")
    assert (first.status, again.status) == (200, 200)
    assert first.json == again.json
    assert again.headers["idempotent-replayed"] == "true"
    assert len(await waiting(system_database, acme.tenant)) == 1
    changed = await acme.send([event()], idempotency_key="one")
    assert (changed.status, changed.json["code"]) == (422, "idempotency_key_reused")


async def test_scopes_and_credentials_are_asked_for(acme: Caller, system_database: Database) -> None:
    reader = acme.acting_as(
        type(acme.principal)(
            tenant_id=acme.tenant, subject="key_1", kind="api_key", scopes=frozenset({"usage:read"})
        )
    )
    assert (await reader.send([event()])).json["code"] == "missing_scope"
    async with acme.http.post(acme.billing.address + "/api/v1/usage/events", json=[event()]) as answer:
        assert answer.status == 401
    assert await waiting(system_database, acme.tenant) == []


async def test_parts_of_the_platform_name_the_tenant_themselves(
    acme: Caller, other: Caller, system_database: Database
) -> None:
    gateway = acme.acting_as(system("gateway"))
    events = [event(tenant=acme.tenant, meter="api.requests"), event(tenant=other.tenant), event()]
    answer = await gateway.send(events)
    assert [verdict["status"] for verdict in answer.json["verdicts"]] == ["accepted", "accepted", "refused"]
    for caller, sent in ((acme, events[0]), (other, events[1])):
        assert [one.id for one in await waiting(system_database, caller.tenant)] == [sent["id"]]


async def register(caller: Caller, start: datetime, end: datetime, source: str = "history") -> Any:
    body = {"source": source, "period_start": rfc3339(start), "period_end": rfc3339(end)}
    answer = await caller.call("POST", "/api/v1/usage/imports", json=body)
    assert answer.status == 201, answer.json
    return answer.json


async def test_an_import_admits_old_events_of_its_source_and_period(acme: Caller, other: Caller) -> None:
    start, end = now() - timedelta(days=900), now() - timedelta(days=800)
    declared = await register(acme, start, end)
    assert declared == await register(acme, start, end), "declaring it again is the same import"

    def old(when: datetime, **fields: Any) -> dict[str, Any]:
        return event(**{"time": rfc3339(when), "source": "history", "importid": declared["id"], **fields})

    inside = start + timedelta(days=3)
    batch = [
        old(inside),
        old(datetime.fromisoformat(declared["period_start"])),
        old(datetime.fromisoformat(declared["period_end"])),
        old(inside, source="another"),
        old(start - timedelta(days=1)),
        old(end + timedelta(days=1)),
        old(now()),
        old(inside, importid=""),
    ]
    for _ in range(2):  # the second time from the cache
        verdicts = (await acme.send(batch)).json["verdicts"]
        assert [verdict.get("code", "accepted") for verdict in verdicts] == [
            "accepted",
            "accepted",
            "accepted",
            "time_out_of_limits",
            "time_out_of_limits",
            "time_out_of_limits",
            "import_mismatch",
            "time_out_of_limits",
        ]
    foreign = (await other.send([old(inside)])).json["verdicts"]
    assert foreign[0]["code"] == "time_out_of_limits"


async def test_an_organisation_that_is_gone_registers_nothing(acme: Caller) -> None:
    gone = acme.acting_as(principal(new_id("org")))
    body = {"source": "s", "period_start": "2026-01-01T00:00:00Z", "period_end": "2026-01-01T00:00:00Z"}
    answer = await gone.call("POST", "/api/v1/usage/imports", json=body)
    assert (answer.status, answer.json["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "change",
    [
        {"source": ""},
        {"source": 1},
        {"period_start": "2026-01-02T00:00:00Z", "period_end": "2026-01-01T00:00:00Z"},
        {"period_start": "2026-01-02T00:00:00"},
        {"period_start": "1900-01-02T00:00:00Z"},
        {"period_end": "9999-12-31T23:59:59Z"},
        {"note": "x"},
    ],
)
async def test_an_import_that_makes_no_sense_is_refused(acme: Caller, change: dict[str, Any]) -> None:
    body = {
        "source": "s", "period_start": "2026-01-01T00:00:00Z", "period_end": "2026-01-01T00:00:00Z", **change,
    }  # fmt: skip
    answer = await acme.call("POST", "/api/v1/usage/imports", json=body)
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")


async def test_many_batches_at_once_are_all_taken_or_told_to_wait(
    acme: Caller, system_database: Database
) -> None:
    batches = [[event() for _ in range(200)] for _ in range(40)]
    answers = await asyncio.gather(*(acme.send(batch) for batch in batches))
    taken: set[str] = set()
    for batch, answer in zip(batches, answers, strict=True):
        if answer.status == 200:
            taken |= {one["id"] for one in batch}
        else:
            assert (answer.status, answer.json["code"]) == (429, "too_much_usage")
            assert int(answer.headers["retry-after"]) >= 1
    assert {one.id for one in await waiting(system_database, acme.tenant)} == taken


async def test_meters_are_listed(acme: Caller) -> None:
    meters = {one["name"]: one for one in (await acme.ask("/api/v1/meters"))["data"]}
    assert meters["llm.tokens.input"]["unit"] == "token"
    assert json.loads(json.dumps(meters["api.requests"]["dimensions"])) == ["code_class", "route"]
