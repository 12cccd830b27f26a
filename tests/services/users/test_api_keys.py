"""API keys on the real service: shown once, never wider than their maker, dead when they end."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from core.cache import open_cache
from core.clock import now, rfc3339
from core.database import Database, tenant
from core.ids import new_id
from core.settings import CacheSettings
from services.common.revocations import CHANNEL
from tests.services.users.conftest import Caller, Tenant, actions, audited, new_tenant, until

READ = {"name": "reader", "scopes": ["usage:read"]}


async def end_now(database: Database, organization: str, key_id: str) -> None:
    """Let the key's time have come."""
    with tenant(organization):
        async with database.writer() as connection:
            done = await connection.execute(
                text("update api_key set expires_at = now() where id = :id"), {"id": key_id}
            )
            assert done.rowcount == 1


async def test_key_is_shown_once_and_stored_nowhere(
    owner: Caller, acme: Tenant, system_database: Database
) -> None:
    made = await owner.post(acme.keys, READ, idempotency_key=new_id("try"))
    assert made.headers["cache-control"] == "no-store"
    secret = made.json["key"].split("_")[3]
    listed = await owner.get(acme.keys)
    shown = {name: value for name, value in made.json.items() if name != "key"}
    assert listed.json["data"][0] == shown
    assert shown["prefix"] == made.json["key"].rpartition("_")[0]
    assert secret not in json.dumps(listed.json)
    async with system_database.reader() as connection:
        for table in ("api_key", "outbox"):
            rows = await connection.execute(text(f"select {table}::text from {table}"))
            assert all(secret not in row and secret.encode().hex() not in row for row in rows.scalars())


async def test_answer_kept_for_repetitions_has_no_secret(
    owner: Caller, acme: Tenant, app_database: Database
) -> None:
    made = await owner.post(acme.keys, READ, idempotency_key=new_id("try"))
    with tenant(acme.id):
        async with app_database.reader() as connection:
            [kept] = (await connection.execute(text("select body from idempotency_key"))).scalars()
    assert made.json["id"].encode() in bytes(kept)
    assert made.json["key"].split("_")[3].encode() not in bytes(kept)


async def test_a_repetition_makes_no_second_key_and_says_which_was_made(owner: Caller, acme: Tenant) -> None:
    key = new_id("try")
    first = await owner.post(acme.keys, READ, idempotency_key=key)
    again = await owner.post(acme.keys, READ, idempotency_key=key)
    assert (again.status, again.json["code"]) == (409, "key_shown_already")
    assert again.headers["content-type"] == "application/problem+json"
    assert again.headers["idempotent-replayed"] == "true"
    assert first.json["id"] in again.json["detail"]
    assert len((await owner.get(acme.keys)).json["data"]) == 2  # acme's own and this one


async def test_key_works_as_its_organisation(acme: Tenant) -> None:
    me = (await acme.caller.get("/api/v1/me")).json
    assert (me["id"], me["object"], me["organization"]) == (acme.key_id, "api_key", acme.id)
    assert (me["email"], me["platform_owner"]) == (None, False)


async def test_introspection_tells_the_gateway_all_it_needs(acme: Tenant, anybody: Caller) -> None:
    found = await anybody.introspect(acme.key)
    assert found["active"] is True
    assert "expires_in" not in found
    principal = found["principal"]
    assert sorted(principal.pop("scopes")) == ["keys:read", "keys:write", "org:read", "usage:read"]
    assert principal == {
        "tenant_id": acme.id, "subject": acme.key_id, "key_id": acme.key_id, "kind": "api_key",
        "plan": "free", "requests_per_minute": 600,
    }  # fmt: skip


async def test_revoked_key_is_dead_and_gateways_hear_of_it(
    owner: Caller, acme: Tenant, valkey: CacheSettings, system_database: Database
) -> None:
    cache: Redis = open_cache(valkey)
    async with cache.pubsub() as channel:
        await channel.subscribe(CHANNEL)
        while (await channel.get_message(timeout=5) or {})["type"] != "subscribe":
            pass
        assert (await owner.delete(f"{acme.keys}/{acme.key_id}")).status == 204
        message = await channel.get_message(timeout=5)
    await cache.aclose()
    assert message is not None
    assert json.loads(message["data"]) == {
        "type": "key.revoked", "key_id": acme.key_id, "tenant_id": acme.id,
    }  # fmt: skip
    # The event comes behind the commit: whoever asks now gets the new truth.
    assert await owner.introspect(acme.key) == {"active": False}
    assert (await owner.delete(f"{acme.keys}/{acme.key_id}")).status == 204
    assert await actions(system_database, acme.key_id) == ["api_key.create", "api_key.revoke"]
    [shown] = (await owner.get(acme.keys)).json["data"]
    assert shown["status"] == "revoked"
    assert shown["revoked_at"] is not None


async def test_a_revoked_key_dies_here_too_within_two_seconds(acme: Tenant, owner: Caller) -> None:
    assert (await acme.caller.get("/api/v1/me")).status == 200
    assert (await owner.delete(f"{acme.keys}/{acme.key_id}")).status == 204
    async with asyncio.timeout(2):
        while (await acme.caller.get("/api/v1/me")).status != 401:  # noqa: ASYNC110 - another process's answer
            await asyncio.sleep(0.02)


async def test_rotation_without_overlap_ends_the_old_key_at_once(
    acme: Tenant, system_database: Database
) -> None:
    rotated = await acme.caller.post(f"{acme.keys}/{acme.key_id}/rotate", {})
    assert rotated.status == 201
    assert rotated.json["id"] != acme.key_id
    assert rotated.json["name"] == "first"
    assert (await acme.caller.introspect(acme.key))["active"] is False
    fresh = await acme.caller.introspect(rotated.json["key"])
    assert sorted(fresh["principal"]["scopes"]) == ["keys:read", "keys:write", "org:read", "usage:read"]
    [event] = [one for one in await audited(system_database, acme.key_id) if one.action == "api_key.rotate"]
    assert event.detail == {"to": rotated.json["id"], "overlap_seconds": "0"}
    assert event.actor == acme.key_id


async def test_rotation_with_overlap_lets_the_old_key_live_that_long(
    acme: Tenant, owner: Caller, app_database: Database
) -> None:
    before = now()
    rotated = await owner.post(f"{acme.keys}/{acme.key_id}/rotate", {"overlap_seconds": 3600})
    assert (await owner.introspect(acme.key))["active"] is True
    old = next(one for one in (await owner.get(acme.keys)).json["data"] if one["id"] == acme.key_id)
    assert old["rotated_to"] == rotated.json["id"]
    ends = datetime.fromisoformat(old["expires_at"])
    assert before <= ends - timedelta(hours=1) + timedelta(milliseconds=1) <= now()
    await end_now(app_database, acme.id, acme.key_id)
    assert (await owner.introspect(acme.key))["active"] is False
    assert (await owner.introspect(rotated.json["key"]))["active"] is True


async def test_overlap_never_lengthens_a_life(owner: Caller, acme: Tenant) -> None:
    ends = rfc3339(now() + timedelta(hours=1))
    made = await owner.post(acme.keys, READ | {"expires_at": ends})
    rotated = await owner.post(f"{acme.keys}/{made.json['id']}/rotate", {"overlap_seconds": 7 * 24 * 3600})
    old = next(one for one in (await owner.get(acme.keys)).json["data"] if one["id"] == made.json["id"])
    assert old["expires_at"] == rotated.json["expires_at"] == ends


async def test_of_two_rotations_at_once_one_wins(owner: Caller, acme: Tenant) -> None:
    path = f"{acme.keys}/{acme.key_id}/rotate"
    answers = await asyncio.gather(*(owner.post(path, {"overlap_seconds": 60}) for _ in range(4)))
    assert sorted(one.status for one in answers) == [201, 409, 409, 409]
    assert {one.json["code"] for one in answers if one.status == 409} == {"key_already_rotated"}


async def test_ended_keys_are_not_rotated(owner: Caller, acme: Tenant) -> None:
    await owner.delete(f"{acme.keys}/{acme.key_id}")
    answer = await owner.post(f"{acme.keys}/{acme.key_id}/rotate", {})
    assert (answer.status, answer.json["code"]) == (409, "key_not_active")


async def test_expired_key_is_dead(owner: Caller, acme: Tenant, app_database: Database) -> None:
    made = await owner.post(acme.keys, READ | {"expires_at": rfc3339(now() + timedelta(hours=1))})
    assert (await owner.introspect(made.json["key"]))["active"] is True
    await end_now(app_database, acme.id, made.json["id"])
    assert await owner.introspect(made.json["key"]) == {"active": False}
    shown = next(one for one in (await owner.get(acme.keys)).json["data"] if one["id"] == made.json["id"])
    assert shown["status"] == "expired"


async def test_no_cache_outlives_an_expiry(owner: Caller, acme: Tenant) -> None:
    """The service authenticates callers from a cache of 30 s, as the gateway does."""
    ends = now() + timedelta(seconds=4)
    made = await owner.post(acme.keys, READ | {"expires_at": rfc3339(ends)})
    caller = owner.bearing(made.json["key"])
    assert (await caller.get("/api/v1/me")).status == 200
    await until(ends)
    assert (await caller.get("/api/v1/me")).status == 401


async def test_nobody_gives_scopes_they_do_not_hold(acme: Tenant) -> None:
    wider = await acme.caller.post(acme.keys, {"name": "w", "scopes": ["usage:read", "billing:read"]})
    assert (wider.status, wider.json["code"]) == (403, "scope_not_held")
    assert "billing:read" in wider.json["detail"]
    assert (await acme.caller.post(acme.keys, READ)).status == 201


async def test_nobody_gets_wider_by_rotating_a_stronger_key(owner: Caller, acme: Tenant) -> None:
    strong = await owner.post(acme.keys, {"name": "strong", "scopes": ["org:admin", "usage:read"]})
    answer = await acme.caller.post(f"{acme.keys}/{strong.json['id']}/rotate", {})
    assert (answer.status, answer.json["code"]) == (403, "scope_not_held")
    assert (await owner.introspect(strong.json["key"]))["active"] is True


async def test_foreign_keys_do_not_exist(acme: Tenant, other: Tenant, owner: Caller) -> None:
    """By every way to name them: the other's path, or the own path with the other's key."""
    for path in (other.keys, acme.keys):
        for answer in (
            await acme.caller.post(f"{path}/{other.key_id}/rotate", {}),
            await acme.caller.delete(f"{path}/{other.key_id}"),
        ):
            assert (answer.status, answer.json["code"]) == (404, "not_found")
    for answer in (await acme.caller.get(other.keys), await acme.caller.post(other.keys, READ)):
        assert (answer.status, answer.json["code"]) == (404, "not_found")
    # Also for the owner of the platform a key is found only where it belongs.
    assert (await owner.delete(f"{acme.keys}/{other.key_id}")).status == 404
    assert (await owner.introspect(other.key))["active"] is True
    assert len((await owner.get(other.keys)).json["data"]) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "k", "scopes": ["root"]}, "unknown_scope"),
        ({"name": "k", "scopes": []}, "invalid_request"),
        ({"name": "", "scopes": ["usage:read"]}, "invalid_request"),
        ({"name": "k", "scopes": "usage:read"}, "invalid_request"),
        ({"name": "k", "scopes": ["usage:read"], "tenant_id": "org_x"}, "invalid_request"),
        ({"name": "k", "scopes": ["usage:read"], "expires_at": "2020-01-01T00:00:00Z"}, "invalid_request"),
        ({"name": "k", "scopes": ["usage:read"], "expires_at": "2100-01-01T00:00:00"}, "invalid_request"),
        (
            {"name": "k", "scopes": ["usage:read"], "expires_at": "9999-12-31T23:59:59-12:00"},
            "invalid_request",
        ),
        ({"name": "k", "scopes": ["usage:read"], "expires_at": 4102444800}, "invalid_request"),
    ],
)
async def test_bad_keys(owner: Caller, acme: Tenant, body: object, code: str) -> None:
    answer = await owner.post(acme.keys, body)
    assert (answer.status, answer.json["code"]) == (422, code)


@pytest.mark.parametrize("overlap", [-1, 604801, "1", 1.5, True, None])
async def test_bad_overlaps(owner: Caller, acme: Tenant, overlap: object) -> None:
    answer = await owner.post(f"{acme.keys}/{acme.key_id}/rotate", {"overlap_seconds": overlap})
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")


async def test_last_moment_of_allowed_expiry(owner: Caller, acme: Tenant) -> None:
    latest = datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC)
    made = await owner.post(acme.keys, READ | {"expires_at": rfc3339(latest)})
    assert made.json["expires_at"] == rfc3339(latest)


async def test_keys_of_a_page(owner: Caller) -> None:
    acme = await new_tenant(owner)
    made = [acme.key_id] + [(await owner.post(acme.keys, READ)).json["id"] for _ in range(2)]
    page = (await owner.get(f"{acme.keys}?order=asc&limit=2")).json
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:2], True)
    rest = (await owner.get(f"{acme.keys}?order=asc&after={page['last_id']}")).json
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (made[2:], False)
