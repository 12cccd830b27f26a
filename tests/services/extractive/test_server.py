"""The server as a process, through the official SDK."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest

from core.embedding.e5 import E5Model
from services.extractive.answer import DESCRIPTION, FINGERPRINT, MODEL
from services.extractive.language import NOTHING_FOUND
from tests.servers import free_port, running
from tests.services.process import service

QUESTION = "How do runs resume?"
ASK: Any = [{"role": "user", "content": QUESTION}]
E5 = "multilingual-e5-small"
TOOLS = [
    {
        "type": "function",
        "function": {"name": "knowledge_search", "description": "d", "parameters": {"type": "object"}},
    }
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extractive")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    variables = {"HEADRACE_EXTRACTIVE_WORD_MS": "1", "HEADRACE_STATE_DIR": str(folder)}
    with running(service("extractive", free_port(), variables), folder / "log") as one:
        yield one.address
    assert '"level":"error"' not in Path(folder / "log").read_text()


@pytest.fixture
async def client(address: str) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as opened:
        yield opened


async def test_models_say_what_they_are(client: Any) -> None:
    models = [(model.id, model.owned_by) async for model in client.models.list()]
    assert models == [(MODEL, "headrace"), ("multilingual-e5-small", "headrace")]
    assert (await client.models.retrieve(MODEL)).model_dump()["description"] == DESCRIPTION
    for gone in (client.models.retrieve("gpt-5"), client.chat.completions.create(model="x", messages=ASK)):
        with pytest.raises(openai.NotFoundError):
            await gone


async def test_vectors_are_those_that_documents_have(client: Any, folder: Path) -> None:
    """The SDK asks for base64 where nothing is said."""
    texts = ["When is the gate closed?", "冬天到来之前关闭闸门。"]
    model = E5Model(folder / "embedding")
    given = await client.embeddings.create(model=E5, input=texts)
    assert (given.model, [one.index for one in given.data]) == (E5, [0, 1])
    assert np.array_equal([one.embedding for one in given.data], [model.query(text) for text in texts])
    assert given.usage.prompt_tokens == given.usage.total_tokens == sum(model.tokens(texts))
    passage = await client.embeddings.create(
        model=E5, input=texts[1], encoding_format="float", extra_body={"input_type": "passage"}
    )
    assert np.array_equal(passage.data[0].embedding, model.passages(texts[1:])[0])
    many = [f"text {number}" for number in range(20)]
    assert [one.index for one in (await client.embeddings.create(model=E5, input=many)).data] == [*range(20)]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": ["short", "word " * 600]}, "input.1"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [1, 2]}, "input.0"),
        ({"input": "a", "dimensions": 256}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_what_makes_no_vector_is_refused_by_its_place(
    client: Any, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await client.post("/embeddings", body={"model": E5, **asked}, cast_to=object)
    assert refused.value.param == param


async def test_a_model_for_another_purpose_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model=MODEL, input="a")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model=E5, messages=ASK)


async def test_a_tool_round_trip_whole_and_streamed_say_the_same(client: Any) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    first = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"query": QUESTION}
    result = json.dumps({"passages": [{"marker": 4, "text": "Runs resume from their checkpoint."}]})
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    whole = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert whole.choices[0].message.content == "Runs resume from their checkpoint. [4]"
    assert whole.system_fingerprint == FINGERPRINT
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=messages, tools=TOOLS, stream=True, stream_options={"include_usage": True}
        )
    ]
    said = [
        chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content
    ]
    assert "".join(said) == whole.choices[0].message.content
    assert len(said) == 6
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert {chunk.id for chunk in chunks} == {whole.id}


async def test_usage_comes_in_a_stream_only_where_it_is_asked_for(address: str) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "user": "unknown fields pass",
    }
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{address}/v1/chat/completions", json=body) as answer,
    ):
        text = await answer.text()
        assert answer.content_type == "text/event-stream"
    assert text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in text


async def test_responses_stream_is_what_the_response_says(client: Any) -> None:
    whole = await client.responses.create(model=MODEL, input="Wo ist der Schlüssel?")
    assert whole.output_text == NOTHING_FOUND["de"]
    numbers, deltas, final = [], [], None
    async for event in await client.responses.create(model=MODEL, input="Wo ist der Schlüssel?", stream=True):
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
        if event.type == "response.completed":
            final = event.response
    assert numbers == list(range(len(numbers)))
    assert "".join(deltas) == whole.output_text
    assert final is not None
    assert (final.id, final.output, final.usage) == (whole.id, whole.output, whole.usage)


async def test_responses_call_tools_and_take_their_results(client: Any) -> None:
    tools = [
        {"type": "function", "name": "knowledge_search", "parameters": {"type": "object"}, "strict": False}
    ]
    first = await client.responses.create(model=MODEL, input=QUESTION, tools=tools)
    (call,) = first.output
    assert call.type == "function_call"
    output = json.dumps({"passages": [{"marker": 1, "text": "Runs resume at once."}]})
    second = await client.responses.create(
        model=MODEL,
        tools=tools,
        input=[
            {"role": "user", "content": QUESTION},
            call.model_dump(),
            {"type": "function_call_output", "call_id": call.call_id, "output": output},
        ],
    )
    assert second.output_text == "Runs resume at once. [1]"


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_wrong_requests_get_openai_errors(address: str, path: str) -> None:
    async with aiohttp.ClientSession() as http:
        for body, status in (
            ({"model": "gpt-9", "messages": [{"role": "user", "content": "x"}], "input": "x"}, 404),
            ({"model": MODEL, "messages": [], "input": ""}, 422),
            ({"model": MODEL}, 422),
            ([], 422),
        ):
            async with http.post(f"{address}/v1/{path}", json=body) as answer:
                assert answer.status == status
                error = (await answer.json())["error"]
                assert error["message"]
                assert error["code"]
