"""Conversations over HTTP: multi-turn, sent once, seen by their own, really gone."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from core.contracts.agents import TERMINAL, event
from core.contracts.audit import parse
from core.contracts.knowledge import memory_of
from core.database import Database
from core.eventlog import open_eventlog
from core.settings import EventLogSettings
from services.common.principal import Principal
from tests.services.agents.platform import Caller, Platform
from tests.services.agents.scripted import answer_to


@dataclass(frozen=True)
class Talk:
    caller: Caller
    agent: str
    id: str

    @property
    def path(self) -> str:
        return f"/api/v1/conversations/{self.id}"

    async def say(self, words: str, **more: object) -> Any:
        return await self.caller.post(f"{self.path}/messages", {"text": words, **more}, 202)

    async def messages(self, query: str = "order=asc") -> Any:
        return await self.caller.get(f"{self.path}/messages?{query}")


@pytest.fixture
async def talk(acme: Caller) -> Talk:
    agent = await acme.agent()
    opened = await acme.post("/api/v1/conversations", {"agent": "helper", "title": "Pumps"})
    return Talk(acme, agent["id"], opened["id"])


async def test_each_turn_knows_what_was_said(talk: Talk) -> None:
    first = await talk.say("steps=1 words=2")
    second = await talk.say("history=1")
    assert (await talk.caller.ended(second["run"]))["status"] == "completed"
    said = (await talk.messages())["data"]
    assert [(one["role"], one["run_id"]) for one in said] == [
        (role, sent["run"]) for sent in (first, second) for role in ("user", "assistant")
    ]
    assert [one["text"] for one in said] == [
        "steps=1 words=2",
        "0.0 0.1 ",
        "history=1",
        "steps=1 words=2|0.0 0.1 ",
    ]
    page = await talk.messages("order=asc&limit=3")
    assert (len(page["data"]), page["has_more"]) == (3, True)
    rest = await talk.messages(f"order=asc&after={page['last_id']}")
    assert [one["id"] for one in rest["data"]] == [said[3]["id"]]
    latest = await talk.messages("limit=1")
    assert latest["data"][0]["id"] == said[3]["id"]
    shown = await talk.caller.get(talk.path)
    assert (shown["turns"], shown["title"], shown["agent_id"]) == (2, "Pumps", talk.agent)
    runs = await talk.caller.get(f"{talk.path}/runs")
    assert [one["id"] for one in runs["data"]] == [second["run"], first["run"]]


async def test_a_message_sent_again_and_again_is_one_run(talk: Talk) -> None:
    body = {"text": "steps=1", "client_msg_id": "m1"}
    instances = [talk.caller.at(number % 2) for number in range(8)]
    sent = await asyncio.gather(*(caller.post(f"{talk.path}/messages", body, 202) for caller in instances))
    assert len({one["run"] for one in sent}) == len({one["message"] for one in sent}) == 1
    assert sorted(one["duplicate"] for one in sent) == [False, *[True] * 7]
    await talk.caller.ended(sent[0]["run"])
    assert len((await talk.messages())["data"]) == 2
    refused = await talk.caller.call(
        "POST", f"{talk.path}/messages", {"text": "other", "client_msg_id": "m1"}
    )
    assert (refused.status, refused.json["code"]) == (422, "client_msg_id_reused")


async def test_a_run_that_opens_a_conversation_is_started_once(acme: Caller) -> None:
    await acme.agent()
    path, body = "/api/v1/agents/helper/runs", {"input": "steps=1", "client_msg_id": "first"}
    sent = await asyncio.gather(*(acme.at(number % 2).post(path, body, 202) for number in range(6)))
    assert len({one["run_id"] for one in sent}) == len({one["conversation_id"] for one in sent}) == 1
    by_key = [await acme.post(path, {"input": "steps=1"}, 202, idempotency_key="k1") for _ in range(2)]
    assert by_key[0] == by_key[1]
    assert by_key[0]["run_id"] != sent[0]["run_id"]
    assert by_key[0]["ws_channel"] == f"run:{by_key[0]['run_id']}"
    assert len((await acme.get("/api/v1/conversations"))["data"]) == 2


async def test_what_is_anothers_does_not_exist(talk: Talk, other: Caller) -> None:
    sent = await talk.say("steps=1")
    colleague = talk.caller.acting_as(replace_subject(talk.caller.principal, "usr_colleague"))
    paths = [
        ("GET", talk.path, None),
        ("GET", f"{talk.path}/messages", None),
        ("GET", f"{talk.path}/runs", None),
        ("POST", f"{talk.path}/messages", {"text": "steps=1"}),
        ("PATCH", talk.path, {"title": "Mine"}),
        ("DELETE", talk.path, None),
        ("GET", f"/api/v1/runs/{sent['run']}", None),
        ("GET", f"/api/v1/runs/{sent['run']}/events", None),
        ("POST", f"/api/v1/runs/{sent['run']}/cancel", None),
    ]
    for caller, slug in ((other, "foreign"), (colleague, "colleague")):
        for method, path, body in paths:
            assert (await caller.call(method, path, body)).status == 404, (method, path)
        assert (await caller.get("/api/v1/conversations"))["data"] == []
        # An agent of its own gives no way into somebody else's conversation.
        await caller.agent(slug)
        started = await caller.call(
            "POST", f"/api/v1/agents/{slug}/runs", {"input": "steps=1", "conversation_id": talk.id}
        )
        assert started.status == 404
    assert (await other.call("GET", f"/api/v1/agents/{talk.agent}")).status == 404
    # Who administers the organisation sees what is said in it.
    admin = colleague.acting_as(
        Principal(
            tenant_id=talk.caller.principal.tenant_id,
            subject="usr_admin",
            kind="user",
            scopes=talk.caller.principal.scopes | {"org:admin"},
        )
    )
    assert (await admin.get(talk.path))["id"] == talk.id
    assert (await talk.caller.ended(sent["run"]))["status"] == "completed"


def replace_subject(principal: Principal, subject: str) -> Principal:
    return msgspec.structs.replace(principal, subject=subject)


async def test_memories_of_its_turns_go_with_a_conversation(talk: Talk, system: Database) -> None:
    tenant, user = talk.caller.principal.tenant_id, talk.caller.principal.subject
    runs = [(await talk.say("steps=1"))["run"] for _ in range(3)]
    for run in runs:
        await talk.caller.ended(run)
    known, unheard, elsewhere = (memory_of(tenant, run) for run in (*runs[:2], "run_elsewhere"))
    async with system.writer() as connection:
        for document in (known, elsewhere):
            await connection.execute(
                text(
                    "insert into document (tenant_id, id, kind, user_id, name, created_by, live_version, last_version)"
                    " values (:t, :d, 'memory', :u, 'steps=1', :u, 1, 1)"
                ),
                {"t": tenant, "d": document, "u": user},
            )
        await connection.execute(
            text(
                "insert into memory_turn (tenant_id, run_id, user_id, conversation_id, question)"
                " values (:t, :r, :u, :c, 'steps=1')"
            ),
            {"t": tenant, "r": runs[2], "u": user, "c": talk.id},
        )
    assert (await talk.caller.call("DELETE", talk.path)).status == 204
    async with system.writer() as connection:
        rows = await connection.execute(
            text("select id, deleted_at is null, live_version from document where tenant_id = :t"),
            {"t": tenant},
        )
        found = {row[0]: tuple(row[1:]) for row in rows}
        turns = await connection.scalar(
            text("select count(*) from memory_turn where tenant_id = :t"), {"t": tenant}
        )
    assert found == {
        known: (False, None),
        unheard: (False, None),
        memory_of(tenant, runs[2]): (False, None),
        elsewhere: (True, 1),
    }
    assert turns == 0


async def test_a_deleted_conversation_is_gone_with_all_it_held(talk: Talk, system: Database) -> None:
    done = await talk.say("steps=2")
    await talk.caller.ended(done["run"])
    open_run = await talk.say("steps=1 gate=/nowhere")
    queued = await talk.say("steps=1")
    async with asyncio.timeout(30):
        while (await talk.caller.get(f"/api/v1/runs/{open_run['run']}"))["status"] == "queued":  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)
    assert (await talk.caller.call("DELETE", talk.path)).status == 204
    assert (await talk.caller.call("GET", talk.path)).status == 404
    tenant = talk.caller.principal.tenant_id
    async with system.writer() as connection:
        for table in ("conversation", "message", "run", "checkpoint"):
            count = await connection.scalar(
                text(f"select count(*) from {table} where tenant_id = :t"), {"t": tenant}
            )
            assert (table, count) == (table, 0)
    audited = [one for one in await records(talk.caller.platform, "audit.logs", tenant) if talk.id in one]
    assert [parse(one.encode()).action for one in audited] == ["conversation.delete"]
    told = [event(one.encode()) for one in await records(talk.caller.platform, "agent.events", tenant)]
    for run in (done["run"], open_run["run"], queued["run"]):
        story = [one for one in told if one.subject == run]
        assert [one.seq for one in story] == list(range(1, len(story) + 1))
        assert [one.type for one in story if one.type in TERMINAL] == [story[-1].type]


async def records(platform: Platform, topic: str, tenant: str) -> list[str]:
    """What the log holds of a tenant, once the outbox is empty; by partition, in order."""
    system = Database(platform.settings, role="system")
    async with asyncio.timeout(30):
        while True:
            async with system.writer() as connection:
                if not await connection.scalar(
                    text("select count(*) from outbox where tenant_id = :t"), {"t": tenant}
                ):
                    break
            await asyncio.sleep(0.02)
    await system.close()
    found = []
    async with open_eventlog(EventLogSettings(eventlog_url="postgresql:"), platform.settings) as log:
        for partition, bounds in (await log.bounds(topic)).items():
            async for batch in log.read(topic, partition, bounds.low, bounds.high):
                found += [record.value.decode() for record in batch if tenant.encode() in record.value]
    return found


async def test_events_stand_in_the_log_dense_and_in_order(talk: Talk) -> None:
    runs = [(await talk.say("steps=3 words=5"))["run"] for _ in range(3)]
    for run in runs:
        await talk.caller.ended(run)
    system = Database(talk.caller.platform.settings, role="system")
    told = [
        event(one.encode())
        for one in await records(talk.caller.platform, "agent.events", talk.caller.principal.tenant_id)
    ]
    for run in runs:
        story = [one for one in told if one.subject == run]
        assert [one.seq for one in story] == list(range(1, len(story) + 1))
        deltas = [one.data["text"] for one in story if one.type == "message.delta"]
        assert "".join(deltas) == answer_to({"steps": "3", "words": "5"})
    # Where the first and last stand is noted, so that nobody searches for them.
    async with asyncio.timeout(30):
        while True:
            async with system.writer() as connection:
                rows = list(
                    await connection.execute(
                        text("select first_offset, last_offset from run where id = any(:runs)"),
                        {"runs": runs},
                    )
                )
            if all(row.last_offset is not None for row in rows):
                break
            await asyncio.sleep(0.05)
    await system.close()
    assert all(row.first_offset < row.last_offset for row in rows)
    place = await talk.caller.as_system().get(f"/internal/runs/{runs[0]}")
    assert (place["tenant"], place["user"], place["conversation"]) == (
        talk.caller.principal.tenant_id,
        talk.caller.principal.subject,
        talk.id,
    )
    assert place["first"]["offset"] in {row.first_offset for row in rows}
    latest = await talk.caller.as_system().get(f"/internal/conversations/{talk.id}")
    assert (latest["run"], latest["status"]) == (runs[-1], "completed")
    assert (await talk.caller.call("GET", f"/internal/runs/{runs[0]}")).status == 404


async def test_who_asks_whose_runs_are_does_not_cost_a_run_its_lease(
    talk: Talk, system: Database, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    run = (await talk.say(f"steps=1 gate={gate}"))["run"]
    async with asyncio.timeout(30):
        while (await talk.caller.get(f"/api/v1/runs/{run}"))["status"] != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    asking = talk.caller.as_system()
    async with system.writer() as connection:
        # Longer than a lease. A lookup reads the conversation, a run at work does not.
        await connection.execute(text("lock table conversation in access exclusive mode"))
        crowd = [
            asyncio.create_task(asking.at(instance).call("GET", f"/internal/runs/{run}"))
            for instance in range(2)
            for _ in range(12)
        ]
        await asyncio.sleep(8)
    assert {(await one).status for one in crowd} <= {200, 503}
    gate.touch()
    await talk.caller.ended(run)
    async with system.writer() as connection:
        found = await connection.execute(text("select epoch, status from run where id = :run"), {"run": run})
        assert tuple(found.one()) == (1, "completed")


async def test_a_cancelled_run_ends_on_whichever_instance_it_is(talk: Talk) -> None:
    sent = await talk.say("steps=1 gate=/nowhere")
    behind = await talk.say("steps=1")
    assert (await talk.caller.at(1).post(f"/api/v1/runs/{sent['run']}/cancel", None, 200))["id"] == sent[
        "run"
    ]
    assert (await talk.caller.ended(sent["run"]))["status"] == "cancelled"
    assert (await talk.caller.ended(behind["run"]))["status"] == "completed"
    again = await talk.caller.post(f"/api/v1/runs/{behind['run']}/cancel", None, 200)
    assert (again["status"], again["cancel_requested"]) == ("completed", False)


async def test_a_conversation_takes_only_so_many_open_runs(talk: Talk) -> None:
    first = await talk.say("steps=1 gate=/nowhere")
    for _ in range(31):
        await talk.say("steps=1")
    refused = await talk.caller.call("POST", f"{talk.path}/messages", {"text": "steps=1"})
    assert (refused.status, refused.json["code"], refused.headers["retry-after"]) == (
        429,
        "conversation_busy",
        "5",
    )
    await talk.caller.call("POST", f"/api/v1/runs/{first['run']}/cancel")


async def test_without_its_agent_a_conversation_says_so(talk: Talk) -> None:
    assert (await talk.caller.call("DELETE", f"/api/v1/agents/{talk.agent}")).status == 204
    refused = await talk.caller.call("POST", f"{talk.path}/messages", {"text": "steps=1"})
    assert (refused.status, refused.json["code"]) == (409, "agent_deleted")
    await talk.caller.agent("second")
    sent = await talk.say("steps=1", agent="second")
    assert (await talk.caller.ended(sent["run"]))["status"] == "completed"
