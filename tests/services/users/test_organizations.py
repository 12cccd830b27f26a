"""Organisations on the real service."""

import pytest

from core.database import Database
from core.ids import new_id
from tests.services.users.conftest import Caller, Tenant, actions, new_tenant

PATH = "/api/v1/organizations"


def slug() -> str:
    return new_id("t").replace("_", "-")


async def test_made_found_and_audited(owner: Caller, system_database: Database) -> None:
    name = slug()
    made = await owner.post(PATH, {"slug": name, "name": "Acme", "plan": "team"})
    assert made.status == 201
    assert (made.json["slug"], made.json["plan"], made.json["requests_per_minute"]) == (name, "team", 6000)
    assert (made.json["usage_retention_days"], made.json["audit_retention_days"]) == (1100, 365)
    assert (await owner.get(f"{PATH}/{made.json['id']}")).json == made.json
    assert (await owner.get(f"{PATH}?slug={name}")).json["data"] == [made.json]
    assert await actions(system_database, made.json["id"]) == ["organization.create"]


async def test_slug_is_taken_once(owner: Caller, acme: Tenant) -> None:
    answer = await owner.post(PATH, {"slug": acme.slug, "name": "Again"})
    assert (answer.status, answer.json["code"]) == (409, "slug_taken")


async def test_unknown_plan(owner: Caller) -> None:
    answer = await owner.post(PATH, {"slug": slug(), "name": "A", "plan": "gold"})
    assert (answer.status, answer.json["code"]) == (422, "unknown_plan")
    assert answer.json["errors"][0]["path"] == "/plan"


@pytest.mark.parametrize("wrong", ["", "A", "a b", "-a", "a-", "a\n", "a" * 64, "ä", "a/b", "a\u2028"])
async def test_slugs_are_dns_labels(owner: Caller, wrong: str) -> None:
    answer = await owner.post(PATH, {"slug": wrong, "name": "A"})
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")


async def test_only_the_owner_of_the_platform_makes_organisations(owner: Caller, acme: Tenant) -> None:
    answer = await acme.caller.post(PATH, {"slug": slug(), "name": "Mine"})
    assert answer.status == 403
    strong = await new_tenant(owner, scopes=("org:admin", "org:read"))
    answer = await strong.caller.post(PATH, {"slug": slug(), "name": "Mine"})
    assert (answer.status, answer.json["code"]) == (403, "platform_owner_required")


async def test_key_sees_its_own_organisation_and_no_other(acme: Tenant, other: Tenant) -> None:
    assert [one["id"] for one in (await acme.caller.get(PATH)).json["data"]] == [acme.id]
    assert (await acme.caller.get(f"{PATH}?slug={acme.slug}")).json["data"][0]["id"] == acme.id
    assert (await acme.caller.get(f"{PATH}?slug={other.slug}")).json["data"] == []
    foreign = await acme.caller.get(f"{PATH}/{other.id}")
    missing = await acme.caller.get(f"{PATH}/{new_id('org')}")
    assert foreign.status == missing.status == 404
    assert foreign.json | {"instance": ""} == missing.json | {"instance": ""}


async def test_pages(owner: Caller) -> None:
    made = [(await new_tenant(owner)).id for _ in range(3)]
    newest = (await owner.get(f"{PATH}?limit=2")).json
    assert [one["id"] for one in newest["data"]] == [made[2], made[1]]
    assert (newest["has_more"], newest["first_id"], newest["last_id"]) == (True, made[2], made[1])
    older = (await owner.get(f"{PATH}?limit=1&after={made[1]}")).json
    assert [one["id"] for one in older["data"]] == [made[0]]
    upwards = (await owner.get(f"{PATH}?order=asc&after={made[0]}&limit=5")).json
    assert [one["id"] for one in upwards["data"]] == [made[1], made[2]]
    assert upwards["has_more"] is False
    between = (await owner.get(f"{PATH}?after={made[2]}&before={made[0]}")).json
    assert [one["id"] for one in between["data"]] == [made[1]]


async def test_a_repetition_with_idempotency_key_makes_one_organisation(
    owner: Caller, system_database: Database
) -> None:
    body = {"slug": slug(), "name": "Once"}
    key = new_id("try")
    first = await owner.post(PATH, body, idempotency_key=key)
    again = await owner.post(PATH, body, idempotency_key=key)
    assert (first.status, again.status) == (201, 201)
    assert again.json == first.json
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    changed = await owner.post(PATH, body | {"name": "Other"}, idempotency_key=key)
    assert (changed.status, changed.json["code"]) == (422, "idempotency_key_reused")
    assert await actions(system_database, first.json["id"]) == ["organization.create"]


async def test_a_refused_request_leaves_its_idempotency_key_free(owner: Caller, acme: Tenant) -> None:
    key = new_id("try")
    assert (await owner.post(PATH, {"slug": acme.slug, "name": "A"}, idempotency_key=key)).status == 409
    assert (await owner.post(PATH, {"slug": slug(), "name": "A"}, idempotency_key=key)).status == 201


@pytest.mark.parametrize("wrong", ["", "ä", "x" * 256])
async def test_wrong_idempotency_keys(owner: Caller, wrong: str) -> None:
    answer = await owner.post(PATH, {"slug": slug(), "name": "A"}, idempotency_key=wrong)
    assert (answer.status, answer.json["code"]) == (400, "idempotency_key_invalid")


@pytest.mark.parametrize("wrong", ["x", "org_", "%00", "org_%00", "..", "org_" + "z" * 36, "a" * 3000])
async def test_ids_of_no_known_form_are_a_404(owner: Caller, wrong: str) -> None:
    answer = await owner.get(f"{PATH}/{wrong}")
    assert (answer.status, answer.json["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "order=up", "after=%00", "slug=A%00", "slug=a%0a"]
)
async def test_wrong_queries_are_a_422(owner: Caller, query: str) -> None:
    answer = await owner.get(f"{PATH}?{query}")
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
