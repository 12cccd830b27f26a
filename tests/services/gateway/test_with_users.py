"""The gateway before the real users service: log in, make a key, use it, revoke it."""

import asyncio
import time

import aiohttp

from core.ids import new_id
from tests.services.gateway.conftest import Running, bearing
from tests.services.process import OWNER_EMAIL


async def _call(
    http: aiohttp.ClientSession,
    platform: Running,
    method: str,
    path: str,
    credential: str,
    body: object = None,
) -> tuple[int, dict[str, str]]:
    headers = bearing(credential) if credential else {}
    async with http.request(method, platform.address + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None) if answer.status != 204 else {}


async def test_the_life_of_a_key(platform: Running, http: aiohttp.ClientSession) -> None:
    password = platform.component.env["HEADRACE_OWNER_PASSWORD"]
    login = {"email": OWNER_EMAIL, "password": password}
    status, token = await _call(http, platform, "POST", "/api/v1/auth/login", "", login)
    assert status == 200
    owner = token["access_token"]
    status, me = await _call(http, platform, "GET", "/api/v1/me", owner)
    assert (status, me["object"]) == (200, "user")
    new = {"slug": new_id("t").replace("_", "-"), "name": "Tenant"}
    status, organization = await _call(http, platform, "POST", "/api/v1/organizations", owner, new)
    assert status == 201
    keys = f"/api/v1/organizations/{organization['id']}/keys"
    status, key = await _call(http, platform, "POST", keys, owner, {"name": "k", "scopes": ["usage:read"]})
    assert status == 201
    assert (await _call(http, platform, "GET", "/api/v1/meters", key["key"]))[0] == 200
    status, _ = await _call(http, platform, "DELETE", f"{keys}/{key['id']}", owner)
    assert status == 204
    deadline = time.monotonic() + 2
    while (await _call(http, platform, "GET", "/api/v1/meters", key["key"]))[0] != 401:
        assert time.monotonic() < deadline, "the promise is two seconds"
        await asyncio.sleep(0.01)


async def test_forged_credentials_do_not_pass(platform: Running, http: aiohttp.ClientSession) -> None:
    for credential in ("sk_live_" + "a" * 12 + "_" + "b" * 49, "eyJhbGciOiJFZDI1NTE5In0.e30.AAAA"):
        assert (await _call(http, platform, "GET", "/api/v1/me", credential))[0] == 401
    wrong = {"email": OWNER_EMAIL, "password": "wrong"}
    status, problem = await _call(http, platform, "POST", "/api/v1/auth/login", "", wrong)
    assert (status, problem["code"]) == (401, "wrong_credentials")
