"""Who may pass, how long a key is remembered, and how fast a revoked one dies."""

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from core.cache import open_cache
from core.settings import CacheSettings
from deploy.servers.valkey import valkey as valkey_server
from services.common.principal import HEADER, sign, system
from services.common.revocations import Revoked, publish
from tests.servers import free_port, kill, running, start
from tests.services.gateway.conftest import Running, bearing, gateway_component, new_key

ME = "/api/v1/me"


async def _status(http: aiohttp.ClientSession, address: str, headers: dict[str, str]) -> int:
    async with http.get(address + ME, headers=headers) as answer:
        await answer.read()
        return answer.status


async def _asked(http: aiohttp.ClientSession, gateway: Running, key: str) -> int:
    async with http.get(gateway.users + "/control/asked") as answer:
        return list(await answer.json()).count(key)


async def _revoke_silently(http: aiohttp.ClientSession, users: str, key: str) -> None:
    async with http.post(users + "/control/revoke", json={"key": key}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Basic YTpi"},
        {"authorization": "Bearer sk_live_unknown"},
        {"authorization": "Bearer sk_" + "x" * 5000},
        {"authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."},
        {"authorization": "Bearer a.b.c"},
        {"authorization": "Bearer é"},
        {HEADER: sign(system("attacker"), b"guess")},
    ],
)
async def test_nobody_passes_without_a_good_credential(
    gateway: Running, http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with http.get(gateway.address + ME, headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="headrace"'
        assert (await answer.json(content_type="application/problem+json"))["code"] == "unauthenticated"


async def test_a_stolen_principal_header_does_not_pass(gateway: Running, http: aiohttp.ClientSession) -> None:
    """Even a genuine one: the gateway takes none from outside."""
    genuine = {HEADER: sign(system("users"), gateway.internal_key)}
    assert await _status(http, gateway.address, genuine) == 401
    async with http.get(gateway.address + ME, headers=bearing(new_key(tenant="mine")) | genuine) as answer:
        assert (await answer.json())["tenant"] == "org_mine"
    async with http.post(gateway.address + "/api/v1/auth/login", headers=genuine) as answer:
        assert HEADER not in (await answer.json())["headers"]


async def test_users_is_asked_once_for_a_key(gateway: Running, http: aiohttp.ClientSession) -> None:
    key = new_key()
    calls = [_status(http, gateway.address, bearing(key)) for _ in range(20)]
    assert await asyncio.gather(*calls) == [200] * 20
    assert await _status(http, gateway.address, bearing(key)) == 200
    assert await _asked(http, gateway, key) == 1


async def test_a_revocation_reaches_the_gateway(
    gateway: Running, http: aiohttp.ClientSession, valkey: CacheSettings
) -> None:
    key, other = new_key(), new_key()
    assert await _status(http, gateway.address, bearing(key)) == 200
    assert await _status(http, gateway.address, bearing(other)) == 200
    await _revoke_silently(http, gateway.users, key)
    assert await _status(http, gateway.address, bearing(key)) == 200, "it comes from the cache"
    async with open_cache(valkey) as cache:
        await publish(cache, Revoked("key.revoked", key_id="key_" + key.rpartition("_")[2]))
    deadline = time.monotonic() + 2
    while await _status(http, gateway.address, bearing(key)) != 401:
        assert time.monotonic() < deadline, "the promise is two seconds"
    assert await _status(http, gateway.address, bearing(other)) == 200
    assert await _asked(http, gateway, other) == 1


async def test_without_redis_a_revoked_key_dies_by_itself(
    behind: dict[str, str], http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Redis is killed, so nobody can tell the gateway; it stops believing what it remembers."""
    port = free_port()
    own = valkey_server(tmp_path / "valkey", port, behind["HEADRACE_CACHE_PASSWORD"])
    process = start(own, tmp_path / "valkey.log")
    try:
        variables = {**behind, "HEADRACE_CACHE_URL": f"redis://127.0.0.1:{port}/0"}
        with running(gateway_component(tmp_path, variables), tmp_path / "log") as component:
            key = new_key()
            assert await _status(http, component.address, bearing(key)) == 200
            kill(process)
            await _revoke_silently(http, behind["HEADRACE_USERS_URL"], key)
            deadline = time.monotonic() + 2
            while await _status(http, component.address, bearing(key)) != 401:
                assert time.monotonic() < deadline, "the promise is two seconds"
                await asyncio.sleep(0.05)
            assert await _status(http, component.address, bearing(new_key())) == 200
    finally:
        kill(process)


async def test_users_being_away_is_503_for_new_keys_only(
    behind: dict[str, str], http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    nowhere = {**behind, "HEADRACE_USERS_URL": f"http://127.0.0.1:{free_port()}"}
    with running(gateway_component(tmp_path, nowhere), tmp_path / "log") as component:
        async with http.get(component.address + ME, headers=bearing(new_key())) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
