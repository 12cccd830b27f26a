"""Cached and reasoning tokens of a run stand in its `usage`, by whichever way it is read."""

from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.responses import ResponseUsage

from tests.doubles.provider import CACHED, REASONING
from tests.services.agents.openai.conftest import Platform

MODEL = 'double/thinking:calls=calculator:{"expression":"6+7"}'
CALLS = 2
"""Of the model: one that wants the tool, one that answers."""
DETAILS = (CALLS * CACHED, CALLS * REASONING)
ASK: Any = [{"role": "user", "content": "How much?"}]


@pytest.fixture
async def agent(platform: Platform, key: str) -> str:
    body = {"slug": "thinker", "name": "Thinker", "model": MODEL, "tools": ["calculator"]}
    headers = {"authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(platform.gateways[0] + "/api/v1/agents", json=body) as answer,
    ):
        assert answer.status == 201, await answer.text()
    return "agent:thinker"


def of_chat(usage: CompletionUsage | None) -> tuple[int | None, int | None]:
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens_details is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > sum(DETAILS)
    return usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens


def of_response(usage: ResponseUsage | None) -> tuple[int, int]:
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > sum(DETAILS)
    return usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens


async def test_of_a_chat_whole_and_streamed(client: AsyncOpenAI, agent: str) -> None:
    whole = await client.chat.completions.create(model=agent, messages=ASK)
    assert of_chat(whole.usage) == DETAILS
    stream = await client.chat.completions.create(
        model=agent, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    assert of_chat([chunk async for chunk in stream][-1].usage) == DETAILS


async def test_of_a_response_whole_streamed_in_background_and_read_again(
    platform: Platform, client: AsyncOpenAI, elsewhere: AsyncOpenAI, key: str, agent: str
) -> None:
    whole = await client.responses.create(model=agent, input="How much?")
    assert of_response(whole.usage) == DETAILS
    async with client.responses.stream(model=agent, input="How much?") as stream:
        assert of_response((await stream.get_final_response()).usage) == DETAILS
    waiting = await client.responses.create(model=agent, input="How much?", background=True)
    rest = await elsewhere.responses.retrieve(waiting.id, stream=True)
    last = [event async for event in rest][-1]
    assert last.type == "response.completed"
    assert of_response(last.response.usage) == DETAILS
    assert of_response((await elsewhere.responses.retrieve(waiting.id)).usage) == DETAILS
    run = f"{platform.gateways[0]}/api/v1/runs/run_{waiting.id.removeprefix('resp_')}"
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.get(run) as answer,
    ):
        usage = (await answer.json())["usage"]
    assert (usage["cached_tokens"], usage["reasoning_tokens"]) == DETAILS
