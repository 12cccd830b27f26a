"""Accounts: register, prove the mailbox, reset and change the password, name, second factor.

Nobody learns here whether an address has an account: register and forgot answer the same after the same
work, and the mail that leaves afterwards says the rest to whoever reads that mailbox. A registration is
no account: until its mailbox is proven it is a row of its own, and the proof asks for the password that
was chosen, so that nobody can prepare an account for somebody else's address and wait for the click.
"""

from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now
from core.database import Database, tenant
from core.ids import new_id
from services.common.errors import Problem
from services.common.principal import Principal
from services.users import account_schemas as shapes
from services.users import account_store, one_time, store
from services.users.account_store import Person, Registration
from services.users.lockout import MADE, MAILS, Caller, Lockout, too_many
from services.users.logins import Logins, busy, wrong_code
from services.users.mail import Post
from services.users.mfa import SecondFactor
from services.users.organizations import free_slug
from services.users.passwords import BusyError, Passwords
from services.users.roles import Role
from services.users.sessions import Sessions, a_person
from services.users.store import NOBODY

PLAN: Final = "free"
"""Of an organisation that somebody makes by registering."""
ANSWER: Final = shapes.Accepted(
    object="accepted", detail="If this can be done, a mail to that address says how to go on."
)


class Accounts:
    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        sessions: Sessions,
        logins: Logins,
        lockout: Lockout,
        second_factor: SecondFactor,
        post: Post,
        *,
        open_to_all: bool,
    ) -> None:
        self._database, self._passwords, self._sessions, self._logins = database, passwords, sessions, logins
        self._lockout, self._second_factor, self._post = lockout, second_factor, post
        self._open_to_all = open_to_all

    async def register(self, body: shapes.Register, caller: Caller) -> shapes.Accepted:
        """A mail with a link, or with the news that there is an account.

        Raises:
            Problem: 403 `registration_closed`, 429 `too_many_attempts` (of this network) or `too_many_logins`.
        """
        if not self._open_to_all:
            raise Problem(
                403, "registration_closed", "Not open", "Accounts are made by invitation here; ask for one."
            )
        email = body.email.lower()
        wanted = await self._may_mail(email, caller)
        password_hash = await self.hashed(body.password)
        token = one_time.new("verify")
        with tenant(NOBODY):
            async with self._database.writer() as connection:
                exists = await store.find_login(connection, email) is not None
                # Also for an address that has an account: the work is the same, the token goes nowhere.
                await account_store.add_registration(
                    connection,
                    token.sha256,
                    Registration(email, password_hash, body.name, body.organization),
                    now() + account_store.REGISTRATION,
                )
                await _record(connection, "auth.register", "anonymous", "unknown")
        if wanted:
            if exists:
                self._post.exists(email)
            else:
                self._post.verify(email, token.text)
        return ANSWER

    async def verify(self, body: shapes.Verify) -> shapes.Verified:
        """The account, with an organisation of its own.

        Raises:
            Problem: 401 `verification_refused` for a wrong token or password, 429 `too_many_logins`.
        """
        found = None
        token = one_time.digest(body.token)
        if one_time.looks_like("verify", body.token):
            with tenant(NOBODY):
                async with self._database.reader() as connection:
                    found = await account_store.find_registration(connection, token)
        # Nobody guesses a token, so one that is not there may be refused at once: junk costs no bcrypt.
        if found is None or not await self.matches(body.password, found.password_hash):
            raise _refused_verification()
        person_id, organisation_id = new_id("usr"), new_id("org")
        with tenant(organisation_id):
            try:
                async with self._database.writer() as connection:
                    if not await account_store.take_registration(connection, token):
                        raise _refused_verification()
                    await account_store.act_for(connection, person_id)
                    await account_store.add_person(
                        connection, person_id, found.email, found.password_hash, found.name
                    )
                    name = found.organisation_name.strip() or found.name.strip() or "Mine"
                    await store.create_organisation(connection, organisation_id, free_slug(name), name, PLAN)
                    await store.add_member(connection, organisation_id, person_id, Role.OWNER)
                    await audit.record(
                        connection,
                        action="auth.verify_email",
                        actor=person_id,
                        tenant_id=organisation_id,
                        target=person_id,
                        outcome="success",
                    )
            except account_store.EmailTakenError:
                # Invited and registered at once: the mailbox was proven there already.
                raise _refused_verification() from None
        return shapes.Verified(id=person_id, object="user", organization=organisation_id)

    async def forgot(self, body: shapes.Forgot, caller: Caller) -> shapes.Accepted:
        """A mail with a link, where somebody has the address. Raises: Problem 429 `too_many_attempts`."""
        email = body.email.lower()
        wanted = await self._may_mail(email, caller)
        token = one_time.new("reset")
        with tenant(NOBODY):
            async with self._database.writer() as connection:
                found = await store.find_login(connection, email)
                await account_store.add_reset(
                    connection,
                    token.sha256,
                    None if found is None else found.person_id,
                    now() + account_store.RESET,
                )
                subject = "unknown" if found is None else found.person_id
                await _record(connection, "auth.forgot", "anonymous", subject)
        if wanted and found is not None:
            self._post.reset(email, token.text)
        return ANSWER

    async def reset(self, body: shapes.Reset, caller: Caller) -> shapes.WasReset:
        """Set a new password by the link of the mail; all sessions end, all known devices are forgotten.

        The second factor stays: who reads the mailbox has not the phone.

        Raises:
            Problem: 401 `reset_refused`, 429 `too_many_logins`.
        """
        person_id, person = None, None
        if one_time.looks_like("reset", body.token):
            with tenant(NOBODY):
                async with self._database.writer() as connection:
                    person_id = await account_store.take_reset(connection, one_time.digest(body.token))
                    if person_id is not None:
                        # Only now, so that junk costs no bcrypt; where this is too much, the token is good again.
                        password_hash = await self.hashed(body.password)
                        person = await account_store.person(connection, person_id)
                        device = await self._replace_password(connection, person_id, password_hash, caller)
                        await _record(connection, "auth.reset", person_id, person_id)
        if person_id is None or person is None:
            raise Problem(
                401,
                "reset_refused",
                "The link is of no use",
                "It was used before, is older than an hour, or was never sent. Ask for a new one.",
            )
        await self._sessions.tell(person_id)
        self._post.changed(person.email)
        return shapes.WasReset(object="password_reset", device_token=device)

    async def change_password(
        self, principal: Principal, body: shapes.ChangePassword, caller: Caller
    ) -> None:
        """Set a new password; every session but this one ends. Raises: Problem 401 `wrong_credentials`, 403, 429."""
        person = await self.proven(principal, body.current_password, caller)
        password_hash = await self.hashed(body.new_password)
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person.person_id)
                await account_store.set_password(connection, person.person_id, password_hash)
                await account_store.end_sessions(
                    connection, "password", person_id=person.person_id, but=principal.session_id
                )
                await self._own(connection, principal, "auth.change_password")
        await self._sessions.tell(person.person_id)
        self._post.changed(person.email)

    async def rename(self, principal: Principal, body: shapes.Profile) -> None:
        """Raises: Problem 403."""
        person_id = a_person(principal)
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person_id)
                await account_store.set_name(connection, person_id, body.name)
                await self._own(connection, principal, "person.rename")

    # --- second factor --------------------------------------------------------------------------------

    async def mfa(self, principal: Principal) -> shapes.MfaState:
        """Raises: Problem 403."""
        person_id = a_person(principal)
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.reader() as connection:
                await account_store.act_for(connection, person_id)
                on = await account_store.has_totp(connection, person_id)
                left = await account_store.recovery_codes_left(connection, person_id)
        return shapes.MfaState(object="mfa", totp=on, recovery_codes_left=left)

    async def enrol(self, principal: Principal, body: shapes.Enrol, caller: Caller) -> shapes.Enrolment:
        """Raises: Problem 401 `wrong_credentials`, 403, 409 `mfa_enabled`, 429."""
        person = await self.proven(principal, body.password, caller)
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person.person_id)
                made = await self._second_factor.enrol(connection, person.person_id, person.email)
                if made is None:
                    raise Problem(
                        409,
                        "mfa_enabled",
                        "Switched on already",
                        "This account has a second factor; disable it first to move to another app.",
                    )
                await self._own(connection, principal, "mfa.enrol")
        return shapes.Enrolment(object="totp_enrolment", secret=made[0], uri=made[1])

    async def confirm(self, principal: Principal, body: shapes.Confirm) -> shapes.RecoveryCodes:
        """Raises: Problem 401 `wrong_code`, 403."""
        person_id = a_person(principal)
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person_id)
                codes = await self._second_factor.confirm(connection, person_id, body.code)
                if codes is None:
                    raise wrong_code()
                await self._own(connection, principal, "mfa.confirm")
        return shapes.RecoveryCodes(object="recovery_codes", codes=codes)

    async def disable(self, principal: Principal, body: shapes.Disable, caller: Caller) -> None:
        """Raises: Problem 401 `wrong_credentials` or `wrong_code`, 403, 429."""
        await self._with_both(principal, body, caller, "mfa.disable")

    async def new_codes(
        self, principal: Principal, body: shapes.Disable, caller: Caller
    ) -> shapes.RecoveryCodes:
        """Raises: as `disable`."""
        codes = await self._with_both(principal, body, caller, "mfa.recovery_codes")
        return shapes.RecoveryCodes(object="recovery_codes", codes=codes)

    async def _with_both(
        self, principal: Principal, body: shapes.Disable, caller: Caller, action: str
    ) -> list[str]:
        person = await self.proven(principal, body.password, caller)
        codes: list[str] = []
        with tenant(principal.tenant_id or NOBODY):
            async with self._database.writer() as connection:
                await self._lockout.admit(
                    connection, "code", person.person_id, caller, device=principal.session_id, known=True
                )
            async with self._database.writer() as connection:
                await account_store.act_for(connection, person.person_id)
                if await self._second_factor.accepts(connection, person.person_id, body.code) is None:
                    raise wrong_code()
                if action == "mfa.disable":
                    await account_store.drop_totp(connection, person.person_id)
                else:
                    codes = await self._second_factor.renew_codes(connection, person.person_id)
                await self._own(connection, principal, action)
        return codes

    # --- shared ---------------------------------------------------------------------------------------

    async def proven(self, principal: Principal, password: str, caller: Caller) -> Person:
        """The caller, who knows the password: a stolen session is not enough for what comes next.

        Raises:
            Problem: 401 `wrong_credentials`, 403, 429.
        """
        person_id = a_person(principal)
        with tenant(NOBODY):
            async with self._database.reader() as connection:
                person = await account_store.person(connection, person_id)
        if person is None:
            raise Problem(403, "not_a_person", "Not allowed", "This account does not exist any more.")
        known = await self._logins.known(person.email, None, caller)
        await self._logins.check_password(known, password, caller)
        return person

    async def hashed(self, password: str) -> str:
        """Raises: Problem 429."""
        try:
            return await self._passwords.hash(password)
        except BusyError:
            raise busy() from None

    async def matches(self, password: str, stored: str) -> bool:
        """Raises: Problem 429."""
        try:
            return await self._passwords.matches(password, stored)
        except BusyError:
            raise busy() from None

    async def _may_mail(self, email: str, caller: Caller) -> bool:
        """False where that mailbox got enough for now; nobody is told. Raises: Problem 429 for a busy network."""
        with tenant(NOBODY):
            async with self._database.writer() as connection:
                if (
                    wait := await self._lockout.wait(connection, "register", MADE, caller.network)
                ) is not None:
                    raise too_many(wait)
                return await self._lockout.wait(connection, "mail", MAILS, email) is None

    async def _replace_password(
        self, connection: AsyncConnection, person_id: str, password_hash: str, caller: Caller
    ) -> str:
        await account_store.act_for(connection, person_id)
        await account_store.set_password(connection, person_id, password_hash)
        await account_store.end_sessions(connection, "password", person_id=person_id)
        await account_store.forget_devices(connection, person_id)
        device = await self._logins.remember(connection, person_id, None, caller)
        assert device is not None, "a device that was not known gets a token"
        return device

    async def _own(self, connection: AsyncConnection, principal: Principal, action: str) -> None:
        await audit.record(
            connection,
            action=action,
            actor=principal.subject,
            tenant_id=principal.tenant_id or NOBODY,
            target=principal.subject,
            outcome="success",
        )


async def _record(connection: AsyncConnection, action: str, actor: str, target: str) -> None:
    """Where no organisation is known or meant."""
    await audit.record(
        connection, action=action, actor=actor, tenant_id=NOBODY, target=target, outcome="success"
    )


def _refused_verification() -> Problem:
    return Problem(
        401,
        "verification_refused",
        "Not confirmed",
        "The link is wrong, was used or is older than a day, or the password is not the one that was chosen.",
    )
