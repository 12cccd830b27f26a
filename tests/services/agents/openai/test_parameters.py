"""What the official SDK asks for beside its words: heeded, or refused by name."""

from typing import Any

import openai
import orjson
import pytest
from openai import AsyncOpenAI

from tests.services.agents.openai.conftest import Platform
from tests.services.agents.openai.test_sdk import ASK, make_agent


@pytest.mark.parametrize("model", ["agent:told", "double/told"])
async def test_limits_and_temperature_of_a_response_reach_the_model(
    platform: Platform, client: AsyncOpenAI, key: str, model: str
) -> None:
    await make_agent(platform, key, "told", "double/told")
    answer = await client.responses.create(model=model, input="One", max_output_tokens=500, temperature=0.5)
    assert (_asked(answer.output_text), answer.max_output_tokens) == ((500, 0.5), 500)
    for name in ("max_completion_tokens", "max_tokens") if model == "agent:told" else ():
        limited: Any = {name: 400}
        chat = await client.chat.completions.create(model=model, messages=ASK, temperature=0, **limited)
        assert _asked(chat.choices[0].message.content) == (400, 0)
    plain = await client.responses.create(
        model=model, input="One", text={"format": {"type": "text"}}, top_p=0.5
    )
    assert (_asked(plain.output_text), plain.max_output_tokens) == ((None, None), None)


async def test_what_would_change_an_answers_meaning_is_refused(
    platform: Platform, client: AsyncOpenAI, key: str
) -> None:
    await make_agent(platform, key, "told", "double/told")
    form: Any = {"type": "json_object"}
    for more in (
        {"response_format": form},
        {"n": 2},
        {"stop": ["."]},
        {"logprobs": True},
        {"logit_bias": {"1": 5}},
    ):
        wanted: Any = more
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await client.chat.completions.create(model="agent:told", messages=ASK, **wanted)
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", *more)
    for more in ({"text": {"format": form}}, {"conversation": "conv_1"}, {"top_logprobs": 2}):
        wanted = more
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await client.responses.create(model="double/told", input="One", **wanted)
        assert refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        await client.responses.create(model="agent:told", input="One", max_output_tokens=0)
    assert wrong.value.param == "max_output_tokens"


def _asked(answer: str | None) -> tuple[Any, Any]:
    """`max_tokens` and `temperature` of the request to the model `told`."""
    seen = orjson.loads(answer or "")
    return seen["max_tokens"], seen["temperature"]
