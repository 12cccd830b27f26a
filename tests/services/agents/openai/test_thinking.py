"""What a model thinks: events of the run that a reader resumes like the others, and no part of the answer."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from core.contracts.agents import TERMINAL
from tests.doubles.provider import THOUGHTS
from tests.messages import check
from tests.services.agents.openai.conftest import Platform
from tests.services.agents.platform import sse

THOUGHT = "".join(THOUGHTS)
MODELS = [
    # Text, thought, text: what stands between two pieces of the text is no part of it.
    pytest.param("double/thinking:slow=8", " ".join(f"word{n}" for n in range(8)), 2, id="reasoning_content"),
    pytest.param("claude/thinking:answer", "Hello from the double.", 1, id="anthropic"),
]


@pytest.fixture
async def http(key: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
        yield session


async def story(platform: Platform, http: aiohttp.ClientSession, run: str) -> list[dict[str, Any]]:
    """All events, by readers who leave behind each thought and go on at the other gateway."""
    found: list[dict[str, Any]] = []
    for number in range(100):
        url = f"{platform.gateways[number % 2]}/api/v1/runs/{run}/events"
        last = {"last-event-id": str(found[-1]["seq"])} if found else {}
        async with http.get(url, headers=last) as answer:
            assert answer.status == 200, await answer.text()
            async for one in sse(answer.content):
                found.append(check("agent.events", one.data.encode()))
                assert (found[-1]["seq"], found[-1]["type"]) == (one.id, one.event)
                if one.event == "thinking.delta":
                    break
        if found[-1]["type"] in TERMINAL:
            break
    return found


@pytest.mark.parametrize(("model", "text", "thoughts"), MODELS)
async def test_a_reader_gets_each_thought_once_and_the_answer_without_it(
    platform: Platform, client: AsyncOpenAI, http: aiohttp.ClientSession, model: str, text: str, thoughts: int
) -> None:
    asked = await client.responses.create(model=model, input="Tell", background=True)
    events = await story(platform, http, f"run_{asked.id.removeprefix('resp_')}")
    assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "run.completed"
    items: dict[str, str] = {}
    for one in events:
        if one["type"] == "thinking.delta":
            said = items.setdefault(one["data"]["item"], "")
            assert one["data"]["offset"] == len(said)
            items[one["data"]["item"]] += one["data"]["text"]
    told = [one["data"] for one in events if one["type"] == "thinking.completed"]
    assert {one["item"]: one["text"] for one in told} == items
    assert [*items.values()] == [THOUGHT] * thoughts
    (completed,) = [one["data"] for one in events if one["type"] == "message.completed"]
    assert completed["text"] == text
    assert completed["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert "".join(one["data"]["text"] for one in events if one["type"] == "message.delta") == text
    assert (await client.responses.retrieve(asked.id)).output_text == text


@pytest.mark.parametrize(("model", "text", "thoughts"), MODELS)
async def test_the_sdk_gets_thoughts_as_a_summary_of_reasoning(
    client: AsyncOpenAI, model: str, text: str, thoughts: int
) -> None:
    async with client.responses.stream(model=model, input="Tell") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == text
    said = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    assert said == THOUGHT * thoughts
    done = [event.text for event in events if event.type == "response.reasoning_summary_text.done"]
    assert done == [THOUGHT] * thoughts
