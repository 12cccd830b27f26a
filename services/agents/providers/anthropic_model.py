"""Models of Anthropic's own API. Imported where the first is used: the SDK is 2 s of imports and 50 MB."""

import httpx2
from anthropic import AsyncAnthropic
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

from services.agents.providers.model import Target


def anthropic_model(target: Target, key: str, http: httpx2.AsyncClient) -> Model:
    client = AsyncAnthropic(
        api_key=key, base_url=target.provider.base_url, max_retries=0, http_client=http, timeout=http.timeout
    )
    return AnthropicModel(target.model, provider=AnthropicProvider(anthropic_client=client))
