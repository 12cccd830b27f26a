"""Members of an organisation: who is there, with which role.

Only owners make owners or take that role away, and an organisation never loses its last one. A changed
role ends the access tokens with the old one at once; a removed member's sessions there end. Open invitations
that somebody made and could not make any more are revoked: they would be a way back in.
"""

from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from core import audit
from core.database import Database, tenant
from services.common.errors import Problem, not_found
from services.common.paging import Page, listing
from services.common.principal import Principal
from services.users import account_store, invitation_store, member_schemas, store
from services.users.organizations import acting_in, window
from services.users.roles import Role, invitable
from services.users.sessions import Sessions
from services.users.store import Member

LAST_OWNER: Final = "last_owner"


class Members:
    def __init__(self, database: Database, sessions: Sessions) -> None:
        self._database, self._sessions = database, sessions

    async def page(self, principal: Principal, organisation_id: str, page: Page) -> dict[str, Any]:
        """Raises: Problem 404."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.reader() as connection:
                await must_exist(connection, organisation_id)
                found = await store.page_of_members(connection, organisation_id, window(page))
        return listing([member_schemas.member(one) for one in found], page)

    async def get(
        self, principal: Principal, organisation_id: str, person_id: str
    ) -> member_schemas.MemberShown:
        """Raises: Problem 404."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.reader() as connection:
                found = await store.member(connection, organisation_id, person_id)
        if found is None:
            raise not_found("member")
        return member_schemas.member(found)

    async def change(
        self, principal: Principal, organisation_id: str, person_id: str, role: Role
    ) -> member_schemas.MemberShown:
        """Raises: Problem 403 `owner_required`, 404, 409 `last_owner`."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                found = await _to_change(connection, principal, organisation_id, person_id, role)
                if found.role != role:
                    await store.set_role(connection, organisation_id, person_id, role)
                    await account_store.renew_generation(connection, organisation_id, person_id)
                    kept = invitable(role)
                    await _revoke_invitations(connection, principal, organisation_id, person_id, kept)
                await _record(connection, principal, organisation_id, "member.change_role", person_id, role)
                changed = await store.member(connection, organisation_id, person_id)
        assert changed is not None, "the row is locked by this transaction"
        await self._sessions.tell(person_id)
        return member_schemas.member(changed)

    async def remove(self, principal: Principal, organisation_id: str, person_id: str) -> None:
        """Raises: Problem 403 `owner_required`, 404, 409 `last_owner`."""
        with tenant(acting_in(principal, organisation_id)):
            async with self._database.writer() as connection:
                found = await _to_change(connection, principal, organisation_id, person_id, None)
                await account_store.end_sessions(
                    connection, "member", person_id=person_id, tenant_id=organisation_id
                )
                await store.remove_member(connection, organisation_id, person_id)
                await _revoke_invitations(connection, principal, organisation_id, person_id, [])
                await _record(connection, principal, organisation_id, "member.remove", person_id, found.role)
        await self._sessions.tell(person_id)


async def _to_change(
    connection: AsyncConnection,
    principal: Principal,
    organisation_id: str,
    person_id: str,
    role: Role | None,
) -> Member:
    """The member, with all owners locked: of two who leave at once the second sees the first gone."""
    await must_exist(connection, organisation_id)
    owners = await store.lock_owners(connection, organisation_id)
    found = await store.member(connection, organisation_id, person_id)
    if found is None:
        raise not_found("member")
    if Role.OWNER in (found.role, role) and found.role != role:
        must_be_owner(principal, owners)
    if found.role == Role.OWNER and role != Role.OWNER and owners == {person_id}:
        raise Problem(
            409,
            LAST_OWNER,
            "Last owner",
            "An organisation keeps at least one owner; make somebody else one first.",
        )
    return found


async def _revoke_invitations(
    connection: AsyncConnection,
    principal: Principal,
    organisation_id: str,
    person_id: str,
    kept: list[Role],
) -> None:
    for one in await invitation_store.revoke_invitations_of(connection, organisation_id, person_id, kept):
        await _record(connection, principal, organisation_id, "invitation.revoke", one.id, one.role)


def must_be_owner(principal: Principal, owners: set[str]) -> None:
    """Raises: Problem 403 `owner_required`."""
    if not principal.platform_owner and principal.subject not in owners:
        raise Problem(
            403,
            "owner_required",
            "Not allowed",
            "Only an owner of the organisation gives or takes the role owner.",
        )


async def must_exist(connection: AsyncConnection, organisation_id: str) -> None:
    """Raises: Problem 404."""
    if await store.organisation(connection, organisation_id) is None:
        raise not_found("organisation")


async def _record(
    connection: AsyncConnection,
    principal: Principal,
    organisation_id: str,
    action: str,
    person_id: str,
    role: str,
) -> None:
    await audit.record(
        connection,
        action=action,
        actor=principal.subject,
        tenant_id=organisation_id,
        target=person_id,
        outcome="success",
        detail={"role": str(role)},
    )
