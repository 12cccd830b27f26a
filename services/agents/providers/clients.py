"""Models for pydantic-ai over our own HTTP clients."""

import asyncio

import httpx2
from openai import AsyncOpenAI
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

from services.agents.providers.model import Target

_STRICT = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
"""Otherwise a stream that ends too early, but in order, counts as a finished answer."""


async def chat_model(target: Target, http: httpx2.AsyncClient) -> Model:
    """The SDKs' own hidden retries are off: ours honour Retry-After, are visible and bounded."""
    provider, key = target.provider, target.provider.api_key.reveal() or "none"
    if provider.kind == "anthropic":
        # In a thread: streams and leases of this process do not wait for the import.
        return await asyncio.to_thread(_anthropic, target, key, http)
    openai = AsyncOpenAI(
        api_key=key, base_url=provider.base_url, max_retries=0, http_client=http, timeout=http.timeout
    )
    return OpenAIChatModel(target.model, provider=OpenAIProvider(openai_client=openai), profile=_STRICT)


def _anthropic(target: Target, key: str, http: httpx2.AsyncClient) -> Model:
    from services.agents.providers.anthropic_model import anthropic_model  # noqa: PLC0415

    return anthropic_model(target, key, http)
