"""HTTP of members, roles and invitations."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from starlette.responses import Response

from services.common.auth import require
from services.common.body import documented, json_body
from services.common.paging import PageQuery
from services.common.principal import Principal
from services.users import member_schemas as shapes
from services.users.account_routes import CallerOf
from services.users.parts import OrganizationId, UsersOf, known_shape

router = APIRouter()


async def _person_id(person_id: Annotated[str, Path(description="`usr_…`")]) -> str:
    return known_shape("member", person_id)


async def _invitation_id(invitation_id: Annotated[str, Path(description="`invt_…`")]) -> str:
    return known_shape("invitation", invitation_id)


PersonId = Annotated[str, Depends(_person_id)]
InvitationId = Annotated[str, Depends(_invitation_id)]
Reader = Annotated[Principal, Depends(require("org:read"))]
Admin = Annotated[Principal, Depends(require("org:admin"))]


@router.get("/api/v1/roles", tags=["members"])
async def list_roles(_: Reader) -> shapes.Roles:
    """The roles that a member can have, and the scopes of each."""
    return shapes.roles()


@router.get("/api/v1/organizations/{id}/members", tags=["members"], response_model=shapes.Members)
async def list_members(
    users: UsersOf, principal: Reader, organization_id: OrganizationId, page: PageQuery
) -> dict[str, Any]:
    """The people of an organisation, with their roles."""
    return await users.members.page(principal, organization_id, page)


@router.get("/api/v1/organizations/{id}/members/{person_id}", tags=["members"])
async def get_member(
    users: UsersOf, principal: Reader, organization_id: OrganizationId, person_id: PersonId
) -> shapes.MemberShown:
    """One person of an organisation."""
    return await users.members.get(principal, organization_id, person_id)


@router.patch(
    "/api/v1/organizations/{id}/members/{person_id}",
    tags=["members"],
    openapi_extra=documented(shapes.NewRole),
)
async def change_member(
    users: UsersOf,
    principal: Admin,
    organization_id: OrganizationId,
    person_id: PersonId,
    body: Annotated[shapes.NewRole, Depends(json_body(shapes.NewRole))],
) -> shapes.MemberShown:
    """Give another role; it works at once. Owners are made and unmade by owners; the last one stays."""
    return await users.members.change(principal, organization_id, person_id, body.role)


@router.delete("/api/v1/organizations/{id}/members/{person_id}", tags=["members"], status_code=204)
async def remove_member(
    users: UsersOf, principal: Admin, organization_id: OrganizationId, person_id: PersonId
) -> Response:
    """Take a person out of the organisation; their sessions there end, and open invitations they made.
    API keys they made stay."""
    await users.members.remove(principal, organization_id, person_id)
    return Response(status_code=204)


@router.post(
    "/api/v1/organizations/{id}/invitations",
    tags=["members"],
    status_code=201,
    openapi_extra=documented(shapes.NewInvitation),
)
async def create_invitation(
    users: UsersOf,
    principal: Admin,
    organization_id: OrganizationId,
    body: Annotated[shapes.NewInvitation, Depends(json_body(shapes.NewInvitation))],
) -> shapes.InvitationShown:
    """Invite somebody by mail. The link works once, for 7 days."""
    return await users.invitations.create(principal, organization_id, body)


@router.get("/api/v1/organizations/{id}/invitations", tags=["members"], response_model=shapes.Invitations)
async def list_invitations(
    users: UsersOf, principal: Admin, organization_id: OrganizationId, page: PageQuery
) -> dict[str, Any]:
    """Invitations with what became of them."""
    return await users.invitations.page(principal, organization_id, page)


@router.delete("/api/v1/organizations/{id}/invitations/{invitation_id}", tags=["members"], status_code=204)
async def revoke_invitation(
    users: UsersOf, principal: Admin, organization_id: OrganizationId, invitation_id: InvitationId
) -> Response:
    """Make the link of an invitation useless."""
    await users.invitations.revoke(principal, organization_id, invitation_id)
    return Response(status_code=204)


@router.post(
    "/api/v1/auth/invitations/accept",
    tags=["members"],
    status_code=201,
    openapi_extra=documented(shapes.Accept),
)
async def accept_invitation(
    users: UsersOf, caller: CallerOf, body: Annotated[shapes.Accept, Depends(json_body(shapes.Accept))]
) -> shapes.Accepted:
    """Join with the token of the mail: your account's password, or the one of the account to be."""
    return await users.invitations.accept(body, caller)
