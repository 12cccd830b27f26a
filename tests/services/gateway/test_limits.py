"""N requests in any minute, counted once for all gateways."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from core.cache import open_cache
from core.settings import CacheSettings
from services.common import browser_address
from services.common.limits import Limiter
from services.common.token_window import PREFIX, Counted, TokenWindow, reserved
from services.gateway.call import GUESSES
from tests.servers import free_port, running
from tests.services.gateway.conftest import Running, bearing, connection, gateway_component, new_key
from tests.services.gateway.upstream import Upstream

ME = "/api/v1/me"


async def _status(http: aiohttp.ClientSession, address: str, key: str, path: str = ME) -> int:
    async with http.get(address + path, headers=bearing(key)) as answer:
        await answer.read()
        return answer.status


async def test_exactly_the_limit_passes(gateway: Running, http: aiohttp.ClientSession) -> None:
    key = new_key(per_minute=130)
    statuses = await asyncio.gather(*(_status(http, gateway.address, key) for _ in range(200)))
    assert Counter(statuses) == {200: 130, 429: 70}
    async with http.get(gateway.address + ME, headers=bearing(key)) as answer:
        assert answer.status == 429
        assert (await answer.json(content_type="application/problem+json"))["code"] == "rate_limited"
        assert 1 <= int(answer.headers["retry-after"]) <= 61
        assert answer.headers["x-ratelimit-limit-requests"] == "130"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["ratelimit-policy"] == '"requests";q=130;w=60'
        assert answer.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert await _status(http, gateway.address, new_key()) == 200, "other tenants are not touched"


async def test_headers_count_down(gateway: Running, http: aiohttp.ClientSession) -> None:
    key, left = new_key(per_minute=600), []
    for _ in range(20):
        async with http.get(gateway.address + ME, headers=bearing(key)) as answer:
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
    assert left == list(range(599, 579, -1))


async def test_gateways_share_the_limit(
    gateway: Running, behind: dict[str, str], http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Together they stay at or below it; what one of them still holds leased is at most a block."""
    key, limit = new_key(per_minute=120), 120
    with running(gateway_component(tmp_path, behind), tmp_path / "log") as second:
        addresses = [gateway.address, second.address] * 100
        statuses = Counter(await asyncio.gather(*(_status(http, address, key) for address in addresses)))
    assert limit - limit // 60 <= statuses[200] <= limit
    assert statuses[200] + statuses[429] == 200


async def test_logins_are_limited_by_address(gateway: Running) -> None:
    async def login(http: aiohttp.ClientSession) -> int:
        async with http.post(f"{gateway.address}/api/v1/auth/login", json={}) as answer:
            return answer.status

    statuses = {}
    for address in ("127.0.0.71", "127.0.0.72"):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as http:
            statuses[address] = Counter(await asyncio.gather(*(login(http) for _ in range(65))))
    assert list(statuses.values()) == [Counter({200: 60, 429: 5})] * 2


async def test_bad_keys_are_limited_by_address(gateway: Running, http: aiohttp.ClientSession) -> None:
    """Keys that were good here go on; keys that are new wait until the address may guess again."""
    known, new = new_key(), new_key()
    local = aiohttp.TCPConnector(local_addr=("127.0.0.73", 0))
    async with aiohttp.ClientSession(connector=local) as guesser:
        assert await _status(guesser, gateway.address, known) == 200
        statuses = [await _status(guesser, gateway.address, f"sk_bad_{n}") for n in range(GUESSES + 5)]
        assert statuses == [401] * GUESSES + [429] * 5
        async with guesser.get(gateway.address + ME, headers=bearing(new)) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (429, "rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 61
        assert await _status(guesser, gateway.address, known) == 200
    assert await _status(http, gateway.address, new) == 200
    async with http.get(gateway.users + "/control/asked") as answer:
        asked = Counter(await answer.json())
    assert [asked[f"sk_bad_{n}"] for n in range(GUESSES + 5)] == [1] * (GUESSES + 1) + [0] * 4
    assert asked[new] == 1


async def test_browsers_behind_the_pages_are_limited_each_by_its_own_address(
    gateway: Running, http: aiohttp.ClientSession
) -> None:
    key = bytes.fromhex(gateway.component.env["HEADRACE_PAGES_KEY"])

    async def login(header: str) -> int:
        headers = {browser_address.HEADER: header}
        async with http.post(f"{gateway.address}/api/v1/auth/login", json={}, headers=headers) as answer:
            return answer.status

    for browser in ("198.51.100.71", "198.51.100.72"):
        header = browser_address.sign(browser, key)
        assert Counter([await login(header) for _ in range(65)]) == Counter({200: 60, 429: 5})
    # Whoever does not hold the key cannot have a fresh address for each attempt.
    forged = [browser_address.sign(f"198.51.100.{number}", b"guessed") for number in range(65)]
    statuses = Counter([await login(header) for header in forged])
    assert statuses[429] >= 5


async def test_services_hear_of_the_browser_that_the_pages_ask_for(
    gateway: Running, upstream: Upstream, caller: dict[str, str], http: aiohttp.ClientSession
) -> None:
    key = bytes.fromhex(gateway.component.env["HEADRACE_PAGES_KEY"])
    for header in (
        browser_address.sign("198.51.100.7", key),
        browser_address.sign("198.51.100.7", b"guessed"),
    ):
        headers = {**caller, browser_address.HEADER: header}
        async with http.get(f"{gateway.address}/api/v1/usage", headers=headers) as answer:
            assert answer.status == 200
    heard = [one.values("x-forwarded-for") for one in upstream.requests]
    assert heard == [["198.51.100.7"], ["127.0.0.1"]]
    assert not any(one.values(browser_address.HEADER) for one in upstream.requests)


async def test_without_redis_each_gateway_limits_by_itself(
    behind: dict[str, str], http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    away = {**behind, "HEADRACE_CACHE_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with running(gateway_component(tmp_path, away), tmp_path / "log") as component:
        key = new_key(per_minute=50)
        statuses = await asyncio.gather(*(_status(http, component.address, key) for _ in range(80)))
        async with http.get(component.address + "/metrics") as metrics:
            text = await metrics.text()
    assert Counter(statuses) == {200: 50, 429: 30}
    degraded = next(
        line for line in text.splitlines() if line.startswith("gateway_rate_limit_degraded_total ")
    )
    assert float(degraded.split()[1]) >= 80


async def test_a_busy_tenant_costs_a_round_trip_per_block(valkey: CacheSettings) -> None:
    async with open_cache(valkey) as cache:
        limiter = Limiter(cache)
        name = new_key()
        before = int((await cache.info("commandstats"))["cmdstat_evalsha"]["calls"])
        decisions = [await limiter.take(name, 60_000) for _ in range(10_000)]
        after = int((await cache.info("commandstats"))["cmdstat_evalsha"]["calls"])
    assert all(decision.allowed for decision in decisions)
    assert after - before < 40


async def test_a_raised_limit_counts_at_once(valkey: CacheSettings) -> None:
    async with open_cache(valkey) as cache:
        limiter, name = Limiter(cache), new_key()
        allowed = [(await limiter.take(name, 10)).allowed for _ in range(12)]
        assert allowed == [True] * 10 + [False] * 2
        assert (await Limiter(cache).take(name, 20)).allowed
        assert (await limiter.take(name, 20)).allowed


async def test_the_window_is_the_last_minute(valkey: CacheSettings) -> None:
    """What was used earlier, as another gateway would have written it."""
    async with open_cache(valkey) as cache:
        name = new_key()
        now, _ = await cache.time()
        key = f"headrace:requests:{name}"
        await cache.hset(
            key, mapping={str(now - age): count for age, count in {63: 500, 50: 40, 30: 50, 1: 5}.items()}
        )
        limiter = Limiter(cache)
        decisions = [await limiter.take(name, 100) for _ in range(6)]
        assert [decision.allowed for decision in decisions] == [True] * 5 + [False]
        assert 1 <= decisions[-1].retry_after <= 11, "then the forty are a minute old"
        assert 55 <= decisions[-1].reset <= 62
        assert str(now - 63).encode() not in await cache.hgetall(key)
        assert 0 < await cache.ttl(key) <= 61


async def test_tokens_are_shared_and_put_right(valkey: CacheSettings) -> None:
    """Two gateways and whoever settles count in one window; a call is let in while one token is left."""
    async with open_cache(valkey) as cache:
        gateways = [Limiter(cache, prefix=PREFIX, max_block=50_000) for _ in range(2)]
        name, window = new_key(), TokenWindow(cache)
        assert (await gateways[0].take(name, 6000, 100)).allowed
        await window.settle(name, 5700)
        left = [await gateways[turn % 2].take(name, 6000, 60) for turn in range(5)]
        assert [one.allowed for one in left] == [True, True, True, True, False], "the fourth is let in by 20"
        assert left[-1].retry_after >= 1
        await window.settle(name, -1000)
        assert (await Limiter(cache, prefix=PREFIX).take(name, 6000, 60)).allowed, "what was not used is back"


async def test_what_was_counted_is_taken_back_where_it_stands(valkey: CacheSettings) -> None:
    """In another second it would be missing once its own has left the minute."""
    async with open_cache(valkey) as cache:
        window, name = TokenWindow(cache), new_key()
        now, _ = await cache.time()
        for age in (30, 45):
            await cache.hset(PREFIX + name, str(now - age), "1000")
        await window.settle(name, 7, Counted(600, time.monotonic() - 30))
        await window.settle(name, 0, reserved(Counted(1000, time.monotonic() - 45).header().decode()))
        await window.settle(name, 0, Counted(500, time.monotonic() - 600))  # it has left long ago
        held = {
            now - int(second): int(tokens) for second, tokens in (await cache.hgetall(PREFIX + name)).items()
        }
    recent, earlier, first = (
        sum(tokens for age, tokens in held.items() if low <= age < high)
        for low, high in ((-60, 25), (25, 40), (40, 1000))
    )
    assert (recent, earlier, first) == (7, 400, 0)


def test_a_reservation_that_is_none_counts_nothing() -> None:
    assert [reserved(one).tokens for one in (None, "", "5", "5;x", "-5;1", "5;1;1", "5;-1")] == [0] * 7
    assert reserved("5;1").tokens == 5


async def test_tokens_cost_a_round_trip_per_block(valkey: CacheSettings) -> None:
    async with open_cache(valkey) as cache:
        limiter, name = Limiter(cache, prefix=PREFIX, max_block=50_000), new_key()
        before = int((await cache.info("commandstats"))["cmdstat_evalsha"]["calls"])
        decisions = [await limiter.take(name, 60_000_000, 100) for _ in range(10_000)]
        after = int((await cache.info("commandstats"))["cmdstat_evalsha"]["calls"])
    assert all(decision.allowed for decision in decisions)
    assert after - before < 60


async def test_calls_of_models_are_limited_by_tokens(
    gateway: Running, http: aiohttp.ClientSession, valkey: CacheSettings
) -> None:
    """200 tokens for each request a minute: the plan `test` is not listed. Nothing stands where agents is, so
    what a call was expected to use is taken back, and never more than was counted of it."""
    key = new_key(per_minute=10)
    tenant = f"tenant:org_{key.split('_')[2]}"

    async def chat() -> tuple[int, str, str]:
        url = gateway.address + "/v1/chat/completions"
        async with http.post(url, data=b"x" * 6000, headers=bearing(key)) as answer:
            code = (await answer.json())["error"]["code"]
            return answer.status, code, answer.headers["x-ratelimit-remaining-tokens"]

    assert [await chat() for _ in range(3)] == [(503, "unavailable", "499")] * 3
    async with open_cache(valkey) as cache:
        window = TokenWindow(cache)
        await window.settle(tenant, 1990)
        assert await chat() == (503, "unavailable", "0"), "ten were left, and are again"
        await window.settle(tenant, 10)
    assert await chat() == (429, "rate_limit_exceeded", "0")
    for path in ("agents/helper/runs", "conversations/cnv_1/messages"):
        async with http.post(f"{gateway.address}/api/v1/{path}", json={}, headers=bearing(key)) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (429, "tokens_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 61
    # What starts nothing goes on, and what costs tokens can still be ended.
    async with http.post(f"{gateway.address}/api/v1/conversations", json={}, headers=bearing(key)) as answer:
        assert (await answer.json(content_type=None))["code"] == "unavailable"
    async with http.post(f"{gateway.address}/v1/responses/resp_1/cancel", headers=bearing(key)) as answer:
        assert (await answer.json())["error"]["code"] == "unavailable"


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_call_whose_body_never_comes_uses_no_tokens(
    impatient: Running, valkey: CacheSettings, leaves: bool
) -> None:
    key = new_key(per_minute=10)
    name = f"{PREFIX}tenant:org_{key.split('_')[2]}"
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 4000\r\n\r\n"

    async def becomes(tokens: int) -> None:
        async with open_cache(valkey) as cache, asyncio.timeout(10):
            while sum(map(int, (await cache.hgetall(name)).values())) != tokens:  # noqa: ASYNC110 - it asks the cache
                await asyncio.sleep(0.02)

    async with connection(impatient.port) as (reader, writer):
        writer.write(head.encode())
        await becomes(1001)
        if not leaves:
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408 ")
    await becomes(0)
