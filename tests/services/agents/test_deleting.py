"""Deleting while others write: nobody is stopped, nothing is lost, nothing stays behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from core.contracts.knowledge import memory_of
from core.database import tenant
from core.objects import open_objects
from core.settings import ObjectSettings
from services.agents import attachments, leases, recorder, store, submissions
from services.agents.handlers import Conversations
from services.agents.model import AgentSpec, Outcome
from services.agents.notes import RunJournal
from services.agents.openai.runs import Runs
from services.agents.recorder import Recorder
from services.agents.store import Viewer
from services.agents.submissions import Submission
from services.common.errors import Problem
from services.common.principal import Principal
from tests.services.agents.arena import Arena, Asker
from tests.services.agents.test_runner import until


@pytest.fixture
def principal(asker: Asker) -> Principal:
    return replace(asker.principal, scopes=frozenset({"agents:read", "agents:run"}))


@pytest.fixture
def responses(asker: Asker) -> Runs:
    nothing: Any = None  # neither providers nor events are asked here
    return Runs(asker.app, nothing, nothing, 15)


async def waits_for_a_lock(asker: Asker) -> bool:
    return bool(await asker.rows("select pid from pg_locks where not granted"))


async def end(asker: Asker, run: str) -> None:
    """As a runner does, with an answer."""
    database = Recorder(asker.system)
    writing = asyncio.create_task(database.run())
    async with asker.system.writer() as connection:
        (claimed,) = await leases.claim(connection, instance="test", lease_seconds=3600, limit=10)
    assert claimed.identity.run_id == run
    journal = RunJournal(claimed.identity, seq=claimed.last_seq, steps=0, place=1, wake=database.wake)
    database.open(journal)
    await journal.end(Outcome(status="completed", message_id=f"msg_{run}", text="said"))
    database.stop()
    await writing


@asynccontextmanager
async def ending(asker: Asker) -> AsyncIterator[AsyncConnection]:
    """The recorder's transaction that ends the one open run: inside, its first statement is done."""
    async with asker.system.writer() as connection:
        (claimed,) = await leases.claim(connection, instance="test", lease_seconds=3600, limit=10)
    journal = RunJournal(claimed.identity, seq=claimed.last_seq, steps=0, place=1, wake=lambda _: None)
    ended = asyncio.create_task(journal.end(Outcome(status="failed", error_code="x")))
    await asyncio.sleep(0)
    write = journal.take()
    assert write is not None
    write.number()
    async with asker.system.writer() as connection:
        await connection.execute(recorder._STORE, recorder._parameters([write]))
        yield connection
        await connection.execute(recorder._END, recorder._endings([write]))
    write.done()
    await ended


async def test_a_conversation_is_deleted_while_its_run_ends(
    arena: Arena, asker: Asker, principal: Principal
) -> None:
    asked = await asker.ask("anything")
    async with ending(asker):
        deleting = asyncio.create_task(Conversations(asker.app).delete(principal, asked.conversation_id))
        await until(lambda: waits_for_a_lock(asker))
    await deleting
    assert await asker.runs() == {}
    assert (await asker.stories())[asked.run_id].types == ["run.queued", "run.failed"]


async def test_a_response_is_deleted_while_its_run_ends(
    arena: Arena, asker: Asker, principal: Principal, responses: Runs
) -> None:
    asked = await asker.ask("anything")
    async with ending(asker):
        deleting = asyncio.create_task(responses.delete(principal, asked.run_id))
        await until(lambda: waits_for_a_lock(asker))
    await deleting
    assert await asker.runs() == {}
    assert await asker.rows("select id from conversation where tenant_id = :t", t=asker.tenant_id) == []
    assert (await asker.stories())[asked.run_id].types == ["run.queued", "run.failed"]


async def test_what_is_said_while_the_only_response_is_deleted_stays(
    arena: Arena, asker: Asker, principal: Principal, responses: Runs
) -> None:
    asked = await asker.ask("the first")
    await end(asker, asked.run_id)
    more = Submission(
        spec=AgentSpec(model="test/scripted"), text="the second", conversation_id=asked.conversation_id
    )
    with tenant(asker.tenant_id):
        async with asker.app.writer() as connection:
            second = await submissions.submit(connection, principal, more)
            deleting = asyncio.create_task(responses.delete(principal, asked.run_id))
            await until(lambda: waits_for_a_lock(asker))
    await deleting
    assert set(await asker.runs()) == {second.run_id}
    told = await asker.rows("select text from message where tenant_id = :t", t=asker.tenant_id)
    assert [row.text for row in told] == ["the second"]
    await asker.cancel(second.run_id)


async def test_nothing_is_attached_to_a_conversation_that_is_being_deleted(
    arena: Arena, asker: Asker, principal: Principal
) -> None:
    asked = await asker.ask("anything")
    await asker.cancel(asked.run_id)

    async def file() -> AsyncIterator[bytes]:
        yield b"content"

    settings = ObjectSettings(objects_url=arena.folder.as_uri())
    async with open_objects(settings, arena.settings) as objects:
        await objects.ensure_bucket(attachments.BUCKET, versioned=True)
        files = attachments.Attachments(asker.app, objects, max_bytes=100)
        with tenant(asker.tenant_id):
            async with asker.app.writer() as connection:
                assert await store.conversation(
                    connection, Viewer.of(principal), asked.conversation_id, lock=True
                )
                await attachments.delete_all(connection, asker.tenant_id, asked.conversation_id)
                await store.delete_conversation(connection, asked.conversation_id)
                adding = asyncio.create_task(
                    files.add(
                        principal, asked.conversation_id, name="a.txt", media_type="text/plain", body=file()
                    )
                )
                await until(lambda: waits_for_a_lock(asker), seconds=10)
        with pytest.raises(Problem) as refused:
            await adding
    assert refused.value.status == 404
    assert await asker.rows("select id from document where tenant_id = :t", t=asker.tenant_id) == []


async def test_memory_forgets_a_response_that_was_deleted(
    arena: Arena, asker: Asker, principal: Principal, responses: Runs
) -> None:
    asked, other = await asker.ask("forget me"), await asker.ask("remember me")
    for one in (asked, other):
        await asker.execute(
            "insert into memory_turn (tenant_id, run_id, user_id, conversation_id, question)"
            " values (:t, :run, 'usr_asker', :talk, 'said')",
            t=asker.tenant_id, run=one.run_id, talk=one.conversation_id,
        )  # fmt: skip
    await asker.cancel(other.run_id)
    await end(asker, asked.run_id)
    await responses.delete(principal, asked.run_id)
    turns = await asker.rows("select run_id from memory_turn where tenant_id = :t", t=asker.tenant_id)
    assert [row.run_id for row in turns] == [other.run_id]
    # An event of the turn that comes late finds that it was deleted.
    documents = await asker.rows(
        "select id, deleted_at from document where tenant_id = :t", t=asker.tenant_id
    )
    assert [row.id for row in documents] == [memory_of(asker.tenant_id, asked.run_id)]
    assert documents[0].deleted_at is not None
