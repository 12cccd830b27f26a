"""What the gateway counts for a call before its use is known, and what becomes of it."""

import asyncio
from typing import Any

import aiohttp
import pytest
from fastapi.routing import APIRoute

from core.cache import open_cache
from core.settings import CacheSettings
from services.agents.openai import routes
from services.common.token_window import PREFIX
from services.gateway.routes import ROUTES
from tests.services.agents.openai.conftest import Platform

LONG = "Tell me. " * 50
"""More tokens than a gateway leases at once, so that it keeps none for a next call."""
ASK = {"messages": [{"role": "user", "content": LONG}]}
REFUSED: list[tuple[str, dict[str, Any], int]] = [
    ("chat/completions", {**ASK, "model": "nobody/nothing"}, 404),
    ("chat/completions", {**ASK, "model": "agent:nobody"}, 404),
    ("chat/completions", {"model": "agent:nobody", "messages": [], "user": LONG}, 422),
    ("chat/completions", {**ASK, "model": "double/too-long"}, 400),
    ("chat/completions", {**ASK, "model": "double/too-long", "stream": True}, 400),
    ("chat/completions", {**ASK, "model": "double/broken"}, 502),
    ("embeddings", {"model": "nobody/nothing", "input": LONG}, 404),
    ("responses", {"model": "double/answer", "input": LONG, "previous_response_id": "resp_1"}, 404),
]


class Window:
    """Tokens that the organisation of a key has used in the last minute."""

    def __init__(self, settings: CacheSettings, key: str) -> None:
        self._settings, self._name = settings, f"{PREFIX}tenant:org_{key.split('_')[2]}"

    async def becomes(self, tokens: int) -> None:
        """Return when it holds so many. Raises: AssertionError where it holds others."""
        async with open_cache(self._settings) as cache:
            for _ in range(100):
                used = sum(int(count) for count in (await cache.hgetall(self._name)).values())
                if used == tokens:
                    return
                await asyncio.sleep(0.05)
        assert used == tokens


def test_the_gateway_counts_for_calls_that_settle_and_for_no_other() -> None:
    settling = {
        one.path.encode()
        for one in routes.router.routes
        if isinstance(one, APIRoute)
        and any(needed.call is routes._reservation for needed in one.dependant.dependencies)
    }
    assert settling == {path for row in ROUTES for path in row.tokens}


@pytest.mark.parametrize(("path", "body", "status"), REFUSED)
async def test_a_call_that_fails_uses_no_tokens(
    platform: Platform, valkey: CacheSettings, path: str, body: dict[str, Any], status: int
) -> None:
    key = await platform.organisation(per_minute=20)
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.post(f"{platform.gateways[0]}/v1/{path}", json=body) as answer,
    ):
        assert answer.status == status, await answer.text()
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 4000
    await Window(valkey, key).becomes(0)


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_a_call_that_is_answered_uses_what_is_said_of_it(
    platform: Platform, valkey: CacheSettings, path: str
) -> None:
    key = await platform.organisation(per_minute=20)
    body = {"model": "double/answer", **(ASK if path.startswith("chat") else {"input": LONG})}
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.post(f"{platform.gateways[0]}/v1/{path}", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        used = (await answer.json())["usage"]["total_tokens"]
    assert used > 0
    await Window(valkey, key).becomes(used)
