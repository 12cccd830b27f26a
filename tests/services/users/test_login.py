"""Login on the real service."""

import base64
import json
from typing import Any

import bcrypt
import pytest

from core.audit import NO_TENANT
from core.database import Database
from services.users.passwords import prehash
from tests.services.users.conftest import Caller, Tenant, actions, add_person, audited

PASSWORD = "密" * 30 + "tail a"
"""96 bytes of UTF-8: what tells it from its neighbour lies behind the 72 bytes that bcrypt reads."""


@pytest.fixture(scope="module")
def password_hash() -> str:
    return bcrypt.hashpw(prehash(PASSWORD), bcrypt.gensalt(4)).decode()


def claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


async def test_owner_logs_in_and_is_somebody(anybody: Caller) -> None:
    answer = await anybody.login()
    assert (answer.status, answer.json["token_type"], answer.json["expires_in"]) == (200, "Bearer", 900)
    assert answer.headers["cache-control"] == "no-store"
    me = (await anybody.bearing(answer.json["access_token"]).get("/api/v1/me")).json
    assert (me["object"], me["email"], me["platform_owner"]) == ("user", "owner@example.org", True)
    assert [(one["slug"], one["role"]) for one in me["memberships"]] == [("main", "owner")]
    assert me["organization"] == me["memberships"][0]["id"]


async def test_email_is_found_in_any_case(anybody: Caller) -> None:
    assert (await anybody.login(email="OWNER@Example.ORG")).status == 200


async def test_wrong_password_and_unknown_email_look_the_same(anybody: Caller) -> None:
    wrong = await anybody.login(password="not the password")
    unknown = await anybody.login(email="nobody@example.org")
    assert wrong.status == unknown.status == 401
    assert wrong.json == unknown.json
    assert wrong.json["code"] == "wrong_credentials"


async def test_password_behind_72_bytes_counts(
    anybody: Caller, system_database: Database, acme: Tenant, password_hash: str
) -> None:
    _, email = await add_person(system_database, password_hash, {acme.id: "viewer"})
    assert len(PASSWORD.encode()) > 72
    assert (await anybody.login(PASSWORD[:-1] + "b", email)).status == 401
    assert (await anybody.login(PASSWORD[:-1], email)).status == 401
    assert (await anybody.login(PASSWORD, email)).status == 200


async def test_role_decides_scopes(
    anybody: Caller, system_database: Database, acme: Tenant, password_hash: str
) -> None:
    _, email = await add_person(system_database, password_hash, {acme.id: "viewer"})
    token = (await anybody.login(PASSWORD, email)).json["access_token"]
    assert claims(token)["scope"] == "agents:read billing:read memory:read org:read usage:read"
    viewer = anybody.bearing(token)
    assert (await viewer.get(f"/api/v1/organizations/{acme.id}")).status == 200
    refused = await viewer.post(acme.keys, {"name": "k", "scopes": ["usage:read"]})
    assert (refused.status, refused.json["code"]) == (403, "missing_scope")


async def test_person_of_two_organisations_chooses_one_and_sees_only_that(
    anybody: Caller, system_database: Database, acme: Tenant, other: Tenant, password_hash: str
) -> None:
    _, email = await add_person(system_database, password_hash, {acme.id: "admin", other.id: "viewer"})
    first = (await anybody.login(PASSWORD, email)).json["access_token"]
    assert claims(first)["org"] == acme.id
    for name in (other.slug, other.id):
        token = (await anybody.login(PASSWORD, email, organization=name)).json["access_token"]
        assert (claims(token)["org"], claims(token)["roles"]) == (other.id, ["viewer"])
    there = anybody.bearing(token)
    assert (await there.get(f"/api/v1/organizations/{acme.id}")).status == 404
    listed = await there.get("/api/v1/organizations?order=asc")
    assert [one["id"] for one in listed.json["data"]] == [acme.id, other.id]


async def test_an_organisation_of_others_is_none(
    anybody: Caller, system_database: Database, acme: Tenant, other: Tenant, password_hash: str
) -> None:
    person_id, email = await add_person(system_database, password_hash, {acme.id: "owner"})
    foreign = await anybody.login(PASSWORD, email, organization=other.slug)
    missing = await anybody.login(PASSWORD, email, organization="no-such")
    assert foreign.status == missing.status == 404
    assert foreign.json == missing.json
    assert await actions(system_database, person_id) == ["auth.login_failed"] * 2


async def test_owner_of_the_platform_goes_into_any_organisation(anybody: Caller, acme: Tenant) -> None:
    token = (await anybody.login(organization=acme.slug)).json["access_token"]
    assert claims(token)["org"] == acme.id
    assert claims(token)["requests_per_minute"] == 600


async def test_person_without_organisation_is_told_so(
    anybody: Caller, system_database: Database, password_hash: str
) -> None:
    _, email = await add_person(system_database, password_hash, {})
    answer = await anybody.login(PASSWORD, email)
    assert (answer.status, answer.json["code"]) == (403, "no_organization")


async def test_logins_are_audited_with_ids_only(
    anybody: Caller, system_database: Database, acme: Tenant, password_hash: str
) -> None:
    person_id, email = await add_person(system_database, password_hash, {acme.id: "viewer"})
    await anybody.login("wrong password", email)
    await anybody.login(PASSWORD, email)
    events = await audited(system_database, person_id)
    assert [(one.action, one.outcome, one.tenant) for one in events] == [
        ("auth.login_failed", "denied", acme.id),
        ("auth.login", "success", acme.id),
    ]
    before = len(await actions(system_database, "unknown"))
    await anybody.login(email="nobody@example.org")
    unknown = await audited(system_database, "unknown")
    assert len(unknown) == before + 1
    assert (unknown[-1].action, unknown[-1].tenant, unknown[-1].actor) == (
        "auth.login_failed",
        NO_TENANT,
        "anonymous",
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"email": "a@b.c"}, "invalid_request"),
        ({"email": "a@b.c", "password": 1}, "invalid_request"),
        ({"email": "a@b.c", "password": "p", "admin": True}, "invalid_request"),
        ({"email": "a@b.c", "password": "p" * 1025}, "invalid_request"),
        ([], "invalid_request"),
    ],
)
async def test_bad_bodies(anybody: Caller, body: object, code: str) -> None:
    answer = await anybody.post("/api/v1/auth/login", body)
    assert (answer.status, answer.json["code"]) == (422, code)


@pytest.mark.parametrize("credential", ["", "x", "a.b.c", "sk_live_x", "é"])
async def test_credentials_of_no_known_form(anybody: Caller, credential: str) -> None:
    answer = await anybody.bearing(credential).get("/api/v1/me")
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")


async def test_key_set_has_public_keys_only(anybody: Caller) -> None:
    answer = await anybody.get("/.well-known/jwks.json")
    assert "max-age" in answer.headers["cache-control"]
    [key] = answer.json["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
