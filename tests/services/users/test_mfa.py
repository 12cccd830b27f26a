"""The second factor, as an authenticator app uses it."""

import asyncio
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from sqlalchemy import text

from core.database import Database
from core.security.fields import FieldCipher, FieldError, Place
from core.settings import SecuritySettings
from services.users.lockout import SHARED
from services.users.store import NOBODY
from tests.services.users.conftest import PASSWORD, Caller, Running, Somebody, actions

TOTP = "/api/v1/auth/mfa/totp"


class Phone:
    """An authenticator app. Each code works once, so it names the steps that it has used."""

    def __init__(self, secret: str) -> None:
        self._totp = pyotp.TOTP(secret)
        # The first code is that of now: one of the step before would be refused where a step ends before it is looked at.
        self._last = int(time.time()) // 30 - 1

    async def code(self) -> str:
        """The next unused code; waits where all that are accepted now were used."""
        await asyncio.sleep(max(0.0, self._last * 30 - time.time()))
        self._last = max(self._last + 1, int(time.time()) // 30)
        return str(self._totp.at(self._last * 30))


async def switched_on(caller: Caller) -> tuple[Phone, list[str]]:
    enrolled = await caller.post(TOTP, {"password": PASSWORD})
    assert (enrolled.status, enrolled.headers["cache-control"]) == (201, "no-store")
    uri = urlsplit(enrolled.json["uri"])
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert parse_qs(uri.query)["secret"] == [enrolled.json["secret"]]
    phone = Phone(enrolled.json["secret"])
    confirmed = await caller.post(f"{TOTP}/confirm", {"code": await phone.code()})
    assert confirmed.status == 200, confirmed.json
    return phone, confirmed.json["codes"]


@pytest.fixture
async def inside(anybody: Caller, person: Somebody) -> Caller:
    return anybody.bearing((await person.login(anybody))["access_token"])


async def challenged(anybody: Caller, person: Somebody) -> str:
    answer = await anybody.login(PASSWORD, person.email)
    assert (answer.status, answer.json["object"]) == (202, "mfa_challenge"), answer.json
    assert "access_token" not in answer.json
    return str(answer.json["challenge"])


async def answered(anybody: Caller, challenge: str, code: str) -> Any:
    return await anybody.post("/api/v1/auth/challenge", {"challenge": challenge, "code": code})


async def test_login_asks_for_it_and_takes_each_code_once(
    anybody: Caller, inside: Caller, person: Somebody, system_database: Database
) -> None:
    phone, _ = await switched_on(inside)
    assert (await inside.get("/api/v1/auth/mfa")).json == {
        "object": "mfa",
        "totp": True,
        "recovery_codes_left": 10,
    }
    challenge = await challenged(anybody, person)
    wrong = await answered(anybody, challenge, "000000")
    assert (wrong.status, wrong.json["code"]) == (401, "wrong_code")
    code = await phone.code()
    right = await answered(anybody, challenge, code)
    assert right.status == 200, right.json
    again = await answered(anybody, challenge, code)
    assert (again.status, again.json["code"]) == (401, "wrong_code")
    listed = (await anybody.bearing(right.json["access_token"]).get("/api/v1/sessions")).json["data"]
    assert {one["id"]: one["second_factor"] for one in listed}[right.json["session"]] is True
    assert "mfa.confirm" in await actions(system_database, person.id)


async def test_recovery_codes_work_once_in_one_step_as_well(
    anybody: Caller, inside: Caller, person: Somebody
) -> None:
    _, codes = await switched_on(inside)
    assert len(set(codes)) == 10
    typed = codes[3].replace("-", " ").upper()
    assert (await anybody.login(PASSWORD, person.email, code=typed)).status == 200
    assert (await anybody.login(PASSWORD, person.email, code=codes[3])).status == 401
    assert (await inside.get("/api/v1/auth/mfa")).json["recovery_codes_left"] == 9
    fresh = await inside.post("/api/v1/auth/mfa/recovery-codes", {"password": PASSWORD, "code": codes[4]})
    assert fresh.status == 200
    assert (await anybody.login(PASSWORD, person.email, code=codes[5])).status == 401
    assert (await anybody.login(PASSWORD, person.email, code=fresh.json["codes"][0])).status == 200


async def test_off_again_takes_password_and_code(anybody: Caller, inside: Caller, person: Somebody) -> None:
    _, codes = await switched_on(inside)
    assert (await inside.post(TOTP, {"password": PASSWORD})).json["code"] == "mfa_enabled"
    for body, code in (
        ({"password": "wrong", "code": codes[0]}, "wrong_credentials"),
        ({"password": PASSWORD, "code": "123456"}, "wrong_code"),
    ):
        refused = await inside.post(f"{TOTP}/disable", body)
        assert (refused.status, refused.json["code"]) == (401, code)
    assert (await inside.post(f"{TOTP}/disable", {"password": PASSWORD, "code": codes[0]})).status == 204
    assert (await anybody.login(PASSWORD, person.email)).status == 200


async def test_an_unconfirmed_secret_asks_nobody(anybody: Caller, inside: Caller, person: Somebody) -> None:
    await inside.post(TOTP, {"password": PASSWORD})
    assert (await inside.post(f"{TOTP}/confirm", {"code": "000000"})).json["code"] == "wrong_code"
    assert (await anybody.login(PASSWORD, person.email)).status == 200
    assert (await inside.post(TOTP, {"password": "wrong"})).status == 401


async def test_guesses_of_codes_are_slowed_for_strangers_not_for_the_owner(
    anybody: Caller, inside: Caller, person: Somebody
) -> None:
    _, codes = await switched_on(inside)
    attacker = anybody.from_network("192.0.2.33")
    challenge = await challenged(anybody, person)
    answers = [await answered(attacker, challenge, "000000") for _ in range(SHARED.capacity + 1)]
    assert [answer.status for answer in answers] == [401] * SHARED.capacity + [429]
    assert (await answered(anybody, challenge, codes[0])).status == 200


@pytest.mark.parametrize("challenge", ["", "a.b.c", "x" * 500])
async def test_made_up_challenges(anybody: Caller, challenge: str) -> None:
    answer = await answered(anybody, challenge, "000000")
    assert (answer.status, answer.json["code"]) == (401, "challenge_refused")


async def test_an_access_token_is_no_challenge(anybody: Caller, inside: Caller) -> None:
    token = inside.headers["authorization"].removeprefix("Bearer ")
    assert (await answered(anybody, token, "000000")).json["code"] == "challenge_refused"


async def test_the_secret_lies_encrypted_and_opens_in_its_row_only(
    inside: Caller, users: Running, person: Somebody, system_database: Database
) -> None:
    secret = (await inside.post(TOTP, {"password": PASSWORD})).json["secret"]
    async with system_database.reader() as connection:
        stored = bytes(
            await connection.scalar(
                text("select secret from person_totp where person_id = :id"), {"id": person.id}
            )
        )
    settings = SecuritySettings(
        internal_key=users.environment["HEADRACE_INTERNAL_KEY"],
        field_key=users.environment["HEADRACE_FIELD_KEY"],
    )
    cipher = FieldCipher.from_settings(settings)
    assert secret.encode() not in stored
    here = Place(NOBODY, person.id, "person_totp", "secret", person.id)
    assert cipher.decrypt(stored, here).decode() == secret
    with pytest.raises(FieldError):
        cipher.decrypt(stored, Place(NOBODY, "usr_x", "person_totp", "secret", "usr_x"))
