"""Refresh tokens rotate, a stolen one ends its session, and an end is an end within seconds."""

import asyncio

from core.database import Database
from tests.services.users.conftest import Caller, Somebody, actions, audited, refused_soon

REFRESH = "/api/v1/auth/refresh"


async def test_refresh_brings_the_next_pair(anybody: Caller, person: Somebody) -> None:
    first = await person.login(anybody)
    answer = await anybody.post(REFRESH, {"refresh_token": first["refresh_token"]})
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json["session"] == first["session"]
    assert answer.json["refresh_token"] != first["refresh_token"]
    assert (await anybody.bearing(answer.json["access_token"]).get("/api/v1/me")).status == 200


async def test_a_token_that_comes_twice_ends_the_whole_family(
    anybody: Caller, person: Somebody, system_database: Database
) -> None:
    stolen = (first := await person.login(anybody))["refresh_token"]
    other = await person.login(anybody)
    newest = (await anybody.post(REFRESH, {"refresh_token": stolen})).json
    reused = await anybody.post(REFRESH, {"refresh_token": stolen})
    assert (reused.status, reused.json["code"]) == (401, "refresh_refused")
    after = await anybody.post(REFRESH, {"refresh_token": newest["refresh_token"]})
    assert after.status == 401
    await refused_soon(anybody.bearing(newest["access_token"]))
    [event] = await audited(system_database, first["session"])
    assert (event.action, event.outcome, event.detail) == (
        "auth.refresh_refused",
        "denied",
        {"reason": "reused"},
    )
    assert (await anybody.post(REFRESH, {"refresh_token": other["refresh_token"]})).status == 200


async def test_of_two_uses_at_once_one_wins_and_the_session_ends(anybody: Caller, person: Somebody) -> None:
    token = (await person.login(anybody))["refresh_token"]
    answers = await asyncio.gather(*(anybody.post(REFRESH, {"refresh_token": token}) for _ in range(8)))
    won = [answer for answer in answers if answer.status == 200]
    assert len(won) == 1
    assert (await anybody.post(REFRESH, {"refresh_token": won[0].json["refresh_token"]})).status == 401


async def test_text_that_was_never_issued(anybody: Caller, person: Somebody) -> None:
    device = (await person.login(anybody))["device_token"]
    for text in ("", "x", "hr_refresh_" + "A" * 43, device):
        answer = await anybody.post(REFRESH, {"refresh_token": text})
        assert (answer.status, answer.json["code"]) == (401, "refresh_refused")
        assert (await anybody.post("/api/v1/auth/logout", {"refresh_token": text})).status == 204


async def test_logout_ends_this_session_only(
    anybody: Caller, person: Somebody, system_database: Database
) -> None:
    here, there = await person.login(anybody), await person.login(anybody)
    assert (await anybody.bearing(here["access_token"]).get("/api/v1/me")).status == 200
    out = await anybody.post("/api/v1/auth/logout", {"refresh_token": here["refresh_token"]})
    assert out.status == 204
    await refused_soon(anybody.bearing(here["access_token"]))
    assert (await anybody.post(REFRESH, {"refresh_token": here["refresh_token"]})).status == 401
    assert (await anybody.bearing(there["access_token"]).get("/api/v1/me")).status == 200
    assert await actions(system_database, here["session"]) == ["auth.logout"]


async def test_logout_all_ends_every_session(
    anybody: Caller, person: Somebody, system_database: Database
) -> None:
    sessions = [await person.login(anybody) for _ in range(3)]
    caller = anybody.bearing(sessions[0]["access_token"])
    assert (await caller.post("/api/v1/auth/logout-all", None)).status == 204
    for one in sessions:
        await refused_soon(anybody.bearing(one["access_token"]))
    [event] = [one for one in await audited(system_database, person.id) if one.action == "auth.logout_all"]
    assert event.detail == {"sessions": "3"}


async def test_sessions_are_listed_and_revoked_by_their_person_alone(
    anybody: Caller, person: Somebody, owner: Caller
) -> None:
    here, there = await person.login(anybody), await person.login(anybody)
    caller = anybody.bearing(here["access_token"])
    listed = (await caller.get("/api/v1/sessions")).json["data"]
    assert {one["id"]: one["current"] for one in listed} == {here["session"]: True, there["session"]: False}
    assert all(one["user_agent"] for one in listed)
    path = f"/api/v1/sessions/{there['session']}"
    assert (await owner.delete(path)).status == 404
    assert (await caller.delete(path)).status == 204
    assert (await caller.delete(path)).status == 404
    assert (await caller.delete("/api/v1/sessions/nonsense")).status == 404
    await refused_soon(anybody.bearing(there["access_token"]))
    listed = (await caller.get("/api/v1/sessions")).json["data"]
    assert [one["id"] for one in listed] == [here["session"]]
