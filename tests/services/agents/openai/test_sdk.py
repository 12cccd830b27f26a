"""The official SDK, unchanged but for URL and key (acceptance checks 1 and 2)."""

from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from tests.services.agents.openai.conftest import Platform

ASK: Any = [{"role": "user", "content": "Say something"}]


async def make_agent(platform: Platform, key: str, slug: str, model: str) -> None:
    body = {"slug": slug, "name": slug, "model": model, "instructions": "Answer."}
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.post(platform.gateways[0] + "/api/v1/agents", json=body) as answer,
    ):
        assert answer.status == 201, await answer.text()


async def test_1_models_and_embeddings(platform: Platform, client: AsyncOpenAI, key: str) -> None:
    await make_agent(platform, key, "helper", "double/slow=5")
    names = [model.id async for model in await client.models.list()]
    assert {"local/local-extractive", "agent:helper"} <= set(names)
    assert (await client.models.retrieve("agent:helper")).owned_by == "headrace"
    made = await client.embeddings.create(model="double/e", input=["ab", "abc"], encoding_format="float")
    assert [one.embedding[0] for one in made.data] == [2.0, 3.0]


async def test_1_a_bare_model_answers_whole_and_in_a_stream(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="double/slow=5", messages=ASK)
    text = "word0 word1 word2 word3 word4"
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    for wanted in (True, False):
        stream = await client.chat.completions.create(
            model="double/slow=5",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": wanted},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
        usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert len(usages) == (1 if wanted else 0)


async def test_1_tools_round_trip(client: AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    stream = await client.chat.completions.create(
        model="double/calls=weather",
        messages=ASK,
        tools=tools,
        stream=True,
    )
    name, arguments = "", ""
    async for chunk in stream:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += (call.function and call.function.name) or ""
            arguments += (call.function and call.function.arguments) or ""
    assert (name, arguments) == ("weather", '{"n": 1}')
    said: Any = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = await client.chat.completions.create(model="double/calls=weather", messages=said, tools=tools)
    assert answer.choices[0].message.content == "The tool said: sunny"


async def test_1_errors_are_the_sdks_own(platform: Platform, client: AsyncOpenAI) -> None:
    async with platform.client("sk_test_wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.models.list()
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="nobody/m", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.get("/nothing", cast_to=object)
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="double/rate-limited", messages=ASK)
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        await client.chat.completions.create(model="agent:x", messages=[], extra_body={"stream": "yes"})
    assert wrong.value.param == "stream"
    many: Any = [{"role": "user", "content": "x"}] * 2_001
    with pytest.raises(openai.UnprocessableEntityError) as messages:
        await client.chat.completions.create(model="agent:x", messages=many)
    assert (messages.value.param, messages.value.code) == ("messages", "too_many_messages")
    with pytest.raises(openai.UnprocessableEntityError) as items:
        await client.responses.create(model="agent:x", input=many)
    assert (items.value.param, items.value.code) == ("input", "too_many_messages")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="agent:x", messages=many[1:])


async def test_1_over_the_limit(platform: Platform) -> None:
    key = await platform.organisation(per_minute=3)
    async with platform.client(key) as client:
        for _ in range(3):
            await client.models.list()
        with pytest.raises(openai.RateLimitError) as limited:
            await client.models.list()
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 61
    assert limited.value.response.headers["x-ratelimit-limit-requests"] == "3"
    assert limited.value.code == "rate_limit_exceeded"


async def test_streams_say_that_they_are_alive_while_a_model_is_silent(platform: Platform, key: str) -> None:
    await make_agent(platform, key, "silent", "double/hang")
    asked = {"model": "agent:silent", "stream": True}
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http:
        for path, words in (
            ("chat/completions", {"messages": ASK}),
            ("responses", {"input": "Say something"}),
        ):
            async with http.post(f"{platform.gateways[0]}/v1/{path}", json={**asked, **words}) as answer:
                assert answer.status == 200
                seen = [await answer.content.readuntil(b"\n\n")]
                while seen.count(b": alive\n\n") < 2:
                    seen.append(await answer.content.readuntil(b"\n\n"))
            assert all(one == b": alive\n\n" or b"data: " in one for one in seen)
            run = answer.headers["x-run-id"]
            async with http.post(f"{platform.gateways[0]}/api/v1/runs/{run}/cancel") as answer:
                assert answer.status == 200, await answer.text()


async def test_an_agent_answers_as_a_chat(platform: Platform, client: AsyncOpenAI, key: str) -> None:
    await make_agent(platform, key, "talker", "double/slow=8")
    text = " ".join(f"word{n}" for n in range(8))
    raw = await client.chat.completions.with_raw_response.create(model="agent:talker", messages=ASK)
    assert raw.headers["x-run-id"].startswith("run_")
    whole = raw.parse()
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    stream = await client.chat.completions.create(
        model="agent:talker",
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


async def test_2_a_response_goes_on_through_another_gateway(
    client: AsyncOpenAI, elsewhere: AsyncOpenAI
) -> None:
    stream = await client.responses.create(model="double/slow=40", input="Tell", background=True, stream=True)
    events, identity = [], ""
    async for event in stream:
        if event.type == "response.created":
            identity = event.response.id
        events.append(event)
        if event.sequence_number >= 10:
            break
    await stream.close()
    rest = await elsewhere.responses.retrieve(identity, stream=True, starting_after=10)
    events += [event async for event in rest]
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == " ".join(f"word{n}" for n in range(40))
    found = await elsewhere.responses.retrieve(identity)
    assert (found.output_text, found.status) == (text, "completed")


async def test_responses_whole_continued_cancelled_and_deleted(
    client: AsyncOpenAI, elsewhere: AsyncOpenAI
) -> None:
    first = await client.responses.create(model="double/slow=4", input="One", metadata={"a": "b"})
    assert (first.output_text, first.status, first.metadata) == (
        "word0 word1 word2 word3",
        "completed",
        {"a": "b"},
    )
    second = await elsewhere.responses.create(
        model="double/slow=4", input="Two", previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    async with client.responses.stream(model="double/slow=4", input="Three") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "word0 word1 word2 word3"
    long = await client.responses.create(model="double/slow=2000", input="Long", background=True)
    assert long.status in {"queued", "in_progress"}
    assert (await elsewhere.responses.cancel(long.id)).status == "cancelled"
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    unstored = await client.responses.create(model="double/slow=2", input="Hush", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(unstored.id)
