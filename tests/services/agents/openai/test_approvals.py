"""A tool that a person must allow, through real gateways: every surface says that the run waits, and goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tests.services.agents.openai.conftest import Platform
from tests.services.gateway.conftest import bearing

SUM = 'double/calls=calculator:{"expression":"40+2"}'
ASK: Any = [{"role": "user", "content": "What is six times seven?"}]


@pytest.fixture
async def http(platform: Platform, key: str) -> AsyncIterator[httpx2.AsyncClient]:
    """The organisation at the first gateway, with an agent that asks before it calculates."""
    async with httpx2.AsyncClient(base_url=platform.gateways[0], headers=bearing(key), timeout=30) as opened:
        made = await opened.post(
            "/api/v1/agents",
            json={
                "slug": "careful", "name": "Careful", "model": SUM, "tools": ["calculator"],
                "approval": {"calculator": "always"},
            },
        )  # fmt: skip
        assert made.status_code == 201, made.text
        assert made.json()["approval"] == {"calculator": "always"}
        yield opened


async def waiting(http: httpx2.AsyncClient, run: str) -> dict[str, Any]:
    """What a run asks, once it waits."""
    async with asyncio.timeout(60):
        while (await http.get(f"/api/v1/runs/{run}")).json()["status"] != "waiting":  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
    (asked,) = (await http.get(f"/api/v1/runs/{run}/approvals")).json()["data"]
    assert asked["decision"] is None
    return dict(asked)


async def ended(http: httpx2.AsyncClient, run: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (found := (await http.get(f"/api/v1/runs/{run}")).json())["ended_at"] is None:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
    return dict(found)


async def test_a_person_decides_over_rest(platform: Platform, http: httpx2.AsyncClient) -> None:
    started = await http.post("/api/v1/agents/careful/runs", json={"input": "What is six times seven?"})
    run = started.json()["run_id"]
    asked = await waiting(http, run)
    assert (asked["tool"], asked["arguments"], asked["reason"], asked["round"]) == (
        "calculator", '{"expression": "40+2"}', "policy", 1,
    )  # fmt: skip
    path = f"/api/v1/runs/{run}/approvals/{asked['id']}"
    async with httpx2.AsyncClient(
        base_url=platform.gateways[1], headers=bearing(await platform.organisation())
    ) as stranger:
        assert (await stranger.post(path, json={"decision": "approve"})).status_code == 404
        assert (await stranger.get(f"/api/v1/runs/{run}/approvals")).status_code == 404
    assert (await http.post(path, json={"decision": "perhaps"})).status_code == 422
    assert (await http.post(f"{path}x", json={"decision": "approve"})).status_code == 404
    decided = await http.post(path, json={"decision": "approve", "note": "fine"})
    assert (decided.status_code, decided.json()["decision"]) == (200, "approve")
    again = await http.post(path, json={"decision": "approve"})
    assert (again.status_code, again.json()) == (200, decided.json())
    other = await http.post(path, json={"decision": "reject"})
    assert (other.status_code, other.json()["code"]) == (409, "approval_resolved")
    found = await ended(http, run)
    assert (found["status"], found["usage"]["tool_calls"], found["usage"]["requests"]) == ("completed", 1, 2)
    said = (await http.get(f"/api/v1/conversations/{found['conversation_id']}/messages")).json()["data"]
    assert "42" in said[-1]["text"] or "42" in said[0]["text"]


async def test_a_response_is_incomplete_until_somebody_decides(
    http: httpx2.AsyncClient, client: AsyncOpenAI, elsewhere: AsyncOpenAI
) -> None:
    first = await client.responses.create(model="agent:careful", input="Six times seven?", stream=True)
    events = [event async for event in first]
    assert events[-1].type == "response.incomplete"
    response = events[-1].response
    assert response.incomplete_details is not None
    assert (response.status, str(response.incomplete_details.reason)) == ("incomplete", "approval_required")
    request = response.output[-1]
    assert request.type == "mcp_approval_request"
    assert (request.name, request.arguments) == ("calculator", '{"expression": "40+2"}')
    # The document says the same, and that no work is lost.
    assert (await elsewhere.responses.retrieve(response.id)).output[-1] == request
    run = response.id.replace("resp_", "run_")
    asked = await waiting(http, run)
    place = events[-1].sequence_number

    async def rest() -> list[Any]:
        return [
            event
            async for event in await elsewhere.responses.retrieve(
                response.id, stream=True, starting_after=place
            )
        ]

    following = asyncio.create_task(rest())
    await http.post(f"/api/v1/runs/{run}/approvals/{asked['id']}", json={"decision": "approve"})
    found = await following
    assert [one.sequence_number for one in found] == list(range(place + 1, place + 1 + len(found)))
    assert found[0].type == "response.output_item.done"
    assert found[-1].type == "response.completed"
    assert "42" in found[-1].response.output_text
    # Replayed from the first event on it does not stop where it once waited.
    replayed = [event async for event in await client.responses.retrieve(response.id, stream=True)]
    assert [one.sequence_number for one in replayed] == list(range(1, place + 1 + len(found)))


async def test_a_whole_response_comes_back_without_waiting_for_the_person(
    http: httpx2.AsyncClient, client: AsyncOpenAI
) -> None:
    response = await client.responses.create(model="agent:careful", input="Six times seven?")
    assert response.status == "incomplete"
    run = response.id.replace("resp_", "run_")
    asked = await waiting(http, run)
    await http.post(f"/api/v1/runs/{run}/approvals/{asked['id']}", json={"decision": "reject", "note": "no"})
    await ended(http, run)
    later = await client.responses.retrieve(response.id)
    assert later.status == "completed"
    assert "did not allow" in later.output_text
    cancelled = await client.responses.create(model="agent:careful", input="Again?")
    assert (await client.responses.cancel(cancelled.id)).status == "cancelled"


async def test_a_chat_says_where_to_decide_and_is_not_sent_again(
    platform: Platform, http: httpx2.AsyncClient, key: str
) -> None:
    async with AsyncOpenAI(api_key=key, base_url=f"{platform.gateways[0]}/v1", max_retries=2) as client:
        with pytest.raises(openai.ConflictError) as refused:
            await client.chat.completions.create(model="agent:careful", messages=ASK)
        assert refused.value.code == "approval_required"
        run = refused.value.response.headers["x-run-id"]
        asked = await waiting(http, run)
        assert f"/api/v1/runs/{run}/approvals/{asked['id']}" in refused.value.message
        assert "`round` 1" in refused.value.message
        conversation = refused.value.response.headers["x-conversation-id"]
        listed = (await http.get(f"/api/v1/conversations/{conversation}/runs")).json()["data"]
        assert [one["id"] for one in listed] == [run]
        stream = await client.chat.completions.create(model="agent:careful", messages=ASK, stream=True)
        with pytest.raises(openai.APIError) as streamed:
            async for _ in stream:
                pass
        assert streamed.value.code == "approval_required"
