"""What of a conversation reaches the model, by the official SDK."""

import asyncio
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import sqlalchemy
from openai import AsyncOpenAI

from core.database import Database
from tests.services.agents.openai.conftest import Platform
from tests.services.agents.openai.test_sdk import make_agent


def told(answer: str | None) -> list[tuple[str, str]]:
    """Role and text of each message that the model `told` was asked with."""
    return [(role, text) for role, text in orjson.loads(answer or "")["messages"]]


async def test_all_messages_of_a_long_chat_reach_the_model(
    platform: Platform, client: AsyncOpenAI, key: str
) -> None:
    await make_agent(platform, key, "told", "double/told")
    said: Any = [{"role": "system", "content": "Speak of boats only."}]
    said += [{"role": ("user", "assistant")[n % 2], "content": f"word {n}"} for n in range(299)]
    answer = await client.chat.completions.create(model="agent:told", messages=said)
    given = [(one["role"], one["content"]) for one in said]
    assert told(answer.choices[0].message.content) == [given[0], ("system", "Answer."), *given[1:]]


async def test_a_continued_response_is_told_all_of_its_input_and_its_own_instructions(
    platform: Platform, client: AsyncOpenAI, elsewhere: AsyncOpenAI, key: str
) -> None:
    await make_agent(platform, key, "told", "double/told")
    first = await client.responses.create(model="agent:told", input="One", instructions="Be brief.")
    assert told(first.output_text) == [("system", "Answer.\n\nBe brief."), ("user", "One")]
    items: Any = [
        {"role": "developer", "content": "Now of boats."},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": "Aye"},
        {"role": "user", "content": "Three"},
    ]
    talk = [("user", "One"), ("assistant", first.output_text)]
    second = await elsewhere.responses.create(
        model="agent:told", input=items, previous_response_id=first.id, instructions="Be kind."
    )
    new = [("system", "Now of boats."), ("user", "Two"), ("assistant", "Aye"), ("user", "Three")]
    assert told(second.output_text) == [("system", "Answer.\n\nBe kind."), *talk, *new]
    third = await client.responses.create(model="agent:told", input="Four", previous_response_id=second.id)
    talk += [*new, ("assistant", second.output_text), ("user", "Four")]
    assert told(third.output_text) == [("system", "Answer."), *talk]
    run = second.id.replace("resp_", "run_")
    rows = await _messages(platform, key, run)
    assert [(one["role"], one["text"]) for one in rows] == [*talk, ("assistant", third.output_text)]
    await client.responses.delete(second.id)
    kept = [
        (one["role"], one["text"])
        for one in await _messages(platform, key, third.id.replace("resp_", "run_"))
    ]
    assert kept == [*talk[:2], talk[-1], ("assistant", third.output_text)]


async def test_a_chat_that_names_its_conversation_is_told_what_is_new_alone(
    platform: Platform, client: AsyncOpenAI, key: str
) -> None:
    await make_agent(platform, key, "told", "double/told")
    said: Any = [{"role": "user", "content": "One"}]
    raw = await client.chat.completions.with_raw_response.create(model="agent:told", messages=said)
    answer = raw.parse().choices[0].message.content
    said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Two"}]
    metadata = {"conversation_id": raw.headers["x-conversation-id"]}
    second = await client.chat.completions.create(model="agent:told", messages=said, metadata=metadata)
    given = [(one["role"], one["content"]) for one in said]
    assert told(second.choices[0].message.content) == [("system", "Answer."), *given]


async def _messages(platform: Platform, key: str, run: str) -> list[dict[str, Any]]:
    """Those of the conversation of a run, oldest first."""
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http:
        api = f"{platform.gateways[0]}/api/v1"
        async with http.get(f"{api}/runs/{run}") as answer:
            conversation = (await answer.json())["conversation_id"]
        async with http.get(f"{api}/conversations/{conversation}/messages?order=asc&limit=100") as answer:
            found: list[dict[str, Any]] = (await answer.json())["data"]
    return found


async def test_two_responses_behind_one_do_not_hear_of_each_other(
    platform: Platform, client: AsyncOpenAI, elsewhere: AsyncOpenAI, key: str
) -> None:
    await make_agent(platform, key, "told", "double/told")

    async def go_on(api: AsyncOpenAI, text: str, behind: str) -> Any:
        return await api.responses.create(model="agent:told", input=text, previous_response_id=behind)

    first = await client.responses.create(model="agent:told", input="One")
    before = [("system", "Answer."), ("user", "One"), ("assistant", first.output_text)]
    left, right = await asyncio.gather(go_on(client, "Left", first.id), go_on(elsewhere, "Right", first.id))
    for branch, text in ((left, "Left"), (right, "Right")):
        assert told(branch.output_text) == [*before, ("user", text)]
        after = [("user", text), ("assistant", branch.output_text), ("user", "On")]
        assert told((await go_on(client, "On", branch.id)).output_text) == [*before, *after]
    # Once more behind the first, deep in a conversation that went on.
    again = await go_on(elsewhere, "Again", first.id)
    assert told(again.output_text) == [*before, ("user", "Again")]


async def test_what_cannot_be_read_is_not_copied(platform: Platform, client: AsyncOpenAI, key: str) -> None:
    """What a newer version stored, or a hand changed: the caller is told, and no instance's error."""
    first = await client.responses.create(model="double/slow=2", input="One")
    await client.responses.create(model="double/slow=2", input="Two", previous_response_id=first.id)
    database = Database(platform.database, role="system")
    async with database.writer() as connection:
        await connection.execute(
            sqlalchemy.text(
                "update message set citations = '[7]' where run_id = :run and role = 'assistant'"
            ),
            {"run": first.id.replace("resp_", "run_")},
        )
    await database.close()
    with pytest.raises(openai.ConflictError) as unreadable:
        await client.responses.create(model="double/slow=2", input="Three", previous_response_id=first.id)
    assert unreadable.value.code == "previous_response_unreadable"


async def test_what_has_not_ended_is_not_copied(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="double/slow=2000", input="One", background=True)
    second = await client.responses.create(
        model="double/slow=2", input="Two", previous_response_id=first.id, background=True
    )
    with pytest.raises(openai.ConflictError) as open_one:
        await client.responses.create(model="double/slow=2", input="Three", previous_response_id=first.id)
    assert open_one.value.code == "previous_response_open"
    for one in (second, first):
        await client.responses.cancel(one.id)
