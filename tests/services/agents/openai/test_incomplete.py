"""An answer that ends at the model's limit of tokens says so, in each of OpenAI's ways."""

from typing import Any

import aiohttp
from openai import AsyncOpenAI

from tests.services.agents.openai.conftest import Platform
from tests.services.agents.openai.test_sdk import ASK, make_agent


async def test_a_chat_of_an_agent_ends_with_length(platform: Platform, client: AsyncOpenAI, key: str) -> None:
    await make_agent(platform, key, "long", "double/long")
    raw = await client.chat.completions.with_raw_response.create(model="agent:long", messages=ASK)
    whole = raw.parse()
    assert whole.choices[0].finish_reason == "length"
    stream = await client.chat.completions.create(model="agent:long", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    reasons = [one.choices[0].finish_reason for one in chunks if one.choices and one.choices[0].finish_reason]
    assert reasons == ["length"]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    assert await _run(platform, key, raw.headers["x-run-id"]) == ("completed", True, None)


async def test_a_response_is_incomplete_streamed_read_and_followed(
    platform: Platform, client: AsyncOpenAI, key: str
) -> None:
    whole = await client.responses.create(model="double/long", input="Tell me a tale")
    found = await client.responses.retrieve(whole.id)
    events = [event async for event in await client.responses.retrieve(whole.id, stream=True)]
    last = events[-1]
    assert last.type == "response.incomplete"
    for one in (whole, found, last.response):
        assert (one.status, one.output_text) == ("incomplete", whole.output_text)
        assert one.incomplete_details is not None
        assert one.incomplete_details.reason == "max_output_tokens"
        assert one.usage is not None
        (item,) = one.output
        assert item.type == "message"
        assert item.status == "incomplete"
    full = await client.responses.create(model="double/slow=2", input="Tell me a tale")
    assert (full.status, full.incomplete_details) == ("completed", None)


async def test_an_answer_whose_limit_went_to_thoughts_is_empty_and_incomplete(
    platform: Platform, client: AsyncOpenAI, key: str
) -> None:
    await make_agent(platform, key, "spent", "double/thinking:spent")
    chat = await client.chat.completions.create(model="agent:spent", messages=ASK)
    assert (chat.choices[0].finish_reason, chat.choices[0].message.content) == ("length", "")
    stream = await client.chat.completions.create(model="agent:spent", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length"
    whole = await client.responses.create(model="agent:spent", input="Tell me a tale")
    assert (whole.status, whole.output_text) == ("incomplete", "")
    further = await client.responses.create(model="agent:spent", input="Go on", previous_response_id=whole.id)
    assert further.status == "incomplete"


async def _run(platform: Platform, key: str, run: str) -> tuple[Any, ...]:
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.get(f"{platform.gateways[0]}/api/v1/runs/{run}") as answer,
    ):
        shown = await answer.json()
    return shown["status"], shown["incomplete"], shown["error"]
