"""Finished turns become memories of their user: found by nobody else, and forgotten when asked."""

import asyncio
from dataclasses import replace
from typing import Any

from sqlalchemy import text

from core.clock import now
from core.contracts.agents import EVENTS, AgentEvent
from core.database import Database
from core.eventlog import open_eventlog
from core.eventlog.api import NewRecord
from core.ids import new_id
from core.settings import EventLogSettings
from services.common.principal import Principal
from services.memory.consumers import GROUP
from tests.services.memory.platform import Caller, Indexer, Platform


def turn(caller: Caller, question: str, answer: str, end: str = "run.completed") -> list[NewRecord]:
    run, conversation = new_id("run"), new_id("cnv")
    parts: list[tuple[str, dict[str, Any]]] = [
        ("run.queued", {"input": {"message": "msg_1", "text": question}}),
        ("message.delta", {"message": "msg_2", "offset": 0, "text": answer}),
        ("message.completed", {"message": "msg_2", "text": answer, "citations": [], "sha256": ""}),
        (end, {}),
    ]
    events = [
        AgentEvent(
            id=f"{run}:1:{number}", type=kind, subject=run, time=now(), tenant=caller.tenant,
            user=caller.principal.subject, agent="agt_1", agentversion=1, conversation=conversation,
            seq=number, epoch=1, turn=1, data=data,
        )
        for number, (kind, data) in enumerate(parts, 1)
    ]  # fmt: skip
    return [NewRecord(EVENTS, event.key, event.encode()) for event in events]


async def test_turns_are_remembered_for_their_user_and_forgotten(
    acme: Caller, platform: Platform, indexer: Indexer, system: Database
) -> None:
    colleague = acme.colleague()
    completed = turn(acme, "My cat is called Tom.", "Nice to meet Tom.")
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), platform.database) as log:
        await log.append([*turn(acme, "Forget it.", "Gone.", "run.failed"), *completed, *completed])

    async def remembered(caller: Caller) -> list[Any]:
        return list((await caller.call("GET", "/api/v1/memories")).json["data"])

    async with asyncio.timeout(30):
        while not (found := await remembered(acme)):  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.05)
    (memory,) = found
    assert (memory["object"], memory["name"], memory["state"]) == (
        "memory",
        "My cat is called Tom.",
        "queued",
    )
    await indexer.index(acme.tenant, memory["id"])
    hits = (await acme.search("cat Tom", memories=True))["data"]
    assert {hit["document"] for hit in hits} == {memory["id"]}
    assert hits[0]["text"].startswith("User: My cat is called Tom.")
    assert (await acme.search("cat Tom"))["data"] == []
    assert (await colleague.search("cat Tom", memories=True))["data"] == []
    assert await remembered(colleague) == []
    for method in ("GET", "DELETE"):
        assert (await colleague.call(method, f"/api/v1/documents/{memory['id']}")).status == 404
    for what in ("versions", "reindex", "cancel"):
        refused = await colleague.call("POST", f"/api/v1/documents/{memory['id']}/{what}", {})
        assert (refused.status, refused.json["code"]) == (404, "not_found"), what
    assert (await colleague.call("DELETE", "/api/v1/memories")).json == {"deleted": 0}
    assert (await acme.call("DELETE", f"/api/v1/memories/{memory['id']}")).status == 204
    assert (await acme.search("cat Tom", memories=True))["data"] == []
    assert await remembered(acme) == []
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), platform.database) as log:
        await log.append([*completed, *turn(acme, "And the dog?", "Rex.")])
    async with asyncio.timeout(30):
        while not (found := await remembered(acme)):  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.05)
    assert [one["name"] for one in found] == ["And the dog?"]


async def test_an_event_that_no_memory_can_come_of_is_left_out_on_record(
    acme: Caller, platform: Platform, system: Database
) -> None:
    """An organisation that is not there holds up nobody: the group goes on, and its fate is written down."""
    nobody = replace(acme, principal=Principal(new_id("org"), new_id("usr"), "user"))
    unknown = turn(nobody, "Who am I?", "Nobody.")
    broken = NewRecord(EVENTS, unknown[0].key, b'{"type": 7}')
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), platform.database) as log:
        positions = await log.append([*unknown, broken])
        end = positions[-1]
        async with asyncio.timeout(30):
            while (await log.committed(GROUP, EVENTS)).get(end.partition, 0) <= end.offset:  # noqa: ASYNC110 - another process reads
                await asyncio.sleep(0.05)
    async with system.writer() as connection:
        rows = await connection.execute(
            text(
                "select log_offset, code, reason from event_skipped where consumer = :group and topic = :topic"
                " and partition = :partition and log_offset between :first and :last order by log_offset"
            ),
            {"group": GROUP, "topic": EVENTS, "partition": end.partition, "first": positions[0].offset,
             "last": end.offset},
        )  # fmt: skip
        found = [tuple(row) for row in rows]
    assert [(offset, code) for offset, code, _ in found] == [
        (positions[0].offset, "refused"), (positions[2].offset, "refused"), (end.offset, "unreadable"),
    ]  # fmt: skip
    assert nobody.tenant in found[0][2]
    assert not any("Who am I" in reason or "Nobody" in reason for _, _, reason in found)
