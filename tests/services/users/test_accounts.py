"""Register, prove the mailbox, forget the password, change it."""

import asyncio
import stat
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from core.settings import CacheSettings, DatabaseSettings
from services.users import one_time
from services.users.lockout import MAILS
from tests.servers import free_port, running
from tests.services.process import service
from tests.services.users.conftest import (
    PASSWORD,
    Caller,
    Running,
    Somebody,
    actions,
    audited,
    mailed,
    refused_soon,
)


def fresh_email() -> str:
    return f"{new_id('x')}@example.org"


async def test_registration_becomes_an_account_by_mail_and_password(
    anybody: Caller, users: Running, system_database: Database
) -> None:
    email = fresh_email()
    asked = await anybody.post(
        "/api/v1/auth/register",
        {"email": email.upper(), "password": PASSWORD, "name": "Ada", "organization": "Ada & Co."},
    )
    assert (asked.status, asked.json["object"]) == (202, "accepted")
    assert (await anybody.login(PASSWORD, email)).status == 401
    token = await mailed(users, email, "Confirm")

    # Whoever registers a foreign address waits for its owner's click in vain: the owner does not know this password.
    wrong = await anybody.post("/api/v1/auth/verify-email", {"token": token, "password": "not that one"})
    assert (wrong.status, wrong.json["code"]) == (401, "verification_refused")
    made = await anybody.post("/api/v1/auth/verify-email", {"token": token, "password": PASSWORD})
    assert made.status == 201, made.json
    again = await anybody.post("/api/v1/auth/verify-email", {"token": token, "password": PASSWORD})
    assert again.json["code"] == "verification_refused"

    session = await anybody.login(PASSWORD, email)
    me = (await anybody.bearing(session.json["access_token"]).get("/api/v1/me")).json
    assert (me["email"], me["name"], me["platform_owner"]) == (email, "Ada", False)
    [membership] = me["memberships"]
    assert (membership["id"], membership["role"], membership["plan"]) == (
        made.json["organization"],
        "owner",
        "free",
    )
    assert membership["slug"].startswith("ada-co-")
    assert await actions(system_database, made.json["id"]) == ["auth.verify_email", "auth.login"]


async def test_register_tells_nobody_who_has_an_account(
    anybody: Caller, users: Running, person: Somebody
) -> None:
    known = await anybody.post("/api/v1/auth/register", {"email": person.email, "password": PASSWORD})
    unknown = await anybody.post("/api/v1/auth/register", {"email": fresh_email(), "password": PASSWORD})
    assert (known.status, known.json) == (unknown.status, unknown.json)
    assert await mailed(users, person.email, "already") == ""


async def test_forgot_tells_nobody_who_has_an_account(
    anybody: Caller, users: Running, person: Somebody, system_database: Database
) -> None:
    stranger = fresh_email()
    known = await anybody.post("/api/v1/auth/forgot", {"email": person.email})
    unknown = await anybody.post("/api/v1/auth/forgot", {"email": stranger})
    assert (known.status, known.json) == (unknown.status, unknown.json) == (202, unknown.json)
    await mailed(users, person.email, "new password")
    assert users.mails(stranger) == []
    async with system_database.reader() as connection:
        rows = await connection.execute(
            text("select person_id from password_reset order by created_at desc limit 2")
        )
        assert {row.person_id for row in rows} == {person.id, None}  # both did the same work


async def test_reset_works_once_and_ends_all_that_was(
    anybody: Caller, users: Running, person: Somebody
) -> None:
    before = await person.login(anybody)
    for count in (1, 2):
        await anybody.post("/api/v1/auth/forgot", {"email": person.email})
        token = await mailed(users, person.email, "new password", count)
    weak = await anybody.post("/api/v1/auth/reset", {"token": token, "password": "short"})
    assert weak.status == 422
    done = await anybody.post("/api/v1/auth/reset", {"token": token, "password": PASSWORD + " new"})
    assert done.status == 200, done.json
    again = await anybody.post("/api/v1/auth/reset", {"token": token, "password": PASSWORD + " newer"})
    assert (again.status, again.json["code"]) == (401, "reset_refused")

    assert (await anybody.login(PASSWORD, person.email)).status == 401
    assert (await anybody.login(PASSWORD + " new", person.email)).status == 200
    old = await anybody.post("/api/v1/auth/refresh", {"refresh_token": before["refresh_token"]})
    assert old.json["code"] == "refresh_refused"
    await refused_soon(anybody.bearing(before["access_token"]))
    # The link of the other mail went with it, and the mailbox hears of the change.
    await mailed(users, person.email, "was changed")


@pytest.mark.parametrize(("path", "purpose"), [("reset", "reset"), ("verify-email", "verify")])
async def test_made_up_tokens_hash_no_passwords(anybody: Caller, path: str, purpose: str) -> None:
    """More at once than may wait for bcrypt: one that hashed first would answer `too_many_logins`."""
    body = {"token": f"hr_{purpose}_" + "A" * 43, "password": PASSWORD}
    answers = await asyncio.gather(*(anybody.post(f"/api/v1/auth/{path}", body) for _ in range(40)))
    assert {answer.status for answer in answers} == {401}


async def test_change_of_password_ends_the_other_sessions(
    anybody: Caller, person: Somebody, system_database: Database
) -> None:
    here, there = await person.login(anybody), await person.login(anybody)
    caller = anybody.bearing(here["access_token"])
    path = "/api/v1/auth/password"
    wrong = await caller.post(path, {"current_password": "wrong", "new_password": PASSWORD + "!"})
    assert (wrong.status, wrong.json["code"]) == (401, "wrong_credentials")
    assert (await caller.post(path, {"current_password": PASSWORD, "new_password": "short"})).status == 422
    done = await caller.post(path, {"current_password": PASSWORD, "new_password": PASSWORD + "!"})
    assert done.status == 204
    await refused_soon(anybody.bearing(there["access_token"]))
    assert (await caller.get("/api/v1/me")).status == 200
    assert (await anybody.login(PASSWORD + "!", person.email)).status == 200
    assert "auth.change_password" in await actions(system_database, person.id)


async def test_keys_are_no_people(acme_key: Caller) -> None:
    for method, path, body in (
        ("POST", "/api/v1/auth/password", {"current_password": PASSWORD, "new_password": PASSWORD}),
        ("POST", "/api/v1/auth/logout-all", None),
        ("PATCH", "/api/v1/me", {"name": "x"}),
        ("GET", "/api/v1/auth/mfa", None),
        ("GET", "/api/v1/sessions", None),
    ):
        answer = await acme_key.call(method, path, body)
        assert (answer.status, answer.json["code"]) == (403, "not_a_person"), path


async def test_a_name_can_be_changed(anybody: Caller, person: Somebody) -> None:
    caller = anybody.bearing((await person.login(anybody))["access_token"])
    assert (await caller.patch("/api/v1/me", {"name": "林"})).status == 204
    assert (await caller.get("/api/v1/me")).json["name"] == "林"


async def test_a_mailbox_is_not_flooded_and_nobody_is_told(
    anybody: Caller, users: Running, person: Somebody
) -> None:
    answers = [
        await anybody.from_network("192.0.2.77").post("/api/v1/auth/forgot", {"email": person.email})
        for _ in range(MAILS.capacity + 2)
    ]
    assert {answer.status for answer in answers} == {202}
    await mailed(users, person.email, "new password", MAILS.capacity)
    await anybody.post("/api/v1/auth/register", {"email": fresh_email(), "password": PASSWORD})
    assert len(users.mails(person.email)) == MAILS.capacity


async def test_mails_are_the_services_user_s_alone(anybody: Caller, users: Running) -> None:
    email = fresh_email()
    await anybody.post("/api/v1/auth/register", {"email": email, "password": PASSWORD})
    await mailed(users, email, "Confirm")
    assert stat.S_IMODE(users.mail_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in users.mail_dir.iterdir()} == {0o600}


async def test_tokens_lie_as_hashes_only(
    anybody: Caller, users: Running, person: Somebody, system_database: Database
) -> None:
    session = await person.login(anybody)
    await anybody.post("/api/v1/auth/forgot", {"email": person.email})
    tokens = [
        session["refresh_token"],
        session["device_token"],
        await mailed(users, person.email, "new password"),
    ]
    tables = {"refresh_token": 0, "login_device": 1, "password_reset": 2}
    async with system_database.reader() as connection:
        for table, number in tables.items():
            rows = [str(row[0]) for row in await connection.execute(text(f"select t::text from {table} t"))]
            assert any(one_time.digest(tokens[number]).hex() in row for row in rows), table
            assert not [row for row in rows for token in tokens if token in row], table


@pytest.mark.parametrize(
    "email", ["a", "a@b", "a b@example.org", "a@example.org\n", "a@exa mple.org", "a,b@c.de"]
)
async def test_what_is_no_address_is_refused(anybody: Caller, email: str) -> None:
    for path, more in (("register", {"password": PASSWORD}), ("forgot", {})):
        answer = await anybody.post(f"/api/v1/auth/{path}", {"email": email, **more})
        assert answer.status == 422, path


async def test_registration_can_be_closed(
    users: Running, postgres: DatabaseSettings, valkey: CacheSettings, tmp_path: Path
) -> None:
    variables = {**users.environment, "HEADRACE_REGISTRATION": "closed"}
    with running(service("users", free_port(), variables), tmp_path / "log") as component:
        async with aiohttp.ClientSession() as http:
            caller = Caller(http, Running(component.address, variables, tmp_path / "log"), {})
            answer = await caller.post(
                "/api/v1/auth/register", {"email": fresh_email(), "password": PASSWORD}
            )
    assert (answer.status, answer.json["code"]) == (403, "registration_closed")


async def test_registering_is_audited_without_the_address(anybody: Caller, system_database: Database) -> None:
    before = len(await audited(system_database, "unknown"))
    await anybody.post("/api/v1/auth/register", {"email": fresh_email(), "password": PASSWORD})
    last = (await audited(system_database, "unknown"))[before:]
    assert [(event.action, event.actor) for event in last] == [("auth.register", "anonymous")]
