"""What each route of accounts needs so that it succeeds: a fresh person, a mail, a second factor."""

import re
import time
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import bcrypt
import httpx2
import pyotp
from sqlalchemy import text

from core.database import Database
from core.ids import new_id
from services.users.passwords import prehash
from tests.e2e.tenants import PASSWORD, Operation, Platform, Side
from tests.servers import wait_for

AUTH = "/api/v1/auth"


@dataclass(frozen=True)
class Prepared:
    """A request that succeeds."""

    body: Any
    credential: str
    path: dict[str, str] = field(default_factory=dict)


class Person:
    """A developer of the organisation, logged in."""

    def __init__(self, on: Platform, person_id: str, email: str) -> None:
        self.on, self.id, self.email = on, person_id, email
        self.session = self.post("login", {"email": email, "password": PASSWORD})

    @classmethod
    async def of(cls, on: Platform, database: Database, side: Side) -> "Person":
        person_id = new_id("usr")
        values = {
            "id": person_id,
            "email": f"{person_id}@example.org",
            "hash": bcrypt.hashpw(prehash(PASSWORD), bcrypt.gensalt(4)).decode(),
            "tenant": side.id,
        }
        async with database.writer() as connection:
            for statement in (
                "insert into person (id, email, password_hash) values (:id, :email, :hash)",
                "insert into membership (tenant_id, person_id, role) values (:tenant, :id, 'developer')",
            ):
                await connection.execute(text(statement), values)
        return cls(on, person_id, values["email"])

    @property
    def token(self) -> str:
        return str(self.session["access_token"])

    def post(self, path: str, body: Any, token: str = "") -> Any:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return _json(httpx2.post(f"{self.on.gateway}{AUTH}/{path}", json=body, headers=headers))

    def second_factor(self) -> list[str]:
        """Switch it on; recovery codes."""
        secret = self.post("mfa/totp", {"password": PASSWORD}, self.token)["secret"]
        body = {"code": pyotp.TOTP(secret).at(int(time.time()))}
        codes: list[str] = self.post("mfa/totp/confirm", body, self.token)["codes"]
        return codes

    def mailed(self, email: str) -> str:
        """Token of the newest mail to an address."""
        folder = Path(self.on.environment["HEADRACE_MAIL_DIR"])

        def found() -> list[str]:
            read = [
                message_from_bytes(file.read_bytes(), policy=policy.default)
                for file in sorted(folder.glob("*.eml"))
            ]
            return [mail.get_content() for mail in read if mail["To"] == email]

        wait_for(lambda: bool(found()))
        match = re.search(r"token=([A-Za-z0-9_-]+)", found()[-1])
        assert match is not None
        return match[1]


def concerns(operation: Operation) -> bool:
    """Whether `prepared` knows the route."""
    return str(operation) != f"POST {AUTH}/login" and bool(
        re.match(r"/api/v1/(auth/|sessions/|me$)|.*/(members|invitations)\b", operation.path)
    )


async def prepared(
    on: Platform, database: Database, side: Side, operation: Operation, owner: str
) -> Prepared:
    """All that must come before `operation`, done."""
    person = await Person.of(on, database, side)
    fresh = f"{new_id('x')}@example.org"
    invitations = f"{on.gateway}/api/v1/organizations/{side.id}/invitations"

    def invite() -> str:
        answer = httpx2.post(invitations, json={"email": fresh}, headers={"authorization": f"Bearer {owner}"})
        return str(_json(answer)["id"])

    def by_mail(path: str, body: Any, email: str) -> str:
        person.post(path, body)
        return person.mailed(email)

    match f"{operation.method} {operation.path.removeprefix(AUTH)}":
        case "POST /register":
            return Prepared({"email": fresh, "password": PASSWORD}, "")
        case "POST /verify-email":
            token = by_mail("register", {"email": fresh, "password": PASSWORD}, fresh)
            return Prepared({"token": token, "password": PASSWORD}, "")
        case "POST /forgot":
            return Prepared({"email": person.email}, "")
        case "POST /reset":
            token = by_mail("forgot", {"email": person.email}, person.email)
            return Prepared({"token": token, "password": PASSWORD}, "")
        case "POST /challenge":
            codes = person.second_factor()
            asked = person.post("login", {"email": person.email, "password": PASSWORD})
            return Prepared({"challenge": asked["challenge"], "code": codes[0]}, "")
        case "POST /password":
            return Prepared({"current_password": PASSWORD, "new_password": PASSWORD}, person.token)
        case "POST /logout":
            return Prepared({"refresh_token": person.session["refresh_token"]}, "")
        case "POST /mfa/totp":
            return Prepared({"password": PASSWORD}, person.token)
        case "POST /mfa/totp/confirm":
            secret = person.post("mfa/totp", {"password": PASSWORD}, person.token)["secret"]
            return Prepared({"code": pyotp.TOTP(secret).at(int(time.time()))}, person.token)
        case "POST /mfa/totp/disable" | "POST /mfa/recovery-codes":
            return Prepared({"password": PASSWORD, "code": person.second_factor()[0]}, person.token)
        case "POST /invitations/accept":
            invite()
            return Prepared({"token": person.mailed(fresh), "password": PASSWORD}, "")
        case "PATCH /api/v1/me":
            return Prepared({"name": "x"}, person.token)
        case "PATCH /api/v1/organizations/{id}/members/{person_id}":
            return Prepared({"role": "viewer"}, owner, {"person_id": person.id})
        case "DELETE /api/v1/organizations/{id}/members/{person_id}":
            return Prepared(None, owner, {"person_id": person.id})
        case "POST /api/v1/organizations/{id}/invitations":
            return Prepared({"email": fresh}, owner)
        case "DELETE /api/v1/organizations/{id}/invitations/{invitation_id}":
            return Prepared(None, owner, {"invitation_id": invite()})
        case _:
            return Prepared(None, person.token, {"session_id": str(person.session["session"])})


def _json(answer: httpx2.Response) -> Any:
    return answer.raise_for_status().json() if answer.content else None
