"""Login: password, then the second factor where there is one, then a session.

An unknown address costs the same work and gets the same answers as a wrong password, in the same order:
too many attempts, wrong. What comes after the right password may say more.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.database import Database, tenant
from core.ids import new_id
from services.common.errors import Problem, not_found
from services.users import account_schemas as shapes
from services.users import account_store, one_time, store
from services.users.account_store import Person
from services.users.lockout import Caller, Lockout
from services.users.mfa import SecondFactor
from services.users.passwords import BusyError, Passwords
from services.users.roles import Role
from services.users.sessions import Sessions
from services.users.store import NOBODY, Membership
from services.users.tokens import CHALLENGE_LIFETIME, TokenRefusedError, Tokens

LOGIN: Final = "auth.login"
LOGIN_FAILED: Final = "auth.login_failed"
STRANGER: Final = "nobody"
"""Stands for the person behind an address that nobody has."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before the password is looked at."""

    email: str
    """In the one form that is looked up and counted by."""
    login: store.Login | None
    memberships: list[Membership]
    device: str | None
    place: bool

    @property
    def person_id(self) -> str:
        return "" if self.login is None else self.login.person_id

    @property
    def first_tenant(self) -> str:
        return self.memberships[0].tenant_id if self.memberships else NOBODY


class Logins:
    """Login and its second step."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        tokens: Tokens,
        sessions: Sessions,
        lockout: Lockout,
        second_factor: SecondFactor,
    ) -> None:
        self._database, self._passwords, self._tokens = database, passwords, tokens
        self._sessions, self._lockout, self._second_factor = sessions, lockout, second_factor

    async def login(self, body: shapes.Login, caller: Caller) -> shapes.Token | shapes.MfaRequired:
        """Tokens, or a challenge where the account has a second factor and no code came.

        Raises:
            Problem: 401 `wrong_credentials` or `wrong_code`, 404 for an organisation that is not one of the
                person's, 403 `no_organization`, 429 `too_many_attempts` or `too_many_logins`.
        """
        known = await self.known(body.email, body.device_token, caller)
        await self.check_password(known, body.password, caller)
        membership = await self._membership(known, body.organization)
        if membership is None:
            await self._record(LOGIN_FAILED, known.first_tenant, known.person_id)
            raise _no_membership(body.organization)
        if not await self._has_second_factor(known.person_id):
            return await self._open(known, membership, caller, factor=None)
        if body.code is not None:
            factor = await self._check_code(known, membership.tenant_id, body.code, caller)
            return await self._open(known, membership, caller, factor=factor)
        return shapes.MfaRequired(
            object="mfa_challenge",
            challenge=self._tokens.challenge(known.person_id, membership.tenant_id),
            expires_in=CHALLENGE_LIFETIME,
            methods=["totp", "recovery_code"],
        )

    async def answer(self, body: shapes.Challenge, caller: Caller) -> shapes.Token:
        """The second step. Raises: Problem 401 `challenge_refused` or `wrong_code`, 429 `too_many_attempts`."""
        try:
            person_id, tenant_id = self._tokens.read_challenge(body.challenge)
        except TokenRefusedError:
            raise _challenge_refused() from None
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                person = await account_store.person(connection, person_id)
        if person is None:
            raise _challenge_refused()
        known = await self.known(person.email, body.device_token, caller)
        membership = await self._membership(known, tenant_id)
        if membership is None or not await self._has_second_factor(person_id):
            raise _challenge_refused()
        factor = await self._check_code(known, tenant_id, body.code, caller)
        return await self._open(known, membership, caller, factor=factor)

    async def known(self, email: str, device_token: str | None, caller: Caller) -> Known:
        """Who has this address, and whether the caller's device or network logged in there before."""
        # Before PostgreSQL's lower(), which makes an i of U+0130: two spellings of an account were two buckets.
        email = email.lower()
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                found = await store.find_login(connection, email)
                person_id = STRANGER if found is None else found.person_id
                memberships = await store.memberships(connection, person_id)
                await account_store.act_for(connection, person_id)
                token = one_time.digest(device_token or "")
                device = await account_store.device(connection, person_id, token)
                place = self._lockout.place(person_id, caller)
                known = await account_store.knows_place(connection, person_id, place)
        return Known(email, found, memberships, device, known)

    async def check_password(self, known: Known, password: str, caller: Caller) -> None:
        """Raises: Problem 401 `wrong_credentials`, 429."""
        with tenant(NOBODY):
            async with self._database.writer() as connection:
                taken = await self._lockout.admit(
                    connection, "password", known.email, caller, device=known.device, known=known.place
                )
        try:
            stored = None if known.login is None else known.login.password_hash
            right = await self._passwords.matches(password, stored)
        except BusyError:
            with tenant(NOBODY):
                async with self._database.writer() as connection:
                    await self._lockout.give_back(connection, taken)
            raise busy() from None
        if not right:
            await self._record(LOGIN_FAILED, known.first_tenant, known.person_id)
            raise wrong_credentials()
        with tenant(NOBODY):
            async with self._database.writer() as connection:
                await self._lockout.forgive(connection, taken)

    async def _check_code(self, known: Known, tenant_id: str, code: str, caller: Caller) -> str:
        """Which factor it was. Raises: Problem 401 `wrong_code`, 429."""
        with tenant(tenant_id):
            async with self._database.writer() as connection:
                taken = await self._lockout.admit(
                    connection, "code", known.person_id, caller, device=known.device, known=known.place
                )
            async with self._database.writer() as connection:
                await account_store.act_for(connection, known.person_id)
                factor = await self._second_factor.accepts(connection, known.person_id, code)
                if factor is not None:
                    await self._lockout.forgive(connection, taken)
        if factor is None:
            await self._record(LOGIN_FAILED, tenant_id, known.person_id, factor="code")
            raise wrong_code()
        return factor

    async def _open(
        self, known: Known, membership: Membership, caller: Caller, *, factor: str | None
    ) -> shapes.Token:
        assert known.login is not None, "only called after the right password"
        login = known.login
        person = Person(login.person_id, "", "", login.password_hash, login.platform_owner)
        with tenant(membership.tenant_id):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person.person_id)
                given = await self.remember(connection, person.person_id, known.device, caller)
                answer = await self._sessions.open(
                    connection,
                    person,
                    membership,
                    caller,
                    second_factor=factor is not None,
                    device_token=given,
                )
                await audit.record(
                    connection,
                    action=LOGIN,
                    actor=person.person_id,
                    tenant_id=membership.tenant_id,
                    target=person.person_id,
                    outcome="success",
                    detail={"session": answer["session"], "factor": factor or "password"},
                )
        return answer

    async def remember(
        self, connection: AsyncConnection, person_id: str, device: str | None, caller: Caller
    ) -> str | None:
        """Know this device and network from now on; the token of a device that is new."""
        await account_store.remember_place(connection, person_id, self._lockout.place(person_id, caller))
        if device is not None:
            await account_store.used_device(connection, person_id, device)
            return None
        token = one_time.new("device")
        await account_store.add_device(connection, person_id, new_id("dev"), token.sha256)
        return token.text

    async def _has_second_factor(self, person_id: str) -> bool:
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                await account_store.act_for(connection, person_id)
                return await account_store.has_totp(connection, person_id)

    async def _membership(self, known: Known, wanted: str | None) -> Membership | None:
        """The membership to log in with: the one that is named by slug or id, else the oldest."""
        if wanted is None:
            return known.memberships[0] if known.memberships else None
        for one in known.memberships:
            if wanted in (one.tenant_id, one.slug):
                return one
        if known.login is None or not known.login.platform_owner:
            return None
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                return await store.find_organisation(connection, wanted, Role.OWNER)

    async def _record(self, action: str, tenant_id: str, person_id: str, factor: str = "password") -> None:
        """In the organisation of the login, or under nobody's where the e-mail is unknown."""
        with tenant(tenant_id):
            async with self._database.writer() as connection:
                await audit.record(
                    connection,
                    action=action,
                    actor=person_id or "anonymous",
                    tenant_id=tenant_id,
                    target=person_id or "unknown",
                    outcome="denied",
                    detail={"factor": factor},
                )


def wrong_credentials() -> Problem:
    return Problem(
        401, "wrong_credentials", "Login failed", "E-mail or password is wrong. Check both and try again."
    )


def wrong_code() -> Problem:
    return Problem(
        401,
        "wrong_code",
        "Login failed",
        "The code is wrong, was used before, or is too old. Wait for the next one, or use a recovery code.",
    )


def busy() -> Problem:
    return Problem(
        429,
        "too_many_logins",
        "Too many logins",
        "More logins are being checked than this service can; try again in a moment.",
        headers={"retry-after": "1"},
    )


def _challenge_refused() -> Problem:
    return Problem(
        401, "challenge_refused", "Log in again", "The challenge is not valid or too old; log in again."
    )


def _no_membership(wanted: str | None) -> Problem:
    if wanted is not None:
        return not_found("organisation")
    return Problem(403, "no_organization", "No organisation", "This account belongs to no organisation.")
