"""Members, roles and invitations."""

import asyncio

import pytest
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from services.common.principal import Principal
from services.users.roles import ROLES
from tests.services.users.conftest import (
    PASSWORD,
    Caller,
    Running,
    Somebody,
    Tenant,
    actions,
    add_person,
    mailed,
    refused_soon,
)


@pytest.fixture
async def founder(system_database: Database, acme: Tenant, cheap_hash: str) -> Somebody:
    """The only owner of `acme`."""
    return Somebody(*await add_person(system_database, cheap_hash, {acme.id: "owner"}))


@pytest.fixture
async def admin(system_database: Database, acme: Tenant, cheap_hash: str) -> Somebody:
    return Somebody(*await add_person(system_database, cheap_hash, {acme.id: "admin"}))


async def inside(anybody: Caller, who: Somebody) -> Caller:
    return anybody.bearing((await who.login(anybody))["access_token"])


def at(acme: Tenant, *parts: str) -> str:
    return "/".join((f"/api/v1/organizations/{acme.id}", *parts))


async def test_roles_say_what_they_allow(acme: Tenant) -> None:
    answer = await acme.caller.get("/api/v1/roles")
    assert {one["id"]: set(one["scopes"]) for one in answer.json["data"]} == {
        str(role): set(scopes) for role, scopes in ROLES.items()
    }


async def test_members_are_listed_to_their_own(
    anybody: Caller, acme: Tenant, other: Tenant, founder: Somebody, person: Somebody
) -> None:
    caller = await inside(anybody, person)
    listed = (await caller.get(at(acme, "members"))).json["data"]
    assert {(one["id"], one["email"], one["role"]) for one in listed} == {
        (founder.id, founder.email, "owner"),
        (person.id, person.email, "developer"),
    }
    assert (await caller.get(at(acme, "members", person.id))).json["role"] == "developer"
    assert (await caller.get(at(other, "members"))).status == 404
    assert (await other.caller.get(at(acme, "members", person.id))).status == 404
    assert (await caller.get(at(acme, "members", "nonsense"))).status == 404


async def test_a_changed_role_works_at_once(
    anybody: Caller, acme: Tenant, founder: Somebody, person: Somebody, system_database: Database
) -> None:
    session = await person.login(anybody)
    before = anybody.bearing(session["access_token"])
    assert (await before.get(at(acme, "keys"))).status == 200
    boss = await inside(anybody, founder)
    changed = await boss.patch(at(acme, "members", person.id), {"role": "viewer"})
    assert (changed.status, changed.json["role"]) == (200, "viewer")
    await refused_soon(before)
    fresh = await anybody.post("/api/v1/auth/refresh", {"refresh_token": session["refresh_token"]})
    after = anybody.bearing(fresh.json["access_token"])
    assert (await after.get(at(acme, "keys"))).json["code"] == "missing_scope"
    assert "member.change_role" in await actions(system_database, person.id)


async def test_a_removed_member_is_out(
    anybody: Caller, acme: Tenant, founder: Somebody, person: Somebody
) -> None:
    session = await person.login(anybody)
    boss = await inside(anybody, founder)
    assert (await boss.delete(at(acme, "members", person.id))).status == 204
    await refused_soon(anybody.bearing(session["access_token"]))
    again = await anybody.post("/api/v1/auth/refresh", {"refresh_token": session["refresh_token"]})
    assert again.status == 401
    assert (await anybody.login(PASSWORD, person.email)).json["code"] == "no_organization"
    assert (await boss.delete(at(acme, "members", person.id))).status == 404


async def test_the_last_owner_stays(anybody: Caller, acme: Tenant, founder: Somebody) -> None:
    boss = await inside(anybody, founder)
    member = at(acme, "members", founder.id)
    for refused in (await boss.delete(member), await boss.patch(member, {"role": "admin"})):
        assert (refused.status, refused.json["code"]) == (409, "last_owner")
    assert (await boss.patch(member, {"role": "owner"})).status == 200


async def test_of_two_owners_who_leave_at_once_one_stays(
    anybody: Caller, acme: Tenant, founder: Somebody, system_database: Database, cheap_hash: str
) -> None:
    second = Somebody(*await add_person(system_database, cheap_hash, {acme.id: "owner"}))
    callers = [await inside(anybody, founder), await inside(anybody, second)]
    answers = await asyncio.gather(
        callers[0].delete(at(acme, "members", founder.id)), callers[1].delete(at(acme, "members", second.id))
    )
    assert sorted(answer.status for answer in answers) == [204, 409]


async def test_only_owners_make_and_unmake_owners(
    anybody: Caller, acme: Tenant, founder: Somebody, admin: Somebody, person: Somebody
) -> None:
    caller = await inside(anybody, admin)
    for refused in (
        await caller.patch(at(acme, "members", person.id), {"role": "owner"}),
        await caller.patch(at(acme, "members", founder.id), {"role": "viewer"}),
        await caller.delete(at(acme, "members", founder.id)),
        await caller.post(at(acme, "invitations"), {"email": "x@example.org", "role": "owner"}),
    ):
        assert (refused.status, refused.json["code"]) == (403, "owner_required")
    assert (await caller.patch(at(acme, "members", person.id), {"role": "admin"})).status == 200
    developer = await caller.patch(at(acme, "members", person.id), {"role": "root"})
    assert developer.status == 422


async def test_developers_change_nobody(anybody: Caller, acme: Tenant, person: Somebody) -> None:
    caller = await inside(anybody, person)
    for refused in (
        await caller.patch(at(acme, "members", person.id), {"role": "admin"}),
        await caller.delete(at(acme, "members", person.id)),
        await caller.post(at(acme, "invitations"), {"email": "x@example.org"}),
        await caller.get(at(acme, "invitations")),
    ):
        assert (refused.status, refused.json["code"]) == (403, "missing_scope")


async def invited(boss: Caller, users: Running, acme: Tenant, email: str, role: str) -> tuple[str, str]:
    """(id, token of the mail)."""
    made = await boss.post(at(acme, "invitations"), {"email": email, "role": role})
    assert (made.status, made.json["status"]) == (201, "open"), made.json
    assert "token" not in made.json
    return made.json["id"], await mailed(users, email, "invited")


async def test_somebody_new_comes_in_once(
    anybody: Caller, users: Running, acme: Tenant, admin: Somebody, system_database: Database
) -> None:
    boss, email = await inside(anybody, admin), f"{new_id('x')}@example.org"
    invitation, token = await invited(boss, users, acme, email, "viewer")
    body = {"token": token, "password": PASSWORD, "name": "Grace"}
    short = await anybody.post("/api/v1/auth/invitations/accept", {**body, "password": "short"})
    assert short.status == 422
    answers = await asyncio.gather(*(anybody.post("/api/v1/auth/invitations/accept", body) for _ in range(3)))
    assert sorted(answer.status for answer in answers) == [201, 401, 401]
    session = await anybody.login(PASSWORD, email)
    me = (await anybody.bearing(session.json["access_token"]).get("/api/v1/me")).json
    assert (me["name"], me["organization"], me["memberships"][0]["role"]) == ("Grace", acme.id, "viewer")
    [shown] = (await boss.get(at(acme, "invitations"))).json["data"]
    assert (shown["id"], shown["status"]) == (invitation, "accepted")
    assert (await boss.delete(at(acme, "invitations", invitation))).json["code"] == "invitation_accepted"
    assert await actions(system_database, invitation) == ["invitation.create", "invitation.accept"]


async def test_somebody_with_an_account_proves_it(
    anybody: Caller,
    users: Running,
    acme: Tenant,
    other: Tenant,
    admin: Somebody,
    system_database: Database,
    cheap_hash: str,
) -> None:
    guest = Somebody(*await add_person(system_database, cheap_hash, {other.id: "viewer"}))
    _, token = await invited(await inside(anybody, admin), users, acme, guest.email, "developer")
    path = "/api/v1/auth/invitations/accept"
    wrong = await anybody.post(path, {"token": token, "password": "not the right one"})
    assert (wrong.status, wrong.json["code"]) == (401, "wrong_credentials")
    right = await anybody.post(path, {"token": token, "password": PASSWORD})
    assert (right.status, right.json["id"], right.json["role"]) == (201, guest.id, "developer")
    assert (await guest.login(anybody, organization=acme.id))["access_token"]


async def test_revoked_and_expired_invitations_are_of_no_use(
    anybody: Caller, users: Running, acme: Tenant, other: Tenant, admin: Somebody, system_database: Database
) -> None:
    boss = await inside(anybody, admin)
    path = "/api/v1/auth/invitations/accept"
    revoked, token = await invited(boss, users, acme, f"{new_id('x')}@example.org", "viewer")
    assert (await other.caller.delete(at(acme, "invitations", revoked))).status in {403, 404}
    assert (await boss.delete(at(acme, "invitations", revoked))).status == 204
    expired, late = await invited(boss, users, acme, f"{new_id('x')}@example.org", "viewer")
    async with system_database.writer() as connection:
        await connection.execute(
            text("update invitation set expires_at = now() - interval '1 second' where id = :id"),
            {"id": expired},
        )
    for one in (token, late, "hr_invite_" + "A" * 43, "x"):
        refused = await anybody.post(path, {"token": one, "password": PASSWORD})
        assert (refused.status, refused.json["code"]) == (401, "invitation_refused")
    states = {one["id"]: one["status"] for one in (await boss.get(at(acme, "invitations"))).json["data"]}
    assert states == {revoked: "revoked", expired: "expired"}


async def states(caller: Caller, acme: Tenant) -> dict[str, str]:
    """What became of each invitation, by its role."""
    return {one["role"]: one["status"] for one in (await caller.get(at(acme, "invitations"))).json["data"]}


async def test_who_may_invite_no_more_leaves_no_invitations(
    anybody: Caller,
    users: Running,
    acme: Tenant,
    founder: Somebody,
    system_database: Database,
    cheap_hash: str,
) -> None:
    """An owner becomes an admin, then a viewer; what others made stays."""
    leaver = Somebody(*await add_person(system_database, cheap_hash, {acme.id: "owner"}))
    boss, leaving = await inside(anybody, founder), await inside(anybody, leaver)
    owner, token = await invited(leaving, users, acme, f"{new_id('x')}@example.org", "owner")
    admin, _ = await invited(leaving, users, acme, f"{new_id('x')}@example.org", "admin")
    await invited(boss, users, acme, f"{new_id('x')}@example.org", "developer")
    assert (await boss.patch(at(acme, "members", leaver.id), {"role": "admin"})).status == 200
    assert await states(boss, acme) == {"owner": "revoked", "admin": "open", "developer": "open"}
    refused = await anybody.post("/api/v1/auth/invitations/accept", {"token": token, "password": PASSWORD})
    assert (refused.status, refused.json["code"]) == (401, "invitation_refused")
    assert (await boss.patch(at(acme, "members", leaver.id), {"role": "viewer"})).status == 200
    assert await states(boss, acme) == {"owner": "revoked", "admin": "revoked", "developer": "open"}
    for one in (owner, admin):
        assert await actions(system_database, one) == ["invitation.create", "invitation.revoke"]


async def test_a_removed_member_leaves_no_invitations(
    anybody: Caller, users: Running, acme: Tenant, founder: Somebody, admin: Somebody
) -> None:
    boss, leaving = await inside(anybody, founder), await inside(anybody, admin)
    await invited(leaving, users, acme, f"{new_id('x')}@example.org", "viewer")
    assert (await boss.patch(at(acme, "members", admin.id), {"role": "owner"})).status == 200
    assert await states(boss, acme) == {"viewer": "open"}
    assert (await boss.delete(at(acme, "members", admin.id))).status == 204
    assert await states(boss, acme) == {"viewer": "revoked"}
    # As the access token says it until the notice has reached everybody.
    before = Principal(acme.id, admin.id, "user", frozenset({"org:admin"}))
    late = await anybody.acting_as(before).post(at(acme, "invitations"), {"email": "x@example.org"})
    assert (late.status, late.json["code"]) == (403, "missing_scope")


@pytest.fixture
async def elsewhere(anybody: Caller, system_database: Database, other: Tenant, cheap_hash: str) -> Caller:
    """The owner of `other`."""
    return await inside(
        anybody, Somebody(*await add_person(system_database, cheap_hash, {other.id: "owner"}))
    )


async def test_invitations_flood_no_mailbox(
    anybody: Caller, elsewhere: Caller, acme: Tenant, other: Tenant, founder: Somebody
) -> None:
    boss = await inside(anybody, founder)
    victim = f"{new_id('victim')}@example.org"
    answers = [await boss.post(at(acme, "invitations"), {"email": victim}) for _ in range(4)]
    assert [answer.status for answer in answers] == [201, 201, 201, 429]
    # Also not from another organisation, or in other letters.
    answers.append(await elsewhere.post(at(other, "invitations"), {"email": victim.upper()}))
    for refused in answers[3:]:
        assert (refused.status, refused.json["code"]) == (429, "too_many_invitations")
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
    assert len((await boss.get(at(acme, "invitations"))).json["data"]) == 3


async def test_an_organisation_invites_so_many_and_no_more(
    anybody: Caller, elsewhere: Caller, acme: Tenant, other: Tenant, founder: Somebody
) -> None:
    boss = await inside(anybody, founder)
    statuses = [
        (await boss.post(at(acme, "invitations"), {"email": f"{new_id('x')}@example.org"})).status
        for _ in range(52)
    ]
    assert statuses[:50] == [201] * 50
    assert statuses[-1] == 429
    made = await elsewhere.post(at(other, "invitations"), {"email": f"{new_id('x')}@example.org"})
    assert made.status == 201, "others are not touched"
