"""Files of a conversation: stored whole, queued for the index, found by its runs, gone with it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from core.contracts.knowledge import job
from core.database import Database
from core.objects import open_objects
from core.settings import ObjectSettings
from services.agents.attachments import media_type_of
from tests.services.agents.platform import Caller, Reply

FILE = b"Pumps are checked in May.\n" * 10_000


@pytest.fixture
async def conversation(acme: Caller) -> str:
    await acme.agent(knowledge_bases=["kb_chosen"])
    opened = await acme.post("/api/v1/conversations", {"agent": "helper"})
    return f"/api/v1/conversations/{opened['id']}"


async def attach(caller: Caller, path: str, body: bytes, name: str = "pumps.md") -> Reply:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    async with caller.http.post(
        f"{caller.platform.addresses[caller.instance]}{path}/attachments",
        params={"name": name},
        data=pieces(),
        headers=caller.platform.header(caller.principal),
    ) as answer:
        return Reply(answer.status, await answer.json(content_type=None), answer.headers)


async def one(system: Database, sql: str, **parameters: object) -> Any:
    async with system.writer() as connection:
        return (await connection.execute(text(sql), parameters)).one()


async def test_a_file_is_stored_whole_and_queued(acme: Caller, conversation: str, system: Database) -> None:
    stored = await attach(acme, conversation, FILE)
    assert (stored.status, stored.json["state"], stored.json["media_type"]) == (
        202,
        "queued",
        "text/markdown",
    )
    document, tenant = stored.json["id"], acme.principal.tenant_id
    settings = ObjectSettings(objects_url=acme.platform.environment["HEADRACE_OBJECTS_URL"])
    async with open_objects(settings, acme.platform.settings) as objects:
        assert await objects.get("knowledge", f"{tenant}/{document}/1") == FILE
    row = await one(system, "select * from document_version where document_id = :d", d=document)
    assert (row.state, row.size, row.tenant_id) == ("queued", len(FILE), tenant)
    waiting = await one(
        system,
        "select (select count(*) from queue_outbox where body = :b) + (select count(*) from queue.message where body = :b)",
        b=(told := await _job(system, document)),
    )
    assert waiting[0] == 1
    assert (job(told).document, job(told).version, job(told).tenant) == (document, 1, tenant)
    listed = await acme.get(f"{conversation}/attachments")
    assert [(one["id"], one["name"], one["size"]) for one in listed["data"]] == [
        (document, "pumps.md", len(FILE))
    ]


async def _job(system: Database, document: str) -> bytes:
    row = await one(
        system,
        "select body from (select body from queue_outbox union all select body from queue.message) m"
        " where position(cast(:d as bytea) in body) > 0",
        d=document.encode(),
    )
    return bytes(row.body)


async def test_runs_look_into_what_was_attached_too(
    acme: Caller, conversation: str, system: Database
) -> None:
    before = await acme.post(f"{conversation}/messages", {"text": "steps=1"}, 202)
    await attach(acme, conversation, FILE)
    after = await acme.post(f"{conversation}/messages", {"text": "steps=1"}, 202)
    sql = "select spec -> 'knowledge_bases' #>> '{}' as bases from run where id = :r"
    assert (await one(system, sql, r=before["run"])).bases == '["kb_chosen"]'
    base = await one(system, "select id from knowledge_base where tenant_id = :t", t=acme.principal.tenant_id)
    assert (await one(system, sql, r=after["run"])).bases == f'["kb_chosen", "{base.id}"]'


async def test_nothing_is_left_of_what_was_refused(
    acme: Caller, other: Caller, conversation: str, system: Database
) -> None:
    assert (await attach(other, conversation, FILE)).status == 404
    empty = await attach(acme, conversation, b"")
    assert (empty.status, empty.json["code"]) == (422, "empty_attachment")
    assert (await attach(acme, conversation, FILE, "a\nb")).status == 422
    assert (await acme.get(f"{conversation}/attachments"))["data"] == []
    for table in ("document", "document_version"):
        assert (
            await one(
                system, f"select count(*) from {table} where tenant_id = :t", t=acme.principal.tenant_id
            )
        )[0] == 0


async def test_attachments_go_with_their_conversation(
    acme: Caller, conversation: str, system: Database
) -> None:
    stored = await attach(acme, conversation, FILE)
    assert (await acme.call("DELETE", conversation)).status == 204
    row = await one(
        system, "select deleted_at, live_version from document where id = :d", d=stored.json["id"]
    )
    assert row.deleted_at is not None
    assert row.live_version is None
    assert (await attach(acme, conversation, FILE)).status == 404


def test_a_name_says_what_a_vague_type_does_not() -> None:
    assert media_type_of("a.md", "") == media_type_of("a.md", "application/octet-stream") == "text/markdown"
    assert media_type_of("a.pdf", "text/plain; charset=utf-8") == "text/plain"
    assert media_type_of("a.pdf", "") == "application/pdf"
    assert media_type_of("a", "") == "application/octet-stream"
