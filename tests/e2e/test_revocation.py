"""A key that ends is refused by the gateway soon, not when its cache entry ends."""

import asyncio

import httpx2
import pytest

from core.database import Database
from services.common.authenticator import CACHE_SECONDS
from tests.e2e.tenants import ORGANIZATIONS, Platform, settle
from tests.servers import wait_for


@pytest.mark.parametrize("ending", ["revoke", "rotate"])
async def test_gateway_refuses_a_key_that_ended(
    running_platform: Platform, system_database: Database, ending: str
) -> None:
    side = await settle(running_platform, system_database, ending)
    keys = f"{ORGANIZATIONS}/{side.id}/keys"
    me = f"{running_platform.gateway}/api/v1/me"
    person = {"authorization": f"Bearer {side.person_token}"}
    with httpx2.Client(base_url=running_platform.gateway, headers=person) as admin:
        # Of scopes that a person of the organisation may give.
        made = admin.post(keys, json={"name": "ends", "scopes": ["org:read"]}).raise_for_status().json()
        with httpx2.Client(headers={"authorization": f"Bearer {made['key']}"}) as ours:
            for _ in range(5):
                assert ours.get(me).status_code == 200
            if ending == "revoke":
                ended = admin.delete(f"{keys}/{made['id']}")
            else:
                ended = admin.post(f"{keys}/{made['id']}/rotate", json={})
            assert ended.is_success, ended.text
            await asyncio.to_thread(
                wait_for, lambda: ours.get(me).status_code == 401, seconds=CACHE_SECONDS / 3
            )
    if ending == "rotate":
        fresh = {"authorization": f"Bearer {ended.json()['key']}"}
        assert httpx2.get(me, headers=fresh).status_code == 200
