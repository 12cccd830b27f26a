"""The AsyncAPI document covers the registry, and what the code really sends fits it."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from sqlalchemy import text

from core import asyncapi, audit
from core.clock import now
from core.contracts.agents import AgentEvent
from core.contracts.knowledge import DocumentJob
from core.database import Database, tenant
from core.eventlog import headers
from core.ids import new_id
from core.messaging.queues import enqueue
from core.topology import QUEUES, TOPICS
from services.gateway.meter import events, to_outbox
from tests.messages import DOCUMENT, check, resolve, validator


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def test_every_topic_and_queue_is_a_channel() -> None:
    assert DOCUMENT["channels"].keys() == TOPICS.keys() | QUEUES.keys()
    assert {part for name in asyncapi.PARTS for part in asyncapi.document(name)["channels"]} <= (
        TOPICS.keys() | QUEUES.keys()
    )


@pytest.mark.parametrize("service", [None, *asyncapi.PARTS])
def test_every_reference_leads_somewhere(service: str | None) -> None:
    document = asyncapi.document(service)
    found = [*references(document)]
    assert found
    for reference in found:
        resolve(document, reference)
    assert json.loads(json.dumps(document)) == document
    assert document["asyncapi"] == "3.0.0"


async def test_what_the_code_sends_fits_the_document(
    app_database: Database, system_database: Database
) -> None:
    org = new_id("org")
    job = DocumentJob(org, "kb_1", "doc_1", 3)
    with tenant(org):
        async with app_database.writer() as connection:
            await audit.record(
                connection, action="api_key.revoke", actor="usr_1", tenant_id=org, target="key_1",
                outcome="success", detail={"count": "3"},
            )  # fmt: skip
            await enqueue(connection, "document.index", "index", job.encode(), org)
    await to_outbox(system_database)(
        new_id("seg"), events("s", 1_770_000_000_000, {(org, "/v1/models", "2xx"): 4})
    )
    async with system_database.writer() as connection:
        records = (
            await connection.execute(
                text("delete from outbox where tenant_id = :org returning topic, value"), {"org": org}
            )
        ).all()
        messages = (
            await connection.execute(
                text("delete from queue_outbox where tenant_id = :org returning family, body, headers"),
                {"org": org},
            )
        ).all()
    assert sorted(topic for topic, _ in records) == ["audit.logs", "usage.records"]
    for topic, value in records:
        check(topic, value)
    ((family, body, encoded),) = messages
    check(family, body, headers.decode(encoded))


def event(type: str, data: dict[str, Any]) -> dict[str, Any]:
    made = AgentEvent(
        id="run_1:1:1", type=type, subject="run_1", time=now(), tenant="org_1", user="usr_1",
        agent="agt_1", agentversion=1, conversation="cnv_1", seq=1, epoch=1, turn=1, data=data,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(made.encode())
    return found


@pytest.mark.parametrize(
    ("channel", "broken"),
    [
        ("document.index", {"tenant": "org_1", "knowledge_base": "kb", "document": "d"}),
        ("document.index", {"tenant": "o", "knowledge_base": "k", "document": "d", "version": 1, "more": 1}),
        ("agent.tasks", {"run": 7, "tenant": "t", "conversation": "c"}),
        ("usage.records", {"id": "x"}),
        ("agent.events", event("message.delta", {"text": "x"})),
        ("agent.events", event("message.delta", {"message": "m", "offset": 0, "text": "x", "more": 1})),
        ("agent.events", event("run.cancelled", {"message": "m", "offset": 0, "text": "x"})),
        ("agent.events", event("run.invented", {})),
    ],
)
def test_what_breaks_a_contract_is_refused(channel: str, broken: dict[str, Any]) -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        validator(channel).validate(broken)
