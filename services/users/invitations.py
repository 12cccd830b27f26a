"""Invitations: a mail with a token brings a person into an organisation, once, for a week.

The token proves the mailbox. Somebody with an account proves it with the password as well; somebody
without one chooses a password, and the account is made. The two look the same to whoever calls.
"""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.clock import now
from core.database import Database, tenant
from core.ids import new_id
from services.common.errors import Problem, invalid, not_found
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.users import account_store, invitation_store, member_schemas, one_time, store
from services.users.accounts import Accounts
from services.users.lockout import INVITED, INVITING, Caller, Lockout
from services.users.logins import Logins
from services.users.mail import Post
from services.users.members import must_be_owner, must_exist
from services.users.organizations import acting_in, window
from services.users.passwords import MIN_CHARACTERS
from services.users.roles import Role, invitable
from services.users.store import NOBODY

VALID: Final = timedelta(days=7)


class Invitations:
    def __init__(
        self, database: Database, accounts: Accounts, logins: Logins, post: Post, lockout: Lockout
    ) -> None:
        self._database, self._accounts, self._logins, self._post = database, accounts, logins, post
        self._lockout = lockout

    async def create(
        self, principal: Principal, organisation_id: str, body: member_schemas.NewInvitation
    ) -> member_schemas.InvitationShown:
        """Also for somebody who is a member already: who invites must not learn who has an account.

        Raises:
            Problem: 403 `owner_required` or `missing_scope`, 404, 429 `too_many_invitations` of the organisation or to the address.
        """
        token, email = one_time.new("invite"), body.email.lower()
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                await must_exist(connection, organisation_id)
                if body.role == Role.OWNER:
                    must_be_owner(principal, await store.lock_owners(connection, organisation_id))
                await _must_still_invite(connection, principal, organisation_id, body.role)
                await self._admit(connection, organisation_id, email)
                organisation = await store.organisation(connection, organisation_id)
                assert organisation is not None, "it was there a statement ago"
                made = await invitation_store.add_invitation(
                    connection,
                    tenant_id=organisation_id,
                    invitation_id=new_id("invt"),
                    email=email,
                    role=body.role,
                    token_sha256=token.sha256,
                    invited_by=principal.subject,
                    expires_at=now() + VALID,
                )
                await _record(
                    connection, "invitation.create", principal.subject, organisation_id, made.id, body.role
                )
        self._post.invitation(email, token.text, organisation.name)
        return member_schemas.invitation(made)

    async def _admit(self, connection: AsyncConnection, organisation_id: str, email: str) -> None:
        """Count one more mail: nobody's mailbox is flooded from here. Raises: Problem 429."""
        wait = await self._lockout.wait(connection, "invite", INVITING, "organisation", organisation_id)
        whose = "The organisation has sent many invitations"
        if wait is None:
            wait = await self._lockout.wait(connection, "invite", INVITED, "address", email)
            whose = "This address was sent several invitations lately"
        if wait is not None:
            raise Problem(
                429,
                "too_many_invitations",
                "Too many invitations",
                f"{whose}; go on in {wait} s. Invitations that were sent work for a week.",
                headers={"retry-after": str(wait)},
            )

    async def page(self, principal: Principal, organisation_id: str, page: Page) -> dict[str, Any]:
        """Raises: Problem 404."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.reader() as connection:
                await must_exist(connection, organisation_id)
                found = await invitation_store.page_of_invitations(connection, organisation_id, window(page))
        return listing([member_schemas.invitation(one) for one in found], page)

    async def revoke(self, principal: Principal, organisation_id: str, invitation_id: str) -> None:
        """Its link is of no use from now on. Raises: Problem 404, 409 `invitation_accepted`."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                found = await invitation_store.lock_invitation(connection, organisation_id, invitation_id)
                if found is None:
                    raise not_found("invitation")
                if found.accepted_at is not None:
                    raise Problem(
                        409, "invitation_accepted", "Accepted already", "Remove the member instead."
                    )
                await invitation_store.revoke_invitation(connection, organisation_id, invitation_id)
                await _record(
                    connection,
                    "invitation.revoke",
                    principal.subject,
                    organisation_id,
                    invitation_id,
                    found.role,
                )

    async def accept(self, body: member_schemas.Accept, caller: Caller) -> member_schemas.Accepted:
        """Join, with the account of that address or a new one.

        Raises:
            Problem: 401 `invitation_refused`; 401 `wrong_credentials` for another password than the
                account's; 422 for a new password that is too short; 429.
        """
        found, token = None, one_time.digest(body.token)
        if one_time.looks_like("invite", body.token):
            with tenant(NOBODY):
                async with self._database.reader() as connection:
                    found = await invitation_store.find_invitation(connection, token)
        if found is None:
            raise _refused()
        known = await self._logins.known(found.email, None, caller)
        if known.login is not None:
            await self._logins.check_password(known, body.password, caller)
            person_id, password_hash = known.login.person_id, None
        else:
            if len(body.password) < MIN_CHARACTERS:
                raise invalid("/password", f"Choose at least {MIN_CHARACTERS} characters.")
            person_id, password_hash = new_id("usr"), await self._accounts.hashed(body.password)
        with tenant(found.tenant_id):
            try:
                async with self._database.writer() as connection:
                    if not await invitation_store.accept_invitation(
                        connection, found.tenant_id, found.id, person_id
                    ):
                        raise _refused()
                    if password_hash is not None:
                        await account_store.act_for(connection, person_id)
                        await account_store.add_person(
                            connection, person_id, found.email, password_hash, body.name
                        )
                    await store.add_member(connection, found.tenant_id, person_id, Role(found.role))
                    await _record(
                        connection, "invitation.accept", person_id, found.tenant_id, found.id, found.role
                    )
            except account_store.EmailTakenError:
                raise _refused() from None
        return member_schemas.Accepted(
            id=person_id, object="user", organization=found.tenant_id, role=found.role
        )


async def _must_still_invite(
    connection: AsyncConnection, principal: Principal, organisation_id: str, wanted: Role
) -> None:
    """An access token lives on for moments when its holder is removed: what it invites would stay for a week.

    Raises:
        Problem: 403 `missing_scope`.
    """
    if principal.kind != "user" or principal.platform_owner:
        return
    role = await store.lock_role(connection, organisation_id, principal.subject)
    if role is None or wanted not in invitable(role):
        raise Problem(403, "missing_scope", "Not allowed", "Your role in the organisation does not invite.")


async def _record(
    connection: AsyncConnection, action: str, actor: str, tenant_id: str, invitation_id: str, role: str
) -> None:
    await audit.record(
        connection,
        action=action,
        actor=actor,
        tenant_id=tenant_id,
        target=invitation_id,
        outcome="success",
        detail={"role": str(role)},
    )


def _refused() -> Problem:
    return Problem(
        401,
        "invitation_refused",
        "The invitation is of no use",
        "It was accepted, revoked, is older than a week, or was never sent. Ask for a new one.",
    )
