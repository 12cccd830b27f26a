"""What of a conversation reaches the model, by the official SDK."""

from typing import Any

import orjson
from openai import AsyncOpenAI

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
